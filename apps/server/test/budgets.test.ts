import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Billing v2 as Terraform and the Go client speak it (control-plane.md 7.5).

let database: TestDatabase
let house: TestHouse

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
})
afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

type Thing = { id: string; [field: string]: unknown }

const call = async (method: string, path: string, body?: unknown) => {
  const answer = await house.call(`/billing/v2/${path}`, {
    method,
    key: null,
    headers: { 'x-auth-token': house.secretKey },
    ...(body === undefined ? {} : { body }),
  })
  return {
    status: answer.status,
    type: answer.headers.get('content-type'),
    body: answer.text === '' ? undefined : (answer.json() as Thing),
  }
}

test('the life of a budget: made, read, listed, changed, alerted, and gone with all that hangs on it', async () => {
  const organization_id = house.owner.organizationId
  const made = await call('POST', 'budgets', { organization_id, consumption_limit: 10_000, enabled: false })
  expect(made).toMatchObject({
    status: 200,
    type: 'application/json',
    body: { organization_id, enabled: false, consumption_limit: { units: 10_000, nanos: 0 }, alerts: [] },
  })
  const budget = `budgets/${made.body?.id}`
  expect((await call('GET', budget)).body).toEqual(made.body)

  const twice = await call('POST', 'budgets', { consumption_limit: 5 })
  expect(twice).toMatchObject({ status: 409, body: { type: 'already_exists', resource: 'Budget', resource_id: made.body?.id } })

  expect((await call('PATCH', budget, { consumption_limit: 500, enabled: null })).body).toMatchObject({
    enabled: false,
    consumption_limit: { units: 500 },
  })
  expect((await call('PATCH', budget, { enabled: true })).body).toMatchObject({ enabled: true, consumption_limit: { units: 500 } })

  const alert = await call('POST', 'budget-alerts', { budget_id: made.body?.id, threshold: 80 })
  expect(alert).toMatchObject({ status: 200, body: { threshold: 80, notifications: [] } })
  expect((await call('PATCH', `budget-alerts/${alert.body?.id}`, { threshold: 90 })).body).toMatchObject({
    id: alert.body?.id,
    threshold: 90,
  })

  const notification = await call('POST', 'budget-alert-notifications', {
    budget_alert_id: alert.body?.id,
    email_addresses: ['alerts@example.com'],
    sms_phone_numbers: null,
    webhook_urls: [],
  })
  expect(notification).toMatchObject({ status: 200, body: { type: 'email', recipients: ['alerts@example.com'] } })
  const changed = await call('PATCH', `budget-alert-notifications/${notification.body?.id}`, { webhook_urls: ['https://example.com/hook'] })
  expect(changed.body).toMatchObject({
    type: 'webhook',
    recipients: ['https://example.com/hook'],
    signing_secret: expect.stringMatching(/^[0-9a-f]{64}$/) as string,
  })

  // Terraform lists without any query, then by organization, and searches inside.
  for (const query of ['', `?organization_id=${organization_id}`, '?organization_id=&order_by=created_at_desc']) {
    const listed = await call('GET', `budgets${query}`)
    expect(listed.body).toMatchObject({
      total_count: 1,
      budgets: [{ id: made.body?.id, alerts: [{ threshold: 90, notifications: [{ id: notification.body?.id, type: 'webhook' }] }] }],
    })
    expect(JSON.stringify(listed.body)).not.toContain('signing_secret')
  }
  expect((await call('GET', 'budgets?page=2&page_size=1')).body).toMatchObject({ total_count: 1, budgets: [] })

  expect((await call('DELETE', `budget-alert-notifications/${notification.body?.id}`)).status).toBe(204)
  expect((await call('DELETE', `budget-alert-notifications/${notification.body?.id}`)).status).toBe(404)
  expect((await call('DELETE', budget)).status).toBe(204)
  expect(await call('GET', budget)).toMatchObject({
    status: 404,
    body: { type: 'not_found', resource: 'Budget', resource_id: made.body?.id, message: `Budget ${made.body?.id} not found` },
  })
  expect((await call('PATCH', `budget-alerts/${alert.body?.id}`, { threshold: 10 })).status).toBe(404)
  const { rows } = await database.db.query<{ action: string }>(
    `select action from audit_entry where resource_type like 'budget%' order by at`,
  )
  expect(rows.map((row) => row.action)).toEqual([
    'created',
    'updated',
    'updated',
    'created',
    'updated',
    'created',
    'updated',
    'deleted',
    'deleted',
  ])
})

