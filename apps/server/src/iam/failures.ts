import { networkOf } from '../kit/addresses.ts'
import type { Clock } from '../kit/clock.ts'

/** How many wrong keys an address, or a network of IPv6, may send in a minute before it is told to wait. */
export const MAX_FAILURES = 100
const WINDOW_MS = 60_000
/** Addresses that are remembered at once: about a megabyte. */
const MAX_ADDRESSES = 10_000

export type Failures = {
  /** Notes one more wrong key, or something that weighs as much as several; says how long the address has to wait, 0 while it need not. */
  count(ip: string, weight?: number): number
  /** The same without noting anything: for what is too dear to do for an address that has to wait. */
  waitMs(ip: string): number
}

/** Other gateways behind the same port: an address that fails at all of them in turn has failed as often as at one. */
export type Elsewhere = {
  tell(ip: string, weight: number): void
  listen(hear: (ip: string, weight: number) => void): void
}

export const openFailures = (clock: Clock, elsewhere?: Elsewhere): Failures => {
  // In the order in which they first failed, so the oldest is the first.
  const seen = new Map<string, { since: number; failures: number }>()
  const count = (ip: string, weight: number): number => {
    const now = clock.now()
    const network = networkOf(ip)
    let entry = seen.get(network)
    if (entry !== undefined && now - entry.since >= WINDOW_MS) {
      seen.delete(network)
      entry = undefined
    }
    if (entry === undefined) {
      if (seen.size >= MAX_ADDRESSES)
        for (const oldest of seen.keys()) {
          seen.delete(oldest)
          break
        }
      entry = { since: now, failures: 0 }
      seen.set(network, entry)
    }
    entry.failures += weight
    return entry.failures <= MAX_FAILURES ? 0 : entry.since + WINDOW_MS - now
  }
  const waitMs = (ip: string): number => {
    const entry = seen.get(networkOf(ip))
    return entry === undefined || entry.failures <= MAX_FAILURES ? 0 : Math.max(0, entry.since + WINDOW_MS - clock.now())
  }
  elsewhere?.listen(count)

  return {
    waitMs,
    count: (ip, weight = 1) => {
      // Of one that has to wait already nobody needs to hear more: so what is told has a bound, however often it knocks.
      if (elsewhere !== undefined && waitMs(ip) === 0) elsewhere.tell(ip, weight)
      return count(ip, weight)
    },
  }
}
