import type { Script, ScriptedUsage } from './scripted-engine.ts'

type Fields = Record<string, unknown>

/** What is said, piece by piece, in the order of data-plane.md 8.5. `said`: a word that a script may count. */
export type ScriptedEvent = { readonly text: string; readonly said: boolean }

type Item = {
  readonly kind: 'reasoning' | 'message' | 'function_call'
  readonly pieces: readonly string[]
  readonly id: string
  name?: string
}

const itemsOf = (script: Script): Item[] => {
  const tokens = script.tokens ?? (script.toolCalls === undefined ? ['Hello', ' world', '.'] : [])
  return [
    ...(script.reasoning === undefined ? [] : [{ kind: 'reasoning' as const, pieces: script.reasoning, id: 'rs_engine' }]),
    ...(tokens.length === 0 ? [] : [{ kind: 'message' as const, pieces: tokens, id: 'msg_engine' }]),
    ...(script.toolCalls ?? []).map((call) => {
      const middle = Math.ceil(call.arguments.length / 2)
      return {
        kind: 'function_call' as const,
        pieces: [call.arguments.slice(0, middle), call.arguments.slice(middle)],
        id: call.id,
        name: call.name,
      }
    }),
  ]
}

const toItem = (item: Item, text: string, status: string): Fields => {
  const { kind: type, id } = item
  if (type === 'function_call') return { type, id: `fc_${id}`, call_id: id, name: item.name, arguments: text, status }
  const part = partOf(item, text)
  const content = status === 'in_progress' ? [] : [part]
  if (type === 'reasoning') return { type, id, summary: [], content, encrypted_content: null, status }
  return { type, id, role: 'assistant', content, status }
}

const partOf = ({ kind }: Item, text: string): Fields =>
  kind === 'reasoning' ? { type: 'reasoning_text', text } : { type: 'output_text', text, annotations: [], logprobs: [] }

const usageOf = (script: Script, said: number, promptTokens: number): unknown => {
  const told: ScriptedUsage = typeof script.usage === 'object' ? script.usage : { prompt: promptTokens }
  const output = told.completion ?? said
  return {
    input_tokens: told.prompt,
    input_tokens_details: { cached_tokens: told.cached ?? 0 },
    output_tokens: output,
    output_tokens_details: { reasoning_tokens: told.reasoning ?? 0 },
    total_tokens: told.prompt + output,
  }
}

const toResponse = (script: Script, asked: Fields, status: string, output: Fields[], usage: unknown): Fields => ({
  id: 'resp_engine',
  object: 'response',
  created_at: 1_777_583_471,
  completed_at: status === 'completed' ? 1_777_583_472 : null,
  status,
  background: false,
  error: null,
  incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
  instructions: asked['instructions'] ?? null,
  max_output_tokens: asked['max_output_tokens'] ?? null,
  model: script.model ?? asked['model'],
  output,
  parallel_tool_calls: true,
  previous_response_id: null,
  reasoning: asked['reasoning'] ?? { effort: null, summary: null },
  store: asked['store'] ?? true,
  temperature: asked['temperature'] ?? 1,
  text: asked['text'] ?? { format: { type: 'text' } },
  tool_choice: asked['tool_choice'] ?? 'auto',
  tools: asked['tools'] ?? [],
  top_logprobs: 0,
  top_p: 1,
  user: null,
  truncation: 'disabled',
  metadata: {},
  // Says that the answer came through as the engine made it.
  service_tier: 'scripted',
  usage,
})

const statusOf = (script: Script): 'completed' | 'incomplete' => (script.finishReason === 'length' ? 'incomplete' : 'completed')

/** `POST /v1/responses` of an engine that speaks it. */
export const scriptedResponse = (script: Script, asked: Fields, promptTokens: number): Fields => {
  const items = itemsOf(script)
  const said = items.reduce((sum, { pieces }) => sum + pieces.length, 0)
  const output = items.map((item) => toItem(item, item.pieces.join(''), 'completed'))
  return toResponse(script, asked, statusOf(script), output, script.usage === false ? null : usageOf(script, said, promptTokens))
}

export function* scriptedResponseEvents(script: Script, asked: Fields, promptTokens: number): Generator<ScriptedEvent> {
  let sequence = 0
  let words = 0
  const event = (type: string, fields: object, said = false): ScriptedEvent => {
    const text = `event: ${type}\ndata: ${JSON.stringify({ type, sequence_number: sequence, ...fields })}\n\n`
    sequence += 1
    words += said ? 1 : 0
    return { text: script.crlf === true ? text.replaceAll('\n', '\r\n') : text, said }
  }
  const items = itemsOf(script)
  const begun = toResponse(script, asked, 'in_progress', [], null)
  yield event('response.created', { response: begun })
  yield event('response.in_progress', { response: begun })
  const output: Fields[] = []
  for (const [index, item] of items.entries()) {
    const place = { item_id: toItem(item, '', 'in_progress')['id'], output_index: index }
    const part = { ...place, content_index: 0 }
    const isCall = item.kind === 'function_call'
    const name = isCall ? 'response.function_call_arguments' : `response.${item.kind === 'reasoning' ? 'reasoning_text' : 'output_text'}`
    yield event('response.output_item.added', { output_index: index, item: toItem(item, '', 'in_progress') })
    if (!isCall) yield event('response.content_part.added', { ...part, part: partOf(item, '') })
    for (const delta of item.pieces) yield event(`${name}.delta`, { ...(isCall ? place : part), delta }, true)
    const text = item.pieces.join('')
    yield event(`${name}.done`, isCall ? { ...place, name: item.name, arguments: text } : { ...part, text })
    if (!isCall) yield event('response.content_part.done', { ...part, part: partOf(item, text) })
    const done = toItem(item, text, 'completed')
    output.push(done)
    yield event('response.output_item.done', { output_index: index, item: done })
  }
  const status = statusOf(script)
  const usage = script.usage === false ? null : usageOf(script, words, promptTokens)
  if (script.done !== false) yield event(`response.${status}`, { response: toResponse(script, asked, status, output, usage) })
}
