/** Which limit or budget a request has reached. */
export type Reached =
  | 'concurrency'
  | 'requests'
  | 'tokens'
  | 'audio'
  | 'project_tokens'
  | 'batches'
  | 'free_tokens'
  | `budget_${'tokens' | 'money'}_${'day' | 'month'}`

/** Everything the data plane can say no with. The shapes and statuses are data-plane.md 3.1 to 3.3. */
export type Refusal =
  | { code: 'key_missing' }
  | { code: 'key_refused' }
  /** Too many wrong keys came from the address. */
  | { code: 'key_guessed'; retryAfterMs: number }
  /** Only a condition could let the key in, and those of its organization have taken more time than they may. */
  | { code: 'conditions_slow'; retryAfterMs: number }
  | { code: 'route_unknown'; method: string; path: string }
  | { code: 'body_too_large'; maxBytes: number }
  | { code: 'body_late'; limitMs: number }
  | { code: 'content_type_wrong'; expected: string }
  | { code: 'body_not_json'; reason: string }
  | { code: 'form_broken'; reason: string }
  | { code: 'header_invalid'; header: string; reason: string }
  /** The same Idempotency-Key with another body; and with the same body, when the answer is no longer kept. */
  | { code: 'idempotency_mismatch' }
  | { code: 'idempotency_gone' }
  | { code: 'model_missing' }
  | { code: 'model_unknown'; model: string }
  /** For reading one model by id: OpenAI's 404, not the 422 of a call (data-plane.md 5.1). */
  | { code: 'model_not_listed'; model: string }
  | { code: 'endpoint_mismatch'; model: string; endpoint: string; serves: string }
  | { code: 'field_invalid'; field: string; reason: string }
  | { code: 'roles_refused' }
  | { code: 'output_limit'; field: string; asked: number; maximum: number }
  | { code: 'context_exceeded'; asked: number; maximum: number }
  /** `headers`: names and values in turn, for the answer that says it (data-plane.md 4.2). */
  | { code: 'limit_reached'; limit: Reached; model: string; retryAfterMs: number; headers?: readonly string[] }
  | { code: 'busy'; reason: string; retryAfterMs: number }
  | { code: 'engine_unavailable'; model: string; reason: string; retryAfterMs: number }
  /** An engine's own 4xx: it knows its model's limits better than we do, so its sentence is passed on. */
  | { code: 'engine_refused'; status: number; message: string; param: string | null }
  | { code: 'engine_failed'; model: string; reason: string }
  | { code: 'engine_late'; limitMs: number }
  | { code: 'fault' }

type Spoken<R> = {
  status: number | ((refusal: R) => number)
  type: string
  say(refusal: R): string
  param?(refusal: R): string | null
}

/** The phrases of data-plane.md 3.3, and ours in the same words for what it has none for. */
const REACHED: { readonly [L in Reached]: (model: string) => string } = {
  concurrency: () => 'You exceeded your current threshold of concurrent requests.',
  requests: (model) => `You exceeded your current quota of requests per minute for the model ${model}.`,
  tokens: (model) => `You exceeded your current quota of tokens per minute for the model ${model}.`,
  audio: (model) => `You exceeded your current quota of audio seconds per minute for the model ${model}.`,
  project_tokens: (model) => `This project exceeded your current quota of tokens per minute for the model ${model}.`,
  batches: () => 'You exceeded your current threshold of concurrent batches.',
  free_tokens: () => 'You exceeded your current quota of free tokens per month.',
  budget_tokens_day: () => 'You exceeded your current budget of tokens per day.',
  budget_tokens_month: () => 'You exceeded your current budget of tokens per month.',
  budget_money_day: () => 'You exceeded your current budget of money per day.',
  budget_money_month: () => 'You exceeded your current budget of money per month.',
}

