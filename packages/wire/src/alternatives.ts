import type { z } from 'zod'

const known = new WeakMap<object, readonly z.ZodType[]>()

/**
 * For the reference: what a value may be, where a schema tells the variants apart by itself so that a mistake is named where it stands.
 * Such a schema takes anything as far as a converter to JSON Schema can see.
 */
export const withAlternatives = <S extends z.ZodType>(schema: S, any: readonly z.ZodType[]): S => {
  known.set(schema, any)
  return schema
}

export const alternativesOf = (schema: object): readonly z.ZodType[] | undefined => known.get(schema)
