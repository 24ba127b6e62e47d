import { ChatRequest, ChatSettings } from '@parvis/wire/openai/chat'
import { type Model, REASONING_EFFORTS, type ReasoningEffort } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, type Change, type Span, slice, splice } from '../body.ts'
import { readConversation, type Turn } from '../conversation.ts'
import { guessUnseen, mixOf } from '../guess.ts'
import { bringImages, checkMedia, type Media } from '../media/media.ts'
import { watch } from '../scan.ts'
import {
  checkFields,
  type Endpoint,
  fieldsOf,
  LLAMA_NAMES,
  mismatch,
  type Reading,
  type Request,
  readBody,
  streamOptions,
} from './endpoint.ts'

const WATCHED = watch(
  ['model', 'messages', 'stream', 'stream_options', 'max_tokens', 'max_completion_tokens', 'n'],
  [
    'temperature',
    'top_p',
    'presence_penalty',
    'frequency_penalty',
    'stop',
    'seed',
    'logprobs',
    'top_logprobs',
    'logit_bias',
    'tools',
    'tool_choice',
    'parallel_tool_calls',
    'response_format',
    'reasoning_effort',
    ...LLAMA_NAMES,
  ],
)

/** What a chat template may add that stands nowhere in the body: its markers, a system prompt, the frame around tools. */
const TEMPLATE_TOKENS = 512

/** `POST /v1/chat/completions` (data-plane.md 6). */
export const chat: Endpoint = {
  name: 'chat.completions',
  path: '/chat/completions',
  enginePath: '/v1/chat/completions',

  read: (body) => readBody(body, WATCHED),

  check(reading, model, guess = guessUnseen) {
    if (model.type !== 'chat') return no(mismatch(chat, model))
    const fields = checkedFields(reading)
    if (!fields.ok) return fields
    const settings = fields.value
    const beyond = beyondModel(reading, settings, model)
    if (beyond !== undefined) return no(beyond)
    const told = readConversation(reading.body, reading.spans.get('messages') ?? NOWHERE)
    if (!told.ok) return told
    const { turns } = told.value
    if (model.rules.alternatingRoles && !alternate(turns)) return no({ code: 'roles_refused' })
    const media = checkMedia(reading.body, told.value, model)
    if (!media.ok) return media

    const asked = settings.max_completion_tokens ?? settings.max_tokens ?? undefined
    const field = typeof settings.max_completion_tokens === 'number' ? 'max_completion_tokens' : 'max_tokens'
    if (asked !== undefined) {
      if (model.maxOutputTokens !== null && asked > model.maxOutputTokens) {
        return no({ code: 'output_limit', field, asked, maximum: model.maxOutputTokens })
      }
      // At least one token of input is certain; the rest is the engine's to count.
      if (asked >= model.contextTokens) return no({ code: 'context_exceeded', asked: asked + 1, maximum: model.contextTokens })
    }

    const stream = settings.stream === true
    const { images, urls } = media.value
    const limit = asked ?? defaultLimit(reading.body, model, media.value)
    const wanted = { stream, limit: asked === undefined ? limit : undefined }
    const edits = [...developersToSystem(turns), ...toolPrompt(reading, turns, model), ...nearestEffort(reading, settings, model)]
    const places = [...told.value.images, ...told.value.sounds].map(({ span }) => span)
    const mix = mixOf(reading.body, promptOf(reading), places)
    const input = guess(model.name, mix)
    const most = (tokens: number): number => Math.min(tokens + media.value.tokens, model.contextTokens)
    const request = (brought: readonly Change[]): Request => ({
      enginePath: chat.enginePath,
      stream,
      wantsUsage: settings.stream_options?.include_usage === true,
      wantsRunningUsage: settings.stream_options?.['continuous_usage_stats'] === true,
      answers: settings.n ?? 1,
      estimate: {
        inputTokens: most(input.tokens),
        // Without a limit an engine goes on until the context is full.
        outputTokens: Math.min(limit ?? model.maxOutputTokens ?? 0, model.contextTokens - most(input.least)) * (settings.n ?? 1),
        // What an image weighs is a rule and no guess, and says nothing about words.
        ...(places.length === 0 ? { guessed: { least: most(input.least), most: most(input.most), mix } } : {}),
      },
      bytesFor: (remoteModel, plain = false) =>
        splice(reading.body, [...changes(reading, settings, { remoteModel, plain, ...wanted }), ...edits, ...brought]),
      answerKey: 'choices',
      ...(images === 0 ? {} : { measured: { images } }),
    })
    if (urls.length === 0) return yes(request([]))
    return yes({
      ...request([]),
      async complete(exchange) {
        const brought = await bringImages(urls, exchange)
        return brought.ok ? yes(request(brought.value)) : brought
      },
    })
  },
}

