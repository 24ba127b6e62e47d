import { randomBytes, randomUUID } from 'node:crypto'
import { createKey } from '@parvis/server/iam/keys'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { setsAlike } from './every-route.ts'

// Who may what, where it takes more than a walk over all routes (matrix.test.ts): other organizations, projects, conditions, gateways.

const masterKey = randomBytes(32).toString('hex')
let database: TestDatabase
let house: TestHouse
let organizationId: string
let team: string // a project beside the default one
const keys = new Map<string, string>() // by permission set, granted on the whole organization
const applications = new Map<string, string>() // whose keys those are

type Answer = { status: number; body: Record<string, unknown> }

const ask = async (method: string, path: string, key: string | null, body?: unknown): Promise<Answer> => {
  const answer = await house.call(path, { method, key: null, body, headers: key === null ? {} : { 'x-auth-token': key } })
  return { status: answer.status, body: answer.text === '' ? {} : (answer.json() as Record<string, unknown>) }
}
const must = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
  const answer = await ask(method, path, house.secretKey, body)
  if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
  return answer.body
}

const IAM = '/iam/v1alpha1'
type Grant = { permission_set_names: string[]; organization_id?: string; project_ids?: string[]; condition?: string }

const newKey = async (
  rules: readonly Grant[],
): Promise<{ secretKey: string; policyId: string; accessKey: string; applicationId: string }> => {
  const application = await must('POST', `${IAM}/applications`, { name: 'somebody' })
  const policy = await must('POST', `${IAM}/policies`, { name: 'theirs', application_id: application['id'], rules })
  const key = await must('POST', `${IAM}/api-keys`, { application_id: application['id'] })
  return {
    secretKey: String(key['secret_key']),
    accessKey: String(key['access_key']),
    policyId: String(policy['id']),
    applicationId: String(application['id']),
  }
}

const routes = () => house.routes()

/** What the house writes by itself, all the time. */
const OWN_ACCORD = '^(change|usage_event.*|usage_total.*|quota_(part|alert|bucket|gateway)|bill|budget_firing|budget_message)$'

/** Everything that the management API keeps, as one number for each table. */
const trace = async (): Promise<string> => {
  const { rows: tables } = await database.db.query<{ name: string }>(
    `select table_name as name from information_schema.tables
      where table_schema = 'public' and table_type = 'BASE TABLE' and table_name !~ $1 order by 1`,
    [OWN_ACCORD],
  )
  const sums: string[] = []
  for (const { name } of tables) {
    const { rows } = await database.db.query<{ sum: string }>(
      `select coalesce(sum(('x' || left(md5(t::text), 12))::bit(48)::bigint)::text, '') as sum from "${name}" as t`,
    )
    sums.push(`${name} ${rows[0]?.sum}`)
  }
  return sums.join('\n')
}

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_MASTER_KEY: masterKey } })
  organizationId = house.owner.organizationId
  team = String((await must('POST', '/account/v3/projects', { name: 'team' }))['id'])
  for (const names of setsAlike()) {
    const { secretKey, applicationId } = await newKey(
      names.map((name) => ({ permission_set_names: [name], organization_id: organizationId })),
    )
    for (const name of names) {
      keys.set(name, secretKey)
      applications.set(name, applicationId)
    }
  }
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

test('the conditions of an organization have a bound together, and rules that share one are no more for a thousand bearers', async () => {
  const condition = `request.user_agent == "${'x'.repeat(2_000)}"`
  const rule = { permission_set_names: ['ProjectReadOnly'], organization_id: organizationId, condition }
  const made: string[] = []
  const write = (count: number) =>
    ask('POST', `${IAM}/policies`, house.secretKey, { name: 'long', no_principal: true, rules: Array.from({ length: count }, () => rule) })
  const first = await write(16)
  expect(first.status).toBe(200)
  made.push(String(first.body['id']))
  const refusal = {
    status: 400,
    body: {
      type: 'invalid_arguments',
      details: [{ argument_name: 'condition', reason: 'constraint', help_message: expect.stringContaining('32768') }],
    },
  }
  expect(await write(1)).toMatchObject(refusal)
  expect(await ask('POST', `${IAM}/policies/${made[0]}/clone`, house.secretKey)).toMatchObject(refusal)
  expect(
    await ask('PUT', `${IAM}/rules`, house.secretKey, { policy_id: made[0], rules: Array.from({ length: 17 }, () => rule) }),
  ).toMatchObject(refusal)
  // What was refused has changed nothing, and what takes away is taken.
  const { body } = await ask('GET', `${IAM}/rules?policy_id=${made[0]}`, house.secretKey)
  expect(body).toMatchObject({ total_count: 16 })
  expect(await ask('PUT', `${IAM}/rules`, house.secretKey, { policy_id: made[0], rules: [rule] })).toMatchObject({ status: 200 })
  expect((await write(15)).status).toBe(200)
  await database.db.query(`delete from policy where name = 'long'`)
})

