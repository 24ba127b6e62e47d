import { aModel } from '@parvis/testkit/data-plane'
import { dataUrl, jpeg, png } from '@parvis/testkit/media'
import { Bench } from 'tinybench'
import type { Body } from '../../../apps/server/src/inference/body.ts'
import { chat } from '../../../apps/server/src/inference/endpoints/chat.ts'
import type { Exchange } from '../../../apps/server/src/inference/exchange.ts'
import { streamedAnswer } from '../../../apps/server/src/inference/streamed-answer.ts'
import type { Row } from '../../measure.ts'

const PIECE_BYTES = 64 * 1024
/** Looks in one sample; each is shorter than the clock can see. */
const BATCH = 20

const MODEL = aModel({ features: { tools: true, structuredOutput: true, reasoning: true, vision: true } })

/** As a socket brings it. */
const cut = (value: unknown): Body => {
  const bytes = Buffer.from(JSON.stringify(value))
  const count = Math.ceil(bytes.length / PIECE_BYTES)
  return {
    pieces: Array.from({ length: count }, (_, index) => bytes.subarray(index * PIECE_BYTES, (index + 1) * PIECE_BYTES)),
    bytes: bytes.length,
  }
}

const asking = (content: unknown): Body => cut({ model: MODEL.name, messages: [{ role: 'user', content }] })
const seeing = (type: string, image: Buffer): Body =>
  asking([
    { type: 'text', text: 'What is it?' },
    { type: 'image_url', image_url: { url: dataUrl(type, image) } },
  ])

/** A photograph of 750,000 bytes, which are a megabyte in base64. Its size stands behind its preface: what the camera notes, profiles, a small picture. */
const photograph = (prefaceBytes: number): Buffer => {
  const bytes = Buffer.alloc(750_000)
  jpeg(800, 600, { preface: prefaceBytes }).copy(bytes)
  return bytes
}

/** Called by the size that it has. */
const named = (what: string, body: Body): readonly [string, Body] => [
  body.bytes < 1_000_000 ? `${Math.round(body.bytes / 1_000)} KB ${what}` : `${(body.bytes / 1_000_000).toFixed(1)} MB ${what}`,
  body,
]

const BODIES = [
  named('of text', asking('x'.repeat(1_000))),
  named('of text', asking('x'.repeat(20_000))),
  named('of text', asking('x'.repeat(1_000_000))),
  named('with a PNG', seeing('image/png', png(800, 600, 750_000))),
  named('with a photograph', seeing('image/jpeg', photograph(10_000))),
  named('with a photograph, size at 250 KB', seeing('image/jpeg', photograph(250_000))),
  named(
    'in 500 turns',
    cut({
      model: MODEL.name,
      messages: Array.from({ length: 500 }, (_, turn) => ({ role: turn % 2 === 0 ? 'user' : 'assistant', content: 'hello '.repeat(40) })),
    }),
  ),
]

const CHUNKS = 200
const REMOTE_NAME = 'Organization/Its-Name'

/** A chunk as vLLM sends it, with what has been used so far. */
const chunkOf = (index: number, model: string, delta: object): Buffer =>
  Buffer.from(
    `data: ${JSON.stringify({
      id: 'chatcmpl-0198ae2c-77aa-7bbb-8ccc-0123456789ab',
      object: 'chat.completion.chunk',
      created: 1_763_800_000,
      model,
      choices: [{ index: 0, delta, logprobs: null, finish_reason: null }],
      usage: { prompt_tokens: 200, total_tokens: 200 + index, completion_tokens: index },
    })}\n\n`,
  )

const chunksOf = (model: string, delta: object): readonly Buffer[] =>
  Array.from({ length: CHUNKS }, (_, index) => chunkOf(index + 1, model, delta))

const PLAIN = aModel()
/** Chunks that go on without the usage that only we asked for; renamed; and with a thought that gets its second name. */
const STREAMS = [
  { what: 'a chunk', model: PLAIN, remoteName: PLAIN.name, delta: { content: ' token' } },
  { what: 'a chunk, renamed', model: PLAIN, remoteName: REMOTE_NAME, delta: { content: ' token' } },
  { what: 'a thought, renamed', model: MODEL, remoteName: REMOTE_NAME, delta: { reasoning_content: ' because' } },
].map((stream) => ({ ...stream, chunks: chunksOf(stream.remoteName, stream.delta) }))

const asked = chat.read(asking('hello'))
const request = asked.ok ? chat.check(asked.value, PLAIN) : asked
if (!request.ok) throw new Error(request.refusal.code)
const STREAMED = { ...request.value, stream: true }

/** A client that is always quick. */
const NOBODY = { begin: () => undefined, write: () => true } as unknown as Exchange

const pass = ({ model, remoteName, chunks }: (typeof STREAMS)[number]): void => {
  const answer = streamedAnswer(NOBODY, STREAMED, model, remoteName)
  for (const chunk of chunks) answer.data(chunk)
}

/** What it costs to look at a request before an engine gets it (its model, its fields, its images), and at each chunk of a stream, without a network. */
export const benchLook = async (quick: boolean): Promise<Row[]> => {
  const bench = new Bench({ time: quick ? 200 : 1_000, warmupTime: quick ? 100 : 500 })
  const look = (body: Body): void => {
    const reading = chat.read(body)
    const request = reading.ok ? chat.check(reading.value, MODEL) : reading
    if (!request.ok) throw new Error(request.refusal.code)
    request.value.bytesFor('another-name')
  }
  for (const [name, body] of BODIES) {
    bench.add(name, () => {
      for (let round = 0; round < BATCH; round += 1) look(body)
    })
    bench.add(`${name}, parsed`, () => void JSON.parse(Buffer.concat(body.pieces).toString()))
  }
  for (const stream of STREAMS) {
    bench.add(stream.what, () => pass(stream))
    bench.add(`${stream.what}, parsed`, () => {
      for (const chunk of stream.chunks) JSON.stringify(JSON.parse(chunk.toString('utf8', 'data: '.length)))
    })
  }
  await bench.run()

  const micros = (name: string, batch: number): number => {
    const task = bench.tasks.find((each) => each.name === name)
    const result = task?.result
    return result !== undefined && 'latency' in result ? (result.latency.p50 * 1000) / batch : Number.NaN
  }
  return [
    ...BODIES.map(([name]) => ({
      what: `look at ${name}`,
      value: micros(name, BATCH),
      unit: 'µs',
      beside: `JSON.parse alone: ${micros(`${name}, parsed`, 1).toFixed(0)} µs`,
    })),
    ...STREAMS.map(({ what }) => ({
      what: `look at ${what}`,
      value: micros(what, CHUNKS),
      unit: 'µs',
      beside: `parsed and written anew: ${micros(`${what}, parsed`, CHUNKS).toFixed(1)} µs`,
    })),
  ]
}
