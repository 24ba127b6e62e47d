import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { afterEach, expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { type ModelId, newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import type { Outcome } from '../kit/outcome.ts'
import { readAddress } from './address.ts'
import { type Engine, newEngine, openDirectory } from './directory.ts'
import type { Seat } from './replica.ts'
import { openSeats, pick, type SeatLimits } from './seat.ts'

const clock = systemClock
const leaver = (signal: AbortSignal) => ({ isOver: () => signal.aborted, signal: () => signal })
const never = leaver(new AbortController().signal)
const model = { id: newId<'model'>(clock.now()), name: 'a' }
const other = { id: newId<'model'>(clock.now()), name: 'b' }

const opened: (() => void | Promise<void>)[] = []
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close()
})

const open = (limits: Partial<SeatLimits> = {}) => {
  const directory = openDirectory({ clock, log: openLog('silent') })
  const seats = openSeats({ directory, clock, limits })
  opened.push(seats.close)
  let engines = 0
  const addEngine = (
    options: { seatLimit?: number; ready?: boolean; url?: string; models?: { id: ModelId; name: string }[] } = {},
  ): Engine => {
    engines += 1
    const engine = newEngine(
      {
        id: newId(clock.now()),
        name: `engine-${engines}`,
        kind: 'external',
        seatLimit: options.seatLimit ?? 2,
        serves: (options.models ?? [model]).map(({ id, name }) => ({ modelId: id, modelName: name, remoteName: `remote-${name}` })),
        reason: 'not asked yet',
      },
      clock.now(),
    )
    directory.arrive(engine, readAddress(options.url ?? 'http://127.0.0.1:9'), undefined)
    directory.add(engine)
    if (options.ready !== false) directory.become(engine, 'ready')
    return engine
  }
  return { directory, ...seats, addEngine }
}

const seatOf = (outcome: Outcome<Seat>): Seat => {
  if (!outcome.ok) throw new Error(JSON.stringify(outcome.refusal))
  return outcome.value
}
const refusalOf = (outcome: Outcome<Seat>) => (outcome.ok ? undefined : outcome.refusal)
/** Seats are given back at the end of the present turn. */
const turn = () => Promise.resolve()

test('the least busy ready engine with a free place is picked; one under suspicion only when there is no other, one on trial for one call', () => {
  const engine = fc.record({
    state: fc.constantFrom('starting' as const, 'ready' as const, 'unhealthy' as const),
    suspect: fc.boolean(),
    busy: fc.nat(5),
    seatLimit: fc.integer({ min: 1, max: 5 }),
    onTrial: fc.boolean(),
    lastTaken: fc.nat(10),
  })
  fc.assert(
    fc.property(fc.array(engine, { maxLength: 8 }), (engines) => {
      const free = engines.filter(({ state, busy, seatLimit, onTrial }) => state === 'ready' && busy < (onTrial ? 1 : seatLimit))
      const trusted = free.filter(({ suspect }) => !suspect)
      const among = trusted.length > 0 ? trusted : free
      const least = Math.min(...among.map(({ busy }) => busy))
      const longestAgo = Math.min(...among.filter(({ busy }) => busy === least).map(({ lastTaken }) => lastTaken))
      const [expected] = among.filter(({ busy, lastTaken }) => busy === least && lastTaken === longestAgo)
      expect(pick(engines)).toBe(expected)
    }),
  )
})

test('light traffic is shared between engines that are equally busy', async () => {
  const { takeSeat, addEngine } = open()
  addEngine()
  addEngine()
  const names: string[] = []
  for (let round = 0; round < 4; round += 1) {
    const seat = seatOf(await takeSeat(model, never))
    names.push(seat.replica.name)
    seat.leave('clean')
    await turn()
  }
  expect(names).toEqual(['engine-1', 'engine-2', 'engine-1', 'engine-2'])
})

test('a seat says which engine, and what the model is called there', async () => {
  const { takeSeat, addEngine } = open()
  const engine = addEngine({ url: 'http://127.0.0.1:9/base/v1' })
  const { replica } = seatOf(await takeSeat(model, never))
  expect(replica).toEqual({
    name: 'engine-1',
    engineId: engine.id,
    modelId: model.id,
    origin: 'http://127.0.0.1:9',
    basePath: '/base',
    remoteModel: 'remote-a',
    bearer: undefined,
  })
})

test('a model that no engine serves is refused at once, with when to come back', async () => {
  const { takeSeat } = open()
  expect(refusalOf(await takeSeat(model, never))).toEqual({
    code: 'engine_unavailable',
    model: 'a',
    reason: 'no engine serves it',
    retryAfterMs: 10_000,
  })
})

