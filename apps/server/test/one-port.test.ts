import { randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { socketOf } from '@parvis/server/gateways/hand-over'
import { emptyDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { runParvis, type ServerProcess, startServerProcess } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Several gateways behind one port, as processes. One database, one data directory and the same server all along: each test says what is new in it.

const KEY = randomUUID()
let database: TestDatabase
let engine: ScriptedEngine
let env: Record<string, string>
let server: ServerProcess

type Said = { status: number; headers: Record<string, string | string[] | undefined>; text: string; whole: boolean }

/** A request on a connection of its own: connections are what the gateways get in turn. */
const send = (
  method: string,
  path: string,
  options: { body?: unknown; headers?: Record<string, string>; key?: string; begun?: () => void } = {},
): Promise<Said> =>
  new Promise((resolve, reject) => {
    const asked = request(`${server.url}${path}`, {
      method,
      agent: false,
      headers: { authorization: `Bearer ${options.key ?? KEY}`, 'content-type': 'application/json', ...options.headers },
    })
    asked.on('error', reject)
    asked.on('response', (answer) => {
      let text = ''
      options.begun?.()
      answer.on('data', (piece) => (text += String(piece)))
      answer.on('close', () => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, text, whole: answer.complete }))
      answer.on('error', () => undefined) // cut: `whole` says so
    })
    asked.end(options.body === undefined ? undefined : JSON.stringify(options.body))
  })
const body = (more: object = {}) => ({ model: 'scripted', messages: [{ role: 'user', content: 'x' }], ...more })
const ask = (more: object = {}, headers: Record<string, string> = {}) => send('POST', '/v1/chat/completions', { body: body(more), headers })

/** The processes that the house has started and whose command line has this in it. */
const childrenOf = async (of: number, has: string): Promise<number[]> => {
  const pids: number[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const read = (file: string): Promise<string> => readFile(`/proc/${name}/${file}`, 'utf8').catch(() => '')
    const [stat, words] = [await read('stat'), await read('cmdline')]
    const [state, parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (Number(parent) === of && state !== 'Z' && words.includes(has)) pids.push(Number(name))
  }
  return pids
}
const gatewayPids = (of: number): Promise<number[]> => childrenOf(of, 'parvis gateway')
const booked = async (where = 'true'): Promise<number> =>
  Number((await database.db.query<{ count: bigint }>(`select count(*) from usage_event where ${where}`)).rows[0]?.count)

const start = async (gateways: number, more: Record<string, string> = {}): Promise<void> => {
  server = await startServerProcess({ ...env, PARVIS_GATEWAYS: String(gateways), ...more })
}
/** A gateway that lets its answers end has no socket for its neighbours any more. */
const untilDraining = async (gateways: number): Promise<void> => {
  for (let number = 1; number <= gateways; number += 1) {
    const path = socketOf(env['PARVIS_DATA_DIR'] ?? '', number)
    await until(`gateway ${number} takes nothing new`, () => {
      const socket = connect(path)
      return once(socket, 'connect').then(
        () => {
          socket.destroy()
          return false
        },
        () => true,
      )
    })
  }
}

beforeAll(async () => {
  database = await emptyDatabase()
  engine = await startScriptedEngine({}, { models: ['scripted'] })
  env = {
    PARVIS_DATA_DIR: await mkdtemp(join(tmpdir(), 'parvis-port-')),
    PARVIS_PORT: '0',
    PARVIS_DATABASE_URL: database.url,
    PARVIS_BOOTSTRAP_SECRET_KEY: KEY,
    PARVIS_MASTER_KEY: randomBytes(32).toString('hex'),
    PARVIS_DEMO_MODELS: 'false',
    PARVIS_SHUTDOWN_SECONDS: '20',
  }
  await start(2)
  const added = await runParvis(['engines', 'add', '--name', 'scripted', '--url', engine.url], env)
  if (added.code !== 0) throw new Error(added.err)
  for (let served = 0; served < 4; ) served = (await ask()).status === 200 ? served + 1 : 0
}, 120_000)
afterAll(async () => {
  engine?.release()
  await server?.stop('SIGKILL')
  await engine?.close()
  await database?.drop()
  await rm(env['PARVIS_DATA_DIR'] ?? '', { recursive: true, force: true })
})

test('requests over many connections are served by both gateways, and each is in the books once', async () => {
  const answers = await Promise.all(Array.from({ length: 40 }, () => ask()))
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200))
  const ids = answers.map(({ headers }) => String(headers['x-request-id']))
  expect(new Set(ids).size).toBe(40)
  await until('all are in the books', async () => (await booked(`id in ('${ids.join("','")}')`)) === 40)
  const { rows } = await database.db.query('select gateway from usage_event group by gateway')
  expect(rows).toHaveLength(2)
  const log = server.err()
  expect(log).toMatch(/"gateway":1/)
  expect(log).toMatch(/"gateway":2/)
})

