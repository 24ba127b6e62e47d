import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Instant, instantToDate } from '@parvis/server/kit/clock'
import { openDb } from '@parvis/server/kit/db'
import { openLog } from '@parvis/server/kit/log'
import { connectEmbedded } from '@parvis/server/kit/postgres'
import {
  type Child,
  cpuMicros,
  endsWithUs,
  familyOf,
  freePort,
  GATEWAY_CORE,
  OTHER_CORE,
  pin,
  startChild,
  unpin,
  until,
} from '../measure.ts'
import { type Answer, bodyOf, type Target } from './load.ts'
import { startNginxEngine, startNginxProxy } from './nginx.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const PARVIS = join(ROOT, 'apps/server/bin/parvis.mjs')
const SOURCE = ['--import', 'tsx', '--conditions=@parvis/source']
const NO_LIMIT = 1_000_000_000
const PATH = '/v1/chat/completions'

/** Something between a client and two engines: one that answers whole, one that streams. */
export type System = {
  readonly name: string
  readonly whole: Target
  readonly stream: Target
  /** Whose processor time it costs; and what works beside it (the embedded database), stated apart. */
  readonly pids: readonly number[]
  beside(): readonly number[]
  /** Of these, those that carry streams. */
  readonly streamPids: readonly number[]
  /** What comes behind the chunks of a stream: the engine's finish, usage and [DONE], of which we hide the usage from whoever did not ask for it. */
  readonly lastEvents: number
  /** Waits until so many requests that were begun since are in the books: what is done for them later is part of what they cost. */
  booked(since: Instant, requests: number): Promise<void>
  stop(): Promise<void>
}

export const cpuOf = (pids: readonly number[]): number => pids.reduce((sum, pid) => sum + cpuMicros(pid), 0)

/** Processor time of each process that works beside it by now; those that end meanwhile take theirs with them. */
export const besideCpuOf = ({ beside }: System): Map<number, number> =>
  new Map(
    beside().flatMap((pid) => {
      try {
        return [[pid, cpuMicros(pid)] as const]
      } catch {
        return []
      }
    }),
  )

/** What is wrong with answers that were streamed, if anything: each must have exactly what the engine sent and we let through. */
export const lostOf = ({ name, lastEvents }: System, answers: readonly Answer[], chunks: number): string | undefined => {
  const wanted = chunks + lastEvents
  const wrong = answers.filter(({ events }) => events !== wanted)
  if (wrong.length === 0) return undefined
  return `${wrong.length} of ${answers.length} streams through ${name} had not ${wanted} events but ${[...new Set(wrong.map(({ events }) => events))].join(', ')}`
}

export type Engines = { readonly whole: Child; readonly stream: Child; stop(): Promise<void> }

/** The engines live on the other core: what they cost is nobody's here. */
export const startEngines = async (chunks: number, chunkEveryMs: number, counts = false): Promise<Engines> => {
  const whole = await startNginxEngine('mock')
  const stream = await startChild([
    ...SOURCE,
    fileURLToPath(new URL('mock-engine.ts', import.meta.url)),
    String(chunks),
    String(chunkEveryMs),
    'stream',
    ...(counts ? ['counts'] : []),
  ])
  pin([whole.pid, stream.pid], OTHER_CORE)
  return {
    whole,
    stream,
    async stop() {
      await whole.stop()
      await stream.stop()
    },
  }
}

const target = (port: number, model: string, headers: Record<string, string> = {}): Target => ({ port, path: PATH, model, headers })

export const wholeTarget = (port: number): Target => target(port, 'mock')

const ENGINES_LAST_EVENTS = 3
const OUR_LAST_EVENTS = 2

/** The engines with nothing before them. */
export const direct = ({ whole, stream }: Engines): System => ({
  name: 'direct',
  whole: target(whole.port, 'mock'),
  stream: target(stream.port, 'stream'),
  pids: [],
  beside: () => [],
  streamPids: [],
  lastEvents: ENGINES_LAST_EVENTS,
  booked: async () => undefined,
  stop: async () => undefined,
})

