import { ChatRequest, ChatSettings } from '@parvis/wire/openai/chat'
import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import { type Body, type Change, contains, type Span, slice, splice } from '../body.ts'
import { watch } from '../scan.ts'
import { checkFields, type Endpoint, fieldsOf, mismatch, type Reading, type Request, readBody } from './endpoint.ts'

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
  ],
)

/** Of English text in most vocabularies; data-plane.md 15. */
const BYTES_PER_TOKEN = 4
/** What an image counts for before the engine has counted it: between the 256 and the 4,096 of data-plane.md 15. */
const TOKENS_PER_IMAGE = 1_500
/** What a chat template may add that stands nowhere in the body: its markers, a system prompt, the frame around tools. */
const TEMPLATE_TOKENS = 512

const IMAGE_KEY = Buffer.from('"image_url"')
const DATA_URL = Buffer.from('"data:')

/** `POST /v1/chat/completions` (data-plane.md 6). */
export const chat: Endpoint = {
  name: 'chat.completions',
  path: '/chat/completions',
  enginePath: '/v1/chat/completions',

  read: (body) => readBody(body, WATCHED),

  check(reading, model) {
    if (model.type !== 'chat') return no(mismatch(chat, model))
    const fields = checkedFields(reading)
    if (!fields.ok) return fields
    const settings = fields.value
    // The scanner finds quotes only where they are not escaped, so in text these bytes cannot stand: it is a key or a type of ours.
    const messages = reading.spans.get('messages') ?? NOWHERE
    const images = contains(reading.body, messages, IMAGE_KEY)
    if (images && !model.features.vision) {
      return no({ code: 'field_invalid', field: 'messages', reason: `the model ${model.name} takes no images` })
    }

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
    const limit = asked ?? defaultLimit(reading.body, model, images)
    return yes({
      enginePath: chat.enginePath,
      stream,
      wantsUsage: settings.stream_options?.include_usage === true,
      estimate: {
        inputTokens: Math.min(estimateInput(reading.body, images), model.contextTokens),
        outputTokens: (limit ?? model.maxOutputTokens ?? 0) * (settings.n ?? 1),
      },
      bytesFor: (remoteModel) =>
        splice(reading.body, changes(reading, settings, { remoteModel, stream, limit: asked === undefined ? limit : undefined })),
      answerKey: 'choices',
    } satisfies Request)
  },
}

const NOWHERE: Span = { start: 0, end: 0 }

/** A large body is checked without its messages: they are images mostly, and the engine reads them once more anyway. */
const checkedFields = (reading: Reading): Outcome<ChatSettings> => {
  const fields = fieldsOf(reading)
  if (!fields.ok) return fields
  if (fields.value['messages'] !== undefined || !reading.spans.has('messages')) return checkFields(ChatRequest, fields.value)
  const first = slice(reading.body, reading.spans.get('messages') ?? NOWHERE)[0]
  if (first !== OPEN_BRACKET) return no({ code: 'field_invalid', field: 'messages', reason: 'expected an array' })
  return checkFields(ChatSettings, fields.value)
}

const OPEN_BRACKET = 0x5b
const QUOTE = 0x22

/**
 * A client that sets no limit gets the model's (data-plane.md 6.1: "default: a per-model maximum"). But engines refuse a limit that
 * together with the input exceeds the context, so we set it only where it surely fits: a token takes at least one byte. Where that
 * is not sure (an image by URL weighs far more than its bytes) the engine's own default applies, which is what is left of the context.
 */
const defaultLimit = (body: Body, model: Model, images: boolean): number | undefined => {
  if (model.maxOutputTokens === null || images) return undefined
  return body.bytes + TEMPLATE_TOKENS + model.maxOutputTokens <= model.contextTokens ? model.maxOutputTokens : undefined
}

/** Only to reserve; the engine's count settles it. Base64 is not text, so images are counted apart. */
const estimateInput = (body: Body, images: boolean): number => {
  if (!images) return Math.ceil(body.bytes / BYTES_PER_TOKEN)
  let pictures = 0
  let pictureBytes = 0
  let inside = false // an image is mostly longer than a piece
  for (const piece of body.pieces) {
    let at = 0
    while (at < piece.length) {
      if (!inside) {
        const start = piece.indexOf(DATA_URL, at)
        if (start < 0) break
        pictures += 1
        inside = true
        at = start + DATA_URL.length
        continue
      }
      const end = piece.indexOf(QUOTE, at)
      pictureBytes += (end < 0 ? piece.length : end) - at
      if (end < 0) break
      inside = false
      at = end
    }
  }
  return Math.ceil(Math.max(0, body.bytes - pictureBytes) / BYTES_PER_TOKEN) + pictures * TOKENS_PER_IMAGE
}

const changes = (
  reading: Reading,
  settings: ChatSettings,
  wanted: { remoteModel: string; stream: boolean; limit: number | undefined },
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
  // Always asked for, since a bill rests on it; shown only to those who asked.
  if (wanted.stream && settings.stream_options?.include_usage !== true)
    set('stream_options', { ...settings.stream_options, include_usage: true })
  const renamed = withoutDevelopers(reading)
  if (renamed !== undefined) set('messages', renamed)
  return changed
}

/** `developer` is what some clients call `system` (data-plane.md 6.2), and most chat templates do not know it. */
const withoutDevelopers = (reading: Reading): unknown[] | undefined => {
  const messages = reading.value?.['messages']
  if (!Array.isArray(messages) || !messages.some(isFromDeveloper)) return undefined
  return messages.map((message) => (isFromDeveloper(message) ? { ...message, role: 'system' } : message))
}

const isFromDeveloper = (message: unknown): message is { role: 'developer' } =>
  typeof message === 'object' && message !== null && 'role' in message && message.role === 'developer'
