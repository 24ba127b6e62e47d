import { randomBytes } from 'node:crypto'
import { link, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import type { Clock } from '../../kit/clock.ts'

/**
 * One writer per file, across processes. The lock is a file beside it that appears complete (it is linked into place) and whose time its holder
 * renews. A lock is left over when its process is gone, or when nobody has renewed it for a while: a process id alone would not
 * do, because in containers the next process often has the same one.
 */
const BEAT_MS = 5_000
const STALE_MS = 60_000

type Holder = { readonly token: string; readonly pid: number; readonly host: string }

const held = new Set<string>()

const codeOf = (error: unknown): unknown => (error instanceof Error && 'code' in error ? error.code : undefined)

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return codeOf(error) === 'EPERM' // it lives, and is somebody else's
  }
}

const parseHolder = (text: string): Holder | undefined => {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value !== 'object' || value === null || !('token' in value) || !('pid' in value) || !('host' in value)) return undefined
    return { token: String(value.token), pid: Number(value.pid), host: String(value.host) }
  } catch {
    return undefined
  }
}

const isLeftOver = (holder: Holder | undefined, renewedMs: number, nowMs: number): boolean => {
  if (nowMs - renewedMs > STALE_MS || holder === undefined) return true
  if (holder.host !== hostname()) return false
  return holder.pid === process.pid ? !held.has(holder.token) : !isAlive(holder.pid)
}

/** False when something has that name already. */
const linked = (from: string, to: string): Promise<boolean> =>
  link(from, to).then(
    () => true,
    (error: unknown) => {
      if (codeOf(error) === 'EEXIST') return false
      throw error
    },
  )

const look = async (lock: string, clock: Clock): Promise<{ holder: Holder | undefined; leftOver: boolean } | undefined> => {
  const found = await Promise.all([readFile(lock, 'utf8'), stat(lock)]).catch(() => undefined)
  if (found === undefined) return undefined
  const holder = parseHolder(found[0])
  return { holder, leftOver: isLeftOver(holder, found[1].mtimeMs, clock.now()) }
}

/**
 * Puts our lock in the place of one that is left over. Of several that see it, only who holds the second lock may remove it, and looks
 * again before: without that, a late one would remove the lock that an early one has just taken.
 */
const takeOver = async (mine: string, lock: string, what: string, clock: Clock): Promise<void> => {
  const busy = (holder: Holder | undefined): Error =>
    new Error(
      `${what} is being fetched by another command already${holder === undefined ? '' : ` (process ${holder.pid} on ${holder.host})`}.`,
    )
  const first = await look(lock, clock)
  if (first !== undefined && !first.leftOver) throw busy(first.holder)
  const turn = `${lock}.turn`
  if (!(await linked(mine, turn))) {
    // Held for a moment only, unless its holder died in that moment.
    if ((await look(turn, clock))?.leftOver === true) await rm(turn, { force: true })
    throw busy(undefined)
  }
  try {
    const second = await look(lock, clock)
    if (second !== undefined && !second.leftOver) throw busy(second.holder)
    await rm(lock, { force: true })
    if (!(await linked(mine, lock))) throw busy(undefined)
  } finally {
    await rm(turn, { force: true })
  }
}

/** Takes the lock, or throws an error that names who has it. */
export const lockFile = async (path: string, what: string, clock: Clock): Promise<{ release(): Promise<void> }> => {
  const lock = `${path}.lock`
  const token = randomBytes(8).toString('hex')
  const mine = `${lock}.${token}`
  held.add(token)
  try {
    await writeFile(mine, JSON.stringify({ token, pid: process.pid, host: hostname() }), { mode: 0o600 })
    const now = new Date(clock.now())
    await utimes(mine, now, now)
    if (!(await linked(mine, lock))) await takeOver(mine, lock, what, clock)
  } catch (error) {
    held.delete(token)
    throw error
  } finally {
    await rm(mine, { force: true })
  }

  const beat = setInterval(() => {
    const now = new Date(clock.now())
    utimes(lock, now, now).catch(() => undefined)
  }, BEAT_MS)
  beat.unref()
  return {
    release: async () => {
      clearInterval(beat)
      held.delete(token)
      const holder = parseHolder(await readFile(lock, 'utf8').catch(() => ''))
      if (holder?.token === token) await rm(lock, { force: true })
    },
  }
}
