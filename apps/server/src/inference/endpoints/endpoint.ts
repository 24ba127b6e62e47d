import { isUtf8 } from 'node:buffer'
import type { z } from 'zod'
import type { Model } from '../../catalog/model.ts'
import type { EngineDialect } from '../../engines/replica.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import type { Counts } from '../../usage/event.ts'
import type { Answer } from '../answer.ts'
import { type Body, JOIN_BYTES, type Span, slice } from '../body.ts'
import type { Translator } from '../dialects/translator.ts'
import type { Accepts, Dialect, Exchange } from '../exchange.ts'
import type { Guess, GuessTokens, Mix } from '../guess.ts'
import { scan, type Watch } from '../scan.ts'

/** One endpoint of the data plane that an engine answers. */
export type Endpoint<R extends Reading = Reading> = {
  /** Stands in usage events. */
  readonly name: string
  /** What a client calls, and what we call at the engine: the path behind the base, without `/v1`. */
  readonly path: string
  readonly enginePath: string
  /** How refusals are worded and the key is sent, where that is not OpenAI's way. */
  readonly dialect?: Dialect
  /** The bodies it takes; JSON where nothing else is said. */
  readonly accepts?: Accepts
  /** From bytes to the model that is meant: broken JSON is 400, no model 422 (data-plane.md 3.2). */
  read(body: Body, contentType?: string): Outcome<R>
  /** What the model makes of the request: the wrong endpoint, a wrong field, more output than there is. */
  check(reading: R, model: Model, guess?: GuessTokens): Outcome<Request>
}

/** One whose body takes longer to read than a look at its bytes. */
export type FormEndpoint<R extends Reading> = Omit<Endpoint<R>, 'read'> & {
  read(body: Body, contentType?: string): Promise<Outcome<R>>
}

/** A body of which we know the model and where the fields stand that we act on. */
export type Reading = {
  readonly model: string
  readonly body: Body
  readonly spans: ReadonlyMap<string, Span>
  /** Where a field can be inserted. */
  readonly inside: number
  /** The parsed body, where it is small enough to be parsed; of a chat without what stands in long strings of its messages. */
  readonly value: Record<string, unknown> | undefined
}

/** A request that may go to an engine. */
export type Request = {
  readonly enginePath: string
  readonly stream: boolean
  /** The client asked for usage in the stream; otherwise the event that carries nothing else is kept from it. */
  readonly wantsUsage: boolean
  /** And in every event of it; otherwise what stands there beside words is for us alone. */
  readonly wantsRunningUsage?: boolean
  /** How many answers come side by side, where it is not one. */
  readonly answers?: number
  /** `outputTokens` is the most that can come; 0 where nothing is generated. */
  readonly estimate: {
    readonly inputTokens: number
    readonly outputTokens: number
    readonly audioSeconds?: number
    /** The most that a document may have. */
    readonly pages?: number
    /** Where the input is guessed: by what, and between which bounds it is. */
    readonly guessed?: (Pick<Guess, 'least' | 'most'> & { readonly mix: Mix }) | undefined
  }
  /**
   * The bytes for an engine that knows the model by this name. `plain`: without our asking for running usage, which this one refuses. The relay puts `gone` in
   * its place once nobody can need them: of a stream they are most of what is kept.
   */
  bytesFor: (remoteModel: string, plain?: boolean) => Body
  /** Nothing but `bytesFor` keeps what the client sent: whoever lets go of that has freed all of it, and gives back its share of the memory for bodies. */
  readonly lean?: boolean
  /** What these bytes are; JSON where nothing else is said. */
  readonly contentType?: string
  /** What becomes of the answer, where that is neither chat's stream nor an object with an array in it. */
  openAnswer?(exchange: Exchange, at: { readonly remoteModel: string; spend(outputTokens: number): void }): Answer
  /** The same for an engine that speaks the dialect it came in: as it came, and not as a chat. */
  readonly native?: { readonly dialect: EngineDialect; readonly request: Request }
  /** What a whole answer must have at its top level, as an array. */
  readonly answerKey: string
  /** What the client calls a field that the engine has named, where it was we who wrote the body. */
  fieldOf?(param: string): string
  /** Turns a whole answer into what was asked for, where the engine could not. Undefined: it is no such answer. */
  convert?(answer: Body, exchange: Pick<Exchange, 'id' | 'acceptedAt'>): Body | undefined
  /** Writes a streamed answer in another dialect than the engine's. */
  translate?(exchange: Pick<Exchange, 'id' | 'acceptedAt'>): Translator
  /** What a whole answer of this kind counts, where its usage is not written as tokens. */
  countsOf?(answer: Body): Counts | undefined
  /** What we have counted ourselves, beside the engine's tokens. */
  readonly measured?: Pick<Counts, 'images'> | undefined
  /** Brings what the request points at: an engine never fetches, since it would not look where to. Admitted, and not yet seated. */
  complete?(exchange: Pick<Exchange, 'fetch'>): Promise<Outcome<Request>>
}

