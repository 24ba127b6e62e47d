import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type MailServer, openMailServer } from '@parvis/testkit/mail-server'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { addOrganization, addPriced, handClock, use } from '../../test/billing-usage.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import type { Cents } from '../kit/money.ts'
import type { Outcome } from '../kit/outcome.ts'
import { openSecrets, type Secrets } from '../kit/secrets.ts'
import { alertRound, isReached } from './alerts.ts'
import {
  createAlert,
  createBudget,
  createNotification,
  deleteBudget,
  type NotificationId,
  type Recipients,
  updateBudget,
} from './budget.ts'
import { deliverRound, sign, signingSecret } from './messages.ts'
import type { Terms } from './terms.ts'

const log = openLog('silent')
const terms: Terms = {
  freePools: { tokens: 0n, audio: 0n },
  freePeriod: 'monthly',
  region: 'fr-par',
  taxName: 'VAT',
  taxBasisPoints: 2_000,
  sellerName: 'Parvis',
  graceHours: 24,
  dueDays: 10,
}

/** A webhook's receiver: what came, and what it answers. */
const openHook = async () => {
  const calls: { headers: IncomingHttpHeaders; body: string; path: string }[] = []
  const answers: number[] = []
  /** While there is a list, answers wait in it. */
  const held: { list?: (() => void)[] } = {}
  const server: Server = createServer((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => (body += chunk.toString()))
    request.on('end', () => {
      calls.push({ headers: request.headers, body, path: request.url ?? '' })
      const answer = () => void response.writeHead(answers.shift() ?? 204).end()
      if (held.list === undefined) answer()
      else held.list.push(answer)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}/hook`, calls, answers, held, close: () => new Promise((resolve) => server.close(resolve)) }
}

let database: TestDatabase
let dataDir: string
let secrets: Secrets
let priceId: string
let hook: Awaited<ReturnType<typeof openHook>>
let mail: MailServer

beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-alerts-'))
  secrets = await openSecrets({ dataDir, masterKey: undefined })
  priceId = await addPriced(database.db, 'model', { input: '1', output: '1' })
  hook = await openHook()
  mail = await openMailServer()
})
afterAll(async () => {
  await hook.close()
  await mail.close()
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})
beforeEach(async () => {
  hook.calls.length = 0
  hook.answers.length = 0
  mail.mails.length = 0
  await database.db.query('delete from budget')
  await database.db.query('delete from budget_message')
})

const must = <T>(outcome: Outcome<T, unknown>): T => {
  if (!outcome.ok) throw new Error(`refused: ${JSON.stringify(outcome.refusal)}`)
  return outcome.value
}

/** An organization with a budget of ten euros and an alert for each threshold. */
const withBudget = async (name: string, thresholds: readonly number[], to: Recipients) => {
  const clock = handClock('2026-05-10T12:00:00Z')
  const organizationId = await addOrganization(database.db, name, '2026-05-01T00:00:00Z')
  const change = { organizationId, actor: 'test', clock } as const
  const budget = must(await createBudget(database.db, change, { limitEuros: 10n, enabled: true }))
  const notifications: NotificationId[] = []
  for (const threshold of thresholds) {
    const alert = must(await createAlert(database.db, change, { budgetId: budget.id, threshold }))
    notifications.push(must(await createNotification(database.db, change, { ...to, alertId: alert.id })).id)
  }
  return { organizationId, clock, change, budget, notifications }
}

const spend = (organizationId: OrganizationId, euros: number, at = '2026-05-10T10:00:00Z') =>
  use(database.db, { organizationId, model: 'model', priceId, at, output: euros * 1_000_000 })
const look = (clock: ReturnType<typeof handClock>) => alertRound({ db: database.db, clock, log, terms })
const deliver = (
  clock: ReturnType<typeof handClock>,
  more: { fetchAllow?: readonly string[]; smtpUrl?: string | undefined } = {},
  db: Db = database.db,
) =>
  deliverRound(
    {
      db,
      clock,
      log,
      delivery: { secrets, smtpUrl: mail.url, mailFrom: 'bills@example.com', fetchAllow: ['127.0.0.0/8'], ...more },
    },
    new AbortController().signal,
  )
const fired = async (organizationId: OrganizationId) =>
  (
    await database.db.query<{ month: string; threshold: number }>(
      'select month, threshold from budget_firing where organization_id = $1 order by month, threshold',
      [organizationId],
    )
  ).rows.map((row) => `${row.month} ${row.threshold}`)
const messages = async () =>
  (await database.db.query('select attempt, sent_at, gave_up_at, last_error, due_at from budget_message order by id')).rows

test('a threshold is reached by what is charged with tax, to the cent', () => {
  expect(isReached(799n as Cents, 80, 10n)).toBe(false)
  expect(isReached(800n as Cents, 80, 10n)).toBe(true)
})

test('an alert fires once for its month and threshold, whoever looks and however often, and again next month', async () => {
  const { organizationId, clock } = await withBudget('once', [50, 80, 120], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 6) // 7.20 with tax
  await Promise.all(Array.from({ length: 5 }, () => look(clock)))
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50'])
  await spend(organizationId, 1) // 8.40
  await look(clock)
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50', '2026-05 80'])
  await deliver(clock)
  expect(hook.calls).toHaveLength(2)
  await spend(organizationId, 5, '2026-06-02T10:00:00Z')
  clock.set('2026-06-02T12:00:00Z')
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50', '2026-05 80', '2026-06 50'])
})

test('a budget that gets another limit, or is made anew, tells again; the same limit does not', async () => {
  const { organizationId, clock, change, budget } = await withBudget('raised', [80], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 7) // 8.40 with tax
  await look(clock)
  must(await updateBudget(database.db, change, budget.id, { enabled: undefined, limitEuros: 20n }))
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 80'])
  await spend(organizationId, 7) // 16.80
  await look(clock)
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 80', '2026-05 80'])
  must(await updateBudget(database.db, change, budget.id, { enabled: undefined, limitEuros: 10n }))
  await look(clock)
  expect(await fired(organizationId)).toHaveLength(2)
  must(await deleteBudget(database.db, change, budget.id))
  const anew = must(await createBudget(database.db, change, { limitEuros: 10n, enabled: true }))
  const alert = must(await createAlert(database.db, change, { budgetId: anew.id, threshold: 80 }))
  must(await createNotification(database.db, change, { type: 'webhook', recipients: [hook.url], alertId: alert.id }))
  await look(clock)
  await look(clock)
  expect(await fired(organizationId)).toHaveLength(3)
  await deliver(clock)
  expect(hook.calls).toHaveLength(3)
})

test('what is made or changed at the beginning of a month says nothing of the month before, although that is still open', async () => {
  const { organizationId, clock, change, budget } = await withBudget('before', [50, 80], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 6, '2026-05-31T10:00:00Z') // 7.20 with tax
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50'])
  clock.set('2026-06-01T00:30:00Z')
  // An alert of June, for what was reached in May.
  must(await createAlert(database.db, change, { budgetId: budget.id, threshold: 60 }))
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50'])
  // What was there in May still tells of what comes late.
  await spend(organizationId, 2, '2026-05-31T23:59:59Z')
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50', '2026-05 80'])
  // A limit of June, and a budget of June.
  must(await updateBudget(database.db, change, budget.id, { enabled: undefined, limitEuros: 5n }))
  await look(clock)
  must(await deleteBudget(database.db, change, budget.id))
  const anew = must(await createBudget(database.db, change, { limitEuros: 10n, enabled: true }))
  must(await createAlert(database.db, change, { budgetId: anew.id, threshold: 50 }))
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50', '2026-05 80'])
  await spend(organizationId, 5, '2026-06-01T00:10:00Z')
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50', '2026-05 80', '2026-06 50'])
})

test('a budget that is switched off, or gone, fires nothing', async () => {
  const { organizationId, clock, change, budget } = await withBudget('off', [50], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 9)
  must(await updateBudget(database.db, change, budget.id, { enabled: false, limitEuros: undefined }))
  await look(clock)
  must(await updateBudget(database.db, change, budget.id, { enabled: true, limitEuros: 10n }))
  must(await deleteBudget(database.db, change, budget.id))
  await look(clock)
  expect(await fired(organizationId)).toEqual([])
})

test('what came in the last hour of a month still fires its alert while the month is open', async () => {
  const { organizationId, clock } = await withBudget('midnight', [50], { type: 'webhook', recipients: [hook.url] })
  clock.set('2026-06-01T00:30:00Z')
  await spend(organizationId, 5, '2026-05-31T23:59:59Z')
  await look(clock)
  expect(await fired(organizationId)).toEqual(['2026-05 50'])
})

test('a webhook gets the body of the contract, signed so that its receiver can check it', async () => {
  const { organizationId, clock, notifications } = await withBudget('signed', [80], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  await deliver(clock)
  const [call] = hook.calls
  expect(JSON.parse(call?.body ?? '')).toEqual({ invoice_start_date: '2026-05-01T00:00:00.000Z', threshold: 80 })
  expect(call?.headers['content-type']).toBe('application/json')
  const timestamp = String(call?.headers['x-parvis-timestamp'])
  expect(Number(timestamp)).toBe(clock.now() / 1000)
  expect(call?.headers['x-parvis-signature']).toBe(
    sign(signingSecret(secrets, notifications[0] as NotificationId), timestamp, call?.body ?? ''),
  )
  expect(sign('another secret', timestamp, call?.body ?? '')).not.toBe(call?.headers['x-parvis-signature'])
})

test('a webhook that fails is tried again after growing pauses, with the same delivery id, and given up in the end', async () => {
  const { organizationId, clock } = await withBudget('retried', [80], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  hook.answers.push(500, 302, 204)
  await deliver(clock)
  await deliver(clock)
  expect(await messages()).toMatchObject([{ attempt: 1, sent_at: null, last_error: 'the webhook answered 500' }])
  clock.set('2026-05-10T12:01:00Z')
  await deliver(clock)
  expect(await messages()).toMatchObject([{ attempt: 2, last_error: 'the webhook answered 302' }])
  clock.set('2026-05-10T12:02:59Z')
  await deliver(clock)
  expect(hook.calls).toHaveLength(2)
  clock.set('2026-05-10T12:03:00Z')
  await deliver(clock)
  await deliver(clock)
  expect(hook.calls).toHaveLength(3)
  expect(await messages()).toMatchObject([{ attempt: 3, sent_at: new Date('2026-05-10T12:03:00Z'), last_error: null }])
  expect(new Set(hook.calls.map(({ headers }) => headers['x-parvis-delivery'])).size).toBe(1)

  await database.db.query('update budget_message set sent_at = null, attempt = 13')
  hook.answers.push(500)
  await deliver(clock)
  expect(await messages()).toMatchObject([{ attempt: 14, gave_up_at: new Date('2026-05-10T12:03:00Z') }])
  clock.set('2026-06-10T12:03:00Z')
  await deliver(clock)
  expect(hook.calls).toHaveLength(4)
})

test('a webhook inside our network is not called', async () => {
  const { organizationId, clock } = await withBudget('inside', [80], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  await deliver(clock, { fetchAllow: [] })
  expect(hook.calls).toEqual([])
  expect(await messages()).toMatchObject([{ attempt: 1, sent_at: null, last_error: 'its address is not on the public internet' }])
})

test('an e-mail goes to every recipient, says how much of what, and is tried again when it is refused', async () => {
  const to = ['one@example.com', 'two@example.com']
  const { organizationId, clock } = await withBudget('mailed', [80], { type: 'email', recipients: to })
  await spend(organizationId, 8)
  await look(clock)
  mail.refusals.push('451 later')
  await deliver(clock)
  expect(mail.mails).toHaveLength(1)
  clock.set('2026-05-10T12:01:00Z')
  await deliver(clock)
  expect(mail.mails).toHaveLength(2)
  expect(new Set(mail.mails.map((text) => /^To: (.*)$/m.exec(text)?.[1]))).toEqual(new Set(to))
  expect(mail.mails[0]).toContain('From: bills@example.com')
  expect(mail.mails[0]).toMatch(/^Subject: 80 % of the monthly budget is used$/m)
  expect(mail.mails[0]).toContain('Charged so far, with tax: 9.60 EUR')
  expect(mail.mails[0]).toContain('Budget: 10.00 EUR')
})

test('without a mail server an e-mail waits and says what it waits for', async () => {
  const { organizationId, clock } = await withBudget('waiting', [80], { type: 'email', recipients: ['one@example.com'] })
  await spend(organizationId, 8)
  await look(clock)
  await deliver(clock, { smtpUrl: undefined })
  expect(await messages()).toMatchObject([{ attempt: 1, sent_at: null, last_error: 'no SMTP server is set: PARVIS_SMTP_URL' }])
})

test('several processes that deliver at once send each message once', async () => {
  const { organizationId, clock } = await withBudget('crowd', [10, 20, 30, 40, 50], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  await Promise.all(Array.from({ length: 6 }, () => deliver(clock)))
  expect(hook.calls).toHaveLength(5)
  expect(new Set(hook.calls.map(({ headers }) => headers['x-parvis-delivery'])).size).toBe(5)
})

test('a lease from before the clock was set back holds no message up', async () => {
  const { organizationId, clock } = await withBudget('set back', [10], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  const leasedFor = (time: string) => database.db.query('update budget_message set leased_until = now() + $1::interval', [time])
  await leasedFor('100 seconds')
  await deliver(clock)
  expect(hook.calls).toEqual([])
  await leasedFor('2 hours')
  await deliver(clock)
  expect(hook.calls).toHaveLength(1)
})

test('a lease is respected by whoever began before it was written', async () => {
  const { organizationId, clock } = await withBudget('early', [10], { type: 'webhook', recipients: [hook.url] })
  await spend(organizationId, 8)
  await look(clock)
  const early = await database.db.connect()
  try {
    await early.query('begin')
    await early.query('select now()')
    const held: (() => void)[] = []
    hook.held.list = held
    const first = deliver(clock)
    await until('the message is on its way', () => held.length === 1)
    delete hook.held.list
    await deliver(clock, {}, early as unknown as Db)
    await early.query('rollback')
    held[0]?.()
    await first
    expect(hook.calls).toHaveLength(1)
  } finally {
    delete hook.held.list
    early.release()
  }
})

test('webhooks that hang hold up no other organization, whose turn comes before the second of theirs', async () => {
  const hanging = await openHook()
  hanging.held.list = []
  try {
    for (let at = 0; at < 8; at++) {
      const to = { type: 'webhook', recipients: [`${hanging.url}/${at}`] } as const
      const { organizationId, clock } = await withBudget(`hangs ${at}`, [10, 20], to)
      await spend(organizationId, 8)
      await look(clock)
      await database.db.query('update budget_message set due_at = $1', ['2026-05-10T12:00:00Z'])
    }
    const { organizationId, clock } = await withBudget('waits', [10, 20], { type: 'webhook', recipients: [hook.url] })
    await spend(organizationId, 8)
    clock.set('2026-05-10T12:00:01Z')
    await look(clock)
    clock.set('2026-05-10T12:00:02Z')

    const delivered = deliver(clock)
    await until('as many as may are on their way', () => hanging.calls.length === 8)
    // One of each: none has two on its way.
    expect(new Set(hanging.calls.map(({ path }) => path)).size).toBe(8)
    expect(hook.calls).toEqual([])
    hanging.held.list.shift()?.()
    await until('the one behind them had its turn', () => hook.calls.length >= 1)
    const answer = hanging.held.list
    delete hanging.held.list
    for (const each of answer) each()
    await delivered
    expect(hook.calls).toHaveLength(2)
    expect(hanging.calls).toHaveLength(16)
    expect(new Set(hanging.calls.map(({ headers }) => headers['x-parvis-delivery'])).size).toBe(16)
  } finally {
    delete hanging.held.list
    await hanging.close()
  }
})

test('while the only webhook of one organization hangs, the alert of another arrives', async () => {
  const hanging = await openHook()
  hanging.held.list = []
  try {
    const hangs = await withBudget('hangs', [10, 20, 30], { type: 'webhook', recipients: [hanging.url] })
    await spend(hangs.organizationId, 8)
    await look(hangs.clock)
    const { organizationId, clock } = await withBudget('arrives', [10], { type: 'webhook', recipients: [hook.url] })
    await spend(organizationId, 8)
    clock.set('2026-05-10T12:00:01Z')
    await look(clock)
    const delivered = deliver(clock)
    await until('it arrives', () => hook.calls.length === 1)
    expect(hanging.calls).toHaveLength(1)
    const answer = hanging.held.list
    delete hanging.held.list
    for (const each of answer) each()
    await delivered
    expect(hanging.calls).toHaveLength(3)
  } finally {
    delete hanging.held.list
    await hanging.close()
  }
})
