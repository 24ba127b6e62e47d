import type { Share } from './shares.ts'

const MINUTE_MS = 60_000
/** Three, and their values. */
const HEADERS_EACH = 6

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
const resetOf = (limit: number, remaining: number): string => toGoDuration(limit === 0 ? 0 : ((limit - remaining) / limit) * MINUTE_MS)

/** The six headers, names and values in turn; three where one of the two is not limited. One literal, since every answer has them. */
export const toHeaders = (requests: Share | undefined, tokens: Share | undefined): string[] => {
  const ofRequests = requests?.limited.capacity ?? 0
  const requestsLeft = requests?.left() ?? 0
  const ofTokens = tokens?.limited.capacity ?? 0
  const tokensLeft = tokens?.left() ?? 0
  const headers = [
    'x-ratelimit-limit-requests',
    String(ofRequests),
    'x-ratelimit-remaining-requests',
    String(requestsLeft),
    'x-ratelimit-reset-requests',
    resetOf(ofRequests, requestsLeft),
    'x-ratelimit-limit-tokens',
    String(ofTokens),
    'x-ratelimit-remaining-tokens',
    String(tokensLeft),
    'x-ratelimit-reset-tokens',
    resetOf(ofTokens, tokensLeft),
  ]
  if (requests !== undefined && tokens !== undefined) return headers
  return headers.slice(requests === undefined ? HEADERS_EACH : 0, tokens === undefined ? HEADERS_EACH : undefined)
}
