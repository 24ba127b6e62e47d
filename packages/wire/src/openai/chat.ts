import { z } from 'zod'
import { withAlternatives } from '../alternatives.ts'
import { Usage } from './usage.ts'

/**
 * The request of `POST /v1/chat/completions` (data-plane.md 6). Only what we act on or must check is named, and every object
 * is loose: engines learn fields faster than we do. `null` stands for "not given" wherever a field may be left out, since
 * SDKs in several languages send it that way.
 */

const TextPart = z.looseObject({ type: z.literal('text'), text: z.string() })
const ImagePart = z.looseObject({ type: z.literal('image_url'), image_url: z.looseObject({ url: z.string().min(1) }) })
const AudioPart = z.looseObject({
  type: z.literal('input_audio'),
  input_audio: z.looseObject({ data: z.string().min(1), format: z.enum(['mp3', 'wav']) }),
})

const TextContent = z.union([z.string(), z.array(TextPart).min(1)], { error: 'expected a string or an array of text parts' })
// Told apart by `type`, so that a bad part is named where it is instead of as "no variant fits".
const UserPart = z.discriminatedUnion('type', [TextPart, ImagePart, AudioPart], {
  error: 'expected a part of type text, image_url or input_audio',
})
const UserContent = z.unknown().transform((content, context): string | z.infer<typeof UserPart>[] => {
  if (typeof content === 'string') return content
  const parts = UserParts.safeParse(content)
  if (parts.success) return parts.data
  context.issues.push(
    ...parts.error.issues.map((issue) => ({ code: 'custom' as const, input: content, path: [...issue.path], message: issue.message })),
  )
  return z.NEVER
})
const UserParts = z.array(UserPart, { error: 'expected a string or an array of parts' }).min(1)
withAlternatives(UserContent, [z.string(), UserParts])

const ToolCall = z.looseObject({
  id: z.string(),
  type: z.literal('function').nullish(),
  function: z.looseObject({ name: z.string(), arguments: z.string() }),
})

export const ChatMessage = z.discriminatedUnion(
  'role',
  [
    z.looseObject({ role: z.enum(['system', 'developer']), content: TextContent }),
    z.looseObject({ role: z.literal('user'), content: UserContent }),
    z.looseObject({ role: z.literal('assistant'), content: TextContent.nullish(), tool_calls: z.array(ToolCall).nullish() }),
    z.looseObject({ role: z.literal('tool'), content: TextContent, tool_call_id: z.string() }),
  ],
  { error: 'expected a message with the role system, developer, user, assistant or tool' },
)
export type ChatMessage = z.infer<typeof ChatMessage>

const Tool = z.looseObject({
  type: z.literal('function', { error: 'only tools of type "function" are supported' }),
  function: z.looseObject({
    name: z.string().min(1),
    description: z.string().nullish(),
    parameters: z.record(z.string(), z.unknown()).nullish(),
  }),
})

const ToolChoice = z.union(
  [
    z.enum(['auto', 'none', 'required']),
    z.looseObject({ type: z.literal('function'), function: z.looseObject({ name: z.string().min(1) }) }),
  ],
  { error: 'expected "auto", "none", "required" or {"type":"function","function":{"name":…}}' },
)

const ResponseFormat = z.discriminatedUnion(
  'type',
  [
    z.looseObject({ type: z.literal('text') }),
    z.looseObject({ type: z.literal('json_object') }),
    z.looseObject({
      type: z.literal('json_schema'),
      json_schema: z.looseObject({ name: z.string().min(1), schema: z.record(z.string(), z.unknown()) }),
    }),
  ],
  { error: 'expected an object of type text, json_object or json_schema' },
)

const MAX_STOPS = 4 // data-plane.md 6.1

/** Everything but the messages: small whatever the images in them weigh. */
export const ChatSettings = z.looseObject({
  model: z.string().min(1),
  max_completion_tokens: z.int().min(1).nullish(),
  max_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  stop: z.union([z.string(), z.array(z.string()).max(MAX_STOPS)], { error: `expected a string or at most ${MAX_STOPS} strings` }).nullish(),
  // Any whole number: seeds of 64 bits are beyond what a JSON number holds exactly, and still valid.
  seed: z.number().refine(Number.isInteger, { error: 'expected an integer' }).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  n: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  logit_bias: z.record(z.string(), z.number()).nullish(),
  tools: z.array(Tool).nullish(),
  tool_choice: ToolChoice.nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  response_format: ResponseFormat.nullish(),
  reasoning_effort: z.string().nullish(),
})
export type ChatSettings = z.infer<typeof ChatSettings>

export const ChatRequest = ChatSettings.extend({ messages: z.array(ChatMessage).min(1, { error: 'expected at least one message' }) })
export type ChatRequest = z.infer<typeof ChatRequest>

/** What a client reads of a whole answer (data-plane.md 6.8). */
export const ChatCompletion = z.looseObject({
  id: z.string(),
  object: z.literal('chat.completion'),
  created: z.int(),
  model: z.string(),
  choices: z.array(
    z.looseObject({
      index: z.int(),
      message: z.looseObject({
        role: z.literal('assistant'),
        content: z.string().nullish(),
        reasoning_content: z.string().nullish(),
        tool_calls: z.array(ToolCall).nullish(),
      }),
      finish_reason: z.string().nullable(),
    }),
  ),
  usage: Usage.nullish(),
})
export type ChatCompletion = z.infer<typeof ChatCompletion>

/** One event of a streamed answer (data-plane.md 6.9). */
export const ChatChunk = z.looseObject({
  id: z.string(),
  object: z.literal('chat.completion.chunk'),
  created: z.int(),
  model: z.string(),
  choices: z.array(
    z.looseObject({
      index: z.int(),
      delta: z.looseObject({
        role: z.string().nullish(),
        content: z.string().nullish(),
        reasoning_content: z.string().nullish(),
        tool_calls: z
          .array(
            z.looseObject({
              index: z.int(),
              id: z.string().nullish(),
              function: z.looseObject({ name: z.string().nullish(), arguments: z.string().nullish() }).nullish(),
            }),
          )
          .nullish(),
      }),
      finish_reason: z.string().nullish(),
    }),
  ),
  usage: Usage.nullish(),
})
export type ChatChunk = z.infer<typeof ChatChunk>
