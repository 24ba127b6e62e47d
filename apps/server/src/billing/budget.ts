import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import { type Clock, dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Id, newId, type OrganizationId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

export type BudgetId = Id<'budget'>
export type AlertId = Id<'budget alert'>
export type NotificationId = Id<'budget notification'>

type Dated = { readonly createdAt: Instant; readonly updatedAt: Instant }

export type Notification = Dated & {
  readonly id: NotificationId
  readonly type: 'email' | 'webhook'
  readonly recipients: readonly string[]
}

export type Alert = Dated & {
  readonly id: AlertId
  /** Percent of the budget. */
  readonly threshold: number
  readonly notifications: readonly Notification[]
}

/** What an organization means to spend in a month, and whom to tell on the way there. It stops nothing (serverless-platform.md 3.7). */
export type Budget = Dated & {
  readonly id: BudgetId
  readonly organizationId: OrganizationId
  readonly limitEuros: bigint
  readonly enabled: boolean
  readonly alerts: readonly Alert[]
}

export type BudgetRefusal =
  | { readonly code: 'budget_exists'; readonly id: BudgetId }
  | { readonly code: 'alerts_used_up' }
  | { readonly code: 'unknown'; readonly what: 'Budget' | 'BudgetAlert' | 'BudgetAlertNotification'; readonly id: string }

/** The contract's number. */
export const MAX_ALERTS = 10
const MAX_NOTIFICATIONS = 10

/** Who changes something, and when: `now` comes from the clock once for the whole change. */
type Change = { readonly organizationId: OrganizationId; readonly actor: By; readonly clock: Clock }

type BudgetRow = {
  id: BudgetId
  organization_id: OrganizationId
  limit_euros: bigint
  enabled: boolean
  created_at: Date
  updated_at: Date
}
type AlertRow = { id: AlertId; budget_id: BudgetId; threshold: number; created_at: Date; updated_at: Date }
type NotificationRow = {
  id: NotificationId
  alert_id: AlertId
  type: 'email' | 'webhook'
  recipients: string[]
  created_at: Date
  updated_at: Date
}

const dated = (row: { created_at: Date; updated_at: Date }): Dated => ({
  createdAt: dateToInstant(row.created_at),
  updatedAt: dateToInstant(row.updated_at),
})

/** All budgets, or those of one organization, with everything that hangs on them. */
export const readBudgets = async (db: Db | pg.PoolClient, organizationId: OrganizationId | null): Promise<Budget[]> => {
  const budgets = await db.query<BudgetRow>(
    `select id, organization_id, limit_euros, enabled, created_at, updated_at from budget
      where $1::uuid is null or organization_id = $1 order by created_at, id`,
    [organizationId],
  )
  const alerts = await db.query<AlertRow>(
    `select id, budget_id, threshold, created_at, updated_at from budget_alert where budget_id = any ($1::uuid[]) order by threshold, id`,
    [budgets.rows.map(({ id }) => id)],
  )
  const notifications = await db.query<NotificationRow>(
    `select id, alert_id, type, recipients, created_at, updated_at from budget_notification where alert_id = any ($1::uuid[]) order by created_at, id`,
    [alerts.rows.map(({ id }) => id)],
  )
  return budgets.rows.map((budget) => ({
    ...dated(budget),
    id: budget.id,
    organizationId: budget.organization_id,
    limitEuros: budget.limit_euros,
    enabled: budget.enabled,
    alerts: alerts.rows
      .filter((alert) => alert.budget_id === budget.id)
      .map((alert) => ({
        ...dated(alert),
        id: alert.id,
        threshold: alert.threshold,
        notifications: notifications.rows
          .filter((notification) => notification.alert_id === alert.id)
          .map(({ id, type, recipients, ...row }) => ({ ...dated(row), id, type, recipients })),
      })),
  }))
}

const note = (
  client: pg.PoolClient,
  change: Change,
  action: 'created' | 'updated' | 'deleted',
  type: string,
  id: string,
  before: unknown,
  after: unknown,
): Promise<void> =>
  recordChange(client, {
    organizationId: change.organizationId,
    actor: change.actor,
    action,
    resourceType: type,
    resourceId: id,
    before,
    after,
  })

const budgetToAudit = (budget: Pick<Budget, 'limitEuros' | 'enabled'>) => ({ limitEuros: budget.limitEuros, enabled: budget.enabled })
const alertToAudit = (alert: Pick<Alert, 'threshold'>) => ({ threshold: alert.threshold })
// Addresses of webhooks are secrets of those who receive them.
const notificationToAudit = ({ type, recipients }: Recipients) => ({ type, recipients: recipients.length })

const unknown = (what: Extract<BudgetRefusal, { code: 'unknown' }>['what'], id: string): { ok: false; refusal: BudgetRefusal } =>
  no({ code: 'unknown', what, id })

const findBudget = async (client: pg.PoolClient, change: Change, id: BudgetId): Promise<Budget | undefined> =>
  (await readBudgets(client, change.organizationId)).find((budget) => budget.id === id)

export const createBudget = (
  db: Db,
  change: Change,
  given: { limitEuros: bigint; enabled: boolean },
): Promise<Outcome<Budget, BudgetRefusal>> =>
  transaction(db, async (client) => {
    const now = change.clock.now()
    const id = newId<'budget'>(now)
    const { rowCount } = await client.query(
      `insert into budget (id, organization_id, limit_euros, enabled, created_at, updated_at) values ($1, $2, $3, $4, $5, $5)
         on conflict (organization_id) do nothing`,
      [id, change.organizationId, given.limitEuros, given.enabled, instantToDate(now)],
    )
    const [budget] = await readBudgets(client, change.organizationId)
    if (budget === undefined) throw new Error('the budget that was just made is not there')
    if (rowCount !== 1) return no({ code: 'budget_exists', id: budget.id })
    await note(client, change, 'created', 'budget', id, null, budgetToAudit(budget))
    return yes(budget)
  })

export const updateBudget = (
  db: Db,
  change: Change,
  id: BudgetId,
  given: { limitEuros: bigint | undefined; enabled: boolean | undefined },
): Promise<Outcome<Budget, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findBudget(client, change, id)
    if (before === undefined) return unknown('Budget', id)
    await client.query(
      `update budget set limit_euros = coalesce($3, limit_euros), enabled = coalesce($4, enabled), updated_at = $5
        where id = $1 and organization_id = $2`,
      [id, change.organizationId, given.limitEuros ?? null, given.enabled ?? null, instantToDate(change.clock.now())],
    )
    const budget = await findBudget(client, change, id)
    if (budget === undefined) return unknown('Budget', id)
    await note(client, change, 'updated', 'budget', id, budgetToAudit(before), budgetToAudit(budget))
    return yes(budget)
  })

