import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { runParvis } from '@parvis/testkit/server-process'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { addModel } from '../catalog/models.ts'
import { addEngine } from '../engines/registry.ts'
import { bootstrap } from '../iam/bootstrap.ts'
import { type Instant, systemClock } from '../kit/clock.ts'
import { newId, type RequestId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openSecrets } from '../kit/secrets.ts'
import type { RecordedEvent } from '../usage/event.ts'
import { frame, segmentName } from '../usage/segment.ts'
import { insertEvents } from '../usage/ship.ts'
import { computeTotals, readTotals } from '../usage/totals.ts'

const RANGE = ['--from', '2026-03-01', '--to', '2026-04-01']
const MARCH = Date.UTC(2026, 2, 10, 12) as Instant

let database: TestDatabase
let dataDir: string
beforeEach(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-usage-cli-'))
})
afterEach(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const parvis = async (...args: string[]): Promise<{ code: number | null; out: string; complaints: string }> => {
  const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: dataDir }
  const { code, out, err } = await runParvis(['usage', ...args], env)
  return { code, out, complaints: err }
}
const at = (ms: number, changes: Partial<RecordedEvent> = {}): RecordedEvent => {
  const acceptedAt = (MARCH + ms) as Instant
  return usageEventOf({ id: newId(acceptedAt) as RequestId, acceptedAt, ...changes })
}
const insert = (...events: RecordedEvent[]) =>
  insertEvents(
    database.db,
    events.map((event) => JSON.stringify(event)),
    (payload) => Promise.reject(new Error(payload)),
  )
const settle = async () => {
  await computeTotals(database.db)
  await database.db.query('update usage_total_state set settled_before = clock_timestamp()')
}
const writeSegment = async (directory: string, number: number, events: readonly object[]) => {
  await mkdir(directory, { recursive: true })
  await writeFile(join(directory, segmentName(number)), Buffer.concat(events.map((event) => frame(JSON.stringify(event)))))
}

test('the journal of a machine that never returns is shipped by hand, once and again', async () => {
  const left = join(dataDir, 'left')
  const events = Array.from({ length: 30 }, (_, index) => at(index))
  const lost = at(99, { ended: 'lost', counted: 'none', charged: false, input: 0, cachedInput: 0, output: 0 })
  const leave = async () => {
    await writeSegment(join(left, 'usage'), 4, events.slice(0, 20))
    await writeSegment(join(left, 'usage'), 5, events.slice(20))
    // One that has ended after all, and one that has not.
    const openings = [{ ...events[3], ended: 'lost', counted: 'none', charged: false }, lost]
    await writeFile(join(left, 'usage', '000000000002.v1.open'), Buffer.concat(openings.map((event) => frame(JSON.stringify(event)))))
  }
  await leave()
  const first = await parvis('ship', left)
  expect(first).toEqual({ code: 0, out: '30 events that the ledger did not have, 1 answer lost in the middle.\n', complaints: '' })
  expect(await readdir(join(left, 'usage'))).toEqual([])
  await leave()
  const second = await parvis('ship', join(left, 'usage'))
  expect(second).toMatchObject({ code: 0, out: '0 events that the ledger did not have, 0 answers lost in the middle.\n' })
  const { rows } = await database.db.query<{ ended: string }>('select ended from usage_event')
  expect(rows.filter(({ ended }) => ended === 'complete')).toHaveLength(30)
  expect(rows.filter(({ ended }) => ended === 'lost')).toHaveLength(1)

  const empty = await parvis('ship', left)
  expect(empty).toMatchObject({ code: 1, complaints: expect.stringContaining('There is no usage journal') })
  const wrong = await parvis('ship', join(dataDir, 'nowhere'))
  expect(wrong).toMatchObject({ code: 1, complaints: expect.stringContaining('is not a directory') })
  const nobody = await parvis('unmeasured', ...RANGE)
  expect(nobody.out).toContain('1 request without counts')
  expect(nobody.out).toContain(lost.id)
  expect(nobody.out).toContain('lost')
})

