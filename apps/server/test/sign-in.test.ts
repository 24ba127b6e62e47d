import { createHash, createHmac, randomBytes, randomUUID } from 'node:crypto'
import { openFailures } from '@parvis/server/iam/failures'
import { openPasswords } from '@parvis/server/iam/passwords'
import { openSessions } from '@parvis/server/iam/sessions'
import { openSignIn } from '@parvis/server/iam/sign-in'
import { systemClock } from '@parvis/server/kit/clock'
import { openLog } from '@parvis/server/kit/log'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { type MailServer, openMailServer } from '@parvis/testkit/mail-server'
import { until } from '@parvis/testkit/until'
import { createClient } from '@scaleway/sdk-client'
import { Iamv1alpha1 } from '@scaleway/sdk-iam'
import { SignJWT } from 'jose'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

// How people sign in: by password, with sessions that end when they should, and by links.

const masterKey = randomBytes(32).toString('hex')
const PASSWORD = 'four words of no meaning'
const OTHER = 'and four that have some'
const IAM = '/iam/v1alpha1'

let database: TestDatabase
let mail: MailServer
let house: TestHouse
/** Another gateway on the same database. */
let second: TestHouse
let organizationId: string
let ownerId: string
/** Each test comes from a place of its own: failures count by address. */
let address = '198.51.100.0'
let tests = 0

type Answer = { status: number; headers: Headers; text: string; body: Record<string, unknown> }
type Asked = { key?: string; session?: string; body?: unknown; headers?: Record<string, string>; at?: TestHouse }

