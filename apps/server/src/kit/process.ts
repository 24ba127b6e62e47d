import { execFile } from 'node:child_process'
import { readFile, readlink } from 'node:fs/promises'

const PS_LIMIT_MS = 2_000

/**
 * A mark of this very process, or undefined when no process with this number runs. A number alone is not enough: it is
 * used again, after a restart of the machine or of a container even at once. A zombie does not run: in a container without
 * an init nobody ever collects it, and a signal to it still succeeds.
 */
export const processMark = async (pid: number): Promise<string | undefined> => {
  if (process.platform === 'linux') {
    try {
      const stat = await readFile(`/proc/${pid}/stat`, 'latin1')
      // The second field is the command in parentheses, and may hold spaces and parentheses itself (proc(5)).
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      const [state] = fields
      return state === 'Z' || state === 'X' ? undefined : `started ${fields[19]}`
    } catch {
      return undefined
    }
  }
  return new Promise((resolve) => {
    execFile('ps', ['-p', String(pid), '-o', 'stat=,lstart='], { timeout: PS_LIMIT_MS, env: { LC_ALL: 'C' } }, (error, stdout) => {
      const line = stdout.trim()
      resolve(error !== null || line === '' || line.startsWith('Z') ? undefined : `started ${line.slice(line.indexOf(' ')).trim()}`)
    })
  })
}

/**
 * Where process numbers mean what they mean to us: this start of this machine, and our PID namespace (pid_namespaces(7)). Undefined where there
 * are no such namespaces, so that every number means the same to all.
 */
export const processSpace = async (): Promise<string | undefined> => {
  if (process.platform !== 'linux') return undefined
  try {
    const [boot, space] = await Promise.all([readFile('/proc/sys/kernel/random/boot_id', 'utf8'), readlink('/proc/self/ns/pid')])
    return `${boot.trim()} ${space}`
  } catch {
    return undefined
  }
}

/** Where the process works, or undefined when it is gone or not ours to ask. Postgres works in its data directory. */
export const processDirectory = async (pid: number): Promise<string | undefined> => {
  if (process.platform === 'linux') return readlink(`/proc/${pid}/cwd`).catch(() => undefined)
  return new Promise((resolve) => {
    execFile('lsof', ['-a', '-p', String(pid), '-d', 'cwd', '-Fn'], { timeout: PS_LIMIT_MS }, (error, stdout) => {
      resolve(error === null ? /^n(.*)$/m.exec(stdout)?.[1] : undefined)
    })
  })
}

/** True when the process is there to take a signal; one that we may not signal is there too. */
export const signal = (pid: number, name: NodeJS.Signals): boolean => {
  try {
    return process.kill(pid, name)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ESRCH') return false
    throw error
  }
}
