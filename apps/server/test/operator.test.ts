import { randomBytes, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// What the operator does over the network: organizations, models and their lives, prices, engines, tiers. Two gateways stand on one database.

const settings = { PARVIS_MASTER_KEY: randomBytes(32).toString('hex'), PARVIS_BOOTSTRAP_SECRET_KEY: randomUUID() }
let database: TestDatabase
let house: TestHouse
let other: TestHouse

type Answer = { status: number; body: Record<string, unknown> }
const ask = async (method: string, path: string, body?: unknown, key: string | null = house.secretKey, at = house): Promise<Answer> => {
  const answer = await at.call(path, { method, key, body })
  return { status: answer.status, body: answer.text === '' ? {} : (answer.json() as Record<string, unknown>) }
}
const must = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
  const answer = await ask(method, path, body)
  if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
  return answer.body
}
const entries = async (resourceType: string, resourceId: string) =>
  (await must('GET', `/parvis/v1/audit?order_by=at_asc&resource_type=${resourceType}&resource_id=${resourceId}`))['entries'] as Record<
    string,
    unknown
  >[]

const chat = { type: 'chat', owned_by: 'test', context_tokens: 4096, max_output_tokens: 256, price: { input: '0.15', output: '0.35' } }

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings })
  other = await startHouse({ database, settings })
})

afterAll(async () => {
  await house?.stop()
  await other?.stop()
  await database?.drop()
})

test('an organization is made once, acts, is suspended, goes on, and is closed for good; every gateway follows', async () => {
  const id = randomUUID()
  const asked = { id, name: 'Acme & Söhne', owner: { username: 'jane', email: 'jane@example.com' } }
  const made = await must('POST', '/parvis/v1/organizations', asked)
  expect(made).toMatchObject({ id, name: 'Acme & Söhne', state: 'active', owner: { username: 'jane', email: 'jane@example.com' } })
  const key = String(made['secret_key'])
  const again = await must('POST', '/parvis/v1/organizations', asked)
  expect(again).toEqual({ ...made, access_key: null, secret_key: null })
  expect((await ask('POST', '/parvis/v1/organizations', { ...asked, name: 'other' })).body).toMatchObject({ type: 'already_exists' })

  const projects = async (at: TestHouse) => (await ask('GET', '/account/v3/projects', undefined, key, at)).body
  expect(await projects(house)).toMatchObject({ projects: [{ id, name: 'default', organization_id: id }] })
  const models = async () => (await other.call('/v1/models', { key })).status
  await until('it may call there', async () => (await models()) === 200)
  const share = { project_id: id, expires_at: new Date(Date.now() + 86_400_000).toISOString() }
  const shared = String((await ask('POST', '/parvis/v1/usage-shares', share, key)).body['path'])
  const seen = async () => (await house.call(shared, { key: null })).status
  expect(await seen()).toBe(200)

  expect(await must('PATCH', `/parvis/v1/organizations/${id}`, { state: 'suspended' })).toMatchObject({ state: 'suspended' })
  await until('it may not call there', async () => (await models()) === 403)
  expect(await projects(house)).toEqual({ projects: [], total_count: 0 })
  expect((await ask('POST', '/iam/v1alpha1/applications', { name: 'x' }, key)).status).toBe(403)
  expect(await seen()).toBe(404)
  await must('PATCH', `/parvis/v1/organizations/${id}`, { state: 'active', name: 'Acme' })
  await until('it may call again', async () => (await models()) === 200)
  expect(await seen()).toBe(200)
  await must('PATCH', `/parvis/v1/organizations/${id}`, { state: 'closed' })
  await until('its key is gone', async () => (await ask('GET', '/account/v3/projects', undefined, key, other)).status === 401)
  expect(await seen()).toBe(404)
  expect((await ask('PATCH', `/parvis/v1/organizations/${id}`, { state: 'active' })).body).toMatchObject({
    type: 'invalid_arguments',
    details: [{ argument_name: 'state', help_message: 'an organization that is closed cannot become active' }],
  })
  expect((await entries('organization', id)).map(({ action, before, after }) => [action, before, after])).toEqual([
    ['created', null, { name: 'Acme & Söhne', state: 'active', ownerId: expect.any(String) }],
    ['updated', expect.objectContaining({ state: 'active' }), expect.objectContaining({ state: 'suspended' })],
    ['updated', expect.objectContaining({ state: 'suspended' }), expect.objectContaining({ state: 'active', name: 'Acme' })],
    ['updated', expect.objectContaining({ state: 'active' }), expect.objectContaining({ state: 'closed' })],
  ])
  const own = house.owner.organizationId
  expect((await ask('PATCH', `/parvis/v1/organizations/${own}`, { state: 'suspended' })).body).toMatchObject({
    type: 'precondition_failed',
    precondition: 'protected_resource',
  })
  const list = await must('GET', '/parvis/v1/organizations?state=closed&name=acm')
  expect(list).toMatchObject({ total_count: 1, organizations: [{ id }] })
})

