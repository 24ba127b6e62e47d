import { spawn } from 'node:child_process'
import { appendFile, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { connect as connectTcp, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { until } from '@parvis/testkit/until'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { systemClock } from '../kit/clock.ts'
import { type Db, openDb } from '../kit/db.ts'
import { openLog } from '../kit/log.ts'
import { openMetrics } from '../kit/metrics.ts'
import type { UsageEvent } from './event.ts'
import { openJournal } from './journal.ts'
import { openOpenings } from './openings.ts'
import { frame, listSegments, segmentName } from './segment.ts'
import { openShipper, openShipping } from './ship.ts'
import { openUsage } from './usage.ts'

const WRITER = fileURLToPath(new URL('../../test/children/journal-writer.ts', import.meta.url))
const silent = openLog('silent')

let database: TestDatabase
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-usage-'))
})
afterEach(async () => {
  await rm(dataDir, { recursive: true, force: true })
})

const openHere = (db: Db = database.db) => openUsage({ dataDir, db, clock: systemClock, log: silent, limits: { shipEveryMs: 20 } })
/** Everything but the name of this gateway and what has begun in it. */
const files = async () => (await readdir(join(dataDir, 'usage'))).filter((name) => name !== 'gateway' && !name.endsWith('.open'))
const rowsOf = async (events: readonly UsageEvent[]) => {
  const { rows } = await database.db.query<Record<string, unknown>>('select * from usage_event where id = any($1) order by id', [
    events.map((event) => event.id),
  ])
  return rows
}
const idsInDatabase = async (): Promise<string[]> =>
  (await database.db.query<{ id: string }>('select id from usage_event')).rows.map((row) => row.id)

/** A log that remembers what was said at the level of an alarm. */
const listening = () => {
  const lines: string[] = []
  const log = openLog('error', { write: (line: string) => lines.push(line) } as unknown as NodeJS.WritableStream)
  return { log, lines }
}

test('an event reaches the database with every field it was made of', async () => {
  const usage = await openHere()
  const event = usageEventOf({
    modelAsked: 'müsli "chat" \\ 🦜',
    reasoning: 3,
    audioInput: 2,
    audioMs: 1_500,
    images: 1,
    pages: 4,
    firstByteAt: null,
  })
  await usage.record(event)
  await until('the rows and the files are as they should be', async () => (await rowsOf([event])).length === 1)
  await usage.close()
  const [row] = await rowsOf([event])
  expect(row).toEqual({
    id: event.id,
    organization_id: event.organizationId,
    project_id: event.projectId,
    principal_id: event.principalId,
    access_key: event.accessKey,
    model_asked: event.modelAsked,
    model: event.model,
    price_id: event.priceId,
    pool_id: event.poolId,
    replica: event.replica,
    endpoint: event.endpoint,
    mode: event.mode,
    status: event.status,
    ended: event.ended,
    counted: event.counted,
    input_tokens: BigInt(event.input),
    cached_input_tokens: BigInt(event.cachedInput),
    output_tokens: BigInt(event.output),
    reasoning_tokens: 3n,
    audio_input_tokens: 2n,
    audio_milliseconds: 1_500n,
    images: 1n,
    pages: 4n,
    gateway: (await readFile(join(dataDir, 'usage', 'gateway'), 'utf8')).trim(),
    charged: true,
    accepted_at: new Date(event.acceptedAt),
    first_byte_at: null,
    ended_at: new Date(event.endedAt),
    recorded_at: expect.any(Date),
  })
})

test('what waits for the ledger is a figure: all of it while the database is away, nothing once it has it', async () => {
  let isAway = true
  const db = new Proxy(database.db, {
    get: (target, name) => (name === 'query' && isAway ? () => Promise.reject(new Error('away')) : (Reflect.get(target, name) as unknown)),
  })
  const metrics = openMetrics()
  const limits = { shipEveryMs: 20 }
  const usage = await openUsage({ dataDir, db, clock: systemClock, log: silent, limits, metrics })
  const waitingBytes = (): number => Number(/^parvis_usage_journal_bytes (\d+)$/m.exec(metrics.render())?.[1])
  const events = [usageEventOf(), usageEventOf()]
  await Promise.all(events.map(usage.record))
  await until('both wait', async () => waitingBytes() > 1_000)
  isAway = false
  await until('nothing waits', async () => waitingBytes() === 0)
  expect(await rowsOf(events)).toHaveLength(2)
  await usage.close()
})

