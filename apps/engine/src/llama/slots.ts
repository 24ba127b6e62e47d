import { busy, no, type Outcome, yes } from '../refusal.ts'

/** What is remembered of a sequence between two requests. */
export type Slot<S> = {
  readonly index: number
  readonly sequence: S
  /** Whose tokens lie in its cache; undefined while it is empty. */
  tenant: string | undefined
  busy: boolean
  /** Counts up with every use: the smallest was used longest ago. */
  usedAt: number
}

/**
 * A sequence that is ours until it is left. `reuse` tells whether what it has cached may be used for this request; `spoil` says that
 * what it has now must not be used by anybody.
 */
export type Lease<S> = { readonly index: number; readonly sequence: S; readonly reuse: boolean; spoil(): void; leave(): void }

export const commonPrefix = (a: readonly number[], b: readonly number[]): number => {
  const end = Math.min(a.length, b.length)
  let length = 0
  while (length < end && a[length] === b[length]) length += 1
  return length
}

// A shorter common beginning (a few tokens of the template) is not worth losing what another conversation has cached.
const WORTH_TOKENS = 128
const worthReusing = (common: number, prompt: number): boolean => common > 0 && (common >= WORTH_TOKENS || common * 2 >= prompt)

/**
 * Which free slot a prompt should get. First the one of the same tenant that shares the longest beginning, when it is worth it.
 * Otherwise one beside those at work, because llama.cpp computes neighbours in one go; among these an empty one before a used one,
 * then the one that was used longest ago, then the lowest.
 */
export const pickSlot = <S>(
  slots: readonly Slot<S>[],
  cached: (slot: Slot<S>) => readonly number[],
  tenant: string,
  prompt: readonly number[],
): Slot<S> | undefined => {
  const free = slots.filter((slot) => !slot.busy)
  let best: Slot<S> | undefined
  let longest = 0
  for (const slot of free) {
    if (slot.tenant !== tenant) continue
    const common = commonPrefix(cached(slot), prompt)
    if (common > longest && worthReusing(common, prompt.length)) {
      best = slot
      longest = common
    }
  }
  if (best !== undefined) return best

  const beside = free.filter((slot) => slots[slot.index - 1]?.busy === true || slots[slot.index + 1]?.busy === true)
  const candidates = beside.length > 0 ? beside : free
  return candidates.toSorted(
    (a, b) => Number(a.tenant !== undefined) - Number(b.tenant !== undefined) || a.usedAt - b.usedAt || a.index - b.index,
  )[0]
}

type Waiter = { give(): void }

/** The sequences of one context, and the bounded line of those who wait for one. */
export const openSlots = <S>(options: {
  sequences: readonly S[]
  cached: (sequence: S) => readonly number[]
  maxWaiting: number
  maxWaitMs: number
}) => {
  const slots: Slot<S>[] = options.sequences.map((sequence, index) => ({ index, sequence, tenant: undefined, busy: false, usedAt: 0 }))
  const line: Waiter[] = []
  let uses = 0

  const take = (tenant: string, prompt: readonly number[]): Lease<S> | undefined => {
    const slot = pickSlot(slots, (one) => options.cached(one.sequence), tenant, prompt)
    if (slot === undefined) return undefined
    const reuse = slot.tenant === tenant
    slot.busy = true
    slot.tenant = tenant
    uses += 1
    slot.usedAt = uses
    let left = false
    return {
      index: slot.index,
      sequence: slot.sequence,
      reuse,
      spoil() {
        slot.tenant = undefined
      },
      leave() {
        if (left) return
        left = true
        slot.busy = false
        line.shift()?.give()
      },
    }
  }

  return {
    /** Waits in line when all are at work; refuses when the line is full or the wait too long, and when the caller has gone. */
    take: async (tenant: string, prompt: readonly number[], signal: AbortSignal): Promise<Outcome<Lease<S>>> => {
      if (signal.aborted) return no(busy('the client has left'))
      const lease = line.length === 0 ? take(tenant, prompt) : undefined
      if (lease !== undefined) return yes(lease)
      if (line.length >= options.maxWaiting) return no(busy(`${line.length} requests are waiting already`))
      return new Promise((resolve) => {
        const stop = (outcome: Outcome<Lease<S>>) => {
          clearTimeout(timer)
          signal.removeEventListener('abort', left)
          const place = line.indexOf(waiter)
          if (place >= 0) line.splice(place, 1)
          resolve(outcome)
        }
        const waiter: Waiter = {
          give() {
            const given = take(tenant, prompt)
            stop(given === undefined ? no(busy('no sequence is free')) : yes(given))
          },
        }
        const left = () => stop(no(busy('the client has left')))
        const timer = setTimeout(() => stop(no(busy(`no sequence came free within ${options.maxWaitMs / 1000} s`))), options.maxWaitMs)
        signal.addEventListener('abort', left, { once: true })
        line.push(waiter)
      })
    },
    busy: (): number => slots.filter((slot) => slot.busy).length,
    waiting: (): number => line.length,
  }
}
export type Slots<S> = ReturnType<typeof openSlots<S>>