test('nobody signs in to a closed organization: no password, link or session of before opens it', async () => {
  const id = randomUUID()
  const made = await must('POST', '/parvis/v1/organizations', {
    id,
    name: 'Gone',
    owner: { username: `o-${id}`, email: `${id}@example.com` },
  })
  const key = String(made['secret_key'])
  const ownerId = (made['owner'] as { id: string }).id
  const password = 'four words of no meaning'
  expect((await ask('POST', `/iam/v1alpha1/users/${ownerId}/update-password`, { password }, key)).status).toBe(200)
  const signIn = () => ask('POST', '/parvis/v1/sign-in', { login: `o-${id}`, password }, null)
  const entered = await signIn()
  expect(entered.status).toBe(200)
  const { rows } = await database.db.query('select * from session where principal_id = $1', [ownerId])
  expect(rows).toHaveLength(1)
  const link = async () => {
    const token = randomBytes(32).toString('base64url')
    const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: settings.PARVIS_MASTER_KEY })
    await database.db.query(
      `insert into invitation (principal_id, token_hash, expires_at) values ($1, $2, now() + interval '1 hour')
         on conflict (principal_id) do update set token_hash = excluded.token_hash`,
      [ownerId, secrets.hashKey(token)],
    )
    return ask('POST', '/parvis/v1/invitations/accept', { token }, null)
  }
  expect((await link()).status).toBe(200)

  await must('PATCH', `/parvis/v1/organizations/${id}`, { state: 'closed' })
  const nobody = await ask('POST', '/parvis/v1/sign-in', { login: 'nobody at all', password }, null)
  expect(await signIn()).toEqual(nobody)
  expect((await link()).status).toBe(404)
  const self = (at: TestHouse) =>
    at.call(`/iam/v1alpha1/users/${ownerId}`, { key: null, headers: { 'x-session-token': String(entered.body['token']) } })
  // A session whose beginning and the end of its organization have crossed.
  await database.db.query(
    `insert into session (id, principal_id, renew_hash, expires_at) values ($1, $2, sha256('x'), now() + interval '1 hour')`,
    [(entered.body['jwt'] as { jti: string }).jti, ownerId],
  )
  for (const at of [house, other]) expect((await self(at)).status).toBe(401)
  const { rows: keys } = await database.db.query('select 1 from api_key where organization_id = $1', [id])
  expect(keys).toEqual([])
})

test('the default project stays, in whatever letters its id is written', async () => {
  const id = 'abcdefab-cdef-4abc-8def-abcdefabcdef'
  const made = await must('POST', '/parvis/v1/organizations', { id, name: 'Capital' })
  const key = String(made['secret_key'])
  const session = await ask('POST', '/iam/v1alpha1/jwts', { user_id: (made['owner'] as { id: string }).id }, key)
  expect((await ask('DELETE', `/iam/v1alpha1/api-keys/${String(made['access_key'])}`, undefined, key)).status).toBe(204)
  for (const written of [id, id.toUpperCase()]) {
    const answer = await house.call(`/account/v3/projects/${written}`, {
      method: 'DELETE',
      key: null,
      headers: { 'x-session-token': String(session.body['token']) },
    })
    expect([answer.status, answer.json()]).toEqual([
      412,
      expect.objectContaining({ precondition: 'protected_resource', help_message: 'the default project stays' }),
    ])
  }
})

