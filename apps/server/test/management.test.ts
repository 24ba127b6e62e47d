import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { until } from '@parvis/testkit/until'
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
  [
    'no key',
    PROJECTS,
    { key: null },
    401,
    { type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument', help_message: 'Send the secret key as X-Auth-Token.' },
  ],
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

test('a parameter that is there and empty is one that is not there', async () => {
  for (const empty of ['name', 'organization_id', 'project_ids', 'page', 'order_by'])
    expect((await house.call(`${PROJECTS}?${empty}=`)).json()).toMatchObject({ total_count: 1 })
})

test.each([['[]'], ['"text"'], ['7'], ['{'], ['{"name":']])('a body of %s is refused by that name', async (body) => {
  const answer = await house.call(PROJECTS, { body })
  expect([answer.status, answer.json()]).toMatchObject([
    400,
    { type: 'invalid_arguments', details: [{ argument_name: 'body', reason: 'format' }] },
  ])
})

test('who is refused and never sends the rest of the body is cut off', async () => {
  const socket = connect(Number(new URL(house.url).port), '127.0.0.1')
  let received = ''
  socket.on('data', (chunk: Buffer) => void (received += chunk.toString()))
  socket.write(`POST ${PROJECTS} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{`)
  await once(socket, 'close')
  expect(received).toMatch(/^HTTP\/1\.1 401 /)
})

test("another organization's projects are answered as if it had none", async () => {
  expect((await house.call(`${PROJECTS}?organization_id=${STRANGER}`)).json()).toEqual({ total_count: 0, projects: [] })
})

const missing = (path: string) => ({ message: 'resource is not found', type: 'not_found', resource: 'route', resource_id: path })

test.each([
  '/account/v3/nothing',
  '/account/v2/projects',
  '/iam',
  '/cockpit/v1/regions/fr-par',
  // The data plane's paths with something else than a project in front.
  '/billing/v1/models',
  // A slash at the end is another path.
  `${PROJECTS}/${STRANGER}/`,
  '/billing/v2beta1/invoices/export/',
])('%s is no path, with a key and without', async (path) => {
  for (const request of [{}, { key: null }, { method: 'POST', body: {} }, { method: 'DELETE' }]) {
    const answer = await house.call(path, request)
    expect([answer.status, answer.headers.get('content-type'), answer.json()]).toEqual([404, 'application/json', missing(path)])
    expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  }
})

// Whoever sends thousands of wrong fields must not be told of each of them with the names of all.
const many = (count: number): string[] => Array.from({ length: count }, (_, at) => `field-${at}`)

test('what is wrong with a request is told of twenty places at most, without a key and with one', async () => {
  const fields = Object.fromEntries(many(700).map((name) => [name, 0]))
  const signIn = await house.call('/parvis/v1/sign-in', { method: 'POST', key: null, body: fields })
  const query = await house.call(`/parvis/v1/shared-usage/x?${many(700).join('=1&')}`, { key: null })
  const list = await house.call('/parvis/v1/models', {
    method: 'POST',
    body: Object.fromEntries(many(5_000).map((name) => [name, 0])),
  })
  for (const answer of [signIn, query, list]) {
    expect(answer.status).toBe(400)
    expect((answer.json() as { details: unknown[] }).details).toHaveLength(20)
    expect(answer.text.length).toBeLessThan(8_000)
  }
  expect(list.json()).toMatchObject({ details: expect.arrayContaining([expect.objectContaining({ reason: 'unknown' })]) as unknown })
})

test('a name of a field is told shortened', async () => {
  const answer = await house.call('/parvis/v1/models', { method: 'POST', body: { ['x'.repeat(500_000)]: 0 } })
  expect(answer.status).toBe(400)
  expect(answer.text.length).toBeLessThan(8_000)
})

test('where no key is asked for, a body of more than 16 KB is refused', async () => {
  const answer = await house.call('/parvis/v1/sign-in', {
    method: 'POST',
    key: null,
    body: { login: 'x'.repeat(16 * 1024), password: 'y' },
  })
  expect(answer.status).toBe(400)
  expect(answer.json()).toMatchObject({ details: [{ argument_name: 'body', help_message: 'at most 16384 bytes' }] })
})

test('an organization whose bodies never end takes the room of its own and no other’s, and what it held comes free', async () => {
  const made = await house.call('/parvis/v1/organizations', { method: 'POST', body: { name: 'slow' } })
  const { secret_key: key } = made.json() as { secret_key: string }
  const bytes = 1_000_000
  const post = async (): Promise<{ socket: Socket; answer: () => string }> => {
    const socket = connect(Number(new URL(house.url).port), '127.0.0.1')
    let received = ''
    socket.on('data', (chunk: Buffer) => void (received += chunk.toString())).on('error', () => {})
    socket.write(`POST ${PROJECTS} HTTP/1.1\r\nhost: x\r\nx-auth-token: ${key}\r\ncontent-length: ${bytes}\r\n\r\n`)
    socket.write(Buffer.alloc(bytes - 1, ' '))
    return { socket, answer: () => received }
  }
  const open: Awaited<ReturnType<typeof post>>[] = []
  const large = { method: 'POST', body: { name: 'large', description: 'x'.repeat(bytes) } }
  const their = async (body: unknown) => (await house.call(PROJECTS, { method: 'POST', body, ...token(key) })).status
  try {
    await until('there is no room for one more', async () => {
      open.push(await post())
      return (await their(large.body)) === 503
    })
    await until('one of them is told so', async () => {
      open.push(await post())
      return open.some(({ answer }) => /^HTTP\/1\.1 503 [^]*retry-after: 5/.test(answer()))
    })
    expect((await house.call(PROJECTS, large)).status).toBe(400)
    // What is small has room of its own.
    await until('it gets in', async () => (await their({ name: 'small' })) === 200)
    for (const { socket } of open) socket.destroy()
    await until('all of it is free', async () => (await their(large.body)) === 400)
  } finally {
    for (const { socket } of open) socket.destroy()
  }
})

test('a text with U+0000 is refused, wherever it stands, and one that only looks like it is not', async () => {
  const withText = (text: string) => house.call(PROJECTS, { method: 'POST', body: { name: 'zero', description: text } })
  expect((await withText('a\0b')).status).toBe(400)
  const made = await withText(String.raw`a\u0000b`)
  expect(made.json()).toMatchObject({ description: String.raw`a\u0000b` })
  await house.call(`${PROJECTS}/${(made.json() as { id: string }).id}`, { method: 'DELETE' })
})

test('an id that is empty does not turn one thing into a list of all', async () => {
  const answer = await house.call(`${PROJECTS}/`)
  expect([answer.status, answer.json()]).toMatchObject([400, { details: [{ argument_name: 'project_id', reason: 'format' }] }])
  expect((await house.call(`${PROJECTS}/`, { method: 'DELETE' })).status).toBe(400)
  expect((await house.call('/iam/v1alpha1/api-keys/', { method: 'DELETE' })).json()).toMatchObject({ resource: 'access_key' })
  expect((await house.call(`${PROJECTS}/`, { body: { name: 'x' } })).json()).toEqual(missing(`${PROJECTS}/`))
})

test('what is no path of the management API is answered in the shape of the data plane', async () => {
  for (const path of ['/accounts/v3/projects', '/v1/nothing', '/'])
    expect((await house.call(path)).json()).toMatchObject({ error: { code: 404 } })
})

test('doubled slashes are one', async () => {
  expect((await house.call('//account//v3///projects')).json()).toMatchObject({ total_count: 1 })
  expect((await house.call(`/account/v3//projects//${STRANGER}`)).json()).toMatchObject({ resource: 'project_id' })
})

test('a method that a path does not have is 405, and which it has is said', async () => {
  for (const method of ['PUT', 'DELETE', 'PATCH']) {
    const answer = await house.call(PROJECTS, { method, body: {} })
    expect([answer.status, answer.headers.get('allow')]).toEqual([405, 'GET, POST, HEAD, OPTIONS'])
    expect(answer.json()).toEqual({ message: 'there is no such method on this resource', type: 'method_not_allowed' })
  }
  const options = await house.call(`${PROJECTS}/${STRANGER}`, { method: 'OPTIONS', key: null, headers: { origin: 'https://a.example' } })
  expect([options.status, options.text, options.headers.get('allow')]).toEqual([204, '', 'GET, PATCH, DELETE, HEAD, OPTIONS'])
  expect(options.headers.get('access-control-allow-origin')).toBeNull()
})

test('HEAD is GET without a body', async () => {
  const get = await house.call(PROJECTS)
  const head = await house.call(PROJECTS, { method: 'HEAD' })
  expect([head.status, head.text, head.headers.get('content-type'), head.headers.get('content-length')]).toEqual([
    200,
    '',
    'application/json',
    get.headers.get('content-length'),
  ])
  expect((await house.call(PROJECTS, { method: 'HEAD', key: null })).status).toBe(401)
  expect((await house.call('/account/v3/nothing', { method: 'HEAD' })).status).toBe(404)
})

test.each([
  ['GET', '/iam/v1alpha1/ssh-keys'],
  ['DELETE', `/iam/v1alpha1/users/${STRANGER}/mfa-otp`],
  ['GET', '/iam/v1alpha1/grace-periods'],
  ['POST', `/iam/v1alpha1/organizations/${STRANGER}/saml`],
  ['POST', '/account/v3/contract-signatures/check'],
  ['POST', `/account/v3/projects/${STRANGER}/delete-with-resources`],
  ['POST', '/billing/v2beta1/redeem-coupon?code=x'],
  ['GET', '/billing/v2beta1/charges'],
  ['GET', '/cockpit/v1/regions/fr-par/exporters'],
  ['GET', '/cockpit/v1/grafana/product-dashboards'],
  ['POST', '/cockpit/v1/regions/fr-par/alert-manager/enable-alert-rules'],
  ['GET', '/inference/v1beta1/regions/fr-par/deployments'],
  ['PUT', `/inference/v1beta1/regions/fr-par/deployments/${STRANGER}/acls`],
  ['GET', '/audit-trail/v1alpha1/regions/fr-par/events'],
  ['GET', '/environmental-footprint/v1alpha1/reports/available'],
  ['GET', '/ipam/v1/regions/fr-par/ips'],
  ['POST', '/vpc/v2/regions/fr-par/private-networks'],
])('%s %s is left out, and says so to whoever has a key', async (method, path) => {
  const request = method === 'GET' ? { method } : { method, body: {} }
  const answer = await house.call(path, request)
  expect([answer.status, answer.headers.get('content-type')]).toEqual([501, 'application/json'])
  expect(answer.json()).toEqual({ message: 'this method is not implemented', type: 'not_implemented' })
  expect((await house.call(path, { ...request, key: null })).status).toBe(401)
})

test('the metrics are there for the operator in the format of Prometheus, and for nobody without a key', async () => {
  const answer = await house.call('/metrics')
  expect(answer.status).toBe(200)
  expect(answer.headers.get('content-type')).toMatch(/^text\/plain/)
  expect(answer.text).toMatch(/^# TYPE parvis_usage_journal_writable gauge$/m)
  expect(answer.text).toMatch(/^parvis_usage_journal_writable 1$/m)
  expect((await house.call('/metrics', { key: null })).status).toBe(401)
})