/** A new code does not compile until it has a row here. */
export const SPOKEN = {
  key_missing: {
    status: 401,
    type: 'AuthenticationError',
    say: () => 'No API key: send the header "Authorization: Bearer <secret key>".',
  },
  // Unknown, malformed, expired, of another organization, no right on this project: one answer for all (data-plane.md 2.2).
  key_refused: {
    status: 403,
    type: 'PermissionDeniedError',
    say: () =>
      'Insufficient permissions to access the resource: the key is unknown, has expired, or has no right on this project. A key of one project is used at /{project_id}/v1.',
  },
  key_guessed: { status: 429, type: 'RateLimitError', say: () => 'Too many requests with a wrong API key came from this address.' },
  conditions_slow: {
    status: 429,
    type: 'RateLimitError',
    say: () => "The conditions in this organization's policies take too much time: send fewer requests, or have them shortened.",
  },
  route_unknown: { status: 404, type: 'NotFoundError', say: (r) => `There is no route ${r.method} ${r.path}.` },
  body_too_large: { status: 400, type: 'BadRequestError', say: (r) => `The body is too large: at most ${r.maxBytes} bytes are accepted.` },
  body_late: { status: 408, type: 'RequestTimeoutError', say: (r) => `The body did not arrive within ${r.limitMs / 1000} s.` },
  content_type_wrong: { status: 400, type: 'BadRequestError', say: (r) => `The content type must be ${r.expected}.` },
  body_not_json: { status: 400, type: 'BadRequestError', say: (r) => `Invalid JSON body: ${r.reason}.` },
  form_broken: { status: 400, type: 'BadRequestError', say: (r) => `The form cannot be read: ${r.reason}.` },
  header_invalid: { status: 400, type: 'BadRequestError', say: (r) => `The header "${r.header}" is not valid: ${r.reason}.` },
  idempotency_mismatch: {
    status: 409,
    type: 'ConflictError',
    say: () => 'This Idempotency-Key was used for another request. Send a new key with a new request.',
  },
  idempotency_gone: {
    status: 409,
    type: 'ConflictError',
    say: () =>
      'The request with this Idempotency-Key was taken, and its answer is not kept any more: it was too large, or is too long ago. A new key asks, and is charged, anew.',
  },
  model_missing: { status: 422, type: 'UnprocessableEntityError', say: () => 'The field "model" is missing.', param: () => 'model' },
  model_unknown: {
    status: 422,
    type: 'UnprocessableEntityError',
    say: (r) => `The model ${JSON.stringify(r.model)} was not found. GET /v1/models lists those that are served.`,
    param: () => 'model',
  },
  model_not_listed: {
    status: 404,
    type: 'NotFoundError',
    say: (r) => `The model ${JSON.stringify(r.model)} was not found.`,
    param: () => 'model',
  },
  endpoint_mismatch: {
    status: 400,
    type: 'BadRequestError',
    say: (r) => `The model ${JSON.stringify(r.model)} is of type ${r.serves} and does not serve ${r.endpoint}.`,
    param: () => 'model',
  },
  field_invalid: {
    status: 400,
    type: 'BadRequestError',
    say: (r) => `The field "${r.field}" is not valid: ${r.reason}.`,
    param: (r) => r.field,
  },
  // These words are on the wire of the documented service, and clients look for them (data-plane.md 3.3).
  roles_refused: {
    status: 400,
    type: 'BadRequestError',
    say: () => 'After the optional system message, conversation roles must alternate user/assistant/user/assistant/...',
  },
  output_limit: {
    status: 416,
    type: 'RangeNotSatisfiableError',
    say: (r) => `max_completion_tokens is limited for this model: ${r.asked} were asked for in "${r.field}", the maximum is ${r.maximum}.`,
    param: (r) => r.field,
  },
  context_exceeded: {
    status: 400,
    type: 'BadRequestError',
    say: (r) => `This model's maximum context window is ${r.maximum} tokens; ${r.asked} were requested (input and output together).`,
  },
  limit_reached: {
    status: 429,
    type: 'RateLimitError',
    say: (r) => REACHED[r.limit](r.model),
  },
  busy: { status: 503, type: 'ServiceUnavailableError', say: (r) => `The service cannot take the request now: ${r.reason}.` },
  engine_unavailable: {
    status: 503,
    type: 'ServiceUnavailableError',
    say: (r) => `No engine is ready for the model ${r.model}: ${r.reason}.`,
  },
  engine_refused: {
    status: (r) => r.status,
    type: 'BadRequestError',
    say: (r) => r.message,
    param: (r) => r.param,
  },
  engine_failed: { status: 500, type: 'InternalServerError', say: (r) => `The engine of the model ${r.model} failed: ${r.reason}.` },
  engine_late: { status: 504, type: 'GatewayTimeoutError', say: (r) => `The answer took longer than ${r.limitMs / 1000} s.` },
  fault: { status: 500, type: 'InternalServerError', say: () => 'Internal error. The header x-request-id names this request in the log.' },
} satisfies { [C in Refusal['code']]: Spoken<Extract<Refusal, { code: C }>> }

/** A refusal as it goes over the wire. `retryAfterMs` is set where the client should come back. */
export type SpokenRefusal = {
  status: number
  body: { error: { message: string; type: string; param: string | null; code: number } }
  retryAfterMs: number | undefined
}

export const speak = (refusal: Refusal): SpokenRefusal => {
  // The table is checked row by row; here the row and the refusal have the same code, which the compiler cannot follow.
  const row: Spoken<Refusal> = SPOKEN[refusal.code] as unknown as Spoken<Refusal>
  const status = typeof row.status === 'number' ? row.status : row.status(refusal)
  return {
    status,
    body: { error: { message: row.say(refusal), type: row.type, param: row.param?.(refusal) ?? null, code: status } },
    retryAfterMs: 'retryAfterMs' in refusal ? refusal.retryAfterMs : undefined,
  }
}
