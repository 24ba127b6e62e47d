import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { programOf } from './program.ts'

const PARVIS = programOf('server')
const START_LIMIT_MS = 60_000

const launch = (args: readonly string[], env: Readonly<Record<string, string>>, input = '') => {
  const inherited = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('PARVIS_') || name.startsWith('PARVIS_TEST_')),
  )
  const child = spawn(process.execPath, [...PARVIS.execArgv, PARVIS.path, ...args], {
    env: { ...inherited, ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  // It may end before it has read what it is given.
  child.stdin.on('error', () => {}).end(input)
  const said = { out: '', err: '' }
  child.stdout.on('data', (chunk: Buffer) => {
    said.out += chunk.toString()
  })
  child.stderr.on('data', (chunk: Buffer) => {
    said.err += chunk.toString()
  })
  const ended = once(child, 'close').then(([code]) => code as number | null)
  return { child, said, ended }
}

/** Runs `parvis` with these arguments, and this on its standard input, to its end. */
export const runParvis = async (
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  input?: string,
): Promise<{ code: number | null; out: string; err: string }> => {
  const { said, ended } = launch(args, env, input)
  return { code: await ended, ...said }
}

export type ServerProcess = {
  readonly url: string
  readonly pid: number
  /** What it has printed for people, and its log. */
  out(): string
  err(): string
  /** Sends the signal; resolves with the exit code, null when the signal killed it. */
  stop(signal: NodeJS.Signals): Promise<number | null>
}

/** `parvis serve` as a process of its own; resolves when it has greeted. */
export const startServerProcess = async (env: Readonly<Record<string, string>>): Promise<ServerProcess> => {
  const { child, said, ended } = launch(['serve'], env)
  const greeted = new Promise<string>((resolve) => {
    child.stdout.on('data', () => {
      const url = /serves at (\S+)[\s\S]*Ctrl-C/.exec(said.out)?.[1]
      if (url !== undefined) resolve(url)
    })
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), START_LIMIT_MS)
  const url = await Promise.race([greeted, ended.then(() => undefined)])
  clearTimeout(timer)
  if (url === undefined || child.pid === undefined) throw new Error(`parvis serve did not start:\n${said.out}\n${said.err}`)
  return {
    url,
    pid: child.pid,
    out: () => said.out,
    err: () => said.err,
    stop: (signal) => {
      child.kill(signal)
      return ended
    },
  }
}
