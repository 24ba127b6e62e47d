import { join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { type Metrics, openMetrics } from '../kit/metrics.ts'
import { type ChargePolicy, moreOf, type UsageEvent } from './event.ts'
import { readGateway } from './gateway.ts'
import { type JournalLimits, makeJournalDir, openJournal } from './journal.ts'
import { type Coming, openOpenings } from './openings.ts'
import { openShipper, openShipping, type Shipped } from './ship.ts'

/** What is not in the database by then stays on disk for the next start. */
const LAST_SHIP_LIMIT_MS = 5_000

/** Resolves when the event is on disk; rejects when it is not known to be. */
export type RecordUsage = (event: UsageEvent) => Promise<void>

export type UsageLimits = Partial<JournalLimits> & { readonly shipEveryMs?: number }

export type Usage = {
  record: RecordUsage
  /**
   * Notes that an answer is open (a whole one when it has been so for a while), with the event that is shipped as lost if this process dies before its end. Nobody
   * waits for it. `record` ends it.
   */
  noteOpen: (event: UsageEvent, coming: Coming) => void
  /** The answer was refused after all, with nothing sent. */
  withdraw: (id: RequestId) => void
  /** Why usage cannot be written down now, or undefined. While there is a reason, nothing may be admitted. */
  fault: () => string | undefined
  /** Writes what is on its way, ships what it can within a limit, and ends. */
  close: () => Promise<void>
}

/** What an operator watches: rows that nobody has counted are never only rows. */
const openCounts = (metrics: Metrics) => {
  const unmeasured = metrics.counter('parvis_usage_unmeasured_total', 'Requests recorded without counts; none of them is charged.', [
    'ended',
  ])
  const counted = metrics.counter('parvis_usage_counted_total', 'Requests by whose count of tokens was recorded.', ['by'])
  const refused = metrics.counter('parvis_usage_refused_total', 'Events that the ledger did not take and that were put aside.', [])
  const bytes = metrics.gauge('parvis_usage_journal_bytes', 'Bytes of events on disk that are not yet in the ledger.', [])
  const writable = metrics.gauge(
    'parvis_usage_journal_writable',
    '1 while the journal can be written; otherwise nothing is admitted.',
    [],
    'least',
  )
  return {
    event: (event: UsageEvent) => {
      counted.add([event.counted])
      if (event.counted === 'none') unmeasured.add([event.ended])
    },
    round: (shipped: Shipped | undefined, waitingBytes: number, fault: string | undefined) => {
      if (shipped !== undefined && shipped.lost > 0) unmeasured.add(['lost'], shipped.lost)
      if (shipped !== undefined && shipped.refused > 0) refused.add([], shipped.refused)
      bytes.set([], waitingBytes)
      writable.set([], fault === undefined ? 1 : 0)
    },
  }
}

/** Opens the journal under the data directory, cuts what a crash left unfinished, and begins to ship what it finds. */
export const openUsage = async (options: {
  dataDir: string
  db: Db
  clock: Clock
  log: Logger
  policy?: ChargePolicy
  metrics?: Metrics
  limits?: UsageLimits
}): Promise<Usage> => {
  const { db, clock, log, policy = { chargeFailed: false }, limits = {} } = options
  const directory = join(options.dataDir, 'usage')
  await makeJournalDir(directory)
  const toMore = moreOf(await readGateway(directory, clock), policy)
  const journal = await openJournal({ directory, log, limits, toMore })
  const openings = await openOpenings({ directory, log, toMore })
  const { shipEveryMs } = limits
  const shipper = openShipper({ journal, openings, db, log })
  const count = openCounts(options.metrics ?? openMetrics())
  const shipping = openShipping({
    shipper,
    journal,
    clock,
    log,
    whenRound: (shipped) => count.round(shipped, shipper.waitingBytes(), journal.fault()),
    ...(shipEveryMs === undefined ? {} : { everyMs: shipEveryMs }),
  })

  const end = (event: UsageEvent): void => {
    openings.end(event.id)
    count.event(event)
  }
  // Those of one write, which share its promise: so the wait for it is one for all of them, and not three promises for each.
  let ending: { readonly done: Promise<void>; readonly events: UsageEvent[] } = { done: Promise.resolve(), events: [] }

  return {
    record: (event) => {
      const done = journal.record(event)
      if (ending.done !== done) {
        const group = { done, events: [] as UsageEvent[] }
        ending = group
        done.then(
          () => group.events.forEach(end),
          () => undefined,
        )
      }
      ending.events.push(event)
      return done
    },
    noteOpen: openings.note,
    withdraw: openings.withdraw,
    fault: journal.fault,
    close: async () => {
      // One limit for all waits: with the database away, a stop must not wait for it.
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
          shipper.ship().then(
            () => true,
            () => false,
          ),
          late,
        ]))
      ended.abort()
      await openings.close()
      if (!shipped) log.warn({ segments: journal.segments().length }, 'usage events stay on disk for the next start')
    },
  }
}
