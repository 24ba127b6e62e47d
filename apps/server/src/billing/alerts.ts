import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { newId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Cents } from '../kit/money.ts'
import { readBill } from './bill.ts'
import { type Alert, type Budget, readBudgets } from './budget.ts'
import { taxOf } from './invoice.ts'
import { type Month, monthOf, stepMonth } from './month.ts'
import type { Terms } from './terms.ts'

/** A budget is in euros and a threshold in percent of it: 100 percent of one euro are 100 cents, so the hundreds cancel out. */
export const isReached = (charged: Cents, threshold: number, limitEuros: bigint): boolean => charged >= BigInt(threshold) * limitEuros

// The key (budget, month, threshold, limit) is what makes it once; whoever comes second inserts nothing and sends nothing.
const FIRE = `
  insert into budget_firing (id, budget_id, organization_id, month, threshold, cents, limit_euros, fired_at)
  values ($1, $2, $3, $4, $5, $6, $7, $8)
      on conflict do nothing`

const ADDRESS = `
  insert into budget_message (id, firing_id, notification_id, type, recipient, due_at)
  values ($1, $2, $3, $4, $5, $6)
      on conflict do nothing`

const fire = (
  db: Db,
  now: Instant,
  budget: Budget,
  month: Month,
  { threshold, alerts, cents }: { threshold: number; alerts: readonly Alert[]; cents: Cents },
): Promise<boolean> =>
  transaction(db, async (client) => {
    const firing = newId<'budget firing'>(now)
    const at = instantToDate(now)
    const { id: budgetId, organizationId, limitEuros } = budget
    const { rowCount } = await client.query(FIRE, [firing, budgetId, organizationId, month, threshold, cents, limitEuros, at])
    if (rowCount !== 1) return false
    for (const { id, type, recipients } of alerts.flatMap((alert) => alert.notifications)) {
      for (const recipient of recipients) await client.query(ADDRESS, [newId(now), firing, id, type, recipient, at])
    }
    return true
  })

/** What was made or changed after a month says nothing of that month, in which it was not there, or was another. */
const isOf = ({ updatedAt }: Budget | Alert, month: Month): boolean => monthOf(updatedAt) <= month

/**
 * Looks at every budget and fires the alerts whose threshold is reached: on what will be charged, after the free tier and with tax
 * (serverless-platform.md 3.7). The month before is looked at as well while it is open, since its last usage comes late.
 */
export const alertRound = async (parts: { db: Db; clock: Clock; log: Logger; terms: Terms }): Promise<void> => {
  const { db, clock, log, terms } = parts
  const running = monthOf(clock.now())
  for (const budget of await readBudgets(db, null)) {
    if (!budget.enabled) continue
    for (const month of [stepMonth(running, -1), running]) {
      const standing = isOf(budget, month) ? budget.alerts.filter((alert) => isOf(alert, month)) : []
      if (standing.length === 0) continue
      const { bill, closedAt } = await readBill(db, terms, budget.organizationId, month)
      if (closedAt !== null) continue
      const charged = (bill.cents + taxOf(bill.cents, terms.taxBasisPoints)) as Cents
      for (const threshold of new Set(standing.map((alert) => alert.threshold))) {
        if (!isReached(charged, threshold, budget.limitEuros)) continue
        const alerts = standing.filter((alert) => alert.threshold === threshold)
        if (await fire(db, clock.now(), budget, month, { threshold, alerts, cents: charged })) {
          log.info({ organizationId: budget.organizationId, month, threshold }, 'a budget alert has fired')
        }
      }
    }
  }
}
