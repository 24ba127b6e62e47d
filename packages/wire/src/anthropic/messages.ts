import { z } from 'zod'
import { textOrParts } from '../text-or-parts.ts'

/**
 * `POST /v1/messages` in Anthropic's shape. It is ours, for the tools that speak nothing else: what the hosted service has no
 * route for is here a way of writing a chat request. Objects are loose (`cache_control` and its like pass unread); what we could
 * not do, a tool that the server would have to run or a document that must be taken apart, is refused by name.
 */

const Text = z.looseObject({ type: z.literal('text'), text: z.string() })

const ImageSource = z.discriminatedUnion(
  'type',
  [
    z.looseObject({ type: z.literal('base64'), media_type: z.string().min(1), data: z.string().min(1) }),
    z.looseObject({ type: z.literal('url'), url: z.string().min(1) }),
  ],
  { error: 'expected a source of type base64 or url; files are not kept' },
)
const Image = z.looseObject({ type: z.literal('image'), source: ImageSource })

const Document = z.looseObject({
  type: z.literal('document'),
  title: z.string().nullish(),
  source: z.looseObject({
    type: z.literal('text', { error: 'only documents of plain text are supported' }),
    data: z.string(),
  }),
})

const ResultBlock = z.discriminatedUnion('type', [Text, Image, Document], { error: 'expected a block of type text, image or document' })
const ToolResult = z.looseObject({
  type: z.literal('tool_result'),
  tool_use_id: z.string().min(1),
  content: textOrParts(ResultBlock).optional(),
  is_error: z.boolean().nullish(),
})

const ToolUse = z.looseObject({
  type: z.literal('tool_use'),
  id: z.string().min(1),
  name: z.string().min(1),
  input: z.record(z.string(), z.unknown()),
})
/** Sent back by clients; not given to the model again. */
const Thinking = z.looseObject({ type: z.enum(['thinking', 'redacted_thinking']) })

const UserBlock = z.discriminatedUnion('type', [Text, Image, Document, ToolResult], {
  error: 'expected a block of type text, image, document or tool_result',
})
const AssistantBlock = z.discriminatedUnion('type', [Text, ToolUse, Thinking], {
  error: 'expected a block of type text, tool_use or thinking',
})

const Message = z.discriminatedUnion(
  'role',
  [
    z.looseObject({ role: z.literal('user'), content: textOrParts(UserBlock) }),
    z.looseObject({ role: z.literal('assistant'), content: textOrParts(AssistantBlock) }),
    z.looseObject({ role: z.literal('system'), content: textOrParts(Text) }),
  ],
  { error: 'expected a message with the role user or assistant' },
)

const Tool = z.looseObject({
  // Anything else is a tool of Anthropic's own, which neither we nor the model know.
  type: z.literal('custom', { error: 'only tools with an input_schema of their own are supported' }).nullish(),
  name: z.string().min(1),
  description: z.string().nullish(),
  input_schema: z.record(z.string(), z.unknown()),
})

const ToolChoice = z.discriminatedUnion(
  'type',
  [
    z.looseObject({ type: z.enum(['auto', 'any']), disable_parallel_tool_use: z.boolean().nullish() }),
    z.looseObject({ type: z.literal('tool'), name: z.string().min(1), disable_parallel_tool_use: z.boolean().nullish() }),
    z.looseObject({ type: z.literal('none') }),
  ],
  { error: 'expected an object of type auto, any, tool or none' },
)

const Thoughts = z.discriminatedUnion(
  'type',
  [z.looseObject({ type: z.literal('enabled'), budget_tokens: z.int().min(1) }), z.looseObject({ type: z.enum(['disabled', 'adaptive']) })],
  { error: 'expected an object of type enabled, adaptive or disabled' },
)

const MAX_STOPS = 4 // of chat, data-plane.md 6.1

export const MessagesRequest = z.looseObject({
  model: z.string().min(1),
  messages: z.array(Message).min(1, { error: 'expected at least one message' }),
  system: textOrParts(Text).optional(),
  tools: z.array(Tool).nullish(),
  tool_choice: ToolChoice.nullish(),
  thinking: Thoughts.nullish(),
  max_tokens: z.int().min(1),
  stream: z.boolean().nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_k: z.int().min(0).nullish(),
  stop_sequences: z
    .array(z.string())
    .max(MAX_STOPS, { error: `expected at most ${MAX_STOPS} strings` })
    .nullish(),
  output_config: z
    .looseObject({
      effort: z.string().nullish(),
      format: z
        .looseObject({
          type: z.literal('json_schema', { error: 'only the type json_schema is supported' }),
          schema: z.record(z.string(), z.unknown()),
        })
        .nullish(),
    })
    .nullish(),
})
export type MessagesRequest = z.infer<typeof MessagesRequest>

/** The same without an answer to be bounded. */
export const CountTokensRequest = MessagesRequest.extend({ max_tokens: z.int().min(1).nullish() })

export const StopReason = z.enum(['end_turn', 'max_tokens', 'stop_sequence', 'tool_use', 'refusal'])
export type StopReason = z.infer<typeof StopReason>

export const MessagesUsage = z.looseObject({
  /** Without those that came from the cache. */
  input_tokens: z.int(),
  cache_creation_input_tokens: z.int(),
  cache_read_input_tokens: z.int(),
  output_tokens: z.int(),
})
export type MessagesUsage = z.infer<typeof MessagesUsage>

export const ContentBlock = z.discriminatedUnion('type', [
  z.looseObject({ type: z.literal('thinking'), thinking: z.string(), signature: z.string() }),
  z.looseObject({ type: z.literal('text'), text: z.string(), citations: z.null() }),
  z.looseObject({ type: z.literal('tool_use'), id: z.string(), name: z.string(), input: z.record(z.string(), z.unknown()) }),
])
export type ContentBlock = z.infer<typeof ContentBlock>

export const MessageAnswer = z.looseObject({
  id: z.string(),
  type: z.literal('message'),
  role: z.literal('assistant'),
  model: z.string(),
  content: z.array(ContentBlock),
  stop_reason: StopReason.nullable(),
  stop_sequence: z.string().nullable(),
  usage: MessagesUsage,
})
export type MessageAnswer = z.infer<typeof MessageAnswer>

export const MessagesError = z.looseObject({
  type: z.literal('error'),
  error: z.looseObject({ type: z.string(), message: z.string() }),
})
export type MessagesError = z.infer<typeof MessagesError>
