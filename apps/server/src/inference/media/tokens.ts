import type { Rules } from '../../catalog/model.ts'

/** Where a model does not say how it counts images: between the 256 and the 4,096 of data-plane.md 15. */
const TOKENS_PER_IMAGE = 1_500
const CHUNK_SECONDS = 30
const TOKENS_PER_CHUNK = 375 // 80 ms each
/** Decoders count in whole samples; what is a rounding error beyond thirty seconds is not another thirty. */
const SLACK_SECONDS = 0.001

/** One token per square, after scaling down to what the model works on (data-plane.md 15). Without a size, the most it can be. */
export const imageTokens = (rules: Rules, size: { readonly width: number; readonly height: number } | undefined): number => {
  const { imageTokenPx: square, imageMaxPx: most } = rules
  if (square === null) return TOKENS_PER_IMAGE
  if (size === undefined) return most === null ? TOKENS_PER_IMAGE : Math.ceil(most / square) ** 2
  const scale = most === null ? 1 : Math.min(1, most / Math.max(size.width, size.height))
  const squares = (side: number): number => Math.max(1, Math.ceil(Math.round(side * scale) / square))
  return squares(size.width) * squares(size.height)
}

/** Whole chunks of 30 s, the last one filled up with silence (data-plane.md 15). */
export const soundTokens = (seconds: number): number => Math.max(1, Math.ceil((seconds - SLACK_SECONDS) / CHUNK_SECONDS)) * TOKENS_PER_CHUNK
