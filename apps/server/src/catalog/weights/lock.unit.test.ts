import { mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../kit/clock.ts'
import { lockFile } from './lock.ts'

const STALE_MS = 60_000
const NO_SUCH_PROCESS = 2 ** 22 + 1 // above the largest process id of Linux

let dir: string
let path: string
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'parvis-lock-'))
  path = join(dir, 'file')
})
afterEach(() => rm(dir, { recursive: true, force: true }))

const take = () => lockFile(path, 'The file', systemClock)
const leave = (holder: { pid: number; host: string }) => writeFile(`${path}.lock`, JSON.stringify({ token: 'old', ...holder }))

test('one holds it, the others are told who; afterwards nothing is left', async () => {
  const lock = await take()
  await expect(take()).rejects.toThrow(`The file is being fetched by another command already (process ${process.pid} on ${hostname()}).`)
  await lock.release()
  await lock.release()
  await (await take()).release()
  expect(await readdir(dir)).toEqual([])
})

test('of many that find one left over, exactly one gets it', async () => {
  for (let round = 0; round < 20; round += 1) {
    await leave({ pid: NO_SUCH_PROCESS, host: hostname() })
    const taken = await Promise.allSettled(Array.from({ length: 8 }, take))
    const locks = taken.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []))
    expect(locks).toHaveLength(1)
    await locks[0]?.release()
  }
  expect(await readdir(dir)).toEqual([])
})

test('one of a living process, or of another machine, is respected while it is renewed', async () => {
  await leave({ pid: 1, host: hostname() })
  await expect(take()).rejects.toThrow('process 1')
  await leave({ pid: NO_SUCH_PROCESS, host: 'elsewhere' })
  await expect(take()).rejects.toThrow('elsewhere')
  const old = new Date(systemClock.now() - STALE_MS - 1_000)
  await utimes(`${path}.lock`, old, old)
  await (await take()).release()
})

test('one that cannot be read holds nobody up', async () => {
  await writeFile(`${path}.lock`, '{"tok')
  await (await take()).release()
  expect(await readdir(dir)).toEqual([])
})
