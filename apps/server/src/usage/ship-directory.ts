import { stat } from 'node:fs/promises'
import { basename, dirname, resolve } from 'node:path'
import { systemClock } from '../kit/clock.ts'
import { holdDataDir } from '../kit/data-dir.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { awaitOrphans, journalsOf } from './gateway.ts'
import { openJournal } from './journal.ts'
import { listOpenings, openOpenings } from './openings.ts'
import { listSegments } from './segment.ts'
import { openShipper, type Shipped } from './ship.ts'

const isDirectory = (path: string): Promise<boolean> =>
  stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  )

export const hasJournal = async (directory: string): Promise<boolean> =>
  (await listSegments(directory)).length > 0 || (await listOpenings(directory)).length > 0

/** Ships one journal whose gateway does not run. Whatever is shipped is deleted there, as the gateway itself would have done. */
export const shipJournal = async (options: { directory: string; db: Db; log: Logger }): Promise<Shipped> => {
  const { directory, db, log } = options
  const hold = await holdDataDir(basename(directory) === 'usage' ? dirname(directory) : directory, 'parvis usage ship')
  try {
    const journal = await openJournal({ directory, log })
    const openings = await openOpenings({ directory, log })
    // Closed first, so that its last segment, an empty one, goes too.
    await journal.close()
    const shipped = await openShipper({ journal, openings, db, log }).ship()
    await openings.close()
    return shipped
  } finally {
    await hold.release()
  }
}

/**
 * Ships what lies in a directory whose gateways do not run: the data directory of a machine that never returns, or a copy of a journal.
 * Gateways that do run are not disturbed.
 */
export const shipDirectory = async (options: { directory: string; db: Db; log: Logger }): Promise<Shipped> => {
  const given = resolve(options.directory)
  if (!(await isDirectory(given))) throw new Error(`${given} is not a directory.`)
  const inside = await journalsOf(given)
  await awaitOrphans(given, systemClock)
  const all: string[] = []
  for (const directory of inside.length > 0 ? inside : [given]) if (await hasJournal(directory)) all.push(directory)
  if (all.length === 0) {
    throw new Error(
      `There is no usage journal in ${inside[0] ?? given}. Give a data directory, or the directory of its files *.v1.journal.`,
    )
  }
  const sum = { events: 0, lost: 0, refused: 0 }
  for (const directory of all) {
    const shipped = await shipJournal({ ...options, directory })
    sum.events += shipped.events
    sum.lost += shipped.lost
    sum.refused += shipped.refused
  }
  return sum
}
