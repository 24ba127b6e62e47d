import { ChatRequest, ChatSettings } from '@parvis/wire/openai/chat'
import { type Model, REASONING_EFFORTS, type ReasoningEffort } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, type Change, type Span, slice, splice } from '../body.ts'
import { type Conversation, readConversation, type Turn } from '../conversation.ts'
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
  'messages',
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

    const { tokens, images, urls } = media.value
    const { body, spans } = reading
    const limit = asked ?? defaultLimit(body, model, media.value)
    const places = mediaPlaces(told.value)
    const mix = mixOf(body, promptOf(reading), places)
    const { contextTokens } = model
    const input = guess(model.name, mix)
    const least = Math.min(input.least + tokens, contextTokens)
    const most = Math.min(input.most + tokens, contextTokens)
    const stream = settings.stream === true
    const answers = settings.n ?? 1
    const written: Written = {
      body,
      inside: reading.inside,
      model: reading.model,
      modelSpan: spans.get('model') ?? NOWHERE,
      asksUsage: stream,
      options: settings.stream_options,
      optionsSpan: spans.get('stream_options'),
      changes: changesOf(reading, settings, turns, model, asked === undefined ? limit : undefined),
    }
    const request: Request = {
      enginePath: chat.enginePath,
      stream,
      wantsUsage: settings.stream_options?.include_usage === true,
      wantsRunningUsage: settings.stream_options?.['continuous_usage_stats'] === true,
      answers,
      estimate: {
        inputTokens: Math.min(input.tokens + tokens, contextTokens),
        // Without a limit an engine goes on until the context is full.
        outputTokens: Math.min(limit ?? model.maxOutputTokens ?? 0, contextTokens - least) * answers,
        // What an image weighs is a rule and no guess, and says nothing about words.
        guessed: places.length === 0 ? { least, most, mix } : undefined,
      },
      bytesFor: bytesOf(written),
      lean: urls.length === 0, // what is completed stays beside what it was
      answerKey: 'choices',
      measured: images === 0 ? undefined : { images },
    }
    return yes(urls.length === 0 ? request : { ...request, complete: completing(request, written, urls) })
  },
}

/** What the bytes for an engine are made of. It lives as long as the stream does, so nothing of the parsed body is in it. */
type Written = {
  readonly body: Body
  readonly inside: number
  readonly model: string
  readonly modelSpan: Span
  /** A stream is asked for its usage, whatever its client has asked for. */
  readonly asksUsage: boolean
  readonly options: ChatSettings['stream_options']
  readonly optionsSpan: Span | undefined
  /** What is the same for every engine. */
  readonly changes: readonly Change[]
}

// Each in a function of its own: closures that are made in one place keep alive whatever any of them needs.
const bytesOf =
  (written: Written): Request['bytesFor'] =>
  (remoteModel, plain = false) => {
    const { body, model, modelSpan } = written
    // Always asked for, since a bill rests on it; shown only to those who asked.
    const options = written.asksUsage ? streamOptions(written.options, plain) : undefined
    if (options === undefined && remoteModel === model) return splice(body, written.changes)
    const changes = [...written.changes]
    if (options !== undefined) changes.push(toChange('stream_options', options, written.optionsSpan, written.inside))
    if (remoteModel !== model) changes.push(toChange('model', remoteModel, modelSpan, written.inside))
    return splice(body, changes)
  }

const completing =
  (request: Request, written: Written, urls: Media['urls']): NonNullable<Request['complete']> =>
  async (exchange) => {
    const brought = await bringImages(urls, exchange)
    if (!brought.ok) return brought
    return yes({ ...request, bytesFor: bytesOf({ ...written, changes: [...written.changes, ...brought.value] }) })
  }

const NO_PLACES: readonly Span[] = []
const mediaPlaces = ({ images, sounds }: Conversation): readonly Span[] =>
  images.length + sounds.length === 0 ? NO_PLACES : [...images, ...sounds].map(({ span }) => span)

/** Fields beside the prompt are shorter than this: settings and a schema. */
const OTHER_BYTES = 4096

/** Where the prompt stands. What we do not know goes to the engine as it came, and may be prompt too (`documents` of vLLM). */
const promptOf = ({ body, spans }: Reading): readonly (Span | undefined)[] => {
  const messages = spans.get('messages')
  const tools = spans.get('tools')
  const others = body.bytes - bytesOfSpan(messages) - bytesOfSpan(tools)
  if (others > OTHER_BYTES) return [{ start: 0, end: body.bytes }]
  return tools === undefined ? [messages] : [messages, tools]
}