test('the metrics are those of all gateways, whichever is asked', async () => {
  const counted = async (): Promise<number> => {
    const { text } = await send('GET', '/metrics')
    expect(text).toContain('parvis_gateways{state="up"} 2')
    expect(text).toContain('parvis_usage_journal_writable 1')
    return Number(/parvis_usage_counted_total\{by="engine"\} (\d+)/.exec(text)?.[1])
  }
  const first = await counted()
  expect(first).toBe(await booked())
  expect([await counted(), await counted(), await counted()]).toEqual([first, first, first])
})

test('a key that is made at one gateway is known at all of them when the answer comes, and one that is taken away is gone', async () => {
  for (let round = 0; round < 3; round += 1) {
    const { rows } = await database.db.query<{ id: string }>("select id from principal where role = 'owner'")
    const made = await send('POST', '/iam/v1alpha1/api-keys', { body: { user_id: rows[0]?.id } })
    const { secret_key: key, access_key: accessKey } = JSON.parse(made.text) as { secret_key: string; access_key: string }
    for (let connection = 0; connection < 3; connection += 1) expect((await send('GET', '/v1/models', { key })).status).toBe(200)
    expect((await send('DELETE', `/iam/v1alpha1/api-keys/${accessKey}`)).status).toBe(204)
    for (let connection = 0; connection < 3; connection += 1) expect((await send('GET', '/v1/models', { key })).status).toBe(403)
  }
})

test('one Idempotency-Key is one request, whichever gateways its repeats meet', async () => {
  const ids: string[] = []
  for (const key of ['first', 'second', 'third', 'fourth']) {
    const asked = engine.count('asked')
    engine.play({ tokens: ['a', 'b'], holdAfter: 1 })
    const held = engine.count('held')
    const repeats = Array.from({ length: 6 }, () => ask({ stream: true }, { 'idempotency-key': key }))
    await engine.until('held', held + 1)
    engine.play({ tokens: ['a', 'b'] })
    engine.release()
    const answers = [...(await Promise.all(repeats)), await ask({ stream: true }, { 'idempotency-key': key })]
    expect(answers.map(({ status, whole }) => [status, whole])).toEqual(answers.map(() => [200, true]))
    expect(new Set(answers.map(({ text }) => text)).size).toBe(1)
    expect(answers[0]?.text).toContain('[DONE]')
    expect(answers.filter(({ headers }) => headers['idempotent-replayed'] === 'true')).toHaveLength(6)
    expect(engine.count('asked')).toBe(asked + 1)
    expect((await ask({ stream: true, n: 2 }, { 'idempotency-key': key })).status).toBe(409)
    ids.push(...answers.map(({ headers }) => String(headers['x-request-id'])))
  }
  const after = (await Promise.all(Array.from({ length: 4 }, () => ask()))).map(({ headers }) => String(headers['x-request-id']))
  await until('later ones of both gateways are in the books', async () => (await booked(`id in ('${after.join("','")}')`)) === 4)
  expect(await booked(`id in ('${ids.join("','")}')`)).toBe(4)
})

test('a client that leaves a request which another gateway has is gone there, too', async () => {
  engine.play({ tokens: ['a', 'b'], holdAfter: 1 })
  const held = engine.count('held')
  const aborted = engine.count('aborted')
  // Several connections meet both gateways, so one of them at least has handed it over.
  const leaving = Array.from({ length: 4 }, () => {
    const asked = request(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      agent: false,
      headers: { authorization: `Bearer ${KEY}`, 'content-type': 'application/json', 'idempotency-key': 'left' },
    })
    asked.on('error', () => undefined)
    asked.end(JSON.stringify(body({ stream: true })))
    return once(asked, 'response').then(() => asked)
  })
  for (const asked of await Promise.all(leaving)) asked.destroy()
  expect(engine.count('held')).toBe(held + 1)
  // It is waited for as long as everybody is who sends a key, and no longer.
  await engine.until('aborted', aborted + 1)
  engine.play({})
  engine.release()
}, 90_000)

