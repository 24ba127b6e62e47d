/**
 * Thrown inside the grammar builders and turned into `{ ok: false, reason }` at their doors: the builders are recursive, and a refusal
 * anywhere ends all of it. The reason names the keyword and its place, since a caller reads it.
 */
export class Refused extends Error {
  /** Nothing fits the schema at this place. In a choice of several that only rules out one of them. */
  readonly contradiction: boolean

  constructor(path: string, reason: string, contradiction = false) {
    super(`${path}: ${reason}`)
    this.contradiction = contradiction
  }
}

/** Runs a builder; what it refuses becomes a value. */
export const attempt = <T>(build: () => T): { ok: true; value: T } | { ok: false; reason: string } => {
  try {
    return { ok: true, value: build() }
  } catch (error) {
    if (error instanceof Refused) return { ok: false, reason: error.message }
    throw error
  }
}