const bytesOfSpan = (span: Span | undefined): number => (span === undefined ? 0 : span.end - span.start)

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
  if (hasTools(reading) && !model.features.tools) return cannot(model, 'tools', 'takes no tools')
  const format = settings.response_format?.type ?? 'text'
  if (format !== 'text' && !model.features.structuredOutput) return cannot(model, 'response_format', 'has no structured output')
  const effort = settings.reasoning_effort ?? undefined
  if (effort !== undefined && !isEffort(effort)) {
    return { code: 'field_invalid', field: 'reasoning_effort', reason: `expected one of ${REASONING_EFFORTS.join(', ')}` }
  }
  return undefined
}

const cannot = (model: Model, field: string, what: string): Refusal => ({
  code: 'field_invalid',
  field,
  reason: `the model ${model.name} ${what}`,
})

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

/** What we change in a body for every engine, whatever it calls the model. */
const changesOf = (
  reading: Reading,
  settings: ChatSettings,
  turns: readonly Turn[],
  model: Model,
  defaultTokens: number | undefined,
): readonly Change[] => {
  const changed: Change[] = []
  const { spans, inside } = reading
  const { max_tokens: older, max_completion_tokens: newer } = settings
  if (defaultTokens !== undefined) changed.push(toChange('max_tokens', defaultTokens, spans.get('max_tokens'), inside))
  // Both given: ours to prefer one (data-plane.md 6.1), and an engine that prefers the other must not exceed it.
  else if (typeof older === 'number' && typeof newer === 'number' && older !== newer) {
    changed.push(toChange('max_tokens', newer, spans.get('max_tokens'), inside))
  }
  if (spans.has('n_predict')) changed.push(toChange('n_predict', newer ?? older ?? defaultTokens ?? null, spans.get('n_predict'), inside))
  if (spans.has('n_cmpl')) changed.push(toChange('n_cmpl', settings.n ?? 1, spans.get('n_cmpl'), inside))
  // `developer` is what some clients call `system` (data-plane.md 6.2), and most chat templates do not know it.
  for (const { role, roleSpan } of turns) if (role === 'developer') changed.push({ ...roleSpan, bytes: '"system"' })
  const prompt = toolPrompt(reading, turns, model)
  if (prompt !== undefined) changed.push(prompt)
  const effort = nearestEffort(reading, settings, model)
  if (effort !== undefined) changed.push(effort)
  return changed
}

/** A field that is set: where it stands, or in front of all others. */
const toChange = (key: string, value: unknown, span: Span | undefined, inside: number): Change =>
  span === undefined
    ? { start: inside, end: inside, bytes: `${JSON.stringify(key)}:${JSON.stringify(value)},` }
    : { start: span.start, end: span.end, bytes: JSON.stringify(value) }

/** Tools without a system message: some models then do not know that they have them (data-plane.md 6.5). */
const toolPrompt = (reading: Reading, turns: readonly Turn[], model: Model): Change | undefined => {
  const { toolSystemPrompt } = model.rules
  const messages = reading.spans.get('messages')
  if (toolSystemPrompt === null || messages === undefined || !hasTools(reading)) return undefined
  if (turns.some(({ role }) => role === 'system' || role === 'developer')) return undefined
  const start = messages.start + 1
  return { start, end: start, bytes: `${JSON.stringify({ role: 'system', content: toolSystemPrompt })},` }
}

const isEffort = (text: string): text is ReasoningEffort => (REASONING_EFFORTS as readonly string[]).includes(text)

/** The nearest that the model knows (data-plane.md 6.7), the lesser of two as near; who wants some thinking does not get none. */
const nearestEffort = (reading: Reading, settings: ChatSettings, model: Model): Change | undefined => {
  const span = reading.spans.get('reasoning_effort')
  const asked = settings.reasoning_effort ?? undefined
  const known = model.rules.reasoningEfforts
  if (span === undefined || asked === undefined || !isEffort(asked) || known.length === 0 || known.includes(asked)) return undefined
  const place = REASONING_EFFORTS.indexOf(asked)
  const choice = known.filter((effort) => effort !== 'none')
  const [nearest] = (choice.length === 0 ? known : choice).toSorted(
    (a, b) => Math.abs(REASONING_EFFORTS.indexOf(a) - place) - Math.abs(REASONING_EFFORTS.indexOf(b) - place),
  )
  return { ...span, bytes: JSON.stringify(nearest) }
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
