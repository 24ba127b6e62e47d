import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { emptyDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { runParvis, type ServerProcess, startServerProcess } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'

// The server as a process: signals, exit codes, races, kill -9. Each test begins on an empty database.

let engine: ScriptedEngine
let database: TestDatabase
const servers: ServerProcess[] = []
const directories: string[] = []

beforeAll(async () => {
  engine = await startScriptedEngine({}, { models: ['scripted'] })
})
afterAll(() => engine.close())
afterEach(async () => {
  engine.play({})
  engine.release()
  await Promise.all(servers.splice(0).map((server) => server.stop('SIGKILL')))
  await Promise.all(directories.splice(0).map((directory) => rm(directory, { recursive: true, force: true })))
  await database?.drop()
})

const settings = async (more: Record<string, string> = {}): Promise<Record<string, string>> => {
  const dataDir = await mkdtemp(join(tmpdir(), 'parvis-process-'))
  directories.push(dataDir)
  return {
    PARVIS_DATA_DIR: dataDir,
    PARVIS_PORT: '0',
    PARVIS_DATABASE_URL: database.url,
    PARVIS_DEMO_MODELS: 'false',
    PARVIS_SHUTDOWN_SECONDS: '10',
    ...more,
  }
}
const serve = async (env: Record<string, string>): Promise<ServerProcess> => {
  const server = await startServerProcess(env)
  servers.push(server)
  return server
}
const addEngine = async (env: Record<string, string>, server: ServerProcess, key: string): Promise<OpenAI> => {
  const added = await runParvis(['engines', 'add', '--name', 'scripted', '--url', engine.url], env)
  expect(added).toMatchObject({ code: 0 })
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: key, maxRetries: 0 })
  await until('the model answers', () =>
    ask(client).then(
      () => true,
      () => false,
    ),
  )
  return client
}
const ask = (client: OpenAI) => client.chat.completions.create({ model: 'scripted', messages: [{ role: 'user', content: 'x' }] })
const streamOf = (client: OpenAI) =>
  client.chat.completions.create({ model: 'scripted', stream: true, messages: [{ role: 'user', content: 'x' }] })
const untilBooked = (id: string): Promise<void> =>
  until('it is in the books', async () => (await database.db.query('select 1 from usage_event where id = $1', [id])).rows.length === 1)
const untilClosed = (server: ServerProcess): Promise<void> =>
  until('nothing new is accepted', () =>
    fetch(`${server.url}/health`).then(
      () => false,
      () => true,
    ),
  )

/** A client that reads the beginning of an answer and then nothing, until it is told to. */
const pausing = async (server: ServerProcess, key: string, body: object, headers: Record<string, string> = {}) => {
  const { hostname, port } = new URL(server.url)
  const socket: Socket = connect({ host: hostname, port: Number(port) })
  const pieces: Buffer[] = []
  socket.on('error', () => undefined) // cut: what has come says so
  const closed = new Promise<void>((resolve) => void socket.once('close', () => resolve()))
  const begun = new Promise<void>((resolve) => {
    socket.on('data', (piece: Buffer) => {
      if (pieces.push(piece) > 1) return
      socket.pause()
      resolve()
    })
  })
  const text = JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'x' }], ...body })
  const all = {
    host: hostname,
    authorization: `Bearer ${key}`,
    'content-type': 'application/json',
    'content-length': text.length,
    ...headers,
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`POST /v1/chat/completions HTTP/1.1\r\n${lines.join('')}\r\n${text}`)
  await begun
  return {
    id: /x-request-id: (\S+)/i.exec(String(pieces[0]))?.[1] ?? '',
    /** All of it. */
    read: async (): Promise<string> => {
      socket.resume()
      await closed
      return Buffer.concat(pieces).toString('latin1')
    },
    leave: () => void socket.destroy(),
  }
}

test('two servers that start at once on an empty database agree: one owner, one key, and both serve', async () => {
  database = await emptyDatabase()
  const shared = { PARVIS_MASTER_KEY: randomBytes(32).toString('hex'), PARVIS_BOOTSTRAP_SECRET_KEY: randomUUID() }
  const environments = [await settings(shared), await settings(shared)]
  const both = await Promise.all(environments.map(serve))
  for (const server of both) {
    const answer = await fetch(`${server.url}/v1/models`, { headers: { authorization: `Bearer ${shared.PARVIS_BOOTSTRAP_SECRET_KEY}` } })
    expect(answer.status).toBe(200)
    expect(server.out() + server.err()).not.toContain(shared.PARVIS_BOOTSTRAP_SECRET_KEY)
  }
  const { rows } = await database.db.query(
    'select (select count(*) from organization) as organizations, (select count(*) from project) as projects, (select count(*) from api_key) as keys',
  )
  expect(rows).toEqual([{ organizations: 1n, projects: 1n, keys: 1n }])
})

