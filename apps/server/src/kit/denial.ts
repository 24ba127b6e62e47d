/** One field or parameter that breaks its rule (control-plane.md 3). */
export type ArgumentFault = { argument_name: string; reason: 'required' | 'format' | 'constraint' | 'unknown'; help_message: string }

/** Everything the management API can say no with: the standard errors of control-plane.md 3, by `type`. */
export type Denial =
  | { type: 'invalid_arguments'; details: readonly ArgumentFault[] }
  | {
      type: 'denied_authentication'
      method: 'api_key' | 'jwt' | 'unknown_method'
      reason: 'invalid_argument' | 'not_found' | 'expired' | 'unknown_reason'
      help_message?: string
    }
  | { type: 'permissions_denied'; details: readonly { resource: string; action: string }[] }
  | { type: 'quotas_exceeded'; details: readonly { resource: string; quota: number; current: number }[] }
  | { type: 'not_found'; resource: string; resource_id: string; message?: string }
  | { type: 'already_exists'; resource: string; resource_id: string; help_message: string }
  | { type: 'transient_state'; resource: string; resource_id: string; current_state: string }
  | { type: 'conflict'; message: string }
  | { type: 'expired'; resource: string; resource_id: string; expired_since: string }
  | { type: 'precondition_failed'; precondition: string; help_message: string }
  | { type: 'locked'; resource: string; resource_id: string }
  | { type: 'too_many_requests'; help_message: string; retryAfterMs: number }
  | { type: 'out_of_stock'; resource: string }
  | { type: 'not_implemented' }
  | { type: 'method_not_allowed' }

/** The status and the recorded sentence of each. */
const WORDED: { readonly [T in Denial['type']]: { readonly status: number; readonly message: string } } = {
  invalid_arguments: { status: 400, message: 'invalid argument(s)' },
  denied_authentication: { status: 401, message: 'authentication is denied' },
  permissions_denied: { status: 403, message: 'insufficient permissions' },
  quotas_exceeded: { status: 403, message: 'quota(s) exceeded for this resource' },
  not_found: { status: 404, message: 'resource is not found' },
  already_exists: { status: 409, message: 'resource already exists' },
  transient_state: { status: 409, message: 'resource is in a transient state' },
  conflict: { status: 409, message: 'conflict' },
  expired: { status: 410, message: 'resource is expired' },
  precondition_failed: { status: 412, message: 'precondition is not respected' },
  locked: { status: 423, message: 'resource is locked' },
  too_many_requests: { status: 429, message: 'too many requests' },
  out_of_stock: { status: 503, message: 'resource is out of stock' },
  not_implemented: { status: 501, message: 'this method is not implemented' },
  method_not_allowed: { status: 405, message: 'there is no such method on this resource' },
}

export const statusOf = (type: Denial['type']): number => WORDED[type].status

export const invalid = (argument: string, reason: ArgumentFault['reason'], help: string): Denial => ({
  type: 'invalid_arguments',
  details: [{ argument_name: argument, reason, help_message: help }],
})

/** What the caller may not do is named, and nothing else. */
export const forbidden = (...needs: readonly { readonly resource: string; readonly action: string }[]): Denial => ({
  type: 'permissions_denied',
  details: needs.map(({ resource, action }) => ({ resource, action })),
})

export const notFound = (resource: string, id: string): Denial => ({ type: 'not_found', resource, resource_id: id })

/** A denial as it goes over the wire. */
export const speakDenial = (denial: Denial): { status: number; body: object; retryAfterMs: number | undefined } => {
  const { status, message } = WORDED[denial.type]
  if (denial.type === 'too_many_requests') {
    const { retryAfterMs, ...rest } = denial
    return { status, body: { message, ...rest, reset_seconds: Math.ceil(retryAfterMs / 1000) }, retryAfterMs }
  }
  return { status, body: { message, ...denial }, retryAfterMs: undefined }
}
