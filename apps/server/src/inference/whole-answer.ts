import type { Model } from '../catalog/model.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Ended } from '../usage/event.ts'
import { type Answer, countedByUs, LEFT_STATUS, NO_COUNTS, NO_ROOM, toCounts, type Verdict } from './answer.ts'
import { addPiece, type Body, bufferToBody, contains, type PartialBody, type Span, slice, splice, toBody } from './body.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Outlet } from './exchange.ts'
import { withBothNames } from './reasoning-names.ts'
import { scan, watch } from './scan.ts'
import { openWords } from './words.ts'

/** 2,048 vectors of 4,096 numbers are about 100 MB as text. */
const MAX_ANSWER_BYTES = 256 * 1024 * 1024

const WATCHED = watch([], ['error', 'usage', 'model', 'choices', 'data', 'results', 'pages', 'output', 'incomplete_details'])
const OPEN_BRACKET = 0x5b
// In JSON text a quote inside a string is escaped, so neither is ever something that a model said.
const AT_LIMIT = /"finish_reason"\s*:\s*"length"/
const LENGTH = Buffer.from('"length"')

/** An answer that is no stream: collected, looked at, and sent as a whole once its usage is on disk. */
export const wholeAnswer = (exchange: Outlet, request: Request, model: Model, remoteModel: string): Answer =>
  new WholeAnswer(exchange, request, model, remoteModel)

/** A class, since each request has one: closures and what they share were 400 bytes more. */
class WholeAnswer implements Answer, PartialBody {
  readonly exchange: Outlet
  readonly request: Request
  readonly model: Model
  readonly remoteModel: string
  pieces: Buffer[] | undefined
  bytes = 0
  small = 0
  smallBytes = 0

  constructor(exchange: Outlet, request: Request, model: Model, remoteModel: string) {
    this.exchange = exchange
    this.request = request
    this.model = model
    this.remoteModel = remoteModel
  }

  data(chunk: Buffer): Verdict | undefined {
    if (this.bytes + chunk.length > MAX_ANSWER_BYTES) {
      return this.failed('its answer is too large', `an answer of more than ${MAX_ANSWER_BYTES} bytes`)
    }
    if (!this.exchange.hold(chunk.length)) return NO_ROOM
    addPiece(this, chunk)
    return undefined
  }

  end(): Verdict {
    const { exchange, request, model, remoteModel } = this
    const body = toBody(this)
    const scanned = scan(body, WATCHED)
    if (!scanned.ok) return this.failed('its answer cannot be read', `an answer that is not JSON: ${scanned.refusal}`)
    const { spans } = scanned.value
    const error = textOf(body, spans.get('error'))
    if (error !== undefined && error !== 'null') return this.failed('it reported an error', 'an error inside an answer of status 200')
    const content = spans.get(request.answerKey)
    if (content === undefined || !beginsArray(body, content)) {
      return this.failed('its answer is of another kind', `an answer without an array "${request.answerKey}"`)
    }
    const isChat = request.answerKey === 'choices'
    const atLimit = isChat
      ? holdsLength(body, content) && AT_LIMIT.test(slice(body, content).toString('latin1'))
      : textOf(body, spans.get('incomplete_details'))?.includes('"max_output_tokens"') === true
    const usage = textOf(body, spans.get('usage'))
    const counts = request.countsOf === undefined ? toCounts(usage === undefined ? undefined : toValue(usage)) : request.countsOf(body)
    const name = spans.get('model')
    const named =
      name === undefined || remoteModel === model.name
        ? body
        : splice(body, [{ start: name.start, end: name.end, bytes: Buffer.from(JSON.stringify(model.name)) }])
    const both =
      isChat && model.features.reasoning
        ? bufferToBody(Buffer.from(withBothNames(slice(named, { start: 0, end: named.bytes }).toString('latin1')), 'latin1'))
        : named
    const converted = request.convert === undefined ? both : request.convert(both, exchange)
    if (converted === undefined) return this.failed('its answer cannot be read', 'an answer that cannot be converted')
    return {
      ending: {
        counts: counts ?? NO_COUNTS,
        counted: counts ? 'engine' : 'none',
        ended: atLimit ? 'length' : 'complete',
        status: 200,
        words: counts ? undefined : wordsOf(body),
        finish: () => exchange.answer(200, converted),
      },
    }
  }

  broken(how: Exclude<Ended, 'complete'>, refusal: Refusal): Verdict {
    if (how !== 'client_left') return { refusal }
    // Nobody was told anything, but an engine has worked. What it has made by then only it knows.
    const { counts, counted } = countedByUs(this.request, 0)
    return { ending: { counts, counted, ended: how, status: LEFT_STATUS, words: undefined, finish: () => {} } }
  }

  failed(reason: string, log: string): Verdict {
    return { refusal: { code: 'engine_failed', model: this.model.name, reason }, log }
  }
}

/** A look into the one piece that nearly every answer is costs half a microsecond less than a view of it. */
const textOf = (body: Body, span: Span | undefined): string | undefined =>
  span && (onlyPiece(body)?.toString('utf8', span.start, span.end) ?? slice(body, span).toString())

const beginsArray = (body: Body, { start }: Span): boolean =>
  (onlyPiece(body)?.[start] ?? slice(body, { start, end: start + 1 })[0]) === OPEN_BRACKET

const holdsLength = (body: Body, content: Span): boolean => {
  const only = onlyPiece(body)
  if (only === undefined) return contains(body, content, LENGTH)
  const at = only.indexOf(LENGTH, content.start)
  return at >= 0 && at < content.end
}

const onlyPiece = ({ pieces }: Body): Buffer | undefined => (pieces.length === 1 ? pieces[0] : undefined)

const wordsOf = (body: Body) => (): readonly string[] | undefined => {
  const words = openWords()
  words.add(toValue(Buffer.concat(body.pieces).toString()) as Record<string, unknown> | undefined)
  return words.all()
}

const toValue = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
