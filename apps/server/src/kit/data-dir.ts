import { randomBytes } from 'node:crypto'
import { link, mkdir, open, readFile, rm } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { instantToDate, systemClock } from './clock.ts'
import { processMark, processSpace } from './process.ts'
import { answersAt, giveSignOfLife, type SignOfLife } from './sign-of-life.ts'

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

const LockFile = z.object({
  pid: z.int().positive(),
  mark: z.string(),
  /** Where `pid` and `mark` mean something; without it in a lock of an older version, which knew of one such place only. */
  space: z.string().optional(),
  /** What a container calls its host: its own id, or the name of the pod. */
  host: z.string().optional(),
  what: z.string(),
  since: z.string(),
  // A part of a file's name.
  token: z.string().regex(/^\w+$/),
})
type LockFile = z.infer<typeof LockFile>

/** Who holds a lock file, while they live; `elsewhere` is in a container whose process numbers are not ours. */
export type Holder = LockFile & { readonly elsewhere: boolean }

/** `unseenBecause`: why processes in other containers take this lock for left over. */
export type Hold = { readonly unseenBecause?: unknown; release(): Promise<void> }

const TRIES = 20 // each but the last lost to somebody who took or left the lock in the same moment

const readLock = async (path: string): Promise<{ content: string; lock: LockFile | undefined } | undefined> => {
  const content = await readFile(path, 'utf8').catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return undefined
    throw error
  })
  if (content === undefined) return undefined
  try {
    return { content, lock: LockFile.parse(JSON.parse(content)) }
  } catch {
    return { content, lock: undefined } // not ours, or broken by a full disk: nobody is behind it
  }
}

/** The socket of a lock's holder. Each has its own, which listens before its lock file is there: whoever reads that may ask at once. */
const signOf = (path: string, token: string): string => join(dirname(path), `lock-${token}.socket`)

/** Where the process table is ours it knows; whoever is elsewhere answers at their socket or is gone, for the machine's start ends both. */
const livingHolder = async (path: string, lock: LockFile | undefined): Promise<Holder | undefined> => {
  if (lock === undefined) return undefined
  const elsewhere = lock.space !== undefined && lock.space !== (await processSpace())
  const lives = elsewhere
    ? await answersAt(signOf(path, lock.token)).catch((cause: unknown) => {
        const who = nameOf({ ...lock, elsewhere })
        throw new Error(
          `Nobody can say whether ${who} still holds ${path}: ${cause instanceof Error ? cause.message : String(cause)}. Delete that file when you know that it does not.`,
          { cause },
        )
      })
    : (await processMark(lock.pid)) === lock.mark
  return lives ? { ...lock, elsewhere } : undefined
}

/** The living holder of a lock file. A process that is gone, or a zombie, or another one with its number, holds nothing. */
export const holderOf = async (path: string): Promise<Holder | undefined> => livingHolder(path, (await readLock(path))?.lock)

/** Which process it is, for people. */
export const nameOf = ({ pid, host, elsewhere }: Holder): string =>
  elsewhere ? `process ${pid} of another container (host name ${host ?? 'unknown'})` : `process ${pid}`

/**
 * Puts our lock file in its place, unless somebody living has one there, or is just about to. It is linked into place whole. One left by a dead
 * process is removed only by whoever holds a lock that is named after it: of several who find it at once, a late one would otherwise remove what an
 * early one has put there meanwhile. A taker that dies in the middle leaves a lock that is taken over in the same way.
 */
const take = async (path: string, token: string, content: string): Promise<Holder | undefined> => {
  for (let tries = 0; tries < TRIES; tries += 1) {
    if (await makeFileOnce(path, content)) return undefined
    const found = await readLock(path)
    if (found === undefined) continue
    const holder = await livingHolder(path, found.lock)
    if (holder !== undefined) return holder
    const turn = `${path}.${found.lock?.token ?? 'broken'}`
    const quicker = await take(turn, token, content)
    if (quicker !== undefined) return quicker
    try {
      if ((await readLock(path))?.content === found.content) {
        await rm(path, { force: true })
        if (found.lock !== undefined) await rm(signOf(path, found.lock.token), { force: true })
      }
    } finally {
      await rm(turn, { force: true })
    }
  }
  throw new Error(`The lock ${path} could not be taken: others take and leave it all the time.`)
}

const isOf = async (path: string, token: string): Promise<boolean> => (await readLock(path))?.lock?.token === token

/** Takes a lock file, or says who has it. */
export const tryHold = async (path: string, what: string): Promise<Hold | Holder> => {
  const before = await holderOf(path)
  if (before !== undefined) return before
  const token = randomBytes(8).toString('hex')
  const [mark, space] = await Promise.all([processMark(process.pid), processSpace()])
  if (mark === undefined) throw new Error('This process cannot see itself: /proc or ps is needed.')
  let sign: SignOfLife | undefined
  let unseenBecause: unknown
  if (space !== undefined) {
    // Some file systems have no sockets, and some sandboxes allow none.
    sign = await giveSignOfLife(signOf(path, token)).catch((error: unknown) => {
      unseenBecause = error
      return undefined
    })
  }
  const lock: LockFile = {
    pid: process.pid,
    mark,
    space,
    host: hostname(),
    what,
    since: instantToDate(systemClock.now()).toISOString(),
    token,
  }
  let mine = false
  try {
    const holder = await take(path, token, JSON.stringify(lock))
    if (holder !== undefined) return holder
    mine = true
  } finally {
    if (!mine) await sign?.end()
  }
  return {
    unseenBecause,
    release: async () => {
      if (await isOf(path, token)) await rm(path, { force: true })
      await sign?.end()
    },
  }
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
    `The data directory ${dataDir} is in use: ${result.what}, ${nameOf(result)}, has held it since ${result.since}. Stop it first, or set PARVIS_DATA_DIR to another place.`,
  )
}
