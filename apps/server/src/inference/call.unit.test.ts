import { randomUUID } from 'node:crypto'
import type { EngineId, ModelId } from '@parvis/server/kit/ids'
import { yes } from '@parvis/server/kit/outcome'
import { startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { Client } from 'undici'
import { expect, test } from 'vitest'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }
/** A port on which nobody listens any more. */
const nobody = async (): Promise<string> => {
  const engine = await startScriptedEngine()
  await engine.close()
  return engine.url
}

const AWAY: [string, Script][] = [
  ['cuts the connection before it answers', { cutAfter: 0 }],
  ['is busy', { status: 503 }],
  ['has too many requests', { status: 429 }],
  ['fails', { status: 500 }],
  ['fails without a word', { status: 502, contentType: 'text/html', raw: ['<html>'] }],
  ['does not know our key', { status: 401 }],
]

test.each(AWAY.flatMap(([how, script]) => [true, false].map((stream) => ({ how, script, stream }))))(
  'where an engine $how another one answers, recorded once (stream: $stream)',
  async ({ script, stream }) => {
    await using first = await startScriptedEngine(script)
    await using second = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: first.url, others: [second.url] })
    const answer = await plane.ask(CHAT, { ...ASK, stream })
    expect([answer.status, (await answer.text()).includes('world')]).toEqual([200, true])
    expect([first.requests.length, second.requests.length]).toEqual([1, 1])
    expect(second.requests[0]?.bytes).toEqual(first.requests[0]?.bytes)
    expect(plane.records).toMatchObject([{ replica: 'scripted-2', ended: 'complete', counted: 'engine' }])
    expect(plane.settled).toHaveLength(1)
    expect(plane.seats.left).toHaveLength(2)
    expect(plane.log.join('')).toContain('"replica":"scripted"')
  },
)

test('where nobody listens another engine answers', async () => {
  await using second = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: await nobody(), others: [second.url] })
  expect((await plane.ask(CHAT, ASK)).status).toBe(200)
  expect(plane.records).toMatchObject([{ replica: 'scripted-2' }])
})

test.each<[string, Script, number]>([
  ['refuses the body', { status: 400 }, 400],
  ['answers with something else', { contentType: 'text/html', raw: ['<html>'] }, 500],
  ['has an error inside its 200', { body: { error: { message: 'x' } } }, 500],
])('an engine that %s is not asked elsewhere', async (_how, script, status) => {
  await using first = await startScriptedEngine(script)
  await using second = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: first.url, others: [second.url] })
  expect((await plane.ask(CHAT, ASK)).status).toBe(status)
  expect(second.requests).toHaveLength(0)
})

test('once the client has got something nobody else is asked', async () => {
  await using first = await startScriptedEngine({ cutAfter: 1 })
  await using second = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: first.url, others: [second.url] })
  const text = await (await plane.ask(CHAT, { ...ASK, stream: true })).text()
  expect(text).toContain('"error"')
  expect(second.requests).toHaveLength(0)
  expect(plane.records).toMatchObject([{ replica: 'scripted', ended: 'engine_failed' }])
})

test('three engines are asked and no more; the last one has the word', async () => {
  const away = await Promise.all([nobody(), nobody(), nobody()])
  await using fourth = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: away[0], others: [away[1], away[2], fourth.url] })
  const answer = await plane.ask(CHAT, ASK)
  expect(answer.status).toBe(503)
  expect(answer.headers.get('retry-after')).toBe('1')
  expect(plane.seats.left).toHaveLength(3)
  expect(fourth.requests).toHaveLength(0)
  expect(plane.records).toEqual([])
})

test('where there is no other engine the client hears what the first one said', async () => {
  await using engine = await startScriptedEngine({ status: 503, headers: { 'retry-after': '7' } })
  await using plane = await startDataPlane({ engine: engine.url })
  const answer = await plane.ask(CHAT, ASK)
  expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '7'])
  expect(await answer.text()).toContain('busy')
  expect([plane.records, plane.settled]).toEqual([[], [0]])
})

test('how an engine did is told when its seat is left', async () => {
  const busyAtLength: Script = { status: 503, raw: ['x'.repeat(100_000)] }
  const failing: Script[] = [{ status: 500 }, { body: { error: { message: 'x' } } }, { cutAfter: 0 }]
  const scripts: Script[] = [{}, { status: 400 }, { status: 503 }, busyAtLength, ...failing]
  const told: unknown[] = []
  for (const script of scripts) {
    await using engine = await startScriptedEngine(script)
    await using plane = await startDataPlane({ engine: engine.url })
    await (await plane.ask(CHAT, ASK)).text()
    told.push(plane.seats.left)
  }
  expect(told).toEqual([['clean'], ['clean'], ['clean'], ['clean'], ['failed'], ['failed'], ['broken']])
})

