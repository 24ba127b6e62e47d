import { addEngine } from '@parvis/server/engines/registry'
import { systemClock } from '@parvis/server/kit/clock'
import type { ModelId } from '@parvis/server/kit/ids'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { type Script, type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Some hundred requests, good and bad, from clients that stay and clients that leave, at engines in all moods: afterwards nothing is
// held any more, and the books have what was served and nothing else.

let database: TestDatabase
let house: TestHouse
let engines: ScriptedEngine[]

beforeAll(async () => {
  database = await freshDatabase()
  engines = await Promise.all([1, 2].map(() => startScriptedEngine({}, { models: ['scripted'] })))
  const [first, second] = engines
  if (first === undefined || second === undefined) throw new Error('no engines')
  house = await startHouse({ database, settings: { PARVIS_STREAM_PING_SECONDS: '1' } })
  await serveScripted(house, first, { name: 'scripted' })
  const { rows } = await database.db.query<{ id: ModelId }>("select id from model where name = 'scripted'")
  const models = rows.map(({ id }) => ({ modelId: id, modelName: 'scripted', remoteName: 'scripted' }))
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
  await addEngine({ db: house.db, secrets, clock: systemClock }, { name: 'another', url: second.url, bearer: undefined, models }, 'test')
  await until('both are ready', () => house.engines.states().filter(({ state }) => state === 'ready').length === 2)
  const unlimited = { requests_per_minute: 'unlimited', tokens_per_minute: 'unlimited' }
  await house.call(`/parvis/v1/limits/organizations/${house.owner.organizationId}`, { method: 'PUT', body: unlimited })
})

afterAll(async () => {
  await house?.stop()
  for (const engine of engines ?? []) await engine.close()
  await database?.drop()
})

const MOODS: Script[] = [
  {},
  {},
  {},
  { tokens: ['a', 'b'], repeat: 100 },
  { tokenDelayMs: 3 },
  { headDelayMs: 40 },
  { usage: 'running' },
  { usage: 'last' },
  { usage: false },
  { crlf: true, comments: true },
  { done: false },
  { status: 503 },
  { status: 429 },
  { status: 500 },
  { status: 400 },
  { cutAfter: 0 },
  { cutAfter: 2 },
  { errorAfter: 0 },
  { errorAfter: 2 },
  { raw: ['<html>'], contentType: 'text/html' },
  { raw: ['data: {"cho'], contentType: 'text/event-stream' },
  { raw: [], contentType: 'text/event-stream' },
  { body: { error: { message: 'x' } } },
  { hugeEventBytes: 2 << 20 },
]

const asked = fc.record({
  mood: fc.constantFrom(...MOODS),
  stream: fc.boolean(),
  spoil: fc.constantFrom('no', 'no', 'no', 'no', 'no', 'json', 'model', 'key', 'path', 'limit'),
  idempotency: fc.option(fc.nat(15), { freq: 2 }),
  leaveAfterMs: fc.option(fc.nat(60), { freq: 4 }),
})
type Asked = typeof asked extends fc.Arbitrary<infer T> ? T : never
type Seen = { id: string | null; how: 'whole' | 'failed' | 'refused' | 'left'; replayed: boolean }

const ask = async ({ mood, stream, spoil, idempotency, leaveAfterMs }: Asked, number: number): Promise<Seen> => {
  engines[number % 2]?.play(mood)
  const leaving = new AbortController()
  const body = {
    model: spoil === 'model' ? 'nobody' : 'scripted',
    messages: [{ role: 'user', content: 'Hi' }],
    stream,
    max_tokens: spoil === 'limit' ? 9_999 : 64,
  }
  const timer = leaveAfterMs === null ? undefined : setTimeout(() => leaving.abort(), leaveAfterMs)
  let id: string | null = null
  try {
    const answer = await fetch(`${house.url}${spoil === 'path' ? '/v1/nothing' : '/v1/chat/completions'}`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        authorization: `Bearer ${spoil === 'key' ? '0' : house.secretKey}`,
        ...(idempotency === null ? {} : { 'idempotency-key': `${idempotency}` }),
      },
      body: spoil === 'json' ? '{"model"' : JSON.stringify(body),
      signal: leaving.signal,
    })
    id = answer.headers.get('x-request-id')
    const replayed = answer.headers.get('idempotent-replayed') !== null
    const text = await answer.text()
    if (answer.status !== 200) return { id, how: 'refused', replayed }
    const whole = stream ? text.endsWith('data: [DONE]\n\n') && !text.includes('"error"') : text.includes('"usage"') || mood.usage === false
    return { id, how: whole ? 'whole' : 'failed', replayed }
  } catch {
    if (!leaving.signal.aborted) throw new Error(`request ${number} got no answer`)
    return { id, how: 'left', replayed: false }
  } finally {
    clearTimeout(timer)
  }
}

