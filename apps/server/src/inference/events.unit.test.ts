import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { dataOf, MAX_EVENT_BYTES, splitEvents } from './events.ts'

const split = (pieces: readonly Buffer[]): { events: string[]; rest: string; fits: boolean } => {
  const splitter = splitEvents()
  const events: string[] = []
  let fits = true
  for (const piece of pieces) fits = splitter.push(piece, (event) => events.push(event.toString())) && fits
  return { events, rest: splitter.rest().toString(), fits }
}

const cut = (bytes: Buffer, at: readonly number[]): Buffer[] => {
  const borders = [0, ...at.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  return borders.slice(1).map((end, index) => bytes.subarray(borders[index], end))
}

const line = fc.string({ unit: fc.constantFrom('a', 'é', '😀', '{', '"', ' ', ':', '\\n') }).map((text) => `data: ${text}`)
const event = fc
  .tuple(fc.array(line, { minLength: 1, maxLength: 3 }), fc.constantFrom('\n', '\r\n'))
  .map(([lines, end]) => `${lines.join(end)}${end}${end}`)

describe('the splitter', () => {
  test('gives the same events however the stream is cut, and loses no byte', () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 6 }), fc.array(fc.nat(), { maxLength: 20 }), (events, at) => {
        const parts = split(cut(Buffer.from(events.join('')), at))
        expect(parts.events).toEqual(events)
        expect(parts.rest).toBe('')
      }),
      { numRuns: 2000 },
    )
  })

  test('keeps what has no blank line yet', () => {
    expect(split([Buffer.from('data: a\n\ndata: b'), Buffer.from('\n')])).toEqual({
      events: ['data: a\n\n'],
      rest: 'data: b\n',
      fits: true,
    })
  })

  test('says so when an event never ends, before it fills the memory', () => {
    const pieces = Array.from({ length: 17 }, () => Buffer.alloc(MAX_EVENT_BYTES / 16, 'x'))
    expect(split(pieces.slice(0, 16)).fits).toBe(true)
    expect(split(pieces).fits).toBe(false)
  })
})

test.each<[string, string, string | undefined]>([
  ['one line', 'data: {"a":1}\n\n', '{"a":1}'],
  ['one line behind a name', 'event: x\r\ndata:{"a":1}\r\n\r\n', '{"a":1}'],
  ['several lines', 'data: {\ndata: "a":1}\n\n', '{\n "a":1}'],
  ['characters that look like the end of a line', 'data: {"a":"\u2028b\u0085c\u2029"}\n\n', '{"a":"\u2028b\u0085c\u2029"}'],
  ['a comment', ': data: no\n\n', undefined],
])('the payload of an event is read from %s', (_what, event, payload) => {
  expect(dataOf(Buffer.from(event))).toBe(payload)
})
