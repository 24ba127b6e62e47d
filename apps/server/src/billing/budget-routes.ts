import { z } from 'zod'
import type { Clock } from '../kit/clock.ts'
import { instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, invalid } from '../kit/denial.ts'
import { pageOf } from '../kit/listing.ts'
import { type Actor, type Manage, type Needs, pageQuery } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import {
  type Alert,
  type AlertId,
  type Budget,
  type BudgetId,
  type BudgetRefusal,
  createAlert,
  createBudget,
  createNotification,
  deleteAlert,
  deleteBudget,
  deleteNotification,
  MAX_ALERTS,
  type Notification,
  type NotificationId,
  type Recipients,
  readBudgets,
  updateAlert,
  updateBudget,
  updateNotification,
} from './budget.ts'
import { MoneyJson, ONE_PAGE } from './json.ts'
import { signingSecret } from './messages.ts'

// Billing v2: budgets, their alerts, whom these tell (control-plane.md 7.5).

const NotificationJson = z.object({
  id: z.string(),
  created_at: z.string(),
  updated_at: z.string(),
  type: z.enum(['email', 'webhook']),
  recipients: z.array(z.string()),
  /** Ours: what the webhook's signature is made with. Shown when the notification is made or changed, not in lists. */
  signing_secret: z.string().optional(),
})

const AlertJson = z.object({
  id: z.string(),
  created_at: z.string(),
  updated_at: z.string(),
  threshold: z.int(),
  notifications: z.array(NotificationJson),
})

const BudgetJson = z.object({
  id: z.string(),
  created_at: z.string(),
  updated_at: z.string(),
  organization_id: z.string(),
  enabled: z.boolean(),
  consumption_limit: MoneyJson,
  alerts: z.array(AlertJson),
})

const dates = (thing: { createdAt: Budget['createdAt']; updatedAt: Budget['updatedAt'] }) => ({
  created_at: instantToDate(thing.createdAt).toISOString(),
  updated_at: instantToDate(thing.updatedAt).toISOString(),
})

const notificationToJson = (notification: Notification): z.infer<typeof NotificationJson> => ({
  id: notification.id,
  ...dates(notification),
  type: notification.type,
  recipients: [...notification.recipients],
})

const alertToJson = (alert: Alert): z.infer<typeof AlertJson> => ({
  id: alert.id,
  ...dates(alert),
  threshold: alert.threshold,
  notifications: alert.notifications.map(notificationToJson),
})

const budgetToJson = (budget: Budget): z.infer<typeof BudgetJson> => ({
  id: budget.id,
  ...dates(budget),
  organization_id: budget.organizationId,
  enabled: budget.enabled,
  consumption_limit: { currency_code: 'EUR', units: Number(budget.limitEuros), nanos: 0 },
  alerts: budget.alerts.map(alertToJson),
})

const toDenial = (refusal: BudgetRefusal): Denial => {
  switch (refusal.code) {
    case 'budget_exists':
      return {
        type: 'already_exists',
        resource: 'Budget',
        resource_id: refusal.id,
        help_message: 'an organization has one budget; change it, or delete it first',
      }
    case 'alerts_used_up':
      return { type: 'quotas_exceeded', details: [{ resource: 'BudgetAlerts', quota: MAX_ALERTS, current: MAX_ALERTS }] }
    case 'unknown':
      // The recorded sentence.
      return { type: 'not_found', resource: refusal.what, resource_id: refusal.id, message: `${refusal.what} ${refusal.id} not found` }
  }
}

const spoken = <T, A>(outcome: Outcome<T, BudgetRefusal>, say: (value: T) => A): Outcome<A, Denial> =>
  outcome.ok ? yes(say(outcome.value)) : no(toDenial(outcome.refusal))

const MAX_LIMIT_EUROS = 1_000_000_000
const MAX_RECIPIENTS = 20
const MAX_URL_CHARACTERS = 2_048

const Limit = z.int().min(1).max(MAX_LIMIT_EUROS)
const Threshold = z.int().min(1).max(1_000)
const id = <T extends string>() => z.uuid().transform((text) => text.toLowerCase() as T)