test('a model whose engines are all unhealthy is refused at once', async () => {
  const { takeSeat, addEngine, directory } = open()
  directory.become(addEngine(), 'unhealthy', 'x')
  expect(refusalOf(await takeSeat(model, never))).toMatchObject({ reason: 'its engine does not answer', retryAfterMs: 5_000 })
  directory.become(addEngine(), 'unhealthy', 'x')
  expect(refusalOf(await takeSeat(model, never))).toMatchObject({ reason: 'none of its engines answers' })
})

test('while an engine is starting a request waits for it, and gets a seat when it is ready', async () => {
  const { takeSeat, addEngine, directory, waiting } = open()
  const engine = addEngine({ ready: false })
  const seat = takeSeat(model, never)
  expect(waiting()).toBe(1)
  directory.become(engine, 'ready')
  expect(seatOf(await seat).replica.name).toBe('engine-1')
  expect(waiting()).toBe(0)
})

test('a wait ends at its limit with a refusal that says what was missing', async () => {
  const { takeSeat, addEngine, directory, waiting } = open({ waitMs: 20 })
  const engine = addEngine({ ready: false, seatLimit: 1 })
  expect(refusalOf(await takeSeat(model, never))).toMatchObject({
    reason: 'its engine was still starting after 0.02 s',
    retryAfterMs: 5_000,
  })
  directory.become(engine, 'ready')
  await takeSeat(model, never)
  expect(refusalOf(await takeSeat(model, never))).toMatchObject({ reason: 'all places were taken for 0.02 s', retryAfterMs: 1_000 })
  expect(waiting()).toBe(0)
})

test('more than may wait are refused at once', async () => {
  const { takeSeat, addEngine, waiting } = open({ waitingPerModel: 3 })
  addEngine({ ready: false })
  for (let each = 0; each < 3; each += 1) void takeSeat(model, never)
  expect(refusalOf(await takeSeat(model, never))).toMatchObject({ reason: '3 requests already wait for it', retryAfterMs: 1_000 })
  expect(waiting()).toBe(3)
})

test('whoever has tried an engine gets another one or none, and does not wait', async () => {
  const { takeSeat, addEngine, waiting } = open()
  const [first, second] = [addEngine({ seatLimit: 1 }), addEngine({ seatLimit: 1 })]
  const seat = seatOf(await takeSeat(model, never, new Set([first.id])))
  expect(seat.replica.engineId).toBe(second.id)
  expect(refusalOf(await takeSeat(model, never, new Set([first.id])))).toMatchObject({ reason: 'no other engine has a place' })
  expect(refusalOf(await takeSeat(model, never, new Set([first.id, second.id])))).toMatchObject({ retryAfterMs: 1_000 })
  expect(waiting()).toBe(0)
})

test('a caller who leaves while waiting gives the place back, and the next one is served', async () => {
  const { takeSeat, addEngine, waiting } = open()
  const engine = addEngine({ seatLimit: 1 })
  const held = seatOf(await takeSeat(model, never))
  const caller = new AbortController()
  const first = takeSeat(model, leaver(caller.signal))
  const second = takeSeat(model, never)
  caller.abort()
  expect(refusalOf(await first)).toMatchObject({ code: 'engine_unavailable' })
  expect(waiting()).toBe(1)
  held.leave('clean')
  seatOf(await second).leave('clean')
  await turn()
  expect(engine.busy).toBe(0)
})

test('a caller who has left already takes no seat', async () => {
  const { takeSeat, addEngine } = open()
  const engine = addEngine()
  expect((await takeSeat(model, leaver(AbortSignal.abort()))).ok).toBe(false)
  expect(engine.busy).toBe(0)
})

test('those who wait are served in the order of asking, also across the models of one engine', async () => {
  const { takeSeat, addEngine } = open()
  addEngine({ seatLimit: 1, models: [model, other] })
  let held = seatOf(await takeSeat(model, never))
  const order: string[] = []
  const asked = [other, model, other, model].map(async (wanted, at) => {
    const seat = seatOf(await takeSeat(wanted, never))
    order.push(`${at}${wanted.name}`)
    held = seat
  })
  for (const one of asked) {
    held.leave('clean')
    await one
  }
  expect(order).toEqual(['0b', '1a', '2b', '3a'])
})

test('a seat that is left twice is given back once', async () => {
  const { takeSeat, addEngine } = open()
  const engine = addEngine({ seatLimit: 3 })
  const seat = seatOf(await takeSeat(model, never))
  seatOf(await takeSeat(model, never))
  seat.leave('clean')
  seat.leave('broken')
  seat.leave('clean')
  await turn()
  expect(engine.busy).toBe(1)
})

test('when the last engine turns unhealthy, those who wait for it are refused and do not wait for nothing', async () => {
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine({ seatLimit: 1 })
  await takeSeat(model, never)
  const waiting = takeSeat(model, never)
  directory.become(engine, 'unhealthy', 'gone')
  expect(refusalOf(await waiting)).toMatchObject({ reason: 'its engine does not answer' })
})

