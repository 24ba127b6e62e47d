import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Logger } from '../kit/log.ts'
import type { ToMore, UsageEvent } from './event.ts'
import {
  addRecord,
  clearRecords,
  findIntact,
  listSegments,
  noRecords,
  type Records,
  readIntact,
  segmentName,
  syncDirectory,
} from './segment.ts'

/** Resolves when the event is on disk; rejects when it is not known to be. */
type Append = (event: UsageEvent) => Promise<void>

/** A file of the journal. `bytes` is what is known to be on disk; a closed one does not grow any more. */
export type Segment = { readonly number: number; readonly path: string; bytes: number; closed: boolean }

export type Journal = {
  record: Append
  /** Why nothing can be recorded now, or undefined. The gateway admits nothing while there is a reason. */
  fault: () => string | undefined
  /** Oldest first; the last one is being written. */
  segments: () => readonly Segment[]
  /** Deletes a closed segment, once everything in it is safe elsewhere. */
  forget: (segment: Segment) => Promise<void>
  /** After a failed write: looks whether the disk takes writes again, and then goes on in a new segment. */
  mend: () => Promise<void>
  /** Refuses what comes from now on and waits for what is on its way to the disk. */
  close: () => Promise<void>
}

export type JournalLimits = {
  /** A segment is a file that the shipper reads whole: some ten thousand events. */
  readonly segmentBytes: number
  /** How much room a file gets at once, beyond what is written. */
  readonly roomBytes: number
  /** A group that has grown to this is not added to; a larger one would only make its first events wait for its last. */
  readonly groupBytes: number
  /** What waits for the disk at most. Beyond it the disk is too slow for the traffic. */
  readonly queueBytes: number
  /** What may lie on disk while the database is away. */
  readonly totalBytes: number
}

const MIB = 1024 * 1024
const LIMITS: JournalLimits = { segmentBytes: 8 * MIB, roomBytes: MIB / 4, groupBytes: MIB, queueBytes: 32 * MIB, totalBytes: 4096 * MIB }

/** Room that must be there again before a full disk is believed to have ended; a few bytes would be gone at once. */
const MEND_BYTES = MIB

/** Events that go to disk in one write and are acknowledged together. */
type Group = { records: Records; done: Promise<void>; resolve: () => void; reject: (reason: Error) => void }

const newGroup = (records: Records): Group => {
  let resolve: () => void = () => undefined
  let reject: (reason: Error) => void = () => undefined
  const done = new Promise<void>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { records, done, resolve, reject }
}

/** What else ends in this turn of the loop goes with it: a write costs the same whatever it holds, and this saves a third of them under load. */
const endOfTurn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve))

// Each write returns when it is on disk: one trip through the thread pool, where write and fdatasync are two.
const FLAGS = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_DSYNC

export const makeJournalDir = async (directory: string): Promise<void> => {
  if ((await mkdir(directory, { recursive: true, mode: 0o700 })) !== undefined) await syncDirectory(dirname(directory))
}

const createSegment = async (directory: string, number: number): Promise<{ segment: Segment; handle: FileHandle }> => {
  const path = join(directory, segmentName(number))
  const handle = await open(path, FLAGS, 0o600)
  try {
    await syncDirectory(directory)
  } catch (error) {
    await handle.close()
    await rm(path, { force: true }).catch(() => undefined)
    throw error
  }
  return { segment: { number, path, bytes: 0, closed: false }, handle }
}

const shorten = async (handle: FileHandle, bytes: number): Promise<void> => {
  await handle.truncate(bytes)
  await handle.sync()
}

const truncate = async (path: string, bytes: number): Promise<void> => {
  const handle = await open(path, 'r+')
  try {
    await shorten(handle, bytes)
  } finally {
    await handle.close()
  }
}

/**
 * A process that dies leaves at most one unfinished write, at the end of its last segment, and the room behind it. The intact records
 * before it stay; the rest was never acknowledged and is cut. It is kept beside, unless it is only zeros, as the room is: where a disk has
 * lied, somebody may want to see it.
 */
const cutTail = async (path: string, log: Logger): Promise<number> => {
  const bytes = await readFile(path)
  const { end } = readIntact(bytes, 0)
  if (end === bytes.length) return end
  const rest = bytes.subarray(end)
  const isRoom = rest.every((byte) => byte === 0)
  if (!isRoom) await writeFile(`${path}.${end}.cut`, rest, { mode: 0o600, flush: true })
  await truncate(path, end)
  if (isRoom) return end
  // A write of several pages may tear out of order; in a single small one, records behind the damage mean that the disk has lied.
  const recordsBehind = findIntact(bytes, end + 1) >= 0
  log.warn(
    { segment: path, keptBytes: end, cutBytes: rest.length, recordsBehind },
    'the usage journal ended in an unfinished write, which was cut',
  )
  return end
}

/** What earlier processes left, all closed. Damage in an older segment is not ours to cut: the shipper raises the alarm. */
const recover = async (directory: string, log: Logger): Promise<Segment[]> => {
  const found = await listSegments(directory)
  const last = found.at(-1)
  return Promise.all(
    found.map(async ({ number, path }) => ({
      number,
      path,
      bytes: path === last?.path ? await cutTail(path, log) : (await stat(path)).size,
      closed: true,
    })),
  )
}

/**
 * An append-only file per segment. One write is in flight; what arrives meanwhile, and until the end of that turn of the loop, is the
 * next group, so there is no timer and the groups grow by themselves under load.
 *
 * Now and then a write carries zeros behind its events: room for those to come. A write into room that is there already is one trip to
 * the disk; one that makes the file longer is two, since its new length must be there too. It takes half the time, and half the processor's.
 *
 * A write that fails poisons the file: what the disk kept of it is unknown, so nothing is written behind it. Everything is
 * refused with the reason until `mend` has cut the file back to what was acknowledged and opened another.
 */