test('whoever fills one organization with conditions holds up no other one, and no start', async () => {
  const tenant = await must('POST', '/parvis/v1/organizations', { name: 'tenant' })
  const as = String(tenant['secret_key'])
  const { body: listed } = await ask('GET', `${IAM}/groups`, as)
  const group = (listed['groups'] as { id: string; name: string }[]).find(({ name }) => name === 'All applications')
  for (const name of ['a', 'b', 'c']) expect((await ask('POST', `${IAM}/applications`, as, { name })).status).toBe(200)
  const part = 'request.time.getHours("Europe/Paris") > 24'
  const write = (length: number) => {
    const condition = Array.from({ length }, () => part).join(' || ')
    const rules = Array.from({ length: 50 }, () => ({
      permission_set_names: ['GenerativeApisModelAccess'],
      organization_id: tenant['id'],
      condition,
    }))
    return ask('POST', `${IAM}/policies`, as, { name: 'full', group_id: group?.id, rules })
  }
  expect((await write(14)).status).toBe(200)
  for (let policy = 1; policy < 50; policy++) {
    const refused = await write(policy % 10 === 0 ? 1 : 44)
    expect(refused.status).toBe(400)
    expect(refused.body['details']).toMatchObject([{ help_message: expect.stringContaining('put rules with the same condition into one') }])
  }

  const { secretKey, accessKey } = await newKey([{ permission_set_names: ['IAMReadOnly'], organization_id: organizationId }])
  const seen = async (at: TestHouse) =>
    (await at.call(`${IAM}/api-keys/${accessKey}`, { key: null, headers: { 'x-auth-token': secretKey } })).status
  const other = await startHouse({ database, settings: { PARVIS_MASTER_KEY: masterKey } })
  try {
    expect([await seen(house), await seen(other)]).toEqual([200, 200])
    expect((await ask('DELETE', `${IAM}/api-keys/${accessKey}`, house.secretKey)).status).toBe(204)
    expect(await seen(house)).toBe(401)
    await until('revoked there', async () => (await seen(other)) === 401)
  } finally {
    await other.stop()
  }
})

test('an organization whose conditions are longer together than they may be goes on, and whatever makes them no longer is taken', async () => {
  const rule = { permission_set_names: ['ProjectReadOnly'], organization_id: organizationId }
  const { policyId, secretKey } = await newKey([rule])
  const text = `request.user_agent != "${'x'.repeat(2_000)}"`
  await database.db.query(
    `insert into policy_rule (id, policy_id, position, permission_set_names, condition)
     select gen_random_uuid(), $1, n, '{ProjectReadOnly}', $2 from generate_series(1, 40) as n`,
    [policyId, text],
  )
  const write = (count: number) =>
    ask('PUT', `${IAM}/rules`, house.secretKey, {
      policy_id: policyId,
      rules: [rule, ...Array.from({ length: count }, () => ({ ...rule, condition: text }))],
    })
  expect((await write(41)).status).toBe(400)
  expect((await write(40)).status).toBe(200)
  expect((await write(30)).status).toBe(200)
  expect((await ask('GET', `/account/v3/projects/${organizationId}`, secretKey)).status).toBe(200)
  await newKey([rule])
  expect((await write(31)).status).toBe(400)
  expect((await write(0)).status).toBe(200)
})

test('an application makes no key for itself by calling itself a user: a key that ends could make one that does not', async () => {
  const { secretKey, applicationId } = await newKey([])
  const count = async () => (await database.db.query('select from api_key where principal_id = $1', [applicationId])).rowCount
  const before = await count()
  await until('the key is known', async () => (await ask('GET', `${IAM}/api-keys`, secretKey)).status === 200)
  for (const body of [{ user_id: applicationId }, { application_id: applicationId }])
    expect(await ask('POST', `${IAM}/api-keys`, secretKey, body)).toMatchObject({ status: 403 })
  expect(await count()).toBe(before)
})

