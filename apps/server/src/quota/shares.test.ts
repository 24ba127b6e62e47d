import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { openProxy } from '@parvis/testkit/proxy'
import { until } from '@parvis/testkit/until'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { addPriced, use } from '../../test/billing-usage.ts'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import { type Db, openDb } from '../kit/db.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { type Admission, openAdmission, type Ticket } from './admit.ts'
import { readBudgets, watchBudgets } from './budgets.ts'
import { setBudget } from './edit.ts'
import { type Policy, readPolicy } from './policy.ts'
import { openPostgresLedger } from './postgres-ledger.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

const log = openLog('silent')
const MODEL = { name: 'any', type: 'chat', price: { input: 1_000_000n, cachedInput: 100_000n, output: 2_000_000n } }
const open: { admission: Admission; end(): Promise<void> }[] = []
afterEach(async () => {
  for (const gateway of open.splice(0)) {
    await gateway.admission.close()
    await gateway.end()
  }
})

const anOrganization = async () => {
  const organizationId = randomUUID() as OrganizationId
  await database.db.query(`insert into organization (id, name) values ($1, 'test')`, [organizationId])
  await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [organizationId])
  return { organizationId, projectId: organizationId as string as ProjectId, principalId: organizationId as string as PrincipalId }
}

const limit = (organizationId: string, name: string, value: number) =>
  database.db.query(`insert into quota_limit (scope, subject, model, name, value) values ('organization', $1, '*', $2, $3)`, [
    organizationId,
    name,
    value,
  ])

const aGateway = async (clock: Clock = systemClock, db: Db = database.db, end = async (): Promise<void> => undefined) => {
  const policy = await readPolicy(db)
  const admission = openAdmission({ policy: () => policy, ledger: openPostgresLedger(db), clock, log })
  open.push({ admission, end })
  await admission.beat()
  return admission
}

test('gateways share the places of an organization, and one that has none gets those that another has given back', async () => {
  const holder = await anOrganization()
  await limit(holder.organizationId, 'concurrent_requests', 20)
  const [one, other] = [await aGateway(), await aGateway()]
  await one.beat() // it has heard of the other
  const ask = (gateway: Admission) => gateway.admit(holder, MODEL, { inputTokens: 1, outputTokens: 1 })
  const tickets: Ticket[] = []
  for (const gateway of [one, other]) {
    for (let outcome = await ask(gateway); outcome.ok; outcome = await ask(gateway)) tickets.push(outcome.value)
  }
  expect(tickets).toHaveLength(20)
  // All of the first one's come free; the other can have them, although nobody asks the first one for anything.
  for (const ticket of tickets) ticket.settle()
  const again: Ticket[] = []
  await until('the other has all twenty', async () => {
    const outcome = await ask(other)
    if (outcome.ok) again.push(outcome.value)
    return again.length === 20
  })
  expect((await ask(other)).ok).toBe(false)
})

test('a place for a batch is held over gateways, however long it takes, and comes free when its gateway is gone', async () => {
  const { organizationId } = await anOrganization()
  await limit(organizationId, 'concurrent_batches', 2)
  const [one, other] = [await aGateway(), await aGateway()]
  const places = [await one.takeBatchPlace(organizationId), await one.takeBatchPlace(organizationId)]
  expect(places.map(({ ok }) => ok)).toEqual([true, true])
  expect((await other.takeBatchPlace(organizationId)).ok).toBe(false)
  // Its lease is renewed for as long as it lives.
  const lease = async () =>
    (await database.db.query<{ until: Date }>(`select until from quota_part where key = $1 and held = 2`, [`batches ${organizationId} *`]))
      .rows[0]?.until
  const first = await lease()
  await one.beat()
  expect((await lease())?.getTime()).toBeGreaterThan(first?.getTime() ?? Number.POSITIVE_INFINITY)
  // As it is some seconds after its last word.
  open.splice(0, 1)
  await one.close()
  await database.db.query(`update quota_part set held = 2, until = now() - interval '1 millisecond' where key = $1 and gateway <> $2`, [
    `batches ${organizationId} *`,
    randomUUID(),
  ])
  await until('the other has both', async () => (await other.takeBatchPlace(organizationId)).ok)
  await until('the other has both', async () => (await other.takeBatchPlace(organizationId)).ok)
  expect((await other.takeBatchPlace(organizationId)).ok).toBe(false)
})

