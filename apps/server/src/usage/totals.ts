import type pg from 'pg'
import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { AccessKey, OrganizationId, PriceId, PrincipalId, ProjectId, RequestId } from '../kit/ids.ts'
import { type Kind, SUMMED_UNITS, SUMS, UNITS } from './kinds.ts'

/** All that was used in one hour (it begins at `hour`) under one price by one key: an absolute sum over the ledger. */
export type Total = {
  readonly hour: Instant
  readonly projectId: ProjectId
  readonly principalId: PrincipalId
  readonly accessKey: AccessKey
  readonly model: string
  readonly kind: Kind
  readonly mode: 'realtime' | 'batch'
  readonly priceId: PriceId
  readonly units: bigint
  readonly events: bigint
}

// Any number, the same for all: one process computes at a time, the others have nothing to add.
export const TOTALS_LOCK = '4127590268153370114'
/** Hours in one transaction: one wait for the disk instead of many, where a month is computed at once. */
const HOURS_AT_ONCE = 12
/** A busy hour may hold millions of events; the pool's limit for a statement is made for people who wait. */
const HOURS_LIMIT = '600s'
const PATIENT = { query_timeout: 610_000 }
/** A clock of the database that is set back by less than this moves nothing behind the mark. What is set back by more, `mindClock` sees. */
const CLOCK_STEP_SECONDS = 60

/**
 * The instant before which everything is committed and can be seen by whoever looks later. `recorded_at` is the start of a transaction; one
 * that began long ago may still be going to commit, so the oldest that runs is the bound, and not some guess of how late is too late.
 */
const SETTLED_BEFORE = `
  select least(clock_timestamp(), min(xact_start)) - make_interval(secs => ${CLOCK_STEP_SECONDS}) as instant,
         (select settled_before::text from usage_total_state) as mark
    from pg_stat_activity
   where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()`

/**
 * Back by a day, since whoever computes may have been away while others recorded. A mark that is too low costs nothing but that hours are computed
 * again. Half the margin: what the clock is corrected by every day must not be taken for a step, and a real one must be seen in time.
 */
const MIND_CLOCK = `
  with back as (
    update usage_total_state
       set settled_before = least(settled_before, clock_timestamp() - interval '1 day')
     where settled_before > clock_timestamp() - make_interval(secs => ${CLOCK_STEP_SECONDS / 2})
        or clock_timestamp() < $1::timestamptz - make_interval(secs => ${CLOCK_STEP_SECONDS / 2})
    returning true)
  select clock_timestamp() as now, settled_before as mark, exists (select from back) as "isPutBack" from usage_total_state`

const TOUCHED = `
  select distinct date_trunc('hour', accepted_at, 'UTC') as hour
    from usage_event, usage_total_state
   where recorded_at >= settled_before and accepted_at >= kept_from
   order by hour`

/** Whole hours at or after `kept_from`: of an older one the events are gone, and its totals stay as they are. */
const DROP_HOURS = 'delete from usage_total where hour = any($1) and hour >= (select kept_from from usage_total_state)'
/** Each hour is found by the index on `accepted_at` and added up by itself, so its memory is that of one hour's groups. */
const COMPUTE_HOURS = `
  insert into usage_total (hour, organization_id, project_id, principal_id, access_key, model, kind, mode, price_id, units, events)
  select touched.hour, organization_id, project_id, principal_id, access_key, model, unit.kind, mode, price_id, unit.units, unit.events
    from unnest($1::timestamptz[]) as touched (hour),
         lateral (
           select organization_id, project_id, principal_id, access_key, model, mode, price_id, ${SUMS}
             from usage_event
            where accepted_at >= touched.hour and accepted_at < touched.hour + interval '1 hour'
              and accepted_at >= (select kept_from from usage_total_state) and charged
            group by organization_id, project_id, principal_id, access_key, model, mode, price_id) as used,
         lateral ${SUMMED_UNITS}
   where unit.events > 0`

/** The lock comes first, so that each statement behind it sees what the holder before us has committed. */
const holdingLock = <T>(db: Db, work: (client: pg.PoolClient) => Promise<T>): Promise<T | undefined> =>
  transaction(db, async (client) => {
    const { rows } = await client.query<{ mine: boolean }>(`select pg_try_advisory_xact_lock(${TOTALS_LOCK}) as mine`)
    if (rows[0]?.mine !== true) return undefined
    await client.query(`set local statement_timeout = '${HOURS_LIMIT}'`)
    return work(client)
  })

