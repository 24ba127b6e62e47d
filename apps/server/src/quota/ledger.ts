import type { Clock } from '../kit/clock.ts'

/**
 * Something that is limited, in whole units. What refills does so evenly, up to its capacity. What does not is used up for good
 * (a budget in its period) or given back (places for concurrent requests).
 */
export type Limited = {
  readonly kind: 'minute' | 'places' | 'budget'
  readonly key: string
  readonly capacity: number
  /** Zero for all but `minute`. */
  readonly refillPerMs: number
}

export type Ask = Limited & {
  /** What those who wait need together, and the one who needs least; `least` null asks for nothing and only tells. */
  readonly need: number
  readonly least: number | null
  /** For what refills: given back since the last ask, or owed if negative. */
  readonly back: number
  /** For what does not: used for good, and held, by this gateway and in all. */
  readonly used: number
  readonly held: number
}

/** `left`: what the grant has left behind. */
export type Answer = { readonly granted: number; readonly left: number }

/** Where the gateways share what is limited. There are two: rows of the database, and the memory of a process that is alone. */
export type Ledger = {
  /** Answers in the order of the asks. */
  ask(asks: readonly Ask[]): Promise<Answer[]>
  /** Says that this gateway lives, and hears how many do. */
  beat(): Promise<number>
}

/** What a gateway holds of budgets and places comes back this long after its last word. */
export const HELD_MS = 5_000

/** A lease lasts for this much of the rate, and one that would be a single unit or less is none: those who need it ask. */
const LEASE_MS = 100
const SMALLEST_LEASE = 2
/** While there is plenty, a lease may be this part of it: nobody misses it, and it shrinks as the end comes near. */
const PLENTY_PART = 32

export const leaseOf = (limited: Pick<Limited, 'refillPerMs'>): number => {
  const lease = Math.floor(limited.refillPerMs * LEASE_MS)
  return lease < SMALLEST_LEASE ? 0 : lease
}

/**
 * How much is given. Nothing while there is less than somebody needs; then what all of them need and a stock for the next, as far as it
 * goes. Who needs more than a bucket can ever hold gets it from a full one, which then owes it (data-plane.md 4.3: once negative).
 * `quota_ask` in the migration says the same in SQL.
 */
export const grantOf = (ask: Ask, left: number): number => {
  if (ask.least === null || left < (ask.refillPerMs > 0 ? Math.min(ask.least, ask.capacity) : ask.least)) return 0
  const stock = Math.max(leaseOf(ask), Math.floor(left / PLENTY_PART))
  return Math.max(ask.least, Math.min(ask.need + stock, Math.floor(left)))
}

/** A float that is off by a billionth is not a rule. */
export const snap = (level: number): number => (Math.abs(level - Math.round(level)) < 1e-9 ? Math.round(level) : level)

/** The ledger of a process that shares with nobody, and of tests. */
export const openMemoryLedger = (clock: Pick<Clock, 'monotonicMs'>): Ledger => {
  const buckets = new Map<string, { level: number; at: number }>()

  const bucketLeft = (ask: Ask): number => {
    const now = clock.monotonicMs()
    const bucket = buckets.get(ask.key) ?? { level: ask.capacity, at: now }
    const refilled = Math.min(ask.capacity, bucket.level + ask.refillPerMs * (now - bucket.at))
    const left = snap(Math.min(ask.capacity, refilled + ask.back))
    buckets.set(ask.key, { level: left, at: now })
    return left
  }

  return {
    ask: (asks) =>
      Promise.resolve(
        asks.map((ask) => {
          const left = ask.refillPerMs > 0 ? bucketLeft(ask) : ask.capacity - ask.used - ask.held
          const granted = grantOf(ask, left)
          const bucket = buckets.get(ask.key)
          if (ask.refillPerMs > 0 && bucket !== undefined) bucket.level -= granted
          return { granted, left: left - granted }
        }),
      ),
    beat: () => Promise.resolve(1),
  }
}