export const openJournal = async (options: {
  directory: string
  log: Logger
  limits?: Partial<JournalLimits>
  toMore?: ToMore
}): Promise<Journal> => {
  const { directory, log, toMore } = options
  const limits = { ...LIMITS, ...options.limits }
  if ((constants.O_DSYNC as number | undefined) === undefined)
    throw new Error('This system cannot write through to the disk (O_DSYNC), which the usage journal needs.')
  await makeJournalDir(directory)

  const segments = await recover(directory, log)
  let number = (segments.at(-1)?.number ?? 0) + 1
  let { segment, handle } = await createSegment(directory, number)
  let fileBytes = 0 // of the segment that is being written, with its room
  segments.push(segment)

  const room = Buffer.alloc(limits.roomBytes)
  const waiting: Group[] = []
  // Of the group that was written last, for the one after the next.
  let spare: Records | undefined
  let queuedBytes = 0
  let onDiskBytes = segments.reduce((total, each) => total + each.bytes, 0)
  let broken: string | undefined
  let stopped = false
  let pumping: Promise<void> | undefined

  const rotate = async (): Promise<void> => {
    // Before there is another: only in the last one may there be something behind the records.
    await shorten(handle, segment.bytes)
    number += 1
    const next = await createSegment(directory, number)
    const finished = { segment, handle }
    ;({ segment, handle } = next)
    fileBytes = 0
    segments.push(segment)
    await finished.handle.close()
    finished.segment.closed = true
  }

  const write = async ({ bytes, length }: Records): Promise<void> => {
    if (segment.bytes >= limits.segmentBytes) await rotate()
    const { bytesWritten } =
      segment.bytes + length > fileBytes
        ? await handle.writev([bytes.subarray(0, length), room], segment.bytes)
        : await handle.write(bytes, 0, length, segment.bytes)
    fileBytes = Math.max(fileBytes, segment.bytes + bytesWritten)
    // A full disk may take a part and only say so next time. Room it need not have.
    if (bytesWritten < length) throw new Error(`only ${bytesWritten} of ${length} bytes were written`)
    segment.bytes += length
    onDiskBytes += length
  }

  const poison = (cause: unknown): Error => {
    broken = `The usage journal cannot be written: ${cause instanceof Error ? cause.message : String(cause)} (${segment.path}).`
    log.error({ err: cause, segment: segment.path }, 'the usage journal cannot be written; nothing is admitted until it can')
    return new Error(broken, { cause })
  }

  const pump = async (): Promise<void> => {
    while (waiting.length > 0) {
      await endOfTurn()
      const group = waiting.shift() as Group
      try {
        await write(group.records)
        queuedBytes -= group.records.length
        group.resolve()
      } catch (error) {
        const reason = poison(error)
        for (const lost of [group, ...waiting.splice(0)]) {
          queuedBytes -= lost.records.length
          lost.reject(reason)
        }
      }
      clearRecords(group.records)
      spare = group.records
    }
    // In the same breath as the last look: whoever is woken by an acknowledgement may record the next event at once.
    pumping = undefined
  }

  const fault = (): string | undefined => {
    if (stopped) return 'The usage journal is closed.'
    if (broken !== undefined) return broken
    if (onDiskBytes >= limits.totalBytes) {
      return `The usage journal holds ${onDiskBytes} bytes that the database has not taken yet; its limit is ${limits.totalBytes}.`
    }
    if (queuedBytes >= limits.queueBytes) return `The disk is behind: ${queuedBytes} bytes of usage events wait for it.`
    return undefined
  }

  const record: Append = (event) => {
    const reason = fault()
    if (reason !== undefined) return Promise.reject(new Error(reason))
    let group = waiting.at(-1)
    if (group === undefined || group.records.length >= limits.groupBytes) {
      group = newGroup(spare ?? noRecords())
      spare = undefined
    }
    const { records } = group
    const before = records.length
    try {
      addRecord(records, JSON.stringify(event), toMore?.(event))
    } catch (error) {
      if (before === 0) spare = records
      return Promise.reject(error as Error)
    }
    if (before === 0) waiting.push(group)
    queuedBytes += records.length - before
    pumping ??= pump()
    return group.done
  }

  const mend = async (): Promise<void> => {
    if (broken === undefined || stopped || pumping !== undefined) return
    try {
      await truncate(segment.path, segment.bytes)
      // Counted first: a name that was half made is not tried again.
      number += 1
      const next = await createSegment(directory, number)
      await handle.close()
      segment.closed = true
      ;({ segment, handle } = next)
      fileBytes = 0
      segments.push(segment)
      // Zeros are no record: whatever is left of them after a crash is cut.
      const { bytesWritten } = await handle.write(Buffer.alloc(MEND_BYTES), 0, MEND_BYTES, 0)
      await truncate(segment.path, 0)
      if (bytesWritten !== MEND_BYTES) return
      broken = undefined
      log.info({ segment: segment.path }, 'the usage journal can be written again')
    } catch (error) {
      log.debug({ err: error }, 'the usage journal still cannot be written')
    }
  }

  return {
    record,
    fault,
    segments: () => [...segments],
    forget: async (done) => {
      const at = segments.indexOf(done)
      if (!done.closed || at < 0) return
      await rm(done.path, { force: true })
      segments.splice(at, 1)
      onDiskBytes -= done.bytes
    },
    mend,
    close: async () => {
      if (stopped) return
      stopped = true
      await pumping
      // What cannot be shortened now is at the next start.
      await shorten(handle, segment.bytes).catch((error: unknown) => log.debug({ err: error }, 'the usage journal keeps its room'))
      await handle.close()
      segment.closed = true
    },
  }
}
