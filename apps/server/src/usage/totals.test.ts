import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { Instant } from '../kit/clock.ts'
import { transaction } from '../kit/db.ts'
import { type AccessKey, newId, type OrganizationId, type PriceId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { isCharged, type RecordedEvent } from './event.ts'
import type { Kind } from './kinds.ts'
import { insertEvents } from './ship.ts'
import { computeTotals, lateEvents, mindClock, readSums, readTotals } from './totals.ts'

const HOUR_MS = 3_600_000
const START = Date.UTC(2026, 9, 31, 22) as Instant // two hours before a month ends
const END = (START + 6 * HOUR_MS) as Instant
const at = (ms: number): Instant => (START + ms) as Instant

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())
beforeEach(async () => {
  await database.db.query('truncate usage_event, usage_total')
  await database.db.query(`update usage_total_state set settled_before = '-infinity', kept_from = '-infinity'`)
})

const record = (events: readonly RecordedEvent[]) =>
  insertEvents(
    database.db,
    events.map((event) => JSON.stringify(event)),
    async (payload, error) => {
      throw new Error(payload, { cause: error })
    },
  )

const [organizationId, otherOrganizationId] = [newId(START) as OrganizationId, newId(START) as OrganizationId]
const projects = [newId(START) as ProjectId, newId(START) as ProjectId]
const prices = [newId(START) as PriceId, newId(START) as PriceId]
const principals = [newId(START) as PrincipalId, newId(START) as PrincipalId]
const keys = ['SCWAAAAAAAAAAAAAAAAA', 'SCWBBBBBBBBBBBBBBBBB'] as AccessKey[]

const anEvent: fc.Arbitrary<RecordedEvent> = fc
  .record({
    own: fc.boolean(),
    project: fc.constantFrom(...projects),
    price: fc.constantFrom(...prices),
    principal: fc.constantFrom(...principals),
    key: fc.constantFrom(...keys),
    model: fc.constantFrom('a', 'b'),
    mode: fc.constantFrom('realtime' as const, 'batch' as const),
    input: fc.nat(10_000),
    cached: fc.nat(10_000),
    output: fc.nat(10_000),
    audioMs: fc.constantFrom(0, 0, 1, 60_001, 61_000),
    pages: fc.constantFrom(0, 0, 1, 12),
    ended: fc.constantFrom('complete', 'length', 'budget', 'client_left', 'engine_failed', 'timed_out', 'lost'),
    counted: fc.constantFrom('engine', 'delivered', 'none'),
    // On hours, on both sides of them, and anywhere.
    ms: fc.oneof(fc.constantFrom(0, HOUR_MS - 1, HOUR_MS, 2 * HOUR_MS - 1, 2 * HOUR_MS, 6 * HOUR_MS - 1), fc.nat(6 * HOUR_MS - 1)),
  })
  .map((drawn) => {
    const event = usageEventOf({
      organizationId: drawn.own ? organizationId : otherOrganizationId,
      projectId: drawn.project,
      priceId: drawn.price,
      principalId: drawn.principal,
      accessKey: drawn.key,
      model: drawn.model,
      mode: drawn.mode,
      input: drawn.input,
      cachedInput: Math.min(drawn.cached, drawn.input),
      output: drawn.output,
      audioMs: drawn.audioMs,
      pages: drawn.pages,
      ended: drawn.ended,
      counted: drawn.counted,
      acceptedAt: at(drawn.ms),
    })
    return { ...event, charged: isCharged(event, { chargeFailed: false }) }
  })

/** The sum, by hand, in another way than SQL does it. */
const addUp = (events: readonly RecordedEvent[]) => {
  const sums = new Map<string, { units: bigint; events: bigint }>()
  for (const event of new Map(events.map((each) => [each.id, each])).values()) {
    if (event.organizationId !== organizationId || event.counted === 'none') continue
    if (!['complete', 'length', 'budget', 'client_left'].includes(event.ended)) continue
    const units: Record<Kind, number> = {
      input_tokens: event.input - event.cachedInput,
      cached_input_tokens: event.cachedInput,
      output_tokens: event.output,
      // A begun second of each file is a whole one.
      audio_milliseconds: Math.ceil(event.audioMs / 1000) * 1000,
      pages: event.pages,
    }
    for (const [kind, amount] of Object.entries(units)) {
      if (amount === 0) continue
      const hour = event.acceptedAt - (event.acceptedAt % HOUR_MS)
      const name = [hour, event.projectId, event.principalId, event.accessKey, event.model, kind, event.mode, event.priceId].join(' ')
      const sum = sums.get(name) ?? { units: 0n, events: 0n }
      sums.set(name, { units: sum.units + BigInt(amount), events: sum.events + 1n })
    }
  }
  return sums
}

