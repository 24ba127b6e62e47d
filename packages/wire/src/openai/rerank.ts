import { z } from 'zod'

/** The most documents in one call (data-plane.md 10). */
export const MAX_DOCUMENTS = 2048

/** `POST /v1/rerank` without its texts; what else vendors have beside these is ignored (data-plane.md 10). */
export const RerankSettings = z.looseObject({
  model: z.string().min(1),
  top_n: z.int().min(1).nullish(),
})
export type RerankSettings = z.infer<typeof RerankSettings>

/** The whole of it. The texts are read where they stand, since they go on as they came. */
export const RerankRequest = RerankSettings.extend({
  query: z.string().min(1),
  documents: z
    .array(z.union([z.string(), z.looseObject({ text: z.string() })]))
    .min(1)
    .max(MAX_DOCUMENTS),
})

/** What a client gets: the best first, each with its place in the request. */
export const RerankAnswer = z.looseObject({
  id: z.string(),
  model: z.string(),
  usage: z.looseObject({ total_tokens: z.int().nonnegative() }),
  results: z.array(
    z.looseObject({
      index: z.int().nonnegative(),
      document: z.looseObject({ text: z.string() }),
      relevance_score: z.number(),
    }),
  ),
})
export type RerankAnswer = z.infer<typeof RerankAnswer>

/** What is read of an engine that reranks itself: some echo the documents and name their model, some do not. */
export const EngineRerank = z.looseObject({
  usage: z.looseObject({ total_tokens: z.int().nonnegative().nullish(), prompt_tokens: z.int().nonnegative().nullish() }).nullish(),
  results: z.array(z.looseObject({ index: z.int().nonnegative(), relevance_score: z.number() })),
})
