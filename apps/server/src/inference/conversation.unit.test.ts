import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Body, bufferToBody, slice } from './body.ts'
import { readConversation } from './conversation.ts'

const read = (body: Body) => readConversation(body, { start: 0, end: body.bytes })
const readText = (value: unknown) => read(bufferToBody(Buffer.from(typeof value === 'string' ? value : JSON.stringify(value))))
const wrongOf = (value: unknown): string => {
  const told = readText(value)
  return told.ok ? 'accepted' : told.refusal.code === 'field_invalid' ? told.refusal.field : told.refusal.code
}
const user = (content: unknown) => [{ role: 'user', content }]
const picture = (url: unknown) => ({ type: 'image_url', image_url: { url } })

describe('the messages of a request', () => {
  const part = fc.oneof(
    fc.record({ type: fc.constant('text'), text: fc.string({ unit: 'binary' }) }),
    fc.record({ type: fc.constant('image_url'), image_url: fc.record({ detail: fc.string(), url: fc.string({ minLength: 1 }) }) }),
    fc.record({
      type: fc.constant('input_audio'),
      input_audio: fc.record({ data: fc.string({ minLength: 1 }), format: fc.constantFrom('wav', 'mp3') }),
    }),
  )
  const message = fc.oneof(
    fc.record({ role: fc.constantFrom('system', 'developer', 'assistant', 'tool'), content: fc.string(), name: fc.jsonValue() }),
    fc.record({ content: fc.array(part), extra: fc.jsonValue(), role: fc.constant('user') }),
    fc.record({ role: fc.constant('assistant'), content: fc.constant(null), tool_calls: fc.array(fc.jsonValue(), { maxLength: 2 }) }),
  )

  test('are read as JSON.parse reads them, however the body is cut', () => {
    fc.assert(
      fc.property(
        fc.array(message, { minLength: 1, maxLength: 6 }),
        fc.array(fc.nat(), { maxLength: 8 }),
        fc.constantFrom(undefined, 2),
        (messages, at, indent) => {
          const bytes = Buffer.from(JSON.stringify(messages, undefined, indent))
          const borders = [0, ...at.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
          const body = { pieces: borders.slice(1).map((end, index) => bytes.subarray(borders[index], end)), bytes: bytes.length }
          const told = read(body)
          if (!told.ok) throw new Error(JSON.stringify(told.refusal))
          const textOf = (span: { start: number; end: number }): unknown => JSON.parse(slice(body, span).toString())
          const parts = messages.flatMap((each) => (Array.isArray(each.content) ? each.content : []))
          expect(told.value.turns.map((turn) => turn.role)).toEqual(messages.map((each) => each.role))
          expect(told.value.turns.map((turn) => textOf(turn.roleSpan))).toEqual(messages.map((each) => each.role))
          expect(told.value.turns.map((turn) => turn.callsTools)).toEqual(
            messages.map((each) => 'tool_calls' in each && each.tool_calls.length > 0),
          )
          expect(told.value.images.map(({ span }) => textOf(span))).toEqual(
            parts.flatMap((each) => ('image_url' in each ? [each.image_url.url] : [])),
          )
          expect(told.value.sounds.map(({ span, format }) => ({ data: textOf(span), format }))).toEqual(
            parts.flatMap((each) => ('input_audio' in each ? [each.input_audio] : [])),
          )
        },
      ),
      { numRuns: 1000 },
    )
  })

  test.each<[unknown, string]>([
    ['[]', 'messages'],
    ['{}', 'messages'],
    ['["Hi"]', 'messages[0]'],
    [[{ content: 'Hi' }], 'messages[0].role'],
    [[{ role: 'robot', content: 'Hi' }], 'messages[0].role'],
    [user({ type: 'video_url' }), 'messages[0].content'],
    [user(['Hi']), 'messages[0].content[0]'],
    [user([{ type: 'video_url', video_url: { url: 'http://10.0.0.1/' } }]), 'messages[0].content[0].type'],
    [user([{ type: 'audio_url', audio_url: { url: 'http://10.0.0.1/' } }]), 'messages[0].content[0].type'],
    [user([{ image_url: 'http://10.0.0.1/' }]), 'messages[0].content[0].image_url'],
    [user([{ type: 'image_url', image_url: 'http://10.0.0.1/' }]), 'messages[0].content[0].image_url'],
    [user([picture(7)]), 'messages[0].content[0].image_url.url'],
    [user([picture('')]), 'messages[0].content[0].image_url.url'],
    [user([{ type: 'input_audio', input_audio: { data: 'AAAA', format: 'flac' } }]), 'messages[0].content[0].input_audio.format'],
    [[{ role: 'system', content: [picture('http://a')] }], 'messages[0].content[0].type'],
    [[{ content: [picture('http://a')], role: 'tool' }], 'messages[0].content[0].type'],
    // Of two, an engine may believe the one that we did not look at.
    ['[{"role":"user","content":"a","content":[{"type":"video_url"}]}]', 'messages[0].content'],
    ['[{"role":"user","content":[{"type":"text","type":"video_url"}]}]', 'messages[0].content[0].type'],
    [
      '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://a","url":"http://b"}}]}]',
      'messages[0].content[0].image_url.url',
    ],
    ['[{"role":"user","content":[{"t\\u0079pe":"video_url"}]}]', 'messages[0].content[0].type'],
    // Engines written in Go take these for the keys that they look like.
    ['[{"role":"user","content":"a","Content":[{"type":"video_url"}]}]', 'messages[0].content'],
    ['[{"role":"user","content":"a","Role":"system"}]', 'messages[0].role'],
    ['[{"role":"user","content":[{"type":"text","text":"a","Type":"video_url"}]}]', 'messages[0].content[0].type'],
    [
      '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://a","URL":"http://b"}}]}]',
      'messages[0].content[0].image_url.url',
    ],
    [
      '[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav","Data":"BBBB"}}]}]',
      'messages[0].content[0].input_audio.data',
    ],
    ['[{"role":"user","content":"a"},]', 'body_not_json'],
    ['[{"role":"user","content":"a"}', 'body_not_json'],
    ['[{"role":"user","content":[1,2}]', 'body_not_json'],
  ])('are refused where they are wrong, and the place is named: %j', (messages, field) => {
    expect(wrongOf(messages)).toBe(field)
  })

  test('are bounded in number', () => {
    expect(wrongOf(Array.from({ length: 20_000 }, () => ({ role: 'user', content: 'a' })))).toBe('accepted')
    expect(wrongOf(Array.from({ length: 20_001 }, () => ({ role: 'user', content: 'a' })))).toBe('messages')
    expect(wrongOf(user(Array.from({ length: 20_001 }, () => ({ type: 'text', text: '' }))))).toBe('messages')
  })

  test('of any bytes whatever are read or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
        expect(read(bufferToBody(Buffer.concat([Buffer.from('[{"role":"user","content":['), bytes])))).toHaveProperty('ok')
      }),
      { numRuns: 2000 },
    )
  })
})
