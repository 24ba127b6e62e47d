import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chown, mkdir, open, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import type { Clock } from './clock.ts'
import { CLEAN_ENVIRONMENT, type RunAs, run, type Tools } from './postgres-tools.ts'
import { processDirectory, processMark, signal } from './process.ts'
import { answersAt } from './sign-of-life.ts'

/** One PostgreSQL cluster: its directory, its programs, whose process it is, and the log beside it. */
export type Cluster = {
  readonly dir: string
  readonly tools: Tools
  readonly user: RunAs
  readonly password: string
  readonly logFile: string
  /** `-c name=value` for the server. */
  readonly settings: Readonly<Record<string, string | number>>
}

const START_LIMIT_MS = 120_000 // after a crash it first replays what was written since the last checkpoint
const STEP_MS = 25
const FAST_STOP_LIMIT_MS = 15_000
const IMMEDIATE_STOP_LIMIT_MS = 5_000
const MAX_LOG_BYTES = 1 << 20 // at the next start; only warnings are written, so it grows slowly
const STATUS_LINE = 7
const NO_PROCESS = 2_147_483_647 // no system gives a process this number

export const DATABASE_USER = 'parvis'

export const addressOf = (port: number, password: string, database = 'postgres'): string =>
  `postgres://${DATABASE_USER}:${password}@127.0.0.1:${port}/${database}`

/** Makes the cluster when it is not there. It is made under another name and then renamed, so that a crash leaves no half of one. */
export const makeCluster = async (cluster: Cluster): Promise<boolean> => {
  if (await stat(join(cluster.dir, 'PG_VERSION')).catch(() => undefined)) return false
  // Under a directory of its own that the user may write to: the one above may be root's.
  const draft = `${cluster.dir}.${randomBytes(4).toString('hex')}`
  const passwordFile = `${draft}.password`
  const give = async (path: string) => (cluster.user ? chown(path, cluster.user.uid, cluster.user.gid) : undefined)
  try {
    await mkdir(draft, { recursive: true, mode: 0o700 })
    await give(draft)
    await writeFile(passwordFile, `${cluster.password}\n`, { mode: 0o600 })
    await give(passwordFile)
    const { code, output } = await run(
      join(cluster.tools.bin, 'initdb'),
      [
        `--pgdata=${draft}`,
        `--username=${DATABASE_USER}`,
        `--pwfile=${passwordFile}`,
        '--auth=scram-sha-256',
        '--encoding=UTF8',
        // Order by code point: it never changes with the system's libraries, which would break indexes without a word.
        '--locale=C',
        '--data-checksums',
      ],
      cluster.user,
    )
    if (code !== 0) throw new Error(`The database could not be made in ${cluster.dir}: ${output}`)
    await rm(cluster.dir, { recursive: true, force: true }) // an empty one, or what an older version left half-made
    await rename(draft, cluster.dir)
    return true
  } finally {
    await rm(passwordFile, { force: true })
    await rm(draft, { recursive: true, force: true })
  }
}

/** A port that is free now. Somebody may take it before Postgres does; then the start fails and is tried with another. */
export const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer()
    probe.once('error', reject)
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address()
      probe.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0))
    })
  })

/** What `postmaster.pid` says (PostgreSQL's miscadmin.h: pid, directory, start, port, …, status). */
const readPidFile = async (dir: string): Promise<{ pid: number; port: number; lines: string[] } | undefined> => {
  const content = await readFile(join(dir, 'postmaster.pid'), 'utf8').catch((error: unknown) => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  })
  if (content === undefined) return undefined
  const lines = content.split('\n')
  return { pid: Math.abs(Number(lines[0])), port: Number(lines[3]), lines }
}

const isPostgresOf = async (pid: number, dir: string): Promise<boolean> => {
  if ((await processMark(pid)) === undefined) return false
  const directory = await processDirectory(pid)
  return directory !== undefined && directory === (await realpath(dir))
}

/** The server that runs on this cluster, whoever started it. */
export const findServer = async (dir: string): Promise<{ pid: number; port: number } | undefined> => {
  const file = await readPidFile(dir)
  if (file === undefined || !(file.pid > 1) || !(await isPostgresOf(file.pid, dir))) return undefined
  return { pid: file.pid, port: file.port }
}

/** Postgres listens in its own directory, too: so its end can be seen from containers in which its number says nothing. */
const SOCKET_DIRECTORY = process.platform === 'linux' ? '.' : ''
const socketOf = (dir: string, port: number): string => join(dir, `.s.PGSQL.${port}`)