/** Its alerts go with it. What has fired stays written down, and what is on its way still arrives. */
export const deleteBudget = (db: Db, change: Change, id: BudgetId): Promise<Outcome<undefined, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findBudget(client, change, id)
    if (before === undefined) return unknown('Budget', id)
    await client.query('delete from budget where id = $1', [id])
    await note(client, change, 'deleted', 'budget', id, budgetToAudit(before), null)
    return yes(undefined)
  })

const findAlert = async (client: pg.PoolClient, change: Change, id: AlertId): Promise<Alert | undefined> =>
  (await readBudgets(client, change.organizationId)).flatMap((budget) => budget.alerts).find((alert) => alert.id === id)

export const createAlert = (
  db: Db,
  change: Change,
  given: { budgetId: BudgetId; threshold: number },
): Promise<Outcome<Alert, BudgetRefusal>> =>
  transaction(db, async (client) => {
    // The lock lets two requests at once not both be the tenth.
    const { rowCount } = await client.query('select 1 from budget where id = $1 and organization_id = $2 for update', [
      given.budgetId,
      change.organizationId,
    ])
    const budget = await findBudget(client, change, given.budgetId)
    if (rowCount !== 1 || budget === undefined) return unknown('Budget', given.budgetId)
    if (budget.alerts.length >= MAX_ALERTS) return no({ code: 'alerts_used_up' })
    const now = change.clock.now()
    const id = newId<'budget alert'>(now)
    await client.query('insert into budget_alert (id, budget_id, threshold, created_at, updated_at) values ($1, $2, $3, $4, $4)', [
      id,
      given.budgetId,
      given.threshold,
      instantToDate(now),
    ])
    await note(client, change, 'created', 'budget_alert', id, null, alertToAudit(given))
    return yes({ id, threshold: given.threshold, createdAt: now, updatedAt: now, notifications: [] })
  })

