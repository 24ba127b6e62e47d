import { aModel } from '@parvis/testkit/data-plane'
import type { MessagesRequest } from '@parvis/wire/anthropic/messages'
import type { ResponsesRequest } from '@parvis/wire/openai/responses'
import { eventReader } from '@parvis/wire/sse'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Instant, systemClock } from '../../kit/clock.ts'
import type { RequestId } from '../../kit/ids.ts'
import { type Body, bufferToBody } from '../body.ts'
import type { Request } from '../endpoints/endpoint.ts'
import type { Exchange } from '../exchange.ts'
import { streamedAnswer } from '../streamed-answer.ts'
import { messageTranslator } from './messages/answer.ts'
import { responseTranslator } from './responses/answer.ts'
import { type Translator, translated } from './translator.ts'

const MODEL = aModel()
const ASKED = { id: '01890000-0000-7000-8000-000000000000' as RequestId, acceptedAt: 0 as Instant }
const REQUEST: Request = {
  enginePath: '',
  stream: true,
  wantsUsage: true,
  estimate: { inputTokens: 0, outputTokens: 0 },
  bytesFor: (): Body => bufferToBody(Buffer.alloc(0)),
  answerKey: 'choices',
}
const FAULT = { code: 'fault' as const }

const DIALECTS: [string, () => Translator][] = [
  [
    'responses',
    () => responseTranslator(ASKED, { model: 'm', input: 'Hi' } as ResponsesRequest, 'm', { ...systemClock, now: () => 0 as Instant }),
  ],
  ['messages', () => messageTranslator(ASKED, { model: 'm', max_tokens: 1, messages: [] } as unknown as MessagesRequest, 'm')],
]

const read = (open: () => Translator, pieces: readonly Buffer[]): string => {
  const written: Buffer[] = []
  const exchange = {
    begin: () => {},
    write: (bytes: Buffer) => written.push(Buffer.from(bytes)) > 0,
    end: (last: Buffer) => void written.push(last),
  } as unknown as Exchange
  const answer = streamedAnswer(translated(exchange, open()), REQUEST, MODEL, MODEL.name)
  for (const piece of pieces) answer.data(piece)
  const verdict = answer.end()
  if ('ending' in verdict) verdict.ending.finish()
  return Buffer.concat(written).toString()
}

const words = fc.array(fc.string({ unit: fc.constantFrom('a', 'é', '😀', '"', '\\', '\n', 'data: [DONE]'), minLength: 1, maxLength: 4 }), {
  maxLength: 4,
})
const stream = fc.record({
  reasoning: words,
  text: words,
  calls: fc.array(fc.dictionary(fc.string(), fc.string(), { maxKeys: 2 }), { maxLength: 2 }),
  end: fc.constantFrom('\n\n', '\r\n\r\n'),
  comments: fc.boolean(),
})

const toChat = (said: { reasoning: string[]; text: string[]; calls: object[]; end: string; comments: boolean }): Buffer => {
  const deltas: object[] = [
    ...said.reasoning.map((reasoning) => ({ reasoning })),
    ...said.text.map((content) => ({ content })),
    ...said.calls.flatMap((args, index) => [
      { tool_calls: [{ index, id: `id-${index}`, function: { name: 'f', arguments: '' } }] },
      { tool_calls: [{ index, function: { arguments: JSON.stringify(args) } }] },
    ]),
  ]
  const events = [
    { choices: [{ delta: { role: 'assistant', content: '' } }] },
    ...deltas.map((delta) => ({ choices: [{ delta, finish_reason: null }] })),
    { choices: [{ delta: {}, finish_reason: said.calls.length > 0 ? 'tool_calls' : 'stop' }] },
    { choices: [], usage: { prompt_tokens: 7, completion_tokens: 3 } },
  ]
  const ping = said.comments ? `: ping${said.end}` : ''
  return Buffer.from(`${events.map((event) => `data: ${JSON.stringify(event)}${said.end}`).join(ping)}data: [DONE]${said.end}`)
}

const cut = (bytes: Buffer, at: readonly number[]): Buffer[] => {
  const places = [...new Set(at.map((place) => place % bytes.length))].toSorted((a, b) => a - b)
  return [0, ...places].map((place, index) => bytes.subarray(place, places[index] ?? bytes.length))
}

describe.each(DIALECTS)('a stream of %s', (_name, open) => {
  test('is the same however the engine cuts its own', () => {
    fc.assert(
      fc.property(stream, fc.array(fc.nat(), { maxLength: 20 }), (said, at) => {
        const bytes = toChat(said)
        const whole = read(open, [bytes])
        expect(read(open, cut(bytes, at))).toBe(whole)
        const text = eventReader()(whole).flatMap((event) => {
          const data = JSON.parse(event.data) as { type: string; delta?: { text?: string } | string }
          expect(data.type).toBe(event.name)
          if (typeof data.delta === 'string') return data.type === 'response.output_text.delta' ? [data.delta] : []
          return data.type === 'content_block_delta' ? [data.delta?.text ?? ''] : []
        })
        expect(text.join('')).toBe(said.text.join(''))
      }),
      { numRuns: 200 },
    )
  })

  test('survives whatever stands in an event', () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.jsonValue(), fc.record({ choices: fc.array(fc.record({ delta: fc.jsonValue() })) })), { maxLength: 5 }),
        (chunks) => {
          const translator = open()
          const text = chunks.map((chunk) => translator.event(chunk)).join('') + translator.ping() + translator.end()
          for (const event of eventReader()(text)) JSON.parse(event.data)
        },
      ),
      { numRuns: 200 },
    )
  })

  test('can fail at any moment, and says so as the last thing', () => {
    const chunk = { choices: [{ delta: { content: 'a' } }] }
    for (let before = 0; before < 3; before += 1) {
      const translator = open()
      const text = Array.from({ length: before }, () => translator.event(chunk)).join('') + translator.failed(FAULT)
      expect(eventReader()(text).at(-1)?.name).toBe('error')
    }
  })
})

test('the numbers of a stream of responses have no gap', () => {
  fc.assert(
    fc.property(stream, (said) => {
      const events = eventReader()(read(DIALECTS[0]?.[1] as () => Translator, [toChat(said)]))
      const numbers = events.map((event) => (JSON.parse(event.data) as { sequence_number: number }).sequence_number)
      expect(numbers).toEqual(numbers.map((_, index) => index))
    }),
  )
})
