import { unixSeconds } from '../clock.ts'
import { complete, type LogprobEntry, type Plan, type Usage } from '../complete.ts'
import type { Engine, Exchange } from '../exchange.ts'
import type { ChatModel } from '../llama/model.ts'
import { faultOf } from '../log.ts'
import { readMaxTokens, readSampling, readStops, refuseFarTooLong } from '../plan.ts'
import { fault, fieldInvalid, no, type Outcome, yes } from '../refusal.ts'
import { CompletionRequest, readBody } from '../schema.ts'

const DEFAULT_MAX_TOKENS = 16 // OpenAI's for this endpoint, which clients rely on

/**
 * The prompt as tokens. Unlike in a chat, special tokens in the text count: this endpoint takes the model's raw format, and
 * code editors write its fill-in-the-middle tokens themselves.
 */
const readPrompt = (engine: Engine, prompt: CompletionRequest['prompt']): Outcome<number[]> => {
  const { vocabulary, contextTokens } = engine.loaded
  const whole = prompt as string | number[] | [string] | [number[]]
  const one = Array.isArray(whole) && typeof whole[0] !== 'number' ? (whole[0] as string | number[]) : (whole as string | number[])
  if (typeof one !== 'string') {
    const strange = one.find((token) => token >= vocabulary.size)
    return strange === undefined ? yes(one) : no(fieldInvalid('prompt', `there is no token ${strange}`))
  }
  const tooLong = refuseFarTooLong(one, contextTokens, 'prompt')
  if (tooLong !== undefined) return no(tooLong)
  const tokens = vocabulary.tokenize(one, true)
  const { beginning } = vocabulary
  if (beginning !== undefined && tokens[0] !== beginning) tokens.unshift(beginning)
  return yes(tokens)
}

const readPlan = (engine: Engine, chat: ChatModel, request: CompletionRequest): Outcome<Plan> => {
  const { loaded, options } = engine
  const prompt = readPrompt(engine, request.prompt)
  if (!prompt.ok) return prompt
  if (prompt.value.length === 0) return no(fieldInvalid('prompt', 'it is empty'))
  const asked = request.max_tokens ?? Math.min(DEFAULT_MAX_TOKENS, options.maxOutputTokens)
  const maxTokens = readMaxTokens(asked, 'max_tokens', prompt.value.length, loaded.contextTokens, options)
  if (!maxTokens.ok) return maxTokens
  const sampling = readSampling(request, chat.defaults, loaded.vocabulary.size)
  if (!sampling.ok) return sampling
  return yes({
    prompt: prompt.value,
    maxTokens: maxTokens.value,
    ignoresEnd: request.ignore_eos === true,
    sampling: sampling.value,
    stops: readStops(request.stop),
    reasoning: undefined,
    toolFormat: undefined,
    tools: [],
    grammar: undefined,
    topLogprobs: request.logprobs,
  })
}

/** The old shape: four lists side by side. `from` is where in the text the first token begins. */
const logprobsToJson = (entries: readonly LogprobEntry[], from: number) => {
  let offset = from
  return {
    tokens: entries.map((entry) => entry.token),
    token_logprobs: entries.map((entry) => entry.logprob),
    top_logprobs: entries.map((entry) => Object.fromEntries(entry.top_logprobs.map((top) => [top.token, top.logprob]))),
    text_offset: entries.map((entry) => {
      const start = offset
      offset += entry.token.length
      return start
    }),
  }
}

/** `POST /v1/completions`, the older endpoint for plain text (data-plane.md 7). */
export const completions = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const { loaded, options, log } = engine
  if (loaded.serves.type !== 'chat') throw new Error('the completions route needs a chat model')
  const model = loaded.serves
  const request = readBody(CompletionRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const plan = readPlan(engine, model, request.value)
  if (!plan.ok) return exchange.refuse(plan.refusal)
  const lease = await model.slots.take(exchange.tenant, plan.value.prompt, exchange.signal)
  if (!lease.ok) return exchange.refuse(lease.refusal)

  const head = { id: `cmpl-${exchange.requestId}`, object: 'text_completion', created: unixSeconds(), model: options.name }
  const everyUsage = request.value.stream_options?.continuous_usage_stats === true
  const lastUsage = request.value.stream_options?.include_usage === true
  const events = request.value.stream === true ? exchange.events() : undefined
  const chunk = (choices: unknown[], usage: Usage | null) => ({ ...head, choices, ...(everyUsage || lastUsage ? { usage } : {}) })

  try {
    let text = ''
    const entries: LogprobEntry[] = []
    const done = await complete(engine, model, lease.value, plan.value, exchange.signal, (piece) => {
      const added = piece.deltas.map((delta) => (delta.kind === 'content' ? delta.text : '')).join('')
      const logprobs = plan.value.topLogprobs === undefined ? null : logprobsToJson(piece.logprobs, text.length)
      text += added
      entries.push(...piece.logprobs)
      events?.send(chunk([{ index: 0, text: added, logprobs, finish_reason: null }], everyUsage ? piece.usage : null))
    })
    if (events === undefined) {
      const logprobs = plan.value.topLogprobs === undefined ? null : logprobsToJson(entries, 0)
      const choice = { index: 0, text, logprobs, finish_reason: done.finish, stop_reason: done.stopMatched ?? null }
      return exchange.answer({ ...head, choices: [choice], usage: done.usage })
    }
    if (done.finish === 'aborted') return
    const choice = { index: 0, text: '', logprobs: null, finish_reason: done.finish, stop_reason: done.stopMatched ?? null }
    events.send(chunk([choice], everyUsage ? done.usage : null))
    if (lastUsage) events.send(chunk([], done.usage))
    events.end()
  } catch (error) {
    if (events?.started() !== true) throw error
    log.error('an answer broke off', { requestId: exchange.requestId, reason: faultOf(error) })
    events.refuse(fault)
  } finally {
    lease.value.leave()
  }
}
