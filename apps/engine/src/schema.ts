import { z } from 'zod'
import { fieldInvalid, no, type Outcome, yes } from './refusal.ts'

// Loose everywhere: a field we do not know is ignored (data-plane.md 3.4), a wrong type of one we know is refused.

const optional = <T extends z.ZodType>(schema: T) => schema.nullish().transform((value) => value ?? undefined)

const sampling = {
  temperature: optional(z.number().min(0).max(2)),
  top_p: optional(z.number().min(0).max(1)),
  top_k: optional(z.int().min(-1)),
  min_p: optional(z.number().min(0).max(1)),
  repetition_penalty: optional(z.number().gt(0)),
  presence_penalty: optional(z.number().min(-2).max(2)),
  frequency_penalty: optional(z.number().min(-2).max(2)),
  logit_bias: optional(z.record(z.string().regex(/^\d+$/, 'a key must be the number of a token'), z.number().min(-100).max(100))),
  // Any whole number: a seed of 64 bits is more than a JSON number holds exactly, and still one.
  seed: optional(z.number().refine(Number.isInteger, 'expected an integer')),
  stop: optional(z.union([z.string(), z.array(z.string()).max(16)])),
  /** vLLM's: go on past the end token, up to the limit. Benchmarks and tests need answers of a known length. */
  ignore_eos: optional(z.boolean()),
  n: optional(z.literal(1, 'this engine gives one choice per request')),
  stream: optional(z.boolean()),
  stream_options: optional(z.looseObject({ include_usage: optional(z.boolean()), continuous_usage_stats: optional(z.boolean()) })),
}

const Part = z.looseObject({ type: z.string() })
const ToolCall = z.looseObject({
  id: optional(z.string()),
  type: optional(z.literal('function')),
  function: z.looseObject({ name: z.string(), arguments: optional(z.string()) }),
})
const Message = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']),
  content: optional(z.union([z.string(), z.array(Part)])),
  name: optional(z.string()),
  tool_calls: optional(z.array(ToolCall)),
  tool_call_id: optional(z.string()),
})
export type Message = z.infer<typeof Message>

const Tool = z.looseObject({
  type: z.literal('function'),
  function: z.looseObject({
    name: z.string().min(1),
    description: optional(z.string()),
    parameters: optional(z.looseObject({})),
  }),
})
export type Tool = z.infer<typeof Tool>

const conversation = {
  messages: z.array(Message).min(1),
  tools: optional(z.array(Tool)),
  chat_template_kwargs: optional(z.looseObject({})),
  reasoning_effort: optional(z.string()),
}

export const ChatRequest = z.looseObject({
  ...sampling,
  ...conversation,
  max_completion_tokens: optional(z.int().min(1)),
  max_tokens: optional(z.int().min(1)),
  tool_choice: optional(
    z.union([
      z.enum(['auto', 'none', 'required']),
      z.looseObject({ type: z.literal('function'), function: z.looseObject({ name: z.string() }) }),
    ]),
  ),
  parallel_tool_calls: optional(z.boolean()),
  response_format: optional(
    z.discriminatedUnion('type', [
      z.looseObject({ type: z.literal('text') }),
      z.looseObject({ type: z.literal('json_object') }),
      z.looseObject({
        type: z.literal('json_schema'),
        json_schema: z.looseObject({ name: optional(z.string()), schema: z.union([z.looseObject({}), z.boolean()]) }),
      }),
    ]),
  ),
  logprobs: optional(z.boolean()),
  top_logprobs: optional(z.int().min(0).max(20)),
})
export type ChatRequest = z.infer<typeof ChatRequest>

const tokenList = z.array(z.int().min(0))

export const CompletionRequest = z.looseObject({
  ...sampling,
  prompt: z.union([
    z.string(),
    tokenList.min(1),
    z.array(z.string()).length(1, 'one prompt per request'),
    z.array(tokenList).length(1, 'one prompt per request'),
  ]),
  max_tokens: optional(z.int().min(1)),
  logprobs: optional(z.int().min(0).max(5)),
  // These change the text: to pass them over would be another answer than was asked for.
  best_of: optional(z.literal(1, 'this engine gives one choice per request')),
  echo: optional(z.literal(false, 'this engine does not repeat the prompt')),
  suffix: optional(
    z.literal('', 'this engine has no suffix: write it into the prompt, between the fill-in-the-middle tokens of the model'),
  ),
})
export type CompletionRequest = z.infer<typeof CompletionRequest>

const MAX_INPUTS = 2048 // data-plane.md 9 and 10
/** Who reranks by vectors brings the query along with the documents. */
const QUERY = 1

export const EmbeddingRequest = z.looseObject({
  input: z.union([
    z.string(),
    tokenList.min(1),
    z
      .array(z.string())
      .min(1)
      .max(MAX_INPUTS + QUERY),
    z.array(tokenList).min(1).max(MAX_INPUTS),
  ]),
  dimensions: optional(z.int().min(1)),
  encoding_format: optional(z.enum(['float', 'base64'])),
})
export type EmbeddingRequest = z.infer<typeof EmbeddingRequest>

export const RerankRequest = z.looseObject({
  query: z.string().min(1),
  documents: z
    .array(z.union([z.string(), z.looseObject({ text: z.string() })]))
    .min(1)
    .max(MAX_INPUTS),
  top_n: optional(z.int().min(1)),
})
export type RerankRequest = z.infer<typeof RerankRequest>

export const TokenizeRequest = z.union([
  z.looseObject({ prompt: z.string(), add_special_tokens: optional(z.boolean()), return_token_strs: optional(z.boolean()) }),
  z.looseObject({ ...conversation, add_generation_prompt: optional(z.boolean()), return_token_strs: optional(z.boolean()) }),
])
export type TokenizeRequest = z.infer<typeof TokenizeRequest>

export const DetokenizeRequest = z.looseObject({ tokens: tokenList })
export type DetokenizeRequest = z.infer<typeof DetokenizeRequest>

/** Reads a body; what is wrong is said with the name of the first field that is. */
export const readBody = <S extends z.ZodType>(schema: S, body: unknown): Outcome<z.infer<S>> => {
  const result = schema.safeParse(body)
  if (result.success) return yes(result.data)
  const issue = deepest(result.error.issues[0])
  return no(fieldInvalid(pathToField(issue.path) || 'body', issue.message.replace(/^Invalid input: /, '')))
}

/** `messages[0].content`, as the gateway writes it. */
const pathToField = (path: readonly PropertyKey[]): string =>
  path.map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index === 0 ? '' : '.'}${String(step)}`)).join('')

type Issue = { code?: string; path: readonly PropertyKey[]; message: string; errors?: readonly (readonly Issue[])[] }
type Wrong = { path: readonly PropertyKey[]; message: string; wrongType: boolean }

/** Of a union, the branch that was of the right type and still refused says best what is wrong, and then the one that came furthest. */
const deepest = (issue: Issue | undefined): Wrong => {
  if (issue === undefined) return { path: [], message: 'the body is not valid', wrongType: true }
  const { path } = issue
  const branches = (issue.errors ?? [])
    .map((branch) => deepest(branch[0]))
    .toSorted((a, b) => Number(a.wrongType) - Number(b.wrongType) || b.path.length - a.path.length)
  const best = branches[0]
  if (best === undefined) return { path, message: issue.message, wrongType: issue.code === 'invalid_type' }
  if (best.path.length > 0 || !best.wrongType) return { ...best, path: [...path, ...best.path] }
  return { path, message: branches.map((branch) => branch.message.replace(/^Invalid input: /, '')).join(', or '), wrongType: true }
}