/** Fields beside the prompt are shorter than this: settings and a schema. */
const OTHER_BYTES = 4096

/** Where the prompt stands. What we do not know goes to the engine as it came, and may be prompt too (`documents` of vLLM). */
const promptOf = ({ body, spans }: Reading): readonly (Span | undefined)[] => {
  const parts = [spans.get('messages'), spans.get('tools')]
  const others = parts.reduce((bytes, part) => bytes - (part === undefined ? 0 : part.end - part.start), body.bytes)
  return others > OTHER_BYTES ? [{ start: 0, end: body.bytes }] : parts
}

const NOWHERE: Span = { start: 0, end: 0 }

/** The messages of a large body are not checked with a schema, only by the walk over them that all bodies get. */
const checkedFields = (reading: Reading): Outcome<ChatSettings> => {
  const fields = fieldsOf(reading)
  if (!fields.ok) return fields
  if (fields.value['messages'] !== undefined || !reading.spans.has('messages')) return checkFields(ChatRequest, fields.value)
  return checkFields(ChatSettings, fields.value)
}

/** What the model cannot do is refused before an engine is asked (data-plane.md 6.2 and 6.6). */
const beyondModel = (reading: Reading, settings: ChatSettings, model: Model): Refusal | undefined => {
  const cannot = (field: string, what: string): Refusal => ({
    code: 'field_invalid',
    field,
    reason: `the model ${model.name} ${what}`,
  })
  if (hasTools(reading) && !model.features.tools) return cannot('tools', 'takes no tools')
  const format = settings.response_format?.type ?? 'text'
  if (format !== 'text' && !model.features.structuredOutput) return cannot('response_format', 'has no structured output')
  const effort = settings.reasoning_effort ?? undefined
  if (effort !== undefined && !isEffort(effort)) {
    return { code: 'field_invalid', field: 'reasoning_effort', reason: `expected one of ${REASONING_EFFORTS.join(', ')}` }
  }
  return undefined
}

const EMPTY_ARRAY = /^\s*(?:\[\s*\]|null)\s*$/
const SHORT_BYTES = 64

/** By the bytes, since tools may be too large to be parsed. */
const hasTools = (reading: Reading): boolean => {
  const span = reading.spans.get('tools')
  if (span === undefined) return false
  return span.end - span.start > SHORT_BYTES || !EMPTY_ARRAY.test(slice(reading.body, span).toString())
}

/** As Mistral's templates count: calls of tools and their results stand between the turns and are none. */
const alternate = (turns: readonly Turn[]): boolean => {
  const speakers = turns.filter(({ role, callsTools }) => role === 'user' || (role === 'assistant' && !callsTools))
  return speakers.every(({ role }, place) => (role === 'user') === (place % 2 === 0))
}

const SYSTEM = Buffer.from('"system"')

/** `developer` is what some clients call `system` (data-plane.md 6.2), and most chat templates do not know it. */
const developersToSystem = (turns: readonly Turn[]): Change[] =>
  turns.flatMap(({ role, roleSpan }) => (role === 'developer' ? [{ ...roleSpan, bytes: SYSTEM }] : []))