test('wrong keys of one address count at all gateways together', async () => {
  const wrong = () => send('GET', '/v1/models', { key: randomUUID() })
  let asked = 0
  for (let refused = 0; refused < 4 && asked < 150; asked += 1) refused = (await wrong()).status === 429 ? refused + 1 : 0
  // A hundred, and those that were on their way when the hundredth was told.
  expect(asked).toBeLessThan(115)
  expect((await send('GET', '/v1/models')).status).toBe(200)
})

test('a gateway that is killed leaves the others serving, comes back, and its answers are lost in the books', async () => {
  await until('nothing waits', async () => (await booked("ended = 'lost'")) === 0)
  engine.play({ tokens: ['a', 'b'], holdAfter: 1 })
  const held = engine.count('held')
  const streams = Array.from({ length: 8 }, () => ask({ stream: true }))
  for (const stream of streams) stream.catch(() => undefined)
  await engine.until('held', held + 8)
  const [victim] = await gatewayPids(server.pid)
  process.kill(victim ?? 0, 'SIGKILL')
  engine.play({})
  await until('the other serves', async () => (await ask()).status === 200)
  engine.release()
  const ends = await Promise.all(streams.map((stream) => stream.catch(() => undefined)))
  const cut = ends.filter((end) => end?.whole !== true).length
  expect(cut).toBe(4)
  expect(ends.filter((end) => end?.text.includes('[DONE]'))).toHaveLength(8 - cut)
  await until('it is back', async () => {
    const pids = await gatewayPids(server.pid)
    return (
      pids.length === 2 && !pids.includes(victim ?? 0) && (await send('GET', '/metrics')).text.includes('parvis_gateways{state="up"} 2')
    )
  })
  await until('what was lost is in the books', async () => (await booked("ended = 'lost'")) === cut)
  expect(await booked("ended = 'lost' and charged")).toBe(0)
}, 90_000)

test('told to stop, the gateways let their streams end, and the exit code is 0', async () => {
  engine.play({ tokens: ['a', 'b', 'c'], holdAfter: 1 })
  const held = engine.count('held')
  const streams = [
    ...Array.from({ length: 4 }, () => ask({ stream: true })),
    ...['drained 1', 'drained 2'].map((key) => ask({ stream: true }, { 'idempotency-key': key })),
  ]
  await engine.until('held', held + 6)
  const stopped = server.stop('SIGTERM')
  await until('nothing new is accepted', () =>
    send('GET', '/health').then(
      () => false,
      () => true,
    ),
  )
  engine.play({})
  engine.release()
  const ends = await Promise.all(streams)
  expect(ends.map(({ whole, text }) => whole && text.includes('[DONE]'))).toEqual(ends.map(() => true))
  expect(await stopped).toBe(0)
  const ids = ends.map(({ headers }) => String(headers['x-request-id']))
  expect(await booked(`id in ('${ids.join("','")}') and ended = 'complete'`)).toBe(6)
})

test.each([
  ['end in time', 'complete', 6n],
  ['are cut', 'client_left', 5n],
])('told to stop, the gateways have counted by the tokenizer what no engine has: answers that %s', async (_how, ended, output) => {
  await start(2, ended === 'complete' ? {} : { PARVIS_SHUTDOWN_SECONDS: '1' })
  for (let served = 0; served < 4; ) served = (await ask()).status === 200 ? served + 1 : 0
  engine.play({ tokens: ['one two three', ' four five', ' six'], usage: false, holdAfter: 2 })
  const held = engine.count('held')
  const streams = Array.from({ length: 4 }, () => ask({ stream: true }))
  await engine.until('held', held + 4)
  const stopped = server.stop('SIGTERM')
  await untilDraining(2)
  engine.play({})
  if (ended === 'complete') engine.release()
  const ends = await Promise.all(streams)
  expect(ends.map(({ whole }) => whole)).toEqual(ends.map(() => ended === 'complete'))
  expect(await stopped).toBe(0)
  engine.release()
  const ids = ends.map(({ headers }) => String(headers['x-request-id']))
  const { rows } = await database.db.query(
    `select ended, counted, input_tokens, output_tokens from usage_event where id in ('${ids.join("','")}')`,
  )
  expect(rows).toEqual(ids.map(() => ({ ended, counted: 'tokenizer', input_tokens: 7n, output_tokens: output })))
})

