import type { Model } from '../catalog/model.ts'
import type { CountInput, CountTexts } from './count.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Relayed } from './relay.ts'

/** Says what an answer used that its engine has not counted, where its model's tokenizer can. Not asked where the engine has. */
export type Measure = (model: Model, request: Request, relayed: Relayed) => Promise<Relayed>

/**
 * Counts by the model's own tokenizer what was delivered without a count (product.md 3). Asked and said are counted apart: where only the
 * second can be, the first stays as it was estimated, and the row says so. Where nobody can count, it stays as it is: marked.
 */
export const openMeasure =
  (by: { readonly count: CountInput; readonly countTexts: CountTexts }): Measure =>
  async (model, request, relayed) => {
    const texts = relayed.words?.()
    if (texts === undefined) return relayed
    const [input, output] = await Promise.all([by.count(model, request, new AbortController().signal), by.countTexts(model, texts)])
    if (output === undefined) return relayed
    if (input !== undefined) return { ...relayed, counted: 'tokenizer', counts: { ...relayed.counts, input, output } }
    return relayed.counted === 'delivered' ? { ...relayed, counts: { ...relayed.counts, output } } : relayed
  }