const readAll = async () => {
  const totals = await readTotals(database.db, { organizationId, from: START, to: END })
  return new Map(
    totals.map((total) => [
      [total.hour, total.projectId, total.principalId, total.accessKey, total.model, total.kind, total.mode, total.priceId].join(' '),
      { units: total.units, events: total.events },
    ]),
  )
}

const settle = () => database.db.query(`update usage_total_state set settled_before = clock_timestamp()`)

test('totals are the sums of the events, whatever their order, however often they are shipped and computed', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(anEvent, { maxLength: 60 }),
      fc.array(fc.nat(59), { maxLength: 8 }),
      fc.infiniteStream(fc.nat(3)),
      async (events, again, steps) => {
        await database.db.query('truncate usage_event, usage_total')
        await database.db.query(`update usage_total_state set settled_before = '-infinity'`)
        const arrivals = [...events, ...again.flatMap((index) => events[index] ?? [])]
        const seen: RecordedEvent[] = []
        while (arrivals.length > 0) {
          const some = arrivals.splice(0, 1 + (steps.next().value ?? 0) * 7)
          await record(some)
          seen.push(...some)
          const step = steps.next().value
          if (step === 0) await computeTotals(database.db)
          if (step === 1) {
            await computeTotals(database.db)
            // As when a long time passes: from here on the hours are read from the totals.
            await settle()
          }
          expect(await readAll()).toEqual(addUp(seen))
        }
        await computeTotals(database.db)
        await computeTotals(database.db)
        await settle()
        expect(await readAll()).toEqual(addUp(events))
      },
    ),
    { numRuns: 25 },
  )
})

test('an hour begins on its first millisecond and a month in UTC, to the event', async () => {
  const monthEnd = Date.UTC(2026, 10, 1) as Instant
  const of = (acceptedAt: number, input: number) =>
    usageEventOf({ organizationId, acceptedAt: acceptedAt as Instant, input, cachedInput: 0, output: 0 })
  await record([of(monthEnd - 1, 1), of(monthEnd, 10), of(monthEnd + HOUR_MS - 1, 100), of(monthEnd + HOUR_MS, 1_000)])
  for (const compute of [false, true]) {
    if (compute) {
      await computeTotals(database.db)
      await settle()
    }
    const sum = async (from: number, to: number) =>
      (await readSums(database.db, { organizationId, from: from as Instant, to: to as Instant })).reduce(
        (all, { units }) => all + units,
        0n,
      )
    expect(await sum(START, monthEnd)).toBe(1n)
    expect(await sum(monthEnd, END)).toBe(1_110n)
    expect(await sum(monthEnd, monthEnd + HOUR_MS)).toBe(110n)
  }
})

test('a transaction that commits late is not missed', async () => {
  const late = usageEventOf({ organizationId, acceptedAt: at(5), input: 7, cachedInput: 0, output: 0 })
  await record([usageEventOf({ organizationId, acceptedAt: at(HOUR_MS), input: 1, cachedInput: 0, output: 0 })])
  await transaction(database.db, async (client) => {
    // Its rows bear the instant of this line, and nobody can see them yet.
    await client.query('select pg_sleep(0.05)')
    await insertEvents(client as unknown as typeof database.db, [JSON.stringify(late)], () => Promise.reject(new Error('refused')))
    await computeTotals(database.db)
    const { rows: mark } = await client.query<{ open: boolean }>(`select settled_before < now() as open from usage_total_state`)
    expect(mark[0]?.open).toBe(true)
  })
  expect([...(await readAll()).values()].reduce((all, { units }) => all + units, 0n)).toBe(8n)
  await computeTotals(database.db)
  const { rows } = await database.db.query<{ units: bigint }>('select sum(units)::bigint as units from usage_total')
  expect(rows[0]?.units).toBe(8n)
})

