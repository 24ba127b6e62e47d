/** Half the width of the sinc in zero crossings: 16 leaves aliases some 80 dB down, more than speech recognition can tell. */
const ZERO_CROSSINGS = 16
const KAISER_BETA = 8
/** The filter is not a wall: what it lets through of the lowest band above must not fold back. */
const PASS = 0.94

/** The modified Bessel function of order 0, which the Kaiser window is made of. */
const bessel = (x: number): number => {
  let sum = 1
  let term = 1
  for (let k = 1; term > sum * 1e-9; k += 1) {
    term *= (x / (2 * k)) ** 2
    sum += term
  }
  return sum
}

const greatestCommonDivisor = (a: number, b: number): number => (b === 0 ? a : greatestCommonDivisor(b, a % b))

export type Resampler = {
  /** As much of the output as these samples and those before decide. */
  push(samples: Float32Array): Float32Array
  /** The rest; in all, `input × to ÷ from` samples, rounded. */
  end(): Float32Array
}

/**
 * Changes the sampling rate with a windowed sinc. Output sample n stands at input time n × from ÷ to; its fraction takes one of
 * `to ÷ gcd` values, and for each the weights are computed once.
 */
export const openResampler = (from: number, to: number): Resampler => {
  if (from === to) return { push: (samples) => samples, end: () => new Float32Array(0) }
  const divisor = greatestCommonDivisor(from, to)
  const stepIn = from / divisor
  const phases = to / divisor
  const cutoff = Math.min(1, to / from) * PASS
  const half = Math.ceil(ZERO_CROSSINGS / cutoff)
  const taps = 2 * half
  const whole = bessel(KAISER_BETA)
  const weightsOf = new Map<number, Float32Array>()

  const weights = (phase: number): Float32Array => {
    const known = weightsOf.get(phase)
    if (known !== undefined) return known
    const made = new Float32Array(taps)
    let sum = 0
    for (let tap = 0; tap < taps; tap += 1) {
      const distance = tap - half + 1 - phase / phases
      const x = Math.PI * cutoff * distance
      const window = bessel(KAISER_BETA * Math.sqrt(Math.max(0, 1 - (distance / half) ** 2))) / whole
      const weight = (x === 0 ? 1 : Math.sin(x) / x) * window
      made[tap] = weight
      sum += weight
    }
    for (let tap = 0; tap < taps; tap += 1) made[tap] = (made[tap] ?? 0) / sum // a constant stays what it is
    weightsOf.set(phase, made)
    return made
  }

  // What may still be needed of the input. Before the first sample there is silence.
  let kept: Float32Array = new Float32Array(half - 1)
  let keptFrom = 1 - half
  let received = 0
  let made = 0

  const make = (until: number): Float32Array => {
    const end = keptFrom + kept.length
    // The last output that sees only what is there.
    const decided = Math.max(made, Math.min(until, Math.floor(((end - half - 1) * phases) / stepIn) + 1))
    const output = new Float32Array(decided - made)
    for (let index = 0; index < output.length; index += 1) {
      const position = (made + index) * stepIn
      const phase = position % phases
      const first = (position - phase) / phases - half + 1 - keptFrom
      const wanted = weights(phase)
      let sum = 0
      for (let tap = 0; tap < taps; tap += 1) sum += (wanted[tap] as number) * (kept[first + tap] as number)
      output[index] = sum
    }
    made = decided
    const needed = Math.floor((made * stepIn) / phases) - half + 1
    if (needed > keptFrom) {
      kept = kept.slice(Math.min(needed - keptFrom, kept.length))
      keptFrom = needed
    }
    return output
  }

  const keep = (samples: Float32Array): void => {
    const joined = new Float32Array(kept.length + samples.length)
    joined.set(kept)
    joined.set(samples, kept.length)
    kept = joined
  }

  return {
    push(samples) {
      received += samples.length
      keep(samples)
      return make(Number.POSITIVE_INFINITY)
    },
    end() {
      const wanted = Math.round((received * to) / from)
      keep(new Float32Array(taps + 2 * Math.ceil(stepIn / phases))) // and silence behind the last sample
      return make(wanted)
    },
  }
}
