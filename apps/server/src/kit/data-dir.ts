import { randomBytes } from 'node:crypto'
import { link, mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { z } from 'zod'
import { instantToDate, systemClock } from './clock.ts'
import { processMark } from './process.ts'

/** The code of a failed system call, when it is one. */
export const codeOf = (error: unknown): string | undefined =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined

/**
 * Makes a file that only we may read, whole or not at all, and leaves one that is there as it is. Of two who do it at once
 * one wins, and both find the same content afterwards.
 */
export const makeFileOnce = async (path: string, content: string): Promise<boolean> => {
  const draft = `${path}.${randomBytes(6).toString('hex')}`
  try {
    const handle = await open(draft, 'wx', 0o600)
    try {
      await handle.writeFile(content)
      await handle.sync()
    } finally {
      await handle.close()
    }
    try {
      await link(draft, path)
    } catch (error) {
      if (codeOf(error) === 'EEXIST') return false
      throw error
    }
    const directory = await open(dirname(path), 'r')
    await directory.sync().finally(() => void directory.close())
    return true
  } finally {
    await rm(draft, { force: true })
  }
}

export const makeDataDir = async (dataDir: string): Promise<void> => {
  await mkdir(dataDir, { recursive: true, mode: 0o700 }).catch((cause: unknown) => {
    throw new Error(
      `The data directory ${dataDir} cannot be made: ${cause instanceof Error ? cause.message : String(cause)}. Set PARVIS_DATA_DIR to a place that you may write to.`,
      { cause },
    )
  })
}

const Holder = z.object({ pid: z.int().positive(), mark: z.string(), what: z.string(), since: z.string(), token: z.string() })
/** Who holds a lock file, while they live. */
export type Holder = z.infer<typeof Holder>

export type Hold = { release(): Promise<void> }

const TRIES = 20 // each but the last lost to somebody who took or left the lock in the same moment
const SETTLE_MS = 20

const readHolder = async (path: string): Promise<{ content: string; holder: Holder | undefined } | undefined> => {
  const content = await readFile(path, 'utf8').catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return undefined
    throw error
  })
  if (content === undefined) return undefined
  try {
    return { content, holder: Holder.parse(JSON.parse(content)) }
  } catch {
    return { content, holder: undefined } // not ours, or broken by a full disk: nobody is behind it
  }
}

const lives = async (holder: Holder | undefined): Promise<boolean> =>
  holder !== undefined && (await processMark(holder.pid)) === holder.mark

/** The living holder of a lock file. A process that is gone, or a zombie, or another one with its number, holds nothing. */
export const holderOf = async (path: string): Promise<Holder | undefined> => {
  const held = await readHolder(path)
  return (await lives(held?.holder)) ? held?.holder : undefined
}

/**
 * Takes a lock file, or says who has it. The file is linked into place whole. One left by a dead process is moved away
 * first and looked at again: if two find it at once, the slower may have moved the quicker one's new file, and puts it back.
 */
export const tryHold = async (path: string, what: string): Promise<Hold | Holder> => {
  const token = randomBytes(8).toString('hex')
  const mark = await processMark(process.pid)
  if (mark === undefined) throw new Error('This process cannot see itself: /proc or ps is needed.')
  const content = JSON.stringify({ pid: process.pid, mark, what, since: instantToDate(systemClock.now()).toISOString(), token })
  const isMine = async (): Promise<boolean> => (await readHolder(path))?.holder?.token === token
  for (let tries = 0; tries < TRIES; tries += 1) {
    if (await makeFileOnce(path, content)) {
      if (tries > 0) await after(SETTLE_MS) // time for a slower one to put back what it moved by mistake
      if (await isMine()) {
        return {
          release: async () => {
            if (await isMine()) await rm(path, { force: true })
          },
        }
      }
      continue
    }
    const held = await readHolder(path)
    if (held === undefined) continue
    if (held.holder !== undefined && (await lives(held.holder))) return held.holder
    const aside = `${path}.${token}`
    try {
      await rename(path, aside)
    } catch (error) {
      if (codeOf(error) === 'ENOENT') continue
      throw error
    }
    if ((await readFile(aside, 'utf8')) !== held.content) await link(aside, path).catch(() => undefined)
    await rm(aside, { force: true })
  }
  throw new Error(`The lock ${path} could not be taken: others take and leave it all the time.`)
}

export const isHolder = (result: Hold | Holder): result is Holder => 'pid' in result

const lockFile = (dataDir: string): string => join(dataDir, 'lock')

/** Who serves from this data directory, if anybody does. */
export const dataDirHolder = (dataDir: string): Promise<Holder | undefined> => holderOf(lockFile(dataDir))

/** One process serves from a data directory. The second is told who has it, and since when. */
export const holdDataDir = async (dataDir: string, what: string): Promise<Hold> => {
  await makeDataDir(dataDir)
  const result = await tryHold(lockFile(dataDir), what)
  if (!isHolder(result)) return result
  throw new Error(
    `The data directory ${dataDir} is in use: ${result.what}, process ${result.pid}, has held it since ${result.since}. Stop it first, or set PARVIS_DATA_DIR to another place.`,
  )
}
