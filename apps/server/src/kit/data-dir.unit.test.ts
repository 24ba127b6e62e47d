import { type ChildProcessByStdio, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { Server } from 'node:net'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { dataDirHolder, holdDataDir, isHolder, tryHold } from './data-dir.ts'
import { processMark } from './process.ts'
import { answersAt, giveSignOfLife } from './sign-of-life.ts'

let dataDir: string
beforeAll(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-hold-'))
})
afterAll(() => rm(dataDir, { recursive: true, force: true }))

const leaveLock = (content: object | string) =>
  writeFile(join(dataDir, 'lock'), typeof content === 'string' ? content : JSON.stringify(content))

const canBeTaken = async (): Promise<boolean> => {
  await (await holdDataDir(dataDir, 'parvis serve')).release()
  return true
}

test('the second holder is told who has the directory and since when', async () => {
  const hold = await holdDataDir(dataDir, 'parvis serve')
  const { since } = JSON.parse(await readFile(join(dataDir, 'lock'), 'utf8')) as { since: string }
  await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(`parvis serve, process ${process.pid}, has held it since ${since}`)
  expect(await dataDirHolder(dataDir)).toMatchObject({ pid: process.pid, what: 'parvis serve' })
  await hold.release()
  expect(await dataDirHolder(dataDir)).toBeUndefined()
  expect(await canBeTaken()).toBe(true)
})

test('a lock left by a process that was killed is taken over', async () => {
  const other = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
  await once(other, 'spawn')
  const pid = other.pid ?? 0
  const left = { pid, mark: await processMark(pid), what: 'parvis serve', since: 'then', token: 'x' }
  await leaveLock(left)
  await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(`process ${pid}, has held it since then`)
  other.kill('SIGKILL')
  await once(other, 'exit')
  expect(await canBeTaken()).toBe(true)
})

test('a process that has the number of a dead holder holds nothing', async () => {
  await leaveLock({ pid: process.pid, mark: 'started long ago', what: 'parvis serve', since: 'then', token: 'x' })
  expect(await canBeTaken()).toBe(true)
})

