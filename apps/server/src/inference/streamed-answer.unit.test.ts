import { aModel } from '@parvis/testkit/data-plane'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Body, bufferToBody } from './body.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import { streamedAnswer } from './streamed-answer.ts'

const MODEL = aModel()

/** The few doors of an exchange that a stream uses; what goes out of them is kept. */
const openOutlet = () => {
  const written: Buffer[] = []
  const told: string[] = []
  const exchange = {
    begin: () => void told.push('begin'),
    write: (bytes: Buffer) => written.push(Buffer.from(bytes)) > 0,
    end: (last: Buffer) => void written.push(last),
    refuse: (refusal: { code: string }) => void told.push(refusal.code),
  } as unknown as Exchange
  return { exchange, told, text: () => Buffer.concat(written).toString() }
}

const REQUEST: Request = {
  enginePath: '',
  stream: true,
  wantsUsage: false,
  estimate: { inputTokens: 0, outputTokens: 0 },
  bytesFor: (): Body => bufferToBody(Buffer.alloc(0)),
  answerKey: 'choices',
}

const chunkOf = (rest: object): string => `data: ${JSON.stringify({ id: 'x', model: 'remote', ...rest })}`
const words = fc.string({
  unit: fc.constantFrom('a', 'é', '😀', '"', '\\', '\n', '"usage":{', 'data: [DONE]', '"model":"remote"'),
  maxLength: 5,
})
const told = { prompt_tokens: 3, completion_tokens: 9 }

/** Any stream that an engine may send, whose usage comes alone at its end. */
const stream = fc.record({
  words: fc.array(words, { minLength: 1, maxLength: 8 }),
  end: fc.constantFrom('\n\n', '\r\n\r\n'),
  comments: fc.boolean(),
  usage: fc.boolean(),
})

const read = (pieces: readonly Buffer[], wantsUsage: boolean, remote: string) => {
  const outlet = openOutlet()
  const answer = streamedAnswer(outlet.exchange, { ...REQUEST, wantsUsage }, MODEL, remote)
  for (const piece of pieces) answer.data(piece)
  const verdict = answer.end()
  if ('ending' in verdict) verdict.ending.finish()
  return { verdict, text: outlet.text() }
}

test('what comes out is the same however the engine cuts its stream, and only what must be changed is', () => {
  fc.assert(
    fc.property(stream, fc.array(fc.nat(), { maxLength: 30 }), fc.boolean(), fc.boolean(), (made, at, wantsUsage, renamed) => {
      const content = made.words.flatMap((text) => [
        chunkOf({ choices: [{ index: 0, delta: { content: text }, finish_reason: null }] }),
        ...(made.comments ? [': ping'] : []),
      ])
      const last = chunkOf({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })
      const usage = chunkOf({ choices: [], usage: told })
      const textOf = (events: readonly string[]): string => events.map((event) => event + made.end).join('')
      const all = Buffer.from(textOf([...content, last, ...(made.usage ? [usage] : []), 'data: [DONE]']))
      const borders = [0, ...at.map((place) => place % (all.length + 1)), all.length].toSorted((a, b) => a - b)
      const pieces = borders.slice(1).map((end, index) => all.subarray(borders[index], end))

      const { verdict, text } = read(pieces, wantsUsage, renamed ? 'remote' : MODEL.name)
      const shown = textOf([...content, last, ...(made.usage && wantsUsage ? [usage] : []), 'data: [DONE]'])
      // The name of the model stands in front of whatever the model says, so the first one in each event is the one.
      const expected = renamed ? shown.replaceAll('"id":"x","model":"remote"', `"id":"x","model":"${MODEL.name}"`) : shown
      expect(text).toBe(expected)
      expect(verdict).toMatchObject({
        ending: made.usage
          ? { ended: 'complete', counted: 'engine', counts: { input: 3, output: 9 } }
          : { ended: 'complete', counts: { input: 0, output: made.words.filter((said) => said !== '').length } },
      })
    }),
    { numRuns: 1000 },
  )
})

test.each([
  ['once, as it was asked for', { model: 'remote', choices: [] }],
  ['once, by a third name', { choices: [], model: 'remote-q4' }],
  ['below the top, too', { choices: [{ model: 'remote' }], model: 'remote' }],
])('the name of a model that stands %s is changed at the top and nowhere else', (_what, event) => {
  const { text } = read([Buffer.from(`data: ${JSON.stringify(event)}\n\n`)], false, 'remote')
  expect(text).toBe(`data: ${JSON.stringify({ ...event, model: MODEL.name })}\n\n`)
})

test('whatever an engine sends, it is an answer or a refusal and never a fault', () => {
  const piece = fc.oneof(
    fc.constantFrom('data: ', '\n\n', '\r\n\r\n', '{}', '{"error":1}', '[DONE]', '{"usage":{}}', 'event: error\n', '{"choices":[]}', ':'),
    fc.string({ maxLength: 5 }),
  )
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 20 }), (pieces) => {
      const { verdict } = read(
        pieces.map((text) => Buffer.from(text)),
        false,
        'remote',
      )
      expect('ending' in verdict || 'refusal' in verdict).toBe(true)
    }),
    { numRuns: 2000 },
  )
})