test('an answer that was taken for lost is complete and charged when its event comes after all; nothing else is ever replaced', async () => {
  const [copy, left] = [join(dataDir, 'copy'), join(dataDir, 'left')]
  const [event, stays] = [at(1), at(2)]
  const openingOf = (ended: RecordedEvent) => ({ ...ended, ended: 'lost', counted: 'none', charged: false, output: 0 })
  const copyOpenings = async () => {
    await mkdir(copy, { recursive: true })
    const frames = [event, stays].map((each) => frame(JSON.stringify(openingOf(each))))
    await writeFile(join(copy, '000000000002.v1.open'), Buffer.concat(frames))
  }
  const ledger = async () =>
    (await database.db.query('select * from usage_event order by accepted_at')).rows as { ended: string; recorded_at: Date }[]
  const outputOf = async () =>
    (await readTotals(database.db, { organizationId: event.organizationId, from: MARCH, to: (MARCH + 3_600_000) as Instant }))
      .filter(({ kind }) => kind === 'output_tokens')
      .map(({ units, events }) => ({ units, events }))

  await copyOpenings()
  expect(await parvis('ship', copy)).toMatchObject({ out: '0 events that the ledger did not have, 2 answers lost in the middle.\n' })
  await settle()
  expect(await outputOf()).toEqual([])
  const lost = await ledger()
  expect(lost.map(({ ended }) => ended)).toEqual(['lost', 'lost'])

  await writeSegment(join(left, 'usage'), 4, [event, at(3)])
  expect(await parvis('ship', left)).toMatchObject({ out: '2 events that the ledger did not have, 0 answers lost in the middle.\n' })
  const found = await ledger()
  expect(found.map(({ ended }) => ended)).toEqual(['complete', 'lost', 'complete'])
  expect(found[0]).toMatchObject({ id: event.id, charged: true, counted: 'engine', output_tokens: 12n })
  expect(found[0]?.recorded_at.getTime()).toBeGreaterThan(lost[0]?.recorded_at.getTime() ?? Infinity)
  expect(found[1]).toEqual(lost[1])
  expect(await outputOf()).toEqual([{ units: 12n, events: 1n }])
  await settle()
  expect(await outputOf()).toEqual([{ units: 12n, events: 1n }])
  // The same as if it had been inserted.
  await insert(event)
  await writeSegment(join(dataDir, 'usage'), 1, [event])
  expect(await parvis('reconcile', ...RANGE)).toMatchObject({ code: 0 })

  await copyOpenings()
  await writeSegment(join(left, 'usage'), 4, [
    { ...event, output: 13 },
    { ...stays, ...openingOf(stays), output: 13 },
  ])
  expect(await parvis('ship', copy)).toMatchObject({ out: '0 events that the ledger did not have, 0 answers lost in the middle.\n' })
  expect(await parvis('ship', left)).toMatchObject({ out: '0 events that the ledger did not have, 0 answers lost in the middle.\n' })
  expect(await ledger()).toEqual(found)

  // One that comes twice in a segment, beside a row that no database takes.
  await writeSegment(join(left, 'usage'), 5, [stays, stays])
  await writeSegment(join(left, 'usage'), 6, [{ ...at(4), status: 'none' }, event])
  expect(await parvis('ship', left)).toMatchObject({ out: expect.stringContaining('1 event that the ledger did not have') as string })
  expect((await ledger()).map(({ ended }) => ended)).toEqual(['complete', 'complete', 'complete'])
})

