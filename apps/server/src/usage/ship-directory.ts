import { stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { holdDataDir } from '../kit/data-dir.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { openJournal } from './journal.ts'
import { listOpenings, openOpenings } from './openings.ts'
import { listSegments } from './segment.ts'
import { openShipper, type Shipped } from './ship.ts'

const isDirectory = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  )

/**
 * Ships what lies in a directory whose gateway does not run: the data directory of a machine that never returns, or a copy of its journal. A
 * gateway that does run is not disturbed. Whatever is shipped is deleted there, as the gateway itself would have done.
 */
export const shipDirectory = async (options: { directory: string; db: Db; log: Logger }): Promise<Shipped> => {
  const given = resolve(options.directory)
  if (!(await isDirectory(given))) throw new Error(`${given} is not a directory.`)
  const inside = join(given, 'usage')
  const directory = (await isDirectory(inside)) ? inside : given
  if ((await listSegments(directory)).length === 0 && (await listOpenings(directory)).length === 0) {
    throw new Error(`There is no usage journal in ${directory}. Give a data directory, or the directory of its files *.v1.journal.`)
  }
  const hold = await holdDataDir(basename(directory) === 'usage' ? dirname(directory) : directory, 'parvis usage ship')
  try {
    const journal = await openJournal({ directory, log: options.log })
    const openings = await openOpenings({ directory, log: options.log })
    // Closed first, so that its last segment, an empty one, goes too.
    await journal.close()
    const shipped = await openShipper({ journal, openings, db: options.db, log: options.log }).ship()
    await openings.close()
    return shipped
  } finally {
    await hold.release()
  }
}
