import { mkdtempSync, rmSync } from 'node:fs'
import { chmod, mkdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readBill } from '@parvis/server/billing/bill'
import { type Month, monthEnd, monthStart } from '@parvis/server/billing/month'
import { termsOf } from '@parvis/server/billing/terms'
import { type Instant, instantToDate, systemClock } from '@parvis/server/kit/clock'
import { type Db, openDb } from '@parvis/server/kit/db'
import { type AccessKey, newId, type OrganizationId, type PriceId, type PrincipalId, type ProjectId } from '@parvis/server/kit/ids'
import { openLog } from '@parvis/server/kit/log'
import { migrate } from '@parvis/server/kit/migrate'
import { formatCents } from '@parvis/server/kit/money'
import { openEmbeddedPostgres } from '@parvis/server/kit/postgres'
import { moreOf, type UsageEvent } from '@parvis/server/usage/event'
import { openJournal } from '@parvis/server/usage/journal'
import { openOpenings } from '@parvis/server/usage/openings'
import { openShipper } from '@parvis/server/usage/ship'
import { computeTotals, readSums } from '@parvis/server/usage/totals'
import { monthOf, viewUsage } from '@parvis/server/usage/view'
import { median, percentile, type Row, residentMb } from '../measure.ts'

const MILLION = 1_000_000
/** Events a second. */
const JOURNAL_BUDGET = '100,000'
const END_CLIFF = { above: 100, why: 'the end of a stream waits for more than one write to the disk' }
const TOTALS_CLIFF_SECONDS_PER_MILLION = 60
const FILL_ROWS = 50_000
const TERMS = termsOf({
  freeTokens: MILLION,
  freeAudioSeconds: 3_600,
  freePeriod: 'monthly',
  region: 'fr-par',
  taxName: 'VAT',
  taxPercent: '20',
  sellerName: 'Bench',
  billGraceHours: 24,
  invoiceDueDays: 10,
})

const someEvent = (now: Instant, organizationId: OrganizationId, projectId: ProjectId): UsageEvent => ({
  id: newId(now),
  organizationId,
  projectId,
  principalId: newId(now) as PrincipalId,
  accessKey: 'SCWAAAAAAAAAAAAAAAAA' as AccessKey,
  modelAsked: 'some-model',
  model: 'some-model',
  priceId: newId(now) as PriceId,
  poolId: newId(now),
  replica: 'engine-1',
  endpoint: 'chat/completions',
  mode: 'realtime',
  status: 200,
  ended: 'complete',
  counted: 'engine',
  input: 731,
  cachedInput: 512,
  output: 180,
  reasoning: 0,
  audioInput: 0,
  audioMs: 0,
  images: 0,
  pages: 0,
  acceptedAt: now,
  firstByteAt: now,
  endedAt: now,
})

/** What the promise costs at the end of a stream: from "the engine is done" to "the event is on disk", at this many a second. */
const journalRows = async (directory: string, quick: boolean): Promise<Row[]> => {
  const log = openLog('silent')
  const organizationId = newId(systemClock.now()) as OrganizationId
  // As the gateway opens them: what it adds to an event is written behind it.
  const toMore = moreOf(organizationId, { chargeFailed: false })
  const journal = await openJournal({ directory, log, toMore })
  const openings = await openOpenings({ directory, log, toMore })
  /** Made before the time is taken: in the gateway they are made while the engine works. */
  const eventsOf = (count: number): UsageEvent[] => {
    const now = systemClock.now()
    return Array.from({ length: count }, () => someEvent(now, organizationId, organizationId as unknown as ProjectId))
  }
  const rows: Row[] = []
  try {
    for (const noted of [false, true]) {
      const waitsMs: number[] = []
      for (const event of eventsOf(quick ? 300 : 2_000)) {
        if (noted) openings.note(event, 'streamed')
        const startedAt = performance.now()
        await journal.record(event)
        waitsMs.push(performance.now() - startedAt)
        if (noted) openings.end(event.id)
      }
      const what = noted ? 'noted at its beginning, too' : 'alone'
      const alone = `p99 ${percentile(waitsMs, 99).toFixed(2)} ms; one after the other, ${what}`
      rows.push({
        what: `end of a stream waits, ${noted ? 'with a note' : 'idle'}`,
        value: median(waitsMs),
        unit: 'ms',
        beside: alone,
        cliff: END_CLIFF,
      })
    }
    const events = eventsOf(quick ? 20_000 : 200_000)
    const waitsMs: number[] = []
    let next = 0
    const caller = async (): Promise<void> => {
      for (let event = events[next++]; event !== undefined; event = events[next++]) {
        openings.note(event, 'streamed')
        const at = performance.now()
        await journal.record(event)
        waitsMs.push(performance.now() - at)
        openings.end(event.id)
      }
    }
    const startedAt = performance.now()
    await Promise.all(Array.from({ length: 256 }, caller))
    const seconds = (performance.now() - startedAt) / 1000
    rows.push({
      what: 'journal, 256 streams ending at once',
      value: events.length / seconds,
      unit: 'ev/s',
      beside: `budget ≥ ${JOURNAL_BUDGET} that are waited for; each waits ${median(waitsMs).toFixed(2)} ms, p99 ${percentile(waitsMs, 99).toFixed(2)} ms, its note included in the rate`,
    })
  } finally {
    await journal.close()
    await openings.close()
  }
  return rows
}

