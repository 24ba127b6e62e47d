import type { Share } from './shares.ts'

const MINUTE_MS = 60_000

/** As Go writes a duration: `250ms`, `1.2s`, `1m3s` (data-plane.md 4.2). */
export const toGoDuration = (ms: number): string => {
  const whole = Math.ceil(ms)
  if (whole <= 0) return '0s'
  if (whole < 1000) return `${whole}ms`
  const minutes = Math.floor(whole / MINUTE_MS)
  const seconds = (whole - minutes * MINUTE_MS) / 1000
  return minutes === 0 ? `${seconds}s` : `${minutes}m${seconds}s`
}

/** `reset = (limit − remaining) / limit × 60 s`: what refills evenly is full again after as long as is missing. */
const rateHeaders = (what: 'requests' | 'tokens', share: Share | undefined): string[] => {
  if (share === undefined) return []
  const limit = share.limited.capacity
  const remaining = share.left()
  const reset = limit === 0 ? 0 : ((limit - remaining) / limit) * MINUTE_MS
  return [
    `x-ratelimit-limit-${what}`,
    String(limit),
    `x-ratelimit-remaining-${what}`,
    String(remaining),
    `x-ratelimit-reset-${what}`,
    toGoDuration(reset),
  ]
}

/** The six headers, names and values in turn; three where one of the two is not limited. */
export const toHeaders = (requests: Share | undefined, tokens: Share | undefined): string[] => [
  ...rateHeaders('requests', requests),
  ...rateHeaders('tokens', tokens),
]
