import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { until } from '@parvis/testkit/until'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { type Instant, instantToDate, systemClock } from '../kit/clock.ts'
import { newId, type OrganizationId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openMetrics } from '../kit/metrics.ts'
import { dropPartitions, makePartitions, openKeeping } from './keep.ts'
import { listOpenings, openOpenings, readOpenings } from './openings.ts'
import { insertEvents } from './ship.ts'
import { computeTotals, readTotals } from './totals.ts'
import { openUsage } from './usage.ts'

const silent = openLog('silent')
const NOW = Date.UTC(2026, 11, 31, 23, 59, 59, 999) as Instant
const organizationId = newId(NOW) as OrganizationId

let database: TestDatabase
let dataDir: string
beforeEach(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-keep-'))
})
afterEach(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const partitions = async (): Promise<string[]> => {
  const { rows } = await database.db.query<{ name: string }>(
    `select inhrelid::regclass::text as name from pg_inherits where inhparent = 'usage_event'::regclass order by 1`,
  )
  return rows.map(({ name }) => name)
}
const insert = async (...events: ReturnType<typeof usageEventOf>[]): Promise<string[]> => {
  const refused: string[] = []
  await insertEvents(
    database.db,
    events.map((event) => JSON.stringify(event)),
    async (payload) => void refused.push(payload),
  )
  return refused
}
/** As if what was accepted then had been recorded then too, or earlier, and not now. */
const recordedAt = (acceptedAt: Instant, instant = acceptedAt) =>
  database.db.query('update usage_event set recorded_at = $2 where accepted_at = $1', [instantToDate(acceptedAt), instantToDate(instant)])
const settle = () => database.db.query('update usage_total_state set settled_before = clock_timestamp()')
const at = (year: number, month: number, day: number) => Date.UTC(year, month - 1, day) as Instant

test('partitions are there for the running month and the two after it, in UTC', async () => {
  await makePartitions(database.db, NOW)
  expect(await partitions()).toEqual(expect.arrayContaining(['usage_event_2026_12', 'usage_event_2027_01', 'usage_event_2027_02']))
  const { rows } = await database.db.query<{ bounds: string }>(
    `select pg_get_expr(relpartbound, oid) as bounds from pg_class where relname = 'usage_event_2026_12'`,
  )
  expect(rows[0]?.bounds).toMatch(/2026-12-01 00:00:00\+00.*2027-01-01 00:00:00\+00/)
})

test('many make the same partition at once and it is there once', async () => {
  await Promise.all(Array.from({ length: 8 }, () => database.db.query(`select make_usage_partition('2031-05-09')`)))
  expect((await partitions()).filter((name) => name === 'usage_event_2031_05')).toHaveLength(1)
})

test('an event of a month that has no partition yet makes one, among others that have', async () => {
  const events = [at(2024, 2, 29), NOW, at(2033, 7, 1)].map((acceptedAt) => usageEventOf({ organizationId, acceptedAt }))
  expect(await insert(...events)).toEqual([])
  const { rows } = await database.db.query('select id from usage_event where organization_id = $1', [organizationId])
  expect(rows).toHaveLength(3)
})

test('what is older than the retention goes by the month, its totals stay, and nothing can come back to change them', async () => {
  const [old, kept, newest] = [at(2025, 11, 30), at(2025, 12, 1), at(2026, 12, 30)]
  await insert(
    ...[old, kept, newest].map((acceptedAt) => usageEventOf({ organizationId, acceptedAt, input: 9, cachedInput: 0, output: 0 })),
  )
  await computeTotals(database.db)
  await recordedAt(newest)
  expect(await dropPartitions(database.db, NOW, 12), 'an event that is not yet settled holds its month').toEqual([])
  await settle()
  expect(await dropPartitions(database.db, NOW, 12)).toEqual(['usage_event_2025_11'])
  expect(await partitions()).toContain('usage_event_2025_12')

  const late = usageEventOf({ organizationId, acceptedAt: (old + 1) as Instant })
  expect(await insert(late)).toEqual([JSON.stringify(late)])
  await computeTotals(database.db)
  const totals = await readTotals(database.db, { organizationId, from: at(2025, 11, 1), to: at(2026, 1, 1) })
  expect(totals.map(({ hour, units }) => [hour, units])).toEqual([
    [old, 9n],
    [kept, 9n],
  ])
  expect(await dropPartitions(database.db, NOW, 12)).toEqual([])
})

test('a clock that is months ahead for a moment drops nothing, and what comes later is taken', async () => {
  await makePartitions(database.db, NOW)
  const ahead = at(2028, 2, 29)
  expect(await dropPartitions(database.db, ahead, 13), 'nothing was ever recorded').toEqual([])
  const today = () => usageEventOf({ organizationId, acceptedAt: NOW })
  expect(await insert(today())).toEqual([])
  await recordedAt(NOW, at(2025, 1, 1))
  await computeTotals(database.db)
  await settle()
  expect(await dropPartitions(database.db, ahead, 13)).toEqual([])
  expect(await insert(today())).toEqual([])

  // Also one by which an answer is accepted and recorded meanwhile.
  const meanwhile = (ahead - 60_000) as Instant
  expect(await insert(usageEventOf({ organizationId, acceptedAt: meanwhile }))).toEqual([])
  await recordedAt(meanwhile)
  await computeTotals(database.db)
  await settle()
  expect(await dropPartitions(database.db, ahead, 13)).toEqual([])
  expect(await insert(today())).toEqual([])
})

test('the loop brings recorded events into the totals by itself', async () => {
  const usage = await openUsage({
    dataDir,
    db: database.db,
    clock: systemClock,
    log: silent,
    limits: { shipEveryMs: 20 },
  })
  const keeping = openKeeping({ db: database.db, clock: systemClock, log: silent, retentionMonths: 13, everyMs: 20 })
  await usage.record(usageEventOf({ organizationId, input: 5, cachedInput: 0, output: 0 }))
  await until('it is in the totals', async () => (await database.db.query('select from usage_total')).rowCount === 1)
  await keeping.stop()
  await usage.close()
})

test('an answer that has begun and never ended is shipped as lost by the next process, and no other is', async () => {
  const lost = { ended: 'lost', counted: 'none', charged: false, input: 0, cachedInput: 0, output: 0 } as const
  const [ended, withdrawn, running] = [usageEventOf(), usageEventOf(), usageEventOf()]
  const first = await openUsage({ dataDir, db: database.db, clock: systemClock, log: silent, limits: { shipEveryMs: 60_000 } })
  for (const event of [ended, withdrawn, running]) first.noteOpen({ ...event, ...lost }, 'streamed')
  await first.record(ended)
  first.withdraw(withdrawn.id)
  // As a killed process leaves it: an event in the journal and nobody to say that its answer has ended.
  const half = await openOpenings({ directory: join(dataDir, 'usage'), log: silent })
  half.note({ ...ended, ...lost }, 'streamed')
  half.note({ ...running, ...lost }, 'streamed')
  await half.close()
  await first.close()

  const metrics = openMetrics()
  const second = await openUsage({ dataDir, db: database.db, clock: systemClock, log: silent, metrics, limits: { shipEveryMs: 20 } })
  await second.record(usageEventOf({ ended: 'engine_failed', counted: 'none' }))
  await until(
    'it is in the books',
    async () => (await database.db.query('select from usage_event where id = $1', [running.id])).rowCount === 1,
  )
  await second.close()
  const { rows } = await database.db.query<{ id: string; ended: string; charged: boolean }>(
    "select id, ended, charged from usage_event where ended <> 'engine_failed'",
  )
  expect(rows.toSorted((a, b) => a.ended.localeCompare(b.ended))).toEqual([
    { id: ended.id, ended: 'complete', charged: true },
    { id: running.id, ended: 'lost', charged: false },
  ])
  expect((await readdir(join(dataDir, 'usage'))).filter((name) => name.endsWith('.open'))).toEqual([])
  expect(metrics.render()).toContain('parvis_usage_unmeasured_total{ended="lost"} 1\n')
  expect(metrics.render()).toContain('parvis_usage_unmeasured_total{ended="engine_failed"} 1\n')
  expect(metrics.render()).toContain('parvis_usage_journal_writable 1\n')
})

test('a whole answer that is over at once is not noted, and one that runs on is', async () => {
  const openings = await openOpenings({ directory: dataDir, log: silent })
  const [short, long, stream] = [usageEventOf(), usageEventOf(), usageEventOf()]
  const noted = async (): Promise<string[]> =>
    (await Promise.all((await listOpenings(dataDir)).map(readOpenings))).flat().map((payload) => (JSON.parse(payload) as { id: string }).id)
  for (let round = 0; round < 3; round += 1) {
    openings.note(short, 'whole')
    openings.end(short.id)
    // Long enough for a look at it that finds nothing to note.
    await new Promise((done) => setTimeout(done, 20))
  }
  openings.note(long, 'whole')
  await until('it is noted', async () => (await noted()).includes(long.id))
  openings.note(stream, 'streamed')
  await until('the stream is noted', async () => (await noted()).includes(stream.id))
  expect(await noted()).toEqual([long.id, stream.id])
  for (const { id } of [long, stream]) openings.end(id)
  await openings.close()
})

test('what runs survives when the list of what has begun is written anew', async () => {
  const directory = dataDir
  const openings = await openOpenings({ directory, log: silent })
  const running = Array.from({ length: 20 }, () => usageEventOf())
  for (const event of running) openings.note(event, 'streamed')
  const isNoted = async (id: string): Promise<boolean> => {
    const [path = ''] = await listOpenings(directory)
    // It may just have been written anew under another name.
    return (await readOpenings(path).catch(() => [])).some((payload) => payload.includes(id))
  }
  for (let round = 0; round < 24; round += 1) {
    const more = Array.from({ length: 500 }, () => usageEventOf())
    for (const event of more) openings.note(event, 'streamed')
    await until('the last one is noted', () => isNoted(more.at(-1)?.id ?? ''))
    for (const event of more) openings.end(event.id)
  }
  await openings.close()
  const next = await openOpenings({ directory, log: silent })
  const noted = new Set(
    (await Promise.all(next.left().map(readOpenings))).flat().map((payload) => (JSON.parse(payload) as { id: string }).id),
  )
  expect(running.filter(({ id }) => !noted.has(id))).toEqual([])
  await next.close()
})
