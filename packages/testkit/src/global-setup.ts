import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { access, chmod, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '@parvis/server/kit/clock'
import { openDb } from '@parvis/server/kit/db'
import { openLog } from '@parvis/server/kit/log'
import { migrate } from '@parvis/server/kit/migrate'
import { addressOf, type Cluster, freePort, makeCluster, startServer, stopServer } from '@parvis/server/kit/postgres-server'
import { installedTools, npmTools, runAs, type Tools } from '@parvis/server/kit/postgres-tools'
import type { TestProject } from 'vitest/node'

/** Where the tests of this run find their database server. */
export type TestPostgres = {
  /** May create and drop databases. */
  readonly adminUrl: string
  /** Every database of this run begins with this. */
  readonly prefix: string
  /** Has had all migrations; each test file gets a copy of it. */
  readonly template: string
}

declare module 'vitest' {
  export interface ProvidedContext {
    postgres: TestPostgres
  }
}

const MAX_CONNECTIONS = 100

/** The newest PostgreSQL that the system's packages installed. */
const systemTools = async (): Promise<Tools> => {
  const root = '/usr/lib/postgresql'
  const versions = (await readdir(root).catch(() => [])).toSorted((a, b) => Number(b) - Number(a))
  for (const version of versions) {
    const bin = join(root, version, 'bin')
    const whole = await access(join(bin, 'initdb')).then(
      () => true,
      () => false,
    )
    if (whole) return installedTools(bin)
  }
  throw new Error(
    `PARVIS_TEST_DATABASE=system, but there is no PostgreSQL below ${root}. Install one (apt-get install postgresql), or leave the variable away to use the one that npm brought.`,
  )
}

/**
 * A run that is killed cannot clean up after itself, so somebody waits for its end: the pipe closes with us, however we end.
 * Then the server is told to stop at once and its directory goes.
 */
const leaveWatch = (dir: string, cluster: string) => {
  const script = 'cat >/dev/null; pid=$(head -n 1 "$2/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null; sleep 1; rm -rf "$1"'
  const watch = spawn('/bin/sh', ['-c', script, 'sh', dir, cluster], { stdio: ['pipe', 'ignore', 'ignore'], detached: true, cwd: '/' })
  watch.unref()
  return watch
}

/** A server of our own for this run: it forgets everything at the end, so it need not wait for the disk. */
const startOwn = async (): Promise<{ adminUrl: string; close(): Promise<void> }> => {
  const dir = await mkdtemp(join(tmpdir(), 'parvis-test-'))
  await chmod(dir, 0o711)
  const clusterDir = join(dir, 'cluster')
  const watch = leaveWatch(dir, clusterDir)
  const close = async () => {
    await rm(dir, { recursive: true, force: true })
    const ended = once(watch, 'exit')
    watch.kill()
    watch.stdin.end() // its cat goes too
    await ended
  }
  try {
    const user = await runAs(clusterDir)
    const cluster: Cluster = {
      dir: clusterDir,
      tools: process.env['PARVIS_TEST_DATABASE'] === 'system' ? await systemTools() : await npmTools(user, dir),
      user,
      password: randomBytes(12).toString('hex'),
      logFile: join(dir, 'postgres.log'),
      settings: {
        fsync: 'off',
        synchronous_commit: 'off',
        full_page_writes: 'off',
        max_connections: MAX_CONNECTIONS,
        shared_buffers: '64MB',
      },
    }
    await makeCluster(cluster)
    const port = await freePort()
    const server = await startServer(cluster, port, systemClock)
    return {
      adminUrl: addressOf(port, cluster.password),
      close: async () => {
        if (server.pid !== undefined) await stopServer(server.pid, clusterDir, systemClock)
        await close()
      },
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** The template, made once; and at the end, whatever tests have left. */
const prepare = async (adminUrl: string): Promise<{ postgres: TestPostgres; close(): Promise<void> }> => {
  const log = openLog('silent')
  const prefix = `parvis_test_${randomBytes(4).toString('hex')}_`
  const template = `${prefix}template`
  const admin = openDb(adminUrl, { log, max: 1 })
  try {
    await admin.query(`create database ${template} template template0`)
    const url = new URL(adminUrl)
    url.pathname = `/${template}`
    const db = openDb(url.href, { log, max: 1 })
    try {
      await migrate(db)
    } finally {
      await db.end()
    }
  } catch (cause) {
    await admin.end()
    const server = new URL(adminUrl).host
    throw new Error(
      `The database for the tests could not be prepared on ${server}: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    )
  }
  return {
    postgres: { adminUrl, prefix, template },
    close: async () => {
      const { rows } = await admin.query<{ datname: string }>('select datname from pg_database where starts_with(datname, $1)', [prefix])
      for (const { datname } of rows) await admin.query(`drop database if exists "${datname}" with (force)`)
      await admin.end()
    },
  }
}

/**
 * Starts a Postgres for the run: the one that npm brought; the system's with PARVIS_TEST_DATABASE=system; or none at all,
 * when PARVIS_TEST_DATABASE_URL names a server where databases may be created.
 */
export default async (project: TestProject): Promise<() => Promise<void>> => {
  const given = process.env['PARVIS_TEST_DATABASE_URL']
  const server = given ? { adminUrl: given, close: async () => undefined } : await startOwn()
  try {
    const prepared = await prepare(server.adminUrl)
    project.provide('postgres', prepared.postgres)
    return async () => {
      try {
        await prepared.close()
      } finally {
        await server.close()
      }
    }
  } catch (error) {
    await server.close()
    throw error
  }
}
