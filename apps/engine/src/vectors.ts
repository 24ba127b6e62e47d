/** Length 1, so that a dot product is the cosine. A vector of zeros stays as it is. */
export const normalize = (vector: readonly number[]): number[] => {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0))
  return length === 0 ? [...vector] : vector.map((value) => value / length)
}

/** Of two vectors of length 1: their dot product, which rounding can carry past 1. */
export const cosine = (a: readonly number[], b: readonly number[]): number => {
  const product = a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0)
  return Math.max(-1, Math.min(1, product))
}

/** Little-endian float32, in order (data-plane.md 9). */
export const vectorToBase64 = (vector: readonly number[]): string => {
  const bytes = Buffer.alloc(vector.length * 4)
  for (const [index, value] of vector.entries()) bytes.writeFloatLE(value, index * 4)
  return bytes.toString('base64')
}
