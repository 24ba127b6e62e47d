import { randomUUID } from 'node:crypto'
import { startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { Client } from 'undici'
import { describe, expect, test } from 'vitest'
import type { Replica } from '../engines/replica.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import { yes } from '../kit/outcome.ts'
import type { Rooms } from './serve.ts'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'How are you today?' }] }
/** Ten words in three pieces. */
const TOKENS = ['one two three', ' four five', ' six seven eight nine ten']
const UNCOUNTED: Script = { tokens: TOKENS, usage: false }
/** What the scripted tokenizer says of any question. */
const INPUT = 7
const estimate = Math.ceil(JSON.stringify(ASK).length / 4)

const open = async (
  script: Script = UNCOUNTED,
  speaks?: Replica['speaks'],
  more: { readonly limits?: { totalMs: number }; readonly rooms?: Partial<Rooms> } = {},
) => {
  const engine = await startScriptedEngine(script)
  const engineId = randomUUID() as EngineId
  const replicaOf = (modelId: ModelId): Replica => ({
    name: 'scripted',
    engineId,
    modelId,
    origin: engine.url,
    basePath: '',
    remoteModel: 'Org/remote',
    bearer: undefined,
  })
  const plane = await startDataPlane({ engine: engine.url, replica: { speaks }, ...more, rooms: { replicaOf, ...more.rooms } })
  return {
    engine,
    plane,
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

describe('what an engine has not counted is counted by the tokenizer of its model', () => {
  test.each([
    ['a whole chat', CHAT, ASK],
    ['a streamed chat', CHAT, { ...ASK, stream: true }],
    ['a text', '/v1/completions', { model: 'tiny-chat', prompt: 'Once upon' }],
    ['a streamed text', '/v1/completions', { model: 'tiny-chat', prompt: 'Once upon', stream: true }],
    ['a message', '/v1/messages', { ...ASK, max_tokens: 50 }],
    ['a response', '/v1/responses', { model: 'tiny-chat', input: 'Hi', stream: true }],
  ])('%s', async (_name, path, body) => {
    await using house = await open()
    const answer = await house.plane.ask(path, body)
    expect(answer.status).toBe(200)
    await answer.text()
    expect(house.plane.records).toMatchObject([{ ended: 'complete', counted: 'tokenizer', input: INPUT, output: 10 }])
    expect(house.plane.settled).toEqual([INPUT + 10])
    const asked = house.engine.requests.filter(({ path: at }) => at === '/tokenize').map(({ json }) => json)
    expect(asked).toHaveLength(2)
    expect(asked).toContainEqual(expect.objectContaining({ model: 'Org/remote', prompt: TOKENS.join(''), add_special_tokens: false }))
  })

  test.each([true, false])('a response of an engine that speaks it (stream: %s)', async (stream) => {
    await using house = await open({ ...UNCOUNTED, reasoning: ['zero '], toolCalls: [{ id: 'a', name: ' eleven ', arguments: '{}' }] }, [
      'responses',
    ])
    const answer = await house.plane.ask('/v1/responses', { model: 'tiny-chat', input: 'Hi', stream })
    expect([answer.status, (await answer.text()).includes('zero')]).toEqual([200, true])
    expect(house.plane.records).toMatchObject([{ ended: 'complete', counted: 'tokenizer', input: INPUT }])
    const asked = house.engine.requests.filter(({ path: at }) => at === '/tokenize').map(({ json }) => json)
    expect(asked).toContainEqual(expect.objectContaining({ prompt: `zero ${TOKENS.join('')} eleven {}` }))
  })

  test('thoughts and calls of tools included', async () => {
    const toolCalls = [{ id: 'call_1', name: 'look', arguments: '{"at": "it"}' }]
    await using house = await open({ ...UNCOUNTED, reasoning: ['well well '], toolCalls })
    for (const stream of [false, true]) {
      await (await house.plane.ask(CHAT, { ...ASK, stream, tools: [{ type: 'function', function: { name: 'look' } }] })).text()
    }
    const outputs = house.plane.records.map(({ output }) => output)
    expect(outputs[0]).toBe(outputs[1])
    expect(outputs[0]).toBeGreaterThan(12)
  })

  test('of a stream whose usage cannot be read', async () => {
    await using house = await open()
    const event = (fields: object): string =>
      `data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', model: 'm', ...fields })}\n\n`
    const said = (content: string, finish: string | null) => event({ choices: [{ index: 0, delta: { content }, finish_reason: finish }] })
    const odd = event({ choices: [], usage: { prompt_tokens: 'many', completion_tokens: 'some' } })
    house.engine.playOnce({
      contentType: 'text/event-stream',
      raw: [said('one two', null), said(' three', 'stop'), odd, 'data: [DONE]\n\n'],
    })
    await (await house.plane.ask(CHAT, { ...ASK, stream: true })).text()
    expect(house.plane.records).toMatchObject([{ ended: 'complete', counted: 'tokenizer', input: INPUT, output: 3 }])
  })

  test('of an answer whose client has left: what was said until then', async () => {
    await using house = await open({ tokens: TOKENS, holdAfter: 2 })
    const client = await house.plane.raw()
    client.post(CHAT, JSON.stringify({ ...ASK, stream: true }))
    await client.until(/five/)
    client.socket.destroy()
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'client_left', counted: 'tokenizer', input: INPUT, output: 5 }])
  })
})

