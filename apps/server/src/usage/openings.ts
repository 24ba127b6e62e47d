import { type FileHandle, open, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { ToMore, UsageEvent } from './event.ts'
import { addRecord, clearRecords, noRecords, readIntact } from './segment.ts'

const NAME = /^\d{12}\.v1\.open$/
const nameOf = (number: number): string => `${String(number).padStart(12, '0')}.v1.open`

type OpeningsLimits = {
  /** A file that has grown to this is written anew with what still runs; where that is more than half of it, the next one comes at twice what that took. */
  readonly fileBytes: number
  /** After a write that failed, how long until the next one. */
  readonly retryMs: number
}
const LIMITS: OpeningsLimits = { fileBytes: 4 * 1024 * 1024, retryMs: 5_000 }
/**
 * A whole answer is noted at the second look after its beginning: when it has been open for 25 to 50 ms. One that is over by then needs no note, since its client
 * has had nothing of it, and a note of each was a tenth of a short request. A stream is noted at once: its client may have words of it any moment.
 */
const LOOK_EVERY_MS = 25
/** Answers that are open at once. Beyond it some will not be missed if we die: they cost nothing anyway. */
const MAX_OPEN = 100_000
/** So that with thousands of open answers one is found among a few. */
const LISTS = 1_024

/** How an answer comes to its client: bit by bit, or all of it at its end. */
export type Coming = 'streamed' | 'whole'

/**
 * What was begun and has not ended. Nobody waits for it and nothing is synced: the operating system keeps what a killed process has
 * written. What has no note when we die is not listed as lost, and costs nothing either way (which answers that are: README.md, "Lost answers").
 */
export type Openings = {
  /** An answer is open from now on. `event` is what shall be in the books if it is noted and nobody ever says how it ended. */
  note: (event: UsageEvent, coming: Coming) => void
  /** It has its event in the journal, which says more than we could. */
  end: (id: RequestId) => void
  /** It was refused, with nothing sent: there will be no event. */
  withdraw: (id: RequestId) => void
  /** Files of earlier lives of this gateway. */
  left: () => readonly string[]
  forget: (path: string) => Promise<void>
  close: () => Promise<void>
}

export const listOpenings = async (directory: string): Promise<string[]> =>
  (await readdir(directory))
    .filter((name) => NAME.test(name))
    .toSorted()
    .map((name) => join(directory, name))

/** The openings in a file that were not withdrawn, as their events' JSON. Its end may be torn. */
export const readOpenings = async (path: string): Promise<string[]> => {
  const found = new Map<string, string>()
  for (const payload of readIntact(await readFile(path), 0).payloads) {
    const { id, withdrawn } = JSON.parse(payload) as { id?: string; withdrawn?: string }
    if (withdrawn !== undefined) found.delete(withdrawn)
    if (id !== undefined) found.set(id, payload)
  }
  return [...found.values()]
}

/**
 * What has a note, in short lists by the end of the id, where the last one takes the place of one that goes. A Map would be simpler, but all streams go through it:
 * one that is added to and deleted from for good keeps what it held from being collected early (`inference/deadlines.ts`).
 */
const noNotes = () => {
  const lists: readonly UsageEvent[][] = Array.from({ length: LISTS }, () => [])
  let size = 0
  // The end of an id is random (kit/ids.ts).
  const listOf = (id: RequestId): UsageEvent[] => {
    const last = id.length - 1
    return lists[(31 * (31 * id.charCodeAt(last) + id.charCodeAt(last - 1)) + id.charCodeAt(last - 2)) % LISTS] as UsageEvent[]
  }
  return {
    size: (): number => size,
    lists,
    add: (event: UsageEvent): void => {
      listOf(event.id).push(event)
      size += 1
    },
    delete: (id: RequestId): boolean => {
      const list = listOf(id)
      for (let place = 0; place < list.length; place += 1) {
        if (list[place]?.id !== id) continue
        const last = list.pop() as UsageEvent
        if (place < list.length) list[place] = last
        size -= 1
        return true
      }
      return false
    },
  }
}

export const openOpenings = async (options: {
  directory: string
  log: Logger
  limits?: Partial<OpeningsLimits>
  toMore?: ToMore
}): Promise<Openings> => {
  const { directory, log, toMore } = options
  const limits = { ...LIMITS, ...options.limits }
  const left = await listOpenings(directory)
  let number = Number((left.at(-1)?.slice(directory.length + 1) ?? '0').slice(0, 12)) + 1
  // An answer goes from one of these to the next: whole ones that have begun since the last look, those that had before, what is to be noted, what is being written,
  // what stands in the file. Each map is new and soon gone.
  let young = new Map<RequestId, UsageEvent>()
  let aging = new Map<RequestId, UsageEvent>()
  let due = new Map<RequestId, UsageEvent>()
  let onItsWay: Map<RequestId, UsageEvent> | undefined
  const noted = noNotes()
  let path = join(directory, nameOf(number))
  let handle: FileHandle = await open(path, 'wx', 0o600)
  // Of whole records. Behind them may be a part of what could not be written.
  let fileBytes = 0
  let torn = false
  let renewAtBytes = limits.fileBytes
  const records = noRecords()
  let withdrawn: RequestId[] = []
  let looking: NodeJS.Timeout | undefined
  let retrying: NodeJS.Timeout | undefined
  let writing: Promise<void> | undefined
  let complained = false
  let closed = false

  const forgetUnwritten = (id: RequestId): boolean => young.delete(id) || aging.delete(id) || due.delete(id)
  const forgetWritten = (id: RequestId): boolean => (onItsWay?.delete(id) ?? false) || noted.delete(id)

  const runningNow = (): number => young.size + aging.size + due.size + (onItsWay?.size ?? 0) + noted.size()

  /** A full disk may take a part and only say so next time. */
  const checkWritten = (bytesWritten: number): void => {
    if (bytesWritten !== records.length) throw new Error(`only ${bytesWritten} of ${records.length} bytes were written`)
  }

  /** What cannot be removed is shipped at the next start: the ledger knows most of it by then. */
  const remove = async (of: FileHandle, at: string): Promise<void> => {
    const complain = (error: unknown): void => log.warn({ err: error, file: at }, 'a list of what has begun cannot be removed')
    await of.close().catch(complain)
    await rm(at, { force: true }).catch(complain)
  }

  /** The new file holds all that is noted and still runs before the old one goes; where it cannot, the old one stays and grows. */
  const renew = async (): Promise<void> => {
    // Counted first: a name that was half made is not tried again.
    number += 1
    const next = join(directory, nameOf(number))
    let nextHandle: FileHandle | undefined
    try {
      clearRecords(records)
      for (const list of noted.lists) for (const event of list) addRecord(records, JSON.stringify(event), toMore?.(event))
      nextHandle = await open(next, 'wx', 0o600)
      const { bytes, length } = records
      checkWritten((await nextHandle.write(bytes, 0, length, 0)).bytesWritten)
    } catch (error) {
      log.warn({ err: error, file: next }, 'what has begun cannot be written into a new file; the old one goes on')
      renewAtBytes = fileBytes + limits.fileBytes
      if (nextHandle !== undefined) await remove(nextHandle, next)
      return
    }
    const [oldHandle, oldPath] = [handle, path]
    ;[handle, path, fileBytes, torn] = [nextHandle, next, records.length, false]
    renewAtBytes = Math.max(limits.fileBytes, 2 * fileBytes)
    await remove(oldHandle, oldPath)
  }

  /** Notes what is due. What cannot be noted is due again, in a while. */
  const noteDue = async (): Promise<void> => {
    const [noting, takingBack] = [due, withdrawn]
    due = new Map()
    withdrawn = []
    onItsWay = noting
    try {
      clearRecords(records)
      for (const event of noting.values()) addRecord(records, JSON.stringify(event), toMore?.(event))
      for (const id of takingBack) addRecord(records, JSON.stringify({ withdrawn: id }))
      if (torn) await handle.truncate(fileBytes)
      torn = true
      const { bytes, length } = records
      checkWritten((await handle.write(bytes, 0, length, fileBytes)).bytesWritten)
      torn = false
      fileBytes += length
      for (const event of noting.values()) noted.add(event)
      onItsWay = undefined
      complained = false
      if (fileBytes >= renewAtBytes) await renew()
    } catch (error) {
      due = new Map([...noting, ...due])
      withdrawn = [...takingBack, ...withdrawn]
      onItsWay = undefined
      if (!complained) log.warn({ err: error }, 'what has begun cannot be noted; if this process dies, open answers are not listed as lost')
      complained = true
      retrying = setTimeout(retry, limits.retryMs).unref()
    }
  }

  const retry = (): void => {
    retrying = undefined
    write()
  }

  const write = (): void => {
    if (closed || retrying !== undefined || due.size + withdrawn.length === 0) return
    writing ??= noteDue().then(() => {
      writing = undefined
      write()
    })
  }

  const look = (): void => {
    looking = undefined
    for (const [id, event] of aging) due.set(id, event)
    aging = young
    young = new Map()
    write()
    if (aging.size > 0) lookLater()
  }

  const lookLater = (): void => {
    looking ??= setTimeout(look, LOOK_EVERY_MS).unref()
  }

  return {
    note: (event, coming) => {
      if (closed || runningNow() >= MAX_OPEN) return
      if (coming === 'whole') {
        young.set(event.id, event)
        lookLater()
      } else {
        due.set(event.id, event)
        write()
      }
    },
    end: (id) => void (forgetUnwritten(id) || forgetWritten(id)),
    withdraw: (id) => {
      if (forgetUnwritten(id) || !forgetWritten(id) || closed) return
      withdrawn.push(id)
      write()
    },
    left: () => [...left],
    forget: async (done) => {
      await rm(done, { force: true })
      left.splice(left.indexOf(done), 1)
    },
    close: async () => {
      if (closed) return
      closed = true
      clearTimeout(looking)
      await writing
      for (const [id, event] of [...young, ...aging]) due.set(id, event)
      young = new Map()
      aging = new Map()
      if (runningNow() > 0) {
        // The next start need not ask the ledger for what is over; and where the disk was full, there may be room now.
        await renew()
        await noteDue()
      }
      clearTimeout(retrying)
      await handle.close()
      if (runningNow() === 0) await rm(path, { force: true })
    },
  }
}
