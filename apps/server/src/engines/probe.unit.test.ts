import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { until } from '@parvis/testkit/until'
import { afterEach, expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { readAddress } from './address.ts'
import { type Engine, newEngine, openDirectory } from './directory.ts'
import { openHealthWatch, type ProbeLimits } from './probe.ts'

const clock = systemClock
const opened: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close()
})

const stop = async (server: Server): Promise<void> => {
  if (!server.listening) return
  const closed = once(server, 'close')
  server.close()
  server.closeAllConnections()
  await closed
}

/** A server that answers as it is told, and remembers what it was asked. */
const startServer = async (answer: RequestListener, port = 0) => {
  const asked: { path: string; authorization: string | undefined }[] = []
  const server = createServer((request, response) => {
    asked.push({ path: request.url ?? '', authorization: request.headers.authorization })
    answer(request, response)
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  opened.push(() => stop(server))
  return { asked, port: (server.address() as AddressInfo).port, stop: () => stop(server) }
}

const open = (url: string, options: { bearer?: string; limits?: Partial<ProbeLimits> } = {}) => {
  const directory = openDirectory({ clock, log: openLog('silent') })
  const limits = { everyMs: 30, answerMs: 30_000, soonMs: 10, gapMs: 1, ...options.limits }
  const health = openHealthWatch({ directory, clock, limits })
  opened.push(health.close)
  const engine = newEngine(
    { id: newId(clock.now()), name: 'e', kind: 'external', seatLimit: 1, serves: [], reason: 'not asked yet' },
    clock.now(),
  )
  directory.arrive(engine, readAddress(url), options.bearer)
  directory.add(engine)
  const turns: string[] = []
  directory.watch({ moved: ({ state }) => turns.push(state) })
  health.begin(engine)
  return { directory, health, engine, turns }
}

const becomes = (engine: Engine, state: Engine['state']) => until(`it is ${state}`, () => engine.state === state)

test('an engine that answers on /health is ready, and its key came along', async () => {
  const server = await startServer((_, response) => response.end('{}'))
  const { engine } = open(`http://127.0.0.1:${server.port}/base/v1`, { bearer: 'k' })
  await becomes(engine, 'ready')
  expect(engine.reason).toBeUndefined()
  expect(server.asked[0]).toEqual({ path: '/base/health', authorization: 'Bearer k' })
})

test('an engine without /health is asked for its models, and then only for those', async () => {
  const server = await startServer((request, response) => response.writeHead(request.url === '/v1/models' ? 200 : 404).end('{}'))
  const { engine } = open(`http://127.0.0.1:${server.port}`)
  await becomes(engine, 'ready')
  await until('it was asked four times', () => server.asked.length >= 4)
  expect(server.asked.map(({ path }) => path).slice(0, 4)).toEqual(['/health', '/v1/models', '/v1/models', '/v1/models'])
})

test('too many questions is an answer, too', async () => {
  const server = await startServer((_, response) => response.writeHead(429).end())
  const { engine, turns } = open(`http://127.0.0.1:${server.port}`)
  await becomes(engine, 'ready')
  expect(turns).toEqual(['ready'])
})

test('an engine that refuses the key is unhealthy and says so', async () => {
  const server = await startServer((_, response) => response.writeHead(401).end())
  const { engine } = open(`http://127.0.0.1:${server.port}`, { bearer: 'wrong' })
  await becomes(engine, 'unhealthy')
  expect(engine.reason).toBe('answers 401 on /v1/models (it wants another key)')
})

test('one bad answer is a busy moment: it raises suspicion and changes nothing', async () => {
  let status = 200
  const server = await startServer((_, response) => {
    response.writeHead(status).end()
    if (status === 503) status = 200
  })
  const { engine, turns } = open(`http://127.0.0.1:${server.port}`)
  await becomes(engine, 'ready')
  status = 503
  const before = server.asked.length
  await until('it was asked four times more', () => server.asked.length >= before + 4)
  expect(turns).toEqual(['ready'])
  expect(engine.suspect).toBe(false)
})

test('two bad answers in a row make it unhealthy, and the first good one ready again', async () => {
  let status = 200
  const server = await startServer((_, response) => response.writeHead(status).end())
  const { engine, turns } = open(`http://127.0.0.1:${server.port}`)
  await becomes(engine, 'ready')
  status = 503
  await becomes(engine, 'unhealthy')
  expect(engine.reason).toBe('answers 503 on /health')
  status = 200
  await becomes(engine, 'ready')
  expect(turns).toEqual(['ready', 'unhealthy', 'ready'])
})

test('an engine that accepts and never answers turns unhealthy', async () => {
  const server = await startServer(() => undefined)
  const { engine } = open(`http://127.0.0.1:${server.port}`, { limits: { answerMs: 30 } })
  await becomes(engine, 'unhealthy')
  expect(engine.reason).toBe('no answer on /health within 0.03 s')
})

test('where nobody listens the engine is unhealthy at the first question, and ready once it is started', async () => {
  const first = await startServer((_, response) => response.end())
  await first.stop()
  const { engine } = open(`http://127.0.0.1:${first.port}`)
  await becomes(engine, 'unhealthy')
  expect(engine.reason).toBe('nothing listens there (connection refused)')
  await startServer((_, response) => response.end(), first.port)
  await becomes(engine, 'ready')
})

test('a suspected engine is asked at once, and unhealthy at once when nobody listens there any more', async () => {
  const server = await startServer((_, response) => response.end())
  const { engine, directory } = open(`http://127.0.0.1:${server.port}`, { limits: { everyMs: 60_000 } })
  await becomes(engine, 'ready')
  await server.stop()
  directory.suspect(engine)
  expect(engine.suspect).toBe(true)
  await becomes(engine, 'unhealthy')
})

test('a suspected engine that answers is trusted again', async () => {
  const server = await startServer((_, response) => response.end())
  const { engine, directory } = open(`http://127.0.0.1:${server.port}`, { limits: { everyMs: 60_000 } })
  await becomes(engine, 'ready')
  for (let each = 0; each < 100; each += 1) directory.suspect(engine)
  await until('it is trusted', () => !engine.suspect)
  expect(server.asked.length).toBeLessThan(5)
})

test('an engine that is no longer watched is not asked any more', async () => {
  const server = await startServer((_, response) => response.end())
  const { engine, health } = open(`http://127.0.0.1:${server.port}`, { limits: { everyMs: 1 } })
  await becomes(engine, 'ready')
  health.end(engine)
  await health.close()
  const asked = server.asked.length
  await new Promise((after) => setImmediate(after))
  expect(server.asked).toHaveLength(asked)
})
