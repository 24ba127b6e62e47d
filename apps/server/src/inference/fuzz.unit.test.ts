import { systemClock } from '@parvis/server/kit/clock'
import { yes } from '@parvis/server/kit/outcome'
import { SPOKEN, speak } from '@parvis/server/kit/refusal'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { dataUrl, png } from '@parvis/testkit/media'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Body, JOIN_BYTES, piecesToBody, slice } from './body.ts'
import { chat } from './endpoints/chat.ts'
import { completions } from './endpoints/completions.ts'
import { embeddings } from './endpoints/embeddings.ts'
import type { Endpoint } from './endpoints/endpoint.ts'
import { messages } from './endpoints/messages.ts'
import { ocr } from './endpoints/ocr.ts'
import { rerank } from './endpoints/rerank.ts'
import { responses } from './endpoints/responses.ts'

/** The request as it goes to an engine that speaks the dialect itself. */
const native = (endpoint: Endpoint): Endpoint => ({
  ...endpoint,
  check(reading, model) {
    const request = endpoint.check(reading, model)
    return request.ok && request.value.native !== undefined ? yes(request.value.native.request) : request
  },
})

const CHAT_MODEL = aModel()
const READERS: [string, Endpoint, typeof CHAT_MODEL, Record<string, unknown>][] = [
  ['chat', chat, CHAT_MODEL, { messages: [{ role: 'user', content: 'Hi' }], max_completion_tokens: 5, stream: true }],
  ['completions', completions, CHAT_MODEL, { prompt: 'Hi', max_tokens: 5 }],
  ['messages', messages, CHAT_MODEL, { messages: [{ role: 'user', content: 'Hi' }], max_tokens: 5, system: 'x' }],
  ['responses', responses(systemClock), CHAT_MODEL, { input: 'Hi', max_output_tokens: 5, tools: [] }],
  [
    'responses for an engine that speaks them',
    native(responses(systemClock)),
    CHAT_MODEL,
    {
      input: [
        { role: 'user', content: [{ type: 'input_text', text: 'Hi' }] },
        { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: 'a', output: '1' },
      ],
      tools: [{ type: 'function', name: 'f', parameters: {} }],
      reasoning: { effort: 'low' },
    },
  ],
  ['rerank', rerank, aModel({ type: 'rerank', maxOutputTokens: null }), { query: 'a', documents: ['b', { text: 'c' }], top_n: 1 }],
  [
    'rerank with vectors',
    rerank,
    aModel({ type: 'embedding', dimensions: 8, maxOutputTokens: null }),
    { query: 'a', documents: ['b', { text: 'c' }], top_n: 1 },
  ],
  [
    'ocr',
    ocr,
    aModel({ type: 'ocr', maxOutputTokens: null }),
    { document: { type: 'image_url', image_url: dataUrl('image/png', png(2, 2)) }, pages: [0] },
  ],
  ['embeddings', embeddings, aModel({ type: 'embedding', dimensions: 8, maxOutputTokens: null }), { input: ['a'], dimensions: 8 }],
]

/** The bytes in pieces, as they might have come; never joined where the exchange would not join them. */
const cut = (bytes: Buffer, at: readonly number[]): Body => {
  const borders = [0, ...at.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  const pieces = borders.slice(1).map((end, index) => bytes.subarray(borders[index], end))
  return piecesToBody(pieces, bytes.length)
}

/** What the endpoint makes of a body: a refusal in words, or what its engine gets. */
const readAs = (endpoint: Endpoint, model: typeof CHAT_MODEL, body: Body): string => {
  const reading = endpoint.read(body)
  if (!reading.ok) return JSON.stringify(speak(reading.refusal))
  const request = endpoint.check(reading.value, model)
  if (!request.ok) return JSON.stringify(speak(request.refusal))
  const sent = request.value.bytesFor('remote')
  const text = slice(sent, { start: 0, end: sent.bytes }).toString()
  // A larger one is only scanned; what is wrong deep inside, the engine says.
  if (body.bytes <= JOIN_BYTES) expect(JSON.parse(text)).toMatchObject({ model: 'remote' })
  expect(Number.isFinite(request.value.estimate.inputTokens + request.value.estimate.outputTokens)).toBe(true)
  return text
}

const odd = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc
    .constantFrom('\\ud800', '1e999', '-0', '0.1e-400', '123456789012345678901234567890', 'NaN', '"\\ud800"', '"\\u0000"')
    .map((raw) => ({ raw })),
  fc.nat(3_000).map((depth) => ({ raw: '['.repeat(depth) + ']'.repeat(depth) })),
  fc.nat(300).map((depth) => ({ raw: '{"a":'.repeat(depth) + '1' + '}'.repeat(depth) })),
)
const write = (value: unknown): string =>
  typeof value === 'object' && value !== null && 'raw' in value && typeof value.raw === 'string'
    ? value.raw
    : (JSON.stringify(value) ?? 'null')

