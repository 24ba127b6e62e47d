import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { z } from 'zod'
import type { Clock } from '../../kit/clock.ts'
import { type Hub, Passing } from './hub.ts'

/**
 * One file from the hub to the disk. What has arrived lies in `<target>.partial`, with a note beside it that says what it is the beginning of;
 * a broken transfer goes on from there, in this run or in a later one. Only a file that is complete and has the hub's checksum
 * gets its name, in one step.
 */
export type RemoteFile = {
  readonly repo: string
  readonly revision: string
  readonly path: string
  readonly bytes: number
  readonly sha256: string | null
}

export type Retries = {
  /** Breaks in a row without a new byte, after which we give up. */
  readonly attempts: number
  /** The wait after the first break; doubled each time, up to `maxDelayMs`. */
  readonly delayMs: number
  readonly maxDelayMs: number
}

export const RETRIES: Retries = { attempts: 6, delayMs: 500, maxDelayMs: 15_000 }
const CHECKSUM_TRIES = 2
/** A break counts as one in a row until this much more than ever before has arrived: a byte at a time is no progress. */
const PROGRESS_BYTES = 64 * 1024

/** Runs `work` until it succeeds, fails for good, or has failed in passing too often. */
export const patiently = async <T>(work: () => Promise<T>, retries: Retries, clock: Clock, signal: AbortSignal): Promise<T> => {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof Passing) || attempt >= retries.attempts) throw error
      await clock.sleep(delayAfter(attempt, error, retries), signal)
    }
  }
}

const delayAfter = (attempt: number, error: Passing, retries: Retries): number =>
  Math.max(error.retryAfterMs ?? 0, Math.min(retries.delayMs * 2 ** (attempt - 1), retries.maxDelayMs))

const Note = z.object({ repo: z.string(), path: z.string(), bytes: z.int(), sha256: z.string().nullable(), etag: z.string().nullable() })
type Note = z.output<typeof Note>

const readNote = async (path: string): Promise<Note | undefined> => {
  try {
    return Note.parse(JSON.parse(await readFile(path, 'utf8')))
  } catch {
    return undefined // none, or one that a crash cut off: then the partial file is worth nothing either
  }
}

/** With neither a checksum nor a tag, nothing would show that two halves are of two files. */
const canResume = (note: Note | undefined, file: RemoteFile): note is Note =>
  note !== undefined &&
  note.bytes === file.bytes &&
  note.sha256 === file.sha256 &&
  (file.sha256 !== null || (note.etag !== null && note.path === file.path && note.repo === file.repo))

export const hashFile = async (path: string, hash: Hash, signal: AbortSignal): Promise<void> => {
  await pipeline(createReadStream(path, { highWaterMark: 1024 * 1024 }), hash, { end: false, signal })
}

/** How much of the file a partial one has, so that the space for the rest can be asked for. */
export const partialBytes = async (target: string, file: RemoteFile): Promise<number> => {
  if (!canResume(await readNote(`${target}.partial.json`), file)) return 0
  const bytes = await stat(`${target}.partial`).then(
    (found) => found.size,
    () => 0,
  )
  return bytes <= file.bytes ? bytes : 0
}

