import { randomUUID } from 'node:crypto'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { termsOf } from '../src/billing/terms.ts'
import { addModel } from '../src/catalog/models.ts'
import { readConfig } from '../src/config.ts'
import { bootstrap } from '../src/iam/bootstrap.ts'
import { systemClock } from '../src/kit/clock.ts'
import { openLog } from '../src/kit/log.ts'
import { openSecrets } from '../src/kit/secrets.ts'
import { addPriced, closeMonths, handClock, use } from './billing-usage.ts'
import { differences, RECORDED } from './recorded/shape.ts'

// Every example of an answer in control-plane.md beside ours: the same fields, of the same types and formats, null where it may be.

let database: TestDatabase
let house: TestHouse
let organizationId: string

type Json = Record<string, unknown>

const ask = async (method: string, path: string, body?: unknown, expected = 200): Promise<Json> => {
  const answer = await house.call(path, { method, body })
  if (answer.status !== expected) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`)
  return answer.json() as Json
}
const get = (path: string, expected?: number) => ask('GET', path, undefined, expected)
const post = (path: string, body: unknown, expected?: number) => ask('POST', path, body, expected)

const IAM = '/iam/v1alpha1'
const PROJECTS = '/account/v3/projects'
const BILLING = '/billing/v2beta1'
const BUDGETS = '/billing/v2'
const COCKPIT = '/cockpit/v1'
const COCKPIT_HERE = `${COCKPIT}/regions/fr-par`
const INFERENCE = '/inference/v1/regions/fr-par'
const SETTINGS = { PARVIS_TAX_PERCENT: '20' }
const NOBODY = randomUUID()

/** What the answers below are about. */
const made: Record<string, Json> = {}
const idOf = (what: string): string => String(made[what]?.['id'])

beforeAll(async () => {
  database = await freshDatabase()
  const { db } = database
  // A month of the past with an invoice: the server closes by itself only what is due now.
  const dataDir = await mkdtemp(join(tmpdir(), 'parvis-recorded-'))
  const secretKey = randomUUID()
  const secrets = await openSecrets({ dataDir, masterKey: undefined })
  const owner = await bootstrap(db, secrets, systemClock, { secretKey, log: openLog('silent') })
  await db.query(`update organization set created_at = '2026-01-05T00:00:00Z' where id = $1`, [owner.organizationId])
  const priceId = await addPriced(db, 'llama', { input: '0.90', output: '0.90' })
  await use(db, {
    organizationId: owner.organizationId,
    model: 'llama',
    priceId,
    at: '2026-01-12T10:00:00Z',
    input: 800_000,
    output: 2_500_000,
  })
  const terms = termsOf(readConfig(SETTINGS, dataDir))
  await closeMonths({ db, clock: handClock('2026-02-03T00:00:00Z'), log: openLog('silent'), terms })
  // Weights that no engine of this machine starts.
  await addModel(db, systemClock, 'test', {
    name: 'reader',
    ownedBy: 'acme',
    type: 'ocr',
    contextTokens: 4_096,
    weights: { path: '/nowhere/reader-q8_0.gguf', bytes: 1_000_000, sha256: '0'.repeat(64) },
    price: { input: 0n, output: 0n },
  })

  house = await startHouse({ database, dataDir, settings: { ...SETTINGS, PARVIS_BOOTSTRAP_SECRET_KEY: secretKey } })
  organizationId = house.owner.organizationId
  made['project'] = await post(PROJECTS, { name: 'team-a', organization_id: organizationId })
  made['application'] = await post(`${IAM}/applications`, { name: 'billing-bot', organization_id: organizationId, tags: null })
  made['user'] = await post(`${IAM}/users`, {
    member: { email: 'jane@example.com', username: 'jane', first_name: 'Jane', last_name: 'Doe', locale: 'en_US' },
  })
  made['group'] = await post(`${IAM}/groups`, { name: 'research' })
  const rules = [
    { permission_set_names: ['GenerativeApisModelAccess'], project_ids: [idOf('project')], organization_id: null, condition: null },
  ]
  made['policy'] = await post(`${IAM}/policies`, { name: 'model-users', application_id: idOf('application'), rules })
  made['key'] = await post(`${IAM}/api-keys`, { application_id: idOf('application'), description: 'ci' })
  made['budget'] = await post(`${BUDGETS}/budgets`, { organization_id: organizationId, consumption_limit: 10_000, enabled: false })
  made['alert'] = await post(`${BUDGETS}/budget-alerts`, { budget_id: idOf('budget'), threshold: 80 })
  const recipients = { email_addresses: ['alerts@example.com'] }
  made['notification'] = await post(`${BUDGETS}/budget-alert-notifications`, { budget_alert_id: idOf('alert'), ...recipients })
  made['source'] = await post(`${COCKPIT_HERE}/data-sources`, { name: 'my-logs', type: 'logs', retention_days: 10 })
  made['token'] = await post(`${COCKPIT_HERE}/tokens`, { name: 'grafana', token_scopes: ['read_only_metrics'] })
  made['grafana user'] = await post(`${COCKPIT}/grafana/users`, { login: 'jane', role: 'editor' })
  made['alert manager'] = await get(`${COCKPIT_HERE}/alert-manager`)
  made['enabled alert manager'] = await post(`${COCKPIT_HERE}/alert-manager/enable`, {})
  const email = { to: 'a@example.com' }
  made['contact point'] = await post(`${COCKPIT_HERE}/alert-manager/contact-points`, { email, send_resolved_notifications: true })
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const first = async (path: string, list: string): Promise<Json> => ((await get(path))[list] as Json[])[0] ?? {}

const ownerId = async (): Promise<string> => String((await first(`${IAM}/users?type=owner`, 'users'))['id'])
const newJwt = async () => post(`${IAM}/jwts`, { user_id: await ownerId(), referrer: 'console' })

/** How we come to the answer of each example, by what it shows. */
const OURS: Readonly<Record<string, () => unknown>> = {
  'a file': async () => get(`${BILLING}/invoices/${String((await first(`${BILLING}/invoices`, 'invoices'))['id'])}/download`),

  'error invalid_arguments': () => post(`${IAM}/applications`, { name: 'no/slash' }, 400),
  'error denied_authentication': async () => (await house.call(PROJECTS, { key: NOBODY })).json(),
  'error permissions_denied': async () => (await house.call(`${COCKPIT_HERE}/config`, { key: String(made['key']?.['secret_key']) })).json(),
  'error quotas_exceeded': async () => {
    const one = (index: number) => house.call(PROJECTS, { body: { name: `full ${index}`, organization_id: organizationId } })
    const answers = await Promise.all(Array.from({ length: 25 }, (_, index) => one(index)))
    return answers.find(({ status }) => status === 403)?.json()
  },
  'error not_found': () => get(`${INFERENCE}/deployments/${NOBODY}`, 404),

  'a model': async () => get(`${INFERENCE}/models/${String((await first(`${INFERENCE}/models`, 'models'))['id'])}`),
  models: () => get(`${INFERENCE}/models?page_size=1000`),
  'a node type': () => first(`${INFERENCE}/node-types`, 'node_types'),
  'node types': () => get(`${INFERENCE}/node-types`),

  'an application': () => get(`${IAM}/applications/${idOf('application')}`),
  applications: () => get(`${IAM}/applications`),
  'a user': () => get(`${IAM}/users/${idOf('user')}`),
  users: () => get(`${IAM}/users?type=member`),
  'a group': () => get(`${IAM}/groups/${idOf('group')}`),
  groups: () => get(`${IAM}/groups`),
  'a policy': () => get(`${IAM}/policies/${idOf('policy')}`),
  policies: () => get(`${IAM}/policies`),
  rules: () => get(`${IAM}/rules?policy_id=${idOf('policy')}`),
  'rules that were set': () =>
    ask('PUT', `${IAM}/rules`, {
      policy_id: idOf('policy'),
      rules: [{ permission_set_names: ['GenerativeApisModelAccess'], project_ids: [idOf('project')] }],
    }),
  'permission sets': () => get(`${IAM}/permission-sets?page_size=100`),
  'a new API key': () => made['key'],
  'an API key': () => get(`${IAM}/api-keys/${String(made['key']?.['access_key'])}`),
  'API keys': () => get(`${IAM}/api-keys?bearer_type=application`),
  'a quota': async () => {
    const { name } = await first(`${IAM}/quota?organization_id=${organizationId}`, 'quota')
    return get(`${IAM}/quota/${String(name)}?organization_id=${organizationId}`)
  },
  quotas: () => get(`${IAM}/quota?organization_id=${organizationId}`),
  'a new JWT': newJwt,
  'a JWT': async () => get(`${IAM}/jwts/${String(((await newJwt())['jwt'] as Record<string, unknown>)['jti'])}`),
  JWTs: async () => get(`${IAM}/jwts?audience_id=${await ownerId()}`),
  logs: () => get(`${IAM}/logs?resource_type=policy`),
  'a log': async () => get(`${IAM}/logs/${String((await first(`${IAM}/logs?resource_type=policy`, 'logs'))['id'])}`),
  'the organization': () => get(`${IAM}/organizations/${organizationId}`),
  'its security settings': () => get(`${IAM}/organizations/${organizationId}/security-settings`),

  'a project': () => made['project'],
  projects: () => get(PROJECTS),

  consumptions: () => get(`${BILLING}/consumptions?billing_period=2026-01`),
  taxes: () => get(`${BILLING}/taxes?billing_period=2026-01`),
  'an invoice': async () => get(`${BILLING}/invoices/${String((await first(`${BILLING}/invoices`, 'invoices'))['id'])}`),
  invoices: () => get(`${BILLING}/invoices`),
  discounts: () => get(`${BILLING}/discounts`),
  'a budget': () => get(`${BUDGETS}/budgets/${idOf('budget')}`),
  budgets: () => get(`${BUDGETS}/budgets`),
  'an alert of a budget': async () => ((await get(`${BUDGETS}/budgets/${idOf('budget')}`))['alerts'] as unknown[])[0],
  'a notification of an alert': () => made['notification'],

  'a new data source': () => made['source'],
  'a data source': () => get(`${COCKPIT_HERE}/data-sources/${idOf('source')}`),
  'data sources': () => get(`${COCKPIT_HERE}/data-sources`),
  retention: () => get(`${COCKPIT_HERE}/config`),
  'a new token': () => made['token'],
  'a token': () => get(`${COCKPIT_HERE}/tokens/${idOf('token')}`),
  tokens: () => get(`${COCKPIT_HERE}/tokens`),
  Grafana: () => get(`${COCKPIT}/grafana`),
  'Grafana users': () => get(`${COCKPIT}/grafana/users`),
  'a Grafana user': () => made['grafana user'],
  'a plan': () => get(`${COCKPIT}/current-plan`),
  plans: () => get(`${COCKPIT}/plans`),
  'a usage overview': () => get(`${COCKPIT_HERE}/usage-overview`),
  'an alert manager': () => made['alert manager'],
  'an alert manager that is enabled': () => made['enabled alert manager'],
  'a contact point': () => made['contact point'],
  'contact points': () => get(`${COCKPIT_HERE}/alert-manager/contact-points`),
  alerts: () => get(`${COCKPIT_HERE}/alerts`),
  'a count of rules': () => get(`${COCKPIT_HERE}/rules/count`),
  'products with metrics': () => get(`${COCKPIT_HERE}/products`),

  'the price list': () => get('/product-catalog/v2alpha1/public-catalog/products'),
}

type NotServed = readonly [what: string, why: string, method: string, path: string, answer: unknown]

const NOT_IMPLEMENTED = { message: 'this method is not implemented', type: 'not_implemented' }
const LATER = 'nothing can be deployed yet'
const SKIP = 'the contract leaves it out (section 12)'

/** Whatever is not served, why, and how that shows: once it answers something else, its example belongs above. */
const NOT_SERVED: readonly NotServed[] = [
  ['error out_of_stock', LATER, 'POST', `${INFERENCE}/deployments`, NOT_IMPLEMENTED],
  ['a public endpoint', LATER, 'POST', `${INFERENCE}/endpoints`, NOT_IMPLEMENTED],
  ['a private endpoint', LATER, 'POST', `${INFERENCE}/endpoints`, NOT_IMPLEMENTED],
  ['a deployment', LATER, 'POST', `${INFERENCE}/deployments`, NOT_IMPLEMENTED],
  ['deployments', LATER, 'GET', `${INFERENCE}/deployments`, { deployments: [], total_count: 0 }],
  ['error of an import', 'nothing can be imported yet', 'POST', `${INFERENCE}/models`, NOT_IMPLEMENTED],
  [
    'the price of a node',
    LATER,
    'GET',
    '/product-catalog/v2alpha1/public-catalog/products?product_types=managed_inference',
    { products: [], total_count: 0 },
  ],
  ['an EULA', SKIP, 'GET', `/inference/v1beta1/regions/fr-par/models/${NOBODY}/eula`, NOT_IMPLEMENTED],
  ['ACL rules', SKIP, 'GET', `/inference/v1beta1/regions/fr-par/deployments/${NOBODY}/acls`, NOT_IMPLEMENTED],
  ['a qualification', 'nothing reads it', 'POST', `${PROJECTS}/${NOBODY}/project-qualification`, NOT_IMPLEMENTED],
  ['dashboards', SKIP, 'GET', `${COCKPIT}/grafana/product-dashboards`, NOT_IMPLEMENTED],
  ['rules that were enabled', SKIP, 'POST', `${COCKPIT_HERE}/alert-manager/enable-alert-rules`, NOT_IMPLEMENTED],
  ['rules that were disabled', SKIP, 'POST', `${COCKPIT_HERE}/alert-manager/disable-alert-rules`, NOT_IMPLEMENTED],
  ['addresses in a private network', 'there are no private networks', 'GET', '/ipam/v1/regions/fr-par/ips', NOT_IMPLEMENTED],
  ['a private network', 'there are no private networks', 'POST', '/vpc/v2/regions/fr-par/private-networks', NOT_IMPLEMENTED],
]

/** What no answer of ours can be. */
const NEVER: Readonly<Record<string, string>> = {
  'error transient_state': 'changes of a group stand in a row, so none meets another in mid-change',
}

test('every example of the contract is either compared, or listed as not served', () => {
  const listed = [...Object.keys(OURS), ...NOT_SERVED.map(([what]) => what), ...Object.keys(NEVER)]
  expect(listed.toSorted()).toEqual(RECORDED.map(({ what }) => what).toSorted())
  expect(new Set(listed).size).toBe(listed.length)
})

test.each(RECORDED.filter(({ what }) => what in OURS))('$section: $what has the fields and types of the example', async (recorded) => {
  expect(differences(recorded, await OURS[recorded.what]?.())).toEqual([])
})

test.each(NOT_SERVED)('%s is not served: %s', async (_what, _why, method, path, answer) => {
  const served = await house.call(path, method === 'GET' ? {} : { method, body: {} })
  expect(served.json()).toEqual(answer)
})

test('dates are RFC 3339 in UTC, and what is read again is what was answered first, but for the secret', async () => {
  const key = made['key'] ?? {}
  const again = await get(`${IAM}/api-keys/${String(key['access_key'])}`)
  expect(again).toEqual({ ...key, secret_key: null })
  const later = await ask('PATCH', `${IAM}/api-keys/${String(key['access_key'])}`, { expires_at: '2135-07-06T11:00:00+02:00' })
  expect(later['expires_at']).toBe('2135-07-06T09:00:00.000Z')
})

test('unknown fields and parameters are ignored, and every unknown_ word means no filter', async () => {
  const application = await post(`${IAM}/applications`, { name: 'lenient', colour: 'red' })
  expect(application).not.toHaveProperty('colour')
  const query = 'order_by=created_at_asc&bearer_type=unknown_bearer_type&colour=red'
  expect(await get(`${IAM}/api-keys?${query}`)).toHaveProperty('total_count')
  expect(await get(`${IAM}/users?type=unknown_type`)).toHaveProperty('total_count', 2)
  expect(await get(`${IAM}/logs?action=unknown_action&resource_type=unknown_resource_type`)).toHaveProperty('total_count')
})

test('a character that the database cannot hold is refused, wherever it stands', async () => {
  for (const call of [
    () => house.call(`${IAM}/applications?name=a%00b`),
    () => house.call(`${IAM}/api-keys/SCW%00`),
    () => house.call(`${IAM}/applications`, { body: { name: 'a', description: 'a\0b' } }),
    () => house.call(`${IAM}/applications`, { body: { name: 'a', tags: ['\0'] } }),
  ]) {
    const answer = await call()
    expect([answer.status, (answer.json() as { type: string }).type]).toEqual([400, 'invalid_arguments'])
  }
})
