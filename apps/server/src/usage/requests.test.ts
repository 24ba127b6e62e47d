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
import { KINDS } from './kinds.ts'
import { usageRoutes } from './routes.ts'
import { insertEvents } from './ship.ts'
import { viewUsage } from './view.ts'

const START = Date.UTC(2026, 1, 28, 20) as Instant
const END = (START + 3_600_000) as Instant
const [organizationId, elsewhere] = [newId(START) as OrganizationId, newId(START) as OrganizationId]
const [mine, yours] = [newId(START) as ProjectId, newId(START) as ProjectId]
const principalId = newId(START) as PrincipalId
const clock: Clock = { ...systemClock, now: () => END }

let database: TestDatabase
let app: FastifyInstance
beforeAll(async () => {
  database = await freshDatabase()
  app = Fastify()
  const accessKey = 'SCWTEST0000000000000' as AccessKey
  const who = { organizationId, principalId, name: principalId, kind: 'user', owner: true, accessKey } as const
  // With `x-limited` a caller who may see one project only.
  const { manage } = openManagement(app, {
    guard: async (headers) =>
      headers['x-auth-token'] === undefined
        ? no({ type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' })
        : yes({
            actor: { ...who, ip: '127.0.0.1', userAgent: 'test' },
            may: (needs, projectId) => headers['x-limited'] === undefined || (needs.scope === 'project' && projectId === mine),
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
beforeEach(() => database.db.query('truncate usage_event, usage_total'))

type Shown = { id: string; project_id: string; charged: boolean; units: Record<string, number>; pool_id: string; replica: string }
const list = async (query: string, headers: Record<string, string> = { 'x-auth-token': 'key' }) => {
  const response = await app.inject({ method: 'GET', url: `/parvis/v1/usage-requests?${query}`, headers })
  return { status: response.statusCode, body: response.json() as { requests: Shown[]; next_page_token: string | null } }
}
const RANGE = `from=${new Date(START).toISOString()}&to=${new Date(END).toISOString()}`

const readAll = async (query: string): Promise<Shown[]> => {
  const all: Shown[] = []
  for (let token: string | null = ''; token !== null; ) {
    const { status, body } = await list(`${RANGE}&${query}${token === '' ? '' : `&page_token=${token}`}`)
    expect(status).toBe(200)
    all.push(...body.requests)
    token = body.next_page_token
  }
  return all
}

test('pages of any size show each request once, newest first, and add up to the sums of usage', async () => {
  const drawn = fc.record({
    ms: fc.oneof(fc.constantFrom(0, 1, 2), fc.nat(3_599_999)),
    own: fc.boolean(),
    model: fc.constantFrom('a', 'b'),
    output: fc.nat(9),
    audioMs: fc.constantFrom(0, 0, 1_190),
    pages: fc.constantFrom(0, 0, 3),
    charged: fc.boolean(),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(drawn, { maxLength: 30 }), fc.integer({ min: 1, max: 12 }), async (events, size) => {
      await database.db.query('truncate usage_event')
      const made = events.map(({ ms, own, ...rest }) =>
        usageEventOf({ organizationId, projectId: own ? mine : yours, acceptedAt: (START + ms) as Instant, ...rest }),
      )
      const others = usageEventOf({ organizationId: elsewhere, acceptedAt: START })
      const payloads = [...made, others].map((event) => JSON.stringify(event))
      await insertEvents(database.db, payloads, (_, error) => Promise.reject(error as Error))

      const all = await readAll(`page_size=${size}`)
      const wanted = made.toSorted((a, b) => b.acceptedAt - a.acceptedAt || (a.id < b.id ? 1 : -1)).map(({ id }) => id)
      expect(all.map(({ id }) => id)).toEqual(wanted)

      const seen = await viewUsage(database.db, {
        organizationId,
        from: START,
        to: END,
        step: 'none',
        by: ['model'],
        projectIds: [mine],
        only: {},
      })
      if (!seen.ok) throw new Error(seen.refusal.reason)
      for (const model of ['a', 'b']) {
        for (const kind of KINDS) {
          const line = await readAll(`page_size=${size}&model=${model}&project_id=${mine}&kind=${kind}&charged=true`)
          const sum = seen.value.rows.find((row) => row.model === model && row.kind === kind)
          expect(line.reduce((units, request) => units + (request.units[kind] ?? 0), 0)).toBe(Number(sum?.units ?? 0n))
          expect(line).toHaveLength(Number(sum?.events ?? 0n))
        }
      }
    }),
    { numRuns: 15 },
  )
})

test('a request is shown with where it was served and who asked, and nothing of what was said', async () => {
  const event = usageEventOf({ organizationId, projectId: mine, acceptedAt: START, audioMs: 1_190, pages: 3, counted: 'delivered' })
  await insertEvents(database.db, [JSON.stringify(event)], (_, error) => Promise.reject(error as Error))
  const { body } = await list(RANGE)
  expect(body).toEqual({
    next_page_token: null,
    requests: [
      {
        id: event.id,
        project_id: mine,
        principal_id: event.principalId,
        access_key: event.accessKey,
        model_asked: event.modelAsked,
        model: event.model,
        price_id: event.priceId,
        pool_id: event.poolId,
        replica: event.replica,
        gateway: event.gateway,
        endpoint: event.endpoint,
        mode: 'realtime',
        status: 200,
        ended: 'complete',
        counted: 'delivered',
        charged: true,
        accepted_at: new Date(START).toISOString(),
        first_byte_at: new Date(event.firstByteAt ?? 0).toISOString(),
        ended_at: new Date(event.endedAt).toISOString(),
        units: { input_tokens: 15, cached_input_tokens: 16, output_tokens: 12, audio_milliseconds: 2_000, pages: 3 },
      },
    ],
  })
})

test('what may not be seen, or cannot be asked, is refused', async () => {
  const key = { 'x-auth-token': 'key' }
  const limited = { ...key, 'x-limited': 'yes' }
  expect((await list(RANGE, {})).status).toBe(401)
  expect((await list(RANGE, limited)).status).toBe(403)
  expect((await list(`${RANGE}&project_id=${mine}&project_id=${yours}`, limited)).status).toBe(403)
  expect((await list(`${RANGE}&project_id=${mine}`, limited)).status).toBe(200)
  for (const wrong of [
    'page_size=1001',
    'page_size=0',
    'page_token=nonsense',
    'kind=images',
    'colour=red',
    'from=2026-03-01&to=2026-02-01',
  ]) {
    expect([wrong, (await list(wrong)).status]).toEqual([wrong, 400])
  }
})
