import { mkdir, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import { codeOf, holderOf, makeFileOnce, nameOf } from '../kit/data-dir.ts'
import { newId } from '../kit/ids.ts'

const FURTHER = 'gateways'
const JOURNAL = 'usage'
const NUMBER = /^[1-9]\d?$/
/** A gateway whose house was killed hears of it at once, unless the machine is very busy. */
const ORPHAN_LIMIT_MS = 30_000
const LOOK_MS = 20

/** Which gateway an event came through: an id that lies beside the journal and stays with it. */
export const readGateway = async (directory: string, clock: Clock): Promise<string> => {
  const path = join(directory, 'gateway')
  await makeFileOnce(path, newId(clock.now()))
  return readFile(path, 'utf8')
}

/** What belongs to one gateway of several in a data directory: its lock, its socket, and from the second on its journal. */
export const gatewayDir = (dataDir: string, number: number): string => join(dataDir, FURTHER, String(number))

export const makeGatewayDir = async (dataDir: string, number: number): Promise<string> => {
  const path = gatewayDir(dataDir, number)
  await mkdir(path, { recursive: true, mode: 0o700 })
  return path
}

/** Where a gateway's journal lies. The first one's is that of an only one: whoever goes from one to many and back loses nothing. */
export const journalHome = (dataDir: string, number: number): string => (number === 1 ? dataDir : gatewayDir(dataDir, number))

const numbersIn = async (dataDir: string): Promise<number[]> => {
  const names = await readdir(join(dataDir, FURTHER)).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return []
    throw error
  })
  return names
    .filter((name) => NUMBER.test(name))
    .map(Number)
    .toSorted((one, other) => one - other)
}

/** The directories of all journals in a data directory, of gateways that run and of those that ran once. */
export const journalsOf = async (dataDir: string): Promise<string[]> => {
  const journals: string[] = []
  for (const home of [dataDir, ...(await numbersIn(dataDir)).map((number) => gatewayDir(dataDir, number))]) {
    if ((await readdir(home)).includes(JOURNAL)) journals.push(join(home, JOURNAL))
  }
  return journals
}

/** Gateways of an earlier start that was killed may live for a moment more; their journals are not ours before they have gone. */
export const awaitOrphans = async (dataDir: string, clock: Clock): Promise<void> => {
  for (const number of await numbersIn(dataDir)) {
    const lock = join(gatewayDir(dataDir, number), 'lock')
    const until = performance.now() + ORPHAN_LIMIT_MS
    for (let holder = await holderOf(lock); holder !== undefined; holder = await holderOf(lock)) {
      if (performance.now() > until) {
        throw new Error(`Gateway ${number} of an earlier start, ${nameOf(holder)}, still runs on ${dataDir}. Stop it first.`)
      }
      await clock.sleep(LOOK_MS)
    }
  }
}
