import { EmbeddingsAnswer } from '@parvis/wire/openai/embeddings'
import { EngineRerank, MAX_DOCUMENTS, RerankSettings } from '@parvis/wire/openai/rerank'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import type { Counts } from '../../usage/event.ts'
import { NO_COUNTS } from '../answer.ts'
import { type Body, piecesToBody, type Span, slice } from '../body.ts'
import type { Exchange } from '../exchange.ts'
import { guessUnseen, mixOf, plus } from '../guess.ts'
import { read, watch } from '../scan.ts'
import { dot, toFloats } from '../vectors.ts'
import { checkFields, type Endpoint, fieldsOf, mismatch, parse, type Reading, type Request, readBody } from './endpoint.ts'

const WATCHED = watch(['model', 'query', 'documents', 'top_n'])

/**
 * `POST /v1/rerank` (data-plane.md 10). With a rerank model it is the engine's own; with an embedding model it is a convenience: the
 * vectors of the query and the documents in one call, and the dot products are the scores.
 */
export const rerank: Endpoint = {
  name: 'rerank',
  path: '/rerank',
  enginePath: '/v1/rerank',

  read: (body) => readBody(body, WATCHED),

  check(reading, model, guess = guessUnseen) {
    if (model.type !== 'rerank' && model.type !== 'embedding') return no(mismatch(rerank, model))
    const settings = checkFields(RerankSettings, settingsOf(reading))
    if (!settings.ok) return settings
    const texts = readTexts(reading)
    if (!texts.ok) return texts
    const ranking: Ranking = { body: reading.body, ...texts.value, topN: settings.value.top_n ?? undefined, model: model.name }
    // A rerank model reads the query beside each document, an embedding model once.
    const times = model.type === 'rerank' ? ranking.documents.length : 1
    const mix = plus(mixOf(reading.body, ranking.documents), mixOf(reading.body, [ranking.query]), times)
    const { tokens, least, most } = guess(model.name, mix)
    return yes({
      ...requestFor(ranking, model.type),
      estimate: { inputTokens: tokens, outputTokens: 0, guessed: { least, most, mix } },
    })
  },
}

type Texts = { readonly query: Span; readonly documents: readonly Span[] }
type Ranking = Texts & { readonly body: Body; readonly topN: number | undefined; readonly model: string }

const settingsOf = (reading: Reading): Record<string, unknown> => {
  const fields = fieldsOf({ ...reading, spans: new Map([...reading.spans].filter(([key]) => key === 'model' || key === 'top_n')) })
  return fields.ok ? fields.value : {}
}

const QUOTE = 0x22
const OPEN_BRACE = 0x7b
const OPEN_BRACKET = 0x5b
const QUOTES_BYTES = 2
const NOWHERE: Span = { start: 0, end: 0 }

/** Where the texts stand. They go to the engine and back to the client as they came. */
const readTexts = (reading: Reading): Outcome<Texts> => {
  let wrong: Refusal | undefined
  const invalid = (field: string, reason: string): Span => {
    wrong ??= { code: 'field_invalid', field, reason }
    return NOWHERE
  }
  const documents: Span[] = []
  const query = reading.spans.get('query')
  const list = reading.spans.get('documents')
  const first = (span: Span): number | undefined => slice(reading.body, { start: span.start, end: span.start + 1 })[0]
  if (query === undefined || first(query) !== QUOTE || query.end - query.start <= QUOTES_BYTES) {
    invalid('query', 'expected a string that is not empty')
  }
  if (list === undefined || first(list) !== OPEN_BRACKET) invalid('documents', 'expected an array')
  if (wrong !== undefined || query === undefined || list === undefined) return no(wrong ?? { code: 'model_missing' })

  const walked = read(reading.body, list.start, (cursor) => {
    const text = (field: string): Span => {
      const isText = cursor.peek() === QUOTE
      const span = cursor.take()
      return isText && span.end - span.start > QUOTES_BYTES ? span : invalid(field, 'expected a string that is not empty')
    }
    for (let place = 0; cursor.element(place); place += 1) {
      if (place === MAX_DOCUMENTS) invalid('documents', `expected at most ${MAX_DOCUMENTS} documents`)
      if (cursor.peek() !== OPEN_BRACE) {
        documents.push(text(`documents[${place}]`))
        continue
      }
      // As other vendors write it.
      let inside: Span | undefined
      for (let member = 0; cursor.member(member); member += 1) {
        if (cursor.key === 'text') inside = text(`documents[${place}].text`)
        else cursor.skip()
      }
      documents.push(inside ?? invalid(`documents[${place}]`, 'expected a string or an object with a text'))
    }
  })
  if (!walked.ok) return no({ code: 'body_not_json', reason: walked.refusal })
  if (documents.length === 0) invalid('documents', 'expected at least one document')
  return wrong === undefined ? yes({ query, documents }) : no(wrong)
}