/** A good body with some fields replaced, added, said twice or broken. */
const spoilt = (good: Record<string, unknown>) => {
  const names = [
    ...Object.keys(good),
    'documents',
    'document',
    'input',
    'model',
    'stream',
    'tools',
    'response_format',
    'max_tokens',
    '__proto__',
    'MODEL',
  ]
  return fc
    .record({
      changes: fc.array(fc.tuple(fc.constantFrom(...names), odd), { maxLength: 4 }),
      keep: fc.boolean(),
      padding: fc.constantFrom(0, 0, 0, JOIN_BYTES),
      flip: fc.option(fc.tuple(fc.nat(), fc.nat(255)), { freq: 3 }),
      cutOff: fc.option(fc.nat(), { freq: 6 }),
      cuts: fc.array(fc.nat(), { maxLength: 8 }),
    })
    .map(({ changes, keep, padding, flip, cutOff, cuts }) => {
      const members = Object.entries({ model: 'tiny-chat', ...good })
        .filter(([name]) => keep || !changes.some(([changed]) => changed === name))
        .map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`)
      for (const [name, value] of changes) members.push(`${JSON.stringify(name)}:${write(value)}`)
      if (padding > 0) members.push(`"user":"${'x'.repeat(padding)}"`)
      let bytes = Buffer.from(`{${members.join(',')}}`)
      if (flip !== null) bytes[flip[0] % bytes.length] = flip[1]
      if (cutOff !== null) bytes = bytes.subarray(0, cutOff % bytes.length)
      return { bytes, cuts }
    })
}

describe.each(READERS)('the reader of %s', (_name, endpoint, model, good) => {
  test('reads what it is meant to', () => {
    expect(readAs(endpoint, model, cut(Buffer.from(JSON.stringify({ model: model.name, ...good })), []))).toContain('"remote"')
  })

  test('takes or refuses whatever comes, and the same however it was cut', () => {
    fc.assert(
      fc.property(spoilt(good), ({ bytes, cuts }) => {
        expect(readAs(endpoint, model, cut(bytes, cuts))).toBe(readAs(endpoint, model, cut(bytes, [])))
      }),
      { numRuns: 400 },
    )
  })

  test('refuses bytes that are nothing', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(readAs(endpoint, model, cut(Buffer.from(bytes), []))).toMatch(/"code":4\d\d/)
      }),
      { numRuns: 200 },
    )
  })

  test.each([
    ['arrays in arrays without end', `{"model":"tiny-chat","x":${'['.repeat(200_000)}`],
    ['arrays in arrays', `{"model":"tiny-chat","x":${'['.repeat(200_000)}${']'.repeat(200_000)}}`],
    ['objects in objects', `{"model":"tiny-chat","x":${'{"a":'.repeat(50_000)}1${'}'.repeat(50_000)}}`],
    ['nothing but quotes', '"'.repeat(100_000)],
    ['nothing but backslashes', `{"model":"${'\\'.repeat(100_001)}`],
  ])('does not fall over %s', (_what, text) => {
    expect(() => readAs(endpoint, model, cut(Buffer.from(text), []))).not.toThrow()
  })
})

/** One thing that a client does on its connection. */
type Act = {
  readonly path: string
  readonly body: Buffer
  readonly length: number
  readonly key: string | undefined
  readonly wait: boolean
}

const PATHS = [
  '/v1/chat/completions',
  '/v1//chat/completions',
  '/v1/embeddings',
  '/v1/completions',
  '/v1/messages',
  '/v1/messages/count_tokens',
  '/v1/responses',
  '/v1/rerank',
  '/v1/nothing',
]
const act: fc.Arbitrary<Act> = fc
  .record({
    path: fc.constantFrom(...PATHS, PATHS[0] ?? ''),
    stream: fc.boolean(),
    spoil: fc.constantFrom('no', 'no', 'no', 'json', 'model', 'short', 'long'),
    key: fc.constantFrom(undefined, undefined, 'a', 'b'),
    wait: fc.boolean(),
  })
  .map(({ path, stream, spoil, key, wait }) => {
    const good = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }], prompt: 'Hi', input: 'Hi', max_tokens: 5, stream }
    const text = spoil === 'json' ? '{"model":' : JSON.stringify(spoil === 'model' ? { ...good, model: 'x' } : good)
    const body = Buffer.from(text)
    return { path, body, length: body.length + (spoil === 'short' ? 50 : spoil === 'long' ? -10 : 0), key, wait }
  })