test('closing ships what is left and leaves no segment behind', async () => {
  const usage = await openUsage({ dataDir, db: database.db, clock: systemClock, log: silent, limits: { shipEveryMs: 60_000 } })
  const events = Array.from({ length: 2_500 }, () => usageEventOf())
  await Promise.all(events.map((event) => usage.record(event)))
  await usage.close()
  expect(await rowsOf(events)).toHaveLength(2_500)
  expect(await files()).toEqual([])
})

test('a segment that is shipped twice changes nothing', async () => {
  const events = Array.from({ length: 50 }, () => usageEventOf())
  const bytes = Buffer.concat(events.map((event) => frame(JSON.stringify(event))))
  for (let round = 0; round < 3; round += 1) {
    const usage = await openHere()
    await usage.close()
    await writeFile(join(dataDir, 'usage', segmentName(1)), bytes)
  }
  await (await openHere()).close()
  expect(await rowsOf(events)).toHaveLength(50)
})

test('a segment that was written before events named their pool is shipped, without one', async () => {
  const events = Array.from({ length: 3 }, () => usageEventOf())
  const older = events.map((event) => frame(JSON.stringify({ ...event, poolId: undefined })))
  await (await openHere()).close()
  await writeFile(join(dataDir, 'usage', segmentName(1)), Buffer.concat(older))
  await (await openHere()).close()
  const rows = await rowsOf(events)
  expect(rows.map((row) => row['pool_id'])).toEqual([null, null, null])
  expect(rows.map((row) => row['replica'])).toEqual(events.map(({ replica }) => replica))
})

test('what an earlier process left is brought to its end, oldest first', async () => {
  const journal = await openJournal({ directory: join(dataDir, 'usage'), log: silent, limits: { segmentBytes: 2_000 } })
  const events = Array.from({ length: 30 }, () => usageEventOf())
  for (const event of events) await journal.record(event)
  await journal.close()
  const usage = await openHere()
  await until('the rows and the files are as they should be', async () => (await rowsOf(events)).length === 30)
  // All that remains is the segment of the present process.
  await until('the rows and the files are as they should be', async () => (await files()).length === 1)
  expect(await rowsOf(events)).toHaveLength(30)
  await usage.close()
})

test('with the database away events wait on disk, and reach it when it is back', async () => {
  const way = await openWay(database.url)
  const db = openDb(way.url, { log: silent })
  const usage = await openHere(db)
  try {
    const before = usageEventOf()
    await usage.record(before)
    await until('the rows and the files are as they should be', async () => (await rowsOf([before])).length === 1)
    way.shut()
    const during = Array.from({ length: 20 }, () => usageEventOf())
    await Promise.all(during.map((event) => usage.record(event)))
    expect(usage.fault()).toBeUndefined()
    way.open()
    await until('the rows and the files are as they should be', async () => (await rowsOf(during)).length === 20)
  } finally {
    await usage.close()
    await db.end()
    await way.close()
  }
})

test('closing with the database away is quick and loses nothing', async () => {
  const way = await openWay(database.url)
  way.shut()
  const db = openDb(way.url, { log: silent })
  const usage = await openHere(db)
  const event = usageEventOf()
  await usage.record(event)
  await usage.close()
  await db.end()
  await way.close()
  expect(await rowsOf([event])).toEqual([])
  await (await openHere()).close()
  expect(await rowsOf([event])).toHaveLength(1)
})

test('one event that the database will never take is put aside with an alarm and holds up nobody', async () => {
  const { log, lines } = listening()
  const usage = await openUsage({ dataDir, db: database.db, clock: systemClock, log, limits: { shipEveryMs: 20 } })
  const good = Array.from({ length: 40 }, () => usageEventOf())
  const bad = usageEventOf({ input: Number.NaN })
  await Promise.all([...good.slice(0, 17), bad, ...good.slice(17)].map((event) => usage.record(event)))
  await usage.close()
  expect(await rowsOf(good)).toHaveLength(40)
  expect(await files()).toEqual(['refused.jsonl'])
  expect(await readFile(join(dataDir, 'usage', 'refused.jsonl'), 'utf8')).toContain(`"id":"${bad.id}"`)
  expect(lines.some((line) => line.includes('put aside'))).toBe(true)
})

