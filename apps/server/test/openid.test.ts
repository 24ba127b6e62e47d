import { randomBytes, randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { openProvider } from './openid-provider.ts'

// Signing in with an OpenID provider, and everybody who does not get in that way.

const IAM = '/iam/v1alpha1'
const masterKey = randomBytes(32).toString('hex')
let database: TestDatabase
let provider: Awaited<ReturnType<typeof openProvider>>
let house: TestHouse
/** One where everybody of a domain becomes a member. */
let joining: TestHouse
let organizationId: string
let address = '198.51.100.0'
let tests = 0

const settings = () => ({
  PARVIS_MASTER_KEY: masterKey,
  PARVIS_TRUSTED_PROXIES: '127.0.0.0/8',
  PARVIS_OIDC_ISSUER: provider.url,
  PARVIS_OIDC_CLIENT_ID: provider.client.id,
  PARVIS_OIDC_CLIENT_SECRET: provider.client.secret,
})

beforeAll(async () => {
  database = await freshDatabase()
  provider = await openProvider()
  house = await startHouse({ database, settings: settings() })
  organizationId = house.owner.organizationId
  joining = await startHouse({
    database,
    settings: { ...settings(), PARVIS_OIDC_DOMAINS: 'example.com', PARVIS_OIDC_JOIN: organizationId },
  })
})
beforeEach(() => {
  tests += 1
  address = `198.51.100.${tests}`
})
afterAll(async () => {
  await joining?.stop()
  await house?.stop()
  await provider?.close()
  await database?.drop()
})

type Visit = { status: number; headers: Headers; text: string }

/** A browser with its cookies, that goes where it is sent when told to. */
const openBrowser = (at: TestHouse = house) => {
  const jar = new Map<string, string>()
  const go = async (url: string): Promise<Visit> => {
    const own = url.startsWith(at.url)
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ')
    const answer = await fetch(url, {
      redirect: 'manual',
      headers: own ? { 'x-forwarded-for': address, ...(cookie !== '' && { cookie }) } : {},
    })
    if (own)
      for (const set of answer.headers.getSetCookie()) {
        const [, name = '', value = '', seconds = ''] = /^([^=]+)=([^;]*);.*Max-Age=(\d+)/.exec(set) ?? []
        if (seconds === '0') jar.delete(name)
        else jar.set(name, value)
      }
    return { status: answer.status, headers: answer.headers, text: await answer.text() }
  }
  return {
    jar,
    go,
    /** To the provider and back, up to the address that we are asked with. */
    leave: async (query = ''): Promise<string> => {
      const start = await go(`${at.url}/oidc/start${query}`)
      if (start.status !== 303) throw new Error(`start: ${start.status} ${start.text}`)
      const there = await go(start.headers.get('location') ?? '')
      return there.headers.get('location') ?? ''
    },
    visit: async function (query = ''): Promise<Visit> {
      return go(await this.leave(query))
    },
    whoami: async (): Promise<string | undefined> => {
      const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ')
      const path = `${IAM}/jwts?audience_id=${organizationId}`
      const answer = await at.call(path, { key: null, headers: { cookie, 'x-forwarded-for': address } })
      // 403: signed in, without the right; 401: not at all.
      return answer.status === 401 ? undefined : (jar.get('parvis-session') ?? '')
    },
  }
}

const newUser = async (email: string): Promise<string> => {
  const made = await house.call(`${IAM}/users`, { body: { member: { username: `u-${randomUUID().slice(0, 8)}`, email } } })
  return String((made.json() as { id: string }).id)
}
const mailbox = (): string => `p-${randomUUID().slice(0, 8)}@example.com`
const subject = (jwt: string): string => (JSON.parse(Buffer.from(jwt.split('.')[1] ?? '', 'base64url').toString()) as { sub: string }).sub
const verified = (email: string, more: Record<string, unknown> = {}) => ({
  sub: `subject of ${email}`,
  email,
  email_verified: true,
  ...more,
})

test('the way in is told, and only where there is one', async () => {
  expect((await house.call('/parvis/v1/sign-in', { key: null })).json()).toEqual({ password: true, openid: '/oidc/start' })
  expect((await house.call(`${IAM}/organizations/${organizationId}`)).json()).toMatchObject({ login_oauth2_enabled: true })
  const own = await freshDatabase()
  const without = await startHouse({ database: own })
  try {
    expect((await without.call('/parvis/v1/sign-in', { key: null })).json()).toEqual({ password: true, openid: null })
    expect((await without.call('/oidc/start', { key: null })).status).toBe(404)
  } finally {
    await without.stop()
    await own.drop()
  }
})

test('a user whose address the provider vouches for gets in, and the browser is sent with what keeps others out', async () => {
  const email = mailbox()
  const id = await newUser(email)
  provider.says({ claims: verified(email.toUpperCase()) })
  const browser = openBrowser()
  const page = await browser.visit()
  expect(page).toMatchObject({ status: 200, text: expect.stringContaining('You are signed in') })
  expect(subject((await browser.whoami()) ?? '')).toBe(id)
  expect([...browser.jar.keys()].toSorted()).toEqual(['parvis-renewal', 'parvis-session'])
  const asked = provider.asked.at(-1)
  expect(asked?.get('code_challenge_method')).toBe('S256')
  for (const name of ['state', 'nonce', 'code_challenge']) expect(asked?.get(name)?.length).toBeGreaterThan(30)
  expect(asked?.get('redirect_uri')).toBe(`${house.url}/oidc/callback`)
  const { rows } = await database.db.query(`select after from audit_entry where actor = $1 and resource_type = 'session'`, [id])
  expect(rows).toEqual([{ after: { by: 'openid' } }])
})

test('the browser ends where it wanted to go, as long as that is here', async () => {
  const email = mailbox()
  await newUser(email)
  provider.says({ claims: verified(email) })
  const to = async (returnTo: string) => {
    const { status, headers } = await openBrowser().visit(`?return_to=${encodeURIComponent(returnTo)}`)
    return [status, headers.get('location')]
  }
  expect(await to('/console/models?page=2')).toEqual([303, '/console/models?page=2'])
  for (const elsewhere of ['//evil.example', '/\\evil.example', 'https://evil.example', '/\r\nset-cookie: a=b', 'javascript:alert(1)', ''])
    expect([elsewhere, ...(await to(elsewhere))]).toEqual([elsewhere, 200, null])
})

describe('nobody gets in', () => {
  const refusedVisit = async (browser = openBrowser()): Promise<Visit> => {
    const page = await browser.visit()
    expect(await browser.whoami()).toBeUndefined()
    expect([...browser.jar.keys()]).toEqual([])
    return page
  }

  test.each<[what: string, says: Record<string, unknown>]>([
    ['an address that is not verified', { claims: { email_verified: false } }],
    ['an address of which nothing is said', { claims: { email_verified: undefined } }],
    ['a word that looks like yes', { claims: { email_verified: 'true' } }],
    ['no address', { claims: { email: undefined } }],
    ['another nonce', { nonce: 'another' }],
    ['a token for another client', { audience: 'somebody' }],
    ['a token of another provider', { issuer: 'https://evil.example' }],
    ['a token that is too old', { expiresIn: -600 }],
    ['a token under another key', { forged: true }],
    ['a token without a signature', { unsigned: true }],
    ['no token', { tokenStatus: 500 }],
  ])('with %s', async (_what, says) => {
    const email = mailbox()
    await newUser(email)
    provider.says({ ...says, claims: { ...verified(email), ...(says['claims'] as object | undefined) } })
    expect((await refusedVisit()).status).toBe(403)
    // The same user with everything in order: it was that which kept them out.
    provider.says({ claims: verified(email) })
    expect((await openBrowser().visit()).status).toBe(200)
  })

  test('whom no organization knows: none of the doors opens by accident', async () => {
    const email = mailbox()
    provider.says({ claims: verified(email) })
    expect(await refusedVisit()).toMatchObject({ status: 403, text: expect.stringContaining('There is no user with your address') })
    const { rows } = await database.db.query('select 1 from principal where email = $1', [email])
    expect(rows).toEqual([])
  })

  test('who is locked', async () => {
    const email = mailbox()
    const id = await newUser(email)
    await house.call(`${IAM}/users/${id}/lock`, { body: {} })
    provider.says({ claims: verified(email) })
    expect((await refusedVisit()).status).toBe(403)
  })

  test('who was given the address of somebody that has signed in before', async () => {
    const email = mailbox()
    const id = await newUser(email)
    provider.says({ claims: verified(email) })
    expect((await openBrowser().visit()).status).toBe(200)
    provider.says({ claims: verified(email, { sub: 'somebody new' }) })
    expect((await refusedVisit()).status).toBe(403)
    // Whoever was tied to the user stays tied, whatever their address is now.
    provider.says({ claims: { ...verified(mailbox()), sub: `subject of ${email}` } })
    const browser = openBrowser()
    expect((await browser.visit()).status).toBe(200)
    expect(subject((await browser.whoami()) ?? '')).toBe(id)
    // Another address is another person, until they sign in with it.
    const next = mailbox()
    await house.call(`${IAM}/users/${id}`, { method: 'PATCH', body: { email: next } })
    provider.says({ claims: { ...verified(email), sub: `subject of ${email}` } })
    expect((await refusedVisit()).status).toBe(403)
  })

  test('with the way back of another browser, an altered one, or one that was used', async () => {
    const email = mailbox()
    await newUser(email)
    provider.says({ claims: verified(email) })
    const [mine, theirs] = [openBrowser(), openBrowser()]
    const back = await theirs.leave()
    expect((await mine.go(back)).status).toBe(403)
    await mine.leave()
    expect((await mine.go(back)).status).toBe(403)
    const own = await mine.leave()
    for (const altered of [
      own.replace(/state=[^&]+/, 'state=x'),
      own.replace(/state=[^&]+/, ''),
      own.replace(/code=[^&]+/, 'code=x'),
      `${house.url}/oidc/callback`,
      `${house.url}/oidc/callback?error=access_denied`,
    ]) {
      await mine.leave()
      expect([altered, (await mine.go(altered)).status]).toEqual([altered, 403])
    }
    const last = await mine.leave()
    const kept = new Map(mine.jar)
    expect((await mine.go(last)).status).toBe(200)
    const again = openBrowser()
    for (const [name, value] of kept) again.jar.set(name, value)
    expect((await again.go(last)).status).toBe(403)
  })

  test('while the provider is away, and others sign in as before', async () => {
    const own = await startHouse({ database, settings: settings() })
    try {
      provider.down(true)
      expect((await own.call('/oidc/start', { key: null, headers: { 'x-forwarded-for': address } })).status).toBe(503)
      expect((await own.call(`${IAM}/users`, { key: house.secretKey })).status).toBe(200)
      provider.down(false)
      const start = () => fetch(`${own.url}/oidc/start`, { redirect: 'manual' })
      await expect.poll(async () => (await start()).status).toBe(303)
    } finally {
      provider.down(false)
      await own.stop()
    }
  })
})

test('where the operator says so, everybody of a domain becomes a member once, without any rights, and nobody else', async () => {
  const email = mailbox()
  provider.says({ claims: verified(email) })
  const browsers = [openBrowser(joining), openBrowser(joining)]
  const ways = await Promise.all(browsers.map((browser) => browser.leave()))
  await Promise.all(browsers.map((browser, index) => browser.go(ways[index] ?? '')))
  const { rows } = await database.db.query<{ id: string; role: string }>('select id, role from principal where email = $1', [email])
  expect(rows).toMatchObject([{ role: 'member' }])
  const browser = openBrowser(joining)
  expect((await browser.visit()).status).toBe(200)
  expect(subject((await browser.whoami()) ?? '')).toBe(rows[0]?.id)
  const cookie = [...browser.jar].map(([name, value]) => `${name}=${value}`).join('; ')
  expect((await joining.call(`${IAM}/users`, { key: null, headers: { cookie } })).status).toBe(403)

  for (const stranger of ['a@example.com.evil.example', 'a@evil.example', '"@example.com"@evil.example', 'a@sub.example.com']) {
    provider.says({ claims: verified(stranger) })
    expect([stranger, (await openBrowser(joining).visit()).status]).toEqual([stranger, 403])
  }
})

test('who would be one user too many is told so, and comes in once there is room', async () => {
  provider.says({ claims: verified(mailbox()) })
  const made: string[] = []
  const invite = () => house.call(`${IAM}/users`, { body: { email: mailbox() } })
  for (let answer = await invite(); answer.status === 200; answer = await invite()) made.push((answer.json() as { id: string }).id)
  expect(await openBrowser(joining).visit()).toMatchObject({ status: 403, text: expect.stringContaining('as many users as there may be') })
  for (const id of made) await house.call(`${IAM}/users/${id}`, { method: 'DELETE' })
  expect((await openBrowser(joining).visit()).status).toBe(200)
})

test('who is in several organizations says which', async () => {
  const email = mailbox()
  const id = await newUser(email)
  const [other, twin] = [randomUUID(), randomUUID()]
  await database.db.query(`insert into organization (id, name) values ($1, 'else <b>where')`, [other])
  await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [other])
  await database.db.query(
    `insert into principal (id, organization_id, kind, role, name, email) values ($1, $2, 'user', 'member', 'twin', $3)`,
    [twin, other, email],
  )
  provider.says({ claims: verified(email) })
  const browser = openBrowser()
  const page = await browser.visit()
  expect(page.status).toBe(300)
  expect(page.text).toContain(`/oidc/start?organization_id=${other}`)
  expect(page.text).not.toContain('<b>')
  expect(await browser.whoami()).toBeUndefined()
  for (const [organization, user] of [
    [other, twin],
    [organizationId, id],
  ] as const) {
    const chosen = openBrowser()
    expect((await chosen.visit(`?organization_id=${organization}`)).status).toBe(200)
    expect(subject((await chosen.whoami()) ?? '')).toBe(user)
  }
})