/** Tools without a system message: some models then do not know that they have them (data-plane.md 6.5). */
const toolPrompt = (reading: Reading, turns: readonly Turn[], model: Model): Change[] => {
  const { toolSystemPrompt } = model.rules
  const messages = reading.spans.get('messages')
  if (toolSystemPrompt === null || messages === undefined || !hasTools(reading)) return []
  if (turns.some(({ role }) => role === 'system' || role === 'developer')) return []
  const start = messages.start + 1
  return [{ start, end: start, bytes: Buffer.from(`${JSON.stringify({ role: 'system', content: toolSystemPrompt })},`) }]
}

const isEffort = (text: string): text is ReasoningEffort => (REASONING_EFFORTS as readonly string[]).includes(text)

/** The nearest that the model knows (data-plane.md 6.7), the lesser of two as near; who wants some thinking does not get none. */
const nearestEffort = (reading: Reading, settings: ChatSettings, model: Model): Change[] => {
  const span = reading.spans.get('reasoning_effort')
  const asked = settings.reasoning_effort ?? undefined
  const known = model.rules.reasoningEfforts
  if (span === undefined || asked === undefined || !isEffort(asked) || known.length === 0 || known.includes(asked)) return []
  const place = REASONING_EFFORTS.indexOf(asked)
  const choice = known.filter((effort) => effort !== 'none')
  const [nearest] = (choice.length === 0 ? known : choice).toSorted(
    (a, b) => Math.abs(REASONING_EFFORTS.indexOf(a) - place) - Math.abs(REASONING_EFFORTS.indexOf(b) - place),
  )
  return [{ ...span, bytes: Buffer.from(JSON.stringify(nearest)) }]
}

/**
 * A client that sets no limit gets the model's (data-plane.md 6.1: "default: a per-model maximum"). But engines refuse a limit that
 * together with the input exceeds the context, so we set it only where it surely fits: a token takes at least one byte. Where that
 * is not sure (an image by URL weighs far more than its bytes) the engine's own default applies, which is what is left of the context.
 */
const defaultLimit = (body: Body, model: Model, media: Media): number | undefined => {
  if (model.maxOutputTokens === null || media.bytes > 0 || media.urls.length > 0) return undefined
  return body.bytes + TEMPLATE_TOKENS + model.maxOutputTokens <= model.contextTokens ? model.maxOutputTokens : undefined
}

const changes = (
  reading: Reading,
  settings: ChatSettings,
  wanted: { remoteModel: string; plain: boolean; stream: boolean; limit: number | undefined },
): Change[] => {
  const changed: Change[] = []
  const set = (key: string, value: unknown): void => {
    const text = JSON.stringify(value)
    const span = reading.spans.get(key)
    changed.push(
      span === undefined
        ? { start: reading.inside, end: reading.inside, bytes: Buffer.from(`${JSON.stringify(key)}:${text},`) }
        : { ...span, bytes: Buffer.from(text) },
    )
  }
  if (wanted.remoteModel !== reading.model) set('model', wanted.remoteModel)
  if (wanted.limit !== undefined) set('max_tokens', wanted.limit)
  // Both given: ours to prefer one (data-plane.md 6.1), and an engine that prefers the other must not exceed it.
  else if (
    typeof settings.max_tokens === 'number' &&
    typeof settings.max_completion_tokens === 'number' &&
    settings.max_tokens !== settings.max_completion_tokens
  ) {
    set('max_tokens', settings.max_completion_tokens)
  }
  const limit = settings.max_completion_tokens ?? settings.max_tokens ?? wanted.limit ?? null
  if (reading.spans.has('n_predict')) set('n_predict', limit)
  if (reading.spans.has('n_cmpl')) set('n_cmpl', settings.n ?? 1)
  // Always asked for, since a bill rests on it; shown only to those who asked.
  const options = wanted.stream ? streamOptions(settings.stream_options, wanted.plain) : undefined
  if (options !== undefined) set('stream_options', options)
  return changed
}
