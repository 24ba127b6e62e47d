import { join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { type ChargePolicy, isCharged, type UsageEvent } from './event.ts'
import { readGateway } from './gateway.ts'
import { type JournalLimits, openJournal } from './journal.ts'
import { openShipping } from './ship.ts'

/** What is not in the database by then stays on disk for the next start. */
const LAST_SHIP_LIMIT_MS = 5_000

/** Resolves when the event is on disk; rejects when it is not known to be. */
export type Record = (event: UsageEvent) => Promise<void>

const CHARGE_NO_FAILURES: ChargePolicy = { chargeFailed: false }

export type Usage = {
  record: Record
  /** Why usage cannot be written down now, or undefined. While there is a reason, nothing may be admitted. */
  fault: () => string | undefined
  /** Writes what is on its way, ships what it can within a limit, and ends. */
  close: () => Promise<void>
}

/** Opens the journal under the data directory, cuts what a crash left unfinished, and begins to ship what it finds. */
export const openUsage = async (options: {
  dataDir: string
  db: Db
  clock: Clock
  log: Logger
  policy?: ChargePolicy
  limits?: Partial<JournalLimits> & { readonly shipEveryMs?: number }
}): Promise<Usage> => {
  const { db, clock, log, limits = {} } = options
  const policy = options.policy ?? CHARGE_NO_FAILURES
  const directory = join(options.dataDir, 'usage')
  const journal = await openJournal({ directory, log, limits })
  const gateway = await readGateway(directory, clock)
  const shipping = openShipping({ journal, db, clock, log, ...(limits.shipEveryMs === undefined ? {} : { everyMs: limits.shipEveryMs }) })

  return {
    record: (event) => journal.record({ ...event, gateway, charged: isCharged(event, policy) }),
    fault: journal.fault,
    close: async () => {
      // One limit for both waits: with the database away, a stop must not wait for it.
      const ended = new AbortController()
      const late = clock.sleep(LAST_SHIP_LIMIT_MS, ended.signal).then(
        () => false,
        () => false,
      )
      const stopped = await Promise.race([shipping.stop().then(() => true), late])
      await journal.close()
      const shipped =
        stopped &&
        (await Promise.race([
          shipping.ship().then(
            () => true,
            () => false,
          ),
          late,
        ]))
      ended.abort()
      if (!shipped) log.warn({ segments: journal.segments().length }, 'usage events stay on disk for the next start')
    },
  }
}
