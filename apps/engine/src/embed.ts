import type { Token } from 'node-llama-cpp'
import type { Counters } from './counters.ts'
import type { EmbeddingModel, Loaded } from './llama/model.ts'
import { refuseFarTooLong } from './plan.ts'
import { contextExceeded, fieldInvalid, no, type Outcome, yes } from './refusal.ts'
import { normalize } from './vectors.ts'

export type Input = { readonly tokens: readonly number[]; readonly field: string }

/** Reads texts or token lists as tokens, each with what the model puts around it, and refuses what does not fit whole. */
export const readInputs = (
  loaded: Loaded,
  embedding: EmbeddingModel,
  inputs: readonly (string | number[])[],
  field: string,
): Outcome<Input[]> => {
  const { vocabulary, contextTokens } = loaded
  const read: Input[] = []
  for (const [index, input] of inputs.entries()) {
    const place = `${field}[${index}]`
    if (input.length === 0) return no(fieldInvalid(place, 'it is empty'))
    const tooLong = typeof input === 'string' ? refuseFarTooLong(input, contextTokens, place) : undefined
    if (tooLong !== undefined) return no(tooLong)
    const strange = typeof input === 'string' ? undefined : input.find((token) => token >= vocabulary.size)
    if (strange !== undefined) return no(fieldInvalid(place, `there is no token ${strange}`))
    const tokens = typeof input === 'string' ? vocabulary.tokenize(input, false) : input
    const count = embedding.context.calculateInputLength(tokens as Token[])
    if (count === 0) return no(fieldInvalid(place, 'it has no tokens'))
    if (count > contextTokens) return no(contextExceeded(count, contextTokens, place))
    read.push({ tokens, field: place })
  }
  return yes(read)
}

/** Vectors of length 1, in the order of the inputs; undefined when the caller has left meanwhile. */
export const embed = async (embedding: EmbeddingModel, inputs: readonly Input[], counters: Counters, signal: AbortSignal) => {
  const vectors: number[][] = []
  let tokens = 0
  for (const input of inputs) {
    if (signal.aborted) return undefined
    const { vector } = await embedding.context.getEmbeddingFor(input.tokens as Token[])
    vectors.push(normalize(vector))
    const count = embedding.context.calculateInputLength(input.tokens as Token[])
    counters.read(count)
    tokens += count
  }
  return { vectors, tokens }
}
