import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { open, rm, statfs } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createServer } from 'node:net'
import { availableParallelism, freemem, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import type { Command } from 'commander'
import type { Config } from '../config.ts'
import { readInstallation } from '../iam/installation.ts'
import { httpAddress } from '../kit/addresses.ts'
import { systemClock } from '../kit/clock.ts'
import { dataDirHolder, makeDataDir, nameOf } from '../kit/data-dir.ts'
import { type Db, openDb, requirePostgres } from '../kit/db.ts'
import { openLog } from '../kit/log.ts'
import { pendingMigrations } from '../kit/migrate.ts'
import { borrowEmbeddedPostgres, connectEmbedded } from '../kit/postgres.ts'
import { openSecrets } from '../kit/secrets.ts'
import { listUnmeasured } from '../usage/reconcile.ts'
import { monthOf } from '../usage/view.ts'

/** What one look found, and what to do about it where it is not well. */
export type Finding = { readonly what: string; readonly state: 'ok' | 'warn' | 'fail'; readonly found: string; readonly todo?: string }

const OLDEST_NODE = [20, 19] as const
const MB = 2 ** 20
const LEAST_FREE_MB = 500 // the database's log of changes alone may take 256 MB
const COMFORTABLE_FREE_MB = 2_000
const SYNC_WRITES = 15
const SYNC_BYTES = 4096
// An inference request waits for one such write. An SSD with its own cache takes 0.05–1 ms, one without about 1–5, a spinning disk 10.
const SLOW_SYNC_MS = 5
const VERY_SLOW_SYNC_MS = 30
const HEALTH_LIMIT_MS = 2_000
const BINDING_LIMIT_MS = 20_000
const ENGINES_MEMORY_SHARE = 0.9
const MAX_SKEW_MS = 2_000

const ok = (what: string, found: string): Finding => ({ what, state: 'ok', found })
const warn = (what: string, found: string, todo: string): Finding => ({ what, state: 'warn', found, todo })
const fail = (what: string, found: string, todo: string): Finding => ({ what, state: 'fail', found, todo })
const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error))

export const checkNode = (version: string): Finding => {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  const [oldestMajor, oldestMinor] = OLDEST_NODE
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return ok('Node.js', version)
  return fail('Node.js', version, `Install Node.js ${OLDEST_NODE.join('.')} or newer.`)
}

const checkSpace = async (dataDir: string): Promise<Finding> => {
  const { bavail, bsize } = await statfs(dataDir)
  const freeMb = Math.floor((bavail * bsize) / MB)
  const found = `${freeMb} MB free in ${dataDir}`
  if (freeMb < LEAST_FREE_MB) return fail('disk space', found, `Make room: at least ${LEAST_FREE_MB} MB, and more for models.`)
  if (freeMb < COMFORTABLE_FREE_MB) return warn('disk space', found, 'Enough to run; make room before pulling models.')
  return ok('disk space', found)
}

export const judgeSync = (medianMs: number): Finding => {
  const found = `a write reaches the disk in ${medianMs.toFixed(2)} ms (median of ${SYNC_WRITES})`
  if (medianMs > VERY_SLOW_SYNC_MS) {
    return warn(
      'disk sync',
      found,
      'Very slow: every request waits for one such write. Put PARVIS_DATA_DIR on a local SSD, not on a network or USB disk.',
    )
  }
  if (medianMs > SLOW_SYNC_MS) return warn('disk sync', found, 'Slow: it is added to every request. A local SSD takes about 1 ms.')
  return ok('disk sync', found)
}

/** Writes as the journal does, one at a time and each to the disk. The file says whether we may write here at all, too. */
const measureSyncMs = async (dataDir: string): Promise<number> => {
  const path = join(dataDir, `doctor.${randomBytes(4).toString('hex')}`)
  const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | (constants.O_DSYNC ?? constants.O_SYNC), 0o600)
  try {
    const times: number[] = []
    const block = randomBytes(SYNC_BYTES)
    for (let count = 0; count < SYNC_WRITES; count += 1) {
      const startedAt = performance.now()
      await file.write(block)
      times.push(performance.now() - startedAt)
    }
    return times.toSorted((a, b) => a - b)[Math.floor(SYNC_WRITES / 2)] ?? 0
  } finally {
    await file.close()
    await rm(path, { force: true })
  }
}

const checkDataDir = async (config: Config): Promise<Finding[]> => {
  const { dataDir } = config
  try {
    await makeDataDir(dataDir)
    const syncMs = await measureSyncMs(dataDir)
    const holder = await dataDirHolder(dataDir)
    return [
      ok(
        'data directory',
        `${dataDir}, ${holder === undefined ? 'not in use' : `used by ${holder.what}, ${nameOf(holder)}, since ${holder.since}`}`,
      ),
      await checkSpace(dataDir),
      judgeSync(syncMs),
    ]
  } catch (error) {
    return [fail('data directory', `${dataDir}: ${reason(error)}`, 'Set PARVIS_DATA_DIR to a directory that this user may write to.')]
  }
}

