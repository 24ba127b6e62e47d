import { Usage } from '@parvis/wire/openai/usage'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { toCounts } from './answer.ts'

const count = fc.oneof(
  { weight: 6, arbitrary: fc.nat({ max: 100 }) },
  fc.constantFrom<unknown>(null, undefined, -1, -0, 1.5, 2 ** 53, Number.NaN, '3', true, {}, []),
)
const details = (...keys: string[]) =>
  fc.oneof(
    { weight: 6, arbitrary: fc.record(Object.fromEntries(keys.map((key) => [key, count])), { requiredKeys: [] }) },
    fc.constantFrom<unknown>(null, undefined, [], 3, 'x'),
  )
const usage = fc.oneof(
  {
    weight: 20,
    arbitrary: fc.record(
      {
        prompt_tokens: count,
        completion_tokens: count,
        total_tokens: count,
        prompt_tokens_details: details('cached_tokens', 'audio_tokens', 'more'),
        completion_tokens_details: details('reasoning_tokens', 'more'),
        more: fc.anything(),
      },
      { requiredKeys: [] },
    ),
  },
  fc.anything(),
)

test('counts are read by hand where the schema would take them, with the same numbers, and no part is more than its whole', () => {
  fc.assert(
    fc.property(usage, (told) => {
      const read = Usage.safeParse(told)
      const input = read.data?.prompt_tokens ?? 0
      const output = read.data?.completion_tokens ?? 0
      const asked = read.data?.prompt_tokens_details
      expect(toCounts(told)).toEqual(
        read.success
          ? {
              input,
              cachedInput: Math.min(asked?.cached_tokens ?? 0, input),
              output,
              reasoning: Math.min(read.data.completion_tokens_details?.reasoning_tokens ?? 0, output),
              audioInput: Math.min(asked?.audio_tokens ?? 0, input),
              audioMs: 0,
              images: 0,
              pages: 0,
            }
          : undefined,
      )
    }),
    { numRuns: 2_000 },
  )
})
