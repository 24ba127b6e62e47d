import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Candidate, type SampleOptions, sample, seededRandom } from './sample.ts'

const NEUTRAL: SampleOptions = {
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  seen: new Map(),
  random: seededRandom(1),
}

/** Candidates with these probabilities. */
const having = (...probabilities: number[]): Candidate[] =>
  probabilities.map((probability, token) => ({ token, logit: Math.log(probability) + 5 }))

const shares = (candidates: readonly Candidate[], options: Partial<SampleOptions> = {}, draws = 20_000): number[] => {
  const counts = candidates.map(() => 0)
  const random = seededRandom(42)
  for (let draw = 0; draw < draws; draw += 1) {
    const token = sample(candidates, { ...NEUTRAL, random, ...options })
    counts[token] = (counts[token] ?? 0) + 1
  }
  return counts.map((count) => count / draws)
}

/** How far the farthest share is from where it should be. */
const distance = (found: readonly number[], wanted: readonly number[]): number =>
  Math.max(...wanted.map((share, at) => Math.abs((found[at] ?? 0) - share)))

const NEAR = 0.015 // 20,000 draws

describe('the shares of the tokens follow', () => {
  test('the probabilities at temperature 1', () =>
    expect(distance(shares(having(0.5, 0.3, 0.15, 0.05)), [0.5, 0.3, 0.15, 0.05])).toBeLessThan(NEAR))
  test('their squares at temperature 0.5', () => {
    const squares = [0.25, 0.09, 0.04].map((square) => square / 0.38)
    expect(distance(shares(having(0.5, 0.3, 0.2), { temperature: 0.5 }), squares)).toBeLessThan(NEAR)
  })
  test('top-k: the k best, scaled up', () =>
    expect(distance(shares(having(0.2, 0.4, 0.1, 0.3), { topK: 2 }), [0, 4 / 7, 0, 3 / 7])).toBeLessThan(NEAR))
  test('top-p: the best that together reach p, the one that reaches it included', () =>
    expect(distance(shares(having(0.5, 0.3, 0.2), { topP: 0.6 }), [0.625, 0.375, 0])).toBeLessThan(NEAR))
  test('min-p: those at least so likely, measured by the best', () =>
    expect(distance(shares(having(0.5, 0.3, 0.1, 0.1), { minP: 0.4 }), [0.625, 0.375, 0, 0])).toBeLessThan(NEAR))
  test('cuts made before the temperature: a hot choice stays among the good tokens', () => {
    expect(distance(shares(having(0.6, 0.3, 0.1), { topP: 0.7, temperature: 100 }), [0.5, 0.5, 0])).toBeLessThan(NEAR)
  })
  test('a bias', () =>
    expect(distance(shares(having(0.5, 0.5), { logitBias: new Map([[0, Math.log(3)]]) }), [0.75, 0.25])).toBeLessThan(NEAR))
  test('presence: once, however often', () =>
    expect(distance(shares(having(0.5, 0.5), { presencePenalty: Math.log(3), seen: new Map([[0, 7]]) }), [0.25, 0.75])).toBeLessThan(NEAR))
  test('frequency: each time', () =>
    expect(distance(shares(having(0.5, 0.5), { frequencyPenalty: Math.log(3), seen: new Map([[0, 2]]) }), [0.1, 0.9])).toBeLessThan(NEAR))
})

test('a repetition penalty makes a seen token less likely on either side of zero', () => {
  const seen = new Map([[0, 1]])
  for (const logit of [4, -4]) {
    const equal = [0, 1].map((token) => ({ token, logit }))
    expect(sample(equal, { ...NEUTRAL, temperature: 0, repetitionPenalty: 1.2, seen })).toBe(1)
  }
})

describe('temperature 0', () => {
  test('takes the best, whatever the dice say', () => {
    for (const value of [0, 0.5, 0.999999])
      expect(sample(having(0.2, 0.5, 0.3), { ...NEUTRAL, temperature: 0, random: () => value })).toBe(1)
  })
  test('takes the smallest token of equals, in any order', () => {
    const equal = [7, 3, 5].map((token) => ({ token, logit: 1 }))
    expect(sample(equal, { ...NEUTRAL, temperature: 0 })).toBe(3)
    expect(sample(equal.toReversed(), { ...NEUTRAL, temperature: 0 })).toBe(3)
  })
  test('still hears biases and penalties', () => {
    expect(sample(having(0.9, 0.1), { ...NEUTRAL, temperature: 0, logitBias: new Map([[0, -100]]) })).toBe(1)
  })
})

test('a banned token never comes, a forced one always', () => {
  expect(shares(having(0.98, 0.01, 0.01), { logitBias: new Map([[0, -100]]) })[0]).toBe(0)
  expect(shares(having(0.98, 0.01, 0.01), { logitBias: new Map([[2, 100]]) })[2]).toBe(1)
})

test('whatever the numbers, one of the candidates comes out', () => {
  const odd = fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 1e308, -1e308, 88.7, 1e-320)
  fc.assert(
    fc.property(
      fc.array(fc.oneof(odd, fc.double()), { minLength: 1, maxLength: 8 }),
      fc.record({
        temperature: fc.constantFrom(0, 1e-300, 1e-8, 1, 2, 1e300),
        topP: fc.constantFrom(0, 1e-12, 0.5, 1),
        topK: fc.constantFrom(-1, 0, 1, 3),
        minP: fc.constantFrom(0, 0.5, 1),
        random: fc.constantFrom(0, 0.5, 1 - 2 ** -53),
      }),
      (logits, { random, ...options }) => {
        const candidates = logits.map((logit, token) => ({ token, logit }))
        const token = sample(candidates, { ...NEUTRAL, ...options, random: () => random })
        expect(candidates.some((candidate) => candidate.token === token)).toBe(true)
        // A token that cannot be is never taken while another can.
        const possible = (logit: number | undefined) => logit !== undefined && logit > Number.NEGATIVE_INFINITY
        expect(possible(logits[token]) || !logits.some(possible)).toBe(true)
      },
    ),
    { numRuns: 1000 },
  )
})

test('no candidates are a fault', () => {
  expect(() => sample([], NEUTRAL)).toThrow(RangeError)
})

describe('seeded random numbers', () => {
  test('are the same for the same seed and others for another', () => {
    const take = (seed: number) => Array.from({ length: 5 }, seededRandom(seed))
    expect(take(7)).toEqual(take(7))
    const seeds = [0, 1, 2, -1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 53 - 1, Number.NaN]
    const firsts = seeds.map((seed) => take(seed)[0])
    expect(new Set(firsts).size).toBe(seeds.length - 1) // what is no number counts as 0
  })
  test('are spread evenly from 0 to 1', () => {
    const random = seededRandom(3)
    const buckets = Array.from({ length: 10 }, () => 0)
    for (let draw = 0; draw < 100_000; draw += 1) {
      const value = random()
      expect(value >= 0 && value < 1).toBe(true)
      const bucket = Math.floor(value * 10)
      buckets[bucket] = (buckets[bucket] ?? 0) + 1
    }
    for (const count of buckets) expect(Math.abs(count - 10_000)).toBeLessThan(400)
  })
})
