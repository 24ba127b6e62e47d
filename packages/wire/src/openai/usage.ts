import { z } from 'zod'

const Count = z.int().nonnegative()

/** Token counts as engines give them and as clients read them (data-plane.md 15). Embeddings have no `completion_tokens`. */
export const Usage = z.looseObject({
  prompt_tokens: Count,
  completion_tokens: Count.nullish(),
  total_tokens: Count.nullish(),
  prompt_tokens_details: z.looseObject({ cached_tokens: Count.nullish(), audio_tokens: Count.nullish() }).nullish(),
  completion_tokens_details: z.looseObject({ reasoning_tokens: Count.nullish() }).nullish(),
})
export type Usage = z.infer<typeof Usage>
