import type { Counters } from '../counters.ts'
import { embed, readInputs } from '../embed.ts'
import type { Engine, Exchange } from '../exchange.ts'
import type { Loaded, RerankModel } from '../llama/model.ts'
import { refuseFarTooLong } from '../plan.ts'
import { contextExceeded, no, type Outcome, type Refusal, yes } from '../refusal.ts'
import { RerankRequest, readBody } from '../schema.ts'
import { cosine } from '../vectors.ts'

type Scored = { readonly scores: readonly number[]; readonly tokens: number }
type Work = (counters: Counters, signal: AbortSignal) => Promise<Scored | undefined>

/** A cross-encoder reads the query and one document together; its score is the sigmoid of what it puts out. */
const crossEncoder = (loaded: Loaded, model: RerankModel, query: string, documents: readonly string[]): Outcome<Work> => {
  const lengths: number[] = []
  for (const [index, document] of documents.entries()) {
    const place = `documents[${index}]`
    const tooLong = refuseFarTooLong(query, loaded.contextTokens, 'query') ?? refuseFarTooLong(document, loaded.contextTokens, place)
    if (tooLong !== undefined) return no(tooLong)
    const count = model.context.calculateInputLength(query, document)
    if (count > loaded.contextTokens) return no(contextExceeded(count, loaded.contextTokens, place))
    lengths.push(count)
  }
  return yes(async (counters, signal) => {
    const scores: number[] = []
    for (const [index, document] of documents.entries()) {
      if (signal.aborted) return undefined
      scores.push(await model.context.rank(query, document))
      counters.read(lengths[index] ?? 0)
    }
    return { scores, tokens: lengths.reduce((sum, count) => sum + count, 0) }
  })
}

/** With an embedding model the score is the dot product of the two vectors, as the documented service has it. */
const byVectors = (loaded: Loaded, query: string, documents: readonly string[]): Outcome<Work> => {
  if (loaded.serves.type !== 'embedding') throw new Error('vectors need an embedding model')
  const model = loaded.serves
  const first = readInputs(loaded, model, [query], 'query')
  if (!first.ok) return first
  const others = readInputs(loaded, model, documents, 'documents')
  if (!others.ok) return others
  return yes(async (counters, signal) => {
    const made = await embed(model, [...first.value, ...others.value], counters, signal)
    const [queryVector, ...vectors] = made?.vectors ?? []
    if (made === undefined || queryVector === undefined) return undefined
    return { scores: vectors.map((vector) => cosine(queryVector, vector)), tokens: made.tokens }
  })
}

/** `POST /v1/rerank` (data-plane.md 10). */
export const rerank = async (engine: Engine, exchange: Exchange): Promise<void> => {
  const { loaded, options, counters } = engine
  const { serves } = loaded
  if (serves.type === 'chat') throw new Error('the rerank route needs a rerank or embedding model')
  const request = readBody(RerankRequest, exchange.body)
  if (!request.ok) return exchange.refuse(request.refusal)
  const { query } = request.value
  const documents = request.value.documents.map((document) => (typeof document === 'string' ? document : document.text))
  const refuse = (refusal: Refusal): void => exchange.refuse(refusal)
  const work = serves.type === 'rerank' ? crossEncoder(loaded, serves, query, documents) : byVectors(loaded, query, documents)
  if (!work.ok) return refuse(work.refusal)

  const lease = await serves.slots.take(exchange.tenant, [], exchange.signal)
  if (!lease.ok) return refuse(lease.refusal)
  try {
    const scored = await work.value(counters, exchange.signal)
    counters.ended(scored === undefined ? 'abort' : 'stop')
    if (scored === undefined) return
    const results = documents
      .map((text, index) => ({ index, document: { text, multi_modal: null }, relevance_score: scored.scores[index] ?? 0 }))
      .sort((a, b) => b.relevance_score - a.relevance_score || a.index - b.index)
      .slice(0, request.value.top_n ?? documents.length)
    exchange.answer({
      id: `rerank-${exchange.requestId.replaceAll('-', '')}`,
      model: options.name,
      usage: { total_tokens: scored.tokens },
      results,
    })
  } finally {
    lease.value.leave()
  }
}
