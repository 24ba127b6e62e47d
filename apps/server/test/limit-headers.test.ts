import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { wav } from '@parvis/testkit/media'
import { type Script, type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Every inference endpoint says where its caller stands: when it answers, when an engine refuses, and when a limit does.

let database: TestDatabase
let house: TestHouse
let engine: ScriptedEngine

const SIX = ['limit', 'remaining', 'reset'].flatMap((what) => [`x-ratelimit-${what}-requests`, `x-ratelimit-${what}-tokens`]).toSorted()
const MODELS = [
  { name: 'talker', type: 'chat' },
  { name: 'vectors', type: 'embedding' },
  { name: 'judge', type: 'rerank' },
  { name: 'reader', type: 'ocr' },
  { name: 'listener', type: 'audio' },
] as const
const messages = [{ role: 'user', content: 'Hello' }]
const pdf = `data:application/pdf;base64,${Buffer.from('%PDF-1.7\n1 0 obj\n<<>>\nendobj\n').toString('base64')}`
const page = { index: 0, markdown: '', images: [], dimensions: null }

const ENDPOINTS: readonly [path: string, body: object, script?: Script][] = [
  ['/v1/chat/completions', { model: 'talker', messages }],
  ['/v1/completions', { model: 'talker', prompt: 'Hello' }],
  ['/v1/responses', { model: 'talker', input: 'Hello' }],
  ['/v1/messages', { model: 'talker', messages, max_tokens: 16 }],
  ['/v1/embeddings', { model: 'vectors', input: 'Hello' }],
  ['/v1/rerank', { model: 'vectors', query: 'q', documents: ['a', 'b'] }],
  ['/v1/rerank', { model: 'judge', query: 'q', documents: ['a'] }, { body: { results: [{ index: 0, relevance_score: 1 }] } }],
  ['/v1/ocr', { model: 'reader', document: { type: 'document_url', document_url: pdf } }, { body: { pages: [page] } }],
  ['/v1/audio/transcriptions', { model: 'listener' }, { body: { text: 'Hello', duration: 1 } }],
]
const STREAMED = ENDPOINTS.slice(0, 4)

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine({}, { models: MODELS.map(({ name }) => name) })
  house = await startHouse({ database })
  for (const { name, type } of MODELS) {
    const generates = type === 'chat' ? {} : { maxOutputTokens: null, dimensions: type === 'embedding' ? 8 : null }
    await serveScripted(house, engine, { name, type, ...generates })
  }
})
afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

const ask = async (path: string, body: object) => {
  const headers: Record<string, string> = { authorization: `Bearer ${house.secretKey}` }
  if (path !== '/v1/audio/transcriptions') {
    headers['content-type'] = 'application/json'
    const answer = await fetch(`${house.url}${path}`, { method: 'POST', headers, body: JSON.stringify(body) })
    return { status: answer.status, headers: answer.headers, text: await answer.text() }
  }
  const form = new FormData()
  form.append('file', new Blob([new Uint8Array(wav(1))]), 'sound.wav')
  for (const [name, value] of Object.entries(body)) form.append(name, String(value))
  const answer = await fetch(`${house.url}${path}`, { method: 'POST', headers, body: form })
  return { status: answer.status, headers: answer.headers, text: await answer.text() }
}
const rates = (headers: Headers): string[] => [...headers.keys()].filter((name) => name.startsWith('x-ratelimit-')).toSorted()

const limit = async (requests_per_minute: number): Promise<void> => {
  const path = `/parvis/v1/limits/organizations/${house.owner.organizationId}`
  // Of every model, those too whose row in the tier has no tokens.
  expect((await house.call(path, { method: 'PUT', body: { requests_per_minute, tokens_per_minute: 9_000_000 } })).status).toBe(204)
  await until('the limits hold', async () =>
    (await house.call('/parvis/v1/limits')).text.includes(`"requests_per_minute":${requests_per_minute},`),
  )
}

test('the six headers stand on every good answer, streamed or not', async () => {
  await limit(9_999)
  for (const [path, body, script] of ENDPOINTS) {
    if (script !== undefined) engine.playOnce(script)
    const answer = await ask(path, body)
    expect({ path, status: answer.status, rates: rates(answer.headers) }).toEqual({ path, status: 200, rates: SIX })
  }
  for (const [path, body] of STREAMED) {
    const answer = await ask(path, { ...body, stream: true })
    expect(answer.headers.get('content-type')).toContain('text/event-stream')
    expect({ path, status: answer.status, rates: rates(answer.headers) }).toEqual({ path, status: 200, rates: SIX })
  }
})

test('and on what is refused or fails once it has been admitted, and not before: until then nothing has been counted', async () => {
  await limit(9_999)
  const [path, body] = ['/v1/chat/completions', { model: 'talker', messages }]
  engine.playOnce({ status: 400 })
  expect(await ask(path, body)).toMatchObject({ status: 400 })
  engine.playOnce({ status: 400 })
  expect(rates((await ask(path, body)).headers)).toEqual(SIX)
  engine.playOnce({ status: 500 })
  expect(rates((await ask(path, body)).headers)).toEqual(SIX)
  for (const wrong of [
    { ...body, model: 'nobody' },
    { ...body, messages: 'none' },
    { ...body, max_tokens: 100_000 },
  ]) {
    expect(rates((await ask(path, wrong)).headers)).toEqual([])
  }
})

test('a limit that is reached says so at every endpoint in its own words, with the time to come back', async () => {
  await limit(0)
  for (const [path, body] of [...ENDPOINTS, ...STREAMED.map(([path, body]) => [path, { ...body, stream: true }] as const)]) {
    const asked = engine.requests.length
    const answer = await ask(path, body)
    expect({ path, status: answer.status, rates: rates(answer.headers) }).toEqual({ path, status: 429, rates: SIX })
    expect(answer.headers.get('content-type')).toContain('application/json')
    expect(answer.headers.get('retry-after')).toBe('60')
    expect(answer.headers.get('retry-after-ms')).toBe('60000')
    const { error } = JSON.parse(answer.text) as { error: { type: string; message: string } }
    expect(error.type).toBe(path === '/v1/messages' ? 'rate_limit_error' : 'RateLimitError')
    expect(error.message).toContain('exceeded your current quota of requests per minute')
    expect(engine.requests).toHaveLength(asked)
  }
})
