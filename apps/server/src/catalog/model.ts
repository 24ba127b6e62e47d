import type { Instant } from '../kit/clock.ts'
import type { ModelId, PriceId } from '../kit/ids.ts'
import type { UnitPrice } from '../kit/money.ts'

/** What a model is for. It decides which endpoints serve it. */
export type ModelType = 'chat' | 'embedding' | 'rerank' | 'audio'

/** The life cycle of serverless-platform.md 8.1. */
export type ModelStatus = 'preview' | 'active' | 'deprecated' | 'eol'

/** What one unit of each kind costs from `startsAt` on. A new price is a new row; the past never changes. */
export type Price = {
  readonly id: PriceId
  readonly startsAt: Instant
  readonly input: UnitPrice
  readonly cachedInput: UnitPrice
  readonly output: UnitPrice
}

/** One catalogue entry (serverless-platform.md 2.1). `name` is the string that clients send. */
export type Model = {
  readonly id: ModelId
  readonly name: string
  readonly ownedBy: string
  readonly type: ModelType
  readonly status: ModelStatus
  /** The model that answers once this one has reached its end of life. */
  readonly successor: string | null
  readonly createdAt: Instant
  /** Input and output together, in tokens. */
  readonly contextTokens: number
  /** Null where nothing is generated. */
  readonly maxOutputTokens: number | null
  /** Length of a full vector, for embedding models. */
  readonly dimensions: number | null
  /** The shorter lengths an embedding may be cut to; empty when it may not (data-plane.md 9). */
  readonly matryoshka: readonly number[]
  readonly features: { readonly tools: boolean; readonly structuredOutput: boolean; readonly reasoning: boolean; readonly vision: boolean }
  /** The price in force. */
  readonly price: Price
  /** The embedded engine runs this file; null when only engines given by hand serve the model. */
  readonly weights: { readonly path: string; readonly bytes: number; readonly sha256: string } | null
}
