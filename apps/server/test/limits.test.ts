import { randomUUID } from 'node:crypto'
import { insertKey } from '@parvis/server/iam/keys'
import { transaction } from '@parvis/server/kit/db'
import type { OrganizationId, PrincipalId } from '@parvis/server/kit/ids'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { runParvis } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import OpenAI from 'openai'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

let database: TestDatabase
let house: TestHouse
let engine: ScriptedEngine

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine({}, { models: ['scripted'] })
  house = await startHouse({ database })
  // A euro buys 20,000 tokens, in or out.
  await serveScripted(house, engine, { name: 'scripted', price: { input: 50_000_000n, output: 50_000_000n } })
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

const CHAT = '/v1/chat/completions'
const chat = { model: 'scripted', messages: [{ role: 'user', content: 'Hello' }], max_tokens: 16 }
const LIMITS = '/parvis/v1/limits'

type Chunk = {
  id: string
  choices: { delta?: { content?: string }; finish_reason: string | null }[]
  usage?: { prompt_tokens: number; completion_tokens: number }
}
const organization = () => house.owner.organizationId

const put = (path: string, body: unknown, key?: string) => house.call(path, { method: 'PUT', body, ...(key === undefined ? {} : { key }) })

/** Sets limits for all models and waits until this gateway knows them; buckets are full again. */
const limit = async (limits: Record<string, number | 'unlimited' | 'default'>): Promise<void> => {
  expect((await put(`${LIMITS}/organizations/${organization()}`, limits)).status).toBe(204)
  await until('the limits hold', async () => {
    const { limits: known } = (await house.call(LIMITS)).json() as { limits: Record<string, unknown>[] }
    return Object.entries(limits).every(
      ([name, value]) => value === 'default' || known[0]?.[name] === (value === 'unlimited' ? null : value),
    )
  })
}

/** A budget counts what its project has used before it was made, so every test of one has a project of its own. */
const aProject = async (): Promise<{ id: string; path: string }> => {
  const made = await house.call('/account/v3/projects', {
    body: { name: randomUUID() },
    key: null,
    headers: { 'x-auth-token': house.secretKey },
  })
  const { id } = made.json() as { id: string }
  await until('the project is known', async () => (await house.call(`/${id}/v1/models`)).status === 200)
  return { id, path: `/${id}${CHAT}` }
}

const rates = (headers: Headers) => Object.fromEntries([...headers].filter(([name]) => name.startsWith('x-ratelimit-')))

beforeEach(() => engine.play({}))