const ask = async (method: string, path: string, { key, session, body, headers = {}, at = house }: Asked = {}): Promise<Answer> => {
  const who = { ...(key !== undefined && { 'x-auth-token': key }), ...(session !== undefined && { 'x-session-token': session }) }
  const answer = await at.call(path, { method, key: null, body, headers: { 'x-forwarded-for': address, ...who, ...headers } })
  const json = answer.text.startsWith('{') ? (answer.json() as Record<string, unknown>) : {}
  return { status: answer.status, headers: answer.headers, text: answer.text, body: json }
}
const must = async (method: string, path: string, asked: Asked = {}): Promise<Record<string, unknown>> => {
  const answer = await ask(method, path, { key: house.secretKey, ...asked })
  if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`)
  return answer.body
}

type User = { id: string; username: string; email: string }
/** With a password it costs a quarter of a second to look at, and nothing to make: the hash is the owner's, who has the same. */
const newUser = async (password: typeof PASSWORD | '' = PASSWORD): Promise<User> => {
  const username = `u-${randomUUID().slice(0, 8)}`
  const email = `${username}@example.com`
  const id = String((await must('POST', `${IAM}/users`, { body: { member: { username, email } } }))['id'])
  if (password !== '') {
    await database.db.query(
      'insert into user_password (principal_id, hash, temporary) select $1, hash, true from user_password where principal_id = $2',
      [id, ownerId],
    )
  }
  return { id, username, email }
}
const signIn = (login: string, password: string, more: Record<string, unknown> = {}, asked: Asked = {}): Promise<Answer> =>
  ask('POST', '/parvis/v1/sign-in', { body: { login, password, ...more }, ...asked })
const session = async (user: User, password: string = PASSWORD): Promise<{ token: string; renew: string; jti: string }> => {
  const { status, body, text } = await signIn(user.email, password)
  if (status !== 200) throw new Error(`sign-in: ${status} ${text}`)
  return { token: String(body['token']), renew: String(body['renew_token']), jti: String((body['jwt'] as { jti: string }).jti) }
}
/** A session without the quarter of a second that a password takes, for tests of what comes after. */
const quickSession = async (user: User): Promise<{ token: string; renew: string; jti: string; key: string }> => {
  const link = await must('POST', `/parvis/v1/users/${user.id}/invitation`, { body: {} })
  const key = String((await must('POST', '/parvis/v1/invitations/accept', { body: { token: link['token'] } }))['secret_key'])
  const made = await must('POST', `${IAM}/jwts`, { key, body: { user_id: user.id, referrer: 'test' } })
  return { token: String(made['token']), renew: String(made['renew_token']), jti: (made['jwt'] as { jti: string }).jti, key }
}
/** Reads itself, which everybody may. */
const self = (user: Pick<User, 'id'>, token: string, at: TestHouse = house): Promise<Answer> =>
  ask('GET', `${IAM}/users/${user.id}`, { session: token, at })
const refused = (reason: 'invalid_argument' | 'expired') => ({
  status: 401,
  body: { type: 'denied_authentication', method: 'jwt', reason },
})

beforeAll(async () => {
  database = await freshDatabase()
  mail = await openMailServer()
  const settings = {
    PARVIS_MASTER_KEY: masterKey,
    PARVIS_SMTP_URL: mail.url,
    PARVIS_PUBLIC_URL: 'http://parvis.example',
    PARVIS_TRUSTED_PROXIES: '127.0.0.0/8',
  }
  house = await startHouse({ database, settings })
  second = await startHouse({ database, settings })
  organizationId = house.owner.organizationId
  const users = (await must('GET', `${IAM}/users?type=owner`))['users'] as { id: string }[]
  ownerId = users[0]?.id ?? ''
  await must('POST', `${IAM}/users/${ownerId}/update-password`, { body: { password: PASSWORD } })
})

beforeEach(() => {
  tests += 1
  address = `198.51.100.${tests}`
})

afterAll(async () => {
  await second?.stop()
  await house?.stop()
  await mail?.close()
  await database?.drop()
})

describe('a password', () => {
  test('lets its user in by name and by address, on every gateway, and the time is kept', async () => {
    const { status, body } = await signIn('owner', PASSWORD)
    expect(status).toBe(200)
    expect(body).toMatchObject({
      user_id: ownerId,
      organization_id: organizationId,
      password_renewal_due_at: null,
      jwt: { issuer_id: ownerId, audience_id: ownerId, ip: address },
    })
    const token = String(body['token'])
    expect(token.split('.')).toHaveLength(3)
    expect(body['renew_token']).toMatch(/^[0-9a-f-]{36}$/)
    for (const at of [house, second]) {
      const read = await self({ id: ownerId }, token, at)
      expect(read).toMatchObject({ status: 200, body: { type: 'owner', locked: false } })
      expect(Date.parse(String(read.body['last_login_at']))).toBeGreaterThan(0)
      // The owner may everything, in every room.
      for (const path of ['/account/v3/projects', '/billing/v2beta1/invoices', `${IAM}/logs`, '/parvis/v1/limits'])
        expect([path, (await ask('GET', path, { session: token, at })).status]).toEqual([path, 200])
    }
    // Somebody who has signed in makes keys for itself as before.
    const key = await must('POST', `${IAM}/api-keys`, {
      key: undefined as never,
      session: token,
      body: { user_id: ownerId, description: 'by session' },
    })
    expect(key['user_id']).toBe(ownerId)
  })

  test('that is wrong, and a name that nobody has, are answered alike', async () => {
    const user = await newUser()
    const [wrong, nobody] = [await signIn(user.email, OTHER), await signIn('nobody@example.com', OTHER)]
    expect(wrong).toMatchObject({ status: 401, body: { type: 'denied_authentication' } })
    expect(nobody.status).toBe(401)
    expect(nobody.text).toBe(wrong.text)
    const names = (answer: Answer) => [...answer.headers.keys()].filter((name) => name !== 'date').toSorted()
    expect(names(nobody)).toEqual(names(wrong))
    // Who was added without a password has none, not an empty one.
    const without = await newUser('')
    expect((await signIn(without.email, ' ')).text).toBe(wrong.text)
  })

  test('is looked at while its attempt is counted, so that the write does not tell that there is such a user', async () => {
    const user = await newUser()
    const secrets = await openSecrets({ dataDir: house.dataDir, masterKey })
    const clock = systemClock
    const passwords = openPasswords(secrets)
    let looked = 0
    const signsIn = openSignIn({
      db: database.db,
      passwords: {
        ...passwords,
        matching: async (password, hashes, ip) => {
          const found = await passwords.matching(password, hashes, ip)
          looked += 1
          return found
        },
      },
      sessions: openSessions({ db: database.db, secrets, clock }),
      failures: openFailures(clock),
      log: openLog('silent'),
    })
    const enter = (password: string) =>
      signsIn({ login: user.email, password, newPassword: undefined, organizationId: undefined }, { ip: address, userAgent: '' })
    const client = await database.db.connect()
    try {
      // Whatever holds up the write, the looking goes on; what was found counts only with the attempt.
      await client.query('begin')
      await client.query('update user_password set set_at = now() where principal_id = $1', [user.id])
      let answered = false
      const entered = enter(PASSWORD).finally(() => {
        answered = true
      })
      await until('the password is looked at', () => looked === 1)
      expect(answered).toBe(false)
      await client.query('commit')
      expect((await entered).ok).toBe(true)
      // The last attempt is taken by somebody else, or the password is another one, while ours is looked at.
      for (const meanwhile of ['failures = 1000', `hash = hash || 'x', failures = 0`]) {
        await client.query('begin')
        await client.query(`update user_password set ${meanwhile} where principal_id = $1`, [user.id])
        const before = looked
        const refused = enter(PASSWORD)
        await until('the password is looked at', () => looked === before + 1)
        await client.query('commit')
        expect(await refused).toMatchObject({ ok: false, refusal: { type: 'denied_authentication' } })
        const sessions = await database.db.query('select from session where principal_id = $1', [user.id])
        expect(sessions.rowCount).toBe(1)
      }
    } finally {
      client.release()
    }
  })

  test('stops working after too many attempts, for whoever has the right one as well; keys and sessions go on', async () => {
    await must('PATCH', `${IAM}/organizations/${organizationId}/security-settings`, { body: { login_attempts_before_locked: 3 } })
    try {
      const user = await newUser()
      const before = await quickSession(user)
      const answers = await Promise.all(Array.from({ length: 4 }, () => signIn(user.email, OTHER)))
      for (const { status } of answers) expect([401, 429]).toContain(status)
      for (let left = 3; left > 0; left -= 1) await signIn(user.email, OTHER)
      expect((await signIn(user.email, PASSWORD)).text).toBe((await signIn('nobody@example.com', OTHER)).text)
      const { rows } = await database.db.query<{ failures: number }>('select failures from user_password where principal_id = $1', [
        user.id,
      ])
      expect(rows[0]?.failures).toBeLessThanOrEqual(3)
      expect(await must('GET', `${IAM}/users/${user.id}`)).toMatchObject({ locked: true })
      expect((await self(user, before.token)).status).toBe(200)
      expect((await ask('GET', `${IAM}/users/${user.id}`, { key: before.key })).status).toBe(200)
      const { rows: entries } = await database.db.query<{ actor: string; after: unknown; ip: string }>(
        `select actor, after, host(ip) as ip from audit_entry where resource_id = $1 and after ? 'sign_in_locked'`,
        [user.id],
      )
      expect(entries).toEqual([{ actor: 'sign-in', after: { sign_in_locked: true, attempts: 3 }, ip: address }])
      expect(await must('POST', `${IAM}/users/${user.id}/unlock`, { body: {} })).toMatchObject({ locked: false })
      expect((await signIn(user.email, PASSWORD)).status).toBe(200)
      // What was right puts the count back to nothing.
      await signIn(user.email, OTHER)
      await signIn(user.email, PASSWORD)
      // A limit that is lowered counts for what has failed before.
      await database.db.query('update user_password set failures = 5 where principal_id = $1', [user.id])
      expect((await signIn(user.email, PASSWORD)).status).toBe(401)
      expect(await must('GET', `${IAM}/users/${user.id}`)).toMatchObject({ locked: true })
      await must('POST', `${IAM}/users/${user.id}/unlock`, { body: {} })
      const after = await database.db.query<{ failures: number }>('select failures from user_password where principal_id = $1', [user.id])
      expect(after.rows).toEqual([{ failures: 0 }])
    } finally {
      await must('PATCH', `${IAM}/organizations/${organizationId}/security-settings`, { body: { login_attempts_before_locked: 10 } })
    }
  })

  test.each([
    ['no body', undefined],
    ['no password', { login: 'owner' }],
    ['an empty password', { login: 'owner', password: '' }],
    ['a password without end', { login: 'owner', password: 'x'.repeat(2_000) }],
    ['a field that there is not', { login: 'owner', password: PASSWORD, otp: '1' }],
    ['an organization that is no id', { login: 'owner', password: PASSWORD, organization_id: 'mine' }],
    ['a zero character', { login: 'own\0er', password: PASSWORD }],
  ])('is not looked at with %s', async (_what, body) => {
    expect((await ask('POST', '/parvis/v1/sign-in', { body })).status).toBe(400)
  })

  test('that is weak is refused wherever it is set, in words', async () => {
    const user = await newUser()
    const weak = { type: 'invalid_arguments', details: [{ reason: 'constraint', help_message: expect.stringContaining('at least 12') }] }
    expect(
      await ask('POST', `${IAM}/users/${user.id}/update-password`, { key: house.secretKey, body: { password: 'short' } }),
    ).toMatchObject({
      status: 400,
      body: weak,
    })
    const member = { username: 'weak', email: 'weak@example.com', password: 'short' }
    expect(await ask('POST', `${IAM}/users`, { key: house.secretKey, body: { member } })).toMatchObject({ status: 400, body: weak })
    expect(await signIn(user.email, PASSWORD, { new_password: user.username.repeat(2) })).toMatchObject({
      status: 400,
      body: { details: [{ argument_name: 'new_password' }] },
    })
    expect(await signIn(user.email, PASSWORD, { new_password: PASSWORD })).toMatchObject({ status: 400 })
  })

  test('that somebody else chose is to be renewed where the organization says so', async () => {
    const settings = (body: unknown) => must('PATCH', `${IAM}/organizations/${organizationId}/security-settings`, { body })
    await settings({ enforce_password_renewal: true, grace_period_duration: '3600s' })
    try {
      const user = await newUser()
      expect(Date.parse(String((await signIn(user.email, PASSWORD)).body['password_renewal_due_at']))).toBeGreaterThan(0)
      await settings({ grace_period_duration: '0s' })
      expect(await signIn(user.email, PASSWORD)).toMatchObject({ status: 412, body: { precondition: 'attribute_must_be_set' } })
      expect(await signIn(user.email, OTHER)).toMatchObject({ status: 401 })
      expect(await signIn(user.email, PASSWORD, { new_password: OTHER })).toMatchObject({
        status: 200,
        body: { password_renewal_due_at: null },
      })
      expect(await signIn(user.email, OTHER)).toMatchObject({ status: 200 })
      expect(await signIn(user.email, PASSWORD)).toMatchObject({ status: 401 })
    } finally {
      await settings({ enforce_password_renewal: false, grace_period_duration: '604800s' })
    }
  })

  test('of one address in two organizations says which it is', async () => {
    const user = await newUser()
    const [other, twin] = [randomUUID(), randomUUID()]
    await database.db.query(`insert into organization (id, name) values ($1, 'elsewhere')`, [other])
    await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [other])
    await database.db.query(
      `insert into principal (id, organization_id, kind, role, name, email) values ($1, $2, 'user', 'member', 'twin', $3)`,
      [twin, other, user.email],
    )
    await database.db.query(`insert into user_password (principal_id, hash) select $1, hash from user_password where principal_id = $2`, [
      twin,
      user.id,
    ])
    const which = await signIn(user.email, PASSWORD)
    expect(which).toMatchObject({ status: 400, body: { details: [{ argument_name: 'organization_id', reason: 'required' }] } })
    expect(which.text).toContain(other)
    expect(await signIn(user.email, PASSWORD, { organization_id: other })).toMatchObject({ status: 200, body: { user_id: twin } })
    await must('POST', `${IAM}/users/${user.id}/update-password`, { body: { password: OTHER } })
    expect(await signIn(user.email, OTHER)).toMatchObject({ status: 200, body: { user_id: user.id } })
    expect(await signIn(user.email, PASSWORD)).toMatchObject({ status: 200, body: { user_id: twin } })
    const failed = async () => {
      const { rows } = await database.db.query<{ failures: number }>(
        'select failures from user_password where principal_id = any ($1) order by principal_id = $2',
        [[user.id, twin], twin],
      )
      return rows.map(({ failures }) => failures)
    }
    // A password of today counts for whose it was not: whoever can choose the twin's tries it at both doors.
    expect(await failed()).toEqual([1, 0])
    await database.db.query(`update user_password set set_at = now() - interval '25 hours', failures = 0 where principal_id = any ($1)`, [
      [user.id, twin],
    ])
    expect(await signIn(user.email, OTHER)).toMatchObject({ status: 200, body: { user_id: user.id } })
    expect(await signIn(user.email, PASSWORD)).toMatchObject({ status: 200, body: { user_id: twin } })
    expect(await failed()).toEqual([0, 0])
    // Ten of them, and the other door is closed, as it would be to anybody who tries it; their own is not.
    await database.db.query('update user_password set set_at = now(), failures = 9 where principal_id = $1', [user.id])
    await database.db.query('update user_password set set_at = now() where principal_id = $1', [twin])
    expect((await signIn(user.email, PASSWORD)).body).toMatchObject({ user_id: twin })
    expect((await signIn(user.email, OTHER)).status).toBe(401)
    expect((await signIn(user.email, PASSWORD)).body).toMatchObject({ user_id: twin })
    const { rows } = await database.db.query('select after from audit_entry where resource_id = $1 and actor = $2', [user.id, 'sign-in'])
    expect(rows).toEqual([{ after: { sign_in_locked: true, attempts: 10 } }])
    await database.db.query('delete from principal where id = $1', [twin])
  })
})

describe('a session', () => {
  test('is not begun for a user who is locked while the password is looked at: it would live on once the user is unlocked', async () => {
    const user = await newUser()
    const before = await quickSession(user)
    const client = await database.db.connect()
    try {
      // What locking does, at the moment before it is done.
      await client.query('begin')
      await client.query('update principal set locked = true where id = $1', [user.id])
      await client.query('delete from session where principal_id = $1', [user.id])
      const entered = signIn(user.email, PASSWORD)
      const made = ask('POST', `${IAM}/jwts`, { key: before.key, body: { user_id: user.id } })
      await until('both wait for it', async () => {
        const { rowCount } = await database.db.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%principal%'`,
        )
        return rowCount === 2
      })
      await client.query('commit')
      expect([(await entered).status, (await made).status]).toEqual([401, 403])
      expect((await database.db.query('select from session where principal_id = $1', [user.id])).rowCount).toBe(0)
    } finally {
      client.release()
    }
  })

  test('is no use once it is altered, signed by somebody else, not signed at all, too old, or made for another', async () => {
    const user = await newUser('')
    const { token, jti } = await quickSession(user)
    expect((await self(user, token)).status).toBe(200)
    const { rows } = await database.db.query<{ id: string; sealed: Buffer }>('select id, sealed from session_key')
    const [stored] = rows
    expect(rows).toHaveLength(1)
    const secrets = await openSecrets({ dataDir: house.dataDir, masterKey })
    const key = Buffer.from(secrets.unseal(stored?.sealed ?? Buffer.alloc(0)), 'hex')
    const kid = stored?.id ?? ''
    const now = Math.floor(Date.now() / 1000)
    const forge = (
      claims: { jti?: string; sub?: string; iss?: string; exp?: number },
      with_: { key?: Buffer; kid?: string; alg?: string } = {},
    ): Promise<string> =>
      new SignJWT({ jti: claims.jti ?? jti, sub: claims.sub ?? user.id, iss: claims.iss ?? 'parvis', exp: claims.exp ?? now + 600 })
        .setProtectedHeader({ alg: with_.alg ?? 'HS256', kid: with_.kid ?? kid })
        .sign(with_.key ?? key)
    // The forging itself is good: the right claims under the right key get in.
    expect((await self(user, await forge({}))).status).toBe(200)

    const [header = '', payload = '', signature = ''] = token.split('.')
    const body = JSON.parse(Buffer.from(payload, 'base64url').toString()) as Record<string, unknown>
    const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
    const owners = encode({ ...body, sub: ownerId, aud: ownerId })
    const bad: Record<string, string> = {
      'another signature': `${header}.${payload}.${signature.slice(0, -2)}${signature.endsWith('AA') ? 'BB' : 'AA'}`,
      'another subject': `${header}.${owners}.${signature}`,
      'no signature': `${header}.${payload}.`,
      'alg none': `${encode({ alg: 'none', typ: 'JWT' })}.${payload}.`,
      'alg none with the key': `${encode({ alg: 'none', kid })}.${owners}.`,
      'a foreign key': await forge({}, { key: randomBytes(32) }),
      'a key of no name': await forge({}, { kid: randomUUID() }),
      'a key that is no id': await forge({}, { kid: "' or true --" }),
      'another algorithm': await forge({}, { key: Buffer.concat([key, key]), alg: 'HS512' }),
      'a session of nobody': await forge({ jti: randomUUID() }),
      'a session that is no id': await forge({ jti: '../..' }),
      'the session of another': await forge({ sub: ownerId }),
      'another issuer': await forge({ iss: 'somebody' }),
      'the key of the header by hand': `${header}.${owners}.${createHmac('sha256', kid).update(`${header}.${owners}`).digest('base64url')}`,
      'no token': 'rubbish',
      'two dots': '..',
      'too much': `${token}${'x'.repeat(3_000)}`,
      'a secret key': house.secretKey,
    }
    for (const [what, altered] of Object.entries(bad)) {
      const answer = await self(user, altered)
      expect({ what, ...answer }).toMatchObject({ what, ...refused('invalid_argument') })
    }
    expect(await self(user, await forge({ exp: now - 1 }))).toMatchObject(refused('expired'))
    // A key before a session: nobody is taken for somebody else because both were sent.
    const both = await ask('GET', `${IAM}/users/${ownerId}`, { key: house.secretKey, session: token })
    expect(both).toMatchObject({ status: 200, body: { type: 'owner' } })
    expect(await ask('GET', `${IAM}/users/${user.id}`, { key: randomUUID(), session: token })).toMatchObject({
      status: 401,
      body: { method: 'api_key' },
    })
  })

  const ends: [what: string, end: (user: User, jti: string, token: string) => Promise<unknown>][] = [
    ['signs out', (_user, _jti, token) => must('POST', '/parvis/v1/sign-out', { session: token, body: {} })],
    ['is deleted as a session', (_user, jti) => must('DELETE', `${IAM}/jwts/${jti}`)],
    ['is locked', (user) => must('POST', `${IAM}/users/${user.id}/lock`, { body: {} })],
    ['is removed', (user) => must('DELETE', `${IAM}/users/${user.id}`)],
    ['gets another password', (user) => must('POST', `${IAM}/users/${user.id}/update-password`, { body: { password: OTHER } })],
  ]
  test.each(ends)('is gone on every gateway when its user %s', async (_what, end) => {
    const user = await newUser('')
    const { token, jti, renew } = await quickSession(user)
    for (const at of [house, second]) expect((await self(user, token, at)).status).toBe(200)
    await end(user, jti, token)
    for (const at of [second, house]) expect(await self(user, token, at)).toMatchObject(refused('invalid_argument'))
    expect((await ask('POST', '/parvis/v1/sign-in/renew', { body: { renew_token: renew } })).status).toBe(401)
  })

  test('of whoever changes their own password goes on; all others of theirs end', async () => {
    const user = await newUser('')
    const [mine, others] = [await quickSession(user), await quickSession(user)]
    const change = { session: mine.token, body: { password: OTHER } }
    expect((await ask('POST', `${IAM}/users/${user.id}/update-password`, change)).status).toBe(200)
    expect((await self(user, mine.token)).status).toBe(200)
    expect((await self(user, others.token)).status).toBe(401)
    expect((await ask('POST', `${IAM}/users/${ownerId}/update-password`, change)).status).toBe(403)
  })

  test('is renewed with a token that is good once; one that comes back later ends it', async () => {
    const user = await newUser('')
    const { renew, jti } = await quickSession(user)
    const again = (token: string, at = house) => ask('POST', '/parvis/v1/sign-in/renew', { body: { renew_token: token }, at })
    const first = await again(renew)
    expect(first).toMatchObject({ status: 200, body: { user_id: user.id, jwt: { jti } } })
    expect((await self(user, String(first.body['token']))).status).toBe(200)
    // Two tabs at once.
    const tab = await again(renew, second)
    expect(tab.status).toBe(200)
    await database.db.query(`update session set updated_at = now() - interval '5 minutes' where id = $1`, [jti])
    const old = String(first.body['renew_token'])
    expect((await again(old)).status).toBe(401)
    expect((await self(user, String(tab.body['token']))).status).toBe(401)
    expect((await again(String(tab.body['renew_token']))).status).toBe(401)
    const { rows } = await database.db.query(`select action from audit_entry where resource_id = $1 and actor = 'an old renewal token'`, [
      jti,
    ])
    expect(rows).toEqual([{ action: 'deleted' }])
  })

  test('ends with any of its old renewal tokens, however often whoever stole one has renewed', async () => {
    const user = await newUser('')
    const { renew: stolen, jti } = await quickSession(user)
    const again = (token: string) => ask('POST', '/parvis/v1/sign-in/renew', { body: { renew_token: token } })
    let theirs = stolen
    for (let turn = 0; turn < 3; turn += 1) theirs = String((await again(theirs)).body['renew_token'])
    // A third tab, for all we know: refused, and no more.
    expect((await again(stolen)).status).toBe(401)
    const last = await again(theirs)
    expect((await self(user, String(last.body['token']))).status).toBe(200)
    await database.db.query(`update session_spent set at = now() - interval '5 minutes' where session_id = $1`, [jti])
    expect((await again(stolen)).status).toBe(401)
    expect((await self(user, String(last.body['token']))).status).toBe(401)
    expect((await again(String(last.body['renew_token']))).status).toBe(401)
  })

  test('ends with the longest that the organization allows, also one that runs; what it makes ends with it', async () => {
    const user = await newUser('')
    const { token, renew, jti } = await quickSession(user)
    await database.db.query(`update session set began_at = now() - interval '2 hours' where id = $1`, [jti])
    const made = await must('POST', `${IAM}/jwts`, { key: undefined as never, session: token, body: { user_id: user.id } })
    const child = String(made['token'])
    const settings = (seconds: number) =>
      ask('PATCH', `${IAM}/organizations/${organizationId}/security-settings`, {
        key: house.secretKey,
        body: { max_login_session_duration: `${seconds}s` },
      })
    expect((await settings(10)).status).toBe(400)
    expect((await settings(3_600)).status).toBe(200)
    try {
      for (const one of [token, child]) expect(await self(user, one)).toMatchObject(refused('expired'))
      expect((await ask('POST', '/parvis/v1/sign-in/renew', { body: { renew_token: renew } })).status).toBe(401)
    } finally {
      await settings(2_592_000)
    }
  })

  test('is signed with a new key once the old one is a month old, and the old one still counts', async () => {
    const user = await newUser('')
    const before = await quickSession(user)
    await database.db.query(`update session_key set created_at = now() - interval '30 days 1 hour'`)
    const after = await quickSession(user)
    const kid = (token: string): unknown =>
      (JSON.parse(Buffer.from(token.split('.')[0] ?? '', 'base64url').toString()) as { kid: string }).kid
    expect(kid(after.token)).not.toBe(kid(before.token))
    for (const at of [house, second]) for (const { token } of [before, after]) expect((await self(user, token, at)).status).toBe(200)
  })

  test('is listed, read and ended by the vendor’s SDK, by those who may', async () => {
    const client = (secretKey: string) =>
      new Iamv1alpha1.API(
        createClient({ apiURL: house.url, accessKey: 'SCWXXXXXXXXXXXXXXXXX', secretKey, defaultOrganizationId: organizationId }),
      )
    const [owner, user] = [client(house.secretKey), await newUser('')]
    const { key, jti } = await quickSession(user)
    const own = client(key)
    const made = await own.createJWT({ userId: user.id, referrer: 'console' })
    expect(made.jwt).toMatchObject({ audienceId: user.id, issuerId: user.id, ip: '127.0.0.1' })
    expect(made.jwt?.expiresAt?.getTime()).toBeGreaterThan(Date.now())
    expect((await self(user, made.token)).status).toBe(200)
    for (const by of [own, owner]) {
      const listed = await by.listJWTs({ audienceId: user.id, orderBy: 'created_at_asc', expired: false }).all()
      expect(listed.map((one) => one.jti)).toEqual([jti, made.jwt?.jti])
      expect((await by.listJWTs({ audienceId: user.id, expired: true })).totalCount).toBe(0)
      expect(await by.getJWT({ jti })).toMatchObject({ jti, audienceId: user.id })
    }
    const stranger = await quickSession(await newUser(''))
    const other = client(stranger.key)
    await expect(other.createJWT({ userId: user.id, referrer: '' })).rejects.toMatchObject({ status: 403 })
    await expect(owner.createJWT({ userId: user.id, referrer: '' })).rejects.toMatchObject({ status: 403 })
    await expect(other.listJWTs({ audienceId: user.id })).rejects.toMatchObject({ status: 403 })
    // What one may not see is answered as what does not exist.
    for (const id of [jti, randomUUID()]) {
      await expect(other.getJWT({ jti: id })).rejects.toMatchObject({ status: 403 })
      await expect(other.deleteJWT({ jti: id })).rejects.toMatchObject({ status: 403 })
    }
    await own.deleteJWT({ jti: made.jwt?.jti ?? '' })
    await expect(own.getJWT({ jti: made.jwt?.jti ?? '' })).rejects.toMatchObject({ status: 403 })
    await expect(owner.getJWT({ jti: randomUUID() })).rejects.toMatchObject({ status: 404, resource: 'jwt' })
    expect((await self(user, made.token)).status).toBe(401)
    await owner.lockUser({ userId: user.id })
  })
})