const CLIENTS = 12
const REQUESTS = 400

test('after some hundred requests in all moods nothing is held, and the ledger is what was served', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(asked, { minLength: REQUESTS, maxLength: REQUESTS }), async (requests) => {
      const seen: Seen[] = []
      const todo = requests.entries()
      await Promise.all(
        Array.from({ length: CLIENTS }, async () => {
          for (const [number, request] of todo) seen.push(await ask(request, number))
        }),
      )
      expect(seen).toHaveLength(REQUESTS)
      expect(seen.filter(({ how }) => how === 'whole').length).toBeGreaterThan(REQUESTS / 20)

      await until('every seat is free', () => house.engines.states().every(({ busy }) => busy === 0))
      const own = seen.filter(({ replayed, id }) => !replayed && id !== null)
      const served = new Set(own.filter(({ how }) => how === 'whole').map(({ id }) => id))
      const refused = new Set(own.filter(({ how }) => how === 'refused').map(({ id }) => id))
      const left = seen.filter(({ how }) => how === 'left').length
      const ledger = async () =>
        (
          await database.db.query<{ id: string; ended: string; status: number; charged: boolean }>(
            'select id, ended, status, charged from usage_event',
          )
        ).rows
      await until('all that was served is in the ledger', async () => {
        const ids = new Set((await ledger()).map(({ id }) => id))
        return [...served].every((id) => ids.has(id ?? ''))
      })
      const rows = await ledger()
      const complete = rows.filter(({ ended }) => ended === 'complete')
      expect(new Set(rows.map(({ id }) => id)).size).toBe(rows.length)
      // Of what was refused only that is there which an engine had and did not do, and nobody pays for it.
      const undone = rows.filter(({ id, ended, charged }) => refused.has(id) && ended === 'engine_failed' && !charged)
      expect(rows.filter(({ id }) => refused.has(id))).toEqual(undone)
      // Beside those, only what was on its way to somebody who left, or waited for somebody who might come back.
      expect(complete.filter(({ id }) => !served.has(id)).length).toBeLessThanOrEqual(left)
      expect(house.log()).not.toContain('A request failed')

      for (const engine of engines) engine.play({ holdAfter: 0, holdHead: true })
      const held = () => engines.reduce((sum, engine) => sum + engine.count('held'), 0)
      const before = held()
      await until('both engines are trusted again', () => house.engines.states().some(({ state }) => state === 'ready'))
      const together = Promise.all(
        Array.from({ length: 100 }, () =>
          house.call('/v1/chat/completions', { body: { model: 'scripted', messages: [{ role: 'user', content: 'Hi' }] } }),
        ),
      )
      // As many as may run at once: nobody who has gone still has a place.
      await until('a hundred run', () => held() - before === 100)
      for (const engine of engines) {
        engine.play({})
        engine.release()
      }
      expect((await together).map(({ status }) => status)).toEqual(Array.from({ length: 100 }, () => 200))
    }),
    { numRuns: 1, endOnFailure: true },
  )
})
