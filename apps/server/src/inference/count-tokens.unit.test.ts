import { randomUUID } from 'node:crypto'
import Anthropic from '@anthropic-ai/sdk'
import { aModel, openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { png } from '@parvis/testkit/media'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'
import { NO_RULES } from '../catalog/model.ts'
import type { Replica } from '../engines/replica.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'

const PATH = '/v1/messages/count_tokens'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user' as const, content: 'Hi' }] }
const FEATURES = { tools: true, structuredOutput: true, reasoning: false, vision: false }
const MODELS = [
  aModel(),
  aModel({ name: 'eyes', features: { ...FEATURES, vision: true }, rules: { ...NO_RULES, imageTokenPx: 16, imageMaxPx: 1024 } }),
  aModel({ name: 'plain', features: { ...FEATURES, tools: false } }),
  aModel({ name: 'tiny-embed', type: 'embedding', maxOutputTokens: null, dimensions: 8 }),
]

const open = async (script: Script = {}, more: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const replicaOf = (modelId: ModelId): Replica => ({
    name: 'scripted',
    engineId: randomUUID() as EngineId,
    modelId,
    origin: engine.url,
    basePath: '',
    remoteModel: 'Org/remote',
    bearer: undefined,
  })
  const plane = await startDataPlane({ engine: engine.url, models: MODELS, ...more, rooms: { replicaOf, ...more.rooms } })
  return {
    engine,
    plane,
    sent: () => engine.requests.at(-1)?.json as Record<string, unknown>,
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

test("Anthropic's SDK learns how many tokens a message is, by the engine's own vocabulary", async () => {
  await using house = await open()
  const client = new Anthropic({ baseURL: house.plane.url, apiKey: house.plane.key, maxRetries: 0 })
  const tools = [{ name: 'get_x', input_schema: { type: 'object' as const } }]
  const counted = await client.messages.countTokens({ ...ASK, system: 'Be brief.', tools })
  expect(counted).toMatchObject({ input_tokens: 7 })
  expect(house.engine.requests.map(({ path }) => path)).toEqual(['/tokenize'])
  expect(house.sent()).toMatchObject({
    model: 'Org/remote',
    messages: [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Hi' },
    ],
    tools: [{ type: 'function', function: { name: 'get_x' } }],
  })
})

test('it is a request of the minute, and nothing in the books', async () => {
  const asked: unknown[] = []
  const settled: number[] = []
  await using house = await open(
    {},
    {
      rooms: {
        admit: (_caller, _model, estimate) => {
          asked.push(estimate)
          return { ok: true, value: { ...openTicket(settled), headers: () => ['x-ratelimit-remaining-requests', '9'] } }
        },
      },
    },
  )
  const answer = await house.plane.ask(PATH, ASK)
  expect([answer.headers.get('x-parvis-counted'), answer.headers.get('x-ratelimit-remaining-requests')]).toEqual(['engine', '9'])
  expect(asked).toEqual([{ inputTokens: 0, outputTokens: 0 }])
  expect(settled).toEqual([0])
  expect(house.plane.records).toEqual([])
})

test.each<[string, Script]>([
  ['has no such route', { status: 404 }],
  ['fails', { status: 500 }],
  ['cuts the connection', { cutAfter: 0 }],
  ['says something else', { body: { tokens: [1, 2] } }],
])('where the engine %s the count is an estimate, and says so', async (_what, script) => {
  await using house = await open(script)
  const short = await house.plane.ask(PATH, ASK)
  expect([short.status, short.headers.get('x-parvis-counted')]).toEqual([200, 'estimate'])
  const { input_tokens: few } = (await short.json()) as { input_tokens: number }
  const long = await house.plane.ask(PATH, { ...ASK, messages: [{ role: 'user', content: 'some words '.repeat(500) }] })
  const { input_tokens: many } = (await long.json()) as { input_tokens: number }
  expect(few).toBeGreaterThan(0)
  expect(many).toBeGreaterThan(500)
  expect(many).toBeLessThan(4_000)
  expect(house.plane.seats.taken).toBe(0)
})

test('images are counted by rule, and no engine gets to see where they are', async () => {
  await using house = await open()
  const image = { type: 'image', source: { type: 'url', url: 'http://10.0.0.1/secret.png' } }
  const own = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: png(320, 160).toString('base64') } }
  const count = async (content: unknown): Promise<number> => {
    const answer = await house.plane.ask(PATH, { model: 'eyes', messages: [{ role: 'user', content }] })
    expect(answer.status).toBe(200)
    return ((await answer.json()) as { input_tokens: number }).input_tokens
  }
  expect(await count([own, { type: 'text', text: '?' }])).toBe(7 + 20 * 10)
  expect(await count([image, { type: 'text', text: '?' }])).toBeGreaterThan(7)
  expect(house.engine.requests.map(({ bytes }) => bytes.toString()).join('')).not.toMatch(/10\.0\.0\.1|base64/)
})

test.each<[string, object, number, string]>([
  ['no messages', { messages: [] }, 400, 'messages'],
  ['a role that there is not', { messages: [{ role: 'tool', content: 'x' }] }, 400, 'messages'],
  [
    'an image to a model without eyes',
    { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'url', url: 'https://a.b/c' } }] }] },
    400,
    'no images',
  ],
  ['tools to a model that takes none', { model: 'plain', tools: [{ name: 'a', input_schema: {} }] }, 400, 'tools'],
  ['a model of another kind', { model: 'tiny-embed' }, 400, 'count_tokens'],
  ['an unknown model', { model: 'nobody' }, 404, 'nobody'],
])('is refused as a message is, with %s', async (_name, fields, status, said) => {
  await using house = await open()
  const answer = await house.plane.ask(PATH, { ...ASK, ...fields })
  const body = (await answer.json()) as { type: string; error: { message: string } }
  expect([answer.status, body.type]).toEqual([status, 'error'])
  expect(body.error.message).toContain(said)
  expect(house.engine.requests).toHaveLength(0)
})

test('without a key, or with a wrong one, nothing is counted', async () => {
  await using house = await open()
  const statusOf = async (headers: Record<string, string>): Promise<number> =>
    (
      await fetch(`${house.plane.url}${PATH}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(ASK),
      })
    ).status
  expect(await statusOf({})).toBe(401)
  expect(await statusOf({ 'x-api-key': 'wrong' })).toBe(403)
  expect(await statusOf({ 'x-api-key': house.plane.key })).toBe(200)
})

test('a client that leaves while it is counted frees its place', async () => {
  const settled: number[] = []
  await using house = await open(
    { holdHead: true, holdAfter: 0, body: {} },
    { rooms: { admit: () => ({ ok: true, value: openTicket(settled) }) } },
  )
  const client = await house.plane.raw()
  client.post(PATH, JSON.stringify(ASK))
  await house.engine.until('held')
  client.socket.destroy()
  await house.engine.until('aborted')
  await expect.poll(() => settled).toEqual([0])
})