/** In the place of bytes that were let go. To ask for them is a mistake of ours. */
export const gone = (): never => {
  throw new Error('the bytes of this request were let go')
}

const MAX_NAME_CHARACTERS = 256

/**
 * llama.cpp's own names for the limit of output and for how many answers are wanted. There they win over OpenAI's, so a client that
 * sends both would get more than was checked and reserved: they are made to say the same.
 */
export const LLAMA_NAMES = ['n_predict', 'n_cmpl'] as const

export const readBody = (body: Body, watched: Watch): Outcome<Reading> => {
  const scanned = scan(body, watched)
  if (!scanned.ok) return no({ code: 'body_not_json', reason: scanned.refusal })
  const { spans, inside, long } = scanned.value
  const value = body.bytes <= JOIN_BYTES ? parse(slice(body, { start: 0, end: body.bytes }), long) : yes(undefined)
  if (!value.ok) return value

  const span = spans.get('model')
  if (span === undefined) return no({ code: 'model_missing' })
  // The scanner has seen that the body is an object, with one model.
  const fields = value.value as Record<string, unknown> | undefined
  const parsed = fields === undefined ? parse(slice(body, span)) : undefined
  if (parsed?.ok === false) return parsed
  const model = parsed === undefined ? fields?.['model'] : parsed.value
  if (model === null) return no({ code: 'model_missing' })
  if (typeof model !== 'string') return no({ code: 'field_invalid', field: 'model', reason: 'expected a string' })
  if (model.length > MAX_NAME_CHARACTERS) return no({ code: 'model_unknown', model: `${model.slice(0, MAX_NAME_CHARACTERS)}…` })
  return yes({ model, body, spans, inside, value: fields })
}

/** `long`: strings that nobody reads here. They become a space each, and what is wrong inside them the engine says, as of a body that is too large to be parsed. */
export const parse = (bytes: Buffer, long: readonly Span[] = []): Outcome<unknown> => {
  try {
    return yes(JSON.parse(long.length > 0 && isUtf8(bytes) ? textAround(bytes, long) : utf8.decode(bytes)))
  } catch (error) {
    // The place that is told is one in the text as it came.
    if (long.length > 0) return parse(bytes)
    // What V8 quotes is the caller's own text, and it goes to the caller only.
    return no({ code: 'body_not_json', reason: error instanceof Error ? error.message : 'it cannot be parsed' })
  }
}

const textAround = (bytes: Buffer, long: readonly Span[]): string => {
  let text = ''
  let at = 0
  for (const { start, end } of long) {
    text += `${bytes.toString('utf8', at, start)} `
    at = end
  }
  return text + bytes.toString('utf8', at)
}

// Strict: an engine refuses what is not UTF-8, and an answer to a guess would be worth nothing.
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/**
 * The watched fields of a body that is too large to be parsed. A field that is itself too large to be parsed is left to the
 * engine, which checks it anyway.
 */
export const fieldsOf = (reading: Reading): Outcome<Record<string, unknown>> => {
  if (reading.value !== undefined) return yes(reading.value)
  const fields: Record<string, unknown> = {}
  for (const [key, span] of reading.spans) {
    if (span.end - span.start > JOIN_BYTES) continue
    const value = parse(slice(reading.body, span))
    if (!value.ok) return value
    fields[key] = value.value
  }
  return yes(fields)
}

export const checkFields = <T>(schema: z.ZodType<T>, fields: unknown): Outcome<T> => {
  const checked = schema.safeParse(fields)
  if (checked.success) return yes(checked.data)
  const [issue] = checked.error.issues
  const reason = (issue?.message ?? 'it cannot be read').replace(/^Invalid input: /, '')
  return no({ code: 'field_invalid', field: pathToField(issue?.path ?? []), reason: reason.charAt(0).toLowerCase() + reason.slice(1) })
}

/** `messages[0].content`, as a person would write it. */
const pathToField = (path: readonly PropertyKey[]): string =>
  path.map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index === 0 ? '' : '.'}${String(step)}`)).join('')

/**
 * What we ask of a stream: its usage at the end and with every event, since a stream may be broken off anywhere and a bill rests on what
 * was counted until then. vLLM and ours give both; others give the first and ignore what they do not know. Undefined: as the client has it.
 */
export const streamOptions = (asked: StreamOptions, plain: boolean): StreamOptions | undefined => {
  const running = plain || asked?.['continuous_usage_stats'] === true
  if (asked?.include_usage === true && running) return undefined
  return { ...asked, include_usage: true, ...(running ? {} : { continuous_usage_stats: true }) }
}

type StreamOptions = { readonly include_usage?: boolean | null | undefined; readonly [option: string]: unknown } | null | undefined

export const mismatch = (endpoint: { readonly path: string }, model: Model): Refusal => ({
  code: 'endpoint_mismatch',
  model: model.name,
  endpoint: `/v1${endpoint.path}`,
  serves: model.type,
})
