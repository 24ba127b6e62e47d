import { z } from 'zod'
import { withAlternatives } from '../alternatives.ts'
import { Usage } from './usage.ts'

/** The most inputs in one call (data-plane.md 16). */
export const MAX_INPUTS = 2048

const Text = z.string().min(1, { error: 'expected a string that is not empty' })
const Tokens = z.array(z.int().nonnegative()).min(1)

/** All variants are arrays of something: the first element says which, so that the error names the element that is wrong. */
const variantOf = (input: unknown): z.ZodType<string | string[] | number[] | number[][]> => {
  if (!Array.isArray(input)) return Text
  if (typeof input[0] === 'number') return Tokens
  if (Array.isArray(input[0])) return z.array(Tokens).max(MAX_INPUTS, { error: `expected at most ${MAX_INPUTS} inputs` })
  return z
    .array(Text)
    .min(1, { error: 'expected at least one input' })
    .max(MAX_INPUTS, { error: `expected at most ${MAX_INPUTS} inputs` })
}

const Input = z.unknown().transform((input, context): string | string[] | number[] | number[][] => {
  const read = variantOf(input).safeParse(input)
  if (read.success) return read.data
  context.issues.push(
    ...read.error.issues.map((issue) => ({ code: 'custom' as const, input, path: [...issue.path], message: issue.message })),
  )
  return z.NEVER
})

const inputs = <T extends z.ZodType>(item: T) => z.array(item).min(1).max(MAX_INPUTS)
withAlternatives(Input, [Text, inputs(Text), Tokens, inputs(Tokens)])

/** Everything but the texts. */
export const EmbeddingsSettings = z.looseObject({
  model: z.string().min(1),
  dimensions: z.int().min(1).nullish(),
  encoding_format: z.enum(['float', 'base64']).nullish(),
})
export type EmbeddingsSettings = z.infer<typeof EmbeddingsSettings>

/** The request of `POST /v1/embeddings` (data-plane.md 9). Token arrays are OpenAI's, and some clients send them unasked. */
export const EmbeddingsRequest = EmbeddingsSettings.extend({ input: Input })
export type EmbeddingsRequest = z.infer<typeof EmbeddingsRequest>

/** `embedding` is a string of little-endian float32 in base64 where that was asked. */
export const EmbeddingsAnswer = z.looseObject({
  object: z.literal('list'),
  model: z.string(),
  data: z.array(
    z.looseObject({
      object: z.literal('embedding'),
      index: z.int().nonnegative(),
      embedding: z.union([z.array(z.number()), z.string()]),
    }),
  ),
  usage: Usage.nullish(),
})
export type EmbeddingsAnswer = z.infer<typeof EmbeddingsAnswer>
