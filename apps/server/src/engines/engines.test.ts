import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { addModel } from '../catalog/models.ts'
import { openChanges } from '../kit/changes.ts'
import { systemClock } from '../kit/clock.ts'
import type { ModelId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import type { UnitPrice } from '../kit/money.ts'
import { openSecrets, type Secrets } from '../kit/secrets.ts'
import { openEngines } from './engines.ts'
import { addEngine, type EngineInput, listEngines, removeEngine } from './registry.ts'

const clock = systemClock
const log = openLog('silent')
const { signal } = new AbortController()
const never = { isOver: () => false, signal: () => signal }

let database: TestDatabase
let dataDir: string
let secrets: Secrets
let model: { id: ModelId; name: string }
beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-engines-'))
  secrets = await openSecrets({ dataDir, masterKey: undefined })
})
afterAll(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})
const opened: (() => Promise<unknown>)[] = []
beforeEach(async () => {
  model = await newModel()
})
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close()
  for (const { name } of await listEngines(database.db)) await removeEngine(database.db, name, 'test')
})

const newModel = async (): Promise<{ id: ModelId; name: string }> => {
  const name = `m-${randomUUID()}`
  const price = { input: 0n as UnitPrice, output: 0n as UnitPrice }
  const id = await addModel(database.db, clock, 'test', {
    name,
    ownedBy: 't',
    type: 'chat',
    contextTokens: 1024,
    maxOutputTokens: 512,
    price,
  })
  return { id, name }
}
const startEngine = async (...args: Parameters<typeof startScriptedEngine>): Promise<ScriptedEngine> => {
  const engine = await startScriptedEngine(...args)
  opened.push(() => engine.close())
  return engine
}
const open = async (options: { secrets?: Secrets; dir?: string } = {}) => {
  const changes = await openChanges({ db: database.db, url: database.url, clock, log })
  opened.push(() => changes.close())
  const engines = await openEngines({
    db: database.db,
    changes,
    secrets: options.secrets ?? secrets,
    clock,
    log,
    dataDir,
    local: { threads: 1, memoryMb: 1024, sequences: 1, gpu: 'off' },
    limits: { seatsPerEngine: 2, probes: { everyMs: 50, answerMs: 30_000, soonMs: 10, gapMs: 1 } },
  })
  opened.push(engines.close)
  return engines
}
const add = (input: Partial<EngineInput> & { url: string }) =>
  addEngine(
    { db: database.db, secrets, clock },
    { name: 'x', bearer: undefined, models: [{ modelId: model.id, modelName: model.name, remoteName: 'remote' }], ...input },
    'test',
  )

test('an engine that is added serves its model, by its own name for it, and no more when it is removed', async () => {
  const engine = await startEngine()
  const engines = await open()
  expect((await engines.takeSeat(model, never)).ok).toBe(false)
  await add({ url: `${engine.url}/v1/` })
  await until('it serves', () => engines.states().some(({ model: name, state }) => name === model.name && state === 'ready'))
  const outcome = await engines.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica).toMatchObject({
    name: 'x',
    origin: engine.url,
    basePath: '',
    remoteModel: 'remote',
    bearer: undefined,
  })
  await removeEngine(database.db, 'x', 'test')
  await until('it is gone', () => engines.states().length === 0)
  expect((await engines.takeSeat(model, never)).ok).toBe(false)
})

test('what an engine speaks beside chat stands on its seats', async () => {
  const engine = await startEngine()
  const engines = await open()
  await add({ url: engine.url, speaks: ['responses'] })
  await until('it serves', () => engines.states().some(({ state }) => state === 'ready'))
  const outcome = await engines.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica).toMatchObject({ speaks: ['responses'] })
})

test('engines that are there at the start are known before anybody asks, and asked before anybody is refused', async () => {
  const engine = await startEngine()
  await add({ url: engine.url })
  const engines = await open()
  expect((await engines.takeSeat(model, never)).ok).toBe(true)
})

test('two engines of one model are one pool: seats go to the less busy one', async () => {
  const [a, b] = [await startEngine(), await startEngine()]
  await add({ name: 'a', url: a.url })
  await add({ name: 'b', url: b.url })
  const engines = await open()
  await until('both are ready', () => engines.states().every(({ state }) => state === 'ready'))
  const seats = await Promise.all([1, 2, 3, 4].map(() => engines.takeSeat(model, never)))
  expect(seats.map((seat) => String(seat.ok && seat.value.replica.name)).toSorted()).toEqual(['a', 'a', 'b', 'b'])
})

test('an engine that dies is unhealthy with a reason, the other serves, and it comes back', async () => {
  const [a, b] = [await startEngine(), await startEngine()]
  await add({ name: 'a', url: a.url })
  await add({ name: 'b', url: b.url })
  const engines = await open()
  const stateOf = (name: string) => engines.states().find((each) => each.name === name)
  await until('both are ready', () => engines.states().every(({ state }) => state === 'ready'))
  await a.close()
  await until('a is unhealthy', () => stateOf('a')?.state === 'unhealthy')
  expect(stateOf('a')?.reason).toBe('nothing listens there (connection refused)')
  const outcome = await engines.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica.name).toBe('b')
  await startEngine({}, { port: a.port })
  await until('a is back', () => stateOf('a')?.state === 'ready')
})

