import { alternativesOf } from '@parvis/wire/alternatives'
import { z } from 'zod'

export type JsonSchema = { [key: string]: unknown }

const PLAIN_FORMATS = new Set(['uuid', 'date-time', 'date', 'email'])

/**
 * A schema of ours in JSON Schema 2020-12, the dialect of OpenAPI 3.1. `input` is what may be sent, `output` what is answered. An answer may
 * learn new fields one day, so that only a check of our own (`exact`) takes the list of them as complete.
 */
export const toJsonSchema = (schema: z.ZodType, io: 'input' | 'output', exact = false): JsonSchema => {
  const { $schema: _dialect, ...json } = z.toJSONSchema(schema, {
    io,
    unrepresentable: 'any',
    override: ({ zodSchema, jsonSchema }) => {
      const any = alternativesOf(zodSchema)
      if (any !== undefined) Object.assign(jsonSchema, { anyOf: any.map((variant) => toJsonSchema(variant, io, exact)) })
      // The format says it, and its pattern is long.
      if (typeof jsonSchema.format === 'string' && PLAIN_FORMATS.has(jsonSchema.format)) delete jsonSchema.pattern
      if (io === 'output' && !exact && jsonSchema.additionalProperties === false) delete jsonSchema.additionalProperties
    },
  }) as JsonSchema
  return json
}
