import { type FileHandle, open, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { ToPayload, UsageEvent } from './event.ts'
import { addRecord, clearRecords, noRecords, readIntact } from './segment.ts'

const NAME = /^\d{12}\.v1\.open$/
const nameOf = (number: number): string => `${String(number).padStart(12, '0')}.v1.open`

/** A file that is mostly of answers long over is written anew with those that still run. */
const FILE_BYTES = 4 * 1024 * 1024
/**
 * A whole answer that is over by then needs no note: it has its event, and its client has had nothing before. What has begun meanwhile is one write, where
 * one for each was a tenth of a short request. A stream is noted at once, since its client may have words of it any moment.
 */
const WHOLE_AFTER_MS = 25
/** Answers that are open at once. Beyond it some will not be missed if we die: they cost nothing anyway. */
const MAX_OPEN = 100_000

/**
 * What was begun and has not ended. Nobody waits for it and nothing is synced: the operating system keeps what a killed process has
 * written, and if the whole machine goes, the worst is that an answer without a bill is not listed as lost.
 */
export type Openings = {
  /** An answer begins; `whole`: all of it will come at its end. `event` is what shall be in the books if nobody ever says how it ended. */
  begin: (event: UsageEvent, whole?: boolean) => void
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

export const openOpenings = async (options: { directory: string; log: Logger; toPayload?: ToPayload }): Promise<Openings> => {
  const { directory, log, toPayload = JSON.stringify } = options
  const left = await listOpenings(directory)
  let number = Number((left.at(-1)?.slice(directory.length + 1) ?? '0').slice(0, 12)) + 1
  // What runs and is not noted yet. A new map for each write: one that is added to and deleted from for good keeps what it held from being collected early.
  let fresh = new Map<RequestId, UsageEvent>()
  const noted = new Map<RequestId, UsageEvent>()
  let path = join(directory, nameOf(number))
  let handle: FileHandle = await open(path, 'wx', 0o600)
  let fileBytes = 0
  const records = noRecords()
  let withdrawn: RequestId[] = []
  let hurry = false
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> | undefined
  let complained = false
  let closed = false

  const runningNow = (): number => fresh.size + noted.size

  const noteFresh = (): void => {
    for (const [id, event] of fresh) noted.set(id, event)
    fresh = new Map()
  }

  /** The new file holds all that runs before the old one goes. */
  const renew = async (): Promise<void> => {
    number += 1
    const next = join(directory, nameOf(number))
    const nextHandle = await open(next, 'wx', 0o600)
    noteFresh()
    clearRecords(records)
    for (const event of noted.values()) addRecord(records, toPayload(event))
    const { bytes, length } = records
    await nextHandle.write(bytes, 0, length)
    await handle.close()
    await rm(path, { force: true })
    ;[path, handle, fileBytes] = [next, nextHandle, length]
  }

  const write = async (): Promise<void> => {
    const [begun, over] = [fresh, withdrawn]
    noteFresh()
    withdrawn = []
    hurry = false
    try {
      clearRecords(records)
      for (const event of begun.values()) addRecord(records, toPayload(event))
      for (const id of over) addRecord(records, JSON.stringify({ withdrawn: id }))
      const { bytes, length } = records
      if (length > 0) await handle.write(bytes, 0, length, fileBytes)
      fileBytes += length
      if (fileBytes >= FILE_BYTES) await renew()
      complained = false
    } catch (error) {
      if (!complained) log.warn({ err: error }, 'what has begun cannot be noted; if this process dies, open answers are not listed as lost')
      complained = true
    }
  }

  const writeNow = (): void => {
    clearTimeout(timer)
    timer = undefined
    writing = write().then(() => {
      writing = undefined
      if (!closed && fresh.size + withdrawn.length > 0) note()
    })
  }

  const note = (): void => {
    if (writing !== undefined) return
    if (hurry) writeNow()
    else timer ??= setTimeout(writeNow, WHOLE_AFTER_MS).unref()
  }

  return {
    begin: (event, whole = false) => {
      if (closed || runningNow() >= MAX_OPEN) return
      fresh.set(event.id, event)
      if (!whole) hurry = true
      note()
    },
    end: (id) => void (fresh.delete(id) || noted.delete(id)),
    withdraw: (id) => {
      if (fresh.delete(id) || !noted.delete(id) || closed) return
      withdrawn.push(id)
      note()
    },
    left: () => [...left],
    forget: async (done) => {
      await rm(done, { force: true })
      left.splice(left.indexOf(done), 1)
    },
    close: async () => {
      if (closed) return
      closed = true
      clearTimeout(timer)
      await writing
      // Whatever could not be noted while the disk was full can be now, perhaps.
      if (runningNow() > 0) await renew().catch(() => undefined)
      await handle.close()
      if (runningNow() === 0) await rm(path, { force: true })
    },
  }
}