test('when the last engine is removed, those who wait for it are refused', async () => {
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine({ ready: false })
  const waiting = takeSeat(model, never)
  directory.remove(engine)
  expect(refusalOf(await waiting)).toMatchObject({ reason: 'no engine serves it' })
})

test('an engine that is removed gets nobody new, and the seat that is out may end', async () => {
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine()
  const seat = seatOf(await takeSeat(model, never))
  directory.remove(engine)
  expect((await takeSeat(model, never)).ok).toBe(false)
  expect(seat.client.destroyed).toBe(false)
  seat.leave('clean')
  await turn()
  expect(seat.client.destroyed).toBe(true)
})

test('closing refuses those who wait, and everybody after', async () => {
  const { takeSeat, addEngine, close } = open()
  addEngine({ ready: false })
  const waiting = takeSeat(model, never)
  close()
  expect(refusalOf(await waiting)).toMatchObject({ model: 'a', reason: 'the server is stopping' })
  expect((await takeSeat(model, never)).ok).toBe(false)
})

test('a connection broken in use raises suspicion: others are preferred until the engine has answered', async () => {
  const { takeSeat, addEngine, directory } = open()
  const first = addEngine()
  addEngine()
  const suspected: string[] = []
  directory.watch({ suspected: ({ name }) => suspected.push(name) })
  const seat = seatOf(await takeSeat(model, never))
  seat.leave('broken')
  await turn()
  expect(suspected).toEqual(['engine-1'])
  expect(seatOf(await takeSeat(model, never)).replica.name).toBe('engine-2')
  expect(seatOf(await takeSeat(model, never)).replica.name).toBe('engine-2')
  directory.become(first, 'unhealthy', 'x')
  directory.become(first, 'ready')
  expect(seatOf(await takeSeat(model, never)).replica.name).toBe('engine-1')
})

test('a seat that is left before anything was sent says nothing about its engine, neither good nor bad', async () => {
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine()
  addEngine()
  for (let each = 0; each < 4; each += 1) directory.failed(engine, 'failed')
  const seat = seatOf(await takeSeat(model, never))
  expect(seat.replica.engineId).toBe(engine.id)
  seat.leave('unused')
  await turn()
  expect([engine.busy, engine.state]).toEqual([0, 'ready'])
  directory.failed(engine, 'failed')
  expect(engine.reason).toBe('5 calls to it failed in a row')
})

const call = (seat: Seat): Promise<number> =>
  new Promise((done, fail) => {
    seat.client.dispatch(
      {
        method: 'POST',
        path: '/v1/chat/completions',
        body: JSON.stringify({ model: 'a' }),
        headers: { 'content-type': 'application/json' },
      },
      {
        onRequestStart: () => undefined,
        onResponseStart: (_controller, status) => {
          if (status !== 200) fail(new Error(String(status)))
        },
        onResponseData: () => undefined,
        // In the callback itself, as the relay does.
        onResponseEnd: () => {
          seat.leave('clean')
          done(200)
        },
        onResponseError: (_controller, error) => {
          seat.leave('broken')
          fail(error)
        },
      },
    )
  })

const startEngine = async (script: Parameters<typeof startScriptedEngine>[0] = {}): Promise<ScriptedEngine> => {
  const engine = await startScriptedEngine(script)
  opened.push(() => engine.close())
  return engine
}

test('a seat that was left cleanly brings its connection to the next, also when it is handed straight to one who waits', async () => {
  const engine = await startEngine()
  const { takeSeat, addEngine } = open()
  addEngine({ url: engine.url, seatLimit: 1 })
  const first = seatOf(await takeSeat(model, never))
  const next = takeSeat(model, never)
  await call(first)
  const second = seatOf(await next)
  expect(second.client).toBe(first.client)
  await call(second)
  await turn()
  expect(seatOf(await takeSeat(model, never)).client).toBe(first.client)
})

test('a seat left as clean in the middle of an answer does not bring its connection to anybody', async () => {
  const engine = await startEngine({ holdAfter: 1 })
  const { takeSeat, addEngine } = open()
  addEngine({ url: engine.url })
  const seat = seatOf(await takeSeat(model, never))
  const called = call(seat).catch(() => 'cut')
  await engine.until('held')
  seat.leave('clean')
  await turn()
  expect(seat.client.destroyed).toBe(true)
  expect(await called).toBe('cut')
  expect(seatOf(await takeSeat(model, never)).client).not.toBe(seat.client)
  await engine.until('aborted')
})