describe('where nobody can count', () => {
  const without = async (house: Awaited<ReturnType<typeof open>>, script: Script): Promise<void> => {
    // The answer, and then two times the tokenizer.
    house.engine.playOnce(UNCOUNTED)
    house.engine.play(script)
    await (await house.plane.ask(CHAT, ASK)).text()
  }

  test.each<[string, Script]>([
    ['the engine has no such route', { status: 404, body: {} }],
    ['it fails', { status: 500, body: {} }],
    ['it answers with something else', { body: { tokens: 'many' } }],
    ['it is cut', { cutAfter: 0 }],
  ])('since %s, a whole answer is marked and costs nothing', async (_why, script) => {
    await using house = await open()
    await without(house, script)
    expect(house.plane.records).toMatchObject([{ ended: 'complete', counted: 'none', input: 0, output: 0 }])
  })

  test('a stream keeps what we have seen, marked as that', async () => {
    await using house = await open()
    house.engine.playOnce(UNCOUNTED)
    house.engine.play({ status: 404, body: {} })
    await (await house.plane.ask(CHAT, { ...ASK, stream: true })).text()
    expect(house.plane.records).toMatchObject([{ counted: 'delivered', output: TOKENS.length }])
  })

  test("llama.cpp's server counts what was said, and the question stays as it was estimated", async () => {
    await using house = await open()
    house.engine.playOnce(UNCOUNTED)
    house.engine.play({ body: { tokens: [1, 2, 3, 4, 5, 6, 7, 8, 9] } })
    await (await house.plane.ask(CHAT, { ...ASK, stream: true })).text()
    const [record] = house.plane.records
    expect(record).toMatchObject({ counted: 'delivered', output: 9 })
    expect(record?.input).toBeGreaterThan(estimate / 2)
  })
})

describe('a client that does not get the end, since counting takes long, has an event that says so', () => {
  const HELD: Script = { holdAfter: 0, holdHead: true }

  test.each([
    [false, 504],
    [true, 200],
  ])('when the time is up (stream: %s)', async (stream, status) => {
    await using house = await open(UNCOUNTED, undefined, { limits: { totalMs: 2_000 } })
    house.engine.playOnce(UNCOUNTED)
    house.engine.play(HELD)
    const answer = await house.plane.ask(CHAT, { ...ASK, stream })
    expect([answer.status, (await answer.text()).includes('"code":504')]).toEqual([status, true])
    house.engine.release()
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'timed_out', status }])
  })

  test.each([
    [false, 499],
    [true, 200],
  ])('when it has left (stream: %s)', async (stream, status) => {
    await using engine = await startScriptedEngine()
    const engineClient = new Client(engine.url)
    let left = (): boolean => false
    const takeSeat: Rooms['takeSeat'] = async (model, caller) => {
      left = () => caller.isOver()
      const replica = { name: 'scripted', engineId: randomUUID() as EngineId, modelId: model.id, origin: engine.url, basePath: '' }
      return yes({ replica: { ...replica, remoteModel: model.name, bearer: undefined }, client: engineClient, leave: () => undefined })
    }
    engine.play(UNCOUNTED)
    await using house = await open(HELD, undefined, { rooms: { takeSeat } })
    const client = await house.plane.raw()
    client.post(CHAT, JSON.stringify({ ...ASK, stream }))
    await house.engine.until('held', 2)
    client.socket.destroy()
    await expect.poll(() => left()).toBe(true)
    expect(house.plane.records).toEqual([])
    house.engine.release()
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'client_left', status }])
    await engineClient.destroy()
  })
})

test('an engine that counts is asked for nothing more, and neither is one whose answer failed before it began', async () => {
  await using house = await open({ tokens: TOKENS })
  for (const stream of [false, true]) await (await house.plane.ask(CHAT, { ...ASK, stream })).text()
  house.engine.play({ status: 500, body: {} })
  await house.plane.ask(CHAT, ASK)
  expect(house.engine.requests.map(({ path }) => path)).not.toContain('/tokenize')
})
