/** Vectors as they stand in answers: arrays of numbers, or little-endian float32 in base64 (data-plane.md 9). */

const FLOAT_BYTES = 4

export const toBase64 = (vector: readonly number[]): string => {
  const bytes = Buffer.allocUnsafe(vector.length * FLOAT_BYTES)
  vector.forEach((component, index) => bytes.writeFloatLE(component, index * FLOAT_BYTES))
  return bytes.toString('base64')
}

export const toFloats = (text: string): number[] => {
  const bytes = Buffer.from(text, 'base64')
  return Array.from({ length: bytes.length / FLOAT_BYTES }, (_, index) => bytes.readFloatLE(index * FLOAT_BYTES))
}

/** How many numbers the base64 holds. */
export const lengthOf = (base64: string): number => Math.floor(Buffer.byteLength(base64, 'base64') / FLOAT_BYTES)

/** The first components, of length 1 again: they are ordered by importance in models that may be cut (data-plane.md 9). */
export const cutTo = (vector: readonly number[], dimensions: number): number[] => {
  const cut = vector.slice(0, dimensions)
  const length = Math.hypot(...cut)
  return length === 0 ? cut : cut.map((component) => component / length)
}

export const dot = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((sum, component, place) => sum + component * (b[place] ?? 0), 0)