/** Nobody pays for what nobody has counted, so an operator wants to know early. */
const checkCounts = async (db: Db): Promise<Finding> => {
  const now = systemClock.now()
  const { count } = await listUnmeasured(db, { from: monthOf(now), to: now }, 0)
  if (count === 0n) return ok('counts', 'every answer of this month was counted')
  return warn(
    'counts',
    `${count} answer${count === 1n ? '' : 's'} of this month that nobody has counted, and nobody pays for`,
    '`parvis usage unmeasured` lists them: their engine gives no usage and has no /tokenize, or their gateway died.',
  )
}

const checkDatabase = async (config: Config): Promise<Finding[]> => {
  const log = openLog('silent')
  const kind = config.databaseUrl === undefined ? 'embedded' : `at ${new URL(config.databaseUrl).host}`
  let embedded: { url: string; close(): Promise<void> } | undefined
  const findings: Finding[] = []
  try {
    const runs = config.databaseUrl === undefined && (await connectEmbedded(config.dataDir)) !== undefined
    if (config.databaseUrl === undefined) embedded = await borrowEmbeddedPostgres({ dataDir: config.dataDir, log, clock: systemClock })
    const db = openDb(config.databaseUrl ?? embedded?.url ?? '', { log, max: 1 })
    try {
      const startedAt = performance.now()
      const major = await requirePostgres(db)
      const tookMs = performance.now() - startedAt
      const place = config.databaseUrl === undefined ? (runs ? ', of the running server' : ', started for this look') : ''
      findings.push(ok('database', `PostgreSQL ${major}, ${kind}${place}, answers in ${tookMs.toFixed(0)} ms`))

      const pending = await pendingMigrations(db).catch((error: unknown) => reason(error))
      findings.push(
        typeof pending === 'string'
          ? fail('migrations', pending, 'The program and the database must fit each other before anything is served.')
          : pending.length === 0
            ? ok('migrations', 'none pending')
            : warn('migrations', `pending: ${pending.join(', ')}`, 'The next start of the server takes them.'),
      )

      const before = systemClock.now()
      const { rows } = await db.query<{ now: Date }>('select clock_timestamp() as now')
      const middle = (before + systemClock.now()) / 2
      const skewMs = Math.abs((rows[0]?.now.getTime() ?? middle) - middle)
      const skew = `${skewMs.toFixed(0)} ms between this machine and the database`
      findings.push(
        skewMs > MAX_SKEW_MS ? warn('clock', skew, 'Set both by NTP: keys expire and bills are cut by these clocks.') : ok('clock', skew),
      )

      if (pending.length === 0) {
        const secrets = await openSecrets({ dataDir: config.dataDir, masterKey: config.masterKey })
        const installation = await readInstallation(db, secrets).catch((error: unknown) => reason(error))
        findings.push(
          typeof installation === 'string'
            ? fail('master key', installation, 'Without it no key is known and no stored secret can be read.')
            : ok('master key', installation === undefined ? 'nothing set up yet' : 'the one of this database'),
        )
      }
      if (pending.length === 0) findings.push(await checkCounts(db))
    } finally {
      await db.end()
    }
  } catch (error) {
    findings.push(
      fail(
        'database',
        `${kind}: ${reason(error)}`,
        config.databaseUrl === undefined
          ? `Its log is ${join(config.dataDir, 'postgres.log')}.`
          : 'See that PARVIS_DATABASE_URL is right and the server can be reached.',
      ),
    )
  } finally {
    await embedded?.close().catch(() => undefined)
  }
  return findings
}

const canListen = (host: string, port: number): Promise<string | undefined> =>
  new Promise((resolve) => {
    const probe = createServer()
    probe.once('error', (error) => resolve('code' in error && typeof error.code === 'string' ? error.code : error.message))
    probe.listen(port, host, () => probe.close(() => resolve(undefined)))
  })

const checkPort = async (config: Config): Promise<Finding> => {
  const { host, port } = config
  const obstacle = await canListen(host, port)
  if (obstacle === undefined) return ok('port', `${host}:${port} is free`)
  if (obstacle !== 'EADDRINUSE') {
    return fail(
      'port',
      `${host}:${port}: ${obstacle}`,
      obstacle === 'EACCES'
        ? 'Ports below 1024 are for root: choose a higher PARVIS_PORT.'
        : 'Set PARVIS_HOST to an address of this machine.',
    )
  }
  const name = host.includes(':') ? `[${host}]` : host
  const answer = await fetch(`http://${name}:${port}/health`, { signal: AbortSignal.timeout(HEALTH_LIMIT_MS) }).catch(() => undefined)
  await answer?.body?.cancel()
  const holder = await dataDirHolder(config.dataDir)
  if (answer?.status === 200 && holder !== undefined) return ok('port', `Parvis answers at ${host}:${port}`)
  return fail(
    'port',
    `${host}:${port} is taken${answer === undefined ? '' : ` by something that speaks HTTP (${answer.status})`}`,
    'Stop it, or choose another PARVIS_PORT.',
  )
}

