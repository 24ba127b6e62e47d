import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import fc from 'fast-check'
import Fastify, { type FastifyInstance } from 'fastify'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import { type AccessKey, newId, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openManagement } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { usageRoutes } from './routes.ts'
import { insertEvents } from './ship.ts'
import { computeTotals } from './totals.ts'
import { STEPS, viewUsage } from './view.ts'

const HOUR_MS = 3_600_000
const START = Date.UTC(2026, 1, 28, 20) as Instant
const SPAN_MS = 8 * HOUR_MS
const [organizationId, elsewhere] = [newId(START) as OrganizationId, newId(START) as OrganizationId]
const [mine, yours] = [newId(START) as ProjectId, newId(START) as ProjectId]
const principalId = newId(START) as PrincipalId

let now: Instant
const clock: Clock = { ...systemClock, now: () => now }

let database: TestDatabase
let app: FastifyInstance
beforeAll(async () => {
  database = await freshDatabase()
  await database.db.query(`insert into organization (id, name) values ($1, 'ours')`, [organizationId])
  app = Fastify()
  const actor = {
    ...({
      organizationId,
      principalId,
      name: principalId,
      kind: 'user',
      owner: true,
      accessKey: 'SCWTEST0000000000000' as AccessKey,
    } as const),
    ip: '127.0.0.1',
    userAgent: 'test',
  }
  // One caller who owns two projects; with `x-limited` one who may see only one of them.
  const { manage } = openManagement(app, {
    guard: async (headers) =>
      headers['x-auth-token'] === undefined
        ? no({ type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' })
        : yes({
            actor,
            may: (needs, projectId) =>
              headers['x-limited'] === undefined
                ? projectId === undefined || [mine, yours].includes(projectId)
                : needs.scope === 'project' && projectId === mine,
          }),
    clock,
    log: openLog('silent'),
    bodyMs: 5_000,
    region: 'fr-par',
  })
  usageRoutes(manage, { db: database.db, reports: database.db, clock })
})
afterAll(async () => {
  await app.close()
  await database.drop()
})
beforeEach(async () => {
  now = (START + SPAN_MS) as Instant
  await database.db.query('truncate usage_event, usage_total, usage_share, audit_entry')
  await database.db.query(`update usage_total_state set settled_before = '-infinity', kept_from = '-infinity'`)
})

const record = (...events: ReturnType<typeof usageEventOf>[]) =>
  insertEvents(
    database.db,
    events.map((event) => JSON.stringify(event)),
    (payload) => Promise.reject(new Error(payload)),
  )
const settle = async () => {
  await computeTotals(database.db)
  await database.db.query('update usage_total_state set settled_before = clock_timestamp()')
}
const call = async (method: 'GET' | 'POST' | 'DELETE', url: string, options: { body?: object; headers?: object; key?: false } = {}) => {
  const headers = { ...(options.key === false ? {} : { 'x-auth-token': 'key' }), ...options.headers }
  const response = await app.inject({ method, url, headers, ...(options.body === undefined ? {} : { payload: options.body }) })
  return { status: response.statusCode, body: (response.body === '' ? undefined : response.json()) as Record<string, unknown> }
}

test('whatever the range and the step, the sums are those of the ledger', async () => {
  const anInstant = fc.oneof(fc.nat(SPAN_MS), fc.constantFrom(0, HOUR_MS, 4 * HOUR_MS - 1, 4 * HOUR_MS, 4 * HOUR_MS + 1, SPAN_MS))
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ ms: anInstant, input: fc.integer({ min: 1, max: 99 }), mine: fc.boolean() }), { maxLength: 40 }),
      fc.array(fc.tuple(anInstant, anInstant, fc.constantFrom(...STEPS)), { minLength: 6, maxLength: 6 }),
      fc.nat(2),
      async (drawn, ranges, settled) => {
        await database.db.query('truncate usage_event, usage_total')
        await database.db.query(`update usage_total_state set settled_before = '-infinity'`)
        const events = drawn.map(({ ms, input, mine: own }) =>
          usageEventOf({
            organizationId,
            projectId: own ? mine : yours,
            acceptedAt: (START + ms) as Instant,
            input,
            cachedInput: 0,
            output: 0,
          }),
        )
        const half = events.length >> 1
        if (half > 0) await record(...events.slice(0, half))
        if (settled > 0) await settle()
        if (half < events.length) await record(...events.slice(half))
        if (settled > 1) await settle()
        for (const [one, other, step] of ranges) {
          const [from, to] = [(START + Math.min(one, other)) as Instant, (START + Math.max(one, other)) as Instant]
          if (from === to) continue
          const seen = await viewUsage(database.db, { organizationId, from, to, step, by: ['project_id'], projectIds: [], only: {} })
          if (!seen.ok) throw new Error(seen.refusal.reason)
          const wanted = new Map<string, bigint>()
          for (const event of events) {
            if (event.acceptedAt < from || event.acceptedAt >= to) continue
            const name = `${stepOf(event.acceptedAt, step)} ${event.projectId}`
            wanted.set(name, (wanted.get(name) ?? 0n) + BigInt(event.input))
          }
          const got = new Map(seen.value.rows.map((row) => [`${row.at} ${row.project_id}`, row.units]))
          expect(got).toEqual(wanted)
        }
      },
    ),
    { numRuns: 30 },
  )
})

