import { aModel } from '@parvis/testkit/data-plane'
import { dataUrl, jpeg, png } from '@parvis/testkit/media'
import { Bench } from 'tinybench'
import type { Body } from '../../../apps/server/src/inference/body.ts'
import { chat } from '../../../apps/server/src/inference/endpoints/chat.ts'
import { withBothNames } from '../../../apps/server/src/inference/reasoning-names.ts'
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

const BODIES: readonly (readonly [string, Body])[] = [
  ['1 KB of text', asking('x'.repeat(1_000))],
  ['20 KB of text', asking('x'.repeat(20_000))],
  ['1 MB of text', asking('x'.repeat(1_000_000))],
  ['1 MB with a PNG', seeing('image/png', png(800, 600, 750_000))],
  ['1 MB with a photograph', seeing('image/jpeg', jpeg(800, 600, { preface: 750_000 / 3 }))],
  [
    '130 KB in 500 turns',
    cut({
      model: MODEL.name,
      messages: Array.from({ length: 500 }, (_, turn) => ({ role: turn % 2 === 0 ? 'user' : 'assistant', content: 'hello '.repeat(40) })),
    }),
  ],
]

const EVENT = Buffer.from(
  `data: ${JSON.stringify({ id: 'x', choices: [{ index: 0, delta: { reasoning: ' because' }, finish_reason: null }] })}\n\n`,
)

/** What it costs to look at a request before an engine gets it (its model, its fields, its images), without a network. */
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
  bench.add('an event gets both names', () => {
    for (let round = 0; round < BATCH; round += 1) withBothNames(EVENT, 'data: '.length)
  })
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
    {
      what: 'both names of reasoning, an event',
      value: micros('an event gets both names', BATCH),
      unit: 'µs',
      beside: 'only for models that reason',
    },
  ]
}
