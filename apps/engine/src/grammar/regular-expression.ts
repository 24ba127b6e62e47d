import { ANY, type Dfa, isEmpty, joinRanges, type Nfa, openNfa, withoutRanges } from './automaton.ts'
import type { Range } from './gbnf.ts'

/*
 * Regular expressions as JSON Schema means them (ECMAScript, found anywhere in the text unless anchored), read into an automaton.
 * What is not regular (look-around, back-references) or depends on tables we do not carry (Unicode properties, word boundaries,
 * ignoring case) is refused by name.
 */

export type ReadPattern = { ok: true; dfa: Dfa } | { ok: false; reason: string }

class Unreadable extends Error {}

const DIGIT: readonly Range[] = [[0x30, 0x39]]
const WORD: readonly Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
]
const SPACE: readonly Range[] = [
  [9, 13],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
]
const LINE_ENDS: readonly Range[] = [
  [10, 10],
  [13, 13],
  [0x2028, 0x2029],
]
const CLASSES: Record<string, readonly Range[]> = {
  d: DIGIT,
  D: withoutRanges(ANY, DIGIT),
  w: WORD,
  W: withoutRanges(ANY, WORD),
  s: SPACE,
  S: withoutRanges(ANY, SPACE),
}
const CONTROLS: Record<string, number> = { t: 9, n: 10, v: 11, f: 12, r: 13, '0': 0 }
const MAX_COUNT = 5000 // repetitions are written out
const MAX_NESTING = 100

type Expression =
  | { is: 'chars'; ranges: readonly Range[] }
  | { is: 'all'; parts: Expression[] }
  | { is: 'any'; parts: Expression[] }
  | { is: 'repeat'; part: Expression; least: number; most: number | undefined }
  | { is: 'start' }
  | { is: 'end' }

const parse = (pattern: string): Expression => {
  const chars = Array.from(pattern) // code points, as with the u flag
  let at = 0
  let nesting = 0

  const hexCode = (length: number): number => {
    const digits = chars.slice(at, at + length).join('')
    if (!new RegExp(`^[0-9a-fA-F]{${length}}$`).test(digits)) throw new Unreadable('an incomplete \\x or \\u escape')
    at += length
    return Number.parseInt(digits, 16)
  }

  /** What follows a backslash: a code point, or a class of them. */
  const escape = (): number | readonly Range[] => {
    const char = chars[at]
    at += 1
    if (char === undefined) throw new Unreadable('a backslash at the end')
    const known = CLASSES[char]
    if (known !== undefined) return known
    if (char === '0' && /[0-9]/.test(chars[at] ?? '')) throw new Unreadable('octal escapes are not supported')
    const control = CONTROLS[char]
    if (control !== undefined) return control
    if (char === 'x') return hexCode(2)
    if (char === 'u') {
      if (chars[at] === '{') {
        const end = chars.indexOf('}', at)
        const code = Number.parseInt(chars.slice(at + 1, end).join(''), 16)
        if (end < 0 || !(code <= 0x10ffff)) throw new Unreadable('an incomplete \\u escape')
        at = end + 1
        return code
      }
      const code = hexCode(4)
      if (code < 0xd800 || code > 0xdbff || chars[at] !== '\\' || chars[at + 1] !== 'u') return code
      at += 2
      return 0x10000 + ((code - 0xd800) << 10) + (hexCode(4) - 0xdc00)
    }
    if (char === 'c') {
      const letter = chars[at]
      at += 1
      if (letter === undefined || !/[A-Za-z]/.test(letter)) throw new Unreadable('an incomplete \\c escape')
      return letter.charCodeAt(0) % 32
    }
    if (char === 'b' || char === 'B') throw new Unreadable('word boundaries (\\b) are not supported')
    if (char === 'p' || char === 'P') throw new Unreadable('Unicode properties (\\p) are not supported')
    if (/[1-9k]/.test(char)) throw new Unreadable('back-references are not supported')
    if (/[A-Za-z]/.test(char)) throw new Unreadable(`the escape \\${char} is not known`)
    return char.codePointAt(0) ?? 0
  }

  const charClass = (): Expression => {
    const negated = chars[at] === '^'
    if (negated) at += 1
    const ranges: Range[] = []
    for (;;) {
      const char = chars[at]
      if (char === undefined) throw new Unreadable('a character class is not closed')
      at += 1
      if (char === ']') break
      const one = (first: string) => {
        if (first !== '\\') return first.codePointAt(0) ?? 0
        if (chars[at] !== 'b') return escape()
        at += 1
        return 8 // inside a class \b is a backspace
      }
      const low = one(char)
      if (typeof low !== 'number') {
        ranges.push(...low)
        continue
      }
      const after = chars[at + 1]
      if (chars[at] !== '-' || after === undefined || after === ']') {
        ranges.push([low, low])
        continue
      }
      at += 2
      const high = one(after)
      if (typeof high === 'number') {
        if (high < low) throw new Unreadable('a character range runs backwards')
        ranges.push([low, high])
      } else ranges.push([low, low], [0x2d, 0x2d], ...high)
    }
    return { is: 'chars', ranges: negated ? withoutRanges(ANY, ranges) : clip(ranges) }
  }

  const atom = (): Expression => {
    const char = chars[at]
    at += 1
    if (char === '^') return { is: 'start' }
    if (char === '$') return { is: 'end' }
    if (char === '.') return { is: 'chars', ranges: withoutRanges(ANY, LINE_ENDS) }
    if (char === '[') return charClass()
    if (char === '(') {
      if (chars[at] === '?') {
        const kind = chars[at + 1]
        if (kind === ':') at += 2
        else if (kind === '<' && chars[at + 2] !== '=' && chars[at + 2] !== '!') {
          const end = chars.indexOf('>', at)
          if (end < 0) throw new Unreadable('a group name is not closed')
          at = end + 1
        } else if (kind === '=' || kind === '!' || kind === '<') throw new Unreadable('look-ahead and look-behind are not supported')
        else throw new Unreadable('flags inside a pattern are not supported')
      }
      nesting += 1
      if (nesting > MAX_NESTING) throw new Unreadable('groups are nested too deeply')
      const inner = choice()
      nesting -= 1
      if (chars[at] !== ')') throw new Unreadable('a group is not closed')
      at += 1
      return inner
    }
    if (char === '\\') {
      const escaped = escape()
      return { is: 'chars', ranges: clip(typeof escaped === 'number' ? [[escaped, escaped]] : escaped) }
    }
    if (char === undefined || '*+?'.includes(char)) throw new Unreadable('there is nothing to repeat')
    const code = char.codePointAt(0) ?? 0
    return { is: 'chars', ranges: clip([[code, code]]) }
  }

  const repetition = (): { least: number; most: number | undefined } | undefined => {
    const char = chars[at]
    if (char === '*' || char === '+' || char === '?') {
      at += 1
      return { least: char === '+' ? 1 : 0, most: char === '?' ? 1 : undefined }
    }
    if (char !== '{') return undefined
    const counts = /^\{(\d+)(,(\d*))?\}/.exec(chars.slice(at, at + 24).join(''))
    if (counts === null) return undefined // a lone brace is a character, as in ECMAScript without the u flag
    at += counts[0].length
    const least = Number(counts[1])
    const most = counts[2] === undefined ? least : counts[3] === '' ? undefined : Number(counts[3])
    if (least > MAX_COUNT || (most ?? 0) > MAX_COUNT) throw new Unreadable(`a repetition of more than ${MAX_COUNT} is not supported`)
    if (most !== undefined && most < least) throw new Unreadable('a repetition runs backwards')
    return { least, most }
  }

  const sequence = (): Expression => {
    const parts: Expression[] = []
    while (at < chars.length && chars[at] !== '|' && chars[at] !== ')') {
      const part = atom()
      const counts = repetition()
      if (counts !== undefined && chars[at] === '?') at += 1 // lazy: the same language
      parts.push(counts === undefined ? part : { is: 'repeat', part, ...counts })
    }
    return { is: 'all', parts }
  }

  const choice = (): Expression => {
    const parts = [sequence()]
    while (chars[at] === '|') {
      at += 1
      parts.push(sequence())
    }
    return parts.length === 1 && parts[0] !== undefined ? parts[0] : { is: 'any', parts }
  }

  const whole = choice()
  if (at < chars.length) throw new Unreadable('a closing parenthesis too many')
  return whole
}

