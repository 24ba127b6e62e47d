import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, createServer as createSocketServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { emptyDatabase, freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { type Environment, readConfig } from '../config.ts'
import { bootstrap } from '../iam/bootstrap.ts'
import { systemClock } from '../kit/clock.ts'
import { holdDataDir } from '../kit/data-dir.ts'
import { openSecrets } from '../kit/secrets.ts'
import { insertEvents } from '../usage/ship.ts'
import { checkNode, examine, type Finding, judgeSync } from './doctor.ts'

let database: TestDatabase
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-doctor-'))
})
afterEach(() => rm(dataDir, { recursive: true, force: true }))

const freePort = async (): Promise<number> => {
  const probe = createSocketServer().listen(0, '127.0.0.1')
  await new Promise((up) => probe.once('listening', up))
  const { port } = probe.address() as AddressInfo
  await new Promise((down) => probe.close(down))
  return port
}

const look = async (env: Environment = {}): Promise<Record<string, Finding>> => {
  const settings = {
    PARVIS_DATABASE_URL: database.url,
    PARVIS_DATA_DIR: dataDir,
    PARVIS_PORT: String(await freePort()),
    PARVIS_ENGINE_GPU: 'off',
    ...env,
  }
  const findings = await examine(() => readConfig(settings, dataDir))
  return Object.fromEntries(findings.map((finding) => [finding.what, finding]))
}

const speakHttp = async (status: number): Promise<Server> => {
  const server = createServer((_, response) => response.writeHead(status).end()).listen(0, '127.0.0.1')
  await new Promise((up) => server.once('listening', up))
  return server
}

test('a sound place gets nothing but ok, and nothing is left behind', async () => {
  const found = await look()
  expect(Object.values(found).filter(({ state }) => state === 'fail')).toEqual([])
  for (const what of [
    'Node.js',
    'settings',
    'data directory',
    'disk space',
    'disk sync',
    'database',
    'migrations',
    'clock',
    'master key',
    'counts',
    'port',
    'public address',
    'engine',
    'memory',
  ]) {
    expect(found).toHaveProperty([what, 'found'])
  }
  expect(found['engine']?.found).toContain('llama.cpp loads, on the CPU')
  expect(found['migrations']?.found).toBe('none pending')
  expect((await readdir(dataDir)).filter((name) => name.startsWith('doctor'))).toEqual([])
})

test('answers that nobody has counted are told, since nobody pays for them', async () => {
  expect((await look())['counts']).toMatchObject({ state: 'ok' })
  const uncounted = [usageEventOf({ counted: 'none', charged: false }), usageEventOf()].map((event) => JSON.stringify(event))
  expect(await insertEvents(database.db, uncounted, (_, error) => Promise.reject(error as Error))).toBe(2)
  expect((await look())['counts']).toMatchObject({ state: 'warn', found: expect.stringMatching(/^1 answer of this month/) })
})

test('a wrong setting is named, and the rest waits', async () => {
  expect(await look({ PARVIS_PROT: '1' })).toMatchObject({
    settings: { state: 'fail', found: 'There is no setting PARVIS_PROT. Did you mean PARVIS_PORT?' },
  })
})

test('a data directory that cannot be used is named', async () => {
  await writeFile(join(dataDir, 'file'), '')
  expect(await look({ PARVIS_DATA_DIR: join(dataDir, 'file') })).toMatchObject({ 'data directory': { state: 'fail' } })
})

test('a directory in use says by whom', async () => {
  const hold = await holdDataDir(dataDir, 'parvis serve')
  expect((await look())['data directory']?.found).toContain(`used by parvis serve, process ${process.pid}, since `)
  await hold.release()
})

test('a database that cannot be reached is said to be so, without its password', async () => {
  const { database: finding } = await look({ PARVIS_DATABASE_URL: 'postgres://parvis:sesame@127.0.0.1:1/parvis' })
  expect(finding).toMatchObject({ state: 'fail', found: expect.stringContaining('ECONNREFUSED') as string })
  expect(JSON.stringify(finding)).not.toContain('sesame')
})

test('pending migrations and another master key are told apart from a database that is away', async () => {
  const empty = await emptyDatabase()
  try {
    expect(await look({ PARVIS_DATABASE_URL: empty.url })).toMatchObject({ database: { state: 'ok' }, migrations: { state: 'warn' } })
  } finally {
    await empty.drop()
  }
  const other = await freshDatabase()
  try {
    await bootstrap(other.db, await openSecrets({ dataDir, masterKey: 'ab'.repeat(32) }), systemClock)
    expect(await look({ PARVIS_DATABASE_URL: other.url })).toMatchObject({ database: { state: 'ok' }, 'master key': { state: 'fail' } })
  } finally {
    await other.drop()
  }
})

test('a port that is taken says by what, and by Parvis is well', async () => {
  const server = await speakHttp(200)
  const mute = createSocketServer().listen(0, '127.0.0.1')
  await new Promise((up) => mute.once('listening', up))
  const portOf = (address: unknown) => ({ PARVIS_PORT: String((address as AddressInfo).port) })
  try {
    expect((await look(portOf(server.address())))['port']).toMatchObject({
      state: 'fail',
      found: expect.stringContaining('speaks HTTP (200)') as string,
    })
    expect((await look(portOf(mute.address())))['port']).toMatchObject({ state: 'fail', todo: 'Stop it, or choose another PARVIS_PORT.' })
    const hold = await holdDataDir(dataDir, 'parvis serve')
    expect((await look(portOf(server.address())))['port']).toMatchObject({
      state: 'ok',
      found: expect.stringContaining('Parvis answers') as string,
    })
    await hold.release()
  } finally {
    server.close()
    mute.close()
  }
})

test('behind a proxy links would lead to this machine, until it is said where people are', async () => {
  const proxied = { PARVIS_BEHIND_TLS: 'true', PARVIS_HOST: '0.0.0.0' }
  expect((await look(proxied))['public address']).toMatchObject({
    state: 'warn',
    todo: expect.stringContaining('PARVIS_PUBLIC_URL') as string,
  })
  const url = 'https://ai.example.com'
  expect((await look({ ...proxied, PARVIS_PUBLIC_URL: url }))['public address']).toMatchObject({ state: 'ok', found: url })
})

test('an engine that may take all memory is warned of', async () => {
  expect(await look({ PARVIS_ENGINE_MEMORY_MB: String(8 * 2 ** 20) })).toMatchObject({ memory: { state: 'warn' } })
})

test('Node.js counts from 20.19 on, and slow disks are told by how slow they are', () => {
  expect([checkNode('20.19.0'), checkNode('24.0.0'), checkNode('20.18.3'), checkNode('18.20.0')].map(({ state }) => state)).toEqual([
    'ok',
    'ok',
    'fail',
    'fail',
  ])
  expect([0.2, 4.9, 6, 31].map((ms) => judgeSync(ms).state)).toEqual(['ok', 'ok', 'warn', 'warn'])
  expect(judgeSync(31).todo).toContain('Very slow')
})