const RecipientLists = z.looseObject({
  email_addresses: z.array(z.email()).max(MAX_RECIPIENTS).optional(),
  sms_phone_numbers: z.array(z.string()).max(MAX_RECIPIENTS).optional(),
  webhook_urls: z
    .array(
      z
        .string()
        .max(MAX_URL_CHARACTERS)
        .refine((url) => URL.canParse(url) && /^https?:$/.test(new URL(url).protocol), { error: 'an http:// or https:// address' }),
    )
    .max(MAX_RECIPIENTS)
    .optional(),
})

/** At most one of the three lists has something in it (control-plane.md 2.2). */
const recipientsOf = (lists: z.infer<typeof RecipientLists>): Outcome<Recipients | undefined, Denial> => {
  const emails = lists.email_addresses ?? []
  const webhooks = lists.webhook_urls ?? []
  if ((lists.sms_phone_numbers ?? []).length > 0) {
    return no(invalid('sms_phone_numbers', 'constraint', 'no text messages are sent from here: give email_addresses or webhook_urls'))
  }
  if (emails.length > 0 && webhooks.length > 0)
    return no(invalid('webhook_urls', 'constraint', 'give one of email_addresses, webhook_urls'))
  if (emails.length > 0) return yes({ type: 'email', recipients: [...new Set(emails)] })
  if (webhooks.length > 0) return yes({ type: 'webhook', recipients: [...new Set(webhooks)] })
  return yes(undefined)
}