test('a key of another organization sees nothing of this one: the answers are those for what does not exist', async () => {
  const other = randomUUID()
  const owner = randomUUID()
  await database.db.query(`insert into organization (id, name) values ($1, 'other')`, [other])
  await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [other])
  await database.db.query(`insert into principal (id, organization_id, kind, role, name) values ($1, $2, 'user', 'owner', 'owner')`, [
    owner,
    other,
  ])
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey })
  const foreign = await createKey(database.db, secrets, {
    organizationId: other as never,
    principalId: owner as never,
    description: '',
    expiresAt: null,
    actor: 'test',
  })
  const application = String((await must('POST', `${IAM}/applications`, { name: 'ours' }))['id'])
  const policy = String((await must('POST', `${IAM}/policies`, { name: 'ours', no_principal: true }))['id'])
  const group = String((await must('POST', `${IAM}/groups`, { name: 'ours' }))['id'])
  const user = String((await must('POST', `${IAM}/users`, { email: 'ours@example.com' }))['id'])
  const key = String((await must('POST', `${IAM}/api-keys`, { application_id: application }))['access_key'])
  const log = (await must('GET', `${IAM}/logs`))['logs'] as { id: string }[]
  const ours: Record<string, string> = {
    application_id: application,
    policy_id: policy,
    group_id: group,
    user_id: user,
    access_key: key,
    log_id: log[0]?.id ?? '',
    project_id: team,
    organization_id: organizationId,
  }
  const known = Object.keys(ours)
  await until('the other key is known', async () => (await ask('GET', `${IAM}/groups`, foreign.secretKey)).status === 200)
  const before = await trace()
  let compared = 0
  for (const route of routes()) {
    const names = [...route.path.matchAll(/:(\w+)/g)].map((match) => match[1] ?? '')
    if (route.needs === 'nobody' || names.length === 0 || !names.every((name) => known.includes(name))) continue
    const body = route.method === 'GET' ? undefined : { name: 'x', username: 'xx', user_id: user, expires_at: null }
    const stranger = Object.fromEntries(names.map((name) => [name, name === 'access_key' ? 'SCW00000000000000000' : randomUUID()]))
    const fill = (ids: Record<string, string>) => route.path.replaceAll(/:(\w+)/g, (_, name: string) => ids[name] ?? '')
    const real = await ask(route.method, fill(ours), foreign.secretKey, body)
    const none = await ask(route.method, fill(stranger), foreign.secretKey, body)
    // The same answer, but for the id that was asked for.
    const blind = (answer: Answer, ids: Record<string, string>) =>
      Object.values(ids).reduce((text, id) => text.replaceAll(id, 'ID'), JSON.stringify(answer))
    const what = `${route.method} ${route.path} `
    expect(what + blind(real, ours)).toBe(what + blind(none, stranger))
    compared += 1
  }
  expect(compared).toBeGreaterThan(20)
  for (const list of ['applications', 'policies', 'groups', 'users', 'api-keys', 'logs'])
    expect(JSON.stringify(await ask('GET', `${IAM}/${list}?organization_id=${organizationId}`, foreign.secretKey))).toContain(
      '"total_count":0',
    )
  expect(await trace()).toBe(before)
})

test('a key for one project gets nothing of another', async () => {
  const { secretKey } = await newKey([{ permission_set_names: ['AllProductsFullAccess'], project_ids: [team] }])
  const project = (id: string) => ask('GET', `/account/v3/projects/${id}`, secretKey)
  expect((await project(team)).status).toBe(200)
  const nobody = randomUUID()
  const [hidden, missing] = [await project(organizationId), await project(nobody)]
  expect(hidden.status).toBe(404)
  expect(JSON.stringify(hidden).replaceAll(organizationId, 'ID')).toBe(JSON.stringify(missing).replaceAll(nobody, 'ID'))
  expect((await ask('GET', '/account/v3/projects', secretKey)).body).toMatchObject({ total_count: 1, projects: [{ id: team }] })
  expect(
    (
      await ask(
        'GET',
        `/parvis/v1/usage?project_id=${organizationId}&from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z&step=day`,
        secretKey,
      )
    ).status,
  ).toBe(403)
})