test('a budget holds over gateways and survives a restart of all of them', async () => {
  const holder = await anOrganization()
  const edit = { db: database.db, clock: systemClock, actor: 'test' } as const
  const scope = { organizationId: holder.organizationId, projectId: null, principalId: null }
  await setBudget(edit, { ...scope, unit: 'tokens', period: 'day', amount: 1_000, hard: true })
  const spend = async (gateway: Admission, tokens: number): Promise<boolean> => {
    const ticket = await gateway.admit(holder, MODEL, { inputTokens: tokens, outputTokens: 0 })
    if (ticket.ok) ticket.value.settle({ input: tokens, cachedInput: 0, output: 0 })
    return ticket.ok
  }
  const [one, other] = [await aGateway(), await aGateway()]
  expect(await spend(one, 400)).toBe(true)
  expect(await spend(other, 400)).toBe(true)
  expect([await spend(one, 201), await spend(other, 201)]).toEqual([false, false])
  await one.close()
  await other.close()
  open.length = 0
  expect(await readBudgets(database.db, systemClock, holder.organizationId)).toMatchObject([{ used: 800 }])
  const next = await aGateway()
  expect(await spend(next, 201)).toBe(false)
  expect(await spend(next, 200)).toBe(true)
  expect(await spend(next, 1)).toBe(false)
})

test('a gateway that has lost the database lends nothing of a budget that others may have by then', async () => {
  const holder = await anOrganization()
  const scope = { organizationId: holder.organizationId, projectId: null, principalId: null }
  const edit = { db: database.db, clock: systemClock, actor: 'test' } as const
  await setBudget(edit, { ...scope, unit: 'tokens', period: 'month', amount: 32_000, hard: true })
  const url = new URL(database.url)
  const wire = await openProxy({ host: url.hostname, port: Number(url.port) })
  url.hostname = '127.0.0.1'
  url.port = String(wire.port)
  const db = openDb(url.href, { log, max: 2 })
  const other = await aGateway()
  const cut = await aGateway(systemClock, db, async () => {
    await db.end()
    await wire.close()
  })
  const use = async (gateway: Admission, tokens: number) => {
    const outcome = await gateway.admit(holder, MODEL, { inputTokens: tokens, outputTokens: 0 })
    if (!outcome.ok) return outcome.refusal.code
    outcome.value.settle({ input: tokens, cachedInput: 0, output: 0 })
    return 'served'
  }
  // It has a stock of a thousand in hand, and told what it has used.
  expect(await use(cut, 1)).toBe('served')
  await cut.beat()
  await wire.cut()
  await until('the other is lent all of the rest', async () => (await use(other, 31_999)) === 'served')
  expect(await use(cut, 1)).toBe('busy')
  await wire.mend()
  await until('it hears that the budget is used up', async () => (await use(cut, 1)) === 'limit_reached')
  const used = async () => (await readBudgets(database.db, systemClock, holder.organizationId))[0]?.used
  await until('both have told', async () => (await used()) === 32_000)
})

test('after the clock of the database was set back a request gets through when the limit has refilled', async () => {
  const holder = await anOrganization()
  await limit(holder.organizationId, 'requests_per_minute', 600)
  const gateway = await aGateway()
  const ask = () => gateway.admit(holder, MODEL, { inputTokens: 1, outputTokens: 1 })
  for (let outcome = await ask(); outcome.ok; outcome = await ask()) outcome.value.settle()
  await database.db.query(`update quota_bucket set level = 0, at = now() + interval '2 hours' where key like $1`, [
    `minute requests ${holder.organizationId} %`,
  ])
  await until('it has refilled', async () => (await ask()).ok)
})

test('the state of a budget follows the books, in tokens and in money, and says once that it is used up', async () => {
  const holder = await anOrganization()
  const { rows } = await database.db.query<{ id: string }>(
    `with model as (insert into model (id, name, owned_by, type, status, created_at, context_tokens, max_output_tokens)
       values (gen_random_uuid(), $1, 'test', 'chat', 'active', now(), 4096, 256) returning id)
     insert into model_price (id, model_id, starts_at, input, cached_input, output)
       select gen_random_uuid(), id, now(), 1000000, 100000, 2000000 from model returning id`,
    [`m-${randomUUID()}`],
  )
  const day = Date.UTC(2026, 10, 10)
  const book = (at: number, charged: boolean, mode = 'realtime') =>
    database.db.query(
      `insert into usage_event (id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, gateway, replica, endpoint, mode,
         status, ended, counted, charged, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, audio_input_tokens, audio_milliseconds, images,
         pages, accepted_at, ended_at)
       values (gen_random_uuid(), $1, $1, $1, '', 'm', 'm', $2, 'g', 'r', 'chat', $5, 200, 'complete', 'engine', $4, 100, 40, 50, 0, 0, 0, 0, 0, $3, $3)`,
      [holder.organizationId, rows[0]?.id, new Date(at), charged, mode],
    )
  await database.db.query('select make_usage_partition($1)', [new Date(day)])
  await book(day - 1, true) // the last millisecond of yesterday
  await book(day, true)
  await book(day + 1_000, true, 'batch')
  await book(day + 2_000, false)
  // Hours of which nothing has moved are in the totals; sound and pages cost nothing with a model that is paid by the token.
  for (const [kind, units] of [
    ['input_tokens', 100],
    ['audio_milliseconds', 5_000],
    ['pages', 7],
  ]) {
    await database.db.query(
      `insert into usage_total (hour, organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, events)
       values ($1, $2, $2, $2, '', 'm', $3, 'realtime', $4, $5, 1)`,
      [new Date(day - 20 * 3_600_000), holder.organizationId, kind, rows[0]?.id, units],
    )
  }
  const clock: Clock = {
    ...systemClock,
    now: () => (day + 60_000) as Instant,
    sleep: (_ms, signal) => systemClock.sleep(1_000_000, signal),
  }
  const scope = { organizationId: holder.organizationId, projectId: null, principalId: null }
  const edit = { db: database.db, clock, actor: 'test' } as const
  await setBudget(edit, { ...scope, unit: 'tokens', period: 'day', amount: 300, hard: true })
  await setBudget(edit, { ...scope, unit: 'money', period: 'month', amount: 1_000_000, hard: false })
  // A budget holds for what was used before it was made, from its first moment.
  // 60 of input, 40 cached, 50 of output: 60 + 4 + 100 micro-euros, and half of it for the batch.
  const said = [
    { unit: 'tokens', used: 300 },
    { unit: 'money', used: 164_000 + 164_000 + 82_000 + 100_000 },
  ]
  expect(await readBudgets(database.db, clock, holder.organizationId)).toMatchObject(said)
  const policy: Policy = await readPolicy(database.db)
  const watching = watchBudgets({ db: database.db, policy: () => policy, clock, log })
  await watching.look()
  await watching.look()
  await watching.close()
  expect(await readBudgets(database.db, clock, holder.organizationId)).toMatchObject(said)
  const { rows: alerts } = await database.db.query<{ period: string; used: bigint }>(
    'select quota_alert.period, used from quota_alert join quota_budget on id = budget_id where organization_id = $1',
    [holder.organizationId],
  )
  expect(alerts).toEqual([{ period: '2026-11-10', used: 300n }])
})