const MOODS: Script[] = [
  {},
  { tokens: ['a', 'b'], repeat: 50 },
  { status: 503 },
  { status: 500 },
  { status: 400 },
  { cutAfter: 0 },
  { cutAfter: 1 },
  { errorAfter: 1 },
  { done: false },
  { usage: false },
  { crlf: true, comments: true },
  { headDelayMs: 30 },
  { tokenDelayMs: 5 },
  { raw: ['<html>'], contentType: 'text/html' },
  { raw: ['data: nonsense\n\n'], contentType: 'text/event-stream' },
  { raw: [], contentType: 'text/event-stream' },
  { body: { error: { message: 'x' } } },
  { hugeEventBytes: 2 << 20 },
]

describe('whole exchanges', () => {
  test.each([
    ['a chat', undefined],
    ['what it came in', ['responses'] as const],
  ])('with engines that speak %s, pipelined, cut and broken off at random, leave nothing behind', async (_what, speaks) => {
    const clients = fc.array(
      fc.record({
        acts: fc.array(act, { minLength: 1, maxLength: 5 }),
        cuts: fc.array(fc.nat(), { maxLength: 6 }),
        moods: fc.array(fc.constantFrom(...MOODS), { minLength: 1, maxLength: 5 }),
        /** How much of all that is sent before the connection is cut; the rest of the time it is left to end. */
        broken: fc.option(fc.nat()),
      }),
      { minLength: 1, maxLength: 6 },
    )
    await fc.assert(
      fc.asyncProperty(clients, async (all) => {
        await using engine = await startScriptedEngine()
        await using plane = await startDataPlane({
          engine: engine.url,
          replica: { speaks },
          limits: {
            bodyMs: 150,
            totalMs: 2_000,
            firstByteMs: 500,
            idleMs: 300,
            pingMs: 20,
            inflightBytes: 1 << 20,
            idempotency: { lingerMs: 20 },
          },
        })
        await Promise.all(
          all.map(async ({ acts, cuts, moods, broken }) => {
            for (const mood of moods) engine.playOnce(mood)
            const client = await plane.raw()
            const bytes = Buffer.concat(
              acts.map(({ path, body, length, key }) =>
                Buffer.concat([
                  Buffer.from(
                    `POST ${path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${plane.key}\r\ncontent-type: application/json\r\n` +
                      `${key === undefined ? '' : `idempotency-key: ${key}\r\n`}content-length: ${length}\r\n\r\n`,
                  ),
                  body,
                ]),
              ),
            )
            const sent = broken === null ? bytes : bytes.subarray(0, broken % bytes.length)
            for (const piece of cut(sent, cuts).pieces) {
              client.send(piece)
              await new Promise((resolve) => setImmediate(resolve))
            }
            if (broken === null) client.send('GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n')
            else client.socket.destroy()
            await client.closed
          }),
        )
        await until('every seat is left', () => plane.seats.left.length === plane.seats.taken)
        // Everything that was recorded has one ticket, and every row is one that the contract knows.
        expect(new Set(plane.records.map(({ id }) => id)).size).toBe(plane.records.length)
        expect(plane.settled.length).toBeGreaterThanOrEqual(plane.records.length)
        expect(plane.log.filter((line) => line.includes('"level":50')).join('')).toBe('')
        engine.play({})
        // After the scripts that nobody was asked with yet, and with all the memory for bodies.
        const room = 'x'.repeat(900_000)
        await until('a request is served as if nothing had been', async () => {
          const last = await plane.ask('/v1/chat/completions', {
            model: 'tiny-chat',
            user: room,
            messages: [{ role: 'user', content: 'Hi' }],
          })
          const text = await last.text().catch(() => '')
          return last.status === 200 && text.includes('Hello world.')
        })
      }),
      { numRuns: 30, endOnFailure: true },
    )
  })

  test('no refusal is without a status, a type and words', () => {
    for (const [code, row] of Object.entries(SPOKEN)) expect([code, row.type]).toEqual([code, expect.stringMatching(/Error$/)])
  })
})
