import { expect, test } from 'vitest'
import { cosine, normalize } from './vectors.ts'

test('the cosine of a vector with itself is never more than 1, whatever rounding does', () => {
  for (let length = 1; length < 400; length += 1) {
    const vector = normalize(Array.from({ length }, (_, index) => Math.sin(index * 1.7 + length)))
    expect(cosine(vector, vector)).toBeLessThanOrEqual(1)
    expect(cosine(vector, vector)).toBeCloseTo(1, 12)
    expect(
      cosine(
        vector,
        vector.map((value) => -value),
      ),
    ).toBeGreaterThanOrEqual(-1)
  }
})
