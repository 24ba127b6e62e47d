import { z } from 'zod'
import { withAlternatives } from './alternatives.ts'

/**
 * Content that is a string or an array of parts. Told apart before anything is checked, so that a bad part is named where it
 * stands instead of as "no variant fits".
 */
export const textOrParts = <T>(part: z.ZodType<T>, fewest = 0, many = 'parts') => {
  const Parts = z.array(part, { error: `expected a string or an array of ${many}` }).min(fewest, 'expected at least one')
  const textOrThem = z.unknown().transform((content, context): string | T[] => {
    if (typeof content === 'string') return content
    const parts = Parts.safeParse(content)
    if (parts.success) return parts.data
    context.issues.push(
      ...parts.error.issues.map((issue) => ({ code: 'custom' as const, input: content, path: [...issue.path], message: issue.message })),
    )
    return z.NEVER
  })
  return withAlternatives(textOrThem, [z.string(), Parts])
}
