import { ResponseUsage } from '@parvis/wire/openai/responses'
import type { Counts } from '../../../usage/event.ts'
import { NO_COUNTS } from '../../answer.ts'

/** An engine's own count, where it makes sense. Parts are cut to the whole: a bill must not go below zero. */
export const responseCounts = (usage: unknown): Counts | undefined => {
  const read = ResponseUsage.safeParse(usage)
  if (!read.success) return undefined
  const { input_tokens: input, output_tokens: output, input_tokens_details: inside, output_tokens_details: thought } = read.data
  return {
    ...NO_COUNTS,
    input,
    cachedInput: Math.min(inside?.cached_tokens ?? 0, input),
    output,
    reasoning: Math.min(thought?.reasoning_tokens ?? 0, output),
  }
}
