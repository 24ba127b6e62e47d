import { atMost, type Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { journalHome, journalsOf } from './gateway.ts'
import { hasJournal, shipJournal } from './ship-directory.ts'

const RETRY_MS = 5_000
const STOP_LIMIT_MS = 5_000

/**
 * Ships what gateways have left that do not run any more, since there were more of them before: usage is not lost by a setting. Tried
 * until the database has all of it.
 */
export const shipLeft = (options: { dataDir: string; running: number; db: Db; clock: Clock; log: Logger }): { close(): Promise<void> } => {
  const { dataDir, db, clock, log } = options
  const closing = new AbortController()
  const kept = new Set(Array.from({ length: options.running }, (_, index) => `${journalHome(dataDir, index + 1)}/usage`))

  const round = async (): Promise<void> => {
    for (const directory of await journalsOf(dataDir)) {
      if (closing.signal.aborted || kept.has(directory) || !(await hasJournal(directory))) continue
      const { events, lost, refused } = await shipJournal({ directory, db, log })
      log.info({ directory, events, lost, refused }, 'what a gateway has left that does not run any more is in the ledger')
    }
  }
  const loop = async (): Promise<void> => {
    for (let failing = false; !closing.signal.aborted; failing = true) {
      try {
        return await round()
      } catch (error) {
        if (!failing) log.warn({ err: error }, 'usage of gateways that do not run any more cannot be shipped now; it waits on disk')
        await clock.sleep(RETRY_MS, closing.signal).catch(() => undefined)
      }
    }
  }
  const running = loop()

  return {
    close: async () => {
      closing.abort()
      await atMost(STOP_LIMIT_MS, running, clock)
    },
  }
}
