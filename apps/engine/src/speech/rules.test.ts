import fc from 'fast-check'
import { expect, test } from 'vitest'
import { forbid, logSumExp, type Vocabulary } from './rules.ts'

// Words 0 to 4, the end at 5, no-timestamps at 6, times from 7 on.
const VOCABULARY: Vocabulary = {
  end: 5,
  noTimestamps: 6,
  firstTimestamp: 7,
  suppressed: [4],
  suppressedAtFirst: [0],
  maxInitialTimestamp: 3,
}
const allowed = (sampled: readonly number[], scores = new Float32Array(17)): number[] => {
  scores.fill(50, 0, 6) // words and the end are likely, so that times are not forced by their sum
  forbid(scores, sampled, VOCABULARY)
  return [...scores.keys()].filter((token) => scores[token] !== Number.NEGATIVE_INFINITY)
}

test('a window begins with a time, and not a late one', () => {
  expect(allowed([])).toEqual([7, 8, 9, 10])
})
test('behind the first time comes a word or the end', () => {
  expect(allowed([8])).toEqual([0, 1, 2, 3, 5])
})
test('behind a word comes anything but a time that has passed', () => {
  expect(allowed([8, 1])).toEqual([0, 1, 2, 3, 5, 9, 10, 11, 12, 13, 14, 15, 16])
})
test('behind the time that ends a segment comes the beginning of the next, or the end', () => {
  expect(allowed([8, 1, 12])).toEqual([5, 12, 13, 14, 15, 16])
  expect(allowed([8, 1, 12, 13])).toEqual([0, 1, 2, 3, 5])
})
test('where some time is likelier than any word, it is a time', () => {
  const scores = new Float32Array(17).fill(1, 7)
  scores[0] = 2
  forbid(scores, [8, 1], VOCABULARY)
  expect(scores[0]).toBe(Number.NEGATIVE_INFINITY)
  expect(scores[9]).toBe(1)
})

test('whatever a model scores, the times never go back and something may always follow', () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(fc.double({ min: -9, max: 9, noNaN: true }), { minLength: 17, maxLength: 17 }), { maxLength: 30 }),
      (steps) => {
        const sampled: number[] = []
        for (const step of steps) {
          const scores = Float32Array.from(step)
          forbid(scores, sampled, VOCABULARY)
          const best = scores.indexOf(Math.max(...scores))
          expect(scores[best]).not.toBe(Number.NEGATIVE_INFINITY)
          if (best === VOCABULARY.end) break
          sampled.push(best)
        }
        const times = sampled.filter((token) => token >= VOCABULARY.firstTimestamp)
        expect(times).toEqual(times.toSorted((a, b) => a - b))
      },
    ),
  )
})

test('sums of exponentials do not overflow', () => {
  expect(logSumExp(Float32Array.from([1000, 1000]))).toBeCloseTo(1000 + Math.LN2)
  expect(logSumExp(new Float32Array(3).fill(Number.NEGATIVE_INFINITY))).toBe(Number.NEGATIVE_INFINITY)
})