test('while one process computes, another leaves it alone', async () => {
  await record([usageEventOf({ organizationId, acceptedAt: at(5) })])
  await transaction(database.db, async (client) => {
    await client.query('select pg_advisory_xact_lock(4127590268153370114)')
    expect(await computeTotals(database.db)).toBeUndefined()
  })
  expect(await computeTotals(database.db)).toEqual({ hours: 1 })
})

const putMark = (instant: string) => database.db.query(`update usage_total_state set settled_before = ${instant}`)
const isMark = async (condition: string): Promise<boolean | undefined> => {
  const { rows } = await database.db.query<{ holds: boolean }>(`select settled_before ${condition} as holds from usage_total_state`)
  return rows[0]?.holds
}

test('a mark that lies ahead of the clock is put back, and one that does not stays where it is', async () => {
  expect(await mindClock(database.db)).toMatchObject({ putBackFrom: undefined })
  await putMark(`clock_timestamp() - interval '1 minute'`)
  expect(await mindClock(database.db)).toMatchObject({ putBackFrom: undefined })
  expect(await isMark(`> clock_timestamp() - interval '1 hour'`)).toBe(true)
  await putMark(`clock_timestamp() + interval '2 hours'`)
  const { now, putBackFrom = 0 } = await mindClock(database.db)
  expect(putBackFrom).toBeGreaterThan(now)
  expect(await isMark(`< clock_timestamp() - interval '23 hours'`)).toBe(true)
  expect(await mindClock(database.db)).toMatchObject({ putBackFrom: undefined })
})

test('a small step of the clock behind a long rest is found by the time that has passed', async () => {
  await putMark(`clock_timestamp() - interval '1 minute'`)
  const seen = await mindClock(database.db)
  expect(await mindClock(database.db, { ...seen, now: (seen.now - 600_000) as Instant })).toMatchObject({ putBackFrom: undefined })
  const again = await mindClock(database.db, { ...seen, now: (seen.now + 600_000) as Instant })
  expect(again.putBackFrom).toBeDefined()
  expect(await isMark(`< clock_timestamp() - interval '23 hours'`)).toBe(true)
  expect(await mindClock(database.db, again)).toMatchObject({ putBackFrom: undefined })
})

test('a round that began before the mark was put back by another process does not move it on', async () => {
  await record([usageEventOf({ organizationId, acceptedAt: at(5) })])
  await putMark(`clock_timestamp() - interval '1 hour'`)
  const computing = await transaction(database.db, async (client) => {
    await client.query('lock table usage_total in access exclusive mode')
    const running = computeTotals(database.db)
    await until('it waits in the middle', async () => {
      const { rows } = await client.query(
        `select from pg_locks join pg_database on pg_database.oid = database
          where datname = current_database() and relation = 'usage_total'::regclass and not granted`,
      )
      return rows.length > 0
    })
    await putMark(`clock_timestamp() - interval '1 day'`)
    // As an object: a promise would be waited for in here, with the table locked.
    return { running }
  })
  expect(await computing.running).toEqual({ hours: 1 })
  expect(await isMark(`< clock_timestamp() - interval '23 hours'`)).toBe(true)
  await computeTotals(database.db)
  expect(await isMark(`> clock_timestamp() - interval '1 hour'`)).toBe(true)
})

test('what is recorded for a closed range after an instant can be listed', async () => {
  const early = usageEventOf({ organizationId, acceptedAt: at(5) })
  await record([early])
  const { rows } = await database.db.query<{ now: Date }>('select clock_timestamp() as now')
  const closedAt = (rows[0]?.now.getTime() ?? 0) as Instant
  await database.db.query('select pg_sleep(0.005)')
  const late = usageEventOf({ organizationId, acceptedAt: at(6), input: 5, cachedInput: 2, output: 0 })
  await record([
    late,
    usageEventOf({ organizationId, acceptedAt: END }),
    usageEventOf({ organizationId, acceptedAt: at(7), charged: false }),
  ])
  const listed = await lateEvents(database.db, { organizationId, from: START, to: END, recordedFrom: (closedAt + 1) as Instant })
  expect(listed.map(({ id, kind, units }) => ({ id, kind, units }))).toEqual([
    { id: late.id, kind: 'cached_input_tokens', units: 2n },
    { id: late.id, kind: 'input_tokens', units: 3n },
  ])
})

test('a range that cuts an hour is refused', async () => {
  await expect(readTotals(database.db, { organizationId, from: at(1), to: END })).rejects.toThrow('whole hours')
})
