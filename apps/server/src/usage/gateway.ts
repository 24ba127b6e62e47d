import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import { isUuid, newId } from '../kit/ids.ts'
import { syncDirectory } from './segment.ts'

/** Which gateway an event came through: an id that lies beside the journal and stays with it. */
export const readGateway = async (directory: string, clock: Clock): Promise<string> => {
  const path = join(directory, 'gateway')
  const known = (await readFile(path, 'utf8').catch(() => '')).trim()
  if (isUuid(known)) return known
  const made = newId(clock.now())
  const handle = await open(path, 'w', 0o600)
  try {
    await handle.write(`${made}\n`)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await syncDirectory(directory)
  return made
}
