import { randomUUID } from 'node:crypto'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { billToContent, readBill } from './bill.ts'
import { draftInvoice } from './invoice.ts'
import { isFree } from './lease.ts'
import { type Month, monthOf, monthStart } from './month.ts'
import type { Terms } from './terms.ts'

/**
 * Closing a month. Every organization has a row for each month that has ended; the row is due when the time for late segments is
 * over, and months are closed in their order. Whoever holds the lease computes the bill once more and freezes it, with the draft of its
 * invoice, in one transaction that asks for its own lease. What arrives later is found by the next month as a difference.
 *
 * That time counts from when somebody saw that the month is over, and anew where nobody was there for long when it was up. So a clock that is months
 * ahead for less than it closes nothing: the rows that it made go again when the clock does.
 */

/** A bill takes seconds; whoever needs longer has died. */
const LEASE_SECONDS = 300
/** A month that cannot be closed is looked at again after this time; the others go on. */
const AGAIN_SECONDS = 600

// `$1`: the first instant of the month that runs; `$2`: when what is seen to be over now is due.

// A month that is not over has no row: a clock that was ahead has written it.
const DROP_UNENDED = `delete from bill where closed_at is null and month >= to_char($1::timestamptz at time zone 'UTC', 'YYYY-MM')`
// The same clock was the first to see the end of these.
const NOT_LATER = 'update bill set due_at = $1 where closed_at is null and due_at > $1'
// Nobody was there when these were due, or the clock is ahead: the whole time once more. Only once, and not for what was tried, or a house that is
// there for an hour a week would never close a month.
const NOT_LONG_DUE = 'update bill set due_at = $1, attempt = 1 where closed_at is null and attempt = 0 and due_at < $2'
// From the first month in which the organization was there or used anything, up to the last that has ended. `do nothing`: two processes
// may do it at once. The index (organization_id, hour) of the totals answers `min`.
const OPEN_MONTHS = `
  insert into bill (organization_id, month, due_at)
  select first.id, to_char(starts, 'YYYY-MM'), $2
    from (select id, least(created_at, (select min(hour) from usage_total where organization_id = organization.id)) as at
            from organization) as first,
         generate_series(date_trunc('month', first.at at time zone 'UTC'),
                         ($1::timestamptz at time zone 'UTC') - interval '1 month', interval '1 month') as starts
      on conflict do nothing`

const CLAIM = `
  update bill
     set leased_by = $1, leased_until = now() + make_interval(secs => ${LEASE_SECONDS}), attempt = attempt + 1
   where (organization_id, month) = (
     select organization_id, month from bill
      where closed_at is null and due_at <= $2 and ${isFree(AGAIN_SECONDS)}
        and not exists (select 1 from bill earlier
                         where earlier.organization_id = bill.organization_id and earlier.month < bill.month and earlier.closed_at is null)
      order by due_at, organization_id
      limit 1
        for update skip locked)
  returning organization_id, month`

const POSTPONE = `
  update bill set leased_by = null, leased_until = now() + make_interval(secs => ${AGAIN_SECONDS}), waits_for = $4
   where organization_id = $1 and month = $2 and leased_by = $3 and closed_at is null`

const FREEZE = `
  update bill set closed_at = $4, frozen_at = now(), content = $5::text::jsonb, leased_by = null, leased_until = null, waits_for = null
   where organization_id = $1 and month = $2 and leased_by = $3 and closed_at is null`

type Claimed = { readonly organization_id: OrganizationId; readonly month: Month }

/** Closes one month that is due; false when none is. */
export const closeNext = async (parts: { db: Db; clock: Clock; log: Logger; terms: Terms }): Promise<boolean> => {
  const { db, clock, log, terms } = parts
  const lease = randomUUID()
  const { rows } = await db.query<Claimed>(CLAIM, [lease, instantToDate(clock.now())])
  const claimed = rows[0]
  if (claimed === undefined) return false
  const { organization_id: organizationId, month } = claimed

  try {
    await transaction(db, async (client) => {
      const drawn = await readBill(client, terms, organizationId, month)
      if (drawn.unpriced.length > 0) {
        const ids = [...new Set(drawn.unpriced.map(({ priceId }) => priceId))]
        throw new Error(`there is usage under prices that are not in the catalogue: ${ids.join(', ')}`)
      }
      const now = clock.now()
      const { rowCount } = await client.query(FREEZE, [organizationId, month, lease, instantToDate(now), billToContent(drawn)])
      if (rowCount !== 1) throw new Error('the lease ran out while the bill was computed')
      // A month without use is closed all the same, but nobody gets an invoice of nothing.
      if (drawn.bill.lines.length > 0) await draftInvoice(client, terms, now, drawn)
    })
    log.info({ organizationId, month }, 'month closed')
  } catch (error) {
    log.error({ err: error, organizationId, month }, 'a month cannot be closed; it will be tried again')
    await db.query(POSTPONE, [organizationId, month, lease, error instanceof Error ? error.message : String(error)])
  }
  return true
}

const HOUR_MS = 3_600_000

/** Makes the rows of the months that have ended. */
export const openMonths = async (db: Db, clock: Clock, terms: Terms): Promise<void> => {
  const now = clock.now()
  const running = instantToDate(monthStart(monthOf(now)))
  const graceMs = terms.graceHours * HOUR_MS
  const dueAt = instantToDate((now + graceMs) as Instant)
  await db.query(DROP_UNENDED, [running])
  await db.query(NOT_LATER, [dueAt])
  await db.query(NOT_LONG_DUE, [dueAt, instantToDate((now - graceMs) as Instant)])
  await db.query(OPEN_MONTHS, [running, dueAt])
}
