import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The recorded answers of control-plane.md 5 and 6 beside ours: the same fields, of the same types.

let database: TestDatabase
let house: TestHouse
let organizationId: string
const made: Record<string, Record<string, unknown>> = {}

const IAM = '/iam/v1alpha1'
const ask = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
  const answer = await house.call(path, { method, body })
  if (answer.status !== 200) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`)
  return answer.json() as Record<string, unknown>
}

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  organizationId = house.owner.organizationId
  const project = await ask('POST', '/account/v3/projects', { name: 'team-a', organization_id: organizationId })
  const application = await ask('POST', `${IAM}/applications`, { name: 'billing-bot', organization_id: organizationId, tags: null })
  const user = await ask('POST', `${IAM}/users`, {
    member: { email: 'jane@example.com', username: 'jane', first_name: 'Jane', last_name: 'Doe', locale: 'en_US' },
  })
  const group = await ask('POST', `${IAM}/groups`, { name: 'research' })
  const policy = await ask('POST', `${IAM}/policies`, {
    name: 'model-users',
    application_id: application['id'],
    rules: [{ permission_set_names: ['GenerativeApisModelAccess'], project_ids: [project['id']], organization_id: null, condition: null }],
  })
  const key = await ask('POST', `${IAM}/api-keys`, { application_id: application['id'], description: 'ci' })
  Object.assign(made, { project, application, user, group, policy, key })
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

/** Field by field; null stands for any type, since what is nullable is recorded both ways. */
const differences = (recorded: unknown, ours: unknown, at = ''): string[] => {
  if (recorded === null || ours === null) return []
  const [theirs, own] = [recorded, ours].map((value) => (Array.isArray(value) ? 'array' : typeof value))
  if (theirs !== own) return [`${at}: ${theirs} recorded, ${own} answered`]
  if (Array.isArray(recorded) && Array.isArray(ours))
    return recorded.length > 0 && ours.length > 0 ? differences(recorded[0], ours[0], `${at}[]`) : []
  if (typeof recorded !== 'object' || typeof ours !== 'object') return []
  const names = new Set([...Object.keys(recorded), ...Object.keys(ours)])
  return [...names].flatMap((name) => {
    if (!(name in ours)) return [`${at}.${name}: recorded, not answered`]
    if (!(name in recorded)) return [`${at}.${name}: answered, not recorded`]
    return differences((recorded as Record<string, unknown>)[name], (ours as Record<string, unknown>)[name], `${at}.${name}`)
  })
}

const RECORDED: readonly [what: string, recorded: string, ours: () => unknown][] = [
  [
    'an application',
    '{"id":"63310000-3247-4094-bc70-58fd1cd82491","name":"billing-bot","description":"","created_at":"2026-05-21T14:55:59.968247Z","updated_at":"2026-05-21T14:55:59.968247Z","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","editable":true,"deletable":true,"managed":false,"nb_api_keys":0,"tags":[]}',
    () => made['application'],
  ],
  [
    'a user',
    '{"id":"c3fa0000-5dd7-4c56-bd7f-c45ef04026aa","email":"jane@example.com","username":"jane","first_name":"Jane","last_name":"Doe","phone_number":"","locale":"en_US","created_at":"2026-05-21T15:02:54.953260Z","updated_at":"2026-05-21T15:02:54.953260Z","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","deletable":true,"last_login_at":null,"type":"member","two_factor_enabled":false,"status":"activated","mfa":false,"account_root_user_id":"","tags":[],"locked":false}',
    () => made['user'],
  ],
  [
    'a group',
    '{"id":"cb6b0000-1101-44de-8510-94db6582c458","created_at":"2025-11-17T17:10:37.772008Z","updated_at":"2025-11-17T17:10:37.772008Z","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","name":"research","description":"","user_ids":[],"application_ids":[],"tags":[],"editable":true,"deletable":true,"managed":false}',
    () => made['group'],
  ],
  [
    'a policy',
    '{"id":"aa680000-13f9-4b02-acc1-d0d2e3d436f5","name":"model-users","description":"","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","created_at":"2026-06-12T15:44:14.039636Z","updated_at":"2026-06-12T15:44:14.039636Z","editable":true,"deletable":true,"managed":false,"nb_rules":1,"nb_scopes":1,"nb_permission_sets":1,"tags":[],"application_id":"2e570000-e3f9-414e-8b62-a674808be86e"}',
    () => made['policy'],
  ],
  [
    'rules',
    '{"rules":[{"id":"f1bb0000-bfb4-4c59-8621-d6825629ab76","permission_set_names":["GenerativeApisModelAccess"],"permission_sets_scope_type":"projects","condition":"","project_ids":["c5670000-af4f-4da0-a35b-98c34086f991"]}],"total_count":1}',
    () => ask('GET', `${IAM}/rules?policy_id=${String(made['policy']?.['id'])}`),
  ],
  [
    'permission sets',
    '{"permission_sets":[{"id":"0a1b0000-0000-4000-8000-000000000001","name":"GenerativeApisModelAccess","scope_type":"projects","description":"Use Generative APIs models","categories":["AI"]}],"total_count":28}',
    () => ask('GET', `${IAM}/permission-sets`),
  ],
  [
    'an API key',
    '{"access_key":"SCW9AXCN349HVWTA0M0H","secret_key":"1f000000-0000-4000-8000-000000000001","description":"ci","created_at":"2026-06-10T16:12:40.585516Z","updated_at":"2026-06-10T16:12:40.585516Z","expires_at":null,"default_project_id":"105b0000-64c0-48ab-899d-868455867ecf","editable":true,"deletable":true,"managed":false,"creation_ip":"192.0.2.10","application_id":"07660000-4a0e-4938-a140-544964da7870"}',
    () => made['key'],
  ],
  [
    'logs',
    '{"logs":[{"id":"5b6c0000-0000-4000-8000-000000000001","created_at":"2026-06-10T16:12:40.585516Z","ip":"192.0.2.10","user_agent":"terraform-provider/2.60.0 terraform/1.11.0","action":"created","bearer_id":"07660000-4a0e-4938-a140-544964da7870","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","resource_type":"policy","resource_id":"aa680000-13f9-4b02-acc1-d0d2e3d436f5"}],"total_count":1}',
    () => ask('GET', `${IAM}/logs`),
  ],
  [
    'the organization',
    '{"id":"105b0000-64c0-48ab-899d-868455867ecf","name":"acme","alias":"acme","login_password_enabled":true,"login_magic_code_enabled":false,"login_oauth2_enabled":false,"login_saml_enabled":false}',
    () => ask('GET', `${IAM}/organizations/${organizationId}`),
  ],
  [
    'its security settings',
    '{"enforce_password_renewal":false,"grace_period_duration":"604800s","login_attempts_before_locked":10,"max_login_session_duration":"86400s","max_api_key_expiration_duration":"0s"}',
    () => ask('GET', `${IAM}/organizations/${organizationId}/security-settings`),
  ],
  [
    'a project',
    '{"id":"81a60000-2433-4b6c-8d4d-d31a028ac22f","name":"team-a","organization_id":"105b0000-64c0-48ab-899d-868455867ecf","created_at":"2026-06-08T10:47:24.172808Z","updated_at":"2026-06-08T10:47:24.172808Z","description":"","qualification":null}',
    () => made['project'],
  ],
  [
    'quotas',
    '{"quota":[{"name":"InferenceH100Nodes","limit":3,"pretty_name":"H100 nodes","unit":"node","description":"","locality_type":"global","limits":[{"global":true,"limit":3}]}],"total_count":1}',
    () => ask('GET', `${IAM}/quota?organization_id=${organizationId}`),
  ],
]

test.each(RECORDED)('%s has the fields of the recording', async (_what, recorded, ours) => {
  expect(differences(JSON.parse(recorded), await ours())).toEqual([])
})

test('dates are RFC 3339 in UTC, and what is read again is what was answered first, but for the secret', async () => {
  const key = made['key'] ?? {}
  const again = await ask('GET', `${IAM}/api-keys/${String(key['access_key'])}`)
  expect(again).toEqual({ ...key, secret_key: null })
  expect(again['created_at']).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$/)
  const later = await ask('PATCH', `${IAM}/api-keys/${String(key['access_key'])}`, { expires_at: '2135-07-06T11:00:00+02:00' })
  expect(later['expires_at']).toBe('2135-07-06T09:00:00.000Z')
})

test('unknown fields and parameters are ignored, and every unknown_ word means no filter', async () => {
  const application = await ask('POST', `${IAM}/applications`, { name: 'lenient', colour: 'red' })
  expect(application).not.toHaveProperty('colour')
  const query = 'order_by=created_at_asc&bearer_type=unknown_bearer_type&colour=red'
  expect(await ask('GET', `${IAM}/api-keys?${query}`)).toHaveProperty('total_count')
  expect(await ask('GET', `${IAM}/users?type=unknown_type`)).toHaveProperty('total_count', 2)
  expect(await ask('GET', `${IAM}/logs?action=unknown_action&resource_type=unknown_resource_type`)).toHaveProperty('total_count')
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
