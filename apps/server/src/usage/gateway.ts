import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import { makeFileOnce } from '../kit/data-dir.ts'
import { newId } from '../kit/ids.ts'

/** Which gateway an event came through: an id that lies beside the journal and stays with it. */
export const readGateway = async (directory: string, clock: Clock): Promise<string> => {
  const path = join(directory, 'gateway')
  await makeFileOnce(path, newId(clock.now()))
  return readFile(path, 'utf8')
}
