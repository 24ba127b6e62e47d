import { createHmac } from 'node:crypto'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { guardedFetch } from '../kit/guarded-fetch.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { openMail } from '../kit/mail.ts'
import { type Cents, formatCents } from '../kit/money.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { NotificationId } from './budget.ts'
import { isFree } from './lease.ts'
import { type Month, monthStart } from './month.ts'

export type Delivery = {
  readonly secrets: Secrets
  /** `smtp://user:password@host:587`; without one no e-mail leaves the house. */
  readonly smtpUrl: string | undefined
  readonly mailFrom: string
  /** Ranges that webhooks may reach although they are not the public internet. */
  readonly fetchAllow: readonly string[]
}

const SEND_LIMIT_MS = 15_000
const WEBHOOK_MAX_BYTES = 64 * 1024
const LEASE_SECONDS = 120
/** A minute, then doubled up to six hours: the last of fourteen tries comes a day and a half after the first. */
const FIRST_PAUSE_MS = 60_000
const LONGEST_PAUSE_MS = 6 * 3_600_000
const MAX_ATTEMPTS = 14
const MOST_AT_ONCE = 8

type Message = {
  readonly id: string
  readonly notification_id: NotificationId
  readonly type: 'email' | 'webhook'
  readonly recipient: string
  readonly attempt: number
  readonly month: Month
  readonly threshold: number
  readonly cents: Cents
  readonly limit_euros: bigint
  readonly organization_id: OrganizationId
  readonly name: string
}

// `skip locked` and the lease: several processes send side by side, and a message whose sender died is sent by another.
const CLAIM = `
  with claimed as (
    update budget_message
       set leased_until = now() + make_interval(secs => ${LEASE_SECONDS}), attempt = attempt + 1
     where id = (
       select budget_message.id from budget_message join budget_firing on budget_firing.id = firing_id
        where sent_at is null and gave_up_at is null and due_at <= $1 and ${isFree(LEASE_SECONDS)}
          and organization_id <> all ($2)
        order by due_at, budget_message.id
        limit 1
          for update of budget_message skip locked)
    returning id, firing_id, notification_id, type, recipient, attempt)
  select claimed.id, notification_id, type, recipient, attempt, month, threshold, cents, limit_euros, organization_id, organization.name
    from claimed
    join budget_firing on budget_firing.id = firing_id
    join organization on organization.id = organization_id`

/**
 * What a webhook is signed with. It is derived from the master key, so it is kept nowhere; who made the notification is shown it.
 * A key's hash is made of a UUID, and this is none, so neither can stand for the other.
 */
export const signingSecret = (secrets: Secrets, notificationId: NotificationId): string =>
  secrets.hashKey(`budget webhook ${notificationId}`).toString('hex')

export const sign = (secret: string, timestamp: string, body: string): string =>
  `sha256=${createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex')}`

const post = async (message: Message, now: Instant, delivery: Delivery, signal: AbortSignal): Promise<string | undefined> => {
  const body = JSON.stringify({ invoice_start_date: instantToDate(monthStart(message.month)).toISOString(), threshold: message.threshold })
  const timestamp = String(Math.floor(now / 1000))
  const fetched = await guardedFetch(message.recipient, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      // The same for every try, so that a receiver can ignore what it has had.
      'x-parvis-delivery': message.id,
      'x-parvis-timestamp': timestamp,
      'x-parvis-signature': sign(signingSecret(delivery.secrets, message.notification_id), timestamp, body),
    },
    body,
    maxBytes: WEBHOOK_MAX_BYTES,
    timeMs: SEND_LIMIT_MS,
    maxRedirects: 0,
    signal,
    allow: delivery.fetchAllow,
  })
  if (!fetched.ok) return fetched.reason
  return fetched.status >= 200 && fetched.status < 300 ? undefined : `the webhook answered ${fetched.status}`
}

const mail = (message: Message, delivery: Delivery): Promise<string | undefined> =>
  openMail(delivery)({
    id: message.id,
    to: message.recipient,
    subject: `${message.threshold} % of the monthly budget is used`,
    lines: [
      `${message.name} has reached ${message.threshold} % of its budget for ${message.month}.`,
      '',
      `Charged so far, with tax: ${formatCents(message.cents)} EUR`,
      `Budget: ${message.limit_euros}.00 EUR`,
      '',
      'Nothing is blocked by a budget. This alert comes once a month, and again when the budget is changed.',
    ],
  })

const settle = async (db: Db, now: Instant, message: Message, failure: string | undefined): Promise<void> => {
  if (failure === undefined) {
    await db.query('update budget_message set sent_at = $2, leased_until = null, last_error = null where id = $1', [
      message.id,
      instantToDate(now),
    ])
    return
  }
  const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (message.attempt - 1))
  await db.query(
    `update budget_message set leased_until = null, due_at = $2, last_error = $3, gave_up_at = case when $4 then $5::timestamptz end where id = $1`,
    [message.id, instantToDate((now + pauseMs) as Instant), failure, message.attempt >= MAX_ATTEMPTS, instantToDate(now)],
  )
}

type Parts = { readonly db: Db; readonly clock: Clock; readonly log: Logger; readonly delivery: Delivery }

const send = async ({ db, clock, log, delivery }: Parts, message: Message, signal: AbortSignal): Promise<void> => {
  const failure = message.type === 'webhook' ? await post(message, clock.now(), delivery, signal) : await mail(message, delivery)
  if (signal.aborted && failure !== undefined) return // The stop broke it off; the lease runs out and it is sent again.
  if (failure !== undefined) {
    const facts = { messageId: message.id, type: message.type, attempt: message.attempt, reason: failure }
    if (message.attempt >= MAX_ATTEMPTS) log.error(facts, 'a budget alert could not be delivered and is given up')
    else log.warn(facts, 'a budget alert could not be delivered; it is tried again')
  }
  await settle(db, clock.now(), message, failure)
}

/**
 * Sends what is due, a few at once; what fails comes again later. An organization has one on its way at a time, and its next one when
 * every other has had its turn, so that receivers that hang hold up nobody else's alerts.
 */
export const deliverRound = async (parts: Parts, signal: AbortSignal): Promise<void> => {
  const { db, clock } = parts
  const onTheirWay = new Map<OrganizationId, Promise<void>>()
  const hadTurn = new Set<OrganizationId>()
  // One claim after the other: the next one knows whose this one was.
  const claim = async (): Promise<Message | undefined> =>
    (await db.query<Message>(CLAIM, [instantToDate(clock.now()), [...hadTurn]])).rows[0]

  try {
    while (!signal.aborted) {
      const message = onTheirWay.size < MOST_AT_ONCE ? await claim() : undefined
      if (message !== undefined) {
        const whose = message.organization_id
        hadTurn.add(whose)
        // One that fails stays in there, so that the race below throws what it threw.
        const sending = send(parts, message, signal).then(() => void onTheirWay.delete(whose))
        sending.catch(() => undefined)
        onTheirWay.set(whose, sending)
        continue
      }
      const waiting = [...hadTurn].filter((whose) => !onTheirWay.has(whose))
      if (onTheirWay.size < MOST_AT_ONCE && waiting.length > 0) for (const whose of waiting) hadTurn.delete(whose)
      else if (onTheirWay.size > 0) await Promise.race(onTheirWay.values())
      else return
    }
  } finally {
    await Promise.allSettled(onTheirWay.values())
  }
}
