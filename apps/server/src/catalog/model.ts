import type { Instant } from '../kit/clock.ts'
import type { ModelId, PriceId } from '../kit/ids.ts'
import type { UnitPrice } from '../kit/money.ts'

/** What a model is for. It decides which endpoints serve it. */
export type ModelType = 'chat' | 'embedding' | 'rerank' | 'audio' | 'ocr'

/** The life cycle of serverless-platform.md 8.1. */
export type ModelStatus = 'preview' | 'active' | 'deprecated' | 'eol'

/**
 * What one unit of each kind costs from `startsAt` on. A new price is a new row; the past never changes. For a model of type `audio`
 * `input` is micro-euros per minute of sound, for one of type `ocr` per 1,000 pages, and the others mean nothing. Only chats pay for output.
 */
export type Price = {
  readonly id: PriceId
  readonly startsAt: Instant
  readonly input: UnitPrice
  readonly cachedInput: UnitPrice
  readonly output: UnitPrice
}

/** How much a model may be asked to think, from least to most (data-plane.md 6.7). */
export const REASONING_EFFORTS = ['none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max'] as const
export type ReasoningEffort = (typeof REASONING_EFFORTS)[number]

/** What a model can take, or insists on, in a request. Most have nothing to say here. */
export type Rules = {
  /** Takes sound inside a conversation. */
  readonly audioInChat: boolean
  /** The most images in one request; null where the model has no limit of its own. */
  readonly maxImages: number | null
  /** A token is a square of so many pixels, after the image was scaled down to the longest side the model works on. */
  readonly imageTokenPx: number | null
  readonly imageMaxPx: number | null
  /** Refuses two turns of the same speaker in a row. */
  readonly alternatingRoles: boolean
  /** Said as the system message where tools are given without one. */
  readonly toolSystemPrompt: string | null
  /** What it distinguishes, from least to most; empty where nobody has said. */
  readonly reasoningEfforts: readonly ReasoningEffort[]
  /** A vector may be cut to any length from here on; null where `matryoshka` names all there are. */
  readonly minDimensions: number | null
}

export const NO_RULES: Rules = {
  audioInChat: false,
  maxImages: null,
  imageTokenPx: null,
  imageMaxPx: null,
  alternatingRoles: false,
  toolSystemPrompt: null,
  reasoningEfforts: [],
  minDimensions: null,
}

/** One catalogue entry (serverless-platform.md 2.1). `name` is the string that clients send. */
export type Model = {
  readonly id: ModelId
  readonly name: string
  readonly ownedBy: string
  readonly type: ModelType
  /** As of now: what is announced for an instant comes into force by the clock (life-cycle.ts). */
  readonly status: ModelStatus
  readonly deprecatedAt: Instant | null
  readonly endOfLifeAt: Instant | null
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
  readonly rules: Rules
  /** The price in force. */
  readonly price: Price
  /** The embedded engine runs this file; null when only engines given by hand serve the model. */
  readonly weights: { readonly path: string; readonly bytes: number; readonly sha256: string } | null
}
