import { randomUUID } from 'node:crypto'
import { openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { Client } from 'undici'
import { describe, expect, test } from 'vitest'
import type { Replica } from '../engines/replica.ts'
import { systemClock } from '../kit/clock.ts'
import type { EngineId } from '../kit/ids.ts'
import { yes } from '../kit/outcome.ts'
import type { Rooms } from './serve.ts'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }
const STREAM = { ...ASK, stream: true }
const BUG = 'a bug of ours'

const fail = (): never => {
  throw new Error(BUG)
}

type Options = {
  readonly script?: Script
  readonly limits?: Parameters<typeof startDataPlane>[0]['limits']
  readonly rooms?: Partial<Rooms>
  /** Which field of the replica cannot be read, by one call only. */
  readonly unreadable?: keyof Replica
  /** The first look at the clock after the first seat was taken fails. */
  readonly clockFails?: boolean
}

/** The data plane with a seat that says how it was left, and a bug at a place of our choice. */
const open = async ({ script, limits, rooms, unreadable, clockFails = false }: Options) => {
  const engine = await startScriptedEngine(script)
  const clients: Client[] = []
  const left: string[] = []
  let unreadableYet = unreadable
  let armed = false
  const takeSeat: Rooms['takeSeat'] = async (model) => {
    const client = new Client(engine.url)
    const replica: Replica = {
      name: 'scripted',
      engineId: randomUUID() as EngineId,
      modelId: model.id,
      origin: engine.url,
      basePath: '',
      remoteModel: model.name,
      bearer: undefined,
    }
    armed = clockFails && clients.length === 0
    clients.push(client)
    if (unreadableYet !== undefined) Object.defineProperty(replica, unreadableYet, { get: fail })
    unreadableYet = undefined
    let gone = false
    const leave = (how: string): void => {
      if (!gone) left.push(how)
      gone = true
    }
    return yes({ replica, client, leave })
  }
  const now = () => {
    if (!armed) return systemClock.now()
    armed = false
    return fail()
  }
  const plane = await startDataPlane({
    engine: engine.url,
    ...(limits === undefined ? {} : { limits }),
    rooms: { takeSeat, clock: { ...systemClock, now }, ...rooms },
  })
  return {
    engine,
    plane,
    left,
    arm: () => {
      armed = true
    },
    async [Symbol.asyncDispose]() {
      await plane.close()
      await Promise.all(clients.map((client) => client.destroy()))
      await engine.close()
    },
  }
}

describe('a bug of ours', () => {
  const noting = () => {
    const begun: string[] = []
    const withdrawn: string[] = []
    const rooms = { noteOpen: ({ id }: { id: string }) => void begun.push(id), withdraw: (id: string) => void withdrawn.push(id) }
    return { begun, withdrawn, rooms }
  }

  test.each([
    ['in a call', { unreadable: 'bearer' }],
    ['while an answer is counted', { script: { usage: false }, rooms: { replicaOf: fail } }],
  ] as const)('%s ends what has begun: as failed, and counted by nobody', async (_where, options) => {
    const { begun, withdrawn, rooms } = noting()
    await using house = await open({ ...options, rooms: { ...rooms, ...('rooms' in options ? options.rooms : {}) } })
    expect((await house.plane.ask(CHAT, ASK)).status).toBe(500)
    const unsaid = { input: 0, output: 0, counted: 'none' }
    await expect.poll(() => house.plane.records).toMatchObject([{ ...unsaid, id: begun[0], ended: 'engine_failed', status: 500 }])
    expect([begun.length, withdrawn]).toEqual([1, []])
    expect(house.plane.log.filter((line) => line.includes('A request failed'))).toHaveLength(1)
  })

  test('in the middle of a stream is recorded with the status that its client has seen', async () => {
    await using house = await open({ script: { usage: false }, rooms: { replicaOf: fail } })
    const answer = await house.plane.ask(CHAT, STREAM)
    expect([answer.status, (await answer.text()).includes('[DONE]')]).toEqual([200, false])
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'engine_failed', counted: 'none', status: 200 }])
  })

  test.each([
    ['the fault of a call', { unreadable: 'bearer' }],
    ['an answer', {}],
  ] as const)('and a journal that refuses %s leave the note where it is, and are told once', async (_what, options) => {
    const { begun, withdrawn, rooms } = noting()
    let asked = 0
    const record = () => {
      asked += 1
      return Promise.reject(new Error('the disk is full'))
    }
    await using house = await open({ ...options, rooms: { ...rooms, record } })
    expect((await house.plane.ask(CHAT, ASK)).status).toBe(500)
    await expect.poll(() => house.plane.log.join('')).toContain('the disk is full')
    expect([asked, begun.length, withdrawn]).toEqual([1, 1, []])
  })

  test.each([
    ['before the answer is made', 'remoteModel'],
    ['before the request is sent', 'bearer'],
  ] as const)('%s keeps no seat and no limit of time', async (_when, unreadable) => {
    await using house = await open({ unreadable, limits: { firstByteMs: 100 } })
    const answer = await house.plane.ask(CHAT, STREAM)
    expect([answer.status, (await answer.text()).includes(BUG)]).toEqual([500, false])
    expect(house.left).toEqual(['unused'])
    expect(house.engine.requests).toEqual([])
    // Whatever the first one might have left in the deadlines is over before the next one is.
    house.engine.play({ holdAfter: 0 })
    expect((await house.plane.ask(CHAT, STREAM)).status).toBe(504)
    expect(house.plane.log.filter((line) => line.includes('silent for'))).toHaveLength(1)
  })

  test.each([
    ['is silent', { firstByteMs: 100 }, 'broken'],
    ['takes too long', { totalMs: 100 }, 'clean'],
  ] as const)('when an engine %s ends that request and nothing else', async (_why, limits, how) => {
    await using house = await open({ clockFails: true, script: { holdAfter: 0 }, limits })
    expect((await house.plane.ask(CHAT, STREAM)).status).toBe(500)
    expect(house.left).toEqual([how])
    expect((await house.plane.ask(CHAT, STREAM)).status).toBe(504)
  })

  test('when a client leaves ends that request and nothing else', async () => {
    await using house = await open({ clockFails: true, script: { holdAfter: 0 } })
    const client = await house.plane.raw()
    client.post(CHAT, JSON.stringify(STREAM))
    await house.engine.until('held')
    client.socket.destroy()
    await house.engine.until('aborted')
    await expect.poll(() => house.plane.settled).toHaveLength(1)
    expect(house.plane.log.filter((line) => line.includes(BUG))).toHaveLength(1)
    house.engine.play({})
    expect((await house.plane.ask(CHAT, ASK)).status).toBe(200)
  })

  test('when a budget has run out ends that request, and whoever keeps the budget hears nothing of it', async () => {
    let exhausted = (): void => {}
    const settled: number[] = []
    const admit = () =>
      yes({
        ...openTicket(settled),
        watch: (listener: () => void) => {
          exhausted = listener
        },
      })
    await using house = await open({ script: { holdAfter: 1 }, rooms: { admit } })
    const client = await house.plane.raw()
    client.post(CHAT, JSON.stringify(STREAM))
    await client.until(/Hello/)
    house.arm()
    exhausted()
    await client.until(/"code":500/)
    await house.engine.until('aborted')
    await expect.poll(() => settled).toHaveLength(1)
    expect(house.left).toHaveLength(1)
  })
})