test('who manages groups brings nobody into a group that may more, themselves included', async () => {
  const manager = keys.get('IAMGroupManager') ?? ''
  const self = applications.get('IAMGroupManager') ?? ''
  const group = async (sets: string[]): Promise<string> => {
    const { id } = await must('POST', `${IAM}/groups`, { name: `g-${sets.join('-')}` })
    if (sets.length > 0)
      await must('POST', `${IAM}/policies`, {
        name: 'g',
        group_id: id,
        rules: [{ permission_set_names: sets, organization_id: organizationId }],
      })
    return String(id)
  }
  const [mighty, alike, empty] = [await group(['BillingManager']), await group(['IAMGroupReadOnly']), await group([])]
  const before = await trace()
  const [one, all] = [{ application_id: self }, { application_ids: [self] }]
  const ways = (id: string): [string, string, unknown][] => [
    ['POST', `${IAM}/groups/${id}/add-member`, one],
    ['POST', `${IAM}/groups/${id}/add-members`, all],
    ['PUT', `${IAM}/groups/${id}/members`, all],
  ]
  const refused = { status: 412, body: { type: 'precondition_failed', precondition: 'protected_resource' } }
  for (const [method, path, body] of ways(mighty)) expect(await ask(method, path, manager, body)).toMatchObject(refused)
  expect(await trace()).toBe(before)
  for (const id of [alike, empty])
    for (const [method, path, body] of ways(id)) expect((await ask(method, path, manager, body)).status).toBe(200)
  // Who is in it already stays, and leaves; who gives rights away may do as they like.
  await must('POST', `${IAM}/groups/${mighty}/add-member`, one)
  for (const [method, path, body] of ways(mighty)) expect((await ask(method, path, manager, body)).status).toBe(200)
  expect((await ask('POST', `${IAM}/groups/${mighty}/remove-member`, manager, one)).status).toBe(200)
  const [method, path, body] = ways(mighty)[0] as [string, string, unknown]
  expect((await ask(method, path, keys.get('IAMManager') ?? '', body)).status).toBe(200)
})

test('an application that manages users makes none where every user may more than it', async () => {
  const manager = keys.get('IAMUserManager') ?? ''
  const add = (key: string) => {
    const username = `u-${randomUUID().slice(0, 8)}`
    return ask('POST', `${IAM}/users`, key, { member: { username, email: `${username}@example.com` } })
  }
  expect((await add(manager)).status).toBe(200)
  const { body } = await ask('GET', `${IAM}/groups`, house.secretKey)
  const everybody = (body['groups'] as { id: string; name: string }[]).find(({ name }) => name === 'All users')
  const { id } = await must('POST', `${IAM}/policies`, {
    name: 'everybody',
    group_id: everybody?.id,
    rules: [{ permission_set_names: ['BillingReadOnly'], organization_id: organizationId }],
  })
  try {
    const before = await trace()
    expect(await add(manager)).toMatchObject({ status: 412, body: { type: 'precondition_failed', precondition: 'protected_resource' } })
    expect(await trace()).toBe(before)
    // Who gives rights away may do as they like.
    expect((await add(keys.get('IAMManager') ?? '')).status).toBe(200)
  } finally {
    await must('DELETE', `${IAM}/policies/${String(id)}`)
  }
})

test('models are used with one of three permission sets, on the project of the URL', async () => {
  const models = async (secretKey: string, project?: string) =>
    (await house.call(`${project === undefined ? '' : `/${project}`}/v1/models`, { key: secretKey })).status
  const using = ['GenerativeApisModelAccess', 'GenerativeApisFullAccess', 'AllProductsFullAccess']
  for (const [name, secretKey] of keys) expect([name, await models(secretKey)]).toEqual([name, using.includes(name) ? 200 : 403])

  const { secretKey, policyId } = await newKey([{ permission_set_names: ['GenerativeApisModelAccess'], project_ids: [team] }])
  expect(await models(secretKey)).toBe(403)
  expect(await models(secretKey, team)).toBe(200)
  expect(await models(secretKey, organizationId)).toBe(403)
  expect(await models(secretKey, randomUUID())).toBe(403)
  // As soon as the change is answered here; every other gateway follows within a second.
  await must('PUT', `${IAM}/rules`, {
    policy_id: policyId,
    rules: [{ permission_set_names: ['GenerativeApisModelAccess'], organization_id: organizationId }],
  })
  expect(await models(secretKey)).toBe(200)
  await must('DELETE', `${IAM}/policies/${policyId}`)
  expect([await models(secretKey), await models(secretKey, team)]).toEqual([403, 403])
  expect(await models(house.secretKey, team)).toBe(200)
})