const stepOf = (instant: Instant, step: (typeof STEPS)[number]): number | null => {
  const date = new Date(instant)
  const day = Date.UTC(date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate())
  const month = Date.UTC(date.getUTCFullYear(), date.getUTCMonth())
  return { none: null, minute: instant - (instant % 60_000), hour: instant - (instant % HOUR_MS), day, month }[step]
}

test('usage is shown by project, principal, key, model and kind, seconds old', async () => {
  await record(
    usageEventOf({ organizationId, projectId: mine, acceptedAt: START, input: 30, cachedInput: 10, output: 5, model: 'a' }),
    usageEventOf({
      organizationId,
      projectId: yours,
      acceptedAt: START,
      input: 7,
      cachedInput: 0,
      output: 0,
      model: 'b',
      accessKey: 'SCWB' as AccessKey,
    }),
    usageEventOf({ organizationId: elsewhere, projectId: mine, acceptedAt: START, input: 1_000 }),
    usageEventOf({ organizationId, projectId: mine, acceptedAt: START, input: 1_000, charged: false }),
  )
  const from = 'from=2026-02-28&to=2026-03-01T05:00:00%2B01:00'
  const all = await call('GET', `/parvis/v1/usage?${from}&group_by=model`)
  expect(all).toEqual({
    status: 200,
    body: {
      from: '2026-02-28T00:00:00.000Z',
      to: '2026-03-01T04:00:00.000Z',
      step: 'none',
      usage: [
        { model: 'a', kind: 'cached_input_tokens', units: 10, events: 1 },
        { model: 'a', kind: 'input_tokens', units: 20, events: 1 },
        { model: 'a', kind: 'output_tokens', units: 5, events: 1 },
        { model: 'b', kind: 'input_tokens', units: 7, events: 1 },
      ],
    },
  })
  const own = await call('GET', `/parvis/v1/usage?${from}&project_id=${yours}&group_by=access_key&group_by=kind&step=day`)
  expect(own.body['usage']).toEqual([{ at: '2026-02-28T00:00:00.000Z', access_key: 'SCWB', kind: 'input_tokens', units: 7, events: 1 }])
  const filtered = await call('GET', `/parvis/v1/usage?${from}&kind=output_tokens&model=a`)
  expect(filtered.body['usage']).toEqual([{ project_id: mine, model: 'a', kind: 'output_tokens', units: 5, events: 1 }])
  // Without a range it is the running month.
  now = (Date.UTC(2026, 2, 1) + 1) as Instant
  expect((await call('GET', '/parvis/v1/usage')).body).toMatchObject({ from: '2026-03-01T00:00:00.000Z', usage: [] })
})

test('a question about usage that makes no sense is refused with its reason', async () => {
  const refused: [string, string][] = [
    ['from=2026-02-28&to=2026-02-28', 'to'],
    ['from=yesterday', 'from'],
    ['step=week', 'step'],
    ['group_by=colour', 'group_by'],
    ['step=minute&from=2020-01-01', 'step'],
    ['colour=red', 'colour'],
    ['project_id=x', 'project_id'],
    ['kind=tokens', 'kind'],
  ]
  for (const [query, argument] of refused) {
    const { status, body } = await call('GET', `/parvis/v1/usage?${query}`)
    expect({ query, status, type: body['type'] }).toEqual({ query, status: 400, type: 'invalid_arguments' })
    expect((body['details'] as { argument_name: string }[])[0]?.argument_name).toContain(argument)
  }
  expect((await call('GET', '/parvis/v1/usage', { key: false })).status).toBe(401)
  expect((await call('GET', '/parvis/v1/usage', { headers: { 'x-limited': '1' } })).status).toBe(403)
  expect((await call('GET', `/parvis/v1/usage?project_id=${yours}`, { headers: { 'x-limited': '1' } })).status).toBe(403)
  expect((await call('GET', `/parvis/v1/usage?project_id=${mine}`, { headers: { 'x-limited': '1' } })).status).toBe(200)
})

