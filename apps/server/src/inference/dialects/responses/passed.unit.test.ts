import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { scriptedResponseEvents } from '@parvis/testkit/scripted-responses'
import { eventReader } from '@parvis/wire/sse'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Instant, systemClock } from '../../../kit/clock.ts'
import type { RequestId } from '../../../kit/ids.ts'
import type { Answer } from '../../answer.ts'
import type { Body } from '../../body.ts'
import { responses } from '../../endpoints/responses.ts'
import type { Exchange } from '../../exchange.ts'

// Streams of responses, cut anywhere and with any byte in them.

const MODEL = aModel()
const BODY = Buffer.from(JSON.stringify({ model: MODEL.name, input: 'Hi', stream: true }))

/** The answer to a request, and what the client got of it. */
const open = (remoteModel: string): { answer: Answer; got: () => string } => {
  const endpoint = responses(systemClock)
  const body: Body = { pieces: [BODY], bytes: BODY.length }
  const reading = endpoint.read(body)
  const request = reading.ok ? endpoint.check(reading.value, MODEL) : reading
  if (!request.ok) throw new Error(JSON.stringify(request.refusal))
  let text = ''
  let begun = false
  let over = false
  let failing: Parameters<Exchange['begin']>[0]
  const exchange = {
    id: '01a202a3-d8f4-77f3-81d1-25e4e0421903' as RequestId,
    acceptedAt: 0 as Instant,
    begin(inDialect: typeof failing) {
      failing = inDialect
      begun = true
    },
    write(bytes: Buffer) {
      expect([begun, over]).toEqual([true, false])
      text += bytes.toString()
      return true
    },
    end(bytes: Buffer) {
      expect(over).toBe(false)
      over = true
      text += bytes.toString()
    },
    refuse: (refusal: Parameters<NonNullable<typeof failing>>[0]) => exchange.end(failing?.(refusal) ?? Buffer.from('refused')),
  }
  const answer = request.value.native?.request.openAnswer?.(exchange as unknown as Exchange, { remoteModel, spend: () => undefined })
  if (answer === undefined) throw new Error('no answer is made of it')
  return { answer, got: () => text }
}

/** Everything that a client gets of these bytes, in these pieces, and how it ended. */
const passed = (bytes: Buffer, cuts: readonly number[], remoteModel = MODEL.name): { text: string; ended: string; output: number } => {
  const { answer, got } = open(remoteModel)
  const borders = [0, ...cuts.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  let verdict: ReturnType<Answer['end']> | undefined
  for (const [index, end] of borders.slice(1).entries()) {
    const told = answer.data(bytes.subarray(borders[index], end))
    if (told === undefined || told === 'wait') continue
    verdict = told === 'done' ? answer.end() : told
    break
  }
  verdict ??= answer.end()
  if (!('ending' in verdict)) return { text: `${got()} ${verdict.refusal.code}`, ended: 'refused', output: 0 }
  verdict.ending.finish()
  return { text: got(), ended: verdict.ending.ended, output: verdict.ending.counts.output }
}

const script = fc.record(
  {
    tokens: fc.array(fc.oneof(fc.string({ unit: 'grapheme', maxLength: 6 }), fc.constantFrom('\u2028', '\n\n', 'data: ')), {
      maxLength: 6,
    }),
    reasoning: fc.array(fc.string({ unit: 'grapheme', maxLength: 6 }), { minLength: 1, maxLength: 3 }),
    toolCalls: fc.constant([{ id: 'call_1', name: 'f', arguments: '{"a": [1, "x"]}' }]),
    finishReason: fc.constantFrom('stop', 'length'),
    crlf: fc.boolean(),
    done: fc.constant(false as const),
  },
  { requiredKeys: [] },
)

const bytesOf = (played: Script, model: string): Buffer =>
  Buffer.from([...scriptedResponseEvents(played, { model }, 7)].map(({ text }) => text).join(''))

/** Each event is whole, named as its type, and numbered one above the last. */
const expectWhole = (text: string): void => {
  const events = eventReader()(text)
  for (const [index, { name, data }] of events.entries()) {
    const read = JSON.parse(data) as { type: string; sequence_number: number }
    expect([name, read.sequence_number]).toEqual([read.type, index])
  }
}

test('a stream is the same wherever it was cut, whole in each event, and numbered without a gap', () => {
  fc.assert(
    fc.property(script, fc.array(fc.nat(), { maxLength: 30 }), fc.boolean(), (played, cuts, renamed) => {
      const name = renamed ? 'Org/remote' : MODEL.name
      const bytes = bytesOf(played as Script, name)
      const whole = passed(bytes, [], name)
      expect(passed(bytes, cuts, name)).toEqual(whole)
      expectWhole(whole.text)
      expect(whole.text).not.toContain('Org/remote')
      expect(whole.ended).toBe(played.done === false ? 'engine_failed' : played.finishReason === 'length' ? 'length' : 'complete')
      // A good one goes through as it is.
      if (!renamed && played.done !== false) expect(whole.text).toBe(bytes.toString())
    }),
    { numRuns: 200 },
  )
})

test('a stream with any bytes in it ends somehow, the same wherever it was cut, and what was sent of it is whole', () => {
  fc.assert(
    fc.property(
      script,
      fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }),
      fc.array(fc.nat(), { maxLength: 12 }),
      fc.option(fc.nat(), { freq: 3 }),
      (played, flips, cuts, cutOff) => {
        let bytes = bytesOf(played as Script, MODEL.name)
        for (const [at, value] of flips) bytes[at % bytes.length] = value
        if (cutOff !== null) bytes = bytes.subarray(0, cutOff % bytes.length)
        const whole = passed(bytes, [])
        expect(passed(bytes, cuts)).toEqual(whole)
        // A byte that makes another event of two, or another name, is passed on; numbers are ours.
        const numbers = [...whole.text.matchAll(/^data: \{.*?"sequence_number":(\d+)/gm)].map(([, number]) => Number(number))
        expect(numbers).toEqual(numbers.map((_, index) => index))
      },
    ),
    { numRuns: 300 },
  )
})

test('an answer that repeats a large request, and one that has much to say, come through', async () => {
  const said = 'x'.repeat(3 << 20)
  await using engine = await startScriptedEngine({ tokens: [said] })
  await using plane = await startDataPlane({
    engine: engine.url,
    models: [aModel({ contextTokens: 100_000_000 })],
    replica: { speaks: ['responses'] },
  })
  const answer = await plane.ask('/v1/responses', { model: MODEL.name, instructions: 'y'.repeat(2 << 20), input: 'Hi', stream: true })
  const text = await answer.text()
  expect(text).toContain('event: response.completed')
  expect(plane.records).toMatchObject([{ ended: 'complete' }])
})