describe('what a client sees', () => {
  test('every answer has the six headers, a stream too, and a refusal', async () => {
    await limit({ requests_per_minute: 3, tokens_per_minute: 600 })
    const whole = await house.call(CHAT, { body: chat })
    expect(whole.status).toBe(200)
    expect(rates(whole.headers)).toEqual({
      'x-ratelimit-limit-requests': '3',
      'x-ratelimit-remaining-requests': '2',
      'x-ratelimit-reset-requests': expect.stringMatching(/^\d+(\.\d+)?s$/) as string,
      'x-ratelimit-limit-tokens': '600',
      'x-ratelimit-remaining-tokens': expect.stringMatching(/^5\d\d$/) as string,
      'x-ratelimit-reset-tokens': expect.stringMatching(/^(\d+ms|\d+(\.\d+)?s)$/) as string,
    })
    const stream = await house.call(CHAT, { body: { ...chat, stream: true } })
    expect(stream.headers.get('x-ratelimit-remaining-requests')).toBe('1')
    expect((await house.call(CHAT, { body: chat })).status).toBe(200)
    const refused = await house.call(CHAT, { body: { ...chat, stream: true } })
    expect(refused.status).toBe(429)
    expect(refused.headers.get('content-type')).toContain('application/json')
    expect(refused.json()).toMatchObject({
      error: {
        type: 'RateLimitError',
        code: 429,
        message: expect.stringContaining('exceeded your current quota of requests per minute') as string,
      },
    })
    expect(Object.keys(rates(refused.headers))).toHaveLength(6)
    expect(refused.headers.get('x-ratelimit-remaining-requests')).toBe('0')
    const ms = Number(refused.headers.get('retry-after-ms'))
    expect(ms).toBeGreaterThan(0)
    expect(ms).toBeLessThanOrEqual(20_000)
    expect(refused.headers.get('retry-after')).toBe(String(Math.ceil(ms / 1000)))
    // What is not limited has no header.
    await limit({ requests_per_minute: 'unlimited', tokens_per_minute: 'unlimited' })
    expect(rates((await house.call(CHAT, { body: chat })).headers)).toEqual({})
  })

  test("the official SDK's own retry comes back at the right time and succeeds", async () => {
    await limit({ requests_per_minute: 60, tokens_per_minute: 'unlimited' })
    const client = new OpenAI({ baseURL: `${house.url}/v1`, apiKey: house.secretKey, maxRetries: 3 })
    const request = { model: 'scripted', max_tokens: 8, messages: [{ role: 'user' as const, content: 'Hello' }] }
    let refused = 0
    while (refused === 0) refused += (await house.call(CHAT, { body: chat })).status === 429 ? 1 : 0
    const answers = await Promise.all([client.chat.completions.create(request), client.chat.completions.create(request)])
    expect(answers.map(({ choices }) => choices[0]?.message.content)).toEqual(['Hello world.', 'Hello world.'])
    await limit({ requests_per_minute: 'unlimited' })
  })

  test('what was reserved for output comes back with the true count', async () => {
    await limit({ tokens_per_minute: 400 })
    // 256 are the most the model can say; its answer is 3 tokens long.
    const long = { ...chat, max_tokens: 256 }
    for (let round = 0; round < 3; round += 1) expect((await house.call(CHAT, { body: long })).status).toBe(200)
    engine.play({ holdAfter: 0 })
    const held = house.call(CHAT, { body: { ...long, stream: true } })
    await engine.until('held', engine.count('held') + 1)
    const refused = await house.call(CHAT, { body: long })
    expect(refused.json()).toMatchObject({
      error: { message: expect.stringContaining('exceeded your current quota of tokens per minute') as string },
    })
    engine.play({})
    engine.release()
    await held
    expect((await house.call(CHAT, { body: { ...long, max_tokens: 100 } })).status).toBe(200)
    await limit({ tokens_per_minute: 'unlimited' })
  })
})