test('where the events are gone, whole hours are still known', async () => {
  await record(usageEventOf({ organizationId, acceptedAt: START, input: 9, cachedInput: 0, output: 0 }))
  await settle()
  await database.db.query('truncate usage_event')
  await database.db.query(`update usage_total_state set kept_from = '2026-03-01'`)
  const whole = await call('GET', '/parvis/v1/usage?from=2026-02-28T20:00:00Z&to=2026-03-01&step=hour&group_by=kind')
  expect(whole.body['usage']).toEqual([{ at: '2026-02-28T20:00:00.000Z', kind: 'input_tokens', units: 9, events: 1 }])
  const part = await call('GET', '/parvis/v1/usage?from=2026-02-28T20:30:00Z&to=2026-03-01')
  expect(part).toMatchObject({ status: 400, body: { details: [{ argument_name: 'from' }] } })
})

const share = async (body: object = {}) => {
  const made = await call('POST', '/parvis/v1/usage-shares', { body: { project_id: mine, expires_at: '2026-03-15', ...body } })
  return { ...made, token: String(made.body['token']), id: String(made.body['id']) }
}

test("a share shows one project's consumption until its date, and nothing of who used it", async () => {
  await record(
    usageEventOf({ organizationId, projectId: mine, acceptedAt: START, input: 30, cachedInput: 0, output: 0, model: 'a' }),
    usageEventOf({ organizationId, projectId: yours, acceptedAt: START, input: 7, cachedInput: 0, output: 0 }),
  )
  const made = await share({ description: 'for the client', shows_from: '2026-02-01' })
  expect(made).toMatchObject({
    status: 200,
    body: { project_id: mine, description: 'for the client', expires_at: '2026-03-15T00:00:00.000Z' },
  })
  const path = `/parvis/v1/shared-usage/${made.token}`
  const seen = await call('GET', `${path}?from=2026-02-28&to=2026-03-01`, { key: false })
  expect(seen.status).toBe(200)
  expect(seen.body).toMatchObject({ project_id: mine, usage: [{ model: 'a', kind: 'input_tokens', units: 30, events: 1 }] })
  expect((await call('GET', `${path}?from=2026-01-31`, { key: false })).status).toBe(400)
  expect((await call('GET', `${path}?group_by=principal_id`, { key: false })).status).toBe(400)

  const { rows } = await database.db.query('select * from usage_share')
  expect(JSON.stringify(rows)).not.toContain(made.token)
  const { rows: audit } = await database.db.query('select action, resource_type, after from audit_entry')
  expect(audit).toMatchObject([{ action: 'created', resource_type: 'usage_share' }])
  expect(JSON.stringify(audit)).not.toContain(made.token)

  now = Date.UTC(2026, 2, 15) as Instant
  const late = await call('GET', path, { key: false })
  expect(late).toMatchObject({ status: 410, body: { type: 'expired', expired_since: '2026-03-15T00:00:00.000Z' } })
  now = (now - 1) as Instant
  expect((await call('GET', path, { key: false })).status).toBe(200)
})

test('a revoked share is worth nothing at once, and tokens cannot be guessed at', async () => {
  const [one, two] = [await share(), await share()]
  const listed = await call('GET', '/parvis/v1/usage-shares')
  expect(listed.body).toMatchObject({ total_count: 2 })
  expect(JSON.stringify(listed.body)).not.toContain(one.token)
  expect((await call('DELETE', `/parvis/v1/usage-shares/${one.id}`)).status).toBe(204)
  expect((await call('GET', `/parvis/v1/shared-usage/${one.token}`, { key: false })).status).toBe(404)
  expect((await call('GET', `/parvis/v1/shared-usage/${two.token}`, { key: false })).status).toBe(200)
  expect((await call('DELETE', `/parvis/v1/usage-shares/${one.id}`)).status).toBe(404)
  for (const token of ['', 'x', two.token.slice(1), `${two.token}A`, 'A'.repeat(43), "'; drop table usage_share"]) {
    expect((await call('GET', `/parvis/v1/shared-usage/${encodeURIComponent(token)}`, { key: false })).status).toBe(404)
  }
})

test('shares that may not be are refused', async () => {
  expect((await share({ expires_at: '2026-02-01' })).status).toBe(400)
  expect((await share({ expires_at: '2027-06-01' })).status).toBe(400)
  expect((await share({ expires_at: undefined })).status).toBe(400)
  expect((await share({ colour: 'red' })).status).toBe(400)
  expect((await share({ project_id: newId(START) })).status).toBe(403)
  const limited = { headers: { 'x-limited': '1' } }
  const others = await share({ project_id: yours })
  expect((await call('DELETE', `/parvis/v1/usage-shares/${others.id}`, limited)).status).toBe(403)
  expect((await call('GET', '/parvis/v1/usage-shares', limited)).body).toEqual({ total_count: 0, usage_shares: [] })
  expect((await call('POST', '/parvis/v1/usage-shares', { key: false, body: {} })).status).toBe(401)
  for (let made = 0; made < 100; made += 1) expect((await share()).status).toBe(200)
  expect(await share()).toMatchObject({ status: 403, body: { type: 'quotas_exceeded', details: [{ quota: 100, current: 100 }] } })
})
