import { randomUUID } from 'node:crypto'
import { freshDatabase } from '@parvis/testkit/database'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Answer, type Ask, grantOf, HELD_MS, type Ledger } from './ledger.ts'
import { openPostgresLedger } from './postgres-ledger.ts'

let database: Awaited<ReturnType<typeof freshDatabase>>
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

let keys = 0
const key = (): string => `test ${(keys += 1)}`
const bucket = (given: Partial<Ask> = {}): Ask => ({
  kind: 'minute',
  key: key(),
  capacity: 1_000,
  refillPerMs: 1e-9,
  need: 0,
  least: 0,
  back: 0,
  used: 0,
  held: 0,
  ...given,
})
const pot = (given: Partial<Ask> = {}): Ask => ({ ...bucket(), kind: 'budget', refillPerMs: 0, ...given })
const one = async (ledger: Ledger, ask: Ask): Promise<Answer> => {
  const [answer] = await ledger.ask([ask])
  if (answer === undefined) throw new Error('no answer')
  return answer
}

test('the database grants what the rule grants', async () => {
  const ledger = openPostgresLedger(database.db)
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        capacity: fc.nat({ max: 5_000 }),
        least: fc.option(fc.nat({ max: 900 })),
        more: fc.nat({ max: 3_000 }),
        taken: fc.nat({ max: 5_000 }),
        refills: fc.boolean(),
      }),
      async ({ capacity, least, more, taken, refills }) => {
        const ask: Ask = { ...(refills && capacity > 0 ? bucket() : pot()), capacity, least, need: (least ?? 0) + more }
        const asked: Ask = refills && capacity > 0 ? { ...ask, back: -taken } : { ...ask, used: taken }
        const { granted, left } = await one(ledger, asked)
        const rule = grantOf(asked, capacity - taken)
        expect(granted).toBeCloseTo(rule, 3)
        expect(left).toBeCloseTo(capacity - taken - rule, 3)
      },
    ),
    { numRuns: 200 },
  )
})

test('a bucket refills by the clock of the database, never above its capacity, and owes what it was overdrawn', async () => {
  const ledger = openPostgresLedger(database.db)
  const asked = bucket({ capacity: 100, refillPerMs: 1, least: 100, need: 100 })
  expect((await one(ledger, asked)).granted).toBe(100)
  await database.db.query(`update quota_bucket set at = at - interval '50 milliseconds' where key = $1`, [asked.key])
  const half = await one(ledger, { ...asked, least: null })
  expect(half.left).toBeGreaterThanOrEqual(50)
  expect(half.left).toBeLessThanOrEqual(100)
  await database.db.query(`update quota_bucket set at = at - interval '1 hour' where key = $1`, [asked.key])
  expect((await one(ledger, { ...asked, least: null })).left).toBe(100)
  // Given back above what it can hold is gone; owed is owed.
  expect((await one(ledger, { ...asked, least: null, back: 5 })).left).toBe(100)
  const owing = await one(ledger, { ...asked, least: null, back: -300 })
  expect(owing.left).toBeGreaterThanOrEqual(-200)
  expect(owing.left).toBeLessThan(-100)
})

test('a bucket that lies in the future, since the clock was set back, counts from now', async () => {
  const ledger = openPostgresLedger(database.db)
  const asked = bucket({ refillPerMs: 1, least: 1, need: 1 })
  await one(ledger, asked)
  await database.db.query(`update quota_bucket set level = 0, at = now() + interval '2 hours' where key = $1`, [asked.key])
  expect(await one(ledger, asked)).toEqual({ granted: 0, left: 0 })
  await until('it refills', async () => (await one(ledger, asked)).granted > 0)
})

test('what a dead gateway holds, by a clock that was set back, is free when a lease that begins now has ended', async () => {
  const [dead, living] = [openPostgresLedger(database.db), openPostgresLedger(database.db)]
  const asked = pot({ capacity: 10, least: 10, need: 10 })
  expect((await one(dead, asked)).granted).toBe(10)
  await database.db.query(`update quota_part set until = now() + interval '2 hours' where key = $1`, [asked.key])
  expect((await one(living, asked)).granted).toBe(0)
  const { rows } = await database.db.query<{ ends: boolean }>(
    `select bool_and(until < now() + $2 * interval '1 millisecond') as ends from quota_part where key = $1`,
    [asked.key, HELD_MS],
  )
  expect(rows).toEqual([{ ends: true }])
  await database.db.query(`update quota_part set until = until - $2 * interval '1 millisecond' where key = $1`, [asked.key, HELD_MS])
  expect((await one(living, asked)).granted).toBe(10)
})

test('what a gateway holds is nobody else’s; once its lease has ended it is, and what it has used stays used', async () => {
  const [mine, other] = [openPostgresLedger(database.db, randomUUID()), openPostgresLedger(database.db, randomUUID())]
  const asked = pot({ capacity: 10, least: 10, need: 10 })
  expect((await one(mine, asked)).granted).toBe(10)
  await one(mine, { ...asked, least: null, used: 4, held: 6 })
  expect((await one(other, { ...asked, least: 1, need: 1 })).granted).toBe(0)
  await database.db.query(`update quota_part set until = until - $2 * interval '1 millisecond' where key = $1`, [asked.key, HELD_MS + 1])
  expect((await one(other, { ...asked, least: 1, need: 1 })).left).toBe(5)
  expect((await one(other, { ...asked, least: 6, need: 6, held: 1 })).granted).toBe(0)
})

test('saying the same twice changes nothing', async () => {
  const ledger = openPostgresLedger(database.db)
  const told = pot({ capacity: 10, least: null, used: 3, held: 2 })
  expect((await one(ledger, told)).left).toBe(5)
  expect((await one(ledger, told)).left).toBe(5)
})

test('gateways are counted while they live', async () => {
  await database.db.query('delete from quota_gateway')
  const [mine, other] = [openPostgresLedger(database.db), openPostgresLedger(database.db)]
  expect(await mine.beat()).toBe(1)
  expect(await other.beat()).toBe(2)
  for (const from of [`now() - interval '1 second'`, `now() + interval '2 hours'`]) {
    await database.db.query(`update quota_gateway set until = ${from}`)
    expect(await mine.beat()).toBe(1)
    expect(await other.beat()).toBe(2)
  }
})

test('many asks of several gateways at once never wait for each other in a circle, and hand out no more than there is', async () => {
  const ledgers = Array.from({ length: 4 }, () => openPostgresLedger(database.db))
  const buckets = Array.from({ length: 6 }, () => bucket({ capacity: 100 }))
  const granted = new Map<string, number>()
  await Promise.all(
    ledgers.map(async (ledger, index) => {
      for (let round = 0; round < 30; round += 1) {
        const asks = buckets.map((ask) => ({ ...ask, least: 1, need: 1 + index }))
        const answers = await ledger.ask(index % 2 === 0 ? asks : asks.toReversed())
        for (const [at, answer] of answers.entries()) {
          const { key: name } = (index % 2 === 0 ? asks : asks.toReversed())[at] ?? asks[0]!
          granted.set(name, (granted.get(name) ?? 0) + answer.granted)
        }
      }
    }),
  )
  for (const ask of buckets) expect(granted.get(ask.key)).toBe(100)
})
