import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { crc32 } from 'node:zlib'
import { FROM_SOURCE } from '@parvis/testkit/program'
import fc from 'fast-check'
import { pino } from 'pino'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { UsageEvent } from './event.ts'
import { type JournalLimits, openJournal } from './journal.ts'
import { addRecord, findIntact, frame, listSegments, noRecords, readIntact, segmentName } from './segment.ts'

const WRITER = fileURLToPath(new URL('../../test/children/journal-writer.ts', import.meta.url))
const silent = pino({ level: 'silent' })

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'parvis-journal-'))
})
afterEach(async () => {
  await rm(directory, { recursive: true, force: true })
})

const openHere = (limits: Partial<JournalLimits> = {}) => openJournal({ directory, log: silent, limits })

const idsOnDisk = async (): Promise<string[]> => {
  const payloads = await Promise.all((await listSegments(directory)).map(async ({ path }) => readIntact(await readFile(path), 0).payloads))
  return payloads.flat().map((payload) => (JSON.parse(payload) as UsageEvent).id)
}

const lastSegment = async () => {
  const last = (await listSegments(directory)).at(-1)
  if (last === undefined) throw new Error('no segment')
  return last
}

/** A journal of some events, and the file as a process that died would have left it. */
const writeSome = async (count: number): Promise<{ path: string; bytes: Buffer; ids: string[] }> => {
  const journal = await openHere()
  const events = Array.from({ length: count }, () => usageEventOf())
  for (const event of events) await journal.record(event)
  await journal.close()
  const { path } = await lastSegment()
  return { path, bytes: await readFile(path), ids: events.map((event) => event.id) }
}

test('a record is the length, the CRC-32 of length and payload, and the payload', async () => {
  const journal = await openHere()
  const events = Array.from({ length: 200 }, (_, index) => usageEventOf({ modelAsked: 'é'.repeat(index * 50) }))
  await Promise.all(events.map((event) => journal.record(event)))
  const bytes = await readFile((await lastSegment()).path)
  let at = 0
  for (const { id } of events) {
    const length = bytes.readUInt32LE(at)
    const payload = bytes.subarray(at + 8, at + 8 + length)
    expect(bytes.readUInt32LE(at + 4)).toBe(crc32(Buffer.concat([bytes.subarray(at, at + 4), payload])))
    expect((JSON.parse(payload.toString('utf8')) as UsageEvent).id).toBe(id)
    at += 8 + length
  }
  await journal.close()
})

test('an event that was acknowledged is in the file at that moment', async () => {
  const journal = await openHere()
  const event = usageEventOf()
  await journal.record(event)
  expect(await idsOnDisk()).toEqual([event.id])
  await journal.close()
})

test('a thousand callers at once share a few writes, and each event is there once, in order', async () => {
  const journal = await openHere()
  const events = Array.from({ length: 1_000 }, () => usageEventOf())
  await Promise.all(events.map((event) => journal.record(event)))
  expect(await idsOnDisk()).toEqual(events.map((event) => event.id))
  await journal.close()
})

test('whoever is woken by an acknowledgement may record the next event in the same breath', async () => {
  const journal = await openHere()
  for (let each = 0; each < 50; each += 1) await journal.record(usageEventOf())
  expect(await idsOnDisk()).toHaveLength(50)
  await journal.close()
})

test('a segment that is full is followed by another, and closed', async () => {
  const journal = await openHere({ segmentBytes: 2_000 })
  const events = Array.from({ length: 20 }, () => usageEventOf())
  for (const event of events) await journal.record(event)
  expect(journal.segments().length).toBeGreaterThan(3)
  expect(journal.segments().map((segment) => segment.closed)).toEqual([
    ...Array.from({ length: journal.segments().length - 1 }, () => true),
    false,
  ])
  expect(await idsOnDisk()).toEqual(events.map((event) => event.id))
  await journal.close()
})

