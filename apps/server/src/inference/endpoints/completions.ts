import { CompletionRequest, CompletionSettings } from '@parvis/wire/openai/completions'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import { type Change, splice } from '../body.ts'
import { guessUnseen, mixOf } from '../guess.ts'
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
  ['model', 'prompt', 'stream', 'stream_options', 'max_tokens', 'n', 'best_of'],
  ['temperature', 'top_p', 'presence_penalty', 'frequency_penalty', 'stop', ...LLAMA_NAMES],
)

/** OpenAI's own default for this endpoint, which clients rely on. It is always said, since llama.cpp goes on for ever without one. */
const DEFAULT_OUTPUT_TOKENS = 16

/** `POST /v1/completions` (data-plane.md 7): older, and still what code editors complete with. The engine's own, passed through. */
export const completions: Endpoint = {
  name: 'completions',
  path: '/completions',
  enginePath: '/v1/completions',

  read: (body) => readBody(body, WATCHED),

  check(reading, model, guess = guessUnseen) {
    if (model.type !== 'chat') return no(mismatch(completions, model))
    const checked = checkedFields(reading)
    if (!checked.ok) return checked
    const { settings, prompts } = checked.value

    const asked = settings.max_tokens ?? undefined
    if (asked !== undefined && model.maxOutputTokens !== null && asked > model.maxOutputTokens) {
      return no({ code: 'output_limit', field: 'max_tokens', asked, maximum: model.maxOutputTokens })
    }
    const total = prompts.longest + (asked ?? 0)
    if (prompts.longest >= model.contextTokens || total > model.contextTokens) {
      return no({ code: 'context_exceeded', asked: Math.max(total, prompts.longest + 1), maximum: model.contextTokens })
    }

    const stream = settings.stream === true
    const mix = mixOf(reading.body, [reading.spans.get('prompt')])
    const input = guess(model.name, mix)
    const limit = asked ?? Math.min(DEFAULT_OUTPUT_TOKENS, model.contextTokens - prompts.longest)
    const answers = Math.max(settings.n ?? 1, settings.best_of ?? 1) * prompts.count
    return yes({
      enginePath: completions.enginePath,
      stream,
      wantsUsage: settings.stream_options?.include_usage === true,
      wantsRunningUsage: settings.stream_options?.['continuous_usage_stats'] === true,
      answers: (settings.n ?? 1) * prompts.count,
      estimate: {
        inputTokens: prompts.tokens > 0 ? prompts.tokens : input.tokens,
        outputTokens: limit * answers,
        ...(prompts.tokens > 0 ? {} : { guessed: { least: input.least, most: input.most, mix } }),
      },
      bytesFor: (remoteModel, plain = false) => splice(reading.body, changes(reading, settings, { remoteModel, plain, stream, limit })),
      lean: true,
      answerKey: 'choices',
    } satisfies Request)
  },
}

/** How many prompts there are, and what the longest and all together weigh in tokens: at least one each, and exactly where they came as tokens. */
type Prompts = { readonly count: number; readonly longest: number; readonly tokens: number }

const checkedFields = (reading: Reading): Outcome<{ settings: CompletionSettings; prompts: Prompts }> => {
  const fields = fieldsOf(reading)
  if (!fields.ok) return fields
  if (fields.value['prompt'] === undefined && reading.spans.has('prompt')) {
    // Too large to be parsed here: the engine counts and checks it.
    const settings = checkFields(CompletionSettings, fields.value)
    return settings.ok ? yes({ settings: settings.value, prompts: { count: 1, longest: 1, tokens: 0 } }) : settings
  }
  const request = checkFields(CompletionRequest, fields.value)
  return request.ok ? yes({ settings: request.value, prompts: toPrompts(request.value.prompt) }) : request
}

const toPrompts = (prompt: CompletionRequest['prompt']): Prompts => {
  if (!Array.isArray(prompt)) return { count: 1, longest: 1, tokens: 0 }
  if (typeof prompt[0] === 'number') return { count: 1, longest: prompt.length, tokens: prompt.length }
  const lengths = prompt.map((one) => (Array.isArray(one) ? one.length : 0))
  return { count: prompt.length, longest: Math.max(1, ...lengths), tokens: lengths.reduce((sum, length) => sum + length, 0) }
}

const changes = (
  reading: Reading,
  settings: CompletionSettings,
  wanted: { remoteModel: string; plain: boolean; stream: boolean; limit: number },
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
  const { limit } = wanted
  if (settings.max_tokens !== limit) set('max_tokens', limit)
  if (reading.spans.has('n_predict')) set('n_predict', limit)
  if (reading.spans.has('n_cmpl')) set('n_cmpl', settings.n ?? 1)
  // Always asked for, since a bill rests on it; shown only to those who asked.
  const options = wanted.stream ? streamOptions(settings.stream_options, wanted.plain) : undefined
  if (options !== undefined) set('stream_options', options)
  return changed
}
