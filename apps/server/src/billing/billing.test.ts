import { randomInt } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addOrganization, addPriced, addProject, closeMonths, handClock, use } from '../../test/billing-usage.ts'
import type { Clock, Instant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { type Cents, formatCents } from '../kit/money.ts'
import { dropPartitions } from '../usage/keep.ts'
import { computeTotals } from '../usage/totals.ts'
import { readBill } from './bill.ts'
import { billRound } from './billing.ts'
import { openMonths } from './close.ts'
import { creditInvoice, payInvoice, readInvoices, voidInvoice } from './invoice.ts'
import type { Month } from './month.ts'
import type { Terms } from './terms.ts'

const log = openLog('silent')
const terms: Terms = {
  freePools: { tokens: 1_000_000n, audio: 3_600_000n },
  freePeriod: 'monthly',
  region: 'fr-par',
  taxName: 'VAT',
  taxBasisPoints: 2_000,
  sellerName: 'Parvis',
  graceHours: 24,
  dueDays: 10,
}

let database: TestDatabase
let llama: string
let small: string
let cached: string
let speech: string
let reads: string

beforeAll(async () => {
  database = await freshDatabase()
  llama = await addPriced(database.db, 'llama', { input: '0.90', output: '0.90' })
  small = await addPriced(database.db, 'small', { input: '0.15', output: '0.35' })
  cached = await addPriced(database.db, 'cached', { input: '0.60', cachedInput: '0.12', output: '3.30' })
  speech = await addPriced(database.db, 'speech', { input: '0.003' }, 'audio')
  reads = await addPriced(database.db, 'reads', { input: '1.50' }, 'ocr')
})
afterAll(() => database?.drop())

const roundAt = (clock: Clock, own: Terms = terms): Promise<void> => closeMonths({ db: database.db, clock, log, terms: own })

const bill = (organizationId: OrganizationId, month: string, own: Terms = terms) =>
  readBill(database.db, own, organizationId, month as Month)
const owed = async (organizationId: OrganizationId, month: string) => formatCents((await bill(organizationId, month)).bill.cents)
const stateOf = async (organizationId: OrganizationId, month: string) =>
  (await database.db.query('select waits_for, closed_at from bill where organization_id = $1 and month = $2', [organizationId, month]))
    .rows[0]

/** As days after it: all is in the totals, and what was accepted at that instant was recorded then, too. */
const settle = async (db: Db, at: string): Promise<void> => {
  await db.query('update usage_total_state set settled_before = clock_timestamp()')
  await db.query('update usage_event set recorded_at = accepted_at where accepted_at = $1', [at])
}

/** The second example of the pricing page, spread over a month. */
const useExample = async (organizationId: OrganizationId, month: string): Promise<void> => {
  await use(database.db, { organizationId, model: 'llama', priceId: llama, at: `${month}-01T00:00:00Z`, input: 300_000, output: 2_000_000 })
  await use(database.db, {
    organizationId,
    model: 'llama',
    priceId: llama,
    at: `${month}-28T23:59:59.999Z`,
    input: 500_000,
    output: 500_000,
  })
  await use(database.db, { organizationId, model: 'small', priceId: small, at: `${month}-14T12:00:00Z`, input: 100_000, output: 100_000 })
}

test('a month is closed after its time for late segments, once, and its invoice is issued', async () => {
  const organizationId = await addOrganization(database.db, 'acme', '2026-02-10T00:00:00Z')
  await useExample(organizationId, '2026-02')
  expect(await owed(organizationId, '2026-02')).toBe('2.13')

  const clock = handClock('2026-03-01T23:59:59.999Z')
  await roundAt(clock)
  expect(await stateOf(organizationId, '2026-02')).toMatchObject({ closed_at: null })
  expect(await readInvoices(database.db, organizationId)).toEqual([])

  clock.set('2026-03-02T00:00:00Z')
  await roundAt(clock)
  await roundAt(clock)
  const closed = await bill(organizationId, '2026-02')
  expect(closed.closedAt).toBe(clock.now())
  expect(formatCents(closed.bill.cents)).toBe('2.13')
  const invoices = await readInvoices(database.db, organizationId)
  expect(invoices).toHaveLength(1)
  expect(invoices[0]).toMatchObject({
    type: 'periodic',
    state: 'issued',
    month: '2026-02',
    grossCents: 303n,
    discountCents: -90n,
    untaxedCents: 213n,
    taxCents: 43n,
    taxedCents: 256n,
    dueAt: Date.parse('2026-03-12T23:59:59.999Z'),
  })
})

test('a closed month never changes: not by a late event, not by a new price, not by a statement', async () => {
  const organizationId = await addOrganization(database.db, 'frozen', '2026-02-10T00:00:00Z')
  await useExample(organizationId, '2026-02')
  await roundAt(handClock('2026-03-03T00:00:00Z'))
  const before = await bill(organizationId, '2026-02')
  await use(database.db, { organizationId, model: 'llama', priceId: llama, at: '2026-02-20T00:00:00Z', output: 5_000_000 })
  expect(await bill(organizationId, '2026-02')).toEqual(before)
  await expect(database.db.query('update bill set content = content where organization_id = $1', [organizationId])).rejects.toThrow(
    /never changes/,
  )
  await expect(database.db.query('delete from bill where organization_id = $1', [organizationId])).rejects.toThrow(/never changes/)
})

test('late events go to the next month with a mark, once, however often the months are looked at', async () => {
  const organizationId = await addOrganization(database.db, 'late', '2026-01-01T00:00:00Z')
  await useExample(organizationId, '2026-01')
  const clock = handClock('2026-02-02T00:00:00Z')
  await roundAt(clock)
  await use(database.db, { organizationId, model: 'small', priceId: small, at: '2026-01-31T23:00:00Z', output: 2_000_000 })
  await use(database.db, { organizationId, model: 'small', priceId: small, at: '2026-02-05T00:00:00Z', output: 1_000_000 })

  const marked = async (month: string) =>
    (await bill(organizationId, month)).bill.lines.map((line) => ({ lateFrom: line.lateFrom, units: line.units, free: line.freeUnits }))
  const expected = [
    { lateFrom: null, units: 1_000_000n, free: 0n },
    { lateFrom: '2026-01', units: 2_000_000n, free: 1_000_000n },
  ]
  expect(await marked('2026-02')).toEqual(expected)
  // Not to two months at once: the one after it is not the first that is open.
  expect(await marked('2026-03')).toEqual([])

  clock.set('2026-03-02T00:00:00Z')
  await roundAt(clock)
  expect(await marked('2026-02')).toEqual(expected)
  expect(await marked('2026-03')).toEqual([])

  // Later still: only what is new since.
  await use(database.db, { organizationId, model: 'small', priceId: small, at: '2026-01-30T23:00:00Z', output: 3_000 })
  expect(await marked('2026-03')).toEqual([{ lateFrom: '2026-01', units: 3_000n, free: 3_000n }])
})

test('what came late is billed although its events have been dropped by the time that the next month is closed', async () => {
  const own = await freshDatabase()
  try {
    const { db } = own
    const priceId = await addPriced(db, 'small', { input: '0.15', output: '0.35' })
    const organizationId = await addOrganization(db, 'dropped', '2026-01-01T00:00:00Z')
    const served = (at: string, output: number) => use(db, { organizationId, model: 'small', priceId, at, output })
    const clock = handClock('2026-02-02T00:00:00Z')
    const marked = async () =>
      (await readBill(db, terms, organizationId, '2026-02' as Month)).bill.lines.map(({ lateFrom, units }) => ({ lateFrom, units }))
    await served('2026-01-10T00:00:00Z', 1_000)
    await closeMonths({ db, clock, log, terms })
    await served('2026-01-31T23:00:00Z', 2_000_000)
    await served('2026-03-01T00:00:00Z', 1_000)
    const expected = [{ lateFrom: '2026-01', units: 2_000_000n }]
    expect(await marked()).toEqual(expected)

    await computeTotals(db)
    await settle(db, '2026-03-01T00:00:00Z')
    clock.set('2026-03-03T00:00:00Z')
    expect(await dropPartitions(db, clock.now(), 1)).toEqual(['usage_event_2026_01'])
    expect(await marked()).toEqual(expected)
    clock.set('2026-03-04T00:00:00Z')
    await closeMonths({ db, clock, log, terms })
    expect((await readBill(db, terms, organizationId, '2026-02' as Month)).closedAt).toBe(clock.now())
    expect(await marked()).toEqual(expected)
    // And not once more.
    const next = await readBill(db, terms, organizationId, '2026-03' as Month)
    expect(next.bill.lines.map(({ lateFrom, units }) => ({ lateFrom, units }))).toEqual([{ lateFrom: null, units: 1_000n }])
  } finally {
    await own.drop()
  }
})

test.each([
  ['set back by hours after a month was closed', `due_at = now(), frozen_at = now()`, `now() - interval '3 hours'`],
  ['a year ahead while it was closed', `due_at = now(), frozen_at = now() + interval '1 year'`, 'now()'],
])('late events are billed in the next month although the clock of the database was %s', async (_what, closed, recorded) => {
  const own = await freshDatabase()
  try {
    const { db } = own
    const priceId = await addPriced(db, 'small', { input: '0.15', output: '0.35' })
    const organizationId = await addOrganization(db, 'clocks', '2026-01-01T00:00:00Z')
    await closeMonths({ db, clock: handClock('2026-02-02T00:00:00Z'), log, terms })
    await db.query('alter table bill disable trigger bill_stays_closed')
    await db.query(`update bill set ${closed}`)
    await use(db, { organizationId, model: 'small', priceId, at: '2026-01-31T23:00:00Z', output: 1_000 })
    await db.query(`update usage_event set recorded_at = ${recorded}`)
    const { bill: february } = await readBill(db, terms, organizationId, '2026-02' as Month)
    expect(february.lines.map(({ lateFrom, units }) => [lateFrom, units])).toEqual([['2026-01', 1_000n]])
  } finally {
    await own.drop()
  }
})

test('what comes years late is billed once, as long as the ledger takes it', async () => {
  const own = await freshDatabase()
  try {
    const { db } = own
    const priceId = await addPriced(db, 'small', { input: '0.15', output: '0.35' })
    const organizationId = await addOrganization(db, 'ages', '2024-01-01T00:00:00Z')
    const served = (at: string, output: number) => use(db, { organizationId, model: 'small', priceId, at, output })
    const linesOf = async (month: string) =>
      (await readBill(db, terms, organizationId, month as Month)).bill.lines.map(({ lateFrom, units }) => [lateFrom, units])
    const closeAt = (at: string) => closeMonths({ db, clock: handClock(at), log, terms })
    await served('2024-01-10T00:00:00Z', 1_000)
    await closeAt('2026-02-02T00:00:00Z')
    await served('2024-01-20T00:00:00Z', 2_000)
    await served('2024-03-20T00:00:00Z', 3_000)
    await served('2026-02-20T00:00:00Z', 4_000)
    const february = [
      [null, 4_000n],
      ['2024-01', 2_000n],
      ['2024-03', 3_000n],
    ]
    expect(await linesOf('2026-02')).toEqual(february)

    // The events of the first month are gone before that is on a bill that is closed, those of the other after it.
    await computeTotals(db)
    await settle(db, '2026-02-20T00:00:00Z')
    const drop = (months: number) => dropPartitions(db, Date.parse('2026-02-28T00:00:00Z') as Instant, months)
    expect(await drop(24)).toEqual(['usage_event_2024_01'])
    expect(await linesOf('2026-02')).toEqual(february)
    await closeAt('2026-03-02T00:00:00Z')
    expect(await linesOf('2026-02')).toEqual(february)
    expect(await linesOf('2026-03')).toEqual([])
    await served('2024-03-21T00:00:00Z', 5_000)
    await computeTotals(db)
    await settle(db, '2026-02-20T00:00:00Z')
    expect(await drop(12)).toContain('usage_event_2024_03')
    expect(await linesOf('2026-03')).toEqual([['2024-03', 5_000n]])
    await closeAt('2026-04-02T00:00:00Z')
    expect(await linesOf('2026-03')).toEqual([['2024-03', 5_000n]])
    expect(await linesOf('2026-04')).toEqual([])
  } finally {
    await own.drop()
  }
})

test.each([
  ['that another process has is left alone', '4 minutes', null],
  ['whose lease was written before the clock was set back is closed', '2 hours', '2026-01'],
])('a month %s', async (_what, ahead, closed) => {
  const own = await freshDatabase()
  try {
    const { db } = own
    const clock = handClock('2026-02-01T00:00:00Z')
    await addOrganization(db, 'leased', '2026-01-01T00:00:00Z')
    await openMonths(db, clock, terms)
    clock.set('2026-02-02T00:00:00Z')
    await db.query(`update bill set leased_by = gen_random_uuid(), leased_until = now() + $1::interval`, [ahead])
    await billRound({ db, clock, log, terms })
    const { rows } = await db.query<{ month: string }>('select month from bill where closed_at is not null')
    expect(rows[0]?.month ?? null).toBe(closed)
  } finally {
    await own.drop()
  }
})

test('a clock that is a year ahead for an hour closes no month, however often', async () => {
  const own = await freshDatabase()
  try {
    const { db } = own
    const priceId = await addPriced(db, 'small', { input: '0.15', output: '0.35' })
    const organizationId = await addOrganization(db, 'ahead', '2026-01-10T00:00:00Z')
    await use(db, { organizationId, model: 'small', priceId, at: '2026-02-03T00:00:00Z', output: 2_000_000 })
    const clock = handClock('2026-02-03T00:00:00Z')
    const roundOf = async (at: string) => {
      clock.set(at)
      await billRound({ db, clock, log, terms })
      const { rows } = await db.query<{ month: string; closed_at: Date | null }>('select month, closed_at from bill order by month')
      return rows.map(({ month, closed_at }) => `${month} ${closed_at === null ? 'open' : 'closed'}`)
    }
    expect(await roundOf('2026-02-01T00:00:00Z')).toEqual(['2026-01 open'])
    // Also what is over already: its invoice would be of next year.
    expect((await roundOf('2027-02-01T00:30:00Z')).every((month) => month.endsWith('open'))).toBe(true)
    expect(await roundOf('2026-02-01T00:01:00Z')).toEqual(['2026-01 open'])
    expect(await roundOf('2026-02-02T00:01:00Z')).toEqual(['2026-01 closed'])
    // Ahead twice, the second time later than what it wrote down the first time would be due.
    for (const [wrong, right] of [
      ['2027-02-03T00:00:00Z', '2026-02-03T00:01:00Z'],
      ['2027-02-05T00:00:00Z', '2026-02-03T00:02:00Z'],
    ] as const) {
      const seen = await roundOf(wrong)
      expect(seen.filter((month) => month.endsWith('closed'))).toEqual(['2026-01 closed'])
      expect(await roundOf(right)).toEqual(['2026-01 closed'])
    }
    // And again while the month ends: what is over stays, and is due by the clock that is right.
    await roundOf('2027-02-28T23:00:00Z')
    await use(db, { organizationId, model: 'small', priceId, at: '2026-02-28T23:30:00Z', output: 1_000_000 })
    expect(await roundOf('2026-03-01T00:00:00Z')).toEqual(['2026-01 closed', '2026-02 open'])
    expect(await roundOf('2026-03-02T00:00:00Z')).toEqual(['2026-01 closed', '2026-02 closed'])
    const closed = await readBill(db, terms, organizationId, '2026-02' as Month)
    expect(closed.bill.lines.map(({ units }) => units)).toEqual([3_000_000n])
  } finally {
    await own.drop()
  }
})

test.each([
  ['was away when a month was due closes it a day after it is back', ['04-10T00:00 ', '04-10T23:00 ', '04-11T00:00 01 02 03']],
  [
    'is there for an hour a week closes months, too',
    ['02-08T00:00 ', '02-15T00:00 01', '03-08T00:00 01', '03-15T00:00 01', '03-22T00:00 01 02'],
  ],
])('a house that %s', async (_what, rounds) => {
  const own = await freshDatabase()
  try {
    const { db } = own
    await addOrganization(db, 'away', '2026-01-10T00:00:00Z')
    for (const expected of ['02-01T00:00 ', ...rounds]) {
      const [at = ''] = expected.split(' ')
      await billRound({ db, clock: handClock(`2026-${at}:00Z`), log, terms })
      const { rows } = await db.query<{ month: string }>('select month from bill where closed_at is not null order by month')
      expect(`${at} ${rows.map(({ month }) => month.slice(5)).join(' ')}`).toBe(expected)
    }
  } finally {
    await own.drop()
  }
})

test('eight processes that close at once make one bill, one invoice and no gap in the numbers', async () => {
  const organizationIds = []
  for (const name of ['one', 'two', 'three', 'four', 'five']) {
    const organizationId = await addOrganization(database.db, name, '2026-02-10T00:00:00Z')
    await useExample(organizationId, '2026-02')
    organizationIds.push(organizationId)
  }
  const clock = handClock('2026-03-05T00:00:00Z')
  await Promise.all(Array.from({ length: 8 }, () => roundAt(clock)))
  await roundAt(clock)
  for (const organizationId of organizationIds) expect(await readInvoices(database.db, organizationId)).toHaveLength(1)
  const { rows } = await database.db.query<{ number: number }>('select number from invoice where number is not null order by number')
  const numbers = rows.map((row) => row.number)
  expect(numbers).toEqual(numbers.map((_, index) => 202_600_001 + index))
})

test('months are closed in their order, and one without use is closed without an invoice', async () => {
  const organizationId = await addOrganization(database.db, 'quiet', '2025-11-10T00:00:00Z')
  await useExample(organizationId, '2026-01')
  await roundAt(handClock('2026-02-02T00:00:00Z'))
  const { rows } = await database.db.query('select month from bill where organization_id = $1 and closed_at is not null order by month', [
    organizationId,
  ])
  expect(rows.map((row: { month: string }) => row.month)).toEqual(['2025-11', '2025-12', '2026-01'])
  expect((await readInvoices(database.db, organizationId)).map((invoice) => invoice.month)).toEqual(['2026-01'])
})

test('usage under a price that nobody knows keeps its month open and says so; it is never billed as nothing', async () => {
  const organizationId = await addOrganization(database.db, 'unpriced', '2026-02-10T00:00:00Z')
  const priceId = '01900000-0000-7000-8000-000000000000'
  await use(database.db, { organizationId, model: 'small', priceId, at: '2026-02-20T00:00:00Z', output: 5_000_000 })
  await roundAt(handClock('2026-03-03T00:00:00Z'))
  expect(await stateOf(organizationId, '2026-02')).toMatchObject({ closed_at: null, waits_for: expect.stringContaining(priceId) as string })
  expect((await bill(organizationId, '2026-02')).unpriced).toHaveLength(1)
})

test('cached input has a line where the model has a price for it, and is input where it has none', async () => {
  const organizationId = await addOrganization(database.db, 'caching', '2026-02-10T00:00:00Z')
  await use(database.db, {
    organizationId,
    model: 'cached',
    priceId: cached,
    at: '2026-02-20T00:00:00Z',
    input: 3_000,
    cachedInput: 2_000,
    output: 1_000,
  })
  await use(database.db, { organizationId, model: 'small', priceId: small, at: '2026-02-20T00:00:00Z', input: 3_000, cachedInput: 2_000 })
  expect((await bill(organizationId, '2026-02')).bill.lines.map((line) => [line.product, line.meter, line.units])).toEqual([
    ['cached', 'input_token', 1_000n],
    ['cached', 'input_cached_token', 2_000n],
    ['cached', 'output_token', 1_000n],
    ['small', 'input_token', 3_000n],
  ])
})

test('a new price begins at its instant: the month has a line for each, and what was used before keeps the old one', async () => {
  const organizationId = await addOrganization(database.db, 'dear', '2026-02-10T00:00:00Z')
  const { rows } = await database.db.query<{ id: string }>(
    `insert into model_price (id, model_id, starts_at, input, cached_input, output)
     select gen_random_uuid(), model_id, '2030-02-15T00:00:00Z', 150000, 150000, 700000 from model_price where id = $1 returning id`,
    [small],
  )
  await use(database.db, { organizationId, model: 'small', priceId: small, at: '2026-02-14T23:59:59Z', input: 1_000, output: 2_000 })
  await use(database.db, {
    organizationId,
    model: 'small',
    priceId: rows[0]?.id ?? '',
    at: '2026-02-15T00:00:00Z',
    input: 1_000,
    output: 2_000,
  })
  expect((await bill(organizationId, '2026-02')).bill.lines.map((line) => [line.meter, line.price, line.units])).toEqual([
    ['input_token', 150_000n, 2_000n],
    ['output_token', 700_000n, 2_000n],
    ['output_token', 350_000n, 2_000n],
  ])
})

test('61 minutes of speech in two projects cost a cent, and batches half', async () => {
  const organizationId = await addOrganization(database.db, 'speech', '2026-02-10T00:00:00Z')
  const projectId = await addProject(database.db, organizationId, 'second')
  await use(database.db, { organizationId, model: 'speech', priceId: speech, at: '2026-02-20T00:00:00Z', audioMs: 60 * 60_000 })
  await use(database.db, { organizationId, projectId, model: 'speech', priceId: speech, at: '2026-02-20T00:00:00Z', audioMs: 60_000 })
  expect(await owed(organizationId, '2026-02')).toBe('0.01')
  const batches = await addOrganization(database.db, 'batches', '2026-02-10T00:00:00Z')
  await use(database.db, {
    organizationId: batches,
    model: 'llama',
    priceId: llama,
    mode: 'batch',
    at: '2026-02-20T00:00:00Z',
    output: 3_000_000,
  })
  expect(await owed(batches, '2026-02')).toBe('0.90')
})

test('a page costs a thousandth of the price, the first one too; batches half', async () => {
  const organizationId = await addOrganization(database.db, 'readers', '2026-02-10T00:00:00Z')
  const projectId = await addProject(database.db, organizationId, 'second')
  const document = { organizationId, model: 'reads', priceId: reads, at: '2026-02-20T00:00:00Z' }
  await use(database.db, { ...document, pages: 1_000 })
  await use(database.db, { ...document, pages: 1 })
  await use(database.db, { ...document, projectId, pages: 2_000, mode: 'batch' })
  expect((await bill(organizationId, '2026-02')).bill.lines).toMatchObject([
    { meter: 'page', mode: 'realtime', units: 1_001n, freeUnits: 0n, billedUnits: 1_001n, exact: 1_501_500_000_000n, cents: 151n },
    { meter: 'page', mode: 'batch', units: 2_000n, freeUnits: 0n, billedUnits: 2_000n, exact: 1_500_000_000_000n, cents: 150n },
  ])
  expect(await owed(organizationId, '2026-02')).toBe('3.01')
})

test('a free pool that is given once is not given again next month, whether the first month is closed or not', async () => {
  const once: Terms = { ...terms, freePeriod: 'lifetime' }
  const organizationId = await addOrganization(database.db, 'lifetime', '2026-01-10T00:00:00Z')
  for (const month of ['2026-01', '2026-02', '2026-03']) {
    await use(database.db, { organizationId, model: 'llama', priceId: llama, at: `${month}-20T00:00:00Z`, output: 600_000 })
  }
  const free = async (month: string) => (await bill(organizationId, month, once)).bill.freeUnits.tokens
  await roundAt(handClock('2026-02-01T00:00:00Z'), once)
  expect([await free('2026-01'), await free('2026-02')]).toEqual([600_000n, 400_000n])
  await roundAt(handClock('2026-03-02T00:00:00Z'), once)
  expect([await free('2026-02'), await free('2026-03')]).toEqual([400_000n, 0n])
})

test('what came late takes of a free pool that is given once, also for the months behind the one that it is billed in', async () => {
  const once: Terms = { ...terms, freePeriod: 'lifetime' }
  const organizationId = await addOrganization(database.db, 'lifetime late', '2026-01-10T00:00:00Z')
  const served = (at: string) => use(database.db, { organizationId, model: 'llama', priceId: llama, at, output: 400_000 })
  const free = async (month: string) => (await bill(organizationId, month, once)).bill.freeUnits.tokens
  await served('2026-01-20T00:00:00Z')
  await roundAt(handClock('2026-02-02T00:00:00Z'), once)
  await served('2026-01-21T00:00:00Z')
  await served('2026-02-20T00:00:00Z')
  await served('2026-03-20T00:00:00Z')
  await openMonths(database.db, handClock('2026-03-01T00:00:00Z'), once)
  expect([await free('2026-02'), await free('2026-03')]).toEqual([600_000n, 0n])
})

test('an invoice is paid once; what was wrong is taken back by credit notes, never by more than it was', async () => {
  const organizationId = await addOrganization(database.db, 'credit', '2026-01-10T00:00:00Z')
  await useExample(organizationId, '2026-01')
  const clock = handClock('2026-02-03T00:00:00Z')
  await roundAt(clock)
  const [invoice] = await readInvoices(database.db, organizationId)
  if (invoice === undefined) throw new Error('no invoice')
  const ask = { organizationId, id: invoice.id, actor: 'test' } as const
  const credit = (cents: bigint) => creditInvoice(database.db, terms, clock, { ...ask, cents: cents as Cents, reason: 'an outage' })

  expect(await credit(0n)).toEqual({ ok: false, refusal: { code: 'credit_too_large', left: 213n } })
  expect(await credit(101n)).toMatchObject({ ok: true })
  expect(await credit(113n)).toEqual({ ok: false, refusal: { code: 'credit_too_large', left: 112n } })
  expect(await voidInvoice(database.db, terms, clock, { ...ask, reason: 'all of it' })).toMatchObject({ ok: true })

  const all = await readInvoices(database.db, organizationId)
  expect(all.map(({ type, state, untaxedCents }) => [type, state, untaxedCents]).toReversed()).toEqual([
    ['periodic', 'void', 213n],
    ['credit_note', 'issued', -101n],
    ['credit_note', 'issued', -112n],
  ])
  // Not a cent is left over by rounding.
  expect(all.reduce((sum, each) => sum + each.taxedCents, 0n)).toBe(0n)
  expect(new Set(all.map((each) => each.number)).size).toBe(3)
  expect(await payInvoice(database.db, clock, ask)).toEqual({ ok: false, refusal: { code: 'move_refused', from: 'void', to: 'paid' } })
  expect(await credit(1n)).toMatchObject({ ok: false })

  const other = { ...ask, organizationId: await addOrganization(database.db, 'stranger', '2026-01-10T00:00:00Z') }
  expect(await payInvoice(database.db, clock, other)).toEqual({ ok: false, refusal: { code: 'invoice_unknown' } })
})

test('a paid invoice can no longer be voided, but credited', async () => {
  const organizationId = await addOrganization(database.db, 'paid', '2026-01-10T00:00:00Z')
  await useExample(organizationId, '2026-01')
  const clock = handClock('2026-02-03T00:00:00Z')
  await roundAt(clock)
  const [invoice] = await readInvoices(database.db, organizationId)
  if (invoice === undefined) throw new Error('no invoice')
  const ask = { organizationId, id: invoice.id, actor: 'test' } as const
  expect(await payInvoice(database.db, clock, ask)).toMatchObject({ ok: true })
  expect(await payInvoice(database.db, clock, ask)).toMatchObject({ ok: false })
  expect(await voidInvoice(database.db, terms, clock, { ...ask, reason: '' })).toMatchObject({
    ok: false,
    refusal: { code: 'move_refused' },
  })
  expect(await creditInvoice(database.db, terms, clock, { ...ask, cents: 213n as Cents, reason: 'goodwill' })).toMatchObject({ ok: true })
})

test('whatever comes when, each unit is on exactly one bill in the end', async () => {
  const seed = randomInt(1_000_000)
  let state = seed
  // A small generator with a printed seed (Numerical Recipes' constants), so that a failure can be played again.
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const organizationId = await addOrganization(database.db, 'random', '2026-07-01T00:00:00Z')
  const second = await addProject(database.db, organizationId, 'second')
  const months = ['2026-07', '2026-08', '2026-09', '2026-10', '2026-11', '2026-12']
  const served = new Map<string, bigint>()
  for (const [now, month] of months.entries()) {
    for (let count = 0; count < 12; count += 1) {
      const used = months[random(now + 1)] ?? month
      const [model, priceId] = random(2) === 0 ? ['llama', llama] : ['small', small]
      const projectId = random(2) === 0 ? organizationId : second
      const output = random(400_000)
      const day = String(1 + random(28)).padStart(2, '0')
      await use(database.db, {
        organizationId,
        projectId: projectId as typeof second,
        model,
        priceId,
        at: `${used}-${day}T00:00:00Z`,
        output,
      })
      const key = `${projectId} ${model}`
      served.set(key, (served.get(key) ?? 0n) + BigInt(output))
    }
    const [year = 0, number = 0] = month.split('-').map(Number)
    const clock = handClock(new Date(Date.UTC(year, number, 2)).toISOString())
    await Promise.all([roundAt(clock), roundAt(clock)])
  }
  const billed = new Map<string, bigint>()
  for (const month of months) {
    const frozen = await bill(organizationId, month)
    expect(frozen.closedAt, `seed ${seed}`).not.toBeNull()
    for (const line of frozen.bill.projects.flatMap((project) => project.lines)) {
      const key = `${line.projectId} ${line.product}`
      billed.set(key, (billed.get(key) ?? 0n) + line.units)
    }
  }
  expect(billed, `seed ${seed}`).toEqual(served)
  const invoices = await readInvoices(database.db, organizationId)
  const owedNow = await Promise.all(months.map(async (month) => (await bill(organizationId, month)).bill.cents))
  expect(invoices.map((invoice) => invoice.untaxedCents).toReversed()).toEqual(owedNow)
  // A number begins with the year in which it was taken.
  expect(invoices.map((invoice) => String(invoice.number).slice(0, 4)).toReversed()).toEqual([
    '2026',
    '2026',
    '2026',
    '2026',
    '2026',
    '2027',
  ])
})
