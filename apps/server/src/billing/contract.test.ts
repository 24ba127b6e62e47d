import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addOrganization, addProject, closeMonths, handClock } from '../../test/billing-usage.ts'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { ModelType } from '../catalog/model.ts'
import { addModel, addPrice, priceAt, readModels } from '../catalog/models.ts'
import type { Instant } from '../kit/clock.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import type { UnitPrice } from '../kit/money.ts'
import type { RecordedEvent } from '../usage/event.ts'
import { insertEvents } from '../usage/ship.ts'
import { computeTotals } from '../usage/totals.ts'
import { readBill } from './bill.ts'
import { toConsumptions } from './consumption.ts'
import { readInvoices } from './invoice.ts'
import { type Month, monthOf } from './month.ts'
import type { Terms } from './terms.ts'

// From the events of a few months, as gateways write them down, to the invoices; beside it the algorithm of serverless-platform.md 3.3 to 3.5 once more,
// written from its text and on the events themselves.

const terms: Terms = {
  // Small and odd, so that most months use them up in the middle of a line.
  freePools: { tokens: 300_001n, audio: 60_000n },
  freePeriod: 'monthly',
  region: 'fr-par',
  taxName: 'VAT',
  taxBasisPoints: 2_050,
  sellerName: 'Parvis',
  graceHours: 24,
  dueDays: 10,
}

const MONTHS = ['2026-04', '2026-05', '2026-06'] as const
const at = (text: string): number => Date.parse(text)
const CHANGE = at('2026-05-15T12:00:00Z')
const EDGES = [at('2026-05-01T00:00:00Z'), CHANGE, at('2026-06-01T00:00:00Z')].flatMap((edge) => [edge - 1, edge, edge + 1])

type Prices = { readonly input: bigint; readonly cached: bigint; readonly output: bigint }
type Sold = { readonly type: ModelType; readonly first: Prices; readonly second: Prices }
const MODELS: Record<string, Sold> = {
  // Cached input has a price of its own from the change on; output stays as it was.
  talks: {
    type: 'chat',
    first: { input: 900_000n, cached: 900_000n, output: 900_000n },
    second: { input: 600_001n, cached: 120_000n, output: 900_000n },
  },
  small: {
    type: 'chat',
    first: { input: 150_000n, cached: 150_000n, output: 350_000n },
    second: { input: 150_000n, cached: 150_000n, output: 1n },
  },
  vectors: { type: 'embedding', first: { input: 100_000n, cached: 100_000n, output: 0n }, second: { input: 0n, cached: 0n, output: 0n } },
  // A second of it is seen in the cents.
  hears: {
    type: 'audio',
    first: { input: 3_000_000n, cached: 3_000_000n, output: 0n },
    second: { input: 6_000_001n, cached: 6_000_001n, output: 0n },
  },
  reads: {
    type: 'ocr',
    first: { input: 1_500_000n, cached: 1_500_000n, output: 0n },
    second: { input: 3_999_999n, cached: 3_999_999n, output: 0n },
  },
}

const used = fc.record({
  model: fc.constantFrom(...Object.keys(MODELS)),
  project: fc.nat(2),
  mode: fc.constantFrom('realtime' as const, 'realtime' as const, 'batch' as const),
  charged: fc.integer({ min: 0, max: 9 }).map((of) => of > 0),
  at: fc.oneof(fc.constantFrom(...EDGES), fc.integer({ min: at('2026-04-01T00:00:00Z'), max: at('2026-07-01T00:00:00Z') - 1 })),
  input: fc.oneof(fc.nat(2_000), fc.nat(900_000)),
  cachedPercent: fc.nat(100),
  output: fc.oneof(fc.nat(2_000), fc.nat(600_000)),
  audioMs: fc.oneof(fc.nat(3_000), fc.nat(2_400_000)),
  pages: fc.nat(400),
})
type Used = typeof used extends fc.Arbitrary<infer T> ? T : never

const cachedOf = ({ input, cachedPercent }: Used): number => Math.floor((input * cachedPercent) / 100)

// The algorithm.

type Line = {
  readonly pool: 'tokens' | 'audio' | 'none'
  readonly name: string
  readonly type: string
  readonly price: bigint
  readonly half: boolean
  quantity: bigint
}
const ceilDiv = (a: bigint, b: bigint): bigint => (a + b - 1n) / b
const CENT = 10_000n // in micro-euros