describe('a hard budget', () => {
  test('refuses when it is spent, says so, and lets go when it is raised', async () => {
    const { id: project_id, path } = await aProject()
    const set = await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'day', amount: 0 })
    expect(set.status).toBe(200)
    await until('the budget holds', async () => (await house.call(path, { body: chat })).status === 429)
    const refused = await house.call(path, { body: chat })
    expect(refused.json()).toMatchObject({ error: { message: 'You exceeded your current budget of tokens per day.' } })
    expect((await house.call(CHAT, { body: chat })).status).toBe(200)
    const { id } = set.json() as { id: string }
    expect((await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'day', amount: 1_000_000 })).json()).toEqual({ id })
    await until('the raise is known', async () => (await house.call(path, { body: chat })).status === 200)
    await until('what was used is known to all', async () => {
      const { budgets } = (await house.call('/parvis/v1/budgets')).json() as { budgets: { used: number }[] }
      return (budgets[0]?.used ?? 0) >= 10
    })
    expect((await house.call('/parvis/v1/budgets?page=2&page_size=1')).json()).toEqual({ budgets: [], total_count: 1 })
    expect((await house.call(`/parvis/v1/budgets/${id}`, { method: 'DELETE' })).status).toBe(204)
    expect((await house.call(`/parvis/v1/budgets/${id}`, { method: 'DELETE' })).status).toBe(404)
    expect((await house.call('/parvis/v1/budgets')).json()).toEqual({ budgets: [], total_count: 0 })
  })

  test('counts what was used before it was made', async () => {
    const { id: project_id, path } = await aProject()
    for (let round = 0; round < 3; round += 1) expect((await house.call(path, { body: chat })).status).toBe(200)
    const booked = async () => (await database.db.query('select 1 from usage_event where project_id = $1', [project_id])).rows.length
    await until('it is in the books', async () => (await booked()) === 3)
    // As if it had been a while ago; what is younger than ten seconds is told by the gateways themselves.
    await database.db.query(`update usage_event set ended_at = ended_at - interval '20 seconds' where project_id = $1`, [project_id])
    const set = await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'month', amount: 30 })
    const { budgets } = (await house.call('/parvis/v1/budgets')).json() as { budgets: { used: number }[] }
    expect(budgets).toMatchObject([{ used: 30, amount: 30 }])
    await until('nothing is left of it', async () => (await house.call(path, { body: chat })).status === 429)
    expect((await house.call(`/parvis/v1/budgets/${(set.json() as { id: string }).id}`, { method: 'DELETE' })).status).toBe(204)
  })

  test('that a guess cannot decide is decided by the engine’s own tokenizer', async () => {
    const { id: project_id, path } = await aProject()
    const set = await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'day', amount: 3_000 })
    await until('the budget is known', async () => (await house.call(path, { body: { ...chat, max_tokens: 250, n: 20 } })).status === 429)
    // Two thousand tokens as guessed, half or twice as many as it may be.
    const body = { ...chat, messages: [{ role: 'user', content: 'x'.repeat(4_000) }] }
    const asked = () => engine.requests.filter((request) => request.path === '/tokenize').length
    const before = asked()
    engine.playOnce({ body: { count: 2_990, max_model_len: 4_096, tokens: [] } })
    expect((await house.call(path, { body })).status).toBe(429)
    // An engine that cannot count: what may be too much is refused.
    engine.playOnce({ status: 500 })
    expect((await house.call(path, { body })).status).toBe(429)
    engine.play({ usage: { prompt: 2_980 } })
    expect((await house.call(path, { body })).status).toBe(200)
    expect(asked()).toBe(before + 3)
    expect((await house.call(`/parvis/v1/budgets/${(set.json() as { id: string }).id}`, { method: 'DELETE' })).status).toBe(204)
  })

  test('that runs out in mid-stream ends the stream as one that has reached its limit, with the reason, the usage and a row in the books', async () => {
    const { id: project_id, path } = await aProject()
    const set = await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'day', amount: 120 })
    const { id } = set.json() as { id: string }
    await until('the budget is known', async () => (await house.call(path, { body: { ...chat, max_tokens: 256 } })).status === 429)
    engine.play({ tokens: ['word '], repeat: 250, tokenDelayMs: 2, usage: 'running' })
    const aborted = engine.count('aborted')
    const answer = await house.call(path, { body: { ...chat, max_tokens: 250, stream: true, stream_options: { include_usage: true } } })
    expect(answer.status).toBe(200)
    const events = answer.text.split('\n\n').filter(Boolean)
    const chunks = events.filter((event) => !event.includes('[DONE]')).map((event) => JSON.parse(event.slice('data: '.length)) as Chunk)
    expect(events.at(-1)).toBe('data: [DONE]')
    const [last, usage] = [chunks.at(-2), chunks.at(-1)]
    expect(last?.choices).toEqual([{ index: 0, delta: {}, logprobs: null, finish_reason: 'length', stop_reason: 'budget_exhausted' }])
    expect(last).toMatchObject({ object: 'chat.completion.chunk', model: 'scripted', id: chunks[0]?.id })
    expect(usage?.choices).toEqual([])
    expect(usage?.usage?.prompt_tokens).toBe(7)
    const words = chunks.filter(({ choices }) => choices[0]?.delta?.content === 'word ').length
    expect(usage?.usage?.completion_tokens).toBe(words)
    expect(words).toBeGreaterThan(60)
    expect(words).toBeLessThan(120)
    await engine.until('aborted', aborted + 1)
    await until('it is in the books', async () => {
      const { rows } = await database.db.query(`select 1 from usage_event where ended = 'budget' and output_tokens = $1 and status = 200`, [
        words,
      ])
      return rows.length === 1
    })
    expect((await house.call(`/parvis/v1/budgets/${id}`, { method: 'DELETE' })).status).toBe(204)
    await until('the budget is gone', async () => (await house.call(path, { body: { ...chat, max_tokens: 256 } })).status === 200)
  })

  test('cannot be outrun by clients that leave before the end', async () => {
    const long = { ...chat, messages: [{ role: 'user', content: 'x'.repeat(4_000) }] }
    const { id: project_id, path } = await aProject()
    const set = await put('/parvis/v1/budgets', { project_id, unit: 'tokens', period: 'month', amount: 4_500 })
    const { id } = set.json() as { id: string }
    // The rows know it at once; it counts when the gateway does. Twenty answers are more than it has.
    await until('the budget is known', async () => (await house.call(path, { body: { ...chat, max_tokens: 250, n: 20 } })).status === 429)
    const startedAt = new Date()
    const inBooks = async () =>
      (
        await database.db.query<{ input: number }>(
          `select input_tokens::int as input from usage_event where accepted_at >= $1 and ended = 'client_left'`,
          [startedAt],
        )
      ).rows.map(({ input }) => input)
    engine.play({ holdAfter: 1, usage: { prompt: 1_000 } })
    let served = 0
    for (let round = 0; round < 10; round += 1) {
      const leave = new AbortController()
      const held = engine.count('held')
      const aborted = engine.count('aborted')
      const answer = fetch(`${house.url}${path}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${house.secretKey}`, 'content-type': 'application/json' },
        body: JSON.stringify({ ...long, stream: round % 2 === 0 }),
        signal: leave.signal,
      }).then(
        ({ status }) => status,
        () => undefined,
      )
      const refused = await Promise.race([engine.until('held', held + 1).then(() => false), answer.then((status) => status === 429)])
      if (refused) break
      served += 1
      leave.abort()
      await engine.until('aborted', aborted + 1)
      // The ticket is settled as soon as the row is on disk, and it is in the books after that.
      await until('it is in the books', async () => (await inBooks()).length === served)
    }
    expect(served).toBeGreaterThan(0)
    expect(served).toBeLessThanOrEqual(4)
    expect((await inBooks()).every((input) => input >= 1_000)).toBe(true)
    engine.play({})
    expect((await house.call(`/parvis/v1/budgets/${id}`, { method: 'DELETE' })).status).toBe(204)
    await until('the budget is gone', async () => (await house.call(path, { body: { ...chat, max_tokens: 256 } })).status === 200)
  })

  test('of one euro holds under two hundred streams at once: what is spent beyond it is at most one token for each', async () => {
    const price = 0.00005 // euros for a token of this model, in or out
    await limit({ concurrent_requests: 'unlimited', requests_per_minute: 'unlimited', tokens_per_minute: 'unlimited' })
    const { id: project_id, path } = await aProject()
    const { id } = (await put('/parvis/v1/budgets', { project_id, unit: 'money', period: 'month', amount: 1 })).json() as { id: string }
    // The rows know it at once; it counts when the gateway does. A hundred answers would cost more than a euro, so none is made.
    await until('the budget is known', async () => (await house.call(path, { body: { ...chat, max_tokens: 250, n: 100 } })).status === 429)
    engine.play({ tokens: ['word '], repeat: 250, tokenDelayMs: 10, usage: 'running' })
    const startedAt = new Date()
    const answers = await Promise.all(
      Array.from({ length: 200 }, () => house.call(path, { body: { ...chat, max_tokens: 250, stream: true } })),
    )
    const served = answers.filter(({ status }) => status === 200)
    const cut = served.filter(({ text }) => text.includes('budget_exhausted'))
    let tokens = 0
    await until('all are in the books', async () => {
      const { rows } = await database.db.query<{ streams: number; tokens: number }>(
        `select count(*)::int as streams, sum(input_tokens + output_tokens)::int as tokens from usage_event where accepted_at >= $1`,
        [startedAt],
      )
      tokens = rows[0]?.tokens ?? 0
      return rows[0]?.streams === served.length
    })
    const spent = tokens * price
    process.stdout.write(
      `one euro, ${served.length} of 200 streams let in, ${cut.length} ended by the budget: ${spent.toFixed(4)} € spent, bound ${(1 + served.length * price).toFixed(4)} €\n`,
    )
    expect(spent).toBeLessThanOrEqual(1 + served.length * price)
    expect(spent).toBeGreaterThan(0.9)
    expect(cut.length).toBeGreaterThan(0)
    expect((await house.call(`/parvis/v1/budgets/${id}`, { method: 'DELETE' })).status).toBe(204)
  })

  test.each([
    ['an unknown field', { unit: 'tokens', period: 'day', amount: 1, colour: 'red' }, 'colour'],
    ['half a token', { unit: 'tokens', period: 'day', amount: 0.5 }, 'amount'],
    ['a week', { unit: 'tokens', period: 'week', amount: 1 }, 'period'],
  ])('%s is refused by name', async (_, body, name) => {
    const answer = await put('/parvis/v1/budgets', body)
    expect(answer.status).toBe(400)
    expect(answer.json()).toMatchObject({ type: 'invalid_arguments', details: [{ argument_name: name }] })
  })

  test('a project of somebody else is not found', async () => {
    expect((await put('/parvis/v1/budgets', { unit: 'money', period: 'day', amount: 1, project_id: randomUUID() })).status).toBe(404)
    expect((await put('/parvis/v1/budgets', { unit: 'money', period: 'day', amount: 1, principal_id: randomUUID() })).status).toBe(404)
  })
})

