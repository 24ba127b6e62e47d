import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type Kind, UNITS } from './kinds.ts'
import { readKeptFrom } from './totals.ts'

/** What sums can be split by. Kinds are never added to each other: tokens and milliseconds have no sum. */
export const DIMENSIONS = ['project_id', 'principal_id', 'access_key', 'model', 'mode', 'price_id'] as const
export type Dimension = (typeof DIMENSIONS)[number]

export const STEPS = ['none', 'minute', 'hour', 'day', 'month'] as const
export type Step = (typeof STEPS)[number]

export type View = {
  readonly organizationId: OrganizationId
  /** From the first instant to the last, which is not included. They may cut an hour anywhere. */
  readonly from: Instant
  readonly to: Instant
  readonly step: Step
  readonly by: readonly Dimension[]
  /** Only these; an empty list means all. */
  readonly projectIds: readonly ProjectId[]
  readonly only: Readonly<Partial<Record<Exclude<Dimension, 'project_id'> | 'kind', readonly string[]>>>
}

export type ViewRow = Readonly<Partial<Record<Dimension, string>>> & {
  /** The beginning of the step, in UTC; null without steps. */
  readonly at: Instant | null
  readonly kind: Kind
  readonly units: bigint
  readonly events: bigint
}

const HOUR_MS = 3_600_000
export const MAX_VIEW_ROWS = 10_000

/** `too_many_rows`, or the instant before which only whole hours are known, since the events are gone. */
export type ViewRefusal = { readonly reason: 'too_many_rows' } | { readonly reason: 'only_hours'; readonly keptFrom: Instant }

/** The whole hours of a range, which totals can answer, and what is left at its ends, which only events can. */
const cut = (from: Instant, to: Instant, step: Step): { hours: [number, number]; edges: [number, number][] } => {
  const [first, last] = [Math.ceil(from / HOUR_MS) * HOUR_MS, Math.floor(to / HOUR_MS) * HOUR_MS]
  if (step === 'minute' || first > last) return { hours: [from, from], edges: [[from, to]] }
  const edges: [number, number][] = [
    [from, first],
    [last, to],
  ]
  return { hours: [first, last], edges: edges.filter(([starts, ends]) => starts < ends) }
}

/**
 * Exact sums of what is charged, over any range. One statement, so one view of the books: an hour into which something has been recorded
 * since the totals were settled, and what a range cuts off an hour, are summed from the events, on (organization_id, accepted_at);
 * all the rest comes from the totals.
 */
export const viewUsage = async (db: Db, view: View): Promise<Outcome<{ rows: ViewRow[] }, ViewRefusal>> => {
  const { hours, edges } = cut(view.from, view.to, view.step)
  const keptFrom = await readKeptFrom(db)
  if (edges.some(([starts]) => starts < keptFrom)) return no({ reason: 'only_hours', keptFrom })

  const values: unknown[] = [
    view.organizationId,
    new Date(hours[0]),
    new Date(hours[1]),
    edges.map(([starts]) => new Date(starts)),
    edges.map(([, ends]) => new Date(ends)),
  ]
  const filters = Object.entries({ project_id: view.projectIds, ...view.only })
    .filter(([, list]) => list.length > 0)
    .map(([column, list]) => {
      values.push(list)
      return `and ${column}::text = any($${values.length}::text[])`
    })
  // Columns come from the lists above, never from a caller.
  const columns = [...(view.step === 'none' ? [] : [`date_trunc('${view.step}', at, 'UTC') as step`]), ...view.by, 'kind']
  const groups = columns.map((_, index) => index + 1).join(', ')
  const { rows } = await db.query<Record<Dimension, string> & { step?: Date; kind: Kind; units: bigint; events: bigint }>(
    `with moved as (
       select distinct date_trunc('hour', accepted_at, 'UTC') as starts
         from usage_event, usage_total_state
        where recorded_at >= settled_before and organization_id = $1 and accepted_at >= $2 and accepted_at < $3),
     piece as (
       select starts, starts + interval '1 hour' as ends from moved
       union all
       select * from unnest($4::timestamptz[], $5::timestamptz[]) as edge (starts, ends)),
     used as (
       select hour as at, ${DIMENSIONS.join(', ')}, kind, units, events
         from usage_total
        where organization_id = $1 and hour >= $2 and hour < $3 and hour not in (select starts from moved)
       union all
       select accepted_at, ${DIMENSIONS.join(', ')}, kind, unit.units, 1
         from piece
         join usage_event on organization_id = $1 and accepted_at >= piece.starts and accepted_at < piece.ends,
              lateral ${UNITS}
        where charged and unit.units <> 0)
     select ${columns.join(', ')}, sum(units)::bigint as units, sum(events)::bigint as events
       from used
      where true ${filters.join(' ')}
      group by ${groups} order by ${groups}
      limit ${MAX_VIEW_ROWS + 1}`,
    values,
  )
  if (rows.length > MAX_VIEW_ROWS) return no({ reason: 'too_many_rows' })
  return yes({
    rows: rows.map(({ step, kind, units, events, ...dimensions }) => ({
      at: step === undefined ? null : dateToInstant(step),
      ...dimensions,
      kind,
      units,
      events,
    })),
  })
}

/** The first instant of the running month, in UTC. */
export const monthOf = (now: Instant): Instant => {
  const date = instantToDate(now)
  return Date.UTC(date.getUTCFullYear(), date.getUTCMonth()) as Instant
}
