import { readdirSync, readFileSync } from 'node:fs'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { openProxy } from '@parvis/testkit/proxy'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createKey, revokeKey } from '../src/iam/keys.ts'
import type { OrganizationId, PrincipalId } from '../src/kit/ids.ts'
import { openSecrets } from '../src/kit/secrets.ts'

// What goes away comes back, and meanwhile everybody is told the truth.

let database: TestDatabase
let wire: Awaited<ReturnType<typeof openProxy>>
let engine: ScriptedEngine
let house: TestHouse

beforeAll(async () => {
  database = await freshDatabase()
  const url = new URL(database.url)
  wire = await openProxy({ host: url.hostname, port: Number(url.port) })
  url.hostname = '127.0.0.1'
  url.port = String(wire.port)
  engine = await startScriptedEngine({}, { models: ['scripted'] })
  house = await startHouse({ database: { url: url.href }, settings: { PARVIS_DEMO_MODELS: 'true' } })
  await serveScripted(house, engine, { name: 'scripted' })
  await house.ready('tiny-chat')
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await wire?.close()
  await database?.drop()
})

const chat = { model: 'scripted', messages: [{ role: 'user', content: 'Hello' }] }
const status = async (path: string, request: Parameters<TestHouse['call']>[1]): Promise<number> => (await house.call(path, request)).status

const events = async (): Promise<number> =>
  Number((await database.db.query<{ n: bigint }>('select count(*) as n from usage_event')).rows[0]?.n ?? 0)

test('a new key works and a revoked key is gone', async () => {
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
  const { rows } = await database.db.query<{ id: PrincipalId; organization_id: OrganizationId }>(
    'select id, organization_id from principal',
  )
  const [owner] = rows
  if (owner === undefined) throw new Error('no owner')
  const key = await createKey(database.db, secrets, {
    organizationId: owner.organization_id,
    principalId: owner.id,
    description: 'test',
    expiresAt: null,
    actor: 'test',
  })
  await until('the new key works', async () => (await status('/v1/models', { key: key.secretKey })) === 200)
  await revokeKey(database.db, { organizationId: owner.organization_id, accessKey: key.accessKey, actor: 'test' })
  await until('the revoked key is refused', async () => (await status('/v1/models', { key: key.secretKey })) === 403)
})

test('with the database away known keys and models are served, the server says that it is not ready, and no usage is lost', async () => {
  await expect.poll(events).toBe(0)
  await wire.cut()
  await until('it says that it is not ready', async () => (await status('/ready', { key: null })) === 503)
  expect(await status('/health', { key: null })).toBe(200)
  for (let served = 0; served < 5; served += 1) expect(await status('/v1/chat/completions', { body: chat })).toBe(200)
  expect(await status('/v1/chat/completions', { body: chat, key: '11111111-2222-4333-8444-555555555555' })).toBe(403)
  // Long enough for every loop that looks at the database to have met the outage at least once.
  const awaySince = performance.now()
  await until('ten seconds have passed', () => performance.now() - awaySince > 10_000)
  expect(await status('/v1/chat/completions', { body: chat })).toBe(200)
  expect(await events()).toBe(0)
  await wire.mend()
  await until('it is ready again', async () => (await status('/ready', { key: null })) === 200)
  await expect.poll(events).toBe(6)
})

test('after an outage a change still arrives', async () => {
  await database.db.query(`update model set status = 'deprecated' where name = 'scripted'; select note_change('catalog')`)
  await until('the change has arrived', () =>
    house.catalog.list().some((model) => model.name === 'scripted' && model.status === 'deprecated'),
  )
})

/** The engine child that runs this model. */
const engineProcess = (model: string): number | undefined =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .find((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
        const parent = Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
        return parent === process.pid && words.includes('--model') && words[words.indexOf('--name') + 1] === model
      } catch {
        return false
      }
    })

