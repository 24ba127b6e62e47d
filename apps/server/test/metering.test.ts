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

test('after the clock of the database was set back, sums and bill have what the requests say', async () => {
  await using engine = await startScriptedEngine({ usage: { prompt: 300_000, completion: 200_000 } })
  await serveScripted(house, engine, { name: 'stepped' })
  // As a machine leaves it that ran for a while with its clock two hours ahead.
  await house.db.query(`update usage_total_state set settled_before = now() + interval '2 hours'`)
  expect((await house.call('/v1/chat/completions', { body: { ...ASK, model: 'stepped' } })).status).toBe(200)

  const units = async () => {
    const { requests } = (await house.call('/parvis/v1/usage-requests?model=stepped')).json() as {
      requests: { units: Record<string, number> }[]
    }
    return requests.map((request) => request.units)
  }
  // To the end of an hour: what a range cuts off one is read from the events, and not from the totals.
  const hourMs = 3_600_000
  const to = new Date(Math.ceil(Date.now() / hourMs + 1) * hourMs).toISOString()
  const used = async () => {
    const { usage } = (await house.call(`/parvis/v1/usage?model=stepped&group_by=model&to=${to}`)).json() as {
      usage: { kind: string; units: number }[]
    }
    return Object.fromEntries(usage.map((row) => [row.kind, row.units]))
  }
  const billed = async () => {
    const { consumptions } = (await house.call('/billing/v2beta1/consumptions')).json() as {
      consumptions: { sku: string; billed_quantity: string }[]
    }
    const lines = consumptions.map(({ sku, billed_quantity }) => [sku.split('/').at(-2), billed_quantity])
    return Object.fromEntries(lines.filter(([name]) => name?.startsWith('stepped') === true))
  }
  await until('the request is in the ledger', async () => (await units()).length === 1)
  expect(await units()).toEqual([
    { input_tokens: 300_000, cached_input_tokens: 0, output_tokens: 200_000, audio_milliseconds: 0, pages: 0 },
  ])
  await expect.poll(used).toEqual({ input_tokens: 300_000, output_tokens: 200_000 })
  await expect.poll(billed).toEqual({ stepped_input: '300', stepped_output: '200' })
  expect(house.log()).toContain('the clock of the database was set back')
})

test('nobody reads usage without a key, or with one that is none', async () => {
  for (const key of [null, randomUUID(), 'nonsense']) expect((await house.call('/parvis/v1/usage', { key })).status).toBe(401)
  expect((await house.call('/parvis/v1/usage-shares', { key: null, body: {} })).status).toBe(401)
  expect((await house.call(`/parvis/v1/usage?project_id=${randomUUID()}`)).status).toBe(403)
})