test('reconcile finds nothing where all is well, and every planted difference by its request', async () => {
  const [good, changed, waiting, refused, uncounted] = [at(0), at(1), at(2), at(3), at(4, { counted: 'none', charged: false })]
  await insert(good, changed, uncounted)
  await settle()
  await writeSegment(join(dataDir, 'usage'), 1, [good])
  const well = await parvis('reconcile', ...RANGE)
  expect(well).toMatchObject({ code: 0, complaints: '' })
  expect(well.out).toContain('1 event in the journal, 0 differences')
  expect(well.out).toContain('1 hour, 0 differences')
  expect(well.out).toContain('1 request that nobody has counted')

  await writeSegment(join(dataDir, 'usage'), 1, [good, { ...changed, output: changed.output + 1 }, waiting])
  await writeFile(join(dataDir, 'usage', 'refused.jsonl'), `${JSON.stringify(refused)}\n`)
  await database.db.query(`update usage_total set units = units + 5 where kind = 'output_tokens' and project_id = $1`, [good.projectId])
  const found = await parvis('reconcile', ...RANGE)
  expect(found).toMatchObject({ code: 1, complaints: '4 differences.\n' })
  expect(found.out).toContain('4 events in the journal, 3 differences')
  expect(found.out).toMatch(new RegExp(`${changed.id}.*not the same.*output_tokens 13, ledger 12`))
  expect(found.out).toMatch(new RegExp(`${waiting.id}.*not in the ledger`))
  expect(found.out).toMatch(new RegExp(`${refused.id}.*put aside`))
  expect(found.out).toContain('ledger 12, total 17')
  expect(found.out).toContain(`requests ${good.id}`)

  const backwards = await parvis('reconcile', '--from', '2026-04-01', '--to', '2026-03-01')
  expect(backwards).toMatchObject({ code: 1, complaints: expect.stringContaining('--from must lie before --to') })
})

test("an engine's own counters stand beside the ledger's sums for it", async () => {
  const startedAt = (systemClock.now() - 60_000) as Instant
  const metrics = [
    '# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.',
    `process_start_time_seconds ${startedAt / 1000}`,
    'vllm:prompt_tokens_total{engine="0",model_name="remote"} 131.0',
    'vllm:prompt_tokens_total{engine="0",model_name="other"} 999.0',
    'vllm:generation_tokens_total{engine="0",model_name="remote"} 1.2e+01',
  ].join('\n')
  const server = createServer((request, response) => response.writeHead(request.url === '/base/metrics' ? 200 : 404).end(metrics))
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  try {
    const secrets = await openSecrets({ dataDir, masterKey: undefined })
    const modelId = await addModel(database.db, systemClock, 'test', {
      name: 'm',
      ownedBy: 'test',
      type: 'embedding',
      contextTokens: 100,
      maxOutputTokens: null,
      price: { input: 1n, output: 0n },
    } as Parameters<typeof addModel>[3])
    const served = [{ modelId, modelName: 'm', remoteName: 'remote' }]
    const room = { db: database.db, secrets, clock: systemClock }
    await addEngine(room, { name: 'known', url: `http://127.0.0.1:${port}/base`, bearer: undefined, models: served }, 'test')
    await addEngine(room, { name: 'silent', url: `http://127.0.0.1:${port}/wrong`, bearer: undefined, models: served }, 'test')
    await insert(
      usageEventOf({ replica: 'known', model: 'm', input: 31, output: 12 }),
      usageEventOf({ replica: 'elsewhere', model: 'm', input: 31 }),
    )
    const { out, code } = await parvis('reconcile')
    expect(out).toContain('input 131, ledger 31 (+100); output 12, ledger 12 (0); 0 requests without the engine')
    expect(out).toContain('silent, m: answers /metrics with 404')
    expect(out).toContain('it has done more')
    expect(out).not.toContain('started again')
    expect(code).toBe(0)
  } finally {
    server.close()
    server.closeAllConnections()
  }
})

test('the requests behind a line of a bill are listed, newest first', async () => {
  const secrets = await openSecrets({ dataDir, masterKey: undefined })
  const { organizationId } = await bootstrap(database.db, secrets, systemClock, { log: openLog('silent') })
  const mine = [at(0, { organizationId }), at(1, { organizationId, ended: 'engine_failed', charged: false })] as const
  await insert(...mine, at(2))
  const listed = await parvis('requests', '--month', '2026-03', '--kind', 'output_tokens')
  expect(listed).toMatchObject({ code: 0, complaints: '' })
  expect(listed.out.trimEnd().split('\n')).toEqual([expect.stringMatching(new RegExp(`${mine[0].id}.*complete .*output_tokens 12$`))])
  const all = await parvis('requests', '--month', '2026-03', '--all', '--json')
  const lines = all.out.trimEnd().split('\n')
  expect(lines.map((line) => (JSON.parse(line) as { id: string }).id)).toEqual([mine[1].id, mine[0].id])
})
