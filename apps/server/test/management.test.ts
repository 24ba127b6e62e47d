import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'

// What every management route keeps, shown on the projects (control-plane.md 2, 3, 6).

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

const PROJECTS = '/account/v3/projects'
const STRANGER = '11111111-2222-4333-8444-555555555555'
const token = (secret: string) => ({ key: null, headers: { 'x-auth-token': secret } })

test('the default project has the id of the organization, and the content type is exactly what the clients parse', async () => {
  const answer = await house.call(PROJECTS, token(house.secretKey))
  expect(answer.status).toBe(200)
  expect(answer.headers.get('content-type')).toBe('application/json')
  expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  expect(answer.headers.get('x-content-type-options')).toBe('nosniff')
  expect(answer.json()).toMatchObject({
    total_count: 1,
    projects: [{ id: house.owner.organizationId, organization_id: house.owner.organizationId, name: 'default' }],
  })
})

test('a bearer is as good as the token header, and a bare question mark is no parameter', async () => {
  expect((await house.call(`${PROJECTS}?`)).status).toBe(200)
  expect((await house.call(`${PROJECTS}/${house.owner.organizationId}`)).json()).toMatchObject({ name: 'default' })
})

test.each([
  ['no key', PROJECTS, { key: null }, 401, { type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' }],
  ['a malformed key', PROJECTS, token('nonsense'), 401, { type: 'denied_authentication', reason: 'invalid_argument' }],
  ['an unknown key', PROJECTS, token(STRANGER), 401, { type: 'denied_authentication', reason: 'not_found' }],
  ['a project of nobody', `${PROJECTS}/${STRANGER}`, {}, 404, { type: 'not_found', resource: 'project_id', resource_id: STRANGER }],
  ['an id that is none', `${PROJECTS}/nonsense`, {}, 400, { type: 'invalid_arguments', details: [{ argument_name: 'project_id' }] }],
  [
    'a page before the first',
    `${PROJECTS}?page=0`,
    {},
    400,
    { type: 'invalid_arguments', details: [{ argument_name: 'page', reason: 'constraint' }] },
  ],
  [
    'an order that is none',
    `${PROJECTS}?order_by=colour_asc`,
    {},
    400,
    { type: 'invalid_arguments', details: [{ argument_name: 'order_by' }] },
  ],
])('%s is refused in the vendor’s shape', async (_what, path, request, status, body) => {
  const answer = await house.call(path, request)
  expect(answer.status).toBe(status)
  expect(answer.headers.get('content-type')).toBe('application/json')
  expect(answer.json()).toMatchObject(body)
})

test('a page past the end is empty with the same total, and every unknown_ order means none', async () => {
  expect((await house.call(`${PROJECTS}?page=7&page_size=1`)).json()).toEqual({ total_count: 1, projects: [] })
  expect((await house.call(`${PROJECTS}?order_by=unknown_order_by`)).status).toBe(200)
})

test("another organization's projects are answered as if it had none", async () => {
  expect((await house.call(`${PROJECTS}?organization_id=${STRANGER}`)).json()).toEqual({ total_count: 0, projects: [] })
})

test('an unknown management path is JSON too', async () => {
  const answer = await house.call('/account/v3/nothing')
  expect(answer.status).toBe(404)
  expect(answer.json()).toMatchObject({ error: { code: 404 } })
})

test('the metrics are there for the operator in the format of Prometheus, and for nobody without a key', async () => {
  const answer = await house.call('/metrics')
  expect(answer.status).toBe(200)
  expect(answer.headers.get('content-type')).toMatch(/^text\/plain/)
  expect(answer.text).toMatch(/^# TYPE parvis_usage_journal_writable gauge$/m)
  expect(answer.text).toMatch(/^parvis_usage_journal_writable 1$/m)
  expect((await house.call('/metrics', { key: null })).status).toBe(401)
})