const requestFor = (ranking: Ranking, type: 'rerank' | 'embedding'): Omit<Request, 'estimate'> => ({
  enginePath: type === 'rerank' ? '/v1/rerank' : '/v1/embeddings',
  stream: false,
  wantsUsage: false,
  bytesFor: (remoteModel) => (type === 'rerank' ? rerankBody(ranking, remoteModel) : embeddingsBody(ranking, remoteModel)),
  answerKey: type === 'rerank' ? 'results' : 'data',
  countsOf: totalTokens,
  ...(type === 'rerank' ? {} : { fieldOf: fieldOfInput }),
  convert(answer, exchange) {
    const parsed = parse(slice(answer, { start: 0, end: answer.bytes }))
    if (!parsed.ok) return undefined
    const scores = type === 'rerank' ? scoresOf(parsed.value, ranking) : dotProducts(parsed.value, ranking)
    return scores === undefined ? undefined : toAnswer(ranking, scores, totalTokens(answer)?.input ?? 0, exchange)
  },
})

/** Text, and texts of the request as they stand there, with commas between them. */
const bodyOf = (...parts: readonly (string | Buffer)[]): Body => {
  const pieces = parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part))
  return piecesToBody(
    pieces,
    pieces.reduce((sum, piece) => sum + piece.length, 0),
  )
}

const listOf = (body: Body, spans: readonly Span[]): (string | Buffer)[] =>
  spans.flatMap((span, place) => (place === 0 ? [slice(body, span)] : [',', slice(body, span)]))

/** Without `top_n`: an engine may count it otherwise, and cutting is ours. */
const rerankBody = ({ body, query, documents }: Ranking, remoteModel: string): Body =>
  bodyOf(`{"model":${JSON.stringify(remoteModel)},"query":`, slice(body, query), ',"documents":[', ...listOf(body, documents), ']}')

const embeddingsBody = ({ body, query, documents }: Ranking, remoteModel: string): Body =>
  bodyOf(`{"model":${JSON.stringify(remoteModel)},"encoding_format":"base64","input":[`, ...listOf(body, [query, ...documents]), ']}')

/** What the engine calls an input: the query is the first. */
const INPUT = /^input(?:\.|\[)(\d+)\]?$/
const fieldOfInput = (param: string): string => {
  const place = INPUT.exec(param)?.[1]
  if (place === undefined) return param
  return place === '0' ? 'query' : `documents[${Number(place) - 1}]`
}

/** The counts of an engine that says only the total, or only the input: here they are the same. */
const totalTokens = (answer: Body): Counts | undefined => {
  const usage = read(answer, 0, (cursor) => {
    let found: unknown
    for (let place = 0; cursor.member(place); place += 1) {
      if (cursor.key === 'usage') {
        const parsed = parse(slice(answer, cursor.take()))
        if (parsed.ok) found = parsed.value
      } else cursor.skip()
    }
    return found
  })
  const told = EngineRerank.shape.usage.safeParse(usage.ok ? usage.value : undefined)
  const tokens = told.success ? (told.data?.total_tokens ?? told.data?.prompt_tokens) : undefined
  return typeof tokens === 'number' ? { ...NO_COUNTS, input: tokens } : undefined
}

type Scored = { readonly index: number; readonly score: number }

const scoresOf = (answer: unknown, { documents }: Ranking): Scored[] | undefined => {
  const read = EngineRerank.safeParse(answer)
  if (!read.success) return undefined
  const scored = read.data.results.map(({ index, relevance_score: score }) => ({ index, score }))
  const places = new Set(scored.map(({ index }) => index))
  return places.size === documents.length && scored.length === documents.length && scored.every(({ index }) => index < documents.length)
    ? scored
    : undefined
}

const dotProducts = (answer: unknown, { documents }: Ranking): Scored[] | undefined => {
  const read = EmbeddingsAnswer.safeParse(answer)
  if (!read.success || read.data.data.length !== documents.length + 1) return undefined
  const vectors = read.data.data
    .toSorted((a, b) => a.index - b.index)
    .map(({ embedding }) => (typeof embedding === 'string' ? toFloats(embedding) : embedding))
  const [query, ...others] = vectors
  if (query === undefined || others.some((vector) => vector.length !== query.length)) return undefined
  return others.map((vector, index) => ({ index, score: withoutRounding(dot(query, vector)) }))
}

/** What 32-bit vectors of length 1 can be off by. Those of an engine that makes other lengths have other scores, which stay. */
const ROUNDING = 1e-4
const withoutRounding = (score: number): number => (Math.abs(score) > 1 && Math.abs(score) < 1 + ROUNDING ? Math.sign(score) : score)

const toAnswer = (ranking: Ranking, scores: readonly Scored[], tokens: number, exchange: Pick<Exchange, 'id'>): Body => {
  const best = scores.toSorted((a, b) => b.score - a.score || a.index - b.index).slice(0, ranking.topN)
  const results = best.flatMap(({ index, score }, place) => [
    `${place === 0 ? '' : ','}{"index":${index},"document":{"text":`,
    slice(ranking.body, ranking.documents[index] ?? NOWHERE),
    `,"multi_modal":null},"relevance_score":${JSON.stringify(score)}}`,
  ])
  const head = { id: `rerank-${exchange.id.replaceAll('-', '')}`, model: ranking.model, usage: { total_tokens: tokens } }
  return bodyOf(`${JSON.stringify(head).slice(0, -1)},"results":[`, ...results, ']}')
}