test('ten who make the same organization at once make one, with one key', async () => {
  const asked = { id: randomUUID(), name: 'at once' }
  const all = await Promise.all(Array.from({ length: 10 }, () => must('POST', '/parvis/v1/organizations', asked)))
  expect(all.filter((answer) => answer['secret_key'] !== null)).toHaveLength(1)
  expect((await must('GET', `/parvis/v1/organizations?name=at%20once`))['total_count']).toBe(1)
})

test('a model is added, served by an engine, described, deprecated, ended and followed, on every gateway', async () => {
  const engine = await startScriptedEngine()
  try {
    await must('POST', '/parvis/v1/models', { ...chat, name: 'elder' })
    await must('POST', '/parvis/v1/models', { ...chat, name: 'heir' })
    const put = { url: engine.url, key: 'a-secret-of-the-engine', models: [{ model: 'elder' }, { model: 'heir', remote: 'elder' }] }
    expect(await must('PUT', '/parvis/v1/engines/gpu-1', put)).toMatchObject({ name: 'gpu-1', has_key: true })
    await other.ready('elder')
    const served = async () => ((await other.call('/v1/models')).json() as { data: { id: string }[] }).data.map(({ id }) => id)
    expect(await served()).toEqual(expect.arrayContaining(['elder', 'heir']))

    const change = { description: 'the first of its kind', successor: 'heir', rules: { max_images: 3 }, features: { vision: true } }
    expect(await must('PATCH', '/parvis/v1/models/elder', change)).toMatchObject({ ...change, status: 'active', rules: { max_images: 3 } })
    const early = await ask('PATCH', '/parvis/v1/models/elder', { end_of_life_at: new Date(Date.now() + 86_400_000).toISOString() })
    expect(early.body).toMatchObject({ details: [{ argument_name: 'end_of_life_at' }] })
    expect(JSON.stringify(early.body)).toContain('8 months after its launch and 3 after the announcement')
    const ended = await must('PATCH', '/parvis/v1/models/elder', { status: 'eol', waive_guarantees: true })
    expect(ended).toMatchObject({ status: 'eol', deprecated_at: expect.any(String), end_of_life_at: expect.any(String) })
    await until('it is not listed there', async () => !(await served()).includes('elder'))
    const chunk = await other.openai().chat.completions.create({ model: 'elder', messages: [{ role: 'user', content: 'hello' }] })
    expect(chunk.model).toBe('heir')

    expect((await ask('DELETE', '/parvis/v1/models/heir')).body).toMatchObject({ precondition: 'resource_still_in_use' })
    await must('DELETE', '/parvis/v1/engines/gpu-1')
    expect((await ask('DELETE', '/parvis/v1/models/heir')).body).toMatchObject({
      help_message: expect.stringContaining('successor of elder'),
    })
    await must('DELETE', '/parvis/v1/models/heir?force=true')
    expect((await ask('GET', '/parvis/v1/models/heir')).status).toBe(404)
    const { rows } = await database.db.query<{ text: string }>(
      "select coalesce(string_agg(audit_entry::text, ' '), '') as text from audit_entry",
    )
    expect(rows[0]?.text).not.toContain('a-secret-of-the-engine')
  } finally {
    await engine.close()
  }
})

test('an engine put twice is one engine; its key stays unless another or none is said', async () => {
  await must('POST', '/parvis/v1/models', { ...chat, name: 'somewhere' })
  const put = (more: object = {}) =>
    must('PUT', '/parvis/v1/engines/gpu-2', { url: 'http://127.0.0.1:9', models: [{ model: 'somewhere' }], ...more })
  const first = await put({ key: 'k' })
  expect(await put()).toMatchObject({ id: first['id'], has_key: true })
  expect(await put({ key: null })).toMatchObject({ id: first['id'], has_key: false })
  const all = await Promise.all(Array.from({ length: 6 }, (_, at) => put({ url: `http://127.0.0.1:${at + 1}` })))
  expect(new Set(all.map(({ id }) => id))).toEqual(new Set([first['id']]))
  expect((await must('GET', '/parvis/v1/engines/gpu-2'))['models']).toHaveLength(1)
})

