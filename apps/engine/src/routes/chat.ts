import { randomUUID } from 'node:crypto'
import type { Delta } from '../answer.ts'
import { unixSeconds } from '../clock.ts'
import { complete, type LogprobEntry, type Plan, type Usage } from '../complete.ts'
import { renderConversation } from '../conversation.ts'
import type { Engine, Exchange } from '../exchange.ts'
import { chooseGrammar, knownTools } from '../grammar-choice.ts'
import type { ChatModel } from '../llama/model.ts'
import { faultOf } from '../log.ts'
import { reasoningStyle } from '../output/reasoning.ts'
import { toolFormat } from '../output/tool-calls.ts'
import { readMaxTokens, readSampling, readStops } from '../plan.ts'
import { fault, fieldInvalid, no, type Outcome, yes } from '../refusal.ts'
import { ChatRequest, readBody } from '../schema.ts'

const readPlan = async (engine: Engine, chat: ChatModel, request: ChatRequest): Promise<Outcome<Plan & { check: Check }>> => {
  const { loaded, options } = engine
  const choice = request.tool_choice ?? 'auto'
  const tools = choice === 'none' || request.tools?.length === 0 ? undefined : request.tools
  const prompt = renderConversation(chat, loaded, {
    messages: request.messages,
    tools,
    templateValues: request.chat_template_kwargs,
    reasoningEffort: request.reasoning_effort,
    addGenerationPrompt: true,
  })
  if (!prompt.ok) return prompt
  const { tokens, rendered, template } = prompt.value

  if (request.top_logprobs !== undefined && request.logprobs !== true) {
    return no(fieldInvalid('top_logprobs', '"logprobs" must be true with it'))
  }
  const field = request.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens'
  const maxTokens = readMaxTokens(request.max_completion_tokens ?? request.max_tokens, field, tokens.length, loaded.contextTokens, options)
  if (!maxTokens.ok) return maxTokens
  const sampling = readSampling(request, chat.defaults, loaded.vocabulary.size)
  if (!sampling.ok) return sampling
  const format = tools === undefined ? undefined : toolFormat(template.source)
  const grammar = await chooseGrammar(loaded, request, format)
  if (!grammar.ok) return grammar

  return yes({
    prompt: tokens,
    maxTokens: maxTokens.value,
    ignoresEnd: request.ignore_eos === true,
    sampling: sampling.value,
    stops: readStops(request.stop),
    reasoning: reasoningStyle(template.source, rendered),
    toolFormat: format,
    tools: knownTools(tools),
    grammar: grammar.value.grammar,
    check: grammar.value.check,
    topLogprobs: request.logprobs === true ? (request.top_logprobs ?? 0) : undefined,
  })
}

type Check = ((text: string) => string | undefined) | undefined

const toolCallId = (): string => `chatcmpl-tool-${randomUUID().replaceAll('-', '')}`

type ToolCall = { id: string; type: 'function'; function: { name: string; arguments: string } }

/** Joins the pieces of an answer into one message. */
const openMessage = () => {
  let content = ''
  let reasoning = ''
  const calls: ToolCall[] = []
  return {
    add: (deltas: readonly Delta[]): void => {
      for (const delta of deltas) {
        if (delta.kind === 'content') content += delta.text
        else if (delta.kind === 'reasoning') reasoning += delta.text
        else if (delta.kind === 'call')
          calls[delta.index] = { id: toolCallId(), type: 'function', function: { name: delta.name, arguments: '' } }
        else {
          const call = calls[delta.index]
          if (call !== undefined) call.function.arguments += delta.text
        }
      }
    },
    calls: (): number => calls.length,
    content: (): string => content,
    message: () => ({
      role: 'assistant',
      content: content === '' && (calls.length > 0 || reasoning !== '') ? null : content,
      refusal: null,
      reasoning: reasoning === '' ? null : reasoning,
      reasoning_content: reasoning === '' ? null : reasoning,
      ...(calls.length === 0 ? {} : { tool_calls: calls }),
    }),
  }
}

