import { z } from 'zod'
import { textOrParts } from '../text-or-parts.ts'

/**
 * `POST /v1/responses` (data-plane.md 8). Objects are loose and `null` means "not given", as in chat; but what would need us to
 * keep something, or to run a tool ourselves, is refused: leaving it out would change what the request means (8.2).
 */

const InputText = z.looseObject({ type: z.literal('input_text'), text: z.string() })
const OutputText = z.looseObject({ type: z.literal('output_text'), text: z.string() })
const RefusalPart = z.looseObject({ type: z.literal('refusal'), refusal: z.string() })
const InputImage = z.looseObject({
  type: z.literal('input_image'),
  image_url: z.string({ error: 'expected the URL of an image, or a data URL; files are not kept' }).min(1),
  detail: z.string().nullish(),
  file_id: z.null({ error: 'files are not kept: expected the image itself, or its URL' }).optional(),
})
const InputPart = z.discriminatedUnion('type', [InputText, OutputText, RefusalPart, InputImage], {
  error: 'expected a part of type input_text, input_image or output_text',
})

const InputMessage = z.looseObject({
  type: z.literal('message'),
  role: z.enum(['user', 'assistant', 'system', 'developer'], { error: 'expected the role user, assistant, system or developer' }),
  content: textOrParts(InputPart),
})
const FunctionCall = z.looseObject({
  type: z.literal('function_call'),
  call_id: z.string().min(1),
  name: z.string().min(1),
  arguments: z.string(),
})
const FunctionCallOutput = z.looseObject({
  type: z.literal('function_call_output'),
  call_id: z.string().min(1),
  output: textOrParts(InputPart),
})
/** Sent back by clients that keep the whole conversation; not given to the model again. */
const Reasoning = z.looseObject({ type: z.literal('reasoning') })

export const InputItem = z.preprocess(
  // A message may come without its type (8.1).
  (item) => (typeof item === 'object' && item !== null && 'role' in item && !('type' in item) ? { ...item, type: 'message' } : item),
  z.discriminatedUnion('type', [InputMessage, FunctionCall, FunctionCallOutput, Reasoning], {
    error:
      'expected an item of type message, function_call, function_call_output or reasoning; nothing is stored here that could be referred to',
  }),
)
export type InputItem = z.infer<typeof InputItem>

const Tool = z.looseObject({
  type: z.literal('function', { error: 'only tools of type "function" are supported' }),
  name: z.string().min(1),
  description: z.string().nullish(),
  parameters: z.record(z.string(), z.unknown()).nullish(),
  strict: z.boolean().nullish(),
})

const ToolChoice = z.union(
  [z.enum(['auto', 'none', 'required']), z.looseObject({ type: z.literal('function'), name: z.string().min(1) })],
  { error: 'expected "auto", "none", "required" or {"type":"function","name":…}' },
)

const TextFormat = z.discriminatedUnion(
  'type',
  [
    z.looseObject({ type: z.literal('text') }),
    z.looseObject({ type: z.literal('json_object') }),
    z.looseObject({
      type: z.literal('json_schema'),
      name: z.string().min(1),
      schema: z.record(z.string(), z.unknown()),
      strict: z.boolean().nullish(),
      description: z.string().nullish(),
    }),
  ],
  { error: 'expected an object of type text, json_object or json_schema' },
)

const stateless = (what: string) => z.null({ error: `${what}: this API keeps nothing between calls` }).optional()

export const ResponsesRequest = z.looseObject({
  model: z.string().min(1),
  input: textOrParts(InputItem, 1, 'items'),
  instructions: z.string().nullish(),
  max_output_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  stream: z.boolean().nullish(),
  reasoning: z.looseObject({ effort: z.string().nullish() }).nullish(),
  text: z.looseObject({ format: TextFormat.nullish() }).nullish(),
  tools: z.array(Tool).nullish(),
  tool_choice: ToolChoice.nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  metadata: z.record(z.string(), z.string()).nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  user: z.string().nullish(),
  previous_response_id: stateless('there are no earlier responses to go on from'),
  conversation: stateless('there are no stored conversations'),
  prompt: stateless('there are no stored prompts'),
  background: z.literal(false, { error: 'an answer cannot be fetched later' }).nullish(),
})
export type ResponsesRequest = z.infer<typeof ResponsesRequest>

const Status = z.enum(['in_progress', 'completed', 'incomplete', 'failed'])

const OutputItem = z.discriminatedUnion('type', [
  z.looseObject({
    type: z.literal('reasoning'),
    id: z.string(),
    summary: z.array(z.unknown()),
    content: z.array(z.looseObject({ type: z.literal('reasoning_text'), text: z.string() })),
    status: Status,
  }),
  z.looseObject({
    type: z.literal('message'),
    id: z.string(),
    role: z.literal('assistant'),
    status: Status,
    content: z.array(
      z.looseObject({
        type: z.literal('output_text'),
        text: z.string(),
        annotations: z.array(z.unknown()),
        logprobs: z.array(z.unknown()),
      }),
    ),
  }),
  z.looseObject({
    type: z.literal('function_call'),
    id: z.string(),
    call_id: z.string(),
    name: z.string(),
    arguments: z.string(),
    status: Status,
  }),
])
export type OutputItem = z.infer<typeof OutputItem>

/** The answer, also inside the events that begin and end a stream (8.4). */
export const ResponseObject = z.looseObject({
  id: z.string(),
  object: z.literal('response'),
  created_at: z.int(),
  completed_at: z.int().nullable(),
  status: Status,
  background: z.literal(false),
  error: z.looseObject({ code: z.string(), message: z.string() }).nullable(),
  incomplete_details: z.looseObject({ reason: z.enum(['max_output_tokens', 'content_filter']) }).nullable(),
  instructions: z.string().nullable(),
  max_output_tokens: z.int().nullable(),
  model: z.string(),
  output: z.array(OutputItem),
  parallel_tool_calls: z.boolean(),
  previous_response_id: z.null(),
  reasoning: z.looseObject({ effort: z.string().nullable(), summary: z.null() }),
  store: z.literal(false),
  temperature: z.number().nullable(),
  text: z.looseObject({ format: TextFormat }),
  tool_choice: ToolChoice,
  tools: z.array(Tool),
  top_logprobs: z.int(),
  top_p: z.number().nullable(),
  user: z.string().nullable(),
  truncation: z.literal('disabled'),
  metadata: z.record(z.string(), z.string()),
  usage: z
    .looseObject({
      input_tokens: z.int(),
      input_tokens_details: z.looseObject({ cached_tokens: z.int(), cache_write_tokens: z.int() }),
      output_tokens: z.int(),
      output_tokens_details: z.looseObject({ reasoning_tokens: z.int() }),
      total_tokens: z.int(),
    })
    .nullable(),
})
export type ResponseObject = z.infer<typeof ResponseObject>

const Count = z.int().nonnegative()

/** Token counts as engines that speak responses give them; some leave the details out. */
export const ResponseUsage = z.looseObject({
  input_tokens: Count,
  output_tokens: Count,
  input_tokens_details: z.looseObject({ cached_tokens: Count.nullish() }).nullish(),
  output_tokens_details: z.looseObject({ reasoning_tokens: Count.nullish() }).nullish(),
})