describe('who sets what', () => {
  test('a project has no more than its organization', async () => {
    await limit({ tokens_per_minute: 1_000 })
    const path = `${LIMITS}/projects/${organization()}`
    expect((await put(path, { tokens_per_minute: 1_001 })).status).toBe(400)
    expect((await put(path, { tokens_per_minute: 'unlimited' })).status).toBe(400)
    expect((await put(path, { tokens_per_minute: 10 })).status).toBe(204)
    await until('the project is limited', async () => (await house.call(CHAT, { body: { ...chat, max_tokens: 200 } })).status === 429)
    expect((await house.call(CHAT, { body: { ...chat, max_tokens: 200 } })).json()).toMatchObject({
      error: { message: expect.stringContaining('This project exceeded') as string },
    })
    expect((await put(path, { tokens_per_minute: 'default' })).status).toBe(204)
    expect((await put(`${LIMITS}/projects/${randomUUID()}`, { tokens_per_minute: 1 })).status).toBe(404)
    await limit({ tokens_per_minute: 'unlimited' })
  })

  test("an organization that is not the operator's cannot raise its own limits", async () => {
    const organizationId = randomUUID() as OrganizationId
    const principalId = randomUUID() as PrincipalId
    await database.db.query(`insert into organization (id, name) values ($1, 'other')`, [organizationId])
    await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [organizationId])
    await database.db.query(`insert into principal (id, organization_id, kind, role, name) values ($1, $2, 'user', 'owner', 'other')`, [
      principalId,
      organizationId,
    ])
    const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
    const { secretKey } = await transaction(database.db, (client) =>
      insertKey(client, secrets, { organizationId, principalId, description: '', expiresAt: null, actor: 'test' }),
    )
    await until('the key is known', async () => (await house.call(LIMITS, { key: secretKey })).status === 200)
    expect((await put(`${LIMITS}/organizations/${organizationId}`, { requests_per_minute: 9_999 }, secretKey)).status).toBe(403)
    expect((await put(`${LIMITS}/organizations/${organizationId}/tier`, { tier: 'identity_verified' }, secretKey)).status).toBe(403)
    // The operator's may, and without a payment method there is less of everything.
    expect((await put(`${LIMITS}/organizations/${organizationId}/tier`, { tier: 'none' })).status).toBe(204)
    await until('the tier is known', async () => (await house.call(LIMITS, { key: secretKey })).text.includes('"tier":"none"'))
    const answer = await house.call(CHAT, { body: chat, key: secretKey })
    expect(answer.headers.get('x-ratelimit-limit-requests')).toBe('30')
    expect((await put(`${LIMITS}/organizations/${randomUUID()}/tier`, { tier: 'none' })).status).toBe(404)
  })

  test('quotas are read as the vendor shows them', async () => {
    await limit({ requests_per_minute: 'default', tokens_per_minute: 'default' })
    const path = '/iam/v1alpha1/quota'
    expect((await house.call(path)).status).toBe(400)
    const list = (await house.call(`${path}?organization_id=${organization()}&page_size=100`)).json() as {
      quota: { name: string }[]
      total_count: number
    }
    expect(list.total_count).toBe(list.quota.length)
    expect(list.quota.map(({ name }) => name)).toEqual(list.quota.map(({ name }) => name).sort())
    const named = `${path}/GenerativeApisRequestsPerMinute:scripted?organization_id=${organization()}`
    await until('the limits of the tier hold', async () => (await house.call(named)).text.includes('600'))
    expect((await house.call(named)).json()).toEqual({
      name: 'GenerativeApisRequestsPerMinute:scripted',
      limit: 600,
      pretty_name: 'scripted: requests per minute',
      unit: 'request',
      description: '',
      locality_type: 'global',
      limits: [{ global: true, limit: 600 }],
    })
    expect((await house.call(`${path}/Nothing?organization_id=${organization()}`)).status).toBe(404)
    const some = await house.call(`${path}?organization_id=${organization()}&quotum_names=IamApiKeys&quotum_names=Nothing`)
    expect(some.json()).toMatchObject({ total_count: 1, quota: [{ name: 'IamApiKeys', limit: 50 }] })
    expect((await house.call(`${path}?organization_id=${randomUUID()}`)).json()).toEqual({ quota: [], total_count: 0 })
  })

  test('every change is in the audit, with who made it, from where and with what', async () => {
    const userAgent = `test/${randomUUID()}`
    const change = async (method: string, path: string, body?: object): Promise<string> => {
      const answer = await house.call(path, { method, headers: { 'user-agent': userAgent }, ...(body === undefined ? {} : { body }) })
      expect(answer.status).toBeLessThan(300)
      return answer.text
    }
    await change('PUT', `${LIMITS}/organizations/${organization()}`, { concurrent_batches: 5 })
    await change('PUT', `${LIMITS}/organizations/${organization()}/tier`, { tier: 'identity_verified' })
    await change('PUT', `${LIMITS}/projects/${organization()}`, { tokens_per_minute: 1 })
    await change('PUT', `${LIMITS}/projects/${organization()}`, { tokens_per_minute: 'default' })
    const made = await change('PUT', '/parvis/v1/budgets', { unit: 'tokens', period: 'month', amount: 1_000_000_000 })
    await change('DELETE', `/parvis/v1/budgets/${(JSON.parse(made) as { id: string }).id}`)
    const { rows } = await database.db.query<{ what: string; actor: string; ip: string }>(
      `select resource_type || ' ' || action as what, actor, host(ip) as ip from audit_entry where user_agent = $1 order by at`,
      [userAgent],
    )
    expect(rows.map(({ what }) => what)).toEqual([
      'organization_limit updated',
      'organization_tier updated',
      'project_limit updated',
      'project_limit updated',
      'budget created',
      'budget deleted',
    ])
    expect(new Set(rows.map(({ ip }) => ip))).toEqual(new Set(['127.0.0.1']))
    const { rows: owners } = await database.db.query<{ owner_id: string }>('select owner_id from installation')
    expect(new Set(rows.map(({ actor }) => actor))).toEqual(new Set([owners[0]?.owner_id]))
    await limit({ concurrent_batches: 'default' })
  })

  test('the command line sets and shows the same', async () => {
    const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: house.dataDir }
    expect(await runParvis(['limits', 'set', '--model', 'scripted', '--requests', '77', '--tokens', 'unlimited'], env)).toMatchObject({
      code: 0,
      err: '',
    })
    expect((await runParvis(['limits', 'budget', '--money', '12.50', '--period', 'month', '--alert-only'], env)).code).toBe(0)
    const shown = await runParvis(['limits', 'list'], env)
    expect(shown.out).toContain('Tier: identity_verified')
    expect(shown.out).toMatch(/scripted {2}tokens_per_minute unlimited {2}requests_per_minute 77/)
    expect(shown.out).toMatch(/budget \S+ {2}organization {2}\d+\.\d+ of 12\.50 money per month, alert only/)
    expect((await runParvis(['limits', 'set', '--batches', '7', '--free-tokens', '9000000'], env)).code).toBe(0)
    const quota = `/iam/v1alpha1/quota/GenerativeApisConcurrentBatches?organization_id=${organization()}`
    await until('running servers know it', async () => (await house.call(quota)).text.includes('"limit":7'))
    const { limits } = (await house.call(LIMITS)).json() as { limits: Record<string, unknown>[] }
    expect(limits[0]).toMatchObject({ model: '*', concurrent_batches: 7, free_tokens_per_month: 9_000_000 })
    await limit({ concurrent_batches: 'default', free_tokens_per_month: 'default' })
    expect((await runParvis(['limits', 'set'], env)).err).toContain('--tokens')
    expect((await runParvis(['limits', 'tier', 'gold'], env)).err).toContain('identity_verified')
  }, 300_000)
})
