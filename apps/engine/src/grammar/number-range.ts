import { type Dfa, intersect, openNfa } from './automaton.ts'
import type { Range } from './gbnf.ts'

/*
 * Which decimal texts lie in a range, digit by digit: while the digits so far equal those of a bound, the bound limits the next digit;
 * once they differ, it does not matter any more. At most 15 significant digits are written (16 for integers), so that reading the number
 * as a double cannot move it across a bound. Numbers in a range are written without an exponent.
 */

export type Bound = { value: number; exclusive: boolean }
export type NumberRange = { low: Bound | undefined; high: Bound | undefined; multipleOf: number | undefined; integer: boolean }

const INTEGER_DIGITS = 16
const SIGNIFICANT_DIGITS = 15
const MAX_REMAINDERS = 1000
const MINUS: readonly Range[] = [[0x2d, 0x2d]]
const DOT: readonly Range[] = [[0x2e, 0x2e]]

const digits = (low: number, high: number): Range[] => [[0x30 + low, 0x30 + high]]

type Decimal = { negative: boolean; whole: string; fraction: string; exclusive: boolean }

const toDecimal = ({ value, exclusive }: Bound): Decimal => {
  const [mantissa = '0', exponentText = '0'] = Math.abs(value).toString().split('e')
  const [whole = '0', fraction = ''] = mantissa.split('.')
  const exponent = Number(exponentText)
  const all = whole + fraction
  const point = whole.length + exponent
  const padded = point <= 0 ? '0'.repeat(1 - point) + all : all.padEnd(point, '0')
  const split = Math.max(1, point)
  return { negative: value < 0, whole: padded.slice(0, split).replace(/^0+(?=\d)/, ''), fraction: padded.slice(split), exclusive }
}

const ZERO = (exclusive: boolean): Decimal => ({ negative: false, whole: '0', fraction: '', exclusive })

const rangeAutomaton = ({ low, high, integer }: NumberRange): Dfa => {
  const nfa = openNfa()
  const start = nfa.state()
  const final = nfa.state()

  /** Magnitudes between two bounds that are not negative. */
  const magnitudes = (from: number, least: Decimal, most: Decimal | undefined): void => {
    const longest = most === undefined ? Math.max(INTEGER_DIGITS, least.whole.length) : most.whole.length
    for (let length = least.whole.length; length <= longest; length += 1) {
      const places = integer ? 0 : Math.max(0, SIGNIFICANT_DIGITS - length)
      const known = new Map<string, number>()
      const zerosFrom = (bound: Decimal, at: number) => /^0*$/.test(bound.whole.slice(at) + bound.fraction.slice(Math.max(0, at - length)))
      const digitOf = (bound: Decimal, at: number) => Number((at < length ? bound.whole[at] : bound.fraction[at - length]) ?? 0)

      /** The state after `at` digits; `onLow` and `onHigh` say that they are those of the bound. */
      const stateAt = (at: number, onLow: boolean, onHigh: boolean): number => {
        const key = `${at},${onLow},${onHigh}`
        const existing = known.get(key)
        if (existing !== undefined) return existing
        const state = nfa.state()
        known.set(key, state)
        const enough = !onLow || (zerosFrom(least, at) && !least.exclusive)
        const notTooMuch = !onHigh || most === undefined || !(most.exclusive && zerosFrom(most, at))
        if (at >= length && enough && notTooMuch) nfa.free(state, final)
        if (at >= length + places) return state
        let into = state
        if (at === length) {
          into = nfa.state()
          nfa.edge(state, DOT, into)
        }
        const first = onLow ? digitOf(least, at) : at === 0 && length > 1 ? 1 : 0
        const last = onHigh && most !== undefined ? digitOf(most, at) : 9
        for (let digit = first; digit <= last; digit += 1) {
          const to = stateAt(at + 1, onLow && digit === first, onHigh && digit === last)
          nfa.edge(into, digits(digit, digit), to)
        }
        return state
      }
      nfa.free(from, stateAt(0, length === least.whole.length, most !== undefined && length === most.whole.length))
    }
  }

  const lowest = low && toDecimal(low)
  const highest = high && toDecimal(high)
  if (highest === undefined || !highest.negative) {
    magnitudes(start, lowest === undefined || lowest.negative ? ZERO(false) : lowest, highest)
  }
  if (lowest === undefined || lowest.negative) {
    const negative = nfa.state()
    nfa.edge(start, MINUS, negative)
    // A minus in front of zero is not worth a way of its own.
    magnitudes(negative, highest?.negative ? highest : ZERO(true), lowest)
  }
  return nfa.determinize(start, final)
}

