import { setTimeout as after } from 'node:timers/promises'

/** Milliseconds since 1970 in UTC. */
export type Instant = number & { readonly __unit: 'epoch-ms' }

/** Where time comes from. Nobody else calls `Date.now()`, so that a test can stand on the last millisecond of a month. */
export type Clock = {
  now(): Instant
  /** What durations are measured with: it only goes forward, however the time of day is set. Its zero means nothing. */
  monotonicMs(): number
  /** Waits; rejects with the signal's reason when the signal is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  now: () => Date.now() as Instant,
  monotonicMs: () => performance.now(),
  sleep: (ms, signal) => after(ms, undefined, signal && { signal }),
}

export const instantToDate = (instant: Instant): Date => new Date(instant)
export const dateToInstant = (date: Date): Instant => date.getTime() as Instant

/** Waits for something that must not hold up a stop; what it comes to afterwards is nobody's business. */
export const atMost = async (limitMs: number, work: Promise<unknown>, clock: Pick<Clock, 'sleep'>): Promise<void> => {
  const inTime = new AbortController()
  await Promise.race([work, clock.sleep(limitMs, inTime.signal).catch(() => undefined)])
  inTime.abort()
}
