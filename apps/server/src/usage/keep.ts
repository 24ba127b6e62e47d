import { atMost, type Clock, dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { type ClockSeen, computeTotals, mindClock, TOTALS_LOCK } from './totals.ts'

const TOTALS_EVERY_MS = 5_000
/** Computing takes at most this part of the time, however much there is to compute. */
const REST_FACTOR = 10
const PARTITIONS_EVERY_MS = 3_600_000
/** Partitions are made for this many months to come. */
const MONTHS_AHEAD = 2
const BACKOFF_MAX_MS = 60_000
/** With the database away a stop does not wait for it: whatever is under way is safe to repeat. */
const STOP_LIMIT_MS = 5_000
/** To drop a partition, everybody else must be out of the table for a moment. Better the next hour than all waiting behind us. */
const LOCK_LIMIT = '2s'

// What was accepted or recorded by a clock that is ahead today is of no day before. The index on the first finds it at once.
const NEWEST = `
  select accepted_at from usage_event
   where accepted_at < $1::timestamptz - interval '1 day' and recorded_at < $1::timestamptz - interval '1 day'
   order by accepted_at desc
   limit 1`

const PARTITION = /^usage_event_(\d{4})_(\d{2})$/

/** The first instant of the month that lies this many months away, in UTC. */
const monthAt = (now: Instant, months: number): Date => {
  const date = new Date(now)
  return new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + months))
}

export const makePartitions = async (db: Db, now: Instant): Promise<void> => {
  for (let ahead = 0; ahead <= MONTHS_AHEAD; ahead += 1) await db.query('select make_usage_partition($1)', [monthAt(now, ahead)])
}

/**
 * Drops the months that are older than what is kept, once everything in them is in the totals. Nothing of them can come back: from
 * then on the ledger refuses their events, so that their totals stay as they are. Says what was dropped.
 *
 * The retention is counted back from the newest event of before yesterday, where that is older than now: a clock that is months ahead for a moment,
 * also one by which events are recorded, would otherwise drop them all, and refuse whatever comes later for good. Where nobody asks for anything,
 * events are only kept for longer.
 */
export const dropPartitions = (db: Db, now: Instant, retentionMonths: number): Promise<string[]> =>
  transaction(db, async (client) => {
    const { rows: newest } = await client.query<{ accepted_at: Date }>(NEWEST, [instantToDate(now)])
    if (newest[0] === undefined) return []
    const keptFrom = monthAt(Math.min(now, dateToInstant(newest[0].accepted_at)) as Instant, -retentionMonths)
    const { rows } = await client.query<{ name: string }>(
      `select child.relname as name from pg_inherits join pg_class as child on child.oid = inhrelid
        where inhparent = 'usage_event'::regclass order by name`,
    )
    const old = rows
      .map(({ name }) => name)
      .filter((name) => {
        const [, year, month] = PARTITION.exec(name) ?? []
        return year !== undefined && Date.UTC(Number(year), Number(month) - 1) < keptFrom.getTime()
      })
    if (old.length === 0) return []
    await client.query(`set local lock_timeout = '${LOCK_LIMIT}'`)
    await client.query(`select pg_advisory_xact_lock(${TOTALS_LOCK})`)
    await client.query(`lock table ${old.join(', ')} in access exclusive mode`)
    for (const name of old) {
      const { rows: unsettled } = await client.query(
        `select from ${name} where recorded_at >= (select settled_before from usage_total_state) limit 1`,
      )
      if (unsettled.length > 0) return []
    }
    await client.query('update usage_total_state set kept_from = greatest(kept_from, $1)', [keptFrom])
    await client.query(`drop table ${old.join(', ')}`)
    return old
  })

export type Keeping = { stop: () => Promise<void> }

/** Keeps the totals up with the ledger and the ledger within its bounds. Every process runs it; the totals' lock lets one work at a time. */
export const openKeeping = (options: { db: Db; clock: Clock; log: Logger; retentionMonths: number; everyMs?: number }): Keeping => {
  const { db, clock, log } = options
  const everyMs = options.everyMs ?? TOTALS_EVERY_MS
  const ended = new AbortController()

  const loop = async (): Promise<void> => {
    let partitionsAtMs = Number.NEGATIVE_INFINITY
    let away = 0
    let seen: ClockSeen | undefined
    while (!ended.signal.aborted) {
      const startedAt = performance.now()
      try {
        seen = await mindClock(db, seen)
        if (seen.putBackFrom !== undefined) {
          log.warn(
            { databaseClock: instantToDate(seen.now), settledBefore: instantToDate(seen.putBackFrom) },
            'the clock of the database was set back: sums may have lacked what was recorded since; the last day is added up again',
          )
        }
        await computeTotals(db, ended.signal)
        if (startedAt >= partitionsAtMs) {
          await makePartitions(db, clock.now())
          const dropped = await dropPartitions(db, clock.now(), options.retentionMonths)
          if (dropped.length > 0) log.info({ partitions: dropped }, 'usage events older than the retention were dropped; their totals stay')
          partitionsAtMs = startedAt + PARTITIONS_EVERY_MS
        }
        away = 0
      } catch (error) {
        if (ended.signal.aborted) return
        if (away === 0) log.warn({ err: error }, 'totals cannot be computed; what is asked for is summed from the events meanwhile')
        away += 1
      }
      const tookMs = performance.now() - startedAt
      const restMs = Math.max(tookMs * REST_FACTOR, Math.min(BACKOFF_MAX_MS, everyMs * 2 ** Math.min(away, 16)))
      await clock.sleep(restMs, ended.signal).catch(() => undefined)
    }
  }
  const running = loop()

  return {
    stop: async () => {
      ended.abort()
      await atMost(STOP_LIMIT_MS, running, clock)
    },
  }
}
