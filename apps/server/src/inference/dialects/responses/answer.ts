import type { OutputItem, ResponseObject, ResponsesRequest } from '@parvis/wire/openai/responses'
import type { Clock, Instant } from '../../../kit/clock.ts'
import { type Refusal, speak } from '../../../kit/refusal.ts'
import type { Counts } from '../../../usage/event.ts'
import { assemble, type Block, type Step } from '../assemble.ts'
import { readTold, type Told } from '../told.ts'
import type { Asked, Translator } from '../translator.ts'

type Status = ResponseObject['status']

/** What is the same in all forms of one answer. */
type Frame = {
  readonly asked: Asked
  readonly request: ResponsesRequest
  readonly model: string
  readonly hex: string
  readonly clock: Clock
}

const openFrame = (asked: Asked, request: ResponsesRequest, model: string, clock: Clock): Frame => ({
  asked,
  request,
  model,
  hex: asked.id.replaceAll('-', ''),
  clock,
})

/** A whole chat completion as a response (data-plane.md 8.4). */
export const toResponse = (completion: unknown, asked: Asked, request: ResponsesRequest, model: string, clock: Clock): ResponseObject => {
  const frame = openFrame(asked, request, model, clock)
  const told = readTold(completion)
  const assembly = assemble((index) => idOf('call', frame, index))
  for (const piece of told.pieces) assembly.push(piece)
  assembly.end()
  const status = statusOf(told.finish)
  const output = assembly.blocks.map((block, index) =>
    toItem(frame, block, index, index === assembly.blocks.length - 1 ? status : 'completed'),
  )
  return toObject(frame, { status, output, finish: told.finish, counts: told.counts, error: null })
}

/** The events of a streamed response, in the order of data-plane.md 8.5. */
export const responseTranslator = (asked: Asked, request: ResponsesRequest, model: string, clock: Clock): Translator => {
  const frame = openFrame(asked, request, model, clock)
  const assembly = assemble((index) => idOf('call', frame, index))
  let sequence = 0
  let begun = false
  let finish: string | undefined
  let counts: Counts | undefined

  const emit = (type: string, fields: object): string => {
    const event = `event: ${type}\ndata: ${JSON.stringify({ type, sequence_number: sequence, ...fields })}\n\n`
    sequence += 1
    return event
  }

  const begin = (): string => {
    if (begun) return ''
    begun = true
    const response = newResponse(frame)
    return emit('response.created', { response }) + emit('response.in_progress', { response })
  }

  /** Only the last item of an answer can be cut off. */
  const write = (steps: readonly Step[], last: Status): string =>
    steps.map((step, at) => writeStep(frame, step, at === steps.length - 1 ? last : 'completed', emit)).join('')

  const items = (last: Status): OutputItem[] =>
    assembly.blocks.map((block, index) => toItem(frame, block, index, index === assembly.blocks.length - 1 ? last : 'completed'))

  return {
    event(chunk) {
      const told: Told = readTold(chunk)
      finish = told.finish ?? finish
      counts = told.counts ?? counts
      return begin() + told.pieces.map((piece) => write(assembly.push(piece), 'completed')).join('')
    },
    // A comment: every reader of events skips it.
    ping: () => ': ping\n\n',
    end() {
      const status = statusOf(finish)
      const closing = begin() + write(assembly.end(), status)
      const response = toObject(frame, { status, output: items(status), finish, counts, error: null })
      return closing + emit(`response.${status}`, { response })
    },
    /** `response.failed` says how far it came; the `error` behind it is what makes the official SDKs raise. */
    failed(refusal) {
      const { error, event } = failureOf(refusal)
      const response = toObject(frame, { status: 'failed', output: items('incomplete'), finish, counts, error })
      return begin() + emit('response.failed', { response }) + emit('error', event)
    },
  }
}

/** What stands in a response that failed, and in the event behind it. */
export const failureOf = (refusal: Refusal) => {
  const { message, type, param, code } = speak(refusal).body.error
  const error = { code: code === 429 ? 'rate_limit_exceeded' : 'server_error', message }
  return { error, event: { code: error.code, message, param, error: { message, type, param, code } } }
}

const newResponse = (frame: Frame): ResponseObject =>
  toObject(frame, { status: 'in_progress', output: [], finish: undefined, counts: undefined, error: null })

/** A response that has just begun. */
export const beginResponse = (asked: Asked, request: ResponsesRequest, model: string, clock: Clock): ResponseObject =>
  newResponse(openFrame(asked, request, model, clock))

const statusOf = (finish: string | undefined): 'completed' | 'incomplete' =>
  finish === 'length' || finish === 'content_filter' ? 'incomplete' : 'completed'

