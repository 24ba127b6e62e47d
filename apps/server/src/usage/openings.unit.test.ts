import { spawn } from 'node:child_process'
import { type FileHandle, mkdtemp, open, readdir, readlink, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { openLog } from '../kit/log.ts'
import type { UsageEvent } from './event.ts'
import { listOpenings, openOpenings, readOpenings } from './openings.ts'

const WRITER = fileURLToPath(new URL('../../test/children/openings-writer.ts', import.meta.url))
const log = openLog('silent')

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'parvis-openings-'))
})
afterEach(async () => {
  vi.restoreAllMocks()
  await rm(directory, { recursive: true, force: true })
})

const some = (count: number): UsageEvent[] => Array.from({ length: count }, () => usageEventOf())
const idsOf = (events: readonly UsageEvent[]): string[] => events.map(({ id }) => id).toSorted()

/** What a start would find now. A file may just have been written anew under another name. */
const noted = async (): Promise<string[]> => {
  const payloads = await Promise.all((await listOpenings(directory)).map((path) => readOpenings(path).catch(() => [])))
  return payloads
    .flat()
    .map((payload) => (JSON.parse(payload) as UsageEvent).id)
    .toSorted()
}
const untilNoted = (events: readonly UsageEvent[]): Promise<void> =>
  until('all are noted', async () => {
    const there = new Set(await noted())
    return events.every(({ id }) => there.has(id))
  })

/** The number of the newest file: each time that the list is written anew it is one more. */
const lastNumber = async (): Promise<number> =>
  Number(((await listOpenings(directory)).at(-1) ?? '').slice(directory.length + 1).slice(0, 12))

/** The files of the directory that a process holds open. */
const heldBy = async (pid: number | undefined): Promise<string[]> => {
  const links = `/proc/${pid}/fd`
  const held = await Promise.all((await readdir(links)).map((name) => readlink(join(links, name)).catch(() => '')))
  return held.filter((path) => path.startsWith(directory))
}

/** No file but one is there, and it is held once. */
const untilOneFile = (): Promise<void> =>
  until('there is one file', async () => {
    const there = await listOpenings(directory)
    return there.length === 1 && (await heldBy(process.pid)).join() === there.join()
  })

/** As on a disk without room, what `fails` chooses is written by half. Each write by its length and where it begins. */
const breakWrites = async (fails: (length: number, at: number) => boolean) => {
  const probe = await open(join(directory, 'probe'), 'w')
  const prototype = Object.getPrototypeOf(probe) as FileHandle
  await probe.close()
  await rm(join(directory, 'probe'))
  const { write } = prototype
  let failures = 0
  vi.spyOn(prototype, 'write').mockImplementation(function (this: FileHandle, bytes: Buffer, offset: number, length: number, at = 0) {
    const isFailing = fails(length, at)
    if (isFailing) failures += 1
    return Reflect.apply(write, this, [bytes, offset, isFailing ? length >> 1 : length, at]) as never
  } as never)
  return { failures: () => failures }
}

test('with more open answers than a file should hold, a note is a few bytes more and not a new file with all of them', async () => {
  const openings = await openOpenings({ directory, log })
  const open = some(10_000)
  for (const event of open) openings.note(event, 'streamed')
  await untilNoted(open)
  const before = await lastNumber()
  const look = async () => {
    const path = (await listOpenings(directory)).at(-1) ?? ''
    return `${path} ${(await stat(path).catch(() => undefined))?.size}`
  }
  const more = some(30)
  for (const event of more) {
    const seen = await look()
    openings.note(event, 'streamed')
    await until('it is noted', async () => (await look()) !== seen)
  }
  await untilNoted([...open, ...more])
  expect((await lastNumber()) - before).toBeLessThanOrEqual(1)

  // It is still written anew when half of it is of answers long over.
  for (const event of open.slice(10)) openings.end(event.id)
  const late = some(12_000)
  for (const event of late) openings.note(event, 'streamed')
  await until(
    'it holds what runs and no more',
    async () => (await noted()).join() === idsOf([...open.slice(0, 10), ...more, ...late]).join(),
  )
  expect((await lastNumber()) - before).toBeLessThanOrEqual(3)
  await openings.close()
})