test('an engine that is changed by removing and adding it is called at its new address', async () => {
  const [before, after] = [await startEngine(), await startEngine()]
  await add({ url: before.url })
  const engines = await open()
  await engines.takeSeat(model, never)
  await removeEngine(database.db, 'x', 'test')
  await add({ url: after.url })
  await until('seats are at the new address', async () => {
    const outcome = await engines.takeSeat(model, never)
    return outcome.ok && outcome.value.replica.origin === after.url
  })
  expect(engines.states()).toMatchObject([{ name: 'x', state: 'ready', busy: 1 }])
})

test('an engine with a path before /v1 is called below it', async () => {
  const engine = await startEngine()
  await add({ url: `${engine.url}/openai/v1` })
  const [listed] = await listEngines(database.db)
  expect(listed?.url).toBe(`${engine.url}/openai`)
  const engines = await open()
  const outcome = await engines.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica.basePath).toBe('/openai')
})

test('the key of an engine is sealed in the database, in no list and in no audit entry, and reaches the engine', async () => {
  const key = 'sk-very-secret-key'
  const engine = await startEngine({}, { bearer: key })
  await add({ url: engine.url, bearer: key })
  const listed = await listEngines(database.db)
  expect(listed).toMatchObject([{ name: 'x', hasKey: true }])
  const { rows } = await database.db.query<{ all: string }>(
    `select coalesce(string_agg(engine::text, ''), '') || (select string_agg(audit_entry::text, '') from audit_entry) as all from engine`,
  )
  const stored = await database.db.query<{ bearer: Buffer }>('select bearer from engine')
  for (const text of [JSON.stringify(listed), rows[0]?.all, stored.rows[0]?.bearer.toString('latin1')]) expect(text).not.toContain(key)
  expect(rows[0]?.all).not.toContain(Buffer.from(key).toString('hex'))
  const engines = await open()
  const outcome = await engines.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica.bearer).toBe(key)
  expect(JSON.stringify(engines.states())).not.toContain(key)
})

test('a key that another master key has sealed makes one engine unhealthy and keeps the others', async () => {
  const engine = await startEngine()
  await add({ name: 'sealed', url: engine.url, bearer: 'k' })
  await add({ name: 'open', url: engine.url })
  const others = await openSecrets({ dataDir, masterKey: 'ab'.repeat(32) })
  const engines = await open({ secrets: others })
  await until('the other serves', () => engines.states().some(({ name, state }) => name === 'open' && state === 'ready'))
  expect(engines.states().find(({ name }) => name === 'sealed')).toMatchObject({
    state: 'unhealthy',
    reason: expect.stringContaining('cannot be read'),
  })
})

test('adding and removing are written down in the audit', async () => {
  const id = await add({ url: 'http://10.0.0.7:8000' })
  await removeEngine(database.db, 'x', 'operator on this machine')
  const { rows } = await database.db.query(
    `select actor, action, before, after from audit_entry where resource_type = 'engine' and resource_id = $1 order by action`,
    [id],
  )
  const shown = { name: 'x', url: 'http://10.0.0.7:8000', hasKey: false, models: [{ model: model.name, remote: 'remote' }] }
  expect(rows).toEqual([
    { actor: 'test', action: 'created', before: null, after: shown },
    { actor: 'operator on this machine', action: 'deleted', before: shown, after: null },
  ])
})

test('removing an engine that is not there changes nothing', async () => {
  expect(await removeEngine(database.db, 'nobody', 'test')).toBe(false)
})

test.each([
  ['a name that is taken', { name: 'taken' }, /already an engine named taken/],
  ['a name that cannot be one', { name: 'a b' }, /cannot be the name/],
  ['a name like those of embedded engines', { name: 'embedded:x' }, /cannot be the name/],
  ['a key that does not fit into a header', { bearer: 'two\nlines' }, /must be printable/],
  ['no model', { models: [] }, /at least one model/],
  ['an address that is none', { url: 'ftp://host' }, /over http or https/],
])('%s is refused and leaves nothing behind', async (_, changes, says) => {
  await add({ name: 'taken', url: 'http://10.0.0.7:8000' })
  await expect(add({ url: 'http://10.0.0.8:8000', ...changes })).rejects.toThrow(says)
  expect((await listEngines(database.db)).map(({ name }) => name)).toEqual(['taken'])
})

test('one model under two names of one engine is refused', async () => {
  const served = { modelId: model.id, modelName: model.name }
  const models = ['a', 'b'].map((remoteName) => ({ ...served, remoteName }))
  await expect(add({ url: 'http://10.0.0.7:8000', models })).rejects.toThrow(/is given twice/)
})

test('closing refuses those who wait and asks no engine any more', async () => {
  const engine = await startEngine()
  await add({ url: engine.url })
  const engines = await open()
  const seats = [await engines.takeSeat(model, never), await engines.takeSeat(model, never)]
  expect(seats.every(({ ok }) => ok)).toBe(true)
  const waiting = engines.takeSeat(model, never)
  await engines.close()
  expect(await waiting).toMatchObject({ ok: false, refusal: { code: 'engine_unavailable', reason: 'the server is stopping' } })
  expect(engines.states()).toEqual([])
})
