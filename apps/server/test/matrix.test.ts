import { randomUUID } from 'node:crypto'
import { PERMISSION_SETS, type Right } from '@parvis/server/iam/permission-sets'
import { inferenceReference } from '@parvis/server/inference/reference'
import type { KnownRoute } from '@parvis/server/kit/management'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Answer, APART, alwaysRefuses, type Call, type Calls, openCalls, setsAlike } from './every-route.ts'

// Every route × every kind of caller. A route that is added later is here by itself; test/every-route.ts has to know how to call it.

let database: TestDatabase
let house: TestHouse
let calls: Calls
let routes: { route: KnownRoute; what: string; call: Call }[]
const sets = new Map<string, string>() // keys by permission set, granted on the whole organization
const callers: Record<'nobody' | 'expired' | 'foreign' | 'elsewhere', string> = { nobody: '', expired: '', foreign: '', elsewhere: '' }

const IAM = '/iam/v1alpha1'
type Grant = { permission_set_names: string[]; organization_id?: string; project_ids?: string[] }

const newKey = async (rules: readonly Grant[]): Promise<{ secretKey: string; accessKey: string }> => {
  const application = await calls.must('POST', `${IAM}/applications`, { name: 'somebody' })
  await calls.must('POST', `${IAM}/policies`, { name: 'theirs', application_id: application['id'], rules })
  const key = await calls.must('POST', `${IAM}/api-keys`, { application_id: application['id'] })
  return { secretKey: String(key['secret_key']), accessKey: String(key['access_key']) }
}

/** What the house writes by itself, all the time. */
const OWN_ACCORD = '^(change|usage_event.*|usage_total.*|quota_(part|alert|bucket|gateway)|bill|budget_firing|budget_message)$'

/** Everything that is kept, as one number for each table: the audit too, since a refusal is no change. */
const trace = async (): Promise<Record<string, string>> => {
  const { rows: tables } = await database.db.query<{ name: string }>(
    `select table_name as name from information_schema.tables
      where table_schema = 'public' and table_type = 'BASE TABLE' and table_name !~ $1 order by 1`,
    [OWN_ACCORD],
  )
  const sums: Record<string, string> = {}
  for (const { name } of tables) {
    const { rows } = await database.db.query<{ sum: string }>(
      `select count(*) || ' ' || coalesce(sum(('x' || left(md5(t::text), 12))::bit(48)::bigint)::text, '') as sum from "${name}" as t`,
    )
    sums[name] = rows[0]?.sum ?? ''
  }
  return sums
}

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  calls = openCalls(house)
  for (const names of setsAlike()) {
    const { secretKey } = await newKey(names.map((name) => ({ permission_set_names: [name], organization_id: calls.own })))
    for (const name of names) sets.set(name, secretKey)
  }
  callers.nobody = (await newKey([])).secretKey
  const expired = await newKey([{ permission_set_names: ['OrganizationManager'], organization_id: calls.own }])
  callers.expired = expired.secretKey
  callers.foreign = String((await calls.must('POST', '/parvis/v1/organizations', { name: 'other' }))['secret_key'])
  const elsewhere = String((await calls.must('POST', '/account/v3/projects', { name: 'elsewhere' }))['id'])
  const ofProjects = [...PERMISSION_SETS.values()].filter(({ scopeType }) => scopeType === 'projects').map(({ name }) => name)
  callers.elsewhere = (await newKey([{ permission_set_names: ofProjects, project_ids: [elsewhere] }])).secretKey

  routes = []
  for (const route of house.routes()) {
    if (route.needs === 'nobody') continue
    const what = `${route.method} ${route.path}`
    const stranger = [...route.path.matchAll(/:(\w+)/g)].find(([, name = '']) => !calls.knows(name))
    if (stranger !== undefined && !alwaysRefuses(route) && !APART.has(what))
      throw new Error(`${what}: say in test/every-route.ts what ${stranger[0]} can be`)
    routes.push({ route, what, call: await calls.callOf(route) })
  }
  // Last: keys that are read again with this one.
  await database.db.query(`update api_key set expires_at = now() - interval '1 second' where access_key = $1`, [expired.accessKey])
  await calls.must('POST', `${IAM}/applications`, { name: 'what is known is read again' })
}, 120_000)

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const isEmpty = (body: Record<string, unknown>): boolean =>
  body['total_count'] === 0 ||
  (Object.values(body).some(Array.isArray) && Object.values(body).every((value) => !Array.isArray(value) || value.length === 0))

const as = (call: Call, key: string | null): Promise<Answer> => calls.ask(call.method, call.path, call.body, key)

test('the owner comes through to every route', async () => {
  const shut: string[] = []
  for (const { route, what } of routes) {
    if (route.method !== 'GET' || alwaysRefuses(route) || APART.has(what)) continue
    const answer = await as(await calls.callOf(route), house.secretKey)
    if (answer.status >= 300)
      shut.push(`${what} answered ${answer.status} ${JSON.stringify(answer.body)}: say in test/every-route.ts how to call it`)
  }
  expect(shut).toEqual([])
}, 120_000)

