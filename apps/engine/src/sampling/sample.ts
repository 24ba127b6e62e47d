export type Candidate = { token: number; logit: number }

export type SampleOptions = {
  /** 0 takes the most likely token. */
  temperature: number
  /** 1 is off. */
  topP: number
  /** 0 is off. */
  topK: number
  /** 0 is off. */
  minP: number
  /** 1 is off. */
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  logitBias: ReadonlyMap<number, number>
  /** How often each token stands in what was written so far. */
  seen: ReadonlyMap<number, number>
  /** From 0 to 1, 1 excluded. */
  random: () => number
}

const byLogit = (a: Candidate, b: Candidate): number => b.logit - a.logit || a.token - b.token

const adjusted = ({ token, logit }: Candidate, options: SampleOptions): Candidate => {
  let value = logit + (options.logitBias.get(token) ?? 0)
  const count = options.seen.get(token) ?? 0
  if (count > 0) {
    value = value > 0 ? value / options.repetitionPenalty : value * options.repetitionPenalty
    value -= options.presencePenalty + options.frequencyPenalty * count
  }
  // A logit that is no number must lose, not spread.
  return { token, logit: Number.isNaN(value) ? Number.NEGATIVE_INFINITY : value }
}

/**
 * Chooses the next token from raw logits, in the usual order: bias, penalties, top-k, min-p, top-p, temperature. The cuts look at the
 * probabilities at temperature 1, so that a high temperature spreads the choice among the tokens that were good, not over all.
 * A bias can only move tokens that are among the candidates.
 */
export const sample = (candidates: readonly Candidate[], options: SampleOptions): number => {
  let kept = candidates.map((candidate) => adjusted(candidate, options)).sort(byLogit)
  const best = kept[0]
  if (best === undefined) throw new RangeError('there is no candidate to choose from')
  // Infinite logits leave nothing to compare: a ban of everything, or a single certainty.
  if (options.temperature <= 0 || !Number.isFinite(best.logit)) return best.token

  if (options.topK > 0) kept = kept.slice(0, options.topK)
  if (options.minP > 0) {
    const least = best.logit + Math.log(options.minP)
    kept = kept.filter(({ logit }) => logit >= least || logit === best.logit)
  }
  if (options.topP < 1) {
    const weights = kept.map(({ logit }) => Math.exp(logit - best.logit))
    const enough = options.topP * weights.reduce((sum, weight) => sum + weight, 0)
    let sum = 0
    let count = 0
    for (const weight of weights) {
      count += 1
      sum += weight
      if (sum >= enough) break
    }
    kept = kept.slice(0, Math.max(1, count))
  }

  const weights = kept.map(({ logit }) => (logit === best.logit ? 1 : Math.exp((logit - best.logit) / options.temperature)))
  let left = options.random() * weights.reduce((sum, weight) => sum + weight, 0)
  for (const [index, weight] of weights.entries()) {
    left -= weight
    if (left < 0) return kept[index]?.token ?? best.token
  }
  return best.token // rounding only: the last weights were too small to be counted
}

const rotate = (word: number, by: number): number => (word << by) | (word >>> (32 - by))

/** The same numbers for the same seed on every machine: xoshiro128**, its state filled from the seed by splitmix32. */
export const seededRandom = (seed: number): (() => number) => {
  const whole = Number.isFinite(seed) ? Math.trunc(seed) : 0
  let state = whole | 0
  const fill = (): number => {
    state = (state + 0x9e3779b9) | 0
    let word = state ^ (state >>> 16)
    word = Math.imul(word, 0x21f0aaad)
    word ^= word >>> 15
    word = Math.imul(word, 0x735a2d97)
    return word ^ (word >>> 15)
  }
  // Seeds have up to 53 bits: the upper ones come in after a first round, so that they cannot undo the lower ones.
  state = fill() ^ Math.floor(whole / 2 ** 32)
  let [a, b, c, d] = [fill(), fill(), fill(), fill()]
  const next = (): number => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0
    const shifted = b << 9
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    d = rotate(d, 11)
    return result
  }
  return () => ((next() >>> 5) * 2 ** 26 + (next() >>> 6)) / 2 ** 53
}