/** What the clock of the database said, and when, by a clock of ours that nobody can set. */
export type ClockSeen = {
  readonly now: Instant
  readonly atMs: number
  /** Where the mark was, when it had to be put back. */
  readonly putBackFrom: Instant | undefined
}

/**
 * Puts the mark back where the clock of the database was set back: a machine starts with its clock hours ahead, and then hears the time. Events
 * that are recorded from then on would lie before the mark, and so be neither added up nor seen as moved. A mark lies a margin behind the clock, so one that lies
 * ahead of that tells; and so does a clock that says less than it said to `last`, with the time that has passed since, however small the step and
 * long the rest between two rounds. To be called before each `computeTotals`. Until then, some seconds as a rule, readers miss what was recorded since the
 * step; nothing of it is lost.
 */
export const mindClock = async (db: Db, last?: ClockSeen): Promise<ClockSeen> => {
  // Before the question here and after the answer below: what a slow answer takes never looks like a step.
  const expected = last && new Date(last.now + performance.now() - last.atMs)
  const { rows } = await db.query<{ now: Date; mark: Date | number; isPutBack: boolean }>(MIND_CLOCK, [expected])
  const [seen] = rows
  if (seen === undefined) throw new Error('usage_total_state has no row')
  return { now: dateToInstant(seen.now), atMs: performance.now(), putBackFrom: seen.isPutBack ? (Number(seen.mark) as Instant) : undefined }
}

/**
 * Computes again every hour that has got events since the last time, some in a transaction, each whole, and then moves the mark up to which
 * all events are in the totals. Cut short at any line, it is simply done again. Undefined when another process is at it.
 */
export const computeTotals = async (db: Db, signal?: AbortSignal): Promise<{ hours: number } | undefined> => {
  const { rows: settled } = await db.query<{ instant: Date; mark: string }>(SETTLED_BEFORE)
  const touched = await holdingLock(db, (client) => client.query<{ hour: Date }>({ text: TOUCHED, ...PATIENT }))
  if (touched === undefined) return undefined
  const hours = touched.rows.map(({ hour }) => hour)
  for (let first = 0; first < hours.length; first += HOURS_AT_ONCE) {
    signal?.throwIfAborted()
    const values = [hours.slice(first, first + HOURS_AT_ONCE)]
    const done = await holdingLock(db, async (client) => {
      await client.query(DROP_HOURS, values)
      await client.query({ text: COMPUTE_HOURS, values, ...PATIENT })
      return true
    })
    if (done === undefined) return undefined
  }
  // Not where another process has put the mark back meanwhile: our round began by the clock that was wrong.
  await db.query('update usage_total_state set settled_before = greatest(settled_before, $1) where settled_before >= $2::timestamptz', [
    settled[0]?.instant,
    settled[0]?.mark,
  ])
  return { hours: hours.length }
}

/** The instant before which there are no events any more, only totals. Minus infinity where nothing was ever dropped. */
export const readKeptFrom = async (db: Db | pg.PoolClient): Promise<Instant> => {
  const { rows } = await db.query<{ kept_from: Date | number }>('select kept_from from usage_total_state')
  return Number(rows[0]?.kept_from ?? Number.NEGATIVE_INFINITY) as Instant
}

type TotalRow = {
  hour: Date
  project_id: ProjectId
  principal_id: PrincipalId
  access_key: AccessKey
  model: string
  kind: Kind
  mode: 'realtime' | 'batch'
  price_id: PriceId
  units: bigint
  events: bigint
}

/**
 * One statement, so one view of the ledger: hours in which something has been recorded since the mark are summed from their events, the
 * others are read from the totals. What comes out is the ledger to the last event that has reached the database.
 */
const LEDGER_HOURS = `
  moved as (
    select distinct date_trunc('hour', accepted_at, 'UTC') as hour
      from usage_event, usage_total_state
     where recorded_at >= settled_before and organization_id = $1 and accepted_at >= $2 and accepted_at < $3),
  total as (
    select hour, project_id, principal_id, access_key, model, kind, mode, price_id, units, events
      from usage_total
     where organization_id = $1 and hour >= $2 and hour < $3 and hour not in (select hour from moved)
    union all
    select hour, project_id, principal_id, access_key, model, unit.kind, mode, price_id, unit.units, unit.events
      from (select moved.hour, project_id, principal_id, access_key, model, mode, price_id, ${SUMS}
              from moved
              join usage_event on organization_id = $1 and accepted_at >= moved.hour and accepted_at < moved.hour + interval '1 hour'
             where charged
             group by moved.hour, project_id, principal_id, access_key, model, mode, price_id) as used,
           lateral ${SUMMED_UNITS}
     where unit.events > 0)`