test('an eleventh alert is refused, also when eleven come at once', async () => {
  const made = await call('POST', 'budgets', { consumption_limit: 10, enabled: true })
  const answers = await Promise.all(
    Array.from({ length: 11 }, (_, index) => call('POST', 'budget-alerts', { budget_id: made.body?.id, threshold: 10 + index })),
  )
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(10)
  expect(answers.find(({ status }) => status !== 200)).toMatchObject({
    status: 403,
    body: { type: 'quotas_exceeded', details: [{ quota: 10, current: 10 }] },
  })
  await call('DELETE', `budgets/${made.body?.id}`)
})

test('what belongs to another organization is answered like what is not there', async () => {
  const [other, theirs, alert] = [randomUUID(), randomUUID(), randomUUID()]
  await database.db.query(`insert into organization (id, name) values ($1, 'other')`, [other])
  await database.db.query(
    'insert into budget (id, organization_id, limit_euros, enabled, created_at, updated_at) values ($1, $2, 5, true, now(), now())',
    [theirs, other],
  )
  await database.db.query('insert into budget_alert (id, budget_id, threshold, created_at, updated_at) values ($1, $2, 50, now(), now())', [
    alert,
    theirs,
  ])
  const nobody = randomUUID()
  for (const [method, path, body] of [
    ['GET', 'budgets', undefined],
    ['PATCH', 'budgets', { enabled: false }],
    ['DELETE', 'budgets', undefined],
    ['PATCH', 'budget-alerts', { threshold: 1 }],
    ['DELETE', 'budget-alerts', undefined],
  ] as const) {
    const id = path === 'budgets' ? theirs : alert
    const [real, made] = [await call(method, `${path}/${id}`, body), await call(method, `${path}/${nobody}`, body)]
    expect(real.status).toBe(404)
    expect(JSON.stringify(real.body).replaceAll(id, 'X')).toBe(JSON.stringify(made.body).replaceAll(nobody, 'X'))
  }
  expect(await call('POST', 'budget-alerts', { budget_id: theirs, threshold: 5 })).toMatchObject({
    status: 404,
    body: { resource: 'Budget' },
  })
  expect(await call('POST', 'budget-alert-notifications', { budget_alert_id: alert, email_addresses: ['a@example.com'] })).toMatchObject({
    status: 404,
  })
  expect(await call('GET', `budgets?organization_id=${other}`)).toMatchObject({ status: 403, body: { type: 'permissions_denied' } })
  expect(await call('POST', 'budgets', { organization_id: other, consumption_limit: 1 })).toMatchObject({ status: 403 })
  expect((await database.db.query('select limit_euros, enabled from budget where id = $1', [theirs])).rows).toEqual([
    { limit_euros: 5n, enabled: true },
  ])
})

test.each([
  ['budgets', {}, 'consumption_limit', 'required'],
  ['budgets', { consumption_limit: 0 }, 'consumption_limit', 'constraint'],
  ['budgets', { consumption_limit: 1.5 }, 'consumption_limit', 'format'],
  ['budgets', { consumption_limit: '10' }, 'consumption_limit', 'format'],
  ['budget-alerts', { threshold: 10 }, 'budget_id', 'required'],
  ['budget-alerts', { budget_id: 'x', threshold: 10 }, 'budget_id', 'format'],
  ['budget-alerts', { budget_id: randomUUID(), threshold: 0 }, 'threshold', 'constraint'],
  ['budget-alert-notifications', { budget_alert_id: randomUUID() }, 'email_addresses', 'required'],
  ['budget-alert-notifications', { budget_alert_id: randomUUID(), email_addresses: ['nobody'] }, 'email_addresses.0', 'format'],
  ['budget-alert-notifications', { budget_alert_id: randomUUID(), webhook_urls: ['ftp://example.com'] }, 'webhook_urls.0', 'constraint'],
  ['budget-alert-notifications', { budget_alert_id: randomUUID(), sms_phone_numbers: ['+33600000000'] }, 'sms_phone_numbers', 'constraint'],
])('%s with %j is an invalid argument', async (path, body, argument, reason) => {
  const answer = await call('POST', path, body)
  expect(answer).toMatchObject({ status: 400, body: { type: 'invalid_arguments', details: [{ argument_name: argument, reason }] } })
})

test('without a key nothing is said', async () => {
  for (const [method, path] of [
    ['GET', 'budgets'],
    ['POST', 'budgets'],
    ['DELETE', `budgets/${randomUUID()}`],
  ] as const) {
    expect((await house.call(`/billing/v2/${path}`, { method, key: null })).status).toBe(401)
  }
})
