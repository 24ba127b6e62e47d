import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { dataDirHolder, holdDataDir, isHolder, tryHold } from './data-dir.ts'
import { processMark } from './process.ts'

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

test('a data directory that cannot be made is named', async () => {
  await writeFile(join(dataDir, 'file'), '')
  await expect(holdDataDir(join(dataDir, 'file', 'below'), 'parvis serve')).rejects.toThrow(
    /The data directory .*file\/below cannot be made/,
  )
})