export const updateAlert = (
  db: Db,
  change: Change,
  id: AlertId,
  given: { threshold: number | undefined },
): Promise<Outcome<Alert, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findAlert(client, change, id)
    if (before === undefined) return unknown('BudgetAlert', id)
    await client.query(
      `update budget_alert set threshold = coalesce($3, threshold), updated_at = $4
        where id = $1 and budget_id in (select id from budget where organization_id = $2)`,
      [id, change.organizationId, given.threshold ?? null, instantToDate(change.clock.now())],
    )
    const alert = await findAlert(client, change, id)
    if (alert === undefined) return unknown('BudgetAlert', id)
    await note(client, change, 'updated', 'budget_alert', id, alertToAudit(before), alertToAudit(alert))
    return yes(alert)
  })

export const deleteAlert = (db: Db, change: Change, id: AlertId): Promise<Outcome<undefined, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findAlert(client, change, id)
    if (before === undefined) return unknown('BudgetAlert', id)
    await client.query('delete from budget_alert where id = $1', [id])
    await note(client, change, 'deleted', 'budget_alert', id, alertToAudit(before), null)
    return yes(undefined)
  })

export type Recipients = { readonly type: 'email' | 'webhook'; readonly recipients: readonly string[] }

const findNotification = async (client: pg.PoolClient, change: Change, id: NotificationId): Promise<Notification | undefined> =>
  (await readBudgets(client, change.organizationId))
    .flatMap((budget) => budget.alerts)
    .flatMap((alert) => alert.notifications)
    .find((notification) => notification.id === id)

export const createNotification = (
  db: Db,
  change: Change,
  given: Recipients & { alertId: AlertId },
): Promise<Outcome<Notification, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const alert = await findAlert(client, change, given.alertId)
    if (alert === undefined) return unknown('BudgetAlert', given.alertId)
    if (alert.notifications.length >= MAX_NOTIFICATIONS) return no({ code: 'alerts_used_up' })
    const now = change.clock.now()
    const id = newId<'budget notification'>(now)
    await client.query(
      'insert into budget_notification (id, alert_id, type, recipients, created_at, updated_at) values ($1, $2, $3, $4, $5, $5)',
      [id, given.alertId, given.type, given.recipients, instantToDate(now)],
    )
    await note(client, change, 'created', 'budget_notification', id, null, notificationToAudit(given))
    return yes({ id, type: given.type, recipients: given.recipients, createdAt: now, updatedAt: now })
  })

export const updateNotification = (
  db: Db,
  change: Change,
  id: NotificationId,
  given: Recipients | undefined,
): Promise<Outcome<Notification, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findNotification(client, change, id)
    if (before === undefined) return unknown('BudgetAlertNotification', id)
    const now = change.clock.now()
    const after: Notification = { ...before, ...given, updatedAt: now }
    await client.query('update budget_notification set type = $2, recipients = $3, updated_at = $4 where id = $1', [
      id,
      after.type,
      after.recipients,
      instantToDate(now),
    ])
    await note(client, change, 'updated', 'budget_notification', id, notificationToAudit(before), notificationToAudit(after))
    return yes(after)
  })

export const deleteNotification = (db: Db, change: Change, id: NotificationId): Promise<Outcome<undefined, BudgetRefusal>> =>
  transaction(db, async (client) => {
    await client.query('select 1 from budget where organization_id = $1 for update', [change.organizationId])
    const before = await findNotification(client, change, id)
    if (before === undefined) return unknown('BudgetAlertNotification', id)
    await client.query('delete from budget_notification where id = $1', [id])
    await note(client, change, 'deleted', 'budget_notification', id, notificationToAudit(before), null)
    return yes(undefined)
  })
