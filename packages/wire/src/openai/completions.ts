import { z } from 'zod'
import { withAlternatives } from '../alternatives.ts'
import { Usage } from './usage.ts'

const MAX_STOPS = 4 // as in chat, data-plane.md 6.1
const MAX_PROMPTS = 128

const Tokens = z.array(z.int().nonnegative()).min(1)

/** Told apart by the first element, so that the error names the element that is wrong. */
const variantOf = (prompt: unknown): z.ZodType<string | string[] | number[] | number[][]> => {
  if (!Array.isArray(prompt)) return z.string()
  if (typeof prompt[0] === 'number') return Tokens
  const bounded = { error: `expected at most ${MAX_PROMPTS} prompts` }
  return Array.isArray(prompt[0]) ? z.array(Tokens).max(MAX_PROMPTS, bounded) : z.array(z.string()).min(1).max(MAX_PROMPTS, bounded)
}

const Prompt = z.unknown().transform((prompt, context): string | string[] | number[] | number[][] => {
  const read = variantOf(prompt).safeParse(prompt)
  if (read.success) return read.data
  context.issues.push(
    ...read.error.issues.map((issue) => ({ code: 'custom' as const, input: prompt, path: [...issue.path], message: issue.message })),
  )
  return z.NEVER
})

const prompts = <T extends z.ZodType>(item: T) => z.array(item).min(1).max(MAX_PROMPTS)
withAlternatives(Prompt, [z.string(), prompts(z.string()), Tokens, prompts(Tokens)])

/** Everything but the prompt. */
export const CompletionSettings = z.looseObject({
  model: z.string().min(1),
  max_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  stop: z.union([z.string(), z.array(z.string()).max(MAX_STOPS)], { error: `expected a string or at most ${MAX_STOPS} strings` }).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  n: z.int().min(1).nullish(),
  best_of: z.int().min(1).nullish(),
})
export type CompletionSettings = z.infer<typeof CompletionSettings>

/** The request of `POST /v1/completions`, the older endpoint for plain text (data-plane.md 7). */
export const CompletionRequest = CompletionSettings.extend({ prompt: Prompt })
export type CompletionRequest = z.infer<typeof CompletionRequest>

export const Completion = z.looseObject({
  id: z.string(),
  object: z.literal('text_completion'),
  created: z.int(),
  model: z.string(),
  choices: z.array(z.looseObject({ index: z.int(), text: z.string(), finish_reason: z.string().nullable() })),
  usage: Usage.nullish(),
})
export type Completion = z.infer<typeof Completion>
