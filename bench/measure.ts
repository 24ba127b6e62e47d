import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
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

/** Resident memory in MiB. */
export const residentMb = (pid: number): number =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? Number.NaN) / 1024

export const machine = (): string =>
  `${availableParallelism()} cores (${cpus()[0]?.model.trim() ?? 'unknown'}), Node ${process.versions.node}`

export type Child = { pid: number; port: number; stop(): Promise<void> }

/** Starts a part of a benchmark in a process of its own and waits until it prints `port <n>`. */
export const startChild = async (args: readonly string[], env: Record<string, string> = {}): Promise<Child> => {
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } })
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