test('connections to an earlier process of an engine do not come back', async () => {
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine()
  const seat = seatOf(await takeSeat(model, never))
  directory.become(engine, 'unhealthy', 'ended')
  directory.arrive(engine, readAddress('http://127.0.0.1:10'), undefined)
  directory.become(engine, 'ready')
  seat.leave('clean')
  await turn()
  const next = seatOf(await takeSeat(model, never))
  expect(next.client).not.toBe(seat.client)
  expect(next.replica.origin).toBe('http://127.0.0.1:10')
})

test('all connections of a burst are kept, until they are closed', async () => {
  const server = createServer((_request, response) => response.end('well'))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { takeSeat, addEngine, directory } = open()
  const engine = addEngine({ seatLimit: 100 })
  directory.arrive(engine, readAddress(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), undefined)
  directory.become(engine, 'ready')
  const seats = await Promise.all(Array.from({ length: 100 }, async () => seatOf(await takeSeat(model, never))))
  await Promise.all(seats.map(async ({ client }) => (await client.request({ path: '/', method: 'GET' })).body.text()))
  for (const seat of seats) seat.leave('clean')
  await turn()
  expect(engine.idle).toHaveLength(100)
  server.close()
  server.closeIdleConnections()
  await expect.poll(() => engine.idle).toEqual([])
  expect(seats.every(({ client }) => client.destroyed)).toBe(true)
})

test('a project that fills the queue neither starves another nor keeps it out', async () => {
  const { takeSeat, addEngine } = open({ waitingPerModel: 4 })
  addEngine({ seatLimit: 1 })
  const first = seatOf(await takeSeat(model, never))
  const order: string[] = []
  const ask = async (projectId: string, at: number): Promise<void> => {
    const outcome = await takeSeat(model, never, undefined, { projectId, tokens: 100 })
    order.push(`${projectId}${at}${outcome.ok ? '' : ' refused'}`)
    if (outcome.ok) outcome.value.leave('clean')
  }
  const asked = [0, 1, 2, 3].map((at) => ask('crowd', at))
  asked.push(ask('one', 0))
  await turn()
  // The last of the crowd has given way to the one.
  expect(order).toEqual(['crowd3 refused'])
  first.leave('clean')
  await Promise.all(asked)
  expect(order).toEqual(['crowd3 refused', 'crowd0', 'one0', 'crowd1', 'crowd2'])
})

test('in whatever order seats are asked for, left, broken off and engines turn, every place is given back and nobody waits for a free one', async () => {
  const step = fc.oneof(
    { weight: 5, arbitrary: fc.record({ do: fc.constant('take' as const), which: fc.constantFrom(model, other) }) },
    { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('leave' as const, 'break' as const, 'abort' as const), at: fc.nat() }) },
    {
      weight: 2,
      arbitrary: fc.record({
        do: fc.constant('turn' as const),
        at: fc.nat(2),
        to: fc.constantFrom('starting' as const, 'ready' as const, 'unhealthy' as const),
      }),
    },
  )
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const room = open({ waitMs: 60_000 })
      const engines = [
        room.addEngine({ seatLimit: 1 }),
        room.addEngine({ seatLimit: 2, models: [model, other] }),
        room.addEngine({ seatLimit: 1, models: [other] }),
      ]
      const callers: { signal: AbortController; seat?: Seat; refused?: true }[] = []
      for (const next of steps) {
        if (next.do === 'take') {
          const caller: (typeof callers)[number] = { signal: new AbortController() }
          callers.push(caller)
          void room.takeSeat(next.which, leaver(caller.signal.signal)).then((outcome) => {
            if (outcome.ok) caller.seat = outcome.value
            else caller.refused = true
          })
        } else if (next.do === 'turn') {
          const engine = engines[next.at]
          if (engine !== undefined) room.directory.become(engine, next.to, 'told to')
        } else {
          const caller = callers[next.at % Math.max(1, callers.length)]
          if (next.do === 'abort') caller?.signal.abort()
          else caller?.seat?.leave(next.do === 'leave' ? 'clean' : 'broken')
        }
        await turn()
        await turn()
        for (const engine of engines) {
          expect(engine.busy).toBeGreaterThanOrEqual(0)
          expect(engine.busy).toBeLessThanOrEqual(engine.seatLimit)
        }
        const open = engines.some((engine) => engine.state === 'ready' && engine.busy < engine.seatLimit && engine.serves.length === 2)
        // The second engine serves both models: while it has a place, nobody can be waiting.
        expect(open ? room.waiting() : 0).toBe(0)
      }
      for (const caller of callers) {
        caller.signal.abort()
        caller.seat?.leave('clean')
      }
      await until('all is quiet', () => {
        for (const caller of callers) caller.seat?.leave('clean')
        return engines.every((engine) => engine.busy === 0) && room.waiting() === 0
      })
      expect(callers.every((caller) => caller.seat !== undefined || caller.refused === true)).toBe(true)
      room.close()
    }),
    { numRuns: 60 },
  )
})