test('room for what comes is made beforehand, and only the segment that is being written has it', async () => {
  const journal = await openHere({ segmentBytes: 2_000, roomBytes: 4_096 })
  for (let each = 0; each < 10; each += 1) await journal.record(usageEventOf())
  const sizes = async (): Promise<number[]> => Promise.all((await listSegments(directory)).map(async ({ path }) => (await stat(path)).size))
  const bytes = journal.segments().map((segment) => segment.bytes)
  expect(bytes.length).toBeGreaterThan(1)
  expect((await sizes()).slice(0, -1)).toEqual(bytes.slice(0, -1))
  const { path } = await lastSegment()
  const written = await readFile(path)
  expect(written.length).toBeGreaterThan(bytes.at(-1) ?? 0)
  expect(written.subarray(bytes.at(-1)).every((byte) => byte === 0)).toBe(true)
  await journal.close()
  expect(await sizes()).toEqual(bytes)
})

test('the room of a process that was killed is cut without an alarm', async () => {
  const { path, bytes, ids } = await writeSome(2)
  await leaveOnly(path, Buffer.concat([bytes, Buffer.alloc(4_096)]))
  const said: string[] = []
  const log = pino({ level: 'info' }, { write: (line: string) => void said.push(line) })
  await (await openJournal({ directory, log })).close()
  expect(await idsOnDisk()).toEqual(ids)
  expect(said).toEqual([])
})

test('a closed segment can be forgotten, the one being written cannot', async () => {
  const journal = await openHere({ segmentBytes: 1 })
  await journal.record(usageEventOf())
  await journal.record(usageEventOf())
  for (const segment of journal.segments()) await journal.forget(segment)
  expect(await listSegments(directory)).toHaveLength(1)
  await journal.close()
})

test('more bytes on disk than allowed are refused with the reason, until the database has taken some', async () => {
  const journal = await openHere({ segmentBytes: 1, totalBytes: 1_000 })
  await journal.record(usageEventOf())
  await journal.record(usageEventOf())
  expect(journal.fault()).toMatch(/its limit is 1000/)
  await expect(journal.record(usageEventOf())).rejects.toThrow('that the database has not taken yet')
  const [first] = journal.segments()
  if (first !== undefined) await journal.forget(first)
  expect(journal.fault()).toBeUndefined()
  await journal.record(usageEventOf())
  await journal.close()
})

test('more events than may wait for the disk are refused, and those that wait are written', async () => {
  const journal = await openHere({ queueBytes: 5_000 })
  const outcomes = await Promise.allSettled(Array.from({ length: 50 }, () => journal.record(usageEventOf())))
  const refused = outcomes.filter((outcome) => outcome.status === 'rejected')
  expect(refused.length).toBeGreaterThan(0)
  expect(String((refused[0] as PromiseRejectedResult).reason)).toContain('The disk is behind')
  expect(await idsOnDisk()).toHaveLength(50 - refused.length)
  expect(journal.fault()).toBeUndefined()
  await journal.close()
})

test('an event that is too large for a record is refused and harms nobody', async () => {
  const journal = await openHere()
  // The second has few characters and many bytes.
  for (const modelAsked of ['x'.repeat(70_000), '猫'.repeat(30_000)])
    await expect(journal.record(usageEventOf({ modelAsked }))).rejects.toThrow('larger than')
  const { id } = usageEventOf()
  await journal.record(usageEventOf({ id, modelAsked: '猫' }))
  expect(journal.fault()).toBeUndefined()
  expect(await idsOnDisk()).toEqual([id])
  await journal.close()
})

test('after closing, what was on its way is on disk and the rest is refused', async () => {
  const journal = await openHere()
  const events = Array.from({ length: 10 }, () => usageEventOf())
  const recorded = Promise.all(events.map((event) => journal.record(event)))
  await journal.close()
  await recorded
  expect(await idsOnDisk()).toHaveLength(10)
  await expect(journal.record(usageEventOf())).rejects.toThrow('closed')
})

test('what an earlier process left is kept, and the next one writes to a segment of its own', async () => {
  const first = await writeSome(3)
  const journal = await openHere()
  const event = usageEventOf()
  await journal.record(event)
  expect(await idsOnDisk()).toEqual([...first.ids, event.id])
  await journal.close()
})