test.each([true, false])(
  'a client that leaves while it waits for a seat leaves nothing that could be taken for lost (stream: %s)',
  async (stream) => {
    const begun: string[] = []
    const withdrawn: string[] = []
    let waits = (): void => {}
    const waiting = new Promise<void>((resolve) => {
      waits = resolve
    })
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        noteOpen: ({ id }) => void begun.push(id),
        withdraw: (id) => void withdrawn.push(id),
        takeSeat: (_model, caller) =>
          new Promise((_resolve, reject) => {
            caller.signal().addEventListener('abort', () => reject(caller.signal().reason as Error))
            waits()
          }),
      },
    })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify({ ...ASK, stream }))
    await waiting
    client.socket.destroy()
    await expect.poll(() => withdrawn).toHaveLength(1)
    expect(withdrawn).toEqual(begun)
    expect([plane.records, plane.settled, engine.requests]).toEqual([[], [0], []])
    expect(plane.log.join('')).not.toContain('A request failed')
  },
)

test.each([true, false])(
  'a client that has left before its request was sent says nothing about the engine, and nothing is written down (stream: %s)',
  async (stream) => {
    await using engine = await startScriptedEngine()
    const left: string[] = []
    const withdrawn: string[] = []
    let asked = (): void => {}
    const asking = new Promise<void>((resolve) => {
      asked = resolve
    })
    const client = new Client(engine.url)
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        withdraw: (id) => void withdrawn.push(id),
        takeSeat: async (model, caller) => {
          asked()
          await new Promise((resolve) => caller.signal().addEventListener('abort', resolve))
          const replica = {
            name: 'x',
            engineId: randomUUID() as EngineId,
            modelId: model.id as ModelId,
            origin: engine.url,
            basePath: '',
            remoteModel: model.name,
            bearer: undefined,
          }
          return yes({ replica, client, leave: (how) => void left.push(how) })
        },
      },
    })
    const caller = await plane.raw()
    caller.post(CHAT, JSON.stringify({ ...ASK, stream }))
    await asking
    caller.socket.destroy()
    await expect.poll(() => withdrawn).toHaveLength(1)
    expect(left).toEqual(['unused'])
    expect([plane.records, plane.settled, engine.requests]).toEqual([[], [0], []])
    await client.close()
  },
)

test('what an engine has worked on is written down, also where its client left before the next one was sent anything', async () => {
  await using engine = await startScriptedEngine({ status: 500 })
  await using second = await startScriptedEngine()
  let asked = (): void => {}
  const asking = new Promise<void>((resolve) => {
    asked = resolve
  })
  const clients = [new Client(engine.url), new Client(second.url)]
  await using plane = await startDataPlane({
    engine: engine.url,
    rooms: {
      takeSeat: async (model, caller, avoid) => {
        const place = avoid?.size ?? 0
        if (place > 0) {
          asked()
          await new Promise((resolve) => caller.signal().addEventListener('abort', resolve))
        }
        const replica = {
          name: `place ${place}`,
          engineId: randomUUID() as EngineId,
          modelId: model.id as ModelId,
          origin: place === 0 ? engine.url : second.url,
          basePath: '',
          remoteModel: model.name,
          bearer: undefined,
        }
        return yes({ replica, client: clients[place] as Client, leave: () => undefined })
      },
    },
  })
  const caller = await plane.raw()
  caller.post(CHAT, JSON.stringify(ASK))
  await asking
  caller.socket.destroy()
  await expect.poll(() => plane.records).toMatchObject([{ ended: 'engine_failed', replica: 'place 0' }])
  expect([engine.requests.length, second.requests.length]).toEqual([1, 0])
  for (const client of clients) await client.close()
})

test('a wait for a seat that breaks is a fault of ours, and nothing that could be taken for lost', async () => {
  const withdrawn: string[] = []
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({
    engine: engine.url,
    rooms: { withdraw: (id) => void withdrawn.push(id), takeSeat: () => Promise.reject(new Error('a bug of ours')) },
  })
  const answer = await plane.ask(CHAT, ASK)
  expect([answer.status, (await answer.text()).includes('a bug of ours')]).toEqual([500, false])
  expect(withdrawn).toEqual([answer.headers.get('x-request-id')])
  expect(plane.log.join('')).toContain('a bug of ours')
})
