import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { availableParallelism, cpus } from 'node:os'

/** One row of the result: a number is worth nothing without what it was compared with. */
export type Row = { what: string; value: number; unit: string; beside: string; cliff?: { above: number; why: string } }

export const median = (values: readonly number[]): number => percentile(values, 50)

export const percentile = (values: readonly number[], percent: number): number => {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor((sorted.length * percent) / 100))] ?? Number.NaN
}

/** Processor time of a process over all its threads, in microseconds: the one figure that does not change with the neighbours. */
export const cpuMicros = (pid: number): number =>
  readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => {
    const [nanos = '0'] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')
    return sum + Number(nanos) / 1000
  }, 0)

/** The process and all that it has started, their children too. */
export const familyOf = (pid: number): number[] => {
  const parents = new Map<number, number>()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]))
    } catch {
      // It has ended since we read its name.
    }
  }
  const family = [pid]
  for (const member of family) for (const [child, parent] of parents) if (parent === member) family.push(child)
  return family
}

/** Asked before anything is pinned: a process that is kept on one core is told that there is one. */
const CORES = availableParallelism()
let ownCores: string | undefined // as they were, once we have kept ourselves on one of them

const keepOn = (cores: string, pid: number): void => {
  const { status } = spawnSync('taskset', ['-a', '-c', '-p', cores, String(pid)], { stdio: 'ignore' })
  // A helper of the database may have ended since it was seen.
  if (status !== 0 && existsSync(`/proc/${pid}`))
    throw new Error('taskset (package util-linux) is needed to keep each system on a core of its own')
}

/** Keeps processes, with all their threads, on one core. Not possible on a machine with a single one. */
export const pin = (pids: readonly number[], core: number): void => {
  if (CORES < 2) return
  if (pids.includes(process.pid)) ownCores ??= /Cpus_allowed_list:\s+(\S+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]
  for (const pid of pids) keepOn(String(core), pid)
}

/** Gives us back the cores that we began with: what we start has ours, and the next benchmark has the same whatever ran before it. */
export const unpin = (): void => {
  if (ownCores !== undefined) keepOn(ownCores, process.pid)
}

export const GATEWAY_CORE = 0
/** Engines, databases and whoever sends the load. */
export const OTHER_CORE = 1

export const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as AddressInfo
      probe.close(() => resolve(port))
    })
  })

const READY_LIMIT_MS = 180_000

export const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
  for (const startedAt = performance.now(); performance.now() - startedAt < READY_LIMIT_MS; ) {
    if (await holds().catch(() => false)) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`${what} within ${READY_LIMIT_MS / 1000} s`)
}

/** Resident memory in MiB. */
export const residentMb = (pid: number): number =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN) / 1024

export const machine = (): string =>
  `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), Node ${process.versions.node}`

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGTERM')
})
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))

/** However the benchmark ends, what it has started ends with it. */
export const endsWithUs = <T extends ChildProcess>(child: T): T => {
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

export type Child = { pid: number; port: number; stop(): Promise<void> }

/** Starts a part of a benchmark in a process of its own and waits until it prints `port <n>`. */
export const startChild = async (args: readonly string[], env: Record<string, string> = {}): Promise<Child> => {
  const child = endsWithUs(spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } }))
  const ended = once(child, 'exit')
  const port = await new Promise<number>((resolve, reject) => {
    let said = ''
    child.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString()
      const port = /^port (\d+)$/m.exec(said)?.[1]
      if (port !== undefined) resolve(Number(port))
    })
    child.on('exit', (code) => reject(new Error(`${args.at(-1) ?? ''} ended with ${code} before it listened:\n${said}`)))
  })
  if (child.pid === undefined) throw new Error('no process')
  return {
    pid: child.pid,
    port,
    async stop() {
      child.kill('SIGTERM')
      await ended
    },
  }
}