const writeStep = (frame: Frame, step: Step, status: Status, emit: (type: string, fields: object) => string): string => {
  const { block, index } = step
  const item = { item_id: itemId(frame, block, index), output_index: index }
  const part = { ...item, content_index: 0 }
  const name = block.kind === 'reasoning' ? 'response.reasoning_text' : 'response.output_text'
  const logprobs = block.kind === 'text' ? { logprobs: [] } : {}

  if (step.does === 'grow') {
    if (block.kind === 'call') return emit('response.function_call_arguments.delta', { ...item, delta: step.delta })
    return emit(`${name}.delta`, { ...part, delta: step.delta, ...logprobs })
  }
  if (step.does === 'open') {
    const added = emit('response.output_item.added', { output_index: index, item: toItem(frame, block, index, 'in_progress') })
    return block.kind === 'call' ? added : added + emit('response.content_part.added', { ...part, part: toPart(block.kind, '') })
  }
  const done =
    block.kind === 'call'
      ? emit('response.function_call_arguments.done', { ...item, name: block.name, arguments: block.arguments })
      : emit(`${name}.done`, { ...part, text: block.text, ...logprobs }) +
        emit('response.content_part.done', { ...part, part: toPart(block.kind, block.text) })
  return done + emit('response.output_item.done', { output_index: index, item: toItem(frame, block, index, status) })
}

const PREFIX = { reasoning: 'rs', text: 'msg', call: 'fc' } as const

const idOf = (prefix: string, frame: Frame, index: number): string => `${prefix}_${frame.hex}${index.toString(16).padStart(4, '0')}`
const itemId = (frame: Frame, block: Block, index: number): string => idOf(PREFIX[block.kind], frame, index)

const toPart = <K extends 'reasoning' | 'text'>(kind: K, text: string) =>
  kind === 'text' ? { type: 'output_text' as const, text, annotations: [], logprobs: [] } : { type: 'reasoning_text' as const, text }

/** An item that has just begun has no content yet. */
const toItem = (frame: Frame, block: Block, index: number, status: Status): OutputItem => {
  const id = itemId(frame, block, index)
  if (block.kind === 'call') return { type: 'function_call', id, call_id: block.id, name: block.name, arguments: block.arguments, status }
  if (block.kind === 'reasoning') {
    const content = status === 'in_progress' ? [] : [{ type: 'reasoning_text' as const, text: block.text }]
    return { type: 'reasoning', id, summary: [], content, status }
  }
  const content = status === 'in_progress' ? [] : [{ type: 'output_text' as const, text: block.text, annotations: [], logprobs: [] }]
  return { type: 'message', id, role: 'assistant', status, content }
}

const seconds = (instant: Instant): number => Math.floor(instant / 1000)

const toObject = (
  frame: Frame,
  now: {
    status: Status
    output: OutputItem[]
    finish: string | undefined
    counts: Counts | undefined
    error: ResponseObject['error']
  },
): ResponseObject => {
  const { request, asked } = frame
  const cut = now.finish === 'content_filter' ? 'content_filter' : 'max_output_tokens'
  return {
    id: `resp_${frame.hex}`,
    object: 'response',
    created_at: seconds(asked.acceptedAt),
    completed_at: now.status === 'completed' ? seconds(frame.clock.now()) : null,
    status: now.status,
    background: false,
    error: now.error,
    incomplete_details: now.status === 'incomplete' ? { reason: cut } : null,
    instructions: request.instructions ?? null,
    max_output_tokens: request.max_output_tokens ?? null,
    model: frame.model,
    output: now.output,
    parallel_tool_calls: request.parallel_tool_calls ?? true,
    previous_response_id: null,
    reasoning: { effort: request.reasoning?.effort ?? null, summary: null },
    store: false,
    temperature: request.temperature ?? null,
    text: { format: request.text?.format ?? { type: 'text' } },
    tool_choice: request.tool_choice ?? 'auto',
    tools: request.tools ?? [],
    top_logprobs: request.top_logprobs ?? 0,
    top_p: request.top_p ?? null,
    user: request.user ?? null,
    truncation: 'disabled',
    metadata: request.metadata ?? {},
    usage: now.counts === undefined ? null : toUsage(now.counts),
  }
}

export const toUsage = (counts: Counts): NonNullable<ResponseObject['usage']> => ({
  input_tokens: counts.input,
  input_tokens_details: { cached_tokens: counts.cachedInput, cache_write_tokens: 0 },
  output_tokens: counts.output,
  output_tokens_details: { reasoning_tokens: counts.reasoning },
  total_tokens: counts.input + counts.output,
})