test('the first start shows a key that works; the next one shows none, and the key still works', async () => {
  database = await emptyDatabase()
  const env = await settings()
  const first = await serve(env)
  const secret = /secret key {2}([0-9a-f-]{36})/.exec(first.out())?.[1] ?? ''
  const models = (server: ServerProcess) => fetch(`${server.url}/v1/models`, { headers: { authorization: `Bearer ${secret}` } })
  expect((await models(first)).status).toBe(200)
  expect(first.err()).not.toContain(secret)
  expect(await first.stop('SIGTERM')).toBe(0)
  const second = await serve(env)
  expect(second.out()).not.toMatch(/secret key {2}/)
  expect(second.out()).not.toContain(secret)
  expect((await models(second)).status).toBe(200)
})

test('on SIGTERM a running stream ends in full, nothing new is accepted, and the exit code is 0', async () => {
  database = await emptyDatabase()
  const key = randomUUID()
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key })
  const server = await serve(env)
  const client = await addEngine(env, server, key)
  engine.play({ tokens: ['a', 'b', 'c'], holdAfter: 1 })
  const held = engine.count('held')
  const stream = await streamOf(client)
  await engine.until('held', held + 1)
  const stopped = server.stop('SIGTERM')
  await untilClosed(server)
  engine.play({})
  engine.release()
  let text = ''
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
  expect(text).toBe('abc')
  expect(await stopped).toBe(0)
  expect((await database.db.query('select ended from usage_event order by accepted_at desc limit 1')).rows).toEqual([{ ended: 'complete' }])
})

test('a stream that does not end within the limit is cut, its usage is written, and the exit code is still 0', async () => {
  database = await emptyDatabase()
  const key = randomUUID()
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key, PARVIS_SHUTDOWN_SECONDS: '1' })
  const server = await serve(env)
  const client = await addEngine(env, server, key)
  engine.play({ tokens: ['a', ' b', ' c'], holdAfter: 2 })
  const held = engine.count('held')
  const stream = await streamOf(client)
  const read = (async () => {
    for await (const _chunk of stream);
  })()
  read.catch(() => undefined)
  await engine.until('held', held + 1)
  expect(await server.stop('SIGTERM')).toBe(0)
  await expect(read).rejects.toThrow(/terminated|closed|aborted|reset/i)
  expect((await database.db.query('select output_tokens from usage_event order by accepted_at desc limit 1')).rows).toEqual([
    { output_tokens: 2n },
  ])
})

