import fc from 'fast-check'
import { expect, test } from 'vitest'
import { NO_COUNTS, toCounts } from './answer.ts'

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

test('whatever an engine says of its usage is counts that make sense, no part of them more than its whole, or none at all', () => {
  fc.assert(
    fc.property(usage, (told) => {
      const counts = toCounts(told)
      if (counts === undefined) return
      expect(Object.values(counts).every((each) => Number.isSafeInteger(each) && each >= 0)).toBe(true)
      expect(Math.max(counts.cachedInput, counts.audioInput)).toBeLessThanOrEqual(counts.input)
      expect(counts.reasoning).toBeLessThanOrEqual(counts.output)
    }),
    { numRuns: 2_000 },
  )
})

test('an engine may leave out all but its input, and says no more of a part than there is of the whole', () => {
  expect(toCounts({ prompt_tokens: 7 })).toEqual({ ...NO_COUNTS, input: 7 })
  const details = { prompt_tokens_details: { cached_tokens: 9, audio_tokens: 8 }, completion_tokens_details: { reasoning_tokens: 5 } }
  expect(toCounts({ prompt_tokens: 7, completion_tokens: 3, ...details })).toEqual({
    ...NO_COUNTS,
    input: 7,
    cachedInput: 7,
    audioInput: 7,
    output: 3,
    reasoning: 3,
  })
  for (const wrong of [
    undefined,
    null,
    {},
    { prompt_tokens: null },
    { prompt_tokens: -1 },
    { prompt_tokens: 1.5 },
    { prompt_tokens: '7' },
  ]) {
    expect(toCounts(wrong)).toBeUndefined()
  }
})