test('a condition is looked at on the data plane, and holds only for the policy that it is on', async () => {
  const use = { permission_set_names: ['GenerativeApisModelAccess'], organization_id: '' }
  const fenced = (condition: string): Grant => ({ ...use, organization_id: organizationId, condition })
  const { secretKey, policyId } = await newKey([fenced('inIpRange(request.ip, "127.0.0.0/8")')])
  const status = async (agent = 'test') => (await house.call('/v1/models', { key: secretKey, headers: { 'user-agent': agent } })).status
  const rules = (...given: Grant[]) => must('PUT', `${IAM}/rules`, { policy_id: policyId, rules: given })
  expect(await status()).toBe(200)
  await rules(fenced('!inIpRange(request.ip, "127.0.0.0/8")'))
  expect(await status()).toBe(403)
  await rules(fenced('request.user_agent.startsWith("robot/")'))
  expect([await status('robot/2'), await status('curl')]).toEqual([200, 403])
  await rules(fenced('request.time < timestamp("2020-01-01T00:00:00Z")'))
  expect(await status()).toBe(403)
  await rules(fenced('request.time < timestamp("2020-01-01T00:00:00Z")'), fenced(''))
  expect(await status()).toBe(200)
})

test('a time zone on anything but the time of the request is refused when the rule is written, and in words', async () => {
  const { policyId } = await newKey([])
  const condition = 'timestamp("2026-11-22T10:30:00Z").getHours("Europe/Paris") == 11'
  const rule = { permission_set_names: ['ProjectReadOnly'], organization_id: organizationId, condition }
  const help_message = 'getHours with a time zone is there for request.time only'
  const refusal = {
    status: 400,
    body: { type: 'invalid_arguments', details: [{ argument_name: 'condition', reason: 'format', help_message }] },
  }
  expect(await ask('PUT', `${IAM}/rules`, house.secretKey, { policy_id: policyId, rules: [rule] })).toMatchObject(refusal)
  expect(await ask('POST', `${IAM}/policies`, house.secretKey, { name: 'zoned', no_principal: true, rules: [rule] })).toMatchObject(refusal)
})

test('a change made here holds on another gateway', async () => {
  const other = await startHouse({ database, settings: { PARVIS_MASTER_KEY: masterKey } })
  try {
    const { secretKey, policyId } = await newKey([])
    const there = async () => (await other.call('/v1/models', { key: secretKey })).status
    const rules = (...given: Grant[]) => must('PUT', `${IAM}/rules`, { policy_id: policyId, rules: given })
    await rules({ permission_set_names: ['GenerativeApisModelAccess'], organization_id: organizationId })
    await until('granted there', async () => (await there()) === 200)
    await rules()
    await until('taken away there', async () => (await there()) === 403)
  } finally {
    await other.stop()
  }
})

test('what a proxy says of where a request comes from counts only where the proxy is trusted', async () => {
  const behind = await startHouse({ database, settings: { PARVIS_MASTER_KEY: masterKey, PARVIS_TRUSTED_PROXIES: '127.0.0.0/8' } })
  try {
    const use = { permission_set_names: ['GenerativeApisModelAccess', 'AllProductsReadOnly'], organization_id: organizationId }
    const { secretKey } = await newKey([{ ...use, condition: 'inIpRange(request.ip, "198.51.100.0/24")' }])
    const status = async (at: TestHouse, path: string, from: string) =>
      (await at.call(path, { key: secretKey, headers: { 'x-forwarded-for': from } })).status
    await until('the key is known', async () => (await status(behind, '/v1/models', '198.51.100.7')) === 200)
    const project = `/account/v3/projects/${team}`
    expect(await status(behind, project, '198.51.100.7')).toBe(200)
    // The client itself may have written what stands before the last address.
    for (const from of ['203.0.113.1', '198.51.100.7, 203.0.113.1'])
      expect([await status(behind, '/v1/models', from), await status(behind, project, from)]).toEqual([403, 404])
    const nonsense = await behind.call(`${IAM}/applications`, {
      key: house.secretKey,
      body: { name: 'x' },
      headers: { 'x-forwarded-for': 'nonsense' },
    })
    expect(nonsense.status).toBe(200)
    expect([await status(house, '/v1/models', '198.51.100.7'), await status(house, project, '198.51.100.7')]).toEqual([403, 404])
  } finally {
    await behind.stop()
  }
})
