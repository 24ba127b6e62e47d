import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openText } from './text.ts'

// Every token is one byte, so that a character takes up to four of them.
const detokenize = (tokens: readonly number[]): string => Buffer.from(tokens).toString('utf8')

test('joined, the pieces are the text, and none of them has half a character', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (whole) => {
      const text = openText(detokenize, [])
      const pieces = [...Buffer.from(whole)].map((token) => text.push(token))
      pieces.push(text.end())
      expect(pieces.join('')).toBe(whole)
      expect(pieces.some((piece) => piece.includes('\uFFFD'))).toBe(whole.includes('\uFFFD'))
    }),
  )
})

test('bytes that never become a character come out in the end, and do not hold up what follows', () => {
  const text = openText(detokenize, [])
  const pieces = Array.from({ length: 20 }, () => text.push(0xff))
  expect(pieces.join('')).toContain('\uFFFD')
  expect(openText(detokenize, []).end()).toBe('')
})