const HOUR_MS = 3_600_000

const requireHours = (from: Instant, to: Instant): void => {
  if (from % HOUR_MS !== 0 || to % HOUR_MS !== 0) throw new Error('Totals are of whole hours: the range must begin and end on one.')
}

/** The hourly totals of an organization between two whole hours (the first included, the last not), exact to the ledger of this moment. */
export const readTotals = async (
  db: Db | pg.PoolClient,
  range: { organizationId: OrganizationId; from: Instant; to: Instant },
): Promise<Total[]> => {
  requireHours(range.from, range.to)
  const { rows } = await db.query<TotalRow>(
    `with ${LEDGER_HOURS} select * from total order by hour, project_id, principal_id, access_key, model, kind, mode, price_id`,
    [range.organizationId, instantToDate(range.from), instantToDate(range.to)],
  )
  return rows.map((row) => ({
    hour: dateToInstant(row.hour),
    projectId: row.project_id,
    principalId: row.principal_id,
    accessKey: row.access_key,
    model: row.model,
    kind: row.kind,
    mode: row.mode,
    priceId: row.price_id,
    units: row.units,
    events: row.events,
  }))
}

/** Sums of a month, say: without hours, principals and keys, which no price depends on. */
export type Sum = Pick<Total, 'projectId' | 'model' | 'kind' | 'mode' | 'priceId' | 'units' | 'events'>

/** What `readTotals` says, added up over the range by what a bill is made of. */
export const readSums = async (
  db: Db | pg.PoolClient,
  range: { organizationId: OrganizationId; from: Instant; to: Instant },
): Promise<Sum[]> => {
  requireHours(range.from, range.to)
  const { rows } = await db.query<TotalRow>(
    `with ${LEDGER_HOURS}
     select project_id, model, kind, mode, price_id, sum(units)::bigint as units, sum(events)::bigint as events
       from total group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5`,
    [range.organizationId, instantToDate(range.from), instantToDate(range.to)],
  )
  return rows.map((row) => ({
    projectId: row.project_id,
    model: row.model,
    kind: row.kind,
    mode: row.mode,
    priceId: row.price_id,
    units: row.units,
    events: row.events,
  }))
}

/** An event that came to the ledger after a range had been closed. */
export type LateEvent = Omit<Total, 'hour' | 'events'> & {
  readonly id: RequestId
  readonly acceptedAt: Instant
  readonly recordedAt: Instant
}

const MAX_LATE_ROWS = 10_000

/**
 * The charged events of a closed range that were recorded at or after an instant, one row for each kind that has units; at most ten
 * thousand. It is a list to look at. What is owed for them is the difference of two sums, which no lateness can miss: `readSums` of the
 * range now, less what was frozen when it was closed.
 */
export const lateEvents = async (
  db: Db | pg.PoolClient,
  range: { organizationId: OrganizationId; from: Instant; to: Instant; recordedFrom: Instant },
): Promise<LateEvent[]> => {
  const { rows } = await db.query<TotalRow & { id: RequestId; accepted_at: Date; recorded_at: Date }>(
    `select id, accepted_at, recorded_at, project_id, principal_id, access_key, model, kind, mode, price_id, unit.units
       from usage_event, lateral ${UNITS}
      where organization_id = $1 and accepted_at >= $2 and accepted_at < $3 and recorded_at >= $4 and charged and unit.units <> 0
      order by accepted_at, id, kind
      limit ${MAX_LATE_ROWS}`,
    [range.organizationId, instantToDate(range.from), instantToDate(range.to), instantToDate(range.recordedFrom)],
  )
  return rows.map((row) => ({
    id: row.id,
    acceptedAt: dateToInstant(row.accepted_at),
    recordedAt: dateToInstant(row.recorded_at),
    projectId: row.project_id,
    principalId: row.principal_id,
    accessKey: row.access_key,
    model: row.model,
    kind: row.kind,
    mode: row.mode,
    priceId: row.price_id,
    units: row.units,
  }))
}
