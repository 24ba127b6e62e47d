import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { bufferToBody, piecesToBody } from './body.ts'
import { guessUnseen, type Mix, mixOf, openGuesses, plus } from './guess.ts'

const mix = (text: string): Mix => {
  const bytes = Buffer.from(text)
  return mixOf(bufferToBody(bytes), [{ start: 0, end: bytes.length }])
}

/** Random numbers below one, the same for a seed. */
const randomFrom = (seed: number): (() => number) => {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

describe('what a text is made of', () => {
  test.each<[string, string, Mix]>([
    ['words and the spaces before them', 'a cat sat', { words: 9, marks: 0, wide: 0 }],
    ['a run of spaces, of which one counts', 'a        b', { words: 3, marks: 0, wide: 0 }],
    ['digits, each for itself', '12345', { words: 0, marks: 5, wide: 0 }],
    ['signs, which share a token where they stand together', '":"', { words: 0, marks: 1.8, wide: 0 }],
    ['other scripts, by the byte', 'Ä你', { words: 0, marks: 0, wide: 5 }],
    ['the same characters, escaped', '\\u4f60', { words: 0, marks: 0, wide: 3 }],
    ['an escaped line end', 'a\\nb', { words: 2, marks: 1, wide: 0 }],
    ['what is too long for a word', 'x'.repeat(30), { words: 23, marks: 7, wide: 0 }],
  ])('%s', (_, text, expected) => {
    const { words, marks, wide } = mix(text)
    expect({ words, marks: Math.round(marks * 10) / 10, wide }).toEqual(expected)
  })

  test('never more bytes than there are, wherever the pieces are cut', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 4_000 }), fc.array(fc.nat({ max: 4_000 }), { maxLength: 5 }), (given, cuts) => {
        const bytes = Buffer.from(given)
        const at = [0, ...cuts.filter((cut) => cut < bytes.length).toSorted((a, b) => a - b), bytes.length]
        const pieces = at.slice(1).map((end, index) => bytes.subarray(at[index], end))
        const whole = mixOf(bufferToBody(bytes), [{ start: 0, end: bytes.length }])
        expect(mixOf(piecesToBody(pieces, bytes.length), [{ start: 0, end: bytes.length }])).toEqual(whole)
        // An escape stands for fewer bytes than it is; the last of a window may be cut off.
        expect(whole.words + whole.marks + whole.wide).toBeLessThanOrEqual(bytes.length * 1.25 + 3)
      }),
    )
  })

  test('of a long text a few places tell nearly the same as all of it', () => {
    const words = ['the ', 'quick, ', '2026 ', 'größer ', '你好', 'a "b" ', '(x + 1) ']
    fc.assert(
      fc.property(fc.integer(), (seed) => {
        const random = randomFrom(seed)
        const chosen = Array.from({ length: 3_000 }, () => words[Math.floor(random() * words.length)] ?? '')
        const whole = chosen.map(mix).reduce((sum, one) => plus(sum, one, 1))
        const looked = mix(chosen.join(''))
        const [all, some] = [guessUnseen('', whole).tokens, guessUnseen('', looked).tokens]
        expect(Math.abs(some - all)).toBeLessThan(all * 0.25)
      }),
      { numRuns: 50 },
    )
  })

  test('an image between two texts is no text, however large it is', () => {
    const [before, image, after] = [Buffer.from('word '.repeat(400)), Buffer.alloc(200_000, 'A9/+'), Buffer.from('你好'.repeat(300))]
    const bytes = Buffer.concat([before, image, after])
    const place = { start: before.length, end: before.length + image.length }
    const seen = mixOf(bufferToBody(bytes), [{ start: 0, end: bytes.length }], [place])
    expect(seen.marks).toBe(0)
    expect(seen.words + seen.wide).toBeCloseTo(before.length + after.length, 0)
  })

  test('a field that is not there weighs nothing', () => {
    expect(mixOf(bufferToBody(Buffer.from('{}')), [undefined])).toEqual({ words: 0, marks: 0, wide: 0 })
  })
})

describe('what a gateway learns', () => {
  const vocabulary = fc.record({
    words: fc.double({ min: 0.15, max: 0.6, noNaN: true }),
    marks: fc.double({ min: 0.3, max: 1, noNaN: true }),
    wide: fc.double({ min: 0.1, max: 1, noNaN: true }),
  })

  test('of any vocabulary, from some hundred counts', () => {
    fc.assert(
      fc.property(vocabulary, fc.integer(), (perByte, seed) => {
        const guesses = openGuesses()
        const random = randomFrom(seed)
        const truthOf = (of: Mix): number =>
          Math.max(1, Math.round(of.words * perByte.words + of.marks * perByte.marks + of.wide * perByte.wide))
        for (let text = 0; text < 300; text += 1) {
          const one = { words: 20_000 * random(), marks: 5_000 * random(), wide: 20_000 * random() }
          guesses.learn('model', one, truthOf(one))
        }
        const fair = { words: 4_000, marks: 1_000, wide: 500 }
        const { tokens } = guesses.guess('model', fair)
        expect(Math.abs(tokens - truthOf(fair))).toBeLessThan(truthOf(fair) * 0.2)
      }),
      { numRuns: 50 },
    )
  })

  test('guesses close in on what a model counts, and their bounds too; another model learns nothing of it', () => {
    const guesses = openGuesses()
    const english = { words: 4_000, marks: 200, wide: 0 }
    for (let round = 0; round < 100; round += 1) guesses.learn('one', english, 4_000)
    const { tokens, least, most } = guesses.guess('one', english)
    expect(tokens).toBeGreaterThan(3_900)
    expect(most - least).toBeLessThan(tokens * 0.2)
    expect(guesses.guess('other', english)).toEqual(guessUnseen('other', english))
  })

  test('a short text, of which most is its template, teaches nothing, and an absurd count not much', () => {
    const guesses = openGuesses()
    guesses.learn('model', { words: 100, marks: 20, wide: 0 }, 5_000)
    expect(guesses.guess('model', { words: 4_000, marks: 0, wide: 0 }).tokens).toBe(1_000)
    for (let round = 0; round < 1_000; round += 1) guesses.learn('model', { words: 1_000, marks: 0, wide: 0 }, 1_000_000_000)
    expect(guesses.guess('model', { words: 1_000, marks: 0, wide: 0 }).tokens).toBe(1_200)
    for (let round = 0; round < 1_000; round += 1) guesses.learn('model', { words: 1_000, marks: 0, wide: 0 }, 1)
    expect(guesses.guess('model', { words: 1_000, marks: 0, wide: 0 }).tokens).toBeGreaterThanOrEqual(20)
  })

  test('until it has, the bounds are twice and half of the guess', () => {
    expect(guessUnseen('model', { words: 4_000, marks: 0, wide: 0 })).toMatchObject({ tokens: 1_000, least: 500, most: 2_000 })
  })
})
