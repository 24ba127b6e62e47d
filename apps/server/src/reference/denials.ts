import type { Denial } from '../kit/denial.ts'
import type { JsonSchema } from './json-schema.ts'

const text: JsonSchema = { type: 'string' }
const list = (properties: Readonly<Record<string, JsonSchema>>): JsonSchema => ({
  type: 'array',
  items: { type: 'object', properties, required: Object.keys(properties) },
})

/** What stands beside `type` and `message` in each denial (control-plane.md 3). A new one does not compile until it has a row here. */
const FIELDS = {
  invalid_arguments: {
    details: list({
      argument_name: text,
      reason: { type: 'string', enum: ['required', 'format', 'constraint', 'unknown'] },
      help_message: text,
    }),
  },
  denied_authentication: {
    method: { type: 'string', enum: ['api_key', 'jwt', 'unknown_method'] },
    reason: { type: 'string', enum: ['invalid_argument', 'not_found', 'expired', 'unknown_reason'] },
  },
  permissions_denied: { details: list({ resource: text, action: text }) },
  quotas_exceeded: { details: list({ resource: text, quota: { type: 'number' }, current: { type: 'number' } }) },
  not_found: { resource: text, resource_id: text },
  method_not_allowed: {},
  already_exists: { resource: text, resource_id: text, help_message: text },
  transient_state: { resource: text, resource_id: text, current_state: text },
  conflict: {},
  expired: { resource: text, resource_id: text, expired_since: { type: 'string', format: 'date-time' } },
  precondition_failed: { precondition: text, help_message: text },
  locked: { resource: text, resource_id: text },
  too_many_requests: { help_message: text },
  out_of_stock: { resource: text },
  not_implemented: {},
} as const satisfies Record<Denial['type'], Readonly<Record<string, JsonSchema>>>

export const DENIAL_TYPES = Object.keys(FIELDS) as Denial['type'][]

/** A denial as it goes over the wire. */
export const denialSchema = (type: Denial['type']): JsonSchema => ({
  type: 'object',
  properties: { type: { const: type }, message: text, ...FIELDS[type] },
  required: ['type', 'message', ...Object.keys(FIELDS[type])],
})