const proxies = async (name: string, engines: Engines, start: (enginePort: number) => Promise<Child>): Promise<System> => {
  const whole = await start(engines.whole.port)
  const stream = await start(engines.stream.port)
  const pids = [whole.pid, stream.pid]
  pin(pids, GATEWAY_CORE)
  return {
    name,
    whole: target(whole.port, 'mock'),
    stream: target(stream.port, 'stream'),
    pids,
    beside: () => [],
    streamPids: [stream.pid],
    lastEvents: ENGINES_LAST_EVENTS,
    booked: async () => undefined,
    async stop() {
      await whole.stop()
      await stream.stop()
    },
  }
}

export const startNginx = (engines: Engines): Promise<System> => proxies('nginx', engines, startNginxProxy)

/** The least that a proxy in Node can do: bytes in, bytes out. */
export const startBare = (engines: Engines): Promise<System> => proxies('bare', engines, (port) => startBareOn(port))

export const startBareOn = (enginePort: number, nodeArgs: readonly string[] = []): Promise<Child> =>
  startChild([...nodeArgs, fileURLToPath(new URL('bare-proxy.mjs', import.meta.url)), String(enginePort)])

const PORTKEY = '@portkey-ai/gateway@1.15.2'

/** A gateway that many run, with nothing of it switched on. It is installed beside the project, and only for this. */
export const startPortkey = async (engines: Engines): Promise<System> => {
  const directory = mkdtempSync(join(tmpdir(), 'parvis-bench-portkey-'))
  const installed = spawnSync(
    'npm',
    ['install', '--prefix', directory, '--no-save', '--ignore-scripts', '--no-audit', '--no-fund', PORTKEY],
    {
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  )
  const main = join(directory, 'node_modules/@portkey-ai/gateway/build/start-server.js')
  if (!existsSync(main)) throw new Error(`${PORTKEY} cannot be installed, which --quick leaves out:\n${installed.stderr.toString()}`)
  const port = await freePort()
  const child = endsWithUs(
    spawn(process.execPath, [main, `--port=${port}`, '--headless'], {
      cwd: directory,
      env: { ...process.env, NODE_ENV: 'production', TRUSTED_CUSTOM_HOSTS: 'localhost,127.0.0.1' },
      stdio: ['ignore', 'ignore', 'ignore'],
    }),
  )
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const pid = child.pid ?? 0
  await until('Portkey answers', async () => (await fetch(`http://127.0.0.1:${port}/`)).ok)
  pin([pid], GATEWAY_CORE)
  const headers = (engine: Child) => ({
    authorization: 'Bearer none',
    'x-portkey-provider': 'openai',
    'x-portkey-custom-host': `http://127.0.0.1:${engine.port}/v1`,
  })
  return {
    name: 'Portkey',
    whole: target(port, 'mock', headers(engines.whole)),
    stream: target(port, 'stream', headers(engines.stream)),
    pids: [pid],
    beside: () => [],
    streamPids: [pid],
    lastEvents: ENGINES_LAST_EVENTS,
    booked: async () => undefined,
    async stop() {
      child.kill('SIGTERM')
      await ended
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

const command = (args: readonly string[], env: Record<string, string>): Promise<void> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [PARVIS, ...args], { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit'] })
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`parvis ${args.join(' ')} ended with ${code}`))))
  })

/** A look into the books of a server that runs, by a connection that is not one of its own. */
const openBooks = async (dataDir: string) => {
  const url = await connectEmbedded(dataDir)
  if (url === undefined) throw new Error(`there is no database in ${dataDir}`)
  const db = openDb(url, { log: openLog('silent'), max: 1 })
  const connection = await db.connect()
  const ask = async (text: string, values: unknown[] = []): Promise<number> =>
    (await connection.query<{ answer: number }>(`select (${text})::int as answer`, values)).rows[0]?.answer ?? 0
  return {
    pid: await ask('pg_backend_pid()'),
    booked: (since: Instant, requests: number): Promise<void> =>
      until('all usage is in the books', async () => {
        return (await ask('select count(*) from usage_event where accepted_at >= $1', [instantToDate(since)])) >= requests
      }),
    close: async (): Promise<void> => {
      connection.release()
      await db.end()
    },
  }
}