/** What we write into letters must be where people are, and not where the proxy finds us. */
const checkPublicUrl = ({ behindTls, publicUrl, host, port }: Pick<Config, 'behindTls' | 'publicUrl' | 'host' | 'port'>): Finding => {
  const url = publicUrl ?? httpAddress(host, port)
  if (!behindTls || publicUrl !== undefined) return ok('public address', url)
  return warn(
    'public address',
    `a proxy is in front, and links in letters begin with ${url}`,
    'Set PARVIS_PUBLIC_URL to where people reach it.',
  )
}

// The binding tries itself in a child of its own, which must not inherit the program that stands on our command line.
const LOAD_BINDING = `
  process.execArgv = []
  const { getLlama } = await import('node-llama-cpp')
  const llama = await getLlama({ gpu: process.argv[1] === 'off' ? false : 'auto', build: 'never', skipDownload: true, progressLogs: false, logger: () => undefined })
  process.stdout.write(JSON.stringify({ gpu: llama.gpu }))
  process.exit(0)`

/** In a process of its own: native code that does not fit the machine may end the process that loads it. */
const checkBinding = (config: Config): Promise<Finding> => {
  let engineDir: string
  try {
    engineDir = dirname(createRequire(import.meta.url).resolve('@parvis/engine/main'))
  } catch (error) {
    return Promise.resolve(fail('engine', reason(error), 'Install again: npm install.'))
  }
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      ['--input-type=module', '--eval', LOAD_BINDING, config.engineGpu],
      { cwd: engineDir, timeout: BINDING_LIMIT_MS, killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        if (error === null) {
          const { gpu } = JSON.parse(stdout) as { gpu: string | false }
          resolve(ok('engine', `llama.cpp loads, ${gpu === false ? 'on the CPU' : `with ${gpu}`}`))
          return
        }
        const said =
          stderr
            .trim()
            .split('\n')
            .find((line) => /error/i.test(line)) ??
          stderr.trim().split('\n').at(-1) ??
          ''
        const found =
          error.killed === true
            ? `llama.cpp did not load within ${BINDING_LIMIT_MS / 1000} s`
            : `llama.cpp does not load: ${said || reason(error)}`
        resolve(
          fail(
            'engine',
            found,
            'Install again with optional dependencies (npm install --include=optional), or use engines that run elsewhere: parvis engines add.',
          ),
        )
      },
    )
  })
}

const checkMemory = (config: Config): Finding => {
  const totalMb = Math.floor(Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY) / MB)
  const found = `${totalMb} MB, ${Math.floor(freemem() / MB)} MB of it free; ${availableParallelism()} cores; each engine may use ${config.engineMemoryMb} MB and ${config.engineThreads} threads`
  if (config.engineMemoryMb > totalMb * ENGINES_MEMORY_SHARE) {
    return warn('memory', found, 'One engine may use all of it: lower PARVIS_ENGINE_MEMORY_MB.')
  }
  return ok('memory', found)
}

/** Looks at everything that a start needs. The settings come as a function, since they may be what is wrong. */
export const examine = async (readSettings: () => Config): Promise<Finding[]> => {
  const node = checkNode(process.versions.node)
  let config: Config
  try {
    config = readSettings()
  } catch (error) {
    return [node, fail('settings', reason(error), 'Correct it; the rest can be looked at then.')]
  }
  const settings = ok('settings', config.configPath === undefined ? 'environment and defaults' : `environment and ${config.configPath}`)
  const dataDir = await checkDataDir(config)
  const broken = dataDir.some(({ state }) => state === 'fail')
  return [
    node,
    settings,
    ...dataDir,
    ...(broken && config.databaseUrl === undefined ? [] : await checkDatabase(config)),
    await checkPort(config),
    checkPublicUrl(config),
    await checkBinding(config),
    checkMemory(config),
  ]
}

const WIDTH = 15

export const registerDoctor = (program: Command, readSettings: () => Config): void => {
  program
    .command('doctor')
    .description('look at everything that a start needs, and say what to do about what is not well')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const findings = await examine(readSettings)
      if (json === true) process.stdout.write(`${JSON.stringify(findings, null, 2)}\n`)
      else {
        for (const { what, state, found, todo } of findings) {
          process.stdout.write(`${state.padEnd(5)}${what.padEnd(WIDTH)}${found}\n`)
          if (todo !== undefined) process.stdout.write(`${' '.repeat(5 + WIDTH)}→ ${todo}\n`)
        }
      }
      if (findings.some(({ state }) => state === 'fail')) process.exitCode = 1
    })
}