test('what a full disk did not take is noted when there is room, behind what it had taken', async () => {
  // A limit on the size of a file makes writes come back short and then fail, as a full disk does.
  const child = spawn('/bin/sh', ['-c', 'ulimit -S -f 64; exec "$0" "$@"', process.execPath, ...FROM_SOURCE, WRITER, directory, '200'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    const lines: string[] = []
    createInterface({ input: child.stdout }).on('line', (line) => lines.push(line))
    await until('it says so', () => lines.some((line) => line.includes('what has begun cannot be noted')))
    const begun = lines.filter((line) => line.startsWith('begun ')).map((line) => line.slice('begun '.length))
    expect(begun).toHaveLength(200)
    expect((await noted()).length).toBeLessThan(begun.length)

    const raised = spawn('prlimit', ['--pid', String(child.pid), '--fsize=unlimited:'], { stdio: 'ignore' })
    await new Promise((done) => raised.on('exit', done))
    await until('all are noted', async () => (await noted()).length === begun.length)
    expect(await noted()).toEqual(begun.toSorted())
    expect(await heldBy(child.pid)).toEqual(await listOpenings(directory))
    expect(lines.filter((line) => line.includes('cannot be noted'))).toHaveLength(1)
  } finally {
    child.kill('SIGKILL')
  }
})

test('what ends or is withdrawn while it cannot be noted is not noted later, and what was noted before is withdrawn then', async () => {
  let isFull = false
  const broken = await breakWrites(() => isFull)
  const openings = await openOpenings({ directory, log, limits: { retryMs: 5 } })
  const whileFull = async (does: () => void): Promise<void> => {
    isFull = true
    const before = broken.failures()
    does()
    await until('a write has failed', () => broken.failures() > before + 1)
  }
  const untilOnly = (events: readonly UsageEvent[]): Promise<void> => {
    isFull = false
    return until('those that run are noted, and no other is', async () => (await noted()).join() === idsOf(events).join())
  }
  const [first, second, third, ...others] = some(23) as [UsageEvent, UsageEvent, UsageEvent, ...UsageEvent[]]
  openings.note(first, 'streamed')
  await untilOnly([first])

  // Half of them reach the disk, each time.
  await whileFull(() => [...others, second].forEach((event) => openings.note(event, 'streamed')))
  for (const { id } of others.slice(0, 10)) openings.end(id)
  for (const { id } of others.slice(10)) openings.withdraw(id)
  await untilOnly([first, second])

  await whileFull(() => {
    openings.withdraw(first.id)
    openings.note(third, 'streamed')
  })
  await untilOnly([second, third])
  await openings.close()
})

test('a full disk is not asked again for each answer that begins, and a stop notes what it can', async () => {
  let isFull = true
  const broken = await breakWrites(() => isFull)
  const openings = await openOpenings({ directory, log, limits: { retryMs: 3_600_000 } })
  const events = some(50)
  for (const event of events) {
    openings.note(event, 'streamed')
    await until('it was tried', () => broken.failures() > 0)
    await stat(directory)
  }
  expect(broken.failures()).toBe(1)
  isFull = false
  await openings.close()
  expect(await noted()).toEqual(idsOf(events))
})

test('a new file that gets only a part goes again, and the old one goes on', async () => {
  let isFull = false
  const broken = await breakWrites((_, at) => isFull && at === 0)
  const openings = await openOpenings({ directory, log, limits: { fileBytes: 2_000, retryMs: 5 } })
  const [first, ...others] = some(40) as [UsageEvent, ...UsageEvent[]]
  openings.note(first, 'streamed')
  await untilNoted([first])
  isFull = true
  for (const [index, event] of others.entries()) {
    openings.note(event, 'streamed')
    await untilNoted([first, ...others.slice(0, index + 1)])
  }
  expect(broken.failures()).toBeGreaterThan(1)
  await untilOneFile()

  isFull = false
  const before = await lastNumber()
  const more = some(40)
  for (const event of more) openings.note(event, 'streamed')
  await until('it is written anew', async () => (await lastNumber()) > before)
  await untilNoted([first, ...others, ...more])
  await untilOneFile()
  await openings.close()
})

test('in whatever order answers begin, end and are withdrawn, those that run are what a start finds', async () => {
  const steps = fc.array(fc.record({ does: fc.constantFrom('begin', 'begin whole', 'end', 'withdraw', 'wait'), which: fc.nat() }), {
    maxLength: 80,
    size: 'max',
  })
  await fc.assert(
    fc.asyncProperty(steps, fc.constantFrom(1, 3_000, 1_000_000), async (does, fileBytes) => {
      const openings = await openOpenings({ directory, log, limits: { fileBytes } })
      const running: UsageEvent[] = []
      // Ids that end alike lie in one list.
      const alike = (event: UsageEvent): UsageEvent => ({ ...event, id: `${event.id.slice(0, -3)}abc` as UsageEvent['id'] })
      for (const { does: what, which } of does) {
        if (what === 'begin' || what === 'begin whole') {
          const event = which % 4 > 0 ? alike(usageEventOf()) : usageEventOf()
          openings.note(event, what === 'begin whole' ? 'whole' : 'streamed')
          running.push(event)
        } else if (what === 'wait') {
          // About as long as a write takes.
          for (let trip = 0; trip < 3; trip += 1) await stat(directory)
        } else {
          const [event] = running.splice(which % Math.max(1, running.length), 1)
          if (event !== undefined) openings[what === 'end' ? 'end' : 'withdraw'](event.id)
        }
      }
      await openings.close()
      expect(await noted()).toEqual(idsOf(running))
      for (const path of await listOpenings(directory)) await rm(path)
    }),
    { numRuns: 60 },
  )
})