test('pages are in a budget of money as they are billed, from the totals and from the events, and in none of tokens', async () => {
  const { organizationId } = await anOrganization()
  const model = `m-${randomUUID()}`
  const priceId = await addPriced(database.db, model, { input: '2' }, 'ocr')
  const hour = Date.UTC(2026, 10, 12)
  await database.db.query(
    `insert into usage_total (hour, organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, events)
     values ($1, $2, $2, $2, '', $3, 'pages', 'realtime', $4, 100, 1)`,
    [new Date(hour), organizationId, model, priceId],
  )
  const document = { organizationId, model, priceId, at: new Date(hour + 3_600_000).toISOString() }
  await use(database.db, { ...document, pages: 10 })
  await use(database.db, { ...document, pages: 4, mode: 'batch' })
  const clock: Clock = { ...systemClock, now: () => (hour + 2 * 3_600_000) as Instant }
  const edit = { db: database.db, clock, actor: 'test' } as const
  const scope = { organizationId, projectId: null, principalId: null, period: 'day', amount: 1_000_000_000, hard: true } as const
  for (const unit of ['money', 'tokens'] as const) await setBudget(edit, { ...scope, unit })
  // Two thousandths of a euro each, and one for each of the batch.
  expect(await readBudgets(database.db, clock, organizationId)).toMatchObject([
    { unit: 'money', used: 224_000_000 },
    { unit: 'tokens', used: 0 },
  ])
})

test('budgets are compared with the books every minute, and twelve seconds after a change', async () => {
  const sleepers: (() => void)[] = []
  const clock = {
    at: systemClock.now() as number,
    setBackMs: 0,
    now: () => (clock.at - clock.setBackMs) as Instant,
    monotonicMs: () => clock.at,
    sleep: (_ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve) => {
        const wake = (): void => {
          signal?.removeEventListener('abort', wake)
          resolve()
        }
        sleepers.push(wake)
        signal?.addEventListener('abort', wake)
      }),
  }
  let looks = 0
  const query = ((...asked: Parameters<typeof database.db.query>) => {
    if ((asked[0] as unknown) === 'select id from organization') looks += 1
    return database.db.query(...asked)
  }) as typeof database.db.query
  let policy = await readPolicy(database.db)
  const watching = watchBudgets({ db: { query } as typeof database.db, policy: () => policy, clock, log })
  /** So many seconds, each once everything of the last is done. */
  const seconds = async (count: number): Promise<number> => {
    for (let second = 0; second < count; second += 1) {
      await until('it sleeps', () => sleepers.length > 0)
      clock.at += 1_000
      sleepers.pop()?.()
    }
    await until('it sleeps', () => sleepers.length > 0)
    return looks
  }
  expect([await seconds(0), await seconds(30)]).toEqual([1, 1])
  // A minute is not one of the time of day.
  clock.setBackMs = 2 * 3_600_000
  expect([await seconds(29), await seconds(1)]).toEqual([1, 2])
  policy = await readPolicy(database.db)
  // The change is seen with the first of them.
  expect([await seconds(12), await seconds(1), await seconds(59), await seconds(1)]).toEqual([2, 3, 3, 4])
  // One that is due before then does not count for it.
  expect(await seconds(50)).toBe(4)
  policy = await readPolicy(database.db)
  expect([await seconds(10), await seconds(3)]).toEqual([5, 6])
  await watching.close()
})