/** Every place near the beginning or the end of a record, and some in between: each costs a file that is opened and synced. */
const placesIn = (bytes: Buffer, ends: readonly number[]): number[] =>
  Array.from({ length: bytes.length + 1 }, (_, place) => place).filter(
    (place) => place % 16 === 0 || [0, ...ends].some((end) => Math.abs(place - end) <= 24),
  )

test('cut at any kind of place, the records before the cut stay and the rest goes', async () => {
  const { path, bytes, ids } = await writeSome(3)
  const ends = recordEnds(bytes)
  for (const length of placesIn(bytes, ends)) {
    await leaveOnly(path, bytes.subarray(0, length))
    await (await openHere()).close()
    expect(await idsOnDisk()).toEqual(ids.slice(0, ends.filter((end) => end <= length).length))
  }
})

test('zeros behind any kind of place are no records and are cut', async () => {
  const { path, bytes, ids } = await writeSome(2)
  const ends = recordEnds(bytes)
  for (const length of placesIn(bytes, ends)) {
    await leaveOnly(path, Buffer.concat([bytes.subarray(0, length), Buffer.alloc(4_096)]))
    await (await openHere()).close()
    const kept = ends.filter((end) => end <= length).length
    expect(await idsOnDisk()).toEqual(ids.slice(0, kept))
    expect((await readFile(path)).length).toBe(ends[kept - 1] ?? 0)
  }
})

test('a flipped bit anywhere keeps the records before it, and the bytes behind it are put beside, not destroyed', async () => {
  const { path, bytes, ids } = await writeSome(4)
  const ends = recordEnds(bytes)
  await fc.assert(
    fc.asyncProperty(fc.nat(bytes.length - 1), fc.nat(7), async (at, bit) => {
      const flipped = Buffer.from(bytes)
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit)
      await leaveOnly(path, flipped)
      await (await openHere()).close()
      const kept = ends.filter((end) => end <= at).length
      expect(await idsOnDisk()).toEqual(ids.slice(0, kept))
      const cut = (await readdir(directory)).filter((name) => name.endsWith('.cut'))
      expect(cut).toHaveLength(1)
      expect(await readFile(join(directory, cut[0] ?? ''))).toEqual(flipped.subarray(ends[kept - 1] ?? 0))
    }),
    { numRuns: 60 },
  )
})

test('damage in an older segment is left for the shipper to report, not cut', async () => {
  const { path, bytes } = await writeSome(3)
  const damaged = Buffer.from(bytes)
  damaged[10] = (damaged[10] ?? 0) ^ 1
  await writeFile(path, damaged)
  await writeFile(join(directory, segmentName(2)), frame(JSON.stringify(usageEventOf())))
  await (await openHere()).close()
  expect(await readFile(path)).toEqual(damaged)
})

test('behind a damaged place the next intact record is found', () => {
  const payloads = Array.from({ length: 3 }, () => JSON.stringify(usageEventOf()))
  const frames = payloads.map(frame)
  const bytes = Buffer.concat(frames)
  const second = frames[0]?.length ?? 0
  bytes[20] = (bytes[20] ?? 0) ^ 4
  expect(readIntact(bytes, 0)).toEqual({ payloads: [], end: 0 })
  expect(findIntact(bytes, 1)).toBe(second)
  expect(readIntact(bytes, second).payloads).toEqual(payloads.slice(1))
  expect(findIntact(bytes.subarray(0, 100), 1)).toBe(-1)
})

test('every text survives the frame', () => {
  fc.assert(
    fc.property(fc.array(fc.record({ text: fc.string({ unit: 'binary' }) })), (values) => {
      const payloads = values.map((value) => JSON.stringify(value))
      const bytes = Buffer.concat(payloads.map(frame))
      expect(readIntact(bytes, 0)).toEqual({ payloads, end: bytes.length })
    }),
  )
})