test('on SIGTERM an answer that its client has still to read arrives to its last byte, whole or streamed', async () => {
  database = await emptyDatabase()
  const key = randomUUID()
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key, PARVIS_SHUTDOWN_SECONDS: '30' })
  const server = await serve(env)
  await addEngine(env, server, key)

  // More than the kernel takes of it for a client that does not read.
  engine.play({ tokens: ['x'.repeat(1024 * 1024)], repeat: 20 })
  const whole = await pausing(server, key, {})
  // Of two clients of one answer the slow one has the rest of it waiting in its socket when the quick one has read it.
  engine.play({ tokens: ['x'.repeat(256 * 1024)], repeat: 48, holdAfter: 1 })
  const held = engine.count('held')
  const headers = { 'idempotency-key': 'two clients' }
  const streamed = await pausing(server, key, { stream: true }, headers)
  await engine.until('held', held + 1)
  const { hostname, port } = new URL(server.url)
  const quick = fetch(`http://${hostname}:${port}/v1/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'scripted', messages: [{ role: 'user', content: 'x' }], stream: true }),
  })
  const response = await quick
  expect(response.headers.get('idempotent-replayed')).toBe('true')
  engine.release()
  expect((await response.text()).endsWith('data: [DONE]\n\n')).toBe(true)
  for (const { id } of [whole, streamed]) await untilBooked(id)

  const stopped = server.stop('SIGTERM')
  await untilClosed(server)
  const [head = '', body = ''] = (await whole.read()).split('\r\n\r\n')
  expect(head).toMatch(/^HTTP\/1\.1 200 /)
  expect(body.length).toBe(Number(/content-length: (\d+)/i.exec(head)?.[1]))
  expect(body.length).toBeGreaterThan(20 * 1024 * 1024)
  expect((await streamed.read()).slice(-100)).toMatch(/data: \[DONE\]\n\n\r\n0\r\n\r\n$/)
  expect(await stopped).toBe(0)
})

test('on SIGTERM a client that never reads the rest of its answer is cut at the limit, and not before', async () => {
  database = await emptyDatabase()
  const key = randomUUID()
  // Longer than the 10 s that Fastify gives a hook.
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key, PARVIS_SHUTDOWN_SECONDS: '11' })
  const server = await serve(env)
  await addEngine(env, server, key)
  engine.play({ tokens: ['x'.repeat(1024 * 1024)], repeat: 20 })
  const never = await pausing(server, key, {})
  await untilBooked(never.id)
  expect(await server.stop('SIGTERM')).toBe(0)
  never.leave()
  expect(server.err()).toContain('answers still running at the limit are cut')
})

test.each([
  ['ends in time', true],
  ['is cut', false],
])('on SIGTERM what an engine has not counted is counted by its tokenizer: of an answer that %s', async (_how, ends) => {
  database = await emptyDatabase()
  const key = randomUUID()
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key, PARVIS_SHUTDOWN_SECONDS: ends ? '30' : '1' })
  const server = await serve(env)
  const client = await addEngine(env, server, key)
  engine.play({ tokens: ['one two three', ' four five', ' six'], usage: false, holdAfter: 2 })
  const held = engine.count('held')
  const stream = await streamOf(client)
  const read = (async () => {
    for await (const _chunk of stream);
  })()
  read.catch(() => undefined)
  await engine.until('held', held + 1)
  const stopped = server.stop('SIGTERM')
  await untilClosed(server)
  engine.play({})
  if (ends) engine.release()
  expect(await stopped).toBe(0)
  if (ends) await read
  else await expect(read).rejects.toThrow(/terminated|closed|aborted|reset/i)
  const { rows } = await database.db.query(
    'select ended, counted, input_tokens, output_tokens from usage_event order by accepted_at desc limit 1',
  )
  const asCounted = { counted: 'tokenizer', input_tokens: 7n }
  expect(rows).toEqual([{ ended: ends ? 'complete' : 'client_left', ...asCounted, output_tokens: ends ? 6n : 5n }])
})

test('after kill -9 every answer that a client saw to its end is in the ledger, once', async () => {
  database = await emptyDatabase()
  const key = randomUUID()
  const env = await settings({ PARVIS_BOOTSTRAP_SECRET_KEY: key, PARVIS_MASTER_KEY: randomBytes(32).toString('hex') })
  const seen = new Set<string>()
  let server = await serve(env)
  await addEngine(env, server, key)
  for (let round = 0; round < 3; round += 1) {
    const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: key, maxRetries: 0 })
    let killed = false
    const asking = Array.from({ length: 6 }, async (_, index) => {
      while (!killed) {
        try {
          const { data, response } = await (index % 2 === 0 ? ask(client).withResponse() : streamOf(client).withResponse())
          if ('choices' in data) seen.add(response.headers.get('x-request-id') ?? '')
          else {
            for await (const _chunk of data);
            seen.add(response.headers.get('x-request-id') ?? '')
          }
        } catch {
          // Cut off by the kill, or before the engine was found again: not seen to its end, so nothing is promised.
        }
      }
    })
    const before = seen.size
    await until('answers have been seen', () => seen.size > before + 40, 30_000)
    await server.stop('SIGKILL')
    killed = true
    await Promise.all(asking)
    server = await serve(env)
  }
  const missing = async (): Promise<string[]> => {
    const { rows } = await database.db.query<{ id: string }>('select id from usage_event')
    const known = new Set(rows.map((row) => row.id))
    expect(known.size).toBe(rows.length)
    return [...seen].filter((id) => !known.has(id))
  }
  await expect.poll(missing).toEqual([])
  expect(seen.size).toBeGreaterThan(120)
}, 180_000)

test('a second server on the same data directory is told who holds it', async () => {
  database = await emptyDatabase()
  const env = await settings()
  const first = await serve(env)
  const second = await runParvis(['serve'], env)
  expect(second.code).toBe(1)
  expect(second.err).toContain(String(first.pid))
})

test.each([
  ['an unknown setting', { PARVIS_PROT: '1' }, /PARVIS_PROT.*PARVIS_PORT/],
  ['a wrong value', { PARVIS_PORT: 'eighty' }, /PARVIS_PORT/],
  ['a database that nobody answers at', { PARVIS_DATABASE_URL: 'postgres://nobody:x@127.0.0.1:1/none' }, /database/i],
  ['an address that others can reach, without TLS', { PARVIS_HOST: '0.0.0.0' }, /PARVIS_BEHIND_TLS/],
])('%s stops the start and is named', async (_what, wrong, named) => {
  database = await emptyDatabase()
  const ended = await runParvis(['serve'], { ...(await settings()), ...wrong })
  expect(ended.code).toBe(1)
  expect(ended.err).toMatch(named)
})

test('every command has its help, and an unknown one is named', async () => {
  database = await emptyDatabase()
  const env = await settings()
  for (const words of [
    [],
    ['serve'],
    ['doctor'],
    ['keys'],
    ['keys', 'create'],
    ['keys', 'list'],
    ['keys', 'revoke'],
    ['models', 'list'],
    ['models', 'pull'],
    ['models', 'remove'],
    ['engines', 'add'],
    ['engines', 'list'],
    ['engines', 'remove'],
  ]) {
    const help = await runParvis([...words, '--help'], env)
    expect({ words, code: help.code, usage: help.out.includes('Usage: parvis') }).toEqual({ words, code: 0, usage: true })
  }
  const unknown = await runParvis(['serv'], env)
  expect(unknown.code).toBe(1)
  expect(unknown.err).toMatch(/serv/)
})