test('damage in an older segment is an alarm: what is intact is shipped, and the file is kept', async () => {
  await (await openHere()).close()
  const events = Array.from({ length: 9 }, () => usageEventOf())
  const frames = events.map((event) => frame(JSON.stringify(event)))
  const bytes = Buffer.concat(frames)
  const inFourth = (frames[0]?.length ?? 0) * 3 + 40
  bytes[inFourth] = (bytes[inFourth] ?? 0) ^ 1
  await writeFile(join(dataDir, 'usage', segmentName(1)), bytes)
  await appendFile(join(dataDir, 'usage', segmentName(2)), frame(JSON.stringify(usageEventOf())))
  const { log, lines } = listening()
  const usage = await openUsage({ dataDir, db: database.db, clock: systemClock, log, limits: { shipEveryMs: 20 } })
  await usage.close()
  expect((await rowsOf(events)).map((row) => row['id'])).toEqual(
    events
      .filter((_, index) => index !== 3)
      .map((event) => event.id)
      .toSorted(),
  )
  expect(lines.filter((line) => line.includes('damaged'))).toHaveLength(1)
  expect(await files()).toEqual([`${segmentName(1)}.damaged`])
  expect(await readFile(join(dataDir, 'usage', `${segmentName(1)}.damaged`))).toEqual(bytes)
})

test('a segment that grows while it is shipped is shipped whole and only forgotten once closed', async () => {
  const journal = await openJournal({ directory: join(dataDir, 'usage'), log: silent, limits: { segmentBytes: 3_000 } })
  const openings = await openOpenings({ directory: join(dataDir, 'usage'), log: silent })
  const shipper = openShipper({ journal, openings, db: database.db, log: silent })
  const shipping = openShipping({ shipper, journal, clock: systemClock, log: silent, everyMs: 1 })
  const events = Array.from({ length: 200 }, () => usageEventOf())
  for (const event of events) await journal.record(event)
  await shipping.stop()
  await journal.close()
  await shipper.ship()
  await openings.close()
  expect(await rowsOf(events)).toHaveLength(200)
  expect(await listSegments(join(dataDir, 'usage'))).toEqual([])
})

test('killed in the middle of writing, again and again, every acknowledged event is in the database once', async () => {
  const acknowledged: string[] = []
  for (let round = 0; round < 4; round += 1) {
    const child = spawn(process.execPath, [...FROM_SOURCE, WRITER, join(dataDir, 'usage'), '8', '50000'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const ended = new Promise((done) => child.on('close', done))
    let said = 0
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('on-disk ')) acknowledged.push(line.slice('on-disk '.length))
      said += 1
      if (said === 150 + round * 41) child.kill('SIGKILL')
    })
    await ended
    // Every second life ships what it finds, the others only add to it.
    if (round % 2 === 1) await (await openHere()).close()
  }
  const there = await idsInDatabase()
  expect(new Set(there).size).toBe(there.length)
  expect(acknowledged.length).toBeGreaterThan(400)
  const known = new Set(there)
  expect(acknowledged.filter((id) => !known.has(id))).toEqual([])
})

/** A way to the database that can be shut, as when the network or the server goes away. */
const openWay = async (databaseUrl: string) => {
  const target = new URL(databaseUrl)
  const sockets = new Set<Socket>()
  let passable = true
  const server = createServer((near) => {
    if (!passable) return near.destroy()
    const far = connectTcp(Number(target.port || 5432), target.hostname)
    for (const socket of [near, far]) {
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.on('close', () => {
        sockets.delete(socket)
        near.destroy()
        far.destroy()
      })
    }
    return near.pipe(far).pipe(near)
  })
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const address = server.address()
  const url = new URL(databaseUrl)
  url.hostname = '127.0.0.1'
  url.port = typeof address === 'object' && address !== null ? String(address.port) : ''
  const shut = () => {
    passable = false
    for (const socket of sockets) socket.destroy()
  }
  return {
    url: url.href,
    shut,
    open: () => {
      passable = true
    },
    close: () => {
      shut()
      return new Promise<void>((done) => server.close(() => done()))
    },
  }
}