/** Removes what a transfer has left. */
export const discardPartial = async (target: string): Promise<void> => {
  await rm(`${target}.partial`, { force: true })
  await rm(`${target}.partial.json`, { force: true })
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

const syncDirectory = async (path: string): Promise<void> => {
  // Windows cannot open a directory; there the rename is as durable as it gets.
  const directory = await open(dirname(path), 'r').catch(() => undefined)
  if (directory === undefined) return
  try {
    await directory.sync()
  } catch {
    // The same on some network file systems.
  } finally {
    await directory.close()
  }
}

export const transferFile = async (options: {
  hub: Hub
  file: RemoteFile
  target: string
  clock: Clock
  signal: AbortSignal
  retries?: Retries
  onProgress: (receivedBytes: number) => void
  /** A last look at the complete file before it gets its name; what it throws discards the file. */
  check: (path: string) => Promise<void>
}): Promise<{ sha256: string }> => {
  const { hub, file, target, clock, signal, onProgress } = options
  const retries = options.retries ?? RETRIES
  const partial = `${target}.partial`
  const notePath = `${target}.partial.json`

  const note: { etag: string | null } = { etag: null }
  const writeNote = (etag: string | null): Promise<void> => {
    note.etag = etag
    return writeFile(
      notePath,
      JSON.stringify({ repo: file.repo, path: file.path, bytes: file.bytes, sha256: file.sha256, etag } satisfies Note),
    )
  }

  let received = await partialBytes(target, file)
  let hash = createHash('sha256')
  if (received > 0) {
    note.etag = (await readNote(notePath))?.etag ?? null
    await hashFile(partial, hash, signal)
  } else {
    await discardPartial(target)
  }
  onProgress(received)

  const handle: FileHandle = await open(partial, received > 0 ? 'r+' : 'w')
  const startOver = async (): Promise<void> => {
    await handle.truncate(0)
    received = 0
    hash = createHash('sha256')
    note.etag = null
    onProgress(0)
  }

  // A disk that is full or broken does not get better by asking the hub again.
  let unwritable: Error | undefined
  const write = async (chunk: Buffer): Promise<void> => {
    try {
      for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at, chunk.length - at, received + at)).bytesWritten
    } catch (cause) {
      unwritable = new Error(
        `${partial} cannot be written: ${reasonOf(cause)}. What has arrived is kept; the same command goes on from there.`,
        { cause },
      )
      throw unwritable
    }
  }

  /** One connection's worth. Returns when it ends, complete or not. */
  const receive = async (): Promise<void> => {
    const transfer = await hub.open(file.repo, file.revision, file, { offset: received, etag: note.etag }, signal)
    if (transfer === 'restart') {
      await startOver()
      throw new Passing(`what ${hub.endpoint} has of ${file.path} does not fit what has arrived so far`)
    }
    try {
      if (transfer.from !== received) await startOver()
      if (transfer.etag !== note.etag || received === 0) await writeNote(transfer.etag)
      for await (const chunk of transfer.body) {
        if (received + chunk.length > file.bytes) {
          await startOver()
          throw new Passing(`more than the ${file.bytes} bytes of ${file.path} arrive`)
        }
        await write(chunk)
        hash.update(chunk)
        received += chunk.length
        onProgress(received)
      }
    } catch (cause) {
      signal.throwIfAborted()
      if (cause instanceof Passing || cause === unwritable) throw cause
      throw new Passing(`the transfer of ${file.path} broke off: ${reasonOf(cause)}`, { cause })
    } finally {
      transfer.body.destroy()
    }
    if (received < file.bytes) throw new Passing(`the transfer of ${file.path} ended after ${received} of ${file.bytes} bytes`)
  }

  const fetchAll = async (): Promise<void> => {
    let furthest = received
    for (let broken = 0; received < file.bytes; ) {
      try {
        await receive()
      } catch (error) {
        if (!(error instanceof Passing)) throw error
        if (received >= furthest + PROGRESS_BYTES) broken = 0
        furthest = Math.max(furthest, received)
        broken += 1
        if (broken >= retries.attempts) {
          throw new Error(
            `${file.repo}:${file.path} did not arrive: ${error.message}. Tried ${broken} times in a row. ${received > 0 ? 'What has arrived is kept; the same command goes on from there.' : 'Try again later.'}`,
            { cause: error },
          )
        }
        await clock.sleep(delayAfter(broken, error, retries), signal)
      }
    }
  }

  try {
    for (let attempt = 1; ; attempt += 1) {
      await fetchAll()
      const sha256 = hash.digest('hex')
      if (file.sha256 === null || file.sha256 === sha256) {
        await options.check(partial).catch(async (error: unknown) => {
          await discardPartial(target)
          throw error
        })
        await handle.sync()
        await rename(partial, target)
        await rm(notePath, { force: true })
        await syncDirectory(target)
        return { sha256 }
      }
      await startOver()
      if (attempt >= CHECKSUM_TRIES) {
        await discardPartial(target)
        throw new Error(
          `${file.repo}:${file.path} is not what the hub says it is: its SHA-256 is ${sha256}, the hub names ${file.sha256}. It arrived ${attempt} times like this and was thrown away.`,
        )
      }
    }
  } finally {
    await handle.close()
    // Nothing arrived: then there is nothing to keep either.
    if (received === 0) await discardPartial(target)
  }
}
