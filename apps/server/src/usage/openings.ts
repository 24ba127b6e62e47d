import { type FileHandle, open, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { ToMore, UsageEvent } from './event.ts'
import { addRecord, clearRecords, noRecords, readIntact } from './segment.ts'

const NAME = /^\d{12}\.v1\.open$/
const nameOf = (number: number): string => `${String(number).padStart(12, '0')}.v1.open`

/** A file that is mostly of answers long over is written anew with those that still run. */
const FILE_BYTES = 4 * 1024 * 1024
/**
 * A whole answer that is over by then needs no note: it has its event, and its client has had nothing before. One that is not is noted within as long again; a note
 * of each was a tenth of a short request. A stream is noted at once, since its client may have words of it any moment.
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

export const openOpenings = async (options: { directory: string; log: Logger; toMore?: ToMore }): Promise<Openings> => {
  const { directory, log, toMore } = options
  const left = await listOpenings(directory)
  let number = Number((left.at(-1)?.slice(directory.length + 1) ?? '0').slice(0, 12)) + 1
  // Whole answers that have begun since the timer fired last, and those of the time before; what is to be noted; what is. New maps, where there can be: one that is
  // added to and deleted from for good keeps what it held from being collected early.
  let young = new Map<RequestId, UsageEvent>()
  let aging = new Map<RequestId, UsageEvent>()
  let due = new Map<RequestId, UsageEvent>()
  const noted = new Map<RequestId, UsageEvent>()
  let path = join(directory, nameOf(number))
  let handle: FileHandle = await open(path, 'wx', 0o600)
  let fileBytes = 0
  const records = noRecords()
  let withdrawn: RequestId[] = []
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> | undefined
  let complained = false
  let closed = false

  const forgetUnnoted = (id: RequestId): boolean => young.delete(id) || aging.delete(id) || due.delete(id)

  const runningNow = (): number => young.size + aging.size + due.size + noted.size

  const noteDue = (): void => {
    for (const [id, event] of due) noted.set(id, event)
    due = new Map()
  }

  /** The new file holds all that runs before the old one goes. */
  const renew = async (): Promise<void> => {
    number += 1
    const next = join(directory, nameOf(number))
    const nextHandle = await open(next, 'wx', 0o600)
    noteDue()
    clearRecords(records)
    for (const event of noted.values()) addRecord(records, JSON.stringify(event), toMore?.(event))
    const { bytes, length } = records
    await nextHandle.write(bytes, 0, length)
    await handle.close()
    await rm(path, { force: true })
    ;[path, handle, fileBytes] = [next, nextHandle, length]
  }

  const write = async (): Promise<void> => {
    const [begun, over] = [due, withdrawn]
    noteDue()
    withdrawn = []
    try {
      clearRecords(records)
      for (const event of begun.values()) addRecord(records, JSON.stringify(event), toMore?.(event))
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

  const note = (): void => {
    if (closed || due.size + withdrawn.length === 0) return
    writing ??= write().then(() => {
      writing = undefined
      note()
    })
  }

  const age = (): void => {
    timer = undefined
    for (const [id, event] of aging) due.set(id, event)
    aging = young
    young = new Map()
    note()
    if (aging.size > 0) ageLater()
  }

  const ageLater = (): void => {
    timer ??= setTimeout(age, WHOLE_AFTER_MS).unref()
  }

  return {
    begin: (event, whole = false) => {
      if (closed || runningNow() >= MAX_OPEN) return
      if (whole) {
        young.set(event.id, event)
        ageLater()
      } else {
        due.set(event.id, event)
        note()
      }
    },
    end: (id) => void (forgetUnnoted(id) || noted.delete(id)),
    withdraw: (id) => {
      if (forgetUnnoted(id) || !noted.delete(id) || closed) return
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
      for (const [id, event] of [...young, ...aging]) due.set(id, event)
      young = new Map()
      aging = new Map()
      // Whatever could not be noted while the disk was full can be now, perhaps.
      if (runningNow() > 0) await renew().catch(() => undefined)
      await handle.close()
      if (runningNow() === 0) await rm(path, { force: true })
    },
  }
}