test('the key of an engine goes to no other address unless it is said again', async () => {
  const heard: (string | undefined)[] = []
  const stranger = createServer((request, response) => {
    heard.push(request.headers.authorization)
    response.end('{"data":[]}')
  })
  await new Promise<void>((resolve) => stranger.listen(0, '127.0.0.1', resolve))
  const strange = `http://127.0.0.1:${(stranger.address() as AddressInfo).port}`
  try {
    await must('POST', '/parvis/v1/models', { ...chat, name: 'moved' })
    const path = '/parvis/v1/engines/gpu-3'
    const made = { url: 'http://127.0.0.1:9/a', models: [{ model: 'moved' }] }
    await must('PUT', path, { ...made, key: 'a-key-of-the-vendor' })
    // Another path of the same server, and the same address written otherwise, are nothing new.
    expect(await must('PUT', path, { ...made, url: 'HTTP://127.0.0.1:09/b/v1' })).toMatchObject({
      has_key: true,
      url: 'http://127.0.0.1:9/b',
    })
    for (const url of [strange, 'https://127.0.0.1:9/a', 'http://localhost:9/a']) {
      const refused = await ask('PUT', path, { ...made, url })
      expect(refused).toMatchObject({
        status: 400,
        body: { type: 'invalid_arguments', details: [{ argument_name: 'key', reason: 'required' }] },
      })
    }
    expect(await must('GET', path)).toMatchObject({ has_key: true, url: 'http://127.0.0.1:9/b' })

    expect(await must('PUT', path, { ...made, url: strange, key: null })).toMatchObject({ has_key: false })
    await house.ready('moved')
    await other.ready('moved')
    expect(new Set(heard)).toEqual(new Set([undefined]))
    await must('PUT', path, { ...made, url: strange, key: 'a-key-of-its-own' })
    await until('it is asked with the key', () => heard.includes('Bearer a-key-of-its-own'))
    expect(JSON.stringify(heard)).not.toContain('a-key-of-the-vendor')
  } finally {
    await new Promise((resolve) => {
      stranger.close(resolve)
      stranger.closeAllConnections()
    })
  }
})

test('edits of one model at once are one after the other, and none of them takes away what another has said', async () => {
  await must('POST', '/parvis/v1/models', { ...chat, name: 'busy' })
  await Promise.all([
    must('PATCH', '/parvis/v1/models/busy', { description: 'busy' }),
    must('PATCH', '/parvis/v1/models/busy', { licence: 'MIT' }),
    must('PATCH', '/parvis/v1/models/busy', { features: { tools: true } }),
    must('PATCH', '/parvis/v1/models/busy', { rules: { alternating_roles: true } }),
    must('PATCH', '/parvis/v1/models/busy', { context_tokens: 8192 }),
  ])
  expect(await must('GET', '/parvis/v1/models/busy')).toMatchObject({
    description: 'busy',
    licence: 'MIT',
    features: { tools: true },
    rules: { alternating_roles: true },
    context_tokens: 8192,
  })
})

test('a price is announced for later and counts from then on; the past never changes, and a repeat is harmless', async () => {
  await must('POST', '/parvis/v1/models', { ...chat, name: 'dear' })
  const later = new Date(Date.now() + 86_400_000).toISOString()
  const asked = { input: '1.5', cached_input: '0.3', output: '2', starts_at: later }
  const [one, two] = await Promise.all([
    must('POST', '/parvis/v1/models/dear/prices', asked),
    must('POST', '/parvis/v1/models/dear/prices', asked),
  ])
  expect(one).toEqual(two)
  expect(one).toMatchObject({ unit: 'million_tokens', input: '1.50', cached_input: '0.30', output: '2.00', starts_at: later })
  expect((await ask('POST', '/parvis/v1/models/dear/prices', { ...asked, input: '1' })).body).toMatchObject({ type: 'already_exists' })
  expect((await ask('POST', '/parvis/v1/models/dear/prices', { ...asked, starts_at: '2020-01-01T00:00:00Z' })).body).toMatchObject({
    details: [{ argument_name: 'starts_at' }],
  })
  expect(await must('GET', '/parvis/v1/models/dear')).toMatchObject({ price: { input: '0.15', output: '0.35' } })
  expect(await must('GET', '/parvis/v1/models/dear/prices')).toMatchObject({ total_count: 2 })
})

