import type { ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chmod, chown, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import type { Clock } from './clock.ts'
import { codeOf, type Hold, holderOf, isHolder, makeDataDir, makeFileOnce, nameOf, tryHold } from './data-dir.ts'
import type { Logger } from './log.ts'
import { addressOf, type Cluster, DATABASE_USER, findServer, freePort, makeCluster, startServer, stopServer } from './postgres-server.ts'
import { closedTo, npmTools, type RunAs, runAs } from './postgres-tools.ts'

/** A running embedded PostgreSQL. Its address stays the same until it is closed, also when the server crashed meanwhile. */
export type Embedded = { readonly url: string; readonly close: () => Promise<void> }

const DATABASE = 'parvis'
const CONNECTIONS = 40
/** Of each further gateway: `GATEWAY_CONNECTIONS` of gateway-main.ts, those for limits and reports, and the one that listens. */
const CONNECTIONS_PER_GATEWAY = 10
const SETTINGS = {
  shared_buffers: '64MB',
  max_connections: CONNECTIONS,
  // Bills are kept in here: nothing is said to be stored before the disk says so.
  fsync: 'on',
  synchronous_commit: 'on',
  full_page_writes: 'on',
  max_wal_size: '256MB',
  timezone: 'UTC',
  log_timezone: 'UTC',
  log_min_messages: 'warning',
  // Values stay out of the log, also when a statement fails.
  log_parameter_max_length_on_error: 0,
  // A small server beside engines that need the cores: no compiled plans, no helpers, no shared memory files in /dev/shm.
  jit: 'off',
  max_parallel_workers_per_gather: 0,
  io_method: 'sync',
}
const START_TRIES = 6 // 100 ms, 200 ms … apart: also the time in which the last children of a killed server see that it is gone
const CROWD_LIMIT_MS = 60_000 // a command that had the database before us ends within this
const STEP_MS = 50
const FIRST_BACKOFF_MS = 100
const MAX_BACKOFF_MS = 5_000
const CONNECT_LIMIT_MS = 5_000
const MAKE_LIMIT_MS = 60_000 // it copies a template, 7 MB, to a disk that may be slow

const SERVER = 'server'
const COMMAND = 'command'

const clusterDirOf = (dataDir: string): string => join(dataDir, 'postgres')
const lockFileOf = (dataDir: string): string => join(dataDir, 'postgres.lock')
const passwordFileOf = (dataDir: string): string => join(dataDir, 'postgres.password')

const readPassword = async (dataDir: string): Promise<string | undefined> => {
  try {
    return (await readFile(passwordFileOf(dataDir), 'utf8')).trim()
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined
    throw error
  }
}

const makePassword = async (dataDir: string): Promise<string> => {
  const known = await readPassword(dataDir)
  if (known !== undefined) return known
  if (await stat(join(clusterDirOf(dataDir), 'PG_VERSION')).catch(() => undefined)) {
    throw new Error(
      `The database in ${clusterDirOf(dataDir)} is there, but the file with its password is not: restore ${passwordFileOf(dataDir)} from a backup.`,
    )
  }
  await makeFileOnce(passwordFileOf(dataDir), `${randomBytes(24).toString('hex')}\n`)
  return (await readPassword(dataDir)) ?? ''
}

/** Lets the user that Postgres runs as pass through the data directory, and nobody else. What is above is not ours to open. */
const letThrough = async (dataDir: string, user: RunAs): Promise<void> => {
  if (user === undefined) return
  if ((await closedTo(dataDir, user)) === dataDir) {
    await chown(dataDir, 0, user.gid)
    await chmod(dataDir, 0o710)
  }
  const closed = await closedTo(dataDir, user)
  if (closed === undefined) return
  throw new Error(
    `PostgreSQL does not run as root, and the user ${user.name} may not enter ${closed}, which the data directory ${dataDir} is in. Set PARVIS_DATA_DIR to a place like /var/lib/parvis, or run Parvis as another user than root.`,
  )
}

/** Postgres may hold a port for a moment that somebody else has taken since we looked; then another one does. */
const startAnywhere = async (cluster: Cluster, clock: Clock): Promise<{ server: ChildProcess; port: number }> => {
  for (let tries = 1; ; tries += 1) {
    const port = await freePort()
    try {
      return { server: await startServer(cluster, port, clock), port }
    } catch (error) {
      if (tries === START_TRIES) throw error
      await clock.sleep(FIRST_BACKOFF_MS * 2 ** (tries - 1))
    }
  }
}

/** The first words with the server: they also show that the password is the right one. */
const makeDatabase = async (cluster: Cluster, port: number): Promise<void> => {
  const client = new pg.Client({
    connectionString: addressOf(port, cluster.password),
    connectionTimeoutMillis: CONNECT_LIMIT_MS,
    query_timeout: MAKE_LIMIT_MS,
  })
  client.on('error', () => undefined) // a connection that breaks also fails the question, which tells
  try {
    await client.connect()
    const { rowCount } = await client.query('select 1 from pg_database where datname = $1', [DATABASE])
    if (rowCount === 0) await client.query(`create database ${DATABASE} owner ${DATABASE_USER}`)
  } catch (cause) {
    throw new Error(`PostgreSQL runs in ${cluster.dir} but does not let us in: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    })
  } finally {
    await client.end().catch(() => undefined)
  }
}

const exitOf = async (server: ChildProcess): Promise<void> => {
  if (server.exitCode === null && server.signalCode === null) await once(server, 'exit')
}

/** Starts a server that died again, on the same port, for as long as it takes. */
const keepRunning = (cluster: Cluster, port: number, first: ChildProcess, options: { clock: Clock; log: Logger }) => {
  const { clock, log } = options
  const closing = new AbortController()

  /** Undefined when we are told to close meanwhile. */
  const revive = async (): Promise<ChildProcess | undefined> => {
    for (let waitMs = FIRST_BACKOFF_MS; ; waitMs = Math.min(waitMs * 2, MAX_BACKOFF_MS)) {
      await clock.sleep(waitMs, closing.signal).catch(() => undefined)
      if (closing.signal.aborted) return undefined
      try {
        const server = await startServer(cluster, port, clock)
        log.info({ port }, 'the embedded database runs again')
        return server
      } catch (error) {
        if (!closing.signal.aborted) log.error({ err: error }, 'the embedded database did not start')
      }
    }
  }

  const supervise = async (): Promise<void> => {
    for (let server: ChildProcess | undefined = first; server !== undefined; server = await revive()) {
      await exitOf(server)
      if (closing.signal.aborted) return
      log.error(
        { code: server.exitCode, signal: server.signalCode, logFile: cluster.logFile },
        'the embedded database died; starting it again',
      )
    }
  }

  const supervising = supervise()
  return {
    close: async (): Promise<void> => {
      closing.abort()
      let ended = false
      const end = supervising.then(() => (ended = true))
      // Twice when a new one was just being started: it comes up in spite of us, and is stopped as well.
      while (!ended) {
        const running = await findServer(cluster.dir)
        if (running !== undefined) await stopServer(running.pid, cluster.dir, clock)
        await Promise.race([end, clock.sleep(STEP_MS)])
      }
    },
  }
}

const waitForHold = async (dataDir: string, what: string, clock: Clock): Promise<Hold> => {
  const until = performance.now() + CROWD_LIMIT_MS
  for (;;) {
    const result = await tryHold(lockFileOf(dataDir), what)
    if (!isHolder(result)) return result
    if (performance.now() > until) {
      throw new Error(`The embedded database in ${dataDir} is in use by ${nameOf(result)} since ${result.since}. Stop it first.`)
    }
    await clock.sleep(STEP_MS)
  }
}

const open = async (dataDir: string, hold: Hold, options: { gateways?: number; log: Logger; clock: Clock }): Promise<Embedded> => {
  const { clock, log } = options
  const dir = clusterDirOf(dataDir)
  try {
    const user = await runAs(dir)
    await letThrough(dataDir, user)
    const cluster: Cluster = {
      dir,
      tools: await npmTools(user, dataDir),
      user,
      password: await makePassword(dataDir),
      logFile: join(dataDir, 'postgres.log'),
      settings: { ...SETTINGS, max_connections: CONNECTIONS + CONNECTIONS_PER_GATEWAY * ((options.gateways ?? 1) - 1) },
    }
    // Whoever started it is gone without stopping it, else we would not have the lock. It is stopped and not taken over: then
    // it has today's programs and settings, and is our child, whose end we are told of.
    const orphan = await findServer(dir)
    if (orphan !== undefined) {
      log.warn({ pid: orphan.pid }, 'a database left running by a process that was killed is stopped and started again')
      await stopServer(orphan.pid, dir, clock)
    }
    if (await makeCluster(cluster)) log.info({ dir, as: user?.name }, 'made the embedded database')
    const { server, port } = await startAnywhere(cluster, clock)
    const running = keepRunning(cluster, port, server, options)
    const close = async () => {
      try {
        await running.close()
      } finally {
        await hold.release()
      }
    }
    try {
      await makeDatabase(cluster, port)
    } catch (error) {
      await running.close()
      throw error
    }
    return { url: addressOf(port, cluster.password, DATABASE), close }
  } catch (error) {
    await hold.release()
    throw error
  }
}

/** The embedded PostgreSQL in the data directory, made at the first start. One process has it at a time. */
export const openEmbeddedPostgres = async (options: {
  dataDir: string
  gateways?: number
  log: Logger
  clock: Clock
}): Promise<Embedded> => {
  await makeDataDir(options.dataDir)
  return open(options.dataDir, await waitForHold(options.dataDir, SERVER, options.clock), options)
}

const answers = async (url: string): Promise<boolean> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: CONNECT_LIMIT_MS, query_timeout: CONNECT_LIMIT_MS })
  client.on('error', () => undefined)
  try {
    await client.connect()
    await client.query('select 1')
    return true
  } catch {
    return false
  } finally {
    await client.end().catch(() => undefined)
  }
}

/** The address of the embedded database that a server runs in this data directory; undefined when none does, or not yet. */
export const connectEmbedded = async (dataDir: string): Promise<string | undefined> => {
  const holder = await holderOf(lockFileOf(dataDir))
  if (holder?.what !== SERVER) return undefined
  const [running, password] = [await findServer(clusterDirOf(dataDir)), await readPassword(dataDir)]
  if (running === undefined || password === undefined) return undefined
  const url = addressOf(running.port, password, DATABASE)
  // It may be starting, stopping, or at its first start not have made the database yet.
  return (await answers(url)) ? url : undefined
}

/**
 * For a command: the database of the server that runs, which is left alone, or else one for as long as the command takes.
 * While another command has it, this one waits: it would be stopped under our hands.
 */
export const borrowEmbeddedPostgres = async (options: { dataDir: string; log: Logger; clock: Clock }): Promise<Embedded> => {
  const { dataDir, clock } = options
  await makeDataDir(dataDir)
  const until = performance.now() + CROWD_LIMIT_MS
  for (;;) {
    const url = await connectEmbedded(dataDir)
    if (url !== undefined) return { url, close: async () => undefined }
    const result = await tryHold(lockFileOf(dataDir), COMMAND)
    if (!isHolder(result)) return open(dataDir, result, options)
    if (result.elsewhere && result.what === SERVER) {
      throw new Error(
        `The embedded database in ${dataDir} is that of ${nameOf(result)}, and can be reached in there only: run the command in that container.`,
      )
    }
    if (performance.now() > until) {
      throw new Error(
        `The embedded database in ${dataDir} is being started or stopped by ${nameOf(result)} since ${result.since}. Try again.`,
      )
    }
    await clock.sleep(STEP_MS)
  }
}
