import type { ContentBlock, MessageAnswer, MessagesRequest, MessagesUsage, StopReason } from '@parvis/wire/anthropic/messages'
import type { Counts } from '../../../usage/event.ts'
import { NO_COUNTS } from '../../answer.ts'
import { assemble, type Block, type Step } from '../assemble.ts'
import { readTold, type Told } from '../told.ts'
import type { Asked, Translator } from '../translator.ts'
import { speakAnthropic } from './error.ts'

/** A whole chat completion as a message. */
export const toMessage = (completion: unknown, asked: Asked, request: MessagesRequest, model: string): MessageAnswer => {
  const told = readTold(completion)
  const assembly = assemble((index) => callId(asked, index))
  for (const piece of told.pieces) assembly.push(piece)
  assembly.end()
  return {
    ...toHead(asked, model),
    content: assembly.blocks.map(toContent),
    ...toStop(told, request),
    usage: toUsage(told.counts ?? NO_COUNTS),
  }
}

/** The events of a streamed message. */
export const messageTranslator = (asked: Asked, request: MessagesRequest, model: string): Translator => {
  const assembly = assemble((index) => callId(asked, index))
  let begun = false
  let last: Pick<Told, 'finish' | 'stopped'> = { finish: undefined, stopped: undefined }
  let counts: Counts | undefined

  const begin = (): string => {
    if (begun) return ''
    begun = true
    // What the input weighs is known now only where the engine counts as it goes; otherwise `message_delta` says it at the end.
    const usage = toUsage({ ...(counts ?? NO_COUNTS), output: 0 })
    return (
      emit('message_start', {
        message: { ...toHead(asked, model), content: [], stop_reason: null, stop_sequence: null, usage } satisfies MessageAnswer,
      }) + PING
    )
  }

  return {
    event(chunk) {
      const told = readTold(chunk)
      counts = told.counts ?? counts
      if (told.finish !== undefined) last = told
      return begin() + told.pieces.map((piece) => assembly.push(piece).map(writeStep).join('')).join('')
    },
    ping: () => (begun ? PING : ': ping\n\n'),
    end: () =>
      begin() +
      assembly.end().map(writeStep).join('') +
      emit('message_delta', { delta: toStop(last, request), usage: toUsage(counts ?? NO_COUNTS) }) +
      emit('message_stop', {}),
    failed: (refusal) => `event: error\ndata: ${JSON.stringify(speakAnthropic(refusal, asked.id).body)}\n\n`,
  }
}

const emit = (type: string, fields: object): string => `event: ${type}\ndata: ${JSON.stringify({ type, ...fields })}\n\n`

const PING = emit('ping', {})

const writeStep = (step: Step): string => {
  const { block, index } = step
  if (step.does === 'open') return emit('content_block_start', { index, content_block: toContent(block) })
  if (step.does === 'close') return emit('content_block_stop', { index })
  return emit('content_block_delta', { index, delta: toDelta(block, step.delta) })
}

const toDelta = (block: Block, delta: string): object => {
  if (block.kind === 'call') return { type: 'input_json_delta', partial_json: delta }
  return block.kind === 'text' ? { type: 'text_delta', text: delta } : { type: 'thinking_delta', thinking: delta }
}

const toContent = (block: Block): ContentBlock => {
  if (block.kind === 'call') return { type: 'tool_use', id: block.id, name: block.name, input: toInput(block.arguments) }
  if (block.kind === 'text') return { type: 'text', text: block.text, citations: null }
  // A signature lets Anthropic's service check its own thoughts when they come back; ours are not given to the model again.
  return { type: 'thinking', thinking: block.text, signature: '' }
}

/** An object here, a text in a chat. What a full answer limit has cut off is no object. */
const toInput = (text: string): Record<string, unknown> => {
  try {
    const input: unknown = JSON.parse(text)
    return typeof input === 'object' && input !== null && !Array.isArray(input) ? (input as Record<string, unknown>) : {}
  } catch {
    return {}
  }
}

const STOP_REASONS: Readonly<Record<string, StopReason>> = {
  stop: 'end_turn',
  length: 'max_tokens',
  tool_calls: 'tool_use',
  function_call: 'tool_use',
  content_filter: 'refusal',
}

const toStop = (
  told: Pick<Told, 'finish' | 'stopped'>,
  request: MessagesRequest,
): { stop_reason: StopReason; stop_sequence: string | null } => {
  const { stopped } = told
  // vLLM says which text it was; other engines do not, and then it looks like an ordinary end.
  if (stopped !== undefined && request.stop_sequences?.includes(stopped) === true)
    return { stop_reason: 'stop_sequence', stop_sequence: stopped }
  return { stop_reason: STOP_REASONS[told.finish ?? 'stop'] ?? 'end_turn', stop_sequence: null }
}

/** Input is counted here without what came from the cache; in a chat it is a part of it. */
const toUsage = (counts: Counts): MessagesUsage => ({
  input_tokens: counts.input - counts.cachedInput,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: counts.cachedInput,
  output_tokens: counts.output,
})

const hexOf = (asked: Asked): string => asked.id.replaceAll('-', '')
const callId = (asked: Asked, index: number): string => `toolu_${hexOf(asked)}${index.toString(16).padStart(4, '0')}`

const toHead = (asked: Asked, model: string) => ({
  id: `msg_${hexOf(asked)}`,
  type: 'message' as const,
  role: 'assistant' as const,
  model,
})
