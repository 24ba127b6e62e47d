/** What is said to a caller who asked for what they cannot have: a value, with the body of data-plane.md 3.1. */
export type Refusal = {
  readonly status: number
  readonly type: string
  readonly message: string
  readonly param: string | null
  readonly retryAfterSeconds?: number
}
export type Outcome<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly refusal: Refusal }

export const yes = <T>(value: T): { readonly ok: true; readonly value: T } => ({ ok: true, value })
export const no = (refusal: Refusal): { readonly ok: false; readonly refusal: Refusal } => ({ ok: false, refusal })

export const badRequest = (message: string, param: string | null = null): Refusal => ({
  status: 400,
  type: 'BadRequestError',
  message,
  param,
})

export const fieldInvalid = (field: string, reason: string): Refusal => badRequest(`The field "${field}" is not valid: ${reason}.`, field)

/** The phrase and both numbers are what clients look for (data-plane.md 3.3). */
export const contextExceeded = (asked: number | string, maximum: number, param: string): Refusal =>
  badRequest(`This model's maximum context window is ${maximum} tokens; ${asked} were requested (input and output together).`, param)

export const outputLimit = (asked: number, maximum: number, param: string): Refusal => ({
  status: 416,
  type: 'RangeNotSatisfiableError',
  message: `max_completion_tokens is limited for this model: ${asked} were asked for in "${param}", the maximum is ${maximum}.`,
  param,
})

export const modelUnknown = (asked: string, served: string): Refusal => ({
  status: 422,
  type: 'UnprocessableEntityError',
  message: `The model ${JSON.stringify(asked)} was not found: this engine serves ${JSON.stringify(served)}.`,
  param: 'model',
})

export const endpointMismatch = (model: string, serves: string, path: string): Refusal =>
  badRequest(`The model ${JSON.stringify(model)} is of type ${serves} and does not serve ${path}.`, 'model')

export const keyMissing: Refusal = {
  status: 401,
  type: 'AuthenticationError',
  message: 'This engine wants the header "Authorization: Bearer <key>" with its key.',
  param: null,
}

export const routeUnknown = (method: string, path: string): Refusal => ({
  status: 404,
  type: 'NotFoundError',
  message: `There is no route ${method} ${path}.`,
  param: null,
})

export const busy = (reason: string): Refusal => ({
  status: 503,
  type: 'ServiceUnavailableError',
  message: `The engine cannot take the request now: ${reason}.`,
  param: null,
  retryAfterSeconds: 1,
})

/** A fault tells the caller nothing but that there was one; the log has the rest. */
export const fault: Refusal = { status: 500, type: 'InternalServerError', message: 'The engine failed. Its log says why.', param: null }

export const refusalBody = (refusal: Refusal) => ({
  error: { message: refusal.message, type: refusal.type, param: refusal.param, code: refusal.status },
})
