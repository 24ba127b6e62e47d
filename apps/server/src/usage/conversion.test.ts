import { cp, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { emptyDatabase } from '@parvis/testkit/database'
import { expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { Instant } from '../kit/clock.ts'
import { migrate } from '../kit/migrate.ts'
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
