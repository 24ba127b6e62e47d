import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

let database: TestDatabase
let house: TestHouse
beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
})
afterAll(async () => {
  await house.stop()
  await database.drop()
})

const ASK = { model: 'metered', messages: [{ role: 'user', content: 'hi' }] }

test('what a client has used can be read seconds later, by its key and by whoever was given a link', async () => {
  await using engine = await startScriptedEngine({ usage: { prompt: 11, completion: 3, cached: 4 } })
  await serveScripted(house, engine, { name: 'metered' })
  for (const stream of [true, false]) {
    const answer = await house.call('/v1/chat/completions', { body: { ...ASK, stream } })
    expect(answer.status).toBe(200)
  }
  engine.play({ finishReason: 'length' })
  expect((await house.call('/v1/chat/completions', { body: ASK })).status).toBe(200)

  type Seen = { usage: { model: string; kind: string; units: number; events: number; access_key?: string }[] }
  const read = async (path: string, key?: null) => (await house.call(path, key === null ? { key } : {})).json() as Seen
  await until('all three are there', async () => (await read('/parvis/v1/usage?kind=output_tokens')).usage[0]?.events === 3)
  const wanted = [
    { model: 'metered', kind: 'cached_input_tokens', units: 8, events: 2 },
    { model: 'metered', kind: 'input_tokens', units: 21, events: 3 },
    { model: 'metered', kind: 'output_tokens', units: 9, events: 3 },
  ]
  expect((await read('/parvis/v1/usage?group_by=model')).usage).toEqual(wanted)
  expect((await read('/parvis/v1/usage?group_by=access_key&kind=input_tokens')).usage[0]?.access_key).toMatch(/^SCW/)
  const { rows } = await house.db.query<{ ended: string; model: string | null; replica: string }>(
    `select ended, (select name from model where model.id = pool_id) as model, replica from usage_event order by accepted_at`,
  )
  const served = { model: 'metered', replica: expect.stringMatching(/./) }
  expect(rows).toEqual(['complete', 'complete', 'length'].map((ended) => ({ ended, ...served })))

  const { rows: projects } = await house.db.query<{ id: string }>('select id from project')
  const expires = new Date(Date.now() + 60_000).toISOString()
  const made = await house.call('/parvis/v1/usage-shares', { body: { project_id: projects[0]?.id, expires_at: expires } })
  expect(made.status).toBe(200)
  const { path } = made.json() as { path: string }
  expect((await read(path, null)).usage).toEqual(wanted)
})

test('nobody reads usage without a key, or with one that is none', async () => {
  for (const key of [null, randomUUID(), 'nonsense']) expect((await house.call('/parvis/v1/usage', { key })).status).toBe(401)
  expect((await house.call('/parvis/v1/usage-shares', { key: null, body: {} })).status).toBe(401)
  expect((await house.call(`/parvis/v1/usage?project_id=${randomUUID()}`)).status).toBe(403)
})
