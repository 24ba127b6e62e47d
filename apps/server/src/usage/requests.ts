import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { type Kind, UNITS } from './kinds.ts'

/** One request as it stands in the ledger, and what of it is added up and charged. */
export type LedgerRow = {
  readonly id: string
  readonly project_id: string
  readonly principal_id: string
  readonly access_key: string
  readonly model_asked: string
  readonly model: string
  readonly price_id: string
  readonly pool_id: string | null
  readonly replica: string
  readonly gateway: string
  readonly endpoint: string
  readonly mode: string
  readonly status: number
  readonly ended: string
  readonly counted: string
  readonly charged: boolean
  readonly acceptedAt: Instant
  readonly firstByteAt: Instant | null
  readonly endedAt: Instant
  readonly units: Readonly<Record<Kind, bigint>>
}

/** Where a page begins: behind this request. */
export type Place = { readonly acceptedAt: Instant; readonly id: string }

export type RequestsAsked = {
  readonly organizationId: OrganizationId
  readonly from: Instant
  readonly to: Instant
  /** Only these; an empty list means all. */
  readonly projectIds: readonly ProjectId[]
  readonly only: Readonly<Partial<Record<'principal_id' | 'access_key' | 'model' | 'mode' | 'price_id', readonly string[]>>>
  /** Only those that have some of it. */
  readonly kind: Kind | undefined
  readonly charged: boolean | undefined
  readonly behind: Place | undefined
  readonly limit: number
}

const COLUMNS = `id, project_id, principal_id, access_key, model_asked, model, price_id, pool_id, replica, gateway, endpoint, mode, status, ended,
       counted, charged, accepted_at, first_byte_at, ended_at`

type Row = Omit<LedgerRow, 'acceptedAt' | 'firstByteAt' | 'endedAt' | 'units'> & {
  readonly accepted_at: Date
  readonly first_byte_at: Date | null
  readonly ended_at: Date
  readonly units: Readonly<Record<Kind, number>>
}

/**
 * What a line of a bill is made of, newest first. On (organization_id, accepted_at), and by place instead of by number, so that the last page
 * of a million costs what the first does. It is read once: what is recorded meanwhile may stand on a page that has been seen.
 */
export const listRequests = async (db: Db, asked: RequestsAsked): Promise<LedgerRow[]> => {
  const values: unknown[] = [asked.organizationId, instantToDate(asked.from), instantToDate(asked.to), asked.limit]
  const use = (value: unknown): string => `$${values.push(value)}`
  const filters = Object.entries({ project_id: asked.projectIds, ...asked.only })
    .filter(([, list]) => list.length > 0)
    // Columns come from the type above, never from a caller.
    .map(([column, list]) => `and ${column}::text = any(${use(list)}::text[])`)
  if (asked.charged !== undefined) filters.push(`and charged = ${use(asked.charged)}`)
  if (asked.kind !== undefined) filters.push(`and exists (select from ${UNITS} where unit.kind = ${use(asked.kind)} and unit.units <> 0)`)
  if (asked.behind !== undefined)
    filters.push(`and (accepted_at, id) < (${use(instantToDate(asked.behind.acceptedAt))}, ${use(asked.behind.id)}::uuid)`)
  const { rows } = await db.query<Row>(
    `select ${COLUMNS}, (select json_object_agg(unit.kind, unit.units) from ${UNITS}) as units
       from usage_event
      where organization_id = $1 and accepted_at >= $2 and accepted_at < $3 ${filters.join(' ')}
      order by accepted_at desc, id desc
      limit $4`,
    values,
  )
  return rows.map(({ accepted_at: acceptedAt, first_byte_at: firstByteAt, ended_at: endedAt, units, ...row }) => ({
    ...row,
    acceptedAt: dateToInstant(acceptedAt),
    firstByteAt: firstByteAt === null ? null : dateToInstant(firstByteAt),
    endedAt: dateToInstant(endedAt),
    units: Object.fromEntries(Object.entries(units).map(([kind, count]) => [kind, BigInt(count)])) as Record<Kind, bigint>,
  }))
}