describe('a browser', () => {
  const cookiesOf = (answer: Answer): string =>
    answer.headers
      .getSetCookie()
      .map((cookie) => cookie.split(';', 1)[0])
      .join('; ')
  const own = { 'sec-fetch-site': 'same-origin' }

  test('keeps its session in cookies that no script and no other site gets', async () => {
    const user = await newUser()
    const entered = await signIn(user.email, PASSWORD, { cookies: true }, { headers: own })
    expect(entered.status).toBe(200)
    expect(entered.body).not.toHaveProperty('token')
    expect(entered.body).not.toHaveProperty('renew_token')
    const set = entered.headers.getSetCookie()
    expect(set).toHaveLength(2)
    for (const cookie of set) expect(cookie).toMatch(/^parvis-(session|renewal)=[\w.-]+; Path=\/; Max-Age=\d+; HttpOnly; SameSite=Strict$/)

    const cookie = cookiesOf(entered)
    const path = `${IAM}/users/${user.id}`
    expect((await ask('GET', path, { headers: { cookie } })).status).toBe(200)
    expect((await ask('GET', path, { headers: { cookie: `a=b; ${cookie}; c=d` } })).status).toBe(200)

    const change = (headers: Record<string, string>) =>
      ask('POST', `${path}/update-password`, { headers: { cookie, ...headers }, body: { password: PASSWORD } })
    const foreign: Record<string, string>[] = [
      {},
      { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' },
      { 'sec-fetch-site': 'same-site', origin: 'http://evil.parvis.example' },
      { 'sec-fetch-site': 'none' },
      { origin: 'https://evil.example' },
      { origin: 'null' },
      { 'content-type': 'text/plain', origin: 'https://evil.example' },
    ]
    for (const headers of foreign) expect([headers, (await change(headers)).status]).toEqual([headers, 401])
    for (const headers of [own, { origin: house.url }, { origin: 'http://parvis.example' }])
      expect([headers, (await change(headers)).status]).toEqual([headers, 200])

    const renew = (headers: Record<string, string>) =>
      ask('POST', '/parvis/v1/sign-in/renew', { headers: { cookie, ...headers }, body: {} })
    expect((await renew({ origin: 'https://evil.example' })).status).toBe(401)
    const renewed = await renew(own)
    expect(renewed.status).toBe(200)
    expect(renewed.body).not.toHaveProperty('token')
    const next = cookiesOf(renewed)
    expect((await ask('GET', path, { headers: { cookie: next } })).status).toBe(200)

    // A stranger's page signs nobody out; the page itself does, and what was kept is forgotten.
    await ask('POST', '/parvis/v1/sign-out', { headers: { cookie: next, origin: 'https://evil.example' }, body: {} })
    expect((await ask('GET', path, { headers: { cookie: next } })).status).toBe(200)
    const out = await ask('POST', '/parvis/v1/sign-out', { headers: { cookie: next, ...own }, body: {} })
    expect(out.status).toBe(204)
    for (const forgotten of out.headers.getSetCookie()) expect(forgotten).toMatch(/=; Path=\/; Max-Age=0; HttpOnly/)
    expect((await ask('GET', path, { headers: { cookie: next } })).status).toBe(401)
    expect((await ask('POST', '/parvis/v1/sign-out', { headers: { cookie: next, ...own }, body: {} })).status).toBe(204)
  })

  test('is signed in by no page but ours', async () => {
    const user = await newUser()
    for (const headers of [{}, { 'sec-fetch-site': 'cross-site' }, { origin: 'https://evil.example' }] as Record<string, string>[]) {
      const answer = await signIn(user.email, PASSWORD, { cookies: true }, { headers })
      expect(answer.status).toBe(401)
      expect(answer.headers.getSetCookie()).toEqual([])
    }
  })

  test('behind TLS gets cookies that only TLS carries, and only those count', async () => {
    const own_ = await freshDatabase()
    const tls = await startHouse({ database: own_, settings: { PARVIS_BEHIND_TLS: 'true', PARVIS_PUBLIC_URL: 'https://parvis.example' } })
    try {
      const owners = (await ask('GET', `${IAM}/users`, { key: tls.secretKey, at: tls })).body['users'] as { id: string }[]
      const id = owners[0]?.id ?? ''
      await ask('POST', `${IAM}/users/${id}/update-password`, { key: tls.secretKey, body: { password: PASSWORD }, at: tls })
      const entered = await signIn('owner', PASSWORD, { cookies: true }, { headers: own, at: tls })
      const set = entered.headers.getSetCookie()
      for (const cookie of set)
        expect(cookie).toMatch(/^__Host-parvis-(session|renewal)=[\w.-]+; Path=\/; Max-Age=\d+; HttpOnly; SameSite=Strict; Secure$/)
      const cookie = cookiesOf(entered)
      expect((await ask('GET', `${IAM}/users/${id}`, { headers: { cookie }, at: tls })).status).toBe(200)
      // What a sibling domain could have planted.
      const planted = cookie.replaceAll('__Host-', '')
      expect((await ask('GET', `${IAM}/users/${id}`, { headers: { cookie: planted }, at: tls })).status).toBe(401)
    } finally {
      await tls.stop()
      await own_.drop()
    }
  })
})

describe('a link', () => {
  const linkIn = (text: string): string =>
    /http:\/\/parvis\.example\/\S+/.exec(text.replaceAll('=\n', '').replaceAll('=3D', '='))?.[0] ?? ''
  const tokenOf = (url: string): string => new URL(url).searchParams.get('token') ?? ''
  const lettersTo = (email: string): string[] => mail.mails.filter((text) => text.includes(`To: ${email}`))
  const form = (path: string, fields: Record<string, string>) =>
    ask('POST', path, { headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: new URLSearchParams(fields).toString() })

  test('in a letter brings somebody in who was invited by address alone, once', async () => {
    const email = `invited-${randomUUID().slice(0, 8)}@example.com`
    const made = await must('POST', `${IAM}/users`, { body: { email } })
    expect(made).toMatchObject({ status: 'invitation_pending', email })
    expect(made).not.toHaveProperty('invitation_url')
    const url = linkIn(lettersTo(email)[0] ?? '')
    expect(url).toMatch(/^http:\/\/parvis\.example\/invitation\?token=[\w-]{43}$/)
    const path = new URL(url).pathname + new URL(url).search

    const page = await ask('GET', path)
    expect(page.status).toBe(200)
    expect(page.headers.get('content-type')).toBe('text/html; charset=utf-8')
    expect(page.headers.get('content-security-policy')).toMatch(
      /^default-src 'none'; style-src 'sha256-[\w+/]{43}='; form-action 'self'; frame-ancestors 'none'; base-uri 'none'$/,
    )
    const style = /<style>(.*)<\/style>/.exec(page.text)?.[1] ?? ''
    expect(page.headers.get('content-security-policy')).toContain(createHash('sha256').update(style).digest('base64'))
    expect(page.headers.get('referrer-policy')).toBe('no-referrer')
    expect(page.headers.get('cache-control')).toBe('no-store')
    expect(page.text).toContain(email)
    expect(page.text).not.toMatch(/<script|javascript:|https?:/)

    const token = tokenOf(url)
    expect(await form('/invitation', { token, password: PASSWORD, again: OTHER })).toMatchObject({
      status: 400,
      text: expect.stringContaining('two different'),
    })
    const short = { token, password: '"><b>', again: '"><b>' }
    const weak = await form('/invitation', short)
    expect(weak).toMatchObject({ status: 400, text: expect.stringContaining('at least 12 characters') })
    expect(weak.text).not.toContain('<b>')
    expect(await form('/invitation', { token, password: PASSWORD, again: PASSWORD })).toMatchObject({
      status: 200,
      text: expect.stringContaining('Done'),
    })
    expect(await form('/invitation', { token, password: OTHER, again: OTHER })).toMatchObject({ status: 404 })
    expect((await ask('GET', path)).status).toBe(404)
    expect(await signIn(email, PASSWORD)).toMatchObject({ status: 200, body: { user_id: made['id'] } })
    expect(await must('GET', `${IAM}/users/${String(made['id'])}`)).toMatchObject({ status: 'activated' })
  })

  test('for a key makes one that lives no longer than the organization allows', async () => {
    const settings = (seconds: number) =>
      must('PATCH', `${IAM}/organizations/${organizationId}/security-settings`, {
        body: { max_api_key_expiration_duration: `${seconds}s` },
      })
    const accept = async () => {
      const user = await newUser('')
      const { token } = await must('POST', `/parvis/v1/users/${user.id}/invitation`, { body: {} })
      const made = await must('POST', '/parvis/v1/invitations/accept', { body: { token } })
      return must('GET', `${IAM}/api-keys/${String(made['access_key'])}`)
    }
    try {
      await settings(3_600)
      const key = await accept()
      const [from, to] = [key['created_at'], key['expires_at']].map((date) => Date.parse(String(date))) as [number, number]
      expect(to - from).toBe(3_600_000)
    } finally {
      await settings(0)
    }
    expect(await accept()).toMatchObject({ expires_at: null })
  })

  test('stands in the answer where the letter cannot be sent, for whoever invited', async () => {
    mail.refusals.push('550 no such mailbox')
    const email = `unknown-${randomUUID().slice(0, 8)}@example.com`
    const made = await must('POST', `${IAM}/users`, { body: { email } })
    const token = tokenOf(String(made['invitation_url']))
    const taken = await Promise.all(
      [PASSWORD, OTHER].map((password) => ask('POST', '/parvis/v1/invitations/accept', { body: { token, password } })),
    )
    // Of two who hold it at once, one gets in.
    expect(taken.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([200, 404])
    expect(taken.find(({ status }) => status === 200)?.body).toEqual({ user_id: made['id'], organization_id: organizationId })
  })

  test('that is made again voids the one before, and one that is too old is none', async () => {
    const user = await newUser('')
    const make = () => must('POST', `/parvis/v1/users/${user.id}/invitation`, { body: {} })
    const [first, next] = [await make(), await make()]
    expect(next).toMatchObject({ sent: true, url: expect.stringContaining(String(next['token'])) })
    const accept = (token: unknown) => ask('POST', '/parvis/v1/invitations/accept', { body: { token, password: PASSWORD } })
    expect(await accept(first['token'])).toMatchObject({
      status: 404,
      body: { type: 'not_found', resource: 'invitation', resource_id: '' },
    })
    await database.db.query(`update invitation set expires_at = now() where principal_id = $1`, [user.id])
    const late = await accept(next['token'])
    expect(late.text).toBe((await accept('never-made')).text)
    // The table holds nothing that opens anything.
    const { rows } = await database.db.query<{ text: string }>('select invitation::text as text from invitation')
    expect(JSON.stringify(rows)).not.toContain(String(next['token']))
  })

  test('is void once its user has another address, or another password', async () => {
    const made = async () => {
      const user = await newUser('')
      return { user, token: String((await must('POST', `/parvis/v1/users/${user.id}/invitation`, { body: {} }))['token']) }
    }
    const [moved, given] = [await made(), await made()]
    await must('PATCH', `${IAM}/users/${moved.user.id}`, { body: { email: `right-${randomUUID().slice(0, 8)}@example.com` } })
    await must('POST', `${IAM}/users/${given.user.id}/update-password`, { body: { password: PASSWORD } })
    for (const { token } of [moved, given]) {
      expect(await ask('POST', '/parvis/v1/invitations/accept', { body: { token } })).toMatchObject({ status: 404 })
      expect(await ask('POST', '/parvis/v1/invitations/accept', { body: { token, password: OTHER } })).toMatchObject({ status: 404 })
    }
    // Who changes nothing but the name takes nothing away.
    const named = await made()
    await must('PATCH', `${IAM}/users/${named.user.id}`, { body: { first_name: 'Ada', email: named.user.email } })
    expect(await ask('POST', '/parvis/v1/invitations/accept', { body: { token: named.token } })).toMatchObject({ status: 200 })
  })

  test('that is asked for while its user gets another address does not go to the old one', async () => {
    const user = await newUser()
    const client = await database.db.connect()
    try {
      await client.query('begin')
      await client.query('update principal set email = $2 where id = $1', [user.id, `new-${user.email}`])
      await client.query('delete from password_reset where principal_id = $1', [user.id])
      expect((await ask('POST', '/parvis/v1/password-resets', { body: { login: user.email } })).status).toBe(204)
      const made = async () => (await database.db.query('select from password_reset where principal_id = $1', [user.id])).rowCount
      const waits = async () =>
        (
          await database.db.query(
            `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%password_reset%'`,
          )
        ).rowCount
      await until('it is made, or waits for the new address', async () => (await made()) === 1 || (await waits()) === 1)
      await client.query('commit')
      await until('nobody waits', async () => (await waits()) === 0)
      expect(await made()).toBe(0)
    } finally {
      client.release()
    }
    expect(lettersTo(user.email)).toEqual([])
  })

  test('to a new password goes to the mailbox and nowhere else, whoever asks', async () => {
    const user = await newUser()
    const before = await session(user)
    const request = (login: string) => ask('POST', '/parvis/v1/password-resets', { body: { login } })
    const [known, unknown] = [await request(user.email), await request('nobody@example.com')]
    expect([known.status, known.text]).toEqual([204, ''])
    expect([unknown.status, unknown.text]).toEqual([204, ''])
    await until('the letter is there', () => lettersTo(user.email).length === 1)
    expect(mail.mails.filter((text) => text.includes('nobody@example.com'))).toEqual([])
    // Asked for again at once, it is the same letter's turn still.
    await request(user.username)
    const url = linkIn(lettersTo(user.email)[0] ?? '')
    const token = tokenOf(url)
    await database.db.query(`update user_password set locked_at = now(), failures = 10 where principal_id = $1`, [user.id])
    expect((await form('/password-reset', { token, password: OTHER, again: OTHER })).status).toBe(200)
    expect((await self(user, before.token)).status).toBe(401)
    expect((await signIn(user.email, PASSWORD)).status).toBe(401)
    expect((await signIn(user.email, OTHER)).status).toBe(200)
    const again = await ask('POST', '/parvis/v1/password-resets/accept', { body: { token, password: OTHER } })
    expect(again).toMatchObject({ status: 404, body: { resource: 'password_reset' } })
    expect(lettersTo(user.email)).toHaveLength(1)
  })

  test('is made by nobody for a user who may more, and neither is a password or an address', async () => {
    const manager = await newUser('')
    const may = (user: User, sets: string[]) =>
      must('POST', `${IAM}/policies`, {
        body: { name: `for ${user.username}`, user_id: user.id, rules: [{ permission_set_names: sets, organization_id: organizationId }] },
      })
    await may(manager, ['IAMUserManager'])
    const { token } = await quickSession(manager)
    const [plain, mighty, alike] = [await newUser(''), await newUser(''), await newUser('')]
    await may(mighty, ['BillingManager'])
    await may(alike, ['IAMUserReadOnly'])
    const tries = async (user: Pick<User, 'id'>) => {
      const asked = (method: string, path: string, body: unknown) =>
        ask(method, path, { session: token, body }).then(({ status }) => status)
      return [
        await asked('POST', `/parvis/v1/users/${user.id}/invitation`, {}),
        await asked('POST', `${IAM}/users/${user.id}/update-password`, { password: PASSWORD }),
        await asked('PATCH', `${IAM}/users/${user.id}`, { email: `${randomUUID()}@example.com` }),
      ]
    }
    expect(await tries(mighty)).toEqual([412, 412, 412])
    expect(await tries({ id: ownerId })).toEqual([412, 412, 412])
    expect(await tries(alike)).toEqual([200, 200, 200])
    expect(await tries(plain)).toEqual([200, 200, 200])
    expect((await ask('PATCH', `${IAM}/users/${mighty.id}`, { session: token, body: { first_name: 'Max' } })).status).toBe(200)
  })
})

test('two users of an organization do not have one address', async () => {
  const [one, other] = [await newUser(''), await newUser('')]
  const member = { username: `n-${randomUUID().slice(0, 8)}`, email: one.email.toUpperCase() }
  expect(await ask('POST', `${IAM}/users`, { key: house.secretKey, body: { member } })).toMatchObject({
    status: 409,
    body: { resource_id: one.id },
  })
  expect(await ask('PATCH', `${IAM}/users/${other.id}`, { key: house.secretKey, body: { email: one.email } })).toMatchObject({
    status: 409,
  })
  expect(await ask('PATCH', `${IAM}/users/${one.id}`, { key: house.secretKey, body: { email: one.email } })).toMatchObject({ status: 200 })
})

test('an address that guesses passwords is told to wait, before anything is looked at', async () => {
  const own = await freshDatabase()
  const guessed = await startHouse({ database: own, settings: { PARVIS_TRUSTED_PROXIES: '127.0.0.0/8' } })
  try {
    const behind = (ip: string): Asked => ({ at: guessed, headers: { 'x-forwarded-for': ip } })
    const from = (ip: string) => signIn('owner', OTHER, {}, behind(ip))
    const link = () => ask('POST', '/parvis/v1/invitations/accept', { ...behind('192.0.2.7'), body: { token: 'guessed', password: OTHER } })
    // An application with a key of yesterday keeps nobody from signing in.
    const old = () => ask('GET', `${IAM}/users`, { ...behind('192.0.2.7'), key: randomUUID() })
    const keys = await Promise.all(Array.from({ length: 110 }, old))
    expect(keys.filter(({ status }) => status === 429).length).toBeGreaterThan(0)
    // Twenty tries in a minute, of links as of passwords; these are quicker.
    for (let tries = 0; tries < 20; tries += 1) expect((await link()).status).toBe(404)
    expect((await from('192.0.2.7')).status).toBe(401)
    const waits = await from('192.0.2.7')
    expect(waits.status).toBe(429)
    expect(Number(waits.headers.get('retry-after'))).toBeGreaterThan(0)
    expect((await link()).status).toBe(429)
    expect((await ask('POST', '/parvis/v1/password-resets', { ...behind('192.0.2.7'), body: { login: 'x' } })).status).toBe(429)
    expect((await from('192.0.2.8')).status).toBe(401)
    // A good key from there is not held back.
    const key = await ask('GET', `${IAM}/users`, { key: guessed.secretKey, at: guessed, headers: { 'x-forwarded-for': '192.0.2.7' } })
    expect(key.status).toBe(200)
  } finally {
    await guessed.stop()
    await own.drop()
  }
})

test('no password, token or link stands in the audit, in the log, or in the database in the clear', async () => {
  const user = await newUser()
  const { token, renew } = await session(user)
  const link = String((await must('POST', `/parvis/v1/users/${user.id}/invitation`, { body: {} }))['token'])
  const { rows: tables } = await database.db.query<{ name: string }>(
    `select table_name as name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'`,
  )
  let everything = `${house.log()}${second.log()}`
  for (const { name } of tables) {
    const { rows } = await database.db.query<{ text: string }>(`select coalesce(string_agg(t::text, ' '), '') as text from "${name}" as t`)
    everything += rows[0]?.text ?? ''
  }
  expect(everything).toContain(user.id)
  for (const secret of [PASSWORD, OTHER, token, token.split('.')[2] ?? '', renew, link]) {
    expect(secret.length).toBeGreaterThan(10)
    expect(everything.includes(secret)).toBe(false)
    expect(everything.includes(Buffer.from(secret).toString('hex'))).toBe(false)
  }
  const { rows } = await database.db.query(`select action, after from audit_entry where actor = $1 and resource_type = 'session'`, [
    user.id,
  ])
  expect(rows).toEqual([{ action: 'created', after: { by: 'password' } }])
})
