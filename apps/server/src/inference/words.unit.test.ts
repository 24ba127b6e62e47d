import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openWords } from './words.ts'

const frame = (content: string, index = 0): Record<string, unknown> => ({ choices: [{ index, delta: { content } }] })
const latin1 = (json: string): string => Buffer.from(json).toString('latin1')

test('words are the same whether they come parsed or as they stand in JSON, wherever an engine cuts them', () => {
  const piece = fc.oneof(fc.string({ unit: 'binary', maxLength: 40 }), fc.constantFrom('\ud83d', '\ude00', '"', '\\', '\n'))
  fc.assert(
    fc.property(fc.array(fc.tuple(piece, fc.boolean())), (said) => {
      const words = openWords()
      for (const [text, parsed] of said) {
        const json = latin1(JSON.stringify(text))
        if (parsed) words.add(frame(text))
        else words.addText(`{"content":${json}}`, '{"content":"'.length, '{"content":'.length + json.length - 1)
      }
      const whole = said.map(([text]) => text).join('')
      expect(words.all()).toEqual(whole === '' ? [] : [whole])
    }),
  )
})

test('answers side by side are told apart, up to eight of them', () => {
  const words = openWords()
  for (let index = 0; index < 8; index += 1) {
    words.add(frame(`${index} is `, index))
    words.add(frame('said', index))
  }
  expect(words.all()).toEqual(Array.from({ length: 8 }, (_, index) => `${index} is said`))
  words.add(frame('one too many', 8))
  expect(words.all()).toBeUndefined()
})

test('what is no JSON text is counted as it stands', () => {
  const words = openWords()
  words.addText('a\\x', 0, 3)
  expect(words.all()).toEqual(['a\\x'])
})

test('more than four megabytes are not held', () => {
  const words = openWords()
  const megabyte = 'x'.repeat(1024 * 1024)
  for (let count = 0; count < 5; count += 1) words.add(frame(megabyte))
  expect(words.all()).toBeUndefined()
})