/** Tokens by whole thousands at a price per million; seconds at a price per minute; pages at a price per thousand. */
const centsOf = (line: Line, quantity: bigint): bigint => {
  const half = line.half ? 2n : 1n
  if (line.pool === 'tokens') return ceilDiv(ceilDiv(quantity, 1_000n) * line.price, half * 1_000n * CENT)
  return ceilDiv(quantity * line.price, half * (line.pool === 'audio' ? 60n : 1_000n) * CENT)
}

const linesOf = (events: readonly Used[]): Line[] => {
  const lines = new Map<string, Line>()
  const add = (event: Used, pool: Line['pool'], type: string, price: bigint, quantity: number): void => {
    const name = `${event.model} ${event.mode} ${type} ${price}`
    const line = lines.get(name) ?? { pool, name, type, price, half: event.mode === 'batch', quantity: 0n }
    line.quantity += BigInt(quantity)
    lines.set(name, line)
  }
  for (const event of events) {
    if (!event.charged) continue
    const sold = MODELS[event.model] as Sold
    const price = event.at < CHANGE ? sold.first : sold.second
    if (sold.type === 'audio') add(event, 'audio', 'input_duration', price.input, Math.ceil(event.audioMs / 1_000))
    else if (sold.type === 'ocr') add(event, 'none', 'page', price.input, event.pages)
    else {
      const cached = cachedOf(event)
      add(event, 'tokens', 'input_token', price.input, event.input - cached)
      add(event, 'tokens', price.cached === price.input ? 'input_token' : 'input_cached_token', price.cached, cached)
      if (sold.type === 'chat') add(event, 'tokens', 'output_token', price.output, event.output)
    }
  }
  return [...lines.values()].filter(({ quantity }) => quantity > 0n)
}

const unitPrice = ({ price, half }: Line): bigint => (half ? price : 2n * price)
const smaller = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

/** Steps 1 and 2 of 3.3 for a pool: which units of which line are free. */
const freeIn = (lines: readonly Line[], free: bigint): Map<string, bigint> => {
  const order = lines.toSorted((a, b) => {
    if (unitPrice(a) !== unitPrice(b)) return unitPrice(a) > unitPrice(b) ? -1 : 1
    if (a.type !== b.type) return a.type === 'output_token' ? -1 : b.type === 'output_token' ? 1 : smaller(a.type, b.type)
    return a.quantity === b.quantity ? smaller(a.name, b.name) : a.quantity > b.quantity ? -1 : 1
  })
  let left = free
  return new Map(
    order.map((line) => {
      const taken = line.quantity < left ? line.quantity : left
      left -= taken
      return [line.name, taken]
    }),
  )
}

/** 3.4 for a pool: what each project is spared. */
const sharesOf = (deducted: bigint, gross: readonly bigint[]): bigint[] => {
  const sum = gross.reduce((total, each) => total + each, 0n)
  if (sum === 0n) return gross.map(() => 0n)
  const shares = gross.map((each) => (deducted * each) / sum)
  let left = deducted - shares.reduce((total, each) => total + each, 0n)
  const byRemainder = gross
    .map((_, index) => index)
    .toSorted((a, b) => {
      const [one, other] = [(deducted * (gross[a] ?? 0n)) % sum, (deducted * (gross[b] ?? 0n)) % sum]
      return one === other ? a - b : one > other ? -1 : 1
    })
  for (const index of byRemainder) {
    if (left === 0n) break
    shares[index] = (shares[index] ?? 0n) + 1n
    left -= 1n
  }
  return shares
}

const sum = (amounts: readonly bigint[]): bigint => amounts.reduce((total, each) => total + each, 0n)

/** What each project owes of a month, the projects in the order of their ids. */
const owedBy = (events: readonly Used[], places: readonly number[]): bigint[] => {
  const own = places.map((project) => linesOf(events.filter((event) => event.project === project)))
  const owed = own.map((lines) => sum(lines.map((line) => centsOf(line, line.quantity))))
  for (const [pool, free] of [['tokens', 300_001n] as const, ['audio', 60n] as const]) {
    const lines = linesOf(events).filter((line) => line.pool === pool)
    const gross = own.map((each) => sum(each.filter((line) => line.pool === pool).map((line) => centsOf(line, line.quantity))))
    const given = freeIn(lines, free)
    const isAllFree = lines.every((line) => given.get(line.name) === line.quantity)
    const deducted = sum(lines.map((line) => centsOf(line, line.quantity) - centsOf(line, line.quantity - (given.get(line.name) ?? 0n))))
    for (const [index, share] of (isAllFree ? gross : sharesOf(deducted, gross)).entries()) owed[index] = (owed[index] ?? 0n) - share
  }
  return owed
}

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
  const clock = handClock('2026-01-01T00:00:00Z')
  const toPrice = ({ input, cached, output }: Prices) => ({
    input: input as UnitPrice,
    cachedInput: cached as UnitPrice,
    output: output as UnitPrice,
  })
  for (const [name, { type, first, second }] of Object.entries(MODELS)) {
    const maxOutputTokens = type === 'chat' ? 1_024 : null
    await addModel(database.db, clock, 'test', {
      name,
      ownedBy: 'test',
      type,
      contextTokens: 4_096,
      maxOutputTokens,
      price: toPrice(first),
    })
    await addPrice(database.db, clock, 'test', name, CHANGE as Instant, toPrice(second))
  }
})
afterAll(() => database?.drop())