test('what is refused is refused in the contract’s words, and moves nothing', async () => {
  const before = await trace()
  const wrong: string[] = []
  const note = (what: string, who: string, { status, body }: Answer): void =>
    void wrong.push(`${who}: ${what}: ${status} ${JSON.stringify(body).slice(0, 200)}`)

  for (const { route, what, call } of routes) {
    if (route.needs === 'nobody') continue
    const { resource, action, scope } = route.needs

    for (const [who, key, reason] of [
      ['no key', null, 'invalid_argument'],
      ['an expired key', callers.expired, 'expired'],
    ] as const) {
      const answer = await as(call, key)
      if (answer.status !== 401 || answer.body['type'] !== 'denied_authentication' || answer.body['reason'] !== reason)
        note(what, who, answer)
    }

    // Asked of the organization or of the installation as a whole, it is refused before anything is looked at.
    const whole = scope === 'organization' || scope === 'installation' || scope === 'anywhere'
    const isWorded = ({ status, body }: Answer): boolean =>
      status === 403 && body['type'] === 'permissions_denied' && JSON.stringify(body['details']) === JSON.stringify([{ resource, action }])
    /** A project's things are hidden, or the list of them is empty. */
    const isHidden = ({ status, body }: Answer): boolean =>
      (status === 403 && body['type'] === 'permissions_denied') ||
      (status === 404 && body['type'] === 'not_found') ||
      (route.method === 'GET' && status === 200 && isEmpty(body))

    const nobody = await as(call, callers.nobody)
    if (scope !== 'self' && !(whole ? isWorded(nobody) : isHidden(nobody) || nobody.status === 501)) note(what, 'nobody', nobody)
    if (scope === 'installation') {
      const foreign = await as(call, callers.foreign)
      if (!isWorded(foreign)) note(what, 'another organization’s owner', foreign)
    }
    if (scope === 'organization' || scope === 'installation') {
      const elsewhere = await as(call, callers.elsewhere)
      if (!isWorded(elsewhere)) note(what, 'a key for another project', elsewhere)
    }
    if (scope === 'project') {
      for (const [who, key] of [
        ['a key for another project', callers.elsewhere],
        ['another organization’s owner', callers.foreign],
      ] as const) {
        // Lists and makings without a word of a project are about one’s own.
        const ours = call.path.includes(calls.own) || JSON.stringify(call.body ?? {}).includes(calls.own) || /:(?!region)/.test(route.path)
        if (!ours) continue
        const answer = await as(call, key)
        if (!isHidden(answer)) note(what, who, answer)
      }
    }

    for (const [name, set] of PERMISSION_SETS) {
      if (scope === 'self' || set.rights.includes(`${resource}:${action}` as Right)) continue
      const answer = await as(call, sets.get(name) ?? '')
      if (!(whole ? isWorded(answer) : isHidden(answer) || answer.status === 501)) note(what, name, answer)
    }
  }
  expect(wrong).toEqual([])
  expect(await trace()).toEqual(before)
}, 300_000)

test('each permission set opens what its rights are for', async () => {
  const shut: string[] = []
  for (const { route, what, call } of routes) {
    if (route.needs === 'nobody' || route.needs.scope === 'self' || route.method !== 'GET' || alwaysRefuses(route) || APART.has(what))
      continue
    const { resource, action } = route.needs
    const opening = [...PERMISSION_SETS].filter(([, set]) => set.rights.includes(`${resource}:${action}` as Right))
    if (opening.length === 0) shut.push(`${what}: no permission set has ${resource}:${action}: add the right to iam/permission-sets.ts`)
    for (const [name] of opening) {
      const answer = await as(call, sets.get(name) ?? '')
      if (answer.status >= 300) shut.push(`${name}: ${what}: ${answer.status} ${JSON.stringify(answer.body)}`)
    }
  }
  expect(shut).toEqual([])
}, 120_000)

test('the data plane: who may use models gets past the door, everybody else does not, and nothing moves', async () => {
  const before = await trace()
  const using = new Set(['GenerativeApisModelAccess', 'GenerativeApisFullAccess', 'AllProductsFullAccess'])
  const wrong: string[] = []
  for (const { method, path } of inferenceReference) {
    const call = async (key: string | null, project: string): Promise<number> =>
      (
        await house.call(path.replace(':project', project).replace('*', 'some-model'), {
          method,
          key,
          body: method === 'POST' ? { model: 'm' } : undefined,
        })
      ).status
    const look = async (
      who: string,
      key: string | null,
      expected: (status: number) => boolean,
      project: string = calls.own,
    ): Promise<void> => {
      const status = await call(key, project)
      if (!expected(status)) wrong.push(`${who}: ${method} ${path}: ${status}`)
    }
    const past = (status: number): boolean => status !== 401 && status !== 403 && status !== 429
    await look('no key', null, (status) => status === 401)
    await look('an expired key', callers.expired, (status) => status === 403)
    await look('nobody', callers.nobody, (status) => status === 403)
    await look('a key for another project', callers.elsewhere, (status) => status === 403)
    if (path.startsWith('/:project')) {
      await look('another organization’s owner', callers.foreign, (status) => status === 403)
      await look('the owner, in a project of nobody', house.secretKey, (status) => status === 403, randomUUID())
    }
    await look('the owner', house.secretKey, past)
    for (const [name, key] of sets) await look(name, key, using.has(name) ? past : (status) => status === 403)
  }
  expect(wrong).toEqual([])
  expect(await trace()).toEqual(before)
}, 120_000)
