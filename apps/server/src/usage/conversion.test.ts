import { cp, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { emptyDatabase } from '@parvis/testkit/database'
import { expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { Instant } from '../kit/clock.ts'
import type { OrganizationId, PriceId } from '../kit/ids.ts'
import { migrate } from '../kit/migrate.ts'
import { compareTotals } from './reconcile.ts'
import { insertEvents } from './ship.ts'
import { computeTotals, readSums } from './totals.ts'

const MIGRATIONS = fileURLToPath(new URL('../../migrations', import.meta.url))

test('a ledger of the time before it was cut by month keeps its rows, and what was charged then still is', async () => {
  const database = await emptyDatabase()
  const before = await mkdtemp(join(tmpdir(), 'parvis-migrations-'))
  try {
    const names = await readdir(MIGRATIONS)
    for (const name of names.filter((each) => each < '0005')) await cp(join(MIGRATIONS, name), join(before, name))
    await migrate(database.db, pathToFileURL(`${before}/`))
    const [march, june] = [Date.UTC(2026, 2, 31, 23, 59) as Instant, Date.UTC(2026, 5, 1) as Instant]
    const events = [
      usageEventOf({ acceptedAt: march, input: 40, cachedInput: 10, output: 2 }),
      usageEventOf({ acceptedAt: june, ended: 'client_left', input: 40, cachedInput: 10, output: 2 }),
      usageEventOf({ acceptedAt: june, ended: 'engine_failed' }),
      usageEventOf({ acceptedAt: june, counted: 'none' }),
    ].map((event) => ({ ...event, organizationId: '0197a000-0000-7000-8000-000000000001' }))
    for (const event of events) {
      await database.db.query(
        `insert into usage_event (id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, replica, endpoint, mode,
           status, ended, counted, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, accepted_at, ended_at)
         values ($1, $2, $3, $4, $5, 'm', 'm', $6, 'r', 'e', 'realtime', 200, $7, $8, $9, $10, $11, 0, $12, $12)`,
        [
          event.id,
          event.organizationId,
          event.projectId,
          event.principalId,
          event.accessKey,
          event.priceId,
          event.ended,
          event.counted,
          event.input,
          event.cachedInput,
          event.output,
          new Date(event.acceptedAt),
        ],
      )
    }
    await migrate(database.db)
    const { rows } = await database.db.query<{ id: string; charged: boolean }>('select id, charged from usage_event')
    expect(new Map(rows.map(({ id, charged }) => [id, charged]))).toEqual(new Map(events.map(({ id }, index) => [id, index < 2])))
    await computeTotals(database.db)
    const organizationId = events[0]?.organizationId as Parameters<typeof readSums>[1]['organizationId']
    const sums = await readSums(database.db, { organizationId, from: Date.UTC(2026, 2, 1) as Instant, to: Date.UTC(2026, 6, 1) as Instant })
    expect(sums.map(({ kind, units }) => `${kind} ${units}`).toSorted()).toEqual([
      'cached_input_tokens 10',
      'cached_input_tokens 10',
      'input_tokens 30',
      'input_tokens 30',
      'output_tokens 2',
      'output_tokens 2',
    ])
  } finally {
    await database.drop()
    await rm(before, { recursive: true, force: true })
  }
})

test('documents of the time before pages were billed are in the sums, and what they cost then was nothing', async () => {
  const database = await emptyDatabase()
  const before = await mkdtemp(join(tmpdir(), 'parvis-migrations-'))
  try {
    const names = await readdir(MIGRATIONS)
    for (const name of names.filter((each) => each < '0021')) await cp(join(MIGRATIONS, name), join(before, name))
    await migrate(database.db, pathToFileURL(`${before}/`))
    const priced = async (name: string, type: 'ocr' | 'embedding'): Promise<PriceId> => {
      const { rows } = await database.db.query<{ id: PriceId }>(
        `with made as (insert into model (id, name, owned_by, type, status, created_at, context_tokens)
           values (gen_random_uuid(), $1, 'test', $2, 'active', now(), 4096) returning id)
         insert into model_price (id, model_id, starts_at, input, cached_input, output)
           select gen_random_uuid(), id, now(), 1000000, 1000000, 3000000 from made returning id`,
        [name, type],
      )
      return rows[0]?.id as PriceId
    }
    const [reader, vectors] = [await priced('reader', 'ocr'), await priced('vectors', 'embedding')]
    const hour = Date.UTC(2026, 5, 1, 10)
    const organizationId = '0197a000-0000-7000-8000-000000000001' as OrganizationId
    const one = usageEventOf({ organizationId, model: 'reader', priceId: reader, input: 0, cachedInput: 0, output: 0, pages: 7 })
    const events = [
      { ...one, acceptedAt: hour as Instant },
      { ...one, acceptedAt: (hour + 1) as Instant, pages: 5 },
      { ...one, acceptedAt: (hour + 2) as Instant, charged: false },
      { ...usageEventOf({ organizationId, model: 'vectors', priceId: vectors, output: 0 }), acceptedAt: hour as Instant },
    ].map((event, index) => ({ ...event, id: `0197a000-0000-7000-8000-00000000001${index}` }))
    const payloads = events.map((event) => JSON.stringify(event))
    await insertEvents(database.db, payloads, (_, error) => Promise.reject(error as Error))
    // The totals of that time: whatever its documents had, no row says so.
    await database.db.query(
      `insert into usage_total (hour, organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, events)
       select date_trunc('hour', accepted_at, 'UTC'), organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, 1
         from usage_event, lateral (values ('input_tokens', input_tokens - cached_input_tokens), ('cached_input_tokens', cached_input_tokens)) as unit (kind, units)
        where model = 'vectors'`,
    )
    await database.db.query('update usage_total_state set settled_before = clock_timestamp()')

    expect(await migrate(database.db)).toContain('0021-pages.sql')
    const range = { from: Date.UTC(2026, 5, 1) as Instant, to: Date.UTC(2026, 5, 2) as Instant }
    expect((await compareTotals(database.db, range)).differences).toEqual([])
    const sums = await readSums(database.db, { organizationId, ...range })
    expect(sums.filter(({ kind }) => kind === 'pages')).toMatchObject([{ model: 'reader', priceId: reader, units: 12n, events: 2n }])
    const { rows } = await database.db.query(
      'select model.name, input, cached_input, output from model_price join model on model.id = model_id order by name',
    )
    expect(rows).toEqual([
      { name: 'reader', input: 0n, cached_input: 0n, output: 0n },
      { name: 'vectors', input: 1_000_000n, cached_input: 1_000_000n, output: 3_000_000n },
    ])
    await expect(database.db.query('update model_price set input = 1')).rejects.toThrow('a price never changes')
  } finally {
    await database.drop()
    await rm(before, { recursive: true, force: true })
  }
})