test.runIf(process.platform === 'linux')('a zombie holds nothing', async () => {
  // The shell becomes a program that never collects its child.
  const parent = spawn('/bin/sh', ['-c', 'sleep 0 & echo $!; exec sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    const [line] = (await once(parent.stdout, 'data')) as [Buffer]
    const pid = Number(line.toString())
    const deadline = performance.now() + 30_000
    while ((await processMark(pid)) !== undefined && performance.now() < deadline);
    expect(await readFile(`/proc/${pid}/stat`, 'utf8')).toContain(' Z ')
    expect(process.kill(pid, 0)).toBe(true)
    await leaveLock({ pid, mark: 'started 1', what: 'parvis serve', since: 'then', token: 'x' })
    expect(await canBeTaken()).toBe(true)
  } finally {
    parent.kill('SIGKILL')
  }
})

test('a lock file that is no lock file does not keep anybody out', async () => {
  for (const content of ['', '{', '{"pid":-1}', 'null']) {
    await leaveLock(content)
    expect(await canBeTaken()).toBe(true)
  }
})

test('of many who find a dead holder at once, one gets the lock, and nothing is left over', async () => {
  for (let round = 0; round < 10; round += 1) {
    await leaveLock({ pid: 2 ** 31 - 1, mark: 'started 1', what: 'parvis serve', since: 'then', token: 'x' })
    const results = await Promise.all(Array.from({ length: 8 }, () => tryHold(join(dataDir, 'lock'), 'racer')))
    const winners = results.filter((result) => !isHolder(result))
    expect(winners).toHaveLength(1)
    for (const winner of winners) if (!isHolder(winner)) await winner.release()
    expect(await readdir(dataDir)).toEqual([])
  }
})

test('a taker that died while it removed a dead one’s lock is no better than that one', async () => {
  const dead = { pid: 2 ** 31 - 1, mark: 'started 1', what: 'parvis serve', since: 'then', token: 'x' }
  await leaveLock(dead)
  await writeFile(join(dataDir, 'lock.x'), JSON.stringify({ ...dead, token: 'y' }))
  expect(await canBeTaken()).toBe(true)
  expect(await readdir(dataDir)).toEqual([])
})

test('while one removes a dead one’s lock, another is told of it', async () => {
  await leaveLock({ pid: 2 ** 31 - 1, mark: 'started 1', what: 'parvis serve', since: 'then', token: 'x' })
  const turn = { pid: process.pid, mark: await processMark(process.pid), what: 'parvis serve', since: 'now', token: 'y' }
  await writeFile(join(dataDir, 'lock.x'), JSON.stringify(turn))
  await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(`process ${process.pid}, has held it since now`)
  await rm(join(dataDir, 'lock.x'))
  expect(await canBeTaken()).toBe(true)
})

test('a data directory that cannot be made is named', async () => {
  await writeFile(join(dataDir, 'file'), '')
  await expect(holdDataDir(join(dataDir, 'file', 'below'), 'parvis serve')).rejects.toThrow(
    /The data directory .*file\/below cannot be made/,
  )
})

describe.runIf(process.platform === 'linux')('in another container', () => {
  const TOKEN = '0123456789abcdef'
  const socket = () => join(dataDir, `lock-${TOKEN}.socket`)
  const elsewhere = {
    pid: 1,
    mark: 'started 1',
    space: 'another-start pid:[1]',
    host: 'web-1',
    what: 'parvis serve',
    since: 'then',
    token: TOKEN,
  }
  const inThere = 'parvis serve, process 1 of another container (host name web-1), has held it since then'

  beforeAll(() => rm(join(dataDir, 'file'), { force: true }))

  test('a holder is seen for as long as its socket listens, and the number it has there says nothing here', async () => {
    for (const numbers of [{}, { pid: 2 ** 31 - 1 }, { pid: process.pid, mark: await processMark(process.pid) }]) {
      await leaveLock({ ...elsewhere, ...numbers })
      expect(await dataDirHolder(dataDir)).toBeUndefined()
      const sign = await giveSignOfLife(socket())
      expect(await dataDirHolder(dataDir)).toMatchObject({ host: 'web-1', elsewhere: true })
      const pid = numbers.pid ?? 1
      await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(inThere.replace('process 1', `process ${pid}`))
      await sign.end()
      expect(await canBeTaken()).toBe(true)
      expect(await readdir(dataDir)).toEqual([])
    }
  })

  /** Somebody who listens at a path and then never looks at it again. */
  const startStuck = async (path: string): Promise<ChildProcessByStdio<null, Readable, null>> => {
    const program = `require('node:net').createServer().listen({ path: process.argv[1], backlog: 1 }, () => { process.stdout.write('.'); for (;;); })`
    const stuck = spawn(process.execPath, ['-e', program, path], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(stuck.stdout, 'data')
    return stuck
  }

  test('a holder that is too busy to answer lives, and one that was killed does not, though its socket is still there', async () => {
    await leaveLock(elsewhere)
    const stuck = await startStuck(socket())
    try {
      // More than wait in its queue.
      for (let visits = 0; visits < 5; visits += 1) await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(inThere)
    } finally {
      stuck.kill('SIGKILL')
      await once(stuck, 'exit')
    }
    expect(await readdir(dataDir)).toEqual(['lock', `lock-${TOKEN}.socket`])
    expect(await canBeTaken()).toBe(true)
    expect(await readdir(dataDir)).toEqual([])
  })

  test('of many who find such a dead holder at once, one gets the lock, and nothing is left over', async () => {
    for (let round = 0; round < 10; round += 1) {
      await leaveLock(elsewhere)
      const results = await Promise.all(Array.from({ length: 8 }, () => tryHold(join(dataDir, 'lock'), 'racer')))
      const winners = results.filter((result) => !isHolder(result))
      expect(winners).toHaveLength(1)
      for (const winner of winners) if (!isHolder(winner)) await winner.release()
      expect(await readdir(dataDir)).toEqual([])
    }
  })

  test('a holder gives its sign of life in a directory with a name of any length, until it lets go', async () => {
    const long = join(dataDir, 'd'.repeat(120), 'e'.repeat(120))
    const hold = await holdDataDir(long, 'parvis serve')
    expect(hold.unseenBecause).toBeUndefined()
    const name = (await readdir(long)).find((each) => each.endsWith('.socket')) ?? ''
    expect(await answersAt(join(long, name))).toBe(true)
    await hold.release()
    expect(await answersAt(join(long, name))).toBe(false)
    expect(await readdir(long)).toEqual([])
    await rm(join(dataDir, 'd'.repeat(120)), { recursive: true })
  })

  test('where a file system has no sockets, the holder hears of it, and processes beside it are told of it as ever', async () => {
    const refused = Object.assign(new Error('listen EPERM'), { code: 'EPERM' })
    const listen = vi.spyOn(Server.prototype, 'listen').mockImplementation(function (this: Server) {
      queueMicrotask(() => this.emit('error', refused))
      return this
    })
    try {
      const hold = await holdDataDir(dataDir, 'parvis serve')
      expect(hold.unseenBecause).toBe(refused)
      expect(await readdir(dataDir)).toEqual(['lock'])
      await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(`process ${process.pid}, has held it`)
      await hold.release()
      expect(await readdir(dataDir)).toEqual([])
    } finally {
      listen.mockRestore()
    }
  })

  test('whoever cannot be asked is not taken for dead', async () => {
    await leaveLock(elsewhere)
    await symlink(`lock-${TOKEN}.socket`, socket())
    await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(
      /Nobody can say whether process 1 of another container.* still holds .*: connect ELOOP/,
    )
    await rm(socket())
    expect(await canBeTaken()).toBe(true)
  })

  const NAMESPACES = ['--pid', '--fork', '--mount-proc', '--kill-child']
  const mayUnshare = spawnSync('unshare', [...NAMESPACES, 'true']).status === 0
  const HOLDER = fileURLToPath(new URL('../../test/children/data-dir-holder.ts', import.meta.url))

  test.runIf(mayUnshare)(
    'processes with process tables of their own tell each other, and a killed one leaves nothing in the way',
    async () => {
      const start = async () => {
        const words = [...NAMESPACES, process.execPath, ...FROM_SOURCE, HOLDER, dataDir]
        const child = spawn('unshare', words, { stdio: ['ignore', 'pipe', 'inherit'] })
        const [said] = (await once(child.stdout, 'data')) as [Buffer]
        const kill = async () => {
          child.kill('SIGKILL')
          await once(child, 'close')
        }
        return { said: said.toString(), kill }
      }
      const first = await start()
      expect(first.said).toBe('held\n')
      const told = `parvis serve, process 1 of another container (host name ${hostname()}), has held it since`
      expect((await start()).said).toContain(told)
      await expect(holdDataDir(dataDir, 'parvis serve')).rejects.toThrow(told)
      await first.kill()
      await until('the kernel has let go of what it had', async () => (await dataDirHolder(dataDir)) === undefined)
      const next = await start()
      expect(next.said).toBe('held\n')
      await next.kill()
    },
  )
})