test('a model that reads documents has one price, for a thousand pages', async () => {
  const reader = { type: 'ocr', owned_by: 'test', context_tokens: 4096 }
  const refused = async (path: string, body: object) => (await ask('POST', path, body)).body['details']
  const price = { input: '1.5', output: '0.35' }
  expect(await refused('/parvis/v1/models', { ...reader, name: 'reads', price })).toMatchObject([
    { argument_name: 'price.output', reason: 'constraint', help_message: expect.stringContaining('paid by the page') as string },
  ])
  await must('POST', '/parvis/v1/models', { ...reader, name: 'reads', price: { ...price, output: '0' } })
  expect(await must('GET', '/parvis/v1/models/reads')).toMatchObject({ price: { unit: 'thousand_pages', input: '1.50', output: '0.00' } })
  const prices = '/parvis/v1/models/reads/prices'
  expect(await refused(prices, price)).toMatchObject([{ argument_name: 'output', reason: 'constraint' }])
  expect(await refused(prices, { input: '2', cached_input: '1', output: '0' })).toMatchObject([
    { argument_name: 'cached_input', reason: 'constraint' },
  ])
  expect(await refused(prices, { input: '-2', output: '0' })).toMatchObject([{ argument_name: 'input', reason: 'format' }])
  expect(await must('POST', prices, { input: '2', output: '0' })).toMatchObject({ unit: 'thousand_pages', input: '2.00' })
})

test.each([
  ['audio', 'paid by its length', true],
  ['rerank', 'paid for its input', true],
  ['embedding', 'paid for its input', false],
])('a model of type %s has no price by which nothing is charged', async (type, why, onePrice) => {
  const refused = async (path: string, body: object) => (await ask('POST', path, body)).body['details']
  const model = { name: `paid-${type}`, type, owned_by: 'test', context_tokens: 4096 }
  const price = { input: '0.1', output: '0.35' }
  const said = (field: string) => [{ argument_name: field, reason: 'constraint', help_message: expect.stringContaining(why) as string }]
  expect(await refused('/parvis/v1/models', { ...model, price })).toMatchObject(said('price.output'))
  await must('POST', '/parvis/v1/models', { ...model, price: { ...price, output: '0' } })
  const prices = `/parvis/v1/models/paid-${type}/prices`
  expect(await refused(prices, price)).toMatchObject(said('output'))
  const cached = { input: '0.2', cached_input: '0.1', output: '0' }
  if (onePrice) expect(await refused(prices, cached)).toMatchObject(said('cached_input'))
  else expect(await must('POST', prices, cached)).toMatchObject({ cached_input: '0.10' })
})

test('what is published of the tiers comes back with "default", each of its limits', async () => {
  const tiers = async () => (await must('GET', '/parvis/v1/tiers'))['tiers']
  const before = await tiers()
  const { rows } = await database.db.query<{ tier: string; model: string; name: string }>('select tier, model, name from quota_published')
  expect(rows.length).toBeGreaterThan(60)
  for (const { tier, model, name } of rows) await must('PUT', `/parvis/v1/tiers/${tier}/limits`, { model, [name]: 1 })
  await expect.poll(tiers).not.toEqual(before)
  for (const { tier, model, name } of rows) await must('PUT', `/parvis/v1/tiers/${tier}/limits`, { model, [name]: 'default' })
  await expect.poll(tiers).toEqual(before)
  // What is published nowhere is gone with "default".
  await must('PUT', '/parvis/v1/tiers/none/limits', { model: 'of-our-own', tokens_per_minute: 1 })
  await must('PUT', '/parvis/v1/tiers/none/limits', { model: 'of-our-own', tokens_per_minute: 'default' })
  await expect.poll(tiers).toEqual(before)
})

