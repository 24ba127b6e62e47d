import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Answer, openCalls } from './every-route.ts'

// What the quotas of an organization say that it may have at most is what it gets (serverless-platform.md 4.5, control-plane.md 5.8).

const IAM = '/iam/v1alpha1'
let database: TestDatabase
let house: TestHouse
let organizations = 0

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
})
afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

/** A new organization, asked by its owner. */
const openOrganization = async (of: TestHouse = house) => {
  const calls = openCalls(of)
  organizations += 1
  const made = await calls.must('POST', '/parvis/v1/organizations', { name: `organization ${organizations}` })
  const [id, key] = [String(made['id']), String(made['secret_key'])]
  const ask = (method: string, path: string, body?: unknown): Promise<Answer> => calls.ask(method, path, body, key)
  return {
    id,
    ask,
    must: async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
      const answer = await ask(method, path, body)
      if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`)
      return answer.body
    },
    quotum: async (name: string) => (await ask('GET', `${IAM}/quota/${name}?organization_id=${id}`)).body['limit'],
    logs: async () => (await ask('GET', `${IAM}/logs?page_size=1`)).body['total_count'],
  }
}
type Organization = Awaited<ReturnType<typeof openOrganization>>

const NAMED = (_id: string, at: number): unknown => ({ name: `thing ${at}` })
type Kind = {
  readonly path: string
  readonly list: string
  readonly quotum: string
  readonly resource?: string
  readonly id?: string
  readonly max: number
  /** Those that are there from the beginning and count. */
  readonly first?: number
  /** Those that are there and were made by nobody. */
  readonly managed?: number
  readonly body: (bearer: string, at: number) => unknown
}

const KINDS: readonly Kind[] = [
  { path: `${IAM}/applications`, list: 'applications', quotum: 'IamApplications', max: 100, body: NAMED },
  { path: `${IAM}/groups`, list: 'groups', quotum: 'IamGroups', max: 50, managed: 2, body: NAMED },
  { path: `${IAM}/policies`, list: 'policies', quotum: 'IamPolicies', max: 50, body: NAMED },
  { path: `${IAM}/users`, list: 'users', quotum: 'IamUsers', max: 50, first: 1, body: (_id, at) => ({ email: `u${at}@example.com` }) },
  {
    path: `${IAM}/api-keys`,
    list: 'api_keys',
    quotum: 'IamApiKeys',
    id: 'access_key',
    max: 50,
    first: 1,
    body: (bearer) => ({ application_id: bearer }),
  },
  {
    path: '/account/v3/projects',
    list: 'projects',
    quotum: 'AccountProjects',
    resource: 'UsrProjectsWidth',
    max: 25,
    first: 1,
    body: NAMED,
  },
]

test.each(KINDS)('an organization has $max $list and no more, whoever asks at once', async (kind) => {
  const { path, max, first = 0, managed = 0, id = 'id' } = kind
  const organization = await openOrganization()
  expect(await organization.quotum(kind.quotum)).toBe(max)
  // Keys of one organization, whoever bears them.
  const bearers = kind.quotum === 'IamApiKeys' ? await two(organization) : ['', '']
  let asked = 0
  const make = (): Promise<Answer> => organization.ask('POST', path, kind.body(bearers[(asked += 1) % 2] ?? '', asked))
  const total = async () => (await organization.ask('GET', `${path}?page_size=1`)).body['total_count']
  const refusal = {
    status: 403,
    body: {
      type: 'quotas_exceeded',
      message: 'quota(s) exceeded for this resource',
      details: [{ resource: kind.resource ?? kind.quotum, quota: max, current: max }],
    },
  }

  const answers = await Promise.all(Array.from({ length: max - first + 3 }, make))
  const made = answers.filter(({ status }) => status === 200)
  expect(made).toHaveLength(max - first)
  for (const refused of answers.filter(({ status }) => status !== 200)) expect(refused).toEqual(refusal)

  const logs = await organization.logs()
  expect(await make()).toEqual(refusal)
  expect([await total(), await organization.logs()]).toEqual([max + managed, logs])

  await organization.must('DELETE', `${path}/${String(made[0]?.body[id])}`)
  const both = await Promise.all([make(), make()])
  expect(both.filter(({ status }) => status === 200)).toHaveLength(1)
  expect(both).toContainEqual(refusal)
  expect(await total()).toBe(max + managed)
  // Nobody else is held back.
  expect((await (await openOrganization()).ask('POST', `${IAM}/groups`, { name: 'first' })).status).toBe(200)
})

const two = async (organization: Organization): Promise<string[]> =>
  Promise.all(['one', 'other'].map(async (name) => String((await organization.must('POST', `${IAM}/applications`, { name }))['id'])))

test('a copy of a policy is one policy more', async () => {
  const organization = await openOrganization()
  const policy = String((await organization.must('POST', `${IAM}/policies`, { name: 'first' }))['id'])
  const clone = () => organization.ask('POST', `${IAM}/policies/${policy}/clone`)
  const answers = await Promise.all(Array.from({ length: 50 }, clone))
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(49)
  expect(await clone()).toMatchObject({ status: 403, body: { details: [{ resource: 'IamPolicies', quota: 50, current: 50 }] } })
})

test('an invitation that would give a key too many stays good, for a password or until there is room', async () => {
  const organization = await openOrganization()
  const invite = async (email: string): Promise<string> => {
    const user = String((await organization.must('POST', `${IAM}/users`, { email }))['id'])
    return String((await organization.must('POST', `/parvis/v1/users/${user}/invitation`, {}))['token'])
  }
  const [one, other] = [await invite('one@example.com'), await invite('other@example.com')]
  const bearer = (await two(organization))[0] ?? ''
  const keys = await Promise.all(Array.from({ length: 49 }, () => organization.must('POST', `${IAM}/api-keys`, { application_id: bearer })))
  const accept = async (token: string, password?: string) =>
    house.call('/parvis/v1/invitations/accept', { key: null, body: { token, password } })

  expect((await accept(one)).json()).toMatchObject({
    type: 'quotas_exceeded',
    details: [{ resource: 'IamApiKeys', quota: 50, current: 50 }],
  })
  expect((await accept(other, 'a quiet harbour at dusk 4')).status).toBe(200)
  await organization.must('DELETE', `${IAM}/api-keys/${String(keys[0]?.['access_key'])}`)
  expect((await accept(one)).status).toBe(200)
  expect((await accept(one)).status).toBe(404)
})

test('an installation has the maxima that its settings say: fewer, more, and the rest as before', async () => {
  const other = await freshDatabase()
  const own = await startHouse({ database: other, settings: { PARVIS_MAXIMA: 'IamGroups=2,IamPolicies=52' } })
  try {
    const organization = await openOrganization(own)
    const shown = (await organization.must('GET', `${IAM}/quota?organization_id=${organization.id}`))['quota']
    const numbers = Object.fromEntries((shown as { name: string; limit?: number }[]).map(({ name, limit }) => [name, limit]))
    expect(numbers).toMatchObject({
      IamGroups: 2,
      IamPolicies: 52,
      IamUsers: 50,
      IamApiKeys: 50,
      IamApplications: 100,
      AccountProjects: 25,
    })
    expect([await organization.quotum('IamGroups'), await organization.quotum('IamPolicies')]).toEqual([2, 52])

    for (const [path, quotum, max] of [
      ['groups', 'IamGroups', 2],
      ['policies', 'IamPolicies', 52],
    ] as const) {
      for (let at = 0; at < max; at += 1) await organization.must('POST', `${IAM}/${path}`, { name: `thing ${at}` })
      expect(await organization.ask('POST', `${IAM}/${path}`, { name: 'one more' })).toMatchObject({
        status: 403,
        body: { type: 'quotas_exceeded', details: [{ resource: quotum, quota: max, current: max }] },
      })
    }
  } finally {
    await own.stop()
    await other.drop()
  }
})