export type Parvis = System & { readonly pid: number; readonly port: number; readonly key: string }

/** The built server as an operator starts it, with everything on, and the engines registered. From then on we ourselves are on the other core, too. */
export const startParvis = async (
  engines: { readonly whole: Pick<Child, 'port'>; readonly stream: Pick<Child, 'port'> },
  options: {
    readonly directory?: string
    readonly streams?: number
    readonly limits?: boolean
    /** So many, on whichever cores there are; without it one, which has a core for itself. */
    readonly gateways?: number
    readonly nodeArgs?: readonly string[]
  } = {},
): Promise<Parvis> => {
  // It starts in half the time on both; nothing is measured meanwhile.
  unpin()
  const dataDir = mkdtempSync(join(options.directory ?? tmpdir(), 'parvis-bench-'))
  const port = await freePort()
  const key = randomUUID()
  const env = {
    PARVIS_DATA_DIR: dataDir,
    PARVIS_PORT: String(port),
    PARVIS_BOOTSTRAP_SECRET_KEY: key,
    PARVIS_DEMO_MODELS: 'false',
    PARVIS_LOG_LEVEL: 'error',
    PARVIS_GATEWAYS: String(options.gateways ?? 1),
  }
  const child = endsWithUs(
    spawn(process.execPath, [...(options.nodeArgs ?? []), PARVIS, 'serve'], {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'inherit'],
    }),
  )
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const pid = child.pid ?? 0
  const origin = `http://127.0.0.1:${port}`
  await until('the server lives', async () => (await fetch(`${origin}/health`)).ok)
  const { streams = 256, limits = true } = options
  const [some, many] = limits ? [String(NO_LIMIT), '100000000000000'] : ['unlimited', 'unlimited']
  await command(['engines', 'add', '--name', 'mock', '--url', `http://127.0.0.1:${engines.whole.port}`, '--vision', 'mock'], env)
  // The limits of a tier are for its users and would end the run; these are looked at all the same.
  const setLimits = (): Promise<void> => command(['limits', 'set', '--requests', some, '--tokens', many, '--concurrent', some], env)
  const setStreams = async (): Promise<void> => {
    // An engine has 256 seats; five thousand streams need twenty.
    for (let seats = 0; seats < streams; seats += 256) {
      await command(['engines', 'add', '--name', `stream-${seats}`, '--url', `http://127.0.0.1:${engines.stream.port}`], env)
    }
  }
  await Promise.all([setLimits(), setStreams()])
  for (const model of ['mock', 'stream']) {
    await until(`the engine of ${model} is ready`, async () => {
      const answer = await fetch(`${origin}${PATH}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
        body: bodyOf(model, 100, model === 'stream'),
      })
      await answer.text()
      return answer.ok && answer.headers.get('x-ratelimit-limit-requests') === (limits ? some : null)
    })
  }
  const family = familyOf(pid)
  const several = family.filter((member) => readFileSync(`/proc/${member}/cmdline`, 'utf8').startsWith('parvis gateway'))
  const pids = several.length > 0 ? several : [pid]
  const books = await openBooks(dataDir)
  const beside = (): number[] => familyOf(pid).filter((member) => !pids.includes(member) && member !== books.pid)
  if (options.gateways === undefined) {
    pin(pids, GATEWAY_CORE)
    pin([process.pid, books.pid, ...beside()], OTHER_CORE)
  }
  const headers = { authorization: `Bearer ${key}` }
  return {
    name: 'parvis',
    pid,
    port,
    key,
    whole: target(port, 'mock', headers),
    stream: target(port, 'stream', headers),
    pids,
    beside,
    streamPids: pids,
    lastEvents: OUR_LAST_EVENTS,
    booked: books.booked,
    async stop() {
      await books.close()
      child.kill('SIGTERM')
      await ended
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
}