/**
 * Postgres removes the lock file of a dead process itself, but not that of a zombie or of a stranger who has the number
 * now: for both a signal succeeds. The file is not deleted either, since it also names the shared memory by which Postgres
 * finds out whether old children of the dead server still write; only the number is replaced by one that nobody has.
 * Its socket and the lock file beside that say nothing more, and go.
 */
const disownPidFile = async (dir: string): Promise<void> => {
  const file = await readPidFile(dir)
  if (file === undefined || (await isPostgresOf(file.pid, dir))) return
  const socket = socketOf(dir, file.port)
  if (SOCKET_DIRECTORY !== '' && (await answersAt(socket))) {
    throw new Error(`A PostgreSQL of another container, process ${file.pid} in there, still runs in ${dir}. Stop that container first.`)
  }
  for (const left of [socket, `${socket}.lock`]) await rm(left, { force: true })
  await writeFile(join(dir, 'postmaster.pid'), [String(NO_PROCESS), ...file.lines.slice(1)].join('\n'))
}

const gone = async (pid: number, dir: string, limitMs: number, clock: Clock): Promise<boolean> => {
  const until = performance.now() + limitMs
  while (await isPostgresOf(pid, dir)) {
    if (performance.now() > until) return false
    await clock.sleep(STEP_MS)
  }
  return true
}

/** Stops a server, politely at first: fast shutdown, then immediate, then the end. */
export const stopServer = async (pid: number, dir: string, clock: Clock): Promise<void> => {
  for (const [name, limitMs] of [
    ['SIGINT', FAST_STOP_LIMIT_MS],
    ['SIGQUIT', IMMEDIATE_STOP_LIMIT_MS],
    ['SIGKILL', IMMEDIATE_STOP_LIMIT_MS],
  ] as const) {
    if (!(await isPostgresOf(pid, dir))) return
    signal(pid, name)
    if (await gone(pid, dir, limitMs, clock)) return
  }
  throw new Error(`The PostgreSQL process ${pid} in ${dir} does not end.`)
}

const tailOf = async (logFile: string): Promise<string> => {
  const content = await readFile(logFile, 'utf8').catch(() => '')
  return content.trimEnd().split('\n').slice(-5).join('\n')
}

const openLogFile = async (cluster: Cluster) => {
  const size = await stat(cluster.logFile).then(
    (file) => file.size,
    () => 0,
  )
  if (size > MAX_LOG_BYTES) await rename(cluster.logFile, `${cluster.logFile}.1`)
  return open(cluster.logFile, 'a', 0o600)
}

/**
 * Starts the server and resolves when it is ready to answer. It is a session of its own, so that Ctrl-C at our terminal reaches us
 * and we stop it in our order.
 */
export const startServer = async (cluster: Cluster, port: number, clock: Clock): Promise<ChildProcess> => {
  await disownPidFile(cluster.dir)
  const log = await openLogFile(cluster)
  const settings = { listen_addresses: '127.0.0.1', port, unix_socket_directories: SOCKET_DIRECTORY, ...cluster.settings }
  const child = spawn(
    join(cluster.tools.bin, 'postgres'),
    ['-D', cluster.dir, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
    {
      ...(cluster.user && { uid: cluster.user.uid, gid: cluster.user.gid }),
      cwd: dirname(cluster.dir),
      env: CLEAN_ENVIRONMENT,
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
    },
  )
  let ended: string | undefined
  child.once('exit', (code, name) => {
    ended = `it ended with ${name ?? code}`
  })
  try {
    await once(child, 'spawn')
  } finally {
    await log.close()
  }
  child.unref() // whoever forgets to close it may end all the same; the next start finds what was left
  const { pid } = child
  if (pid === undefined) throw new Error('A process that was spawned has a number.')
  const until = performance.now() + START_LIMIT_MS
  for (;;) {
    if (ended !== undefined)
      throw new Error(`PostgreSQL did not start: ${ended}. Its log ${cluster.logFile} ends:\n${await tailOf(cluster.logFile)}`)
    // Asking before it is ready would fill its log with refusals.
    const file = await readPidFile(cluster.dir).catch(() => undefined)
    if (file?.pid === pid && file.lines[STATUS_LINE]?.trim() === 'ready') break
    if (performance.now() > until) {
      await stopServer(pid, cluster.dir, clock)
      throw new Error(`PostgreSQL was not ready within ${START_LIMIT_MS / 1000} s. Its log is ${cluster.logFile}.`)
    }
    await clock.sleep(STEP_MS)
  }
  return child
}