test('what a tier gives can be changed, and holds for all who are in it', async () => {
  const made = await must('POST', '/parvis/v1/organizations', { name: 'small' })
  const id = String(made['id'])
  await must('PUT', `/parvis/v1/limits/organizations/${id}/tier`, { tier: 'none' })
  await must('PUT', '/parvis/v1/tiers/none/limits', { requests_per_minute: 7 })
  const limits = async () =>
    ((await must('GET', `/parvis/v1/limits/organizations/${id}`))['limits'] as { model: string; requests_per_minute: number }[])[0]
  await until('it is known', async () => (await limits())?.requests_per_minute === 7)
  const tiers = (await must('GET', '/parvis/v1/tiers'))['tiers'] as { name: string; limits: { requests_per_minute: number }[] }[]
  expect(tiers.find(({ name }) => name === 'none')?.limits[0]).toMatchObject({ model: '*', requests_per_minute: 7 })
  expect((await ask('PUT', '/parvis/v1/tiers/none/limits', { model: 'm', concurrent_requests: 1 })).status).toBe(400)
})

test.each([
  ['POST', '/parvis/v1/organizations', { name: 'x', colour: 'red' }, 'colour', 'unknown'],
  ['POST', '/parvis/v1/organizations', {}, 'name', 'required'],
  ['POST', '/parvis/v1/organizations', { name: 'x', owner: { mail: 'y' } }, 'owner.mail', 'unknown'],
  ['GET', '/parvis/v1/organizations?colour=red', undefined, 'colour', 'unknown'],
  ['POST', '/parvis/v1/models', { ...chat, name: 'UPPER' }, 'name', 'format'],
  ['POST', '/parvis/v1/models', { ...chat, name: 'x', max_output_tokens: null }, 'max_output_tokens', 'constraint'],
  ['POST', '/parvis/v1/models', { ...chat, name: 'x', price: { input: 0.1, output: '1' } }, 'price.input', 'format'],
  ['POST', '/parvis/v1/models', { ...chat, name: 'x', rules: { max_image: 1 } }, 'rules.max_image', 'unknown'],
  ['PUT', '/parvis/v1/engines/x', { url: 'ftp://x', models: [{ model: 'y' }] }, 'url', 'constraint'],
  ['PUT', '/parvis/v1/engines/x', { url: 'http://u:p@x', models: [{ model: 'y' }] }, 'url', 'constraint'],
  ['PUT', '/parvis/v1/engines/x', { url: 'http://x', models: [{ model: 'nobody' }] }, 'models.0.model', 'constraint'],
  ['PUT', '/parvis/v1/engines/a%20b', { url: 'http://x', models: [{ model: 'y' }] }, 'engine_name', 'format'],
  ['PUT', '/parvis/v1/engines/x', { url: 'http://x', key: 'a b', models: [{ model: 'y' }] }, 'key', 'format'],
])('%s %s with %j is refused by the name of what is wrong', async (method, path, body, argument, reason) => {
  const answer = await ask(method, path, body)
  expect(answer).toMatchObject({ status: 400, body: { type: 'invalid_arguments', details: [{ argument_name: argument, reason }] } })
})

test('nobody but the operator’s organization comes in, whatever its owner may at home; the right alone can be given away there', async () => {
  const made = await must('POST', '/parvis/v1/organizations', { name: 'curious' })
  for (const path of [
    '/parvis/v1/organizations',
    '/parvis/v1/models',
    '/parvis/v1/engines',
    '/parvis/v1/audit',
    '/parvis/v1/tiers',
    '/metrics',
  ])
    expect([path, await ask('GET', path, undefined, String(made['secret_key']))]).toEqual([
      path,
      { status: 403, body: expect.objectContaining({ details: [{ resource: 'installation', action: 'read' }] }) },
    ])
  const application = await must('POST', '/iam/v1alpha1/applications', { name: 'scraper' })
  await must('POST', '/iam/v1alpha1/policies', {
    name: 'scrapes',
    application_id: application['id'],
    rules: [{ permission_set_names: ['InstallationReadOnly'], organization_id: house.owner.organizationId }],
  })
  const key = String((await must('POST', '/iam/v1alpha1/api-keys', { application_id: application['id'] }))['secret_key'])
  expect((await house.call('/metrics', { key })).status).toBe(200)
  expect((await ask('GET', '/parvis/v1/engines', undefined, key)).status).toBe(200)
  expect((await ask('PUT', '/parvis/v1/engines/x', {}, key)).status).toBe(403)
})