test('what a record is given more stands in it with the rest', () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ text: fc.string({ unit: 'binary' }) })),
      fc.record({ more: fc.string({ unit: 'binary' }) }),
      (values, more) => {
        const records = noRecords()
        for (const value of values) addRecord(records, JSON.stringify(value), Buffer.from(`,${JSON.stringify(more).slice(1)}`))
        const read = readIntact(records.bytes.subarray(0, records.length), 0)
        expect(read.payloads.map((payload) => JSON.parse(payload) as object)).toEqual(values.map((value) => ({ ...value, ...more })))
      },
    ),
  )
})

test('killed again and again, every acknowledged event is there once', async () => {
  const acknowledged: string[] = []
  for (let round = 0; round < 6; round += 1) {
    const writer = startWriter(`exec "$0" "$@"`, ['16', '40000'])
    await writer.until((lines) => lines.length > 200 + round * 37)
    writer.child.kill('SIGKILL')
    await writer.exited
    acknowledged.push(...writer.acknowledged())
  }
  await (await openHere()).close()
  const onDisk = await idsOnDisk()
  expect(new Set(onDisk).size).toBe(onDisk.length)
  expect(acknowledged.length).toBeGreaterThan(1_000)
  const there = new Set(onDisk)
  expect(acknowledged.filter((id) => !there.has(id))).toEqual([])
})

test('a full disk refuses everything with the reason, loses nothing acknowledged, and is used again once there is room', async () => {
  // A limit on the size of a file makes writes come back short and then fail, as a full disk does.
  const writer = startWriter(`ulimit -S -f 64; exec "$0" "$@"`, ['4', String(1 << 20)])
  try {
    await writer.until((lines) => lines.filter((line) => line.startsWith('refused')).length === 4)
    const lines = writer.lines()
    expect(lines.filter((line) => line.startsWith('refused')).every((line) => line.includes('The usage journal cannot be written'))).toBe(
      true,
    )
    expect(lines.filter((line) => line.startsWith('fault')).every((line) => line.includes('cannot be written'))).toBe(true)
    const before = writer.acknowledged()
    expect(before.length).toBeGreaterThan(10)

    const raised = spawn('prlimit', ['--pid', String(writer.child.pid), '--fsize=unlimited:'], { stdio: 'ignore' })
    await new Promise((done) => raised.on('exit', done))
    await writer.until((said) => said.includes('closed'))
    await writer.exited
    const onDisk = await idsOnDisk()
    expect(onDisk.toSorted()).toEqual(writer.acknowledged().toSorted())
    expect(writer.acknowledged()).toHaveLength(before.length + 1)
  } finally {
    writer.child.kill('SIGKILL')
  }
})

const recordEnds = (bytes: Buffer): number[] => {
  const ends: number[] = []
  for (let at = 0; at < bytes.length; ends.push(at)) at += 8 + bytes.readUInt32LE(at)
  return ends
}

/** The directory as a crash leaves it: one segment with these bytes. */
const leaveOnly = async (path: string, bytes: Buffer): Promise<void> => {
  for (const name of await readdir(directory)) await rm(join(directory, name))
  await writeFile(path, bytes)
  await truncate(path, bytes.length)
}

const startWriter = (shell: string, args: string[]) => {
  const child: ChildProcess = spawn('/bin/sh', ['-c', shell, process.execPath, ...FROM_SOURCE, WRITER, directory, ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const lines: string[] = []
  let closed = false
  let look = () => undefined as void
  if (child.stdout !== null) {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line)
      look()
    })
  }
  const exited = new Promise<void>((done) => {
    child.on('close', () => {
      closed = true
      done()
      look()
    })
  })
  return {
    child,
    exited,
    lines: () => lines,
    acknowledged: () => lines.filter((line) => line.startsWith('on-disk ')).map((line) => line.slice('on-disk '.length)),
    until: (holds: (lines: readonly string[]) => boolean): Promise<void> =>
      new Promise((done, fail) => {
        look = () => {
          if (holds(lines)) done()
          else if (closed) fail(new Error(`the writer ended too early: ${lines.slice(-3).join(' | ')}`))
        }
        look()
      }),
  }
}
