import type { MessagesError } from '@parvis/wire/anthropic/messages'
import { type Refusal, speak } from '../../../kit/refusal.ts'

/**
 * Statuses and types as Anthropic's clients know them. Their service has 404 for a model that does not exist and 529 for one that
 * is busy, on which some clients wait or take another model; ours has 422 and 503 (data-plane.md 3.2).
 */
const SPOKEN: Readonly<Record<number, { readonly status: number; readonly type: string }>> = {
  401: { status: 401, type: 'authentication_error' },
  403: { status: 403, type: 'permission_error' },
  404: { status: 404, type: 'not_found_error' },
  408: { status: 408, type: 'timeout_error' },
  416: { status: 400, type: 'invalid_request_error' },
  422: { status: 404, type: 'not_found_error' },
  429: { status: 429, type: 'rate_limit_error' },
  503: { status: 529, type: 'overloaded_error' },
  504: { status: 504, type: 'timeout_error' },
}

/** A refusal in Anthropic's shape. */
export const speakAnthropic = (refusal: Refusal, id: string): { status: number; body: MessagesError; retryAfterMs: number | undefined } => {
  const spoken = speak(refusal)
  const status = refusal.code === 'model_missing' ? 400 : spoken.status
  const row = SPOKEN[status] ?? (status < 500 ? { status, type: 'invalid_request_error' } : { status, type: 'api_error' })
  const error = { type: row.type, message: spoken.body.error.message }
  return { status: row.status, body: { type: 'error', error, request_id: id }, retryAfterMs: spoken.retryAfterMs }
}