/**
 * A month of events in the order in which they happened, made in the database itself: 5 projects, 20 keys, 10 models, and a price that changes
 * in the middle of the month.
 */
const FILL = `
  insert into usage_event (
    id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, gateway, pool_id, replica, endpoint, mode, status,
    ended, counted, charged, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, audio_input_tokens, audio_milliseconds, images,
    pages, accepted_at, first_byte_at, ended_at)
  select gen_random_uuid(), $1, md5('project' || n % 5)::uuid, md5('person' || n % 20)::uuid, 'SCWKEY' || n % 20, 'm', 'model-' || n % 10,
         md5('price' || n % 10 || (n > $4 / 2)::int)::uuid, 'gateway', md5('model' || n % 10)::uuid, 'replica', 'chat/completions', 'realtime',
         200, 'complete', 'engine', true, 100 + n % 900, n % 100, 10 + n % 500, 0, 0, 0, 0, 0, at, at, at
    from (select n, $2::timestamptz + n * interval '1 month' / $4::bigint as at
            from generate_series($3::bigint, least($3::bigint + ${FILL_ROWS}, $4) - 1) as n) as made`
const MODELS = `
  insert into model (id, name, owned_by, type, status, created_at, context_tokens, max_output_tokens)
  select md5('model' || n)::uuid, 'model-' || n, 'bench', 'chat', 'active', now(), 1000, 100 from generate_series(0, 9) as n`
const PRICES = `
  insert into model_price (id, model_id, starts_at, input, cached_input, output)
  select md5('price' || n || half)::uuid, md5('model' || n)::uuid, now() + half * interval '1 day', 100000 + half, 20000, 300000
    from generate_series(0, 9) as n, generate_series(0, 1) as half`

const timed = async (what: string, beside: string, work: () => Promise<unknown>): Promise<Row> => {
  const takenMs: number[] = []
  for (let round = 0; round < 5; round += 1) {
    const at = performance.now()
    await work()
    takenMs.push(performance.now() - at)
  }
  return { what, value: median(takenMs), unit: 'ms', beside }
}

/** The most memory that a process of the database for us holds, buffers that it shares with the others included. */
const databaseMb = async (db: Db): Promise<number> => {
  const { rows } = await db.query<{ pid: number }>(
    `select pid from pg_stat_activity where datname = current_database() and backend_type = 'client backend'`,
  )
  return Math.max(...rows.map(({ pid }) => residentMb(pid)))
}