const record = async (events: readonly RecordedEvent[]): Promise<void> => {
  const refused: unknown[] = []
  await insertEvents(
    database.db,
    events.map((event) => JSON.stringify(event)),
    async (_payload, error) => void refused.push(error),
  )
  expect(refused).toEqual([])
}

test('what is served in a month costs what the contract says, to the cent, for each project and on the invoice', async () => {
  const models = new Map((await readModels(database.db)).map((model) => [model.name, model]))
  await fc.assert(
    fc.asyncProperty(fc.array(used, { minLength: 1, maxLength: 40 }), fc.boolean(), async (events, isAddedUp) => {
      const organizationId = await addOrganization(database.db, 'served', '2026-04-01T00:00:00Z')
      const projects = [organizationId as string as ProjectId]
      for (const name of ['second', 'third']) projects.push(await addProject(database.db, organizationId, name))
      await record(
        events.map((event) => {
          const model = models.get(event.model)
          const type = model?.type
          const isText = type !== 'audio' && type !== 'ocr'
          return usageEventOf({
            organizationId,
            projectId: projects[event.project] as ProjectId,
            model: event.model,
            priceId: priceAt(model?.prices ?? [], event.at as Instant).id,
            mode: event.mode,
            charged: event.charged,
            acceptedAt: event.at as Instant,
            input: isText ? event.input : 0,
            cachedInput: isText ? cachedOf(event) : 0,
            output: type === 'chat' ? event.output : 0,
            audioMs: type === 'audio' ? event.audioMs : 0,
            pages: type === 'ocr' ? event.pages : 0,
          })
        }),
      )
      if (isAddedUp) {
        await computeTotals(database.db)
        await database.db.query('update usage_total_state set settled_before = clock_timestamp()')
      }
      await expectContract(organizationId, projects, events)
    }),
    { numRuns: 30 },
  )
})

const expectContract = async (organizationId: OrganizationId, projects: readonly ProjectId[], events: readonly Used[]): Promise<void> => {
  const places = [0, 1, 2].toSorted((a, b) => smaller(projects[a] ?? '', projects[b] ?? ''))
  const of = (month: Month) => events.filter((event) => monthOf(event.at as Instant) === month)
  const expected = MONTHS.map((month) => owedBy(of(month as Month), places))
  const bills = () => Promise.all(MONTHS.map((month) => readBill(database.db, terms, organizationId, month as Month)))
  const provisional = await bills()
  const owed = ({ bill }: (typeof provisional)[number]) =>
    places.map((place) => bill.projects.find(({ projectId }) => projectId === projects[place])?.cents ?? 0n)
  expect(provisional.map(owed)).toEqual(expected)

  for (const month of ['2026-05', '2026-06', '2026-07']) {
    await closeMonths({ db: database.db, clock: handClock(`${month}-02T00:00:00Z`), log: openLog('silent'), terms })
  }
  const closed = await bills()
  expect(closed.map(({ bill }) => bill)).toEqual(provisional.map(({ bill }) => bill))
  expect(closed.every(({ closedAt }) => closedAt !== null)).toBe(true)
  const invoices = await readInvoices(database.db, organizationId)
  const invoiced = MONTHS.map((month) => invoices.find((invoice) => invoice.month === month))
  expect(invoiced.map((invoice) => invoice?.untaxedCents ?? 0n)).toEqual(expected.map(sum))
  // Half a cent of tax goes up.
  expect(invoiced.map((invoice) => invoice?.taxCents ?? 0n)).toEqual(expected.map((cents) => (sum(cents) * 2_050n + 5_000n) / 10_000n))
  for (const month of closed) {
    const nanos = toConsumptions(month, 'fr-par').map(({ value }) => BigInt(value.units) * 1_000_000_000n + BigInt(value.nanos))
    expect(sum(nanos)).toBe(month.bill.cents * 10_000_000n)
  }
}
