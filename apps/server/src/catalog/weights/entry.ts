import type { ModelType } from '../model.ts'
import type { NewModel } from '../models.ts'
import { parsePrice } from '../price.ts'
import { describeGguf } from './describe.ts'
import type { Pulled } from './pull.ts'

/** What the operator chose; everything else comes from the file. */
export type Choices = {
  readonly name?: string | undefined
  readonly type?: Exclude<ModelType, 'audio'> | undefined
  readonly contextTokens?: number | undefined
  readonly maxOutputTokens?: number | undefined
  /** Euros per million tokens. */
  readonly priceInput?: string | undefined
  readonly priceOutput?: string | undefined
}

/** A window costs memory for each request that runs at once, so a model that could have a large one gets it only when asked. */
const DEFAULT_CONTEXT_TOKENS = 8192
const DEFAULT_MAX_OUTPUT_TOKENS = 4096

/** The catalogue entry for pulled weights. */
export const pulledToModel = (pulled: Pulled, choices: Choices): NewModel => {
  const { found, gguf } = pulled
  const own = describeGguf(gguf)
  const type = choices.type ?? own.type
  const largest = own.contextTokens
  if (choices.contextTokens !== undefined && largest !== null && choices.contextTokens > largest) {
    throw new Error(`The model's own context window is ${largest} tokens; --context ${choices.contextTokens} is more.`)
  }
  const contextTokens = choices.contextTokens ?? Math.min(largest ?? DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
  if (choices.maxOutputTokens !== undefined && type !== 'chat')
    throw new Error(`A model of type ${type} generates nothing, so it has no --max-output.`)
  const features = type === own.type ? own.features : { tools: false, structuredOutput: type === 'chat', reasoning: false, vision: false }
  const input = parsePrice(choices.priceInput ?? '0')
  return {
    name: choices.name ?? found.name,
    ownedBy: found.ownedBy,
    type,
    contextTokens,
    // Half the window by default: an output limit as large as the window would leave no room for a question.
    maxOutputTokens:
      type === 'chat' ? (choices.maxOutputTokens ?? Math.max(1, Math.min(DEFAULT_MAX_OUTPUT_TOKENS, Math.floor(contextTokens / 2)))) : null,
    dimensions: type === 'embedding' ? gguf.embeddingLength : null,
    features,
    licence: gguf.licence ?? found.licence,
    source: found.source,
    weights: pulled.weights,
    price: { input, output: parsePrice(choices.priceOutput ?? '0') },
  }
}