test('told to stop, the gateways keep the limits of time of what still runs, and its pings', async () => {
  await start(2, { PARVIS_REQUEST_TIMEOUT_SECONDS: '4', PARVIS_STREAM_PING_SECONDS: '1' })
  for (let served = 0; served < 4; ) served = (await ask()).status === 200 ? served + 1 : 0
  engine.play({ tokens: ['a', 'b'], holdAfter: 1 })
  const held = engine.count('held')
  const streams = Array.from({ length: 4 }, () => ask({ stream: true }))
  await engine.until('held', held + 4)
  const stopped = server.stop('SIGTERM')
  const ends = await Promise.all(streams)
  expect(await stopped).toBe(0)
  engine.play({})
  engine.release()
  expect(ends.map(({ whole, text }) => whole && text.includes(': ping\n\n') && text.endsWith('data: [DONE]\n\n'))).toEqual(
    ends.map(() => true),
  )
  const ids = ends.map(({ headers }) => String(headers['x-request-id']))
  expect(await booked(`id in ('${ids.join("','")}') and ended = 'timed_out'`)).toBe(4)
})

test('a house that is killed takes its gateways with it, and a start with fewer ships what they left', async () => {
  await start(2)
  await until('it serves', async () => (await ask()).status === 200)
  const lostBefore = await booked("ended = 'lost'")
  const client = await database.db.connect()
  await client.query('begin')
  await client.query('lock table usage_event in access exclusive mode')
  const answers = await Promise.all(Array.from({ length: 8 }, () => ask()))
  engine.play({ tokens: ['a', 'b'], holdAfter: 1 })
  const held = engine.count('held')
  const streams = Array.from({ length: 4 }, () => ask({ stream: true }).catch(() => undefined))
  await engine.until('held', held + 4)
  const openings = async () =>
    (await Promise.all(['usage', 'gateways/2/usage'].map((path) => readdir(join(env['PARVIS_DATA_DIR'] ?? '', path))))).map((names) =>
      names.filter((name) => name.endsWith('.journal')),
    )
  const pids = await gatewayPids(server.pid)
  expect(pids).toHaveLength(2)

  await server.stop('SIGKILL')
  await until('its gateways are gone', async () =>
    (await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')))).every((title) => title === ''),
  )
  engine.play({})
  engine.release()
  await Promise.all(streams)
  for (const left of await openings()) expect(left.length).toBeGreaterThan(0)
  await client.query('rollback')
  client.release()

  await start(1)
  const ids = answers.map(({ headers }) => String(headers['x-request-id']))
  await until('what both had is in the books', async () => (await booked(`id in ('${ids.join("','")}') and ended = 'complete'`)) === 8)
  await until('what ran is lost', async () => (await booked("ended = 'lost'")) === lostBefore + 4)
  expect((await openings())[1]).toEqual([])
  const { code, out } = await runParvis(['usage', 'reconcile'], env)
  expect({ code, out }).toMatchObject({ code: 0 })
}, 120_000)

test('embedded engines are started once for all gateways, and both know them through every death', async () => {
  expect(await server.stop('SIGTERM')).toBe(0)
  env = { ...env, PARVIS_DEMO_MODELS: 'true', PARVIS_ENGINE_THREADS: '1' }
  await start(2)
  const embed = async (): Promise<boolean> =>
    (await send('POST', '/v1/embeddings', { body: { model: 'tiny-embed', input: 'x' } }).catch(() => undefined))?.status === 200
  // Connections are handed out in turn.
  const bothServe = () => until('both gateways serve it', async () => (await embed()) && (await embed()) && (await embed()), 60_000)
  const engines = () => childrenOf(server.pid, 'tiny-embed')
  await bothServe()
  const [first, ...others] = await engines()
  expect(others).toEqual([])
  process.kill(first ?? 0, 'SIGKILL')
  await until('another one runs', async () => (await engines()).some((pid) => pid !== first))
  await bothServe()

  const [gateway] = await gatewayPids(server.pid)
  process.kill(gateway ?? 0, 'SIGKILL')
  await until('it is back', async () => {
    const pids = await gatewayPids(server.pid)
    return (
      pids.length === 2 && !pids.includes(gateway ?? 0) && (await send('GET', '/metrics')).text.includes('parvis_gateways{state="up"} 2')
    )
  })
  await bothServe()
  expect(await engines()).toHaveLength(1)
  expect(server.err() + server.out()).not.toMatch(/[0-9a-f]{64}/)
}, 180_000)
