import { request } from 'node:http'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

// What a page of another origin may ask us, as a browser asks: a question first, then the request.

const APP = 'https://app.example.com'
const LOCAL = 'http://localhost:5173'
const databases: TestDatabase[] = []
let open: TestHouse
let closed: TestHouse

const newHouse = async (settings: Record<string, string>): Promise<TestHouse> => {
  const database = await freshDatabase()
  databases.push(database)
  return startHouse({ database, settings })
}

beforeAll(async () => {
  open = await newHouse({ PARVIS_CORS_ORIGINS: `${APP}, ${LOCAL}` })
  closed = await newHouse({})
})

afterAll(async () => {
  await open?.stop()
  await closed?.stop()
  for (const database of databases) await database.drop()
})

type Answer = { status: number; headers: Record<string, string | string[] | undefined>; text: string }

/** `fetch` does not let a program say where it comes from; a browser does it by itself. */
const ask = (house: TestHouse, method: string, path: string, headers: Record<string, string>): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const sent = request(`${house.url}${path}`, { method, headers, agent: false }, (answer) => {
      let text = ''
      answer.on('data', (piece: Buffer) => {
        text += piece.toString()
      })
      answer.on('end', () => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, text }))
    })
    sent.on('error', reject)
    sent.end()
  })

const preflight = (house: TestHouse, path: string, origin: string, method: string, asked?: string): Promise<Answer> =>
  ask(house, 'OPTIONS', path, {
    origin,
    'access-control-request-method': method,
    ...(asked === undefined ? {} : { 'access-control-request-headers': asked }),
  })

/** What a browser makes of the answer to its question. */
const lets = ({ status, headers }: Answer, origin: string, method: string, asked: readonly string[]): boolean =>
  status < 300 &&
  headers['access-control-allow-origin'] === origin &&
  (['GET', 'HEAD', 'POST'].includes(method) || String(headers['access-control-allow-methods']).split(', ').includes(method)) &&
  asked.every((name) => String(headers['access-control-allow-headers']).split(', ').includes(name))

const corsHeaders = (answer: Answer): string[] => Object.keys(answer.headers).filter((name) => name.startsWith('access-control-'))

describe('a page of a listed origin', () => {
  const project = '0190a000-0000-7000-8000-000000000001'
  test.each([
    ['/v1/chat/completions', 'POST', ['authorization', 'content-type', 'x-stainless-lang', 'x-stainless-retry-count']],
    [`/${project}/v1/chat/completions`, 'POST', ['authorization', 'content-type', 'idempotency-key']],
    ['/v1/messages', 'POST', ['x-api-key', 'anthropic-version', 'anthropic-dangerous-direct-browser-access', 'content-type']],
    ['/v1/models', 'GET', ['authorization']],
    ['/iam/v1alpha1/users', 'GET', ['x-auth-token']],
    ['/iam/v1alpha1/users/x', 'PATCH', ['x-session-token', 'content-type']],
    ['/account/v3/projects/x', 'DELETE', ['x-auth-token']],
    ['/iam/v1alpha1/rules', 'PUT', ['x-auth-token', 'content-type']],
    ['/parvis/v1/usage', 'GET', ['x-session-token']],
  ])('may ask %s by %s', async (path, method, asked) => {
    for (const origin of [APP, LOCAL]) {
      const answer = await preflight(open, path, origin, method, asked.join(','))
      expect(answer.status).toBe(204)
      expect(answer.text).toBe('')
      expect(lets(answer, origin, method, asked)).toBe(true)
      expect(answer.headers['vary']).toMatch(/\bOrigin\b/)
      expect(Number(answer.headers['access-control-max-age'])).toBeGreaterThan(0)
    }
  })

  test('is told no other header, and never that cookies may come along', async () => {
    const answer = await preflight(open, '/iam/v1alpha1/users', APP, 'POST', 'x-auth-token,x-evil,cookie')
    expect(answer.headers['access-control-allow-headers']).toBe('x-auth-token')
    expect(answer.headers['access-control-allow-credentials']).toBeUndefined()
    const inference = await preflight(open, '/v1/models', APP, 'GET', `authorization,x-auth-token,${'x-stainless-'.repeat(20)}`)
    expect(inference.headers['access-control-allow-headers']).toBe('authorization')
  })

  test('reads answers and refusals of both sides, with the headers that it needs', async () => {
    const models = await ask(open, 'GET', '/v1/models', { origin: APP, authorization: `Bearer ${open.secretKey}` })
    expect(models.status).toBe(200)
    expect(models.headers).toMatchObject({ 'access-control-allow-origin': APP, vary: 'Origin', 'content-type': 'application/json' })
    expect(models.headers['access-control-expose-headers']).toMatch(/x-request-id.*retry-after.*x-ratelimit-remaining-tokens/)
    const refused = await ask(open, 'GET', '/v1/models', { origin: APP })
    expect([refused.status, refused.headers['access-control-allow-origin']]).toEqual([401, APP])
    const users = await ask(open, 'GET', '/iam/v1alpha1/users', { origin: APP, 'x-auth-token': open.secretKey })
    expect([users.status, users.headers['access-control-allow-origin']]).toEqual([200, APP])
    expect(users.headers['content-type']).toBe('application/json')
    const denied = await ask(open, 'GET', '/iam/v1alpha1/users', { origin: APP })
    expect([denied.status, denied.headers['access-control-allow-origin']]).toEqual([401, APP])
  })
})

test('a page of any other origin gets what it would have got, and not a word of CORS', async () => {
  for (const origin of [
    'https://evil.example.com',
    'https://app.example.com.evil.example',
    'http://app.example.com',
    'https://app.example.com:8443',
    'null',
    '*',
    `${APP}/`,
    APP.toUpperCase(),
  ]) {
    for (const path of ['/v1/models', '/iam/v1alpha1/users']) {
      const question = await preflight(open, path, origin, 'GET', 'authorization,x-auth-token')
      const before = await preflight(closed, path, origin, 'GET', 'authorization,x-auth-token')
      expect([origin, question.status, question.text === before.text, corsHeaders(question)]).toEqual([origin, before.status, true, []])
      const answer = await ask(open, 'GET', path, { origin, authorization: `Bearer ${open.secretKey}` })
      expect([origin, answer.status, corsHeaders(answer)]).toEqual([origin, 200, []])
      // A cache on the way must not hand it the answer that was made for another.
      expect(answer.headers['vary']).toMatch(/Origin/)
    }
  }
})

test('without a list nobody gets a word of CORS, and nothing but the two APIs ever says one', async () => {
  for (const path of ['/v1/models', '/iam/v1alpha1/users']) {
    const question = await preflight(closed, path, APP, 'GET', 'authorization')
    expect(corsHeaders(question)).toEqual([])
    expect(question.headers['vary']).toBeUndefined()
  }
  for (const path of ['/health', '/ready', '/metrics', '/nowhere', '/v1', '/x/v1/models', '/v1x/models']) {
    expect([path, corsHeaders(await preflight(open, path, APP, 'GET'))]).toEqual([path, []])
    expect([path, corsHeaders(await ask(open, 'GET', path, { origin: APP }))]).toEqual([path, []])
  }
})