/** Decimal texts that are whole multiples of `step`; undefined when that takes too many remainders. */
const multiples = (step: number): Dfa | undefined => {
  const { whole, fraction } = toDecimal({ value: step, exclusive: false })
  const places = fraction.length
  const modulus = Number(whole + fraction)
  // With a fraction, few digits in front of the point: the division is checked in doubles afterwards.
  const longest = places === 0 ? INTEGER_DIGITS : 9
  if (!(modulus > 0) || modulus * (places + 1) > MAX_REMAINDERS) return undefined
  const nfa = openNfa()
  const start = nfa.state()
  const final = nfa.state()
  const unsigned = nfa.state()
  nfa.free(start, unsigned)
  nfa.edge(start, MINUS, unsigned)
  const known = new Map<string, number>()
  const waiting: { state: number; remainder: number; place: number }[] = []
  const stateOf = (remainder: number, place: number): number => {
    const key = `${remainder},${place}`
    const existing = known.get(key)
    if (existing !== undefined) return existing
    const state = nfa.state()
    known.set(key, state)
    waiting.push({ state, remainder, place })
    return state
  }
  // `place` is -1 in front of the point, then the number of digits behind it.
  for (let digit = 0; digit < 10; digit += 1) nfa.edge(unsigned, digits(digit, digit), stateOf(digit % modulus, -1))
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { state, remainder, place } = next
    const missing = places - Math.max(0, place)
    if ((remainder * 10 ** missing) % modulus === 0) nfa.free(state, final)
    if (place >= places) continue
    let into = state
    if (place < 0) {
      for (let digit = 0; digit < 10; digit += 1) nfa.edge(state, digits(digit, digit), stateOf((remainder * 10 + digit) % modulus, -1))
      if (places === 0) continue
      into = nfa.state()
      nfa.edge(state, DOT, into)
    }
    for (let digit = 0; digit < 10; digit += 1) {
      nfa.edge(into, digits(digit, digit), stateOf((remainder * 10 + digit) % modulus, Math.max(0, place) + 1))
    }
  }
  return intersect(nfa.determinize(start, final), atMostDigits(longest))
}

/** At most so many digits in front of the point. */
const atMostDigits = (most: number): Dfa => {
  const nfa = openNfa()
  const start = nfa.state()
  const final = nfa.state()
  let at = nfa.state()
  nfa.free(start, at)
  nfa.edge(start, MINUS, at)
  const fraction = nfa.state()
  nfa.edge(fraction, digits(0, 9), fraction)
  nfa.free(fraction, final)
  for (let count = 0; count < most; count += 1) {
    const to = nfa.state()
    nfa.edge(at, digits(0, 9), to)
    nfa.free(to, final)
    nfa.edge(to, DOT, fraction)
    at = to
  }
  return nfa.determinize(start, final)
}

/** The texts of all numbers in the range; undefined when `multipleOf` cannot be kept. */
export const numbersIn = (range: NumberRange): Dfa | undefined => {
  const all = rangeAutomaton(range)
  if (range.multipleOf === undefined) return all
  const steps = multiples(range.multipleOf)
  return steps && intersect(all, steps)
}
