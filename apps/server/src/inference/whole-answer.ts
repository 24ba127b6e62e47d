import type { Model } from '../catalog/model.ts'
import { type Answer, countedByUs, LEFT_STATUS, NO_COUNTS, toCounts, type Verdict } from './answer.ts'
import { type Body, bufferToBody, contains, piecesToBody, slice, splice } from './body.ts'
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
export const wholeAnswer = (exchange: Outlet, request: Request, model: Model, remoteModel: string): Answer => {
  const pieces: Buffer[] = []
  let bytes = 0

  const failed = (reason: string, log: string): Verdict => ({ refusal: { code: 'engine_failed', model: model.name, reason }, log })

  return {
    data(chunk) {
      bytes += chunk.length
      if (bytes > MAX_ANSWER_BYTES) return failed('its answer is too large', `an answer of more than ${MAX_ANSWER_BYTES} bytes`)
      if (!exchange.hold(chunk.length)) {
        return {
          refusal: { code: 'busy', reason: 'too many large answers are in flight', retryAfterMs: 1_000 },
          log: 'no room for the answer',
        }
      }
      pieces.push(chunk)
      return undefined
    },

    end() {
      const body = piecesToBody(pieces, bytes)
      const scanned = scan(body, WATCHED)
      if (!scanned.ok) return failed('its answer cannot be read', `an answer that is not JSON: ${scanned.refusal}`)
      const { spans } = scanned.value
      const textOf = (key: string): string | undefined => {
        const span = spans.get(key)
        return span && slice(body, span).toString()
      }
      const error = textOf('error')
      if (error !== undefined && error !== 'null') return failed('it reported an error', 'an error inside an answer of status 200')
      const content = spans.get(request.answerKey)
      if (content === undefined || slice(body, { start: content.start, end: content.start + 1 })[0] !== OPEN_BRACKET) {
        return failed('its answer is of another kind', `an answer without an array "${request.answerKey}"`)
      }
      const isChat = request.answerKey === 'choices'
      const atLimit = isChat
        ? contains(body, content, LENGTH) && AT_LIMIT.test(slice(body, content).toString('latin1'))
        : textOf('incomplete_details')?.includes('"max_output_tokens"') === true
      const usage = textOf('usage')
      const counts = request.countsOf === undefined ? toCounts(usage === undefined ? undefined : toValue(usage)) : request.countsOf(body)
      const name = spans.get('model')
      const named =
        name === undefined || remoteModel === model.name
          ? body
          : splice(body, [{ ...name, bytes: Buffer.from(JSON.stringify(model.name)) }])
      const both =
        isChat && model.features.reasoning
          ? bufferToBody(Buffer.from(withBothNames(slice(named, { start: 0, end: named.bytes }).toString('latin1')), 'latin1'))
          : named
      const converted = request.convert === undefined ? both : request.convert(both, exchange)
      if (converted === undefined) return failed('its answer cannot be read', 'an answer that cannot be converted')
      return {
        ending: {
          counts: counts ?? NO_COUNTS,
          counted: counts ? 'engine' : 'none',
          ended: atLimit ? 'length' : 'complete',
          status: 200,
          words: counts ? undefined : () => wordsIn(body),
          finish: () => exchange.answer(200, converted),
        },
      }
    },

    broken: (how, refusal) =>
      // Nobody was told anything, but an engine has worked. What it has made by then only it knows.
      how === 'client_left' ? { ending: { ...countedByUs(request, 0), ended: how, status: LEFT_STATUS, finish: () => {} } } : { refusal },
  }
}

const wordsIn = (body: Body): readonly string[] | undefined => {
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
