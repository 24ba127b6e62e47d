import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Child, median, percentile, type Row, residentMb, startChild } from '../measure.ts'
import { bodyOf, closedLoop, type Load, openStreams, pictureOf, type Streams, type Target } from './load.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const PARVIS = join(ROOT, 'apps/server/bin/parvis.mjs')
const here = (file: string): string => fileURLToPath(new URL(file, import.meta.url))
const READY_LIMIT_MS = 60_000
const NO_LIMIT = 1_000_000_000

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as AddressInfo
      probe.close(() => resolve(port))
    })
  })

const command = (args: readonly string[], env: Record<string, string>): Promise<void> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [PARVIS, ...args], { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit'] })
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`parvis ${args.join(' ')} ended with ${code}`))))
  })

const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
  for (const startedAt = performance.now(); performance.now() - startedAt < READY_LIMIT_MS; ) {
    if (await holds().catch(() => false)) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`${what} within ${READY_LIMIT_MS / 1000} s`)
}

/** The built server as an operator starts it, with everything on unless told otherwise, and the mock engine registered. */
export const startParvis = async (
  enginePort: number,
  slowPort: number,
  { limits = true }: { limits?: boolean } = {},
): Promise<Child & { key: string }> => {
  const dataDir = mkdtempSync(join(tmpdir(), 'parvis-bench-'))
  const port = await freePort()
  const key = randomUUID()
  const env = {
    PARVIS_DATA_DIR: dataDir,
    PARVIS_PORT: String(port),
    PARVIS_BOOTSTRAP_SECRET_KEY: key,
    PARVIS_DEMO_MODELS: 'false',
    PARVIS_LOG_LEVEL: 'error',
  }
  const child = spawn(process.execPath, [PARVIS, 'serve'], { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit'] })
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const origin = `http://127.0.0.1:${port}`
  await until('the server lives', async () => (await fetch(`${origin}/health`)).ok)
  await command(['engines', 'add', '--name', 'mock', '--url', `http://127.0.0.1:${enginePort}`, '--vision', 'mock'], env)
  // An engine has 256 seats; a thousand streams need four.
  for (const name of ['slow-1', 'slow-2', 'slow-3', 'slow-4']) {
    await command(['engines', 'add', '--name', name, '--url', `http://127.0.0.1:${slowPort}`], env)
  }
  // The limits of a tier are for its users and would end the run; these are looked at all the same.
  const [some, many] = limits ? [String(NO_LIMIT), '100000000000000'] : ['unlimited', 'unlimited']
  await command(['limits', 'set', '--requests', some, '--tokens', many, '--concurrent', some], env)
  await until('the mock engine is ready', async () => {
    const answer = await fetch(`${origin}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: bodyOf('mock', 100, false),
    })
    return answer.ok && answer.headers.get('x-ratelimit-limit-requests') === (limits ? some : null)
  })
  return {
    pid: child.pid ?? 0,
    port,
    key,
    async stop() {
      child.kill('SIGTERM')
      await ended
      rmSync(dataDir, { recursive: true, force: true })
    },
  }
}

type System = 'direct' | 'bare' | 'parvis'
type Taken = Record<System, Load[]>

/** The systems in turns, in one run: a figure from another minute is not a baseline. */
const inTurns = async (
  targets: Record<System, Target>,
  body: (target: Target) => string,
  clients: number,
  requests: number,
  rounds: number,
): Promise<Taken> => {
  const taken: Taken = { direct: [], bare: [], parvis: [] }
  for (let round = 0; round <= rounds; round += 1) {
    for (const system of ['direct', 'bare', 'parvis'] as const) {
      const load = await closedLoop(targets[system], body(targets[system]), clients, requests)
      // The first round warms up: the heavy paths need thousands of calls before V8 settles.
      if (round > 0) taken[system].push(load)
    }
  }
  return taken
}

const best = (loads: readonly Load[], figure: (load: Load) => number): number => Math.min(...loads.map(figure))
const added = (taken: Taken, percent: number, of: (load: Load) => number[]): number =>
  median(taken.parvis.map((load, round) => percentile(of(load), percent) - percentile(of(taken.direct[round] ?? load), percent)))

const CHUNKS = 200
const SLOW_CHUNKS = 40
const SLOW_CHUNK_EVERY_MS = 250

/** What the gateway adds and costs: against the engine called directly, and against a bare proxy in Node. */
export const benchPath = async (quick: boolean): Promise<Row[]> => {
  const source = ['--import', 'tsx', '--conditions=@parvis/source']
  const engine = await startChild([...source, here('mock-engine.ts'), String(CHUNKS), '5'])
  const bare = await startChild([...source, here('bare-proxy.ts'), String(engine.port)])
  const slow = await startChild([...source, here('mock-engine.ts'), String(SLOW_CHUNKS), String(SLOW_CHUNK_EVERY_MS), 'slow'])
  const bareSlow = await startChild([...source, here('bare-proxy.ts'), String(slow.port)])
  const parvis = await startParvis(engine.port, slow.port)
  try {
    const target = (child: Child, key?: string): Target => ({
      origin: `http://127.0.0.1:${child.port}`,
      path: '/v1/chat/completions',
      model: 'mock',
      key,
      pid: child.pid,
    })
    const targets = { direct: target(engine), bare: target(bare), parvis: target(parvis, parvis.key) }
    const rounds = quick ? 3 : 7
    const requests = quick ? 2_000 : 6_000
    const idleMb = residentMb(parvis.pid)

    // First, in a process that has done nothing yet.
    const open = quick ? 200 : 1_000
    const many = { bare: [] as Streams[], parvis: [] as Streams[] }
    for (let round = 0; round < (quick ? 1 : 3); round += 1) {
      const body = bodyOf('slow', 1_000, true)
      many.bare.push(await openStreams({ ...target(bareSlow), model: 'slow' }, body, open, SLOW_CHUNKS))
      many.parvis.push(await openStreams({ ...targets.parvis, model: 'slow' }, body, open, SLOW_CHUNKS))
    }
    const lightest = (rounds: readonly Streams[], figure: (streams: Streams) => number): number => Math.min(...rounds.map(figure))
    // Only the first round finds an empty process; later ones have its memory already.
    const weight = (rounds: readonly Streams[]): number => Math.max(...rounds.map(({ kilobytesPerStream }) => kilobytesPerStream))

    const calm = await inTurns(targets, () => bodyOf('mock', 1_000, false), 1, quick ? 500 : 2_000, rounds)
    const busy = await inTurns(targets, () => bodyOf('mock', 1_000, false), 32, requests, rounds)
    const large = await inTurns(targets, () => bodyOf('mock', 20_000, false), 16, requests / 4, rounds)
    const streams = await inTurns(targets, () => bodyOf('mock', 1_000, true), 32, quick ? 64 : 256, quick ? 2 : 5)

    const pictures = await inTurns(targets, () => pictureOf('mock', 1_000_000), 8, quick ? 100 : 400, quick ? 2 : 5)

    const pictureRatio = best(pictures.parvis, (load) => load.cpuPerRequestMicros) / best(pictures.bare, (load) => load.cpuPerRequestMicros)
    const jsonRatio = best(busy.parvis, (load) => load.cpuPerRequestMicros) / best(busy.bare, (load) => load.cpuPerRequestMicros)
    const streamRatio = best(streams.parvis, (load) => load.cpuPerRequestMicros) / best(streams.bare, (load) => load.cpuPerRequestMicros)
    return [
      {
        what: 'added latency, 1 client, p50',
        value: added(calm, 50, (load) => load.latencyMs),
        unit: 'ms',
        beside: 'the engine called directly; includes one disk sync',
      },
      {
        what: 'added latency, 1 client, p99',
        value: added(calm, 99, (load) => load.latencyMs),
        unit: 'ms',
        beside: 'the engine called directly; includes one disk sync',
      },
      {
        what: 'added latency, 32 clients, p50',
        value: added(busy, 50, (load) => load.latencyMs),
        unit: 'ms',
        beside: 'the engine called directly, closed loop',
      },
      {
        what: 'added latency, 32 clients, p99',
        value: added(busy, 99, (load) => load.latencyMs),
        unit: 'ms',
        beside: 'the engine called directly, closed loop',
      },
      {
        what: 'CPU per request, 1 KB in, 2 KB out',
        value: best(busy.parvis, (load) => load.cpuPerRequestMicros),
        unit: 'µs',
        beside: 'all threads of the server, best round',
      },
      {
        what: 'the same, against a bare proxy',
        value: jsonRatio,
        unit: '×',
        beside: 'undici dispatch under node:http',
        cliff: { above: 12, why: 'key, limits, scan, usage and journal together must stay cheap' },
      },
      {
        what: 'CPU per request, 20 KB in',
        value: best(large.parvis, (load) => load.cpuPerRequestMicros),
        unit: 'µs',
        beside: `bare proxy ${best(large.bare, (load) => load.cpuPerRequestMicros).toFixed(0)} µs`,
      },
      {
        what: 'CPU per request, 1 MB in (an image)',
        value: best(pictures.parvis, (load) => load.cpuPerRequestMicros),
        unit: 'µs',
        beside: `bare proxy ${best(pictures.bare, (load) => load.cpuPerRequestMicros).toFixed(0)} µs`,
      },
      {
        what: 'the same, against a bare proxy',
        value: pictureRatio,
        unit: '×',
        beside: 'which joins the pieces; performance.md holds ≤ 3 × nginx',
        cliff: { above: 5, why: 'a large body is scanned and passed on in its pieces, never parsed or joined' },
      },
      {
        what: 'added to the first byte of a stream, p50',
        value: added(streams, 50, (load) => load.firstByteMs),
        unit: 'ms',
        beside: 'the engine called directly, 32 streams',
        cliff: { above: 100, why: 'an idle gateway may not hold a first token back' },
      },
      {
        what: 'CPU per streamed chunk',
        value: best(streams.parvis, (load) => load.cpuPerRequestMicros) / CHUNKS,
        unit: 'µs',
        beside: `${CHUNKS} chunks a stream`,
      },
      {
        what: 'the same, against a bare proxy',
        value: streamRatio,
        unit: '×',
        beside: 'undici dispatch under node:http',
        cliff: { above: 2.5, why: 'bytes pass through; nothing is parsed per chunk' },
      },
      {
        what: `CPU per chunk, ${open} streams open`,
        value: lightest(many.parvis, ({ cpuPerChunkMicros }) => cpuPerChunkMicros),
        unit: 'µs',
        beside: `bare proxy ${lightest(many.bare, ({ cpuPerChunkMicros }) => cpuPerChunkMicros).toFixed(1)} µs`,
      },
      {
        what: `memory per stream, ${open} open`,
        value: weight(many.parvis),
        unit: 'KiB',
        beside: `bare proxy ${weight(many.bare).toFixed(0)} KiB; with both sockets`,
        cliff: { above: 400, why: 'what we add to a stream must stay below what its sockets weigh' },
      },
      { what: 'memory of the server, idle', value: idleMb, unit: 'MiB', beside: 'resident, without engine children and database' },
      { what: 'memory of the server, after the load', value: residentMb(parvis.pid), unit: 'MiB', beside: 'resident' },
    ]
  } finally {
    await parvis.stop()
    await bare.stop()
    await bareSlow.stop()
    await slow.stop()
    await engine.stop()
  }
}