export const budgetRoutes = (manage: Manage, room: { db: Db; clock: Clock; secrets: Secrets }): void => {
  const { db, clock } = room
  const read: Needs = { resource: 'budget', action: 'read', scope: 'organization' }
  const write: Needs = { resource: 'budget', action: 'write', scope: 'organization' }
  const by = (actor: Actor) => ({ organizationId: actor.organizationId, actor, clock })
  /** Clients send their organization, or nothing. Another one is refused like one that is not there. */
  const isOwn = (actor: Actor, given: string | undefined): boolean =>
    given === undefined || given === '' || given.toLowerCase() === actor.organizationId
  const withSecret = (notification: Notification): z.infer<typeof NotificationJson> => ({
    ...notificationToJson(notification),
    ...(notification.type === 'webhook' ? { signing_secret: signingSecret(room.secrets, notification.id) } : {}),
  })

  const BudgetParams = z.object({ budget_id: id<BudgetId>() })
  const AlertParams = z.object({ budget_alert_id: id<AlertId>() })
  const NotificationParams = z.object({ budget_alert_notification_id: id<NotificationId>() })

  manage({
    method: 'GET',
    path: '/billing/v2/budgets',
    summary: 'List the budget of an organization with its alerts.',
    needs: read,
    query: pageQuery({ max: ONE_PAGE, fallback: ONE_PAGE, orders: ['created_at_desc', 'created_at_asc'], clamp: true }).extend({
      organization_id: z.union([z.uuid(), z.literal('')]).optional(),
    }),
    answer: z.object({ budgets: z.array(BudgetJson), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(read))
      const budgets = await readBudgets(db, actor.organizationId)
      return yes({ budgets: pageOf(budgets, query).map(budgetToJson), total_count: budgets.length })
    },
  })

  manage({
    method: 'POST',
    path: '/billing/v2/budgets',
    summary: 'Set the monthly budget of an organization.',
    needs: write,
    body: z.looseObject({ organization_id: z.string().optional(), consumption_limit: Limit, enabled: z.boolean().default(false) }),
    answer: BudgetJson,
    handle: async ({ body, actor }) => {
      if (!isOwn(actor, body.organization_id)) return no(forbidden(write))
      return spoken(await createBudget(db, by(actor), { limitEuros: BigInt(body.consumption_limit), enabled: body.enabled }), budgetToJson)
    },
  })

  manage({
    method: 'GET',
    path: '/billing/v2/budgets/:budget_id',
    summary: 'Read a budget.',
    needs: read,
    params: BudgetParams,
    answer: BudgetJson,
    handle: async ({ params, actor }) => {
      const budget = (await readBudgets(db, actor.organizationId)).find((each) => each.id === params.budget_id)
      return budget === undefined ? no(toDenial({ code: 'unknown', what: 'Budget', id: params.budget_id })) : yes(budgetToJson(budget))
    },
  })

  manage({
    method: 'PATCH',
    path: '/billing/v2/budgets/:budget_id',
    summary: 'Change the amount of a budget, or switch it on or off.',
    needs: write,
    params: BudgetParams,
    body: z.looseObject({ consumption_limit: Limit.optional(), enabled: z.boolean().optional() }),
    answer: BudgetJson,
    handle: async ({ params, body, actor }) => {
      const limitEuros = body.consumption_limit === undefined ? undefined : BigInt(body.consumption_limit)
      return spoken(await updateBudget(db, by(actor), params.budget_id, { limitEuros, enabled: body.enabled }), budgetToJson)
    },
  })

  manage({
    method: 'DELETE',
    path: '/billing/v2/budgets/:budget_id',
    summary: 'Delete a budget and its alerts.',
    needs: write,
    params: BudgetParams,
    handle: async ({ params, actor }) => spoken(await deleteBudget(db, by(actor), params.budget_id), () => undefined),
  })

  manage({
    method: 'POST',
    path: '/billing/v2/budget-alerts',
    summary: 'Add an alert at a percentage of the budget.',
    needs: write,
    body: z.looseObject({ budget_id: id<BudgetId>(), threshold: Threshold }),
    answer: AlertJson,
    handle: async ({ body, actor }) =>
      spoken(await createAlert(db, by(actor), { budgetId: body.budget_id, threshold: body.threshold }), alertToJson),
  })

  manage({
    method: 'PATCH',
    path: '/billing/v2/budget-alerts/:budget_alert_id',
    summary: 'Change the percentage of an alert.',
    needs: write,
    params: AlertParams,
    body: z.looseObject({ threshold: Threshold.optional() }),
    answer: AlertJson,
    handle: async ({ params, body, actor }) =>
      spoken(await updateAlert(db, by(actor), params.budget_alert_id, { threshold: body.threshold }), alertToJson),
  })

  manage({
    method: 'DELETE',
    path: '/billing/v2/budget-alerts/:budget_alert_id',
    summary: 'Delete an alert.',
    needs: write,
    params: AlertParams,
    handle: async ({ params, actor }) => spoken(await deleteAlert(db, by(actor), params.budget_alert_id), () => undefined),
  })

  manage({
    method: 'POST',
    path: '/billing/v2/budget-alert-notifications',
    summary: 'Say whom an alert tells: e-mail addresses or webhooks.',
    needs: write,
    body: RecipientLists.extend({ budget_alert_id: id<AlertId>() }),
    answer: NotificationJson,
    handle: async ({ body, actor }) => {
      const recipients = recipientsOf(body)
      if (!recipients.ok) return recipients
      if (recipients.value === undefined) return no(invalid('email_addresses', 'required', 'give one of email_addresses, webhook_urls'))
      return spoken(await createNotification(db, by(actor), { ...recipients.value, alertId: body.budget_alert_id }), withSecret)
    },
  })

  manage({
    method: 'PATCH',
    path: '/billing/v2/budget-alert-notifications/:budget_alert_notification_id',
    summary: 'Change whom an alert tells.',
    needs: write,
    params: NotificationParams,
    body: RecipientLists,
    answer: NotificationJson,
    handle: async ({ params, body, actor }) => {
      const recipients = recipientsOf(body)
      if (!recipients.ok) return recipients
      return spoken(await updateNotification(db, by(actor), params.budget_alert_notification_id, recipients.value), withSecret)
    },
  })

  manage({
    method: 'DELETE',
    path: '/billing/v2/budget-alert-notifications/:budget_alert_notification_id',
    summary: 'Stop telling them.',
    needs: write,
    params: NotificationParams,
    handle: async ({ params, actor }) =>
      spoken(await deleteNotification(db, by(actor), params.budget_alert_notification_id), () => undefined),
  })
}