/** Halves of surrogate pairs cannot stand alone in a text. */
const clip = (ranges: readonly Range[]): Range[] => withoutRanges(joinRanges(ranges), [[0xd800, 0xdfff]])

/** Builds the expression behind `from` and gives the state after it. */
const build = (nfa: Nfa, expression: Expression, from: number): number => {
  switch (expression.is) {
    case 'chars': {
      const to = nfa.state()
      nfa.edge(from, expression.ranges, to)
      return to
    }
    case 'all':
      return expression.parts.reduce((state, part) => build(nfa, part, state), from)
    case 'any': {
      const to = nfa.state()
      for (const part of expression.parts) nfa.free(build(nfa, part, from), to)
      return to
    }
    case 'repeat': {
      // Every round begins in a state of its own: an anchor or a loop inside must not leak into what stands before.
      let at = nfa.state()
      nfa.free(from, at)
      for (let count = 0; count < expression.least; count += 1) at = build(nfa, expression.part, at)
      const to = nfa.state()
      nfa.free(at, to)
      if (expression.most === undefined) {
        const round = nfa.state()
        nfa.free(at, round)
        const end = build(nfa, expression.part, round)
        nfa.free(end, round)
        nfa.free(end, to)
      } else {
        for (let count = expression.least; count < expression.most; count += 1) {
          at = build(nfa, expression.part, at)
          nfa.free(at, to)
        }
      }
      return to
    }
    case 'start':
    case 'end': {
      const to = nfa.state()
      nfa.free(from, to, expression.is)
      return to
    }
  }
}

/** Reads a pattern. The automaton accepts every text in which it is found. */
export const readPattern = (pattern: string): ReadPattern => {
  try {
    const nfa = openNfa()
    const before = nfa.state()
    nfa.edge(before, ANY, before)
    const start = nfa.state()
    nfa.free(before, start)
    const found = build(nfa, parse(pattern), start)
    const after = nfa.state()
    nfa.free(found, after)
    nfa.edge(after, ANY, after)
    const dfa = nfa.determinize(before, after)
    return isEmpty(dfa) ? { ok: false, reason: 'no text can match it' } : { ok: true, dfa }
  } catch (error) {
    if (error instanceof Unreadable) return { ok: false, reason: error.message }
    throw error
  }
}
