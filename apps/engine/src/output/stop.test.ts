import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openStop } from './stop.ts'

const run = (stops: readonly string[], pieces: readonly string[]) => {
  const stop = openStop(stops)
  let text = ''
  let matched: string | undefined
  for (const piece of pieces) {
    const pushed = stop.push(piece)
    text += pushed.text
    matched = pushed.matched
  }
  return { text: text + stop.end(), matched }
}

test.each([
  { stops: ['\n\n'], pieces: ['a\n', '\nb'], text: 'a', matched: '\n\n' },
  { stops: ['END'], pieces: ['the E', 'N', 'd EN', 'D more'], text: 'the ENd ', matched: 'END' },
  { stops: ['aab'], pieces: ['a', 'a', 'a', 'b'], text: 'a', matched: 'aab' },
  { stops: ['never'], pieces: ['nev', 'er', 'y'], text: '', matched: 'never' },
  { stops: ['never'], pieces: ['ne', 've'], text: 'neve', matched: undefined },
  { stops: [], pieces: ['a', 'b'], text: 'ab', matched: undefined },
  { stops: [''], pieces: ['a'], text: 'a', matched: undefined },
  { stops: ['bc', 'abcd'], pieces: ['abcd'], text: 'a', matched: 'bc' },
  { stops: ['b', 'ab'], pieces: ['xab'], text: 'x', matched: 'ab' },
  { stops: ['😀'], pieces: ['a😀b'], text: 'a', matched: '😀' },
])('the stops $stops end the text $pieces', ({ stops, pieces, text, matched }) => {
  expect(run(stops, pieces)).toEqual({ text, matched })
})

test('nothing is given out after a stop', () => {
  const stop = openStop(['x'])
  expect(stop.push('axb')).toEqual({ text: 'a', matched: 'x' })
  expect(stop.push('more')).toEqual({ text: '', matched: 'x' })
  expect(stop.end()).toBe('')
})

test('only what may become a stop is held back', () => {
  const stop = openStop(['<end>'])
  expect(stop.push('hello <').text).toBe('hello ')
  expect(stop.push('b').text).toBe('<b')
  expect(stop.push('<en').text).toBe('')
  expect(stop.end()).toBe('<en')
})

const letters = fc.constantFrom('a', 'b', 'c')

test('a text ends at the same place wherever it is cut, and never shows a stop', () => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 4 }), { maxLength: 3 }),
      fc.array(fc.string({ unit: letters, maxLength: 4 }), { maxLength: 12 }),
      (stops, pieces) => {
        const whole = run(stops, [pieces.join('')])
        expect(run(stops, pieces)).toEqual(whole)
        expect(run(stops, Array.from(pieces.join('')))).toEqual(whole)
        expect(pieces.join('').startsWith(whole.text + (whole.matched ?? ''))).toBe(true)
        expect(whole.matched !== undefined || whole.text === pieces.join('')).toBe(true)
        for (const stop of stops) expect(whole.text.includes(stop)).toBe(false)
      },
    ),
    { numRuns: 1000 },
  )
})