/** One month of events, its totals and its bill. */
const monthRows = async (db: Db, organizationId: OrganizationId, month: Month, millions: number): Promise<Row[]> => {
  const of = `${millions} million events`
  const total = Math.round(millions * MILLION)
  await db.query('select make_usage_partition($1)', [instantToDate(monthStart(month))])
  for (let first = 0; first < total; first += FILL_ROWS) {
    await db.query(FILL, [organizationId, instantToDate(monthStart(month)), first, total])
  }
  await db.query('analyze usage_event')
  const before = residentMb(process.pid)
  const startedAt = performance.now()
  const done = await computeTotals(db)
  const seconds = (performance.now() - startedAt) / 1000
  const grown = residentMb(process.pid) - before
  const { rows: made } = await db.query<{ rows: bigint }>('select count(*) as rows from usage_total where hour >= $1', [
    instantToDate(monthStart(month)),
  ])
  // What has just been computed is settled, as it is a minute later.
  await db.query('update usage_total_state set settled_before = clock_timestamp()')
  const bill = await readBill(db, TERMS, organizationId, month)
  if (bill.unpriced.length > 0 || bill.bill.lines.length === 0) throw new Error('The bill does not have what was used.')
  return [
    {
      what: `totals of ${of}`,
      value: seconds,
      unit: 's',
      beside: `${done?.hours} hours, ${made[0]?.rows} rows; we grow by ${grown.toFixed(0)} MiB, the database's largest process holds ${(await databaseMb(db)).toFixed(0)} MiB`,
      cliff: {
        above: Math.max(30, millions * TOTALS_CLIFF_SECONDS_PER_MILLION),
        why: 'an hour is no longer found by its index, or computed more than once',
      },
    },
    await timed(`the bill of ${of}`, `${bill.bill.lines.length} lines, € ${formatCents(bill.bill.cents)}`, () =>
      readBill(db, TERMS, organizationId, month),
    ),
    await timed(`usage by day and model, of ${of}`, 'from the totals', () =>
      viewUsage(db, {
        organizationId,
        from: monthStart(month),
        to: (monthEnd(month) - 1) as Instant,
        step: 'day',
        by: ['model'],
        projectIds: [],
        only: {},
      }),
    ),
  ]
}

const totalRows = async (directory: string, millions: number, quick: boolean): Promise<Row[]> => {
  const log = openLog('silent')
  const postgres = await openEmbeddedPostgres({ dataDir: join(directory, 'database'), log, clock: systemClock })
  const db = openDb(postgres.url, { log })
  const rows: Row[] = []
  try {
    await migrate(db)
    const organizationId = newId(systemClock.now()) as OrganizationId

    // Shipping: what lies in a journal goes into the ledger.
    const usage = join(directory, 'usage')
    await mkdir(usage)
    const journal = await openJournal({ directory: usage, log })
    const openings = await openOpenings({ directory: usage, log })
    const count = quick ? 10_000 : 100_000
    const now = systemClock.now()
    const events = Array.from({ length: count }, () => ({ ...someEvent(now, organizationId, newId(now)), gateway: 'g', charged: true }))
    for (let first = 0; first < count; first += 5_000) await Promise.all(events.slice(first, first + 5_000).map(journal.record))
    const shipper = openShipper({ journal, openings, db, log })
    await journal.close()
    let startedAt = performance.now()
    await shipper.ship()
    let seconds = (performance.now() - startedAt) / 1000
    rows.push({
      what: 'shipping into the ledger',
      value: count / seconds,
      unit: 'ev/s',
      beside: `${count} events in ${seconds.toFixed(1)} s`,
    })
    await openings.close()

    // Totals of a whole month at once: what a new table, or a restored one, costs. Every day they are a part of it.
    await db.query('truncate usage_event')
    await db.query(MODELS)
    await db.query(PRICES)
    for (const [size, month] of [
      [millions / 10, '2026-01'],
      [millions, '2026-03'],
    ] as const) {
      rows.push(...(await monthRows(db, organizationId, month as Month, size)))
    }
    const running = monthOf(systemClock.now())
    rows.push(
      await timed('the running month, nothing in it', 'beside both months', () =>
        readSums(db, { organizationId, from: running, to: (running + 86_400_000) as Instant }),
      ),
    )
  } finally {
    await db.end()
    await postgres.close()
  }
  return rows
}

/** Events through journal, shipping and totals. `millions` is how many events the totals are computed of. */
export const benchWork = async (quick: boolean, millions: number = quick ? 0.1 : 1): Promise<Row[]> => {
  const directory = mkdtempSync(join(tmpdir(), 'parvis-bench-'))
  try {
    // As root, the database runs as another user.
    await chmod(directory, 0o711)
    return [...(await journalRows(join(directory, 'journal'), quick)), ...(await totalRows(directory, millions, quick))]
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
