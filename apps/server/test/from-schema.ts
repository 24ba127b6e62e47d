import fc from 'fast-check'

export type Schema = {
  readonly const?: unknown
  readonly enum?: readonly unknown[]
  readonly anyOf?: readonly Schema[]
  readonly oneOf?: readonly Schema[]
  readonly type?: string | readonly string[]
  readonly format?: string
  readonly pattern?: string
  readonly minLength?: number
  readonly maxLength?: number
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly items?: Schema
  readonly minItems?: number
  readonly maxItems?: number
  readonly properties?: Readonly<Record<string, Schema>>
  readonly required?: readonly string[]
}

const LETTERS = fc.constantFrom(...'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'.split(''))
const MOST = 24

const text = ({ format, pattern, minLength = 0, maxLength = MOST }: Schema): fc.Arbitrary<string> => {
  if (format === 'uuid') return fc.uuid()
  if (format === 'date-time') return fc.constantFrom('2035-07-06T11:00:00Z', '2035-07-06T11:00:00.123+02:00')
  if (format === 'date') return fc.constant('2035-07-06')
  if (format === 'email') return fc.constantFrom('jane@example.com', 'j.d@sub.example.org')
  if (pattern !== undefined)
    return fc.stringMatching(new RegExp(pattern)).filter(({ length }) => length >= minLength && length <= Math.max(maxLength, minLength))
  return fc.string({ unit: LETTERS, minLength, maxLength: Math.max(minLength, Math.min(maxLength, MOST)) })
}

const number = ({ minimum, exclusiveMinimum, maximum = Number.MAX_SAFE_INTEGER }: Schema): fc.Arbitrary<number> => {
  const least = minimum ?? (exclusiveMinimum === undefined ? 0 : exclusiveMinimum + 1)
  const most = Math.min(maximum, least + 1_000)
  return fc.integer({ min: least, max: most })
}

/** Anything that a JSON Schema of the document allows. */
export const fromSchema = (schema: Schema): fc.Arbitrary<unknown> => {
  if ('const' in schema) return fc.constant(schema.const)
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum)
  const variants = schema.anyOf ?? schema.oneOf
  if (variants !== undefined) return fc.oneof(...variants.map(fromSchema))
  if (typeof schema.type === 'object') return fc.oneof(...schema.type.map((type) => fromSchema({ ...schema, type })))
  switch (schema.type) {
    case 'string':
      return text(schema)
    case 'integer':
    case 'number':
      return number(schema)
    case 'boolean':
      return fc.boolean()
    case 'null':
      return fc.constant(null)
    case 'array': {
      const minLength = schema.minItems ?? 0
      return fc.array(fromSchema(schema.items ?? {}), { minLength, maxLength: Math.min(schema.maxItems ?? minLength + 2, minLength + 2) })
    }
    case 'object': {
      const fields = Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, each]) => [name, fromSchema(each)]))
      return fc.record(fields, { requiredKeys: [...(schema.required ?? [])] })
    }
    case undefined:
    default:
      return fc.constantFrom('anything', 1, true)
  }
}
