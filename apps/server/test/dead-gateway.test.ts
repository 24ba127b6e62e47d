import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { emptyDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { runParvis, type ServerProcess, startServerProcess } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Two gateways as processes on one database. One is killed while answers run on it: what it held is lost for as long as its lease, and then free.

const SHARED = { PARVIS_MASTER_KEY: randomBytes(32).toString('hex'), PARVIS_BOOTSTRAP_SECRET_KEY: randomUUID() }
const PLACES = 3
const BUDGET = 1_000

let database: TestDatabase
let engine: ScriptedEngine
const servers: ServerProcess[] = []
const directories: string[] = []

const settings = async (): Promise<Record<string, string>> => {
  const dataDir = await mkdtemp(join(tmpdir(), 'parvis-gateway-'))
  directories.push(dataDir)
  return { ...SHARED, PARVIS_DATA_DIR: dataDir, PARVIS_PORT: '0', PARVIS_DATABASE_URL: database.url, PARVIS_DEMO_MODELS: 'false' }
}
const serve = async (env: Record<string, string>): Promise<ServerProcess> => {
  const server = await startServerProcess(env)
  servers.push(server)
  return server
}

beforeAll(async () => {
  database = await emptyDatabase()
  engine = await startScriptedEngine({}, { models: ['scripted'] })
})
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop('SIGKILL')))
  await Promise.all(directories.map((directory) => rm(directory, { recursive: true, force: true })))
  await engine?.close()
  await database?.drop()
})

const call = (server: ServerProcess, method: string, path: string, body: unknown) =>
  fetch(`${server.url}${path}`, {
    method,
    headers: { authorization: `Bearer ${SHARED.PARVIS_BOOTSTRAP_SECRET_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
const ask = (server: ServerProcess, more: object = {}) =>
  call(server, 'POST', '/v1/chat/completions', { model: 'scripted', max_tokens: 250, messages: [{ role: 'user', content: 'x' }], ...more })

/** What one gateway holds of places and budgets, and whether its lease has ended. */
const holdings = async (): Promise<{ key: string; gateway: string; held: number; ended: boolean }[]> =>
  (
    await database.db.query<{ key: string; gateway: string; held: number; ended: boolean }>(
      'select key, gateway, held::int as held, until < now() as ended from quota_part where held > 0',
    )
  ).rows

test('a killed gateway’s places and what it held of a budget are free when its lease has ended, and not before', async () => {
  const env = await settings()
  const [dying, living] = await Promise.all([serve(env), settings().then(serve)])
  expect(await runParvis(['engines', 'add', '--name', 'scripted', '--url', engine.url], env)).toMatchObject({ code: 0 })
  const { rows } = await database.db.query<{ id: string }>('select id from organization')
  const limits = { concurrent_requests: PLACES, requests_per_minute: 9_999 }
  expect((await call(living, 'PUT', `/parvis/v1/limits/organizations/${rows[0]?.id}`, limits)).status).toBe(204)
  expect((await call(living, 'PUT', '/parvis/v1/budgets', { unit: 'tokens', period: 'day', amount: BUDGET })).status).toBe(200)
  for (const server of [dying, living]) {
    await until('it serves, and knows the limits', async () => (await ask(server)).headers.get('x-ratelimit-limit-requests') === '9999')
    // More than the whole budget in one request.
    await until('it knows the budget', async () => (await ask(server, { n: 5 })).status === 429)
  }

  // Whole answers that never come: each holds a place and all of its output, which together is more than half of the budget.
  engine.play({ holdAfter: 0, holdHead: true })
  const held = engine.count('held')
  let running = 0
  const answers = new Set<Promise<unknown>>()
  await until('all places are taken on the one', async () => {
    const before = engine.count('held')
    const answer = ask(dying).then(
      ({ status }) => status,
      () => undefined,
    )
    answers.add(answer)
    const refused = await Promise.race([engine.until('held', before + 1).then(() => false), answer.then((status) => status === 429)])
    running += refused ? 0 : 1
    return running === PLACES
  })
  expect(engine.count('held')).toBe(held + PLACES)
  await until('the ledger knows', async () =>
    (await holdings()).some(({ key, held: places }) => key.startsWith('places') && places === PLACES),
  )
  const gateway = (await holdings()).find(({ key, held: places }) => key.startsWith('places') && places === PLACES)?.gateway
  engine.play({})
  let said = ''
  await until('the other has no place', async () => {
    const answer = await ask(living)
    said = await answer.text()
    return answer.status === 429
  })
  expect(said).toContain('exceeded your current threshold of concurrent requests')

  await dying.stop('SIGKILL')
  engine.release()
  await Promise.all(answers)

  // Two answers of 250 tokens at once fit only when what was held of the budget is free, too.
  await until('the other takes its places', async () => {
    const answer = await ask(living, { n: 2 })
    if (answer.status === 429) return false
    expect(answer.status).toBe(200)
    const dead = (await holdings()).filter((row) => row.gateway === gateway)
    expect(dead.map(({ key }) => key.split(' ')[0]).toSorted()).toEqual(['budget', 'places'])
    expect(dead.every(({ ended }) => ended)).toBe(true)
    return true
  })

  // And all of them: so many at once, and not one more.
  engine.play({ holdAfter: 0 })
  const begun = engine.count('held')
  const streams = await Promise.all(Array.from({ length: PLACES }, () => ask(living, { stream: true })))
  expect(streams.map(({ status }) => status)).toEqual(Array.from({ length: PLACES }, () => 200))
  await engine.until('held', begun + PLACES)
  expect((await ask(living)).status).toBe(429)
  engine.play({})
  engine.release()
  await Promise.all(streams.map((stream) => stream.text()))
}, 180_000)