test('an engine that is killed in the middle of a stream ends that stream with an error, comes back by itself, and the log says why', async () => {
  // So much that it is still being written when we have read its beginning, however late that is.
  const long = { max_completion_tokens: 512, logprobs: true, top_logprobs: 20, ignore_eos: true }
  const { data: stream, request_id: id } = await house
    .openai()
    .chat.completions.create({
      model: 'tiny-chat',
      temperature: 0,
      stream: true,
      messages: [{ role: 'user', content: 'Tell me a short story about a dog.' }],
      ...long,
    })
    .withResponse()
  const pid = engineProcess('tiny-chat')
  if (pid === undefined) throw new Error('no engine process')
  let chunks = 0
  const read = async (): Promise<void> => {
    for await (const _chunk of stream) {
      chunks += 1
      if (chunks === 1) process.kill(pid, 'SIGKILL')
    }
  }
  await expect(read()).rejects.toThrow(/failed/)
  expect(chunks).toBeGreaterThan(0)

  const meanwhile = await house.call('/v1/chat/completions', { body: { ...chat, model: 'tiny-chat', max_completion_tokens: 5 } })
  expect([200, 503]).toContain(meanwhile.status)
  if (meanwhile.status === 503) expect(Number(meanwhile.headers.get('retry-after'))).toBeGreaterThan(0)
  await until('another process runs the model', () => ![undefined, pid].includes(engineProcess('tiny-chat')))
  await house.ready('tiny-chat')
  const after = await house.openai().chat.completions.create({
    model: 'tiny-chat',
    temperature: 0,
    messages: [{ role: 'user', content: 'What is the capital of France?' }],
  })
  expect(after.choices[0]?.message.content).toMatch(/Paris/)
  expect(house.log()).toMatch(/SIGKILL/)
  await expect
    .poll(async () => (await database.db.query('select ended from usage_event where id = $1', [id])).rows, { timeout: 10_000 })
    .toEqual([{ ended: 'engine_failed' }])
})

test('a client that leaves in mid-stream frees the engine, and what was generated until then is in the ledger', async () => {
  engine.play({ tokens: ['a', ' b', ' c'], holdAfter: 2 })
  const leave = new AbortController()
  const aborted = engine.count('aborted')
  const stream = await house
    .openai()
    .chat.completions.create({ model: 'scripted', stream: true, messages: [{ role: 'user', content: 'x' }] }, { signal: leave.signal })
  let text = ''
  const read = async (): Promise<void> => {
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
      if (text === 'a b') leave.abort()
    }
  }
  await read().catch(() => undefined)
  await engine.until('aborted', aborted + 1)
  engine.play({})
  await expect
    .poll(
      async () =>
        (
          await database.db.query(
            `select ended, counted, charged, input_tokens > 0 as paid_input, output_tokens from usage_event where ended = 'client_left'`,
          )
        ).rows,
      {
        timeout: 10_000,
      },
    )
    .toEqual([{ ended: 'client_left', counted: 'tokenizer', charged: true, paid_input: true, output_tokens: 2n }])
})

test('of a client that leaves our own engine has counted what it pays for, and nobody is shown what only we asked for', async () => {
  await house.ready('tiny-chat')
  const leave = new AbortController()
  const messages = [{ role: 'user', content: 'Tell me a long story about the sea.' }]
  const ask = { method: 'POST', headers: { authorization: `Bearer ${house.secretKey}`, 'content-type': 'application/json' } }
  const whole = (await house.call('/v1/chat/completions', { body: { model: 'tiny-chat', messages, max_tokens: 1 } })).json() as {
    usage: { prompt_tokens: number }
  }
  const answer = await fetch(`${house.url}/v1/chat/completions`, {
    ...ask,
    body: JSON.stringify({ model: 'tiny-chat', messages, stream: true, max_tokens: 500, ignore_eos: true }),
    signal: leave.signal,
  })
  let text = ''
  const read = async (): Promise<void> => {
    for await (const bytes of answer.body ?? []) {
      text += Buffer.from(bytes as Uint8Array).toString()
      if (text.split('\n\n').length > 5) leave.abort()
    }
  }
  await read().catch(() => undefined)
  expect(text).not.toContain('"usage":{')
  const id = answer.headers.get('x-request-id')
  const row = async () =>
    (
      await database.db.query<{ ended: string; counted: string; charged: boolean; input: string; output: string }>(
        'select ended, counted, charged, (input_tokens)::text as input, output_tokens::text as output from usage_event where id = $1',
        [id],
      )
    ).rows
  await expect
    .poll(row)
    .toMatchObject([{ ended: 'client_left', counted: 'engine', charged: true, input: String(whole.usage.prompt_tokens) }])
  expect(Number((await row())[0]?.output)).toBeGreaterThan(0)
})
