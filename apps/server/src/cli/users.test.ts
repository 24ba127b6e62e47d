import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { runParvis } from '@parvis/testkit/server-process'
import { afterAll, beforeAll, expect, test } from 'vitest'

/** Each command is a process of its own, and a busy machine starts one in seconds. */
const LIMIT_MS = 300_000
const PASSWORD = 'four words of no meaning'
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

const parvis = (input: string, ...args: string[]) =>
  runParvis(['users', ...args], { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: house.dataDir, PARVIS_PUBLIC_URL: house.url }, input)
const signIn = (login: string, password: string) => house.call('/parvis/v1/sign-in', { key: null, body: { login, password } })

test(
  'the owner of a new installation gets a password by hand and signs in',
  async () => {
    expect((await signIn('owner', PASSWORD)).status).toBe(401)
    expect((await parvis('', 'list')).out).toBe('owner  owner of default  no password  never signed in\n')
    const weak = await parvis('short\n', 'set-password', 'owner')
    expect([weak.code, weak.err]).toEqual([1, expect.stringContaining('at least 12 characters')])
    const set = await parvis(`${PASSWORD}\nsecond line\n`, 'set-password', 'OWNER')
    expect([set.code, set.err]).toEqual([0, ''])
    expect(set.out).not.toContain(PASSWORD)
    const entered = await signIn('owner', PASSWORD)
    expect(entered.status).toBe(200)
    const { token } = entered.json() as { token: string }
    const read = () => house.call('/iam/v1alpha1/users', { key: null, headers: { 'x-session-token': token } })
    expect((await read()).status).toBe(200)
    expect((await parvis('', 'list')).out).toMatch(/^owner {2}owner of default {2}active {2}last signed in 20.*Z\n$/)
    // A new one ends what the old one opened.
    await parvis('another four words, said twice', 'set-password', 'owner')
    expect((await read()).status).toBe(401)
    expect((await signIn('owner', PASSWORD)).status).toBe(401)
  },
  LIMIT_MS,
)

test(
  'somebody new is invited by a link, locked and unlocked; the running server knows',
  async () => {
    const invited = await parvis('', 'invite', 'jane@example.com')
    expect(invited.out).toContain('jane@example.com is a new member of default, without any rights so far.')
    const url = new URL(/^http\S+$/m.exec(invited.out)?.[0] ?? '')
    expect((await house.call(url.pathname + url.search, { key: null })).text).toContain('jane@example.com')
    const again = await parvis('', 'invite', 'jane@example.com')
    expect(again.out).not.toContain('new member')
    expect((await house.call(url.pathname + url.search, { key: null })).status).toBe(404)
    const token = new URL(/^http\S+$/m.exec(again.out)?.[0] ?? '').searchParams.get('token')
    const taken = await house.call('/parvis/v1/invitations/accept', { key: null, body: { token } })
    const { secret_key: key, user_id: id } = taken.json() as { secret_key: string; user_id: string }
    const works = async () => (await house.call(`/iam/v1alpha1/users/${id}`, { key })).status === 200
    await expect.poll(works).toBe(true)
    expect((await parvis('', 'lock', 'jane@example.com')).out).toContain('is locked')
    await expect.poll(works).toBe(false)
    expect((await parvis('', 'list')).out).toMatch(/^jane@example\.com {2}member of default {2}locked/m)
    expect((await parvis('', 'unlock', 'jane@example.com')).code).toBe(0)
    await expect.poll(works).toBe(true)
    const users = JSON.parse((await parvis('', 'list', '--json')).out) as { username: string; state: string }[]
    expect(users).toMatchObject([{ username: 'owner' }, { username: 'jane@example.com', state: 'no password' }])
    const { rows } = await database.db.query(`select distinct actor from audit_entry where resource_id = $1 and actor <> $1`, [id])
    expect(rows).toEqual([{ actor: 'operator on this machine' }])
  },
  LIMIT_MS,
)

test.each([
  [['invite', 'nobody'], 'give an address of e-mail'],
  [['lock', 'nobody'], 'There is no user nobody'],
  [['lock', 'owner'], 'cannot be locked'],
  [['set-password', 'owner'], 'at least 12 characters'],
  [['unlock', 'owner', '--organization', 'mine'], 'takes the id of an organization'],
])('%j says what is wrong', async (args, words) => {
  const { code, out, err } = await parvis('', ...args)
  expect([code, out]).toEqual([1, ''])
  expect(err).toContain(words)
})