/** One delta as clients read it: one call fragment per chunk, its name once (data-plane.md 6.5), reasoning under both of its names (6.7). */
const deltaToJson = (delta: Delta): Record<string, unknown> => {
  switch (delta.kind) {
    case 'content':
      return { content: delta.text }
    case 'reasoning':
      return { reasoning: delta.text, reasoning_content: delta.text }
    case 'call':
      return { tool_calls: [{ index: delta.index, id: toolCallId(), type: 'function', function: { name: delta.name, arguments: '' } }] }
    case 'arguments':
      return { tool_calls: [{ index: delta.index, function: { arguments: delta.text } }] }
  }
}

/** `POST /v1/chat/completions` (data-plane.md 6). */
export const chat = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const { loaded, options, log } = engine
  if (loaded.serves.type !== 'chat') throw new Error('the chat route needs a chat model')
  const model = loaded.serves
  const request = readBody(ChatRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const plan = await readPlan(engine, model, request.value)
  if (!plan.ok) return exchange.refuse(plan.refusal)
  const lease = await model.slots.take(exchange.tenant, plan.value.prompt, exchange.signal)
  if (!lease.ok) return exchange.refuse(lease.refusal)

  const head = { id: `chatcmpl-${exchange.requestId}`, created: unixSeconds(), model: options.name }
  const message = openMessage()
  const finishReason = (finish: string): string => (finish === 'stop' && message.calls() > 0 ? 'tool_calls' : finish)
  const warnWhenUnfit = (finish: string): void => {
    // What is wrong with it would name members of the answer or of the schema.
    if (finish === 'stop' && plan.value.check?.(message.content()) !== undefined)
      log.warn('an answer does not fit its schema', { requestId: exchange.requestId })
  }

  try {
    if (request.value.stream !== true) {
      const entries: LogprobEntry[] = []
      const done = await complete(engine, model, lease.value, plan.value, exchange.signal, (piece) => {
        message.add(piece.deltas)
        entries.push(...piece.logprobs)
      })
      warnWhenUnfit(done.finish)
      return exchange.answer({
        ...head,
        object: 'chat.completion',
        choices: [
          {
            index: 0,
            message: message.message(),
            logprobs: plan.value.topLogprobs === undefined ? null : { content: entries },
            finish_reason: finishReason(done.finish),
            stop_reason: done.stopMatched ?? null,
          },
        ],
        service_tier: null,
        system_fingerprint: null,
        usage: done.usage,
      })
    }

    const events = exchange.events()
    const everyUsage = request.value.stream_options?.continuous_usage_stats === true
    const lastUsage = request.value.stream_options?.include_usage === true
    const chunk = (choices: unknown[], usage: Usage | null) => ({
      ...head,
      object: 'chat.completion.chunk',
      choices,
      ...(everyUsage || lastUsage ? { usage } : {}),
    })
    const send = (delta: unknown, entries: readonly LogprobEntry[], finish: string | null, usage: Usage, more: object = {}): void => {
      const logprobs = entries.length === 0 ? null : { content: entries }
      events.send(chunk([{ index: 0, delta, logprobs, finish_reason: finish, ...more }], everyUsage ? usage : null))
    }
    const begin = (usage: Usage): void => {
      if (!events.started())
        send({ role: 'assistant', content: '' }, [], null, { ...usage, completion_tokens: 0, total_tokens: usage.prompt_tokens })
    }
    try {
      let leftOver: readonly LogprobEntry[] = []
      const done = await complete(engine, model, lease.value, plan.value, exchange.signal, (piece) => {
        begin(piece.usage)
        message.add(piece.deltas)
        leftOver = [...leftOver, ...piece.logprobs]
        for (const delta of piece.deltas) {
          send(deltaToJson(delta), leftOver, null, piece.usage)
          leftOver = []
        }
      })
      if (done.finish === 'aborted') return
      begin(done.usage)
      warnWhenUnfit(done.finish)
      send({}, leftOver, finishReason(done.finish), done.usage, { stop_reason: done.stopMatched ?? null })
      if (lastUsage) events.send(chunk([], done.usage))
      events.end()
    } catch (error) {
      if (!events.started()) throw error
      log.error('an answer broke off', { requestId: exchange.requestId, reason: faultOf(error) })
      events.refuse(fault)
    }
  } finally {
    lease.value.leave()
  }
}
