import { request as httpRequest } from 'node:http'
import { connect } from 'node:net'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import OpenAI from 'openai'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'

// Every status of the data-plane contract, section 3.2, that these endpoints can give, through the front door.

let database: TestDatabase
let engine: ScriptedEngine
let house: TestHouse
/** One whose limits of time are short. The others' must not be: what is refused for another reason may take long on a busy machine. */
let impatient: TestHouse
let impatientDatabase: TestDatabase

beforeAll(async () => {
  database = await freshDatabase()
  impatientDatabase = await freshDatabase()
  engine = await startScriptedEngine({}, { models: ['scripted', 'vectors'] })
  house = await startHouse({ database, settings: { PARVIS_MAX_BODY_MB: '1' } })
  await serveScripted(house, engine, { name: 'scripted' })
  await serveScripted(house, engine, { name: 'vectors', type: 'embedding', maxOutputTokens: null, dimensions: 8 })
  const settings = { PARVIS_REQUEST_TIMEOUT_SECONDS: '2', PARVIS_BODY_TIMEOUT_SECONDS: '1' }
  impatient = await startHouse({ database: impatientDatabase, settings })
  await serveScripted(impatient, engine, { name: 'scripted' })
})

afterAll(async () => {
  await impatient?.stop()
  await house?.stop()
  await engine?.close()
  await impatientDatabase?.drop()
  await database?.drop()
})

beforeEach(() => {
  engine.release()
  engine.play({})
})

const CHAT = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'Hello' }]
const chat = { model: 'scripted', messages }

/** The shape of every error: nested, with a number for a code that is the status (data-plane.md 3.1). */
const errorOf = (answer: { status: number; json(): unknown }): { message: string; type: string; param: string | null; code: number } => {
  const { error } = answer.json() as { error: { message: string; type: string; param: string | null; code: number } }
  expect(Object.keys(error).toSorted()).toEqual(['code', 'message', 'param', 'type'])
  expect(error.code).toBe(answer.status)
  return error
}

const STRANGER = '11111111-2222-4333-8444-555555555555'

test.each([
  ['no key', 401, 'AuthenticationError', CHAT, { body: chat, key: null }],
  ['an unknown key', 403, 'PermissionDeniedError', CHAT, { body: chat, key: STRANGER }],
  ['a key that is no UUID', 403, 'PermissionDeniedError', CHAT, { body: chat, key: 'sk-nonsense' }],
  ["another organization's project", 403, 'PermissionDeniedError', `/${STRANGER}${CHAT}`, { body: chat }],
  ['an unknown path', 404, 'NotFoundError', '/v1/nothing', { body: chat }],
  ['a first segment that is neither v1 nor a project', 404, 'NotFoundError', '/v2/chat/completions', { body: chat }],
  ['a model that is not listed, by id', 404, 'NotFoundError', '/v1/models/nothing', {}],
  ['a body that is not JSON', 400, 'BadRequestError', CHAT, { body: '{"model":' }],
  ['a body that is JSON but no object', 400, 'BadRequestError', CHAT, { body: '[1]' }],
  ['a watched key given twice', 400, 'BadRequestError', CHAT, { body: '{"model":"scripted","model":"vectors","messages":[]}' }],
  ['a wrong content type', 400, 'BadRequestError', CHAT, { body: chat, headers: { 'content-type': 'text/plain' } }],
  ['no model', 422, 'UnprocessableEntityError', CHAT, { body: { messages } }],
  ['an unknown model', 422, 'UnprocessableEntityError', CHAT, { body: { ...chat, model: 'nothing' } }],
  ['an embedding model asked to chat', 400, 'BadRequestError', CHAT, { body: { ...chat, model: 'vectors' } }],
  ['a chat model asked for vectors', 400, 'BadRequestError', '/v1/embeddings', { body: { model: 'scripted', input: 'a' } }],
  ['no messages', 400, 'BadRequestError', CHAT, { body: { model: 'scripted' } }],
  ['an empty list of messages', 400, 'BadRequestError', CHAT, { body: { ...chat, messages: [] } }],
  ['an unknown role', 400, 'BadRequestError', CHAT, { body: { ...chat, messages: [{ role: 'wizard', content: 'x' }] } }],
  ['a temperature that is text', 400, 'BadRequestError', CHAT, { body: { ...chat, temperature: 'hot' } }],
  ['a temperature above 2', 400, 'BadRequestError', CHAT, { body: { ...chat, temperature: 2.1 } }],
  ['an output limit of zero', 400, 'BadRequestError', CHAT, { body: { ...chat, max_completion_tokens: 0 } }],
  ['an output limit above the maximum', 416, 'RangeNotSatisfiableError', CHAT, { body: { ...chat, max_completion_tokens: 257 } }],
  ['the older name above the maximum', 416, 'RangeNotSatisfiableError', CHAT, { body: { ...chat, max_tokens: 257 } }],
  ['an empty input', 400, 'BadRequestError', '/v1/embeddings', { body: { model: 'vectors', input: '' } }],
  [
    'more than 2,048 inputs',
    400,
    'BadRequestError',
    '/v1/embeddings',
    { body: { model: 'vectors', input: Array.from({ length: 2_049 }, () => 'a') } },
  ],
  ['dimensions the model has not', 400, 'BadRequestError', '/v1/embeddings', { body: { model: 'vectors', input: 'a', dimensions: 4 } }],
  ['a body that is too large', 400, 'BadRequestError', CHAT, { body: { ...chat, padding: 'x'.repeat(1_100_000) } }],
])('%s is refused with %i', async (_what, status, type, path, request) => {
  const asked = engine.requests.length
  const answer = await house.call(path, request)
  expect({ status: answer.status, type: errorOf(answer).type }).toEqual({ status, type })
  expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  expect(answer.headers.get('content-type')).toMatch(/^application\/json/)
  expect(engine.requests.length).toBe(asked)
})

test('what one may not see is answered exactly as what does not exist', async () => {
  const unknown = await house.call(CHAT, { body: chat, key: STRANGER })
  const foreign = await house.call(`/${STRANGER}${CHAT}`, { body: chat })
  expect(foreign.text).toBe(unknown.text)
})

test('an output limit at the maximum is served', async () => {
  expect((await house.call(CHAT, { body: { ...chat, max_completion_tokens: 256 } })).status).toBe(200)
})

test('an unknown field is passed on, never refused', async () => {
  expect((await house.call(CHAT, { body: { ...chat, format: 'json', chat_template_kwargs: { a: 1 } } })).status).toBe(200)
  expect(engine.requests.at(-1)?.json).toMatchObject({ format: 'json', chat_template_kwargs: { a: 1 } })
})

test('a doubled slash after v1 and the project in the path lead to the same place', async () => {
  expect((await house.call('/v1//chat/completions', { body: chat })).status).toBe(200)
  expect((await house.call(`/${house.owner.organizationId}${CHAT}`, { body: chat })).status).toBe(200)
})

test("an engine's own refusal of a request is passed on; its refusal of us is not shown", async () => {
  engine.play({
    status: 400,
    body: { error: { message: "This model's maximum context length is 8 tokens", type: 'BadRequestError', param: null, code: 400 } },
  })
  const refused = await house.call(CHAT, { body: chat })
  expect({ status: refused.status, message: errorOf(refused).message }).toEqual({
    status: 400,
    message: "This model's maximum context length is 8 tokens",
  })

  engine.play({
    status: 401,
    body: { error: { message: 'wrong bearer secret-of-the-engine', type: 'AuthenticationError', param: null, code: 401 } },
  })
  const ours = await house.call(CHAT, { body: chat })
  expect(ours.status).toBe(500)
  expect(ours.text).not.toContain('secret-of-the-engine')
})

test.each([
  [
    'answers 500',
    { status: 500, body: { error: { message: 'CUDA out of memory at /opt/engine', type: 'x', param: null, code: 500 } } },
    500,
  ],
  ['answers garbage', { raw: ['<html>oops</html>'], contentType: 'text/html' }, 500],
  ['answers 200 with an error inside', { body: { error: { message: 'inner', type: 'x', param: null, code: 500 } } }, 500],
  ['cuts the connection', { cutAfter: 0 }, 503],
  ['is overloaded', { status: 503, body: { error: { message: 'busy', type: 'x', param: null, code: 503 } } }, 503],
])('an engine that %s gives the documented error', async (_what, script, status) => {
  engine.play(script)
  const answer = await house.call(CHAT, { body: chat })
  expect(answer.status).toBe(status)
  expect(errorOf(answer).message).not.toMatch(/CUDA|inner|oops/)
  if (status === 503) expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0)
  await house.ready('scripted')
})

test('an engine that stays silent past the time limit gives 504', async () => {
  engine.play({ holdAfter: 0, holdHead: true })
  const answer = await impatient.call(CHAT, { body: chat })
  expect(answer.status).toBe(504)
  errorOf(answer)
})

test('the request that is one too many at once is refused with 429 and the time to come back, and the place is free again after', async () => {
  engine.play({ holdAfter: 0 })
  const before = engine.count('held')
  const held = Array.from({ length: 100 }, () => house.call(CHAT, { body: { ...chat, stream: true } }))
  await engine.until('held', before + 100)
  const refused = await house.call(CHAT, { body: chat })
  expect(refused.status).toBe(429)
  expect(errorOf(refused)).toMatchObject({
    type: 'RateLimitError',
    message: expect.stringContaining('threshold of concurrent requests') as string,
  })
  expect(refused.headers.get('retry-after')).toBe('1')
  engine.play({})
  engine.release()
  await Promise.all(held)
  expect((await house.call(CHAT, { body: chat })).status).toBe(200)
})

test('a mid-stream failure raises in the SDK', async () => {
  engine.play({ tokens: ['a', 'b', 'c', 'd'], cutAfter: 2 })
  const stream = await house
    .openai()
    .chat.completions.create({ model: 'scripted', stream: true, messages: [{ role: 'user', content: 'x' }] })
  let text = ''
  const read = async (): Promise<void> => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
  }
  await expect(read()).rejects.toBeInstanceOf(OpenAI.APIError)
  expect(text).toBe('ab')
})

test('the SDK tells the errors apart by their class', async () => {
  const failing = (client: OpenAI, model = 'scripted') =>
    client.chat.completions.create({ model, messages: [{ role: 'user', content: 'x' }] })
  await expect(failing(house.openai(STRANGER))).rejects.toBeInstanceOf(OpenAI.PermissionDeniedError)
  await expect(failing(house.openai(), 'nothing')).rejects.toBeInstanceOf(OpenAI.UnprocessableEntityError)
  await expect(failing(house.openai(), 'vectors')).rejects.toBeInstanceOf(OpenAI.BadRequestError)
})

test('half a request, and a body that comes too slowly, end with 408 and bounded memory', async () => {
  const answer = await new Promise<{ status: number | undefined; text: string }>((resolve, reject) => {
    const request = httpRequest(
      `${impatient.url}${CHAT}`,
      {
        method: 'POST',
        headers: { authorization: `Bearer ${impatient.secretKey}`, 'content-type': 'application/json', 'content-length': 1000 },
      },
      (response) => {
        let text = ''
        response.on('data', (chunk: Buffer) => {
          text += chunk.toString()
        })
        response.on('end', () => resolve({ status: response.statusCode, text }))
      },
    )
    request.on('error', reject)
    request.write('{"model":')
  })
  expect(answer.status).toBe(408)
  expect(JSON.parse(answer.text)).toMatchObject({ error: { code: 408 } })
})

test('bytes that are not HTTP get an answer in JSON and the connection ends', async () => {
  const { port } = new URL(house.url)
  const said = await new Promise<string>((resolve, reject) => {
    const socket = connect(Number(port), '127.0.0.1', () => socket.write('NONSENSE\r\n\r\n'))
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk.toString()
    })
    socket.on('close', () => resolve(text))
    socket.on('error', reject)
  })
  expect(said).toMatch(/^HTTP\/1\.1 400 /)
  expect(JSON.parse(said.split('\r\n\r\n')[1] ?? '')).toMatchObject({ error: { code: 400 } })
})

test('health and readiness need no key', async () => {
  expect((await house.call('/health', { key: null })).json()).toMatchObject({ status: 'ok' })
  const ready = await house.call('/ready', { key: null })
  expect(ready.status).toBe(200)
  expect(ready.json()).toEqual({ status: 'ready', checks: { database: 'ok', journal: 'ok', catalogue: 'ok' } })
})

const PROJECTS = '/account/v3/projects'

/** A request as bytes, for what no HTTP client would do. */
const openRaw = async (method: string, path: string, headers: Readonly<Record<string, string>>, body = '', to = house) => {
  const socket = connect(Number(new URL(to.url).port), '127.0.0.1')
  let text = ''
  socket.on('data', (chunk) => {
    text += chunk.toString()
  })
  socket.on('error', () => {})
  const lines = Object.entries({ host: 'x', ...headers }).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n${body}`)
  return {
    socket,
    closed: new Promise<string>((resolve) => socket.on('close', () => resolve(text))),
    until: (pattern: RegExp) => expect.poll(() => text).toMatch(pattern),
  }
}
const jsonOf = (received: string): unknown => JSON.parse(received.slice(received.indexOf('\r\n\r\n') + 4))

test('half a body on a management route is 408 at the limit, and the connection is closed', async () => {
  const client = await openRaw('POST', PROJECTS, { 'x-auth-token': impatient.secretKey, 'content-length': '200' }, '{', impatient)
  const received = await client.closed
  expect(received).toMatch(/^HTTP\/1\.1 408 /)
  expect(received).toMatch(/content-type: application\/json\r\n/)
  expect(jsonOf(received)).toEqual({ type: 'request_timeout', message: 'the body did not arrive within 1 s' })
})

test('a client that leaves in the middle of a management body is no error of ours', async () => {
  const headers = { 'x-auth-token': house.secretKey, 'content-length': '200', expect: '100-continue' }
  const client = await openRaw('POST', PROJECTS, headers)
  await client.until(/^HTTP\/1\.1 100 Continue\r\n\r\n/) // so that the body is what is waited for
  client.socket.write('{"name":')
  client.socket.destroy()
  await expect.poll(() => house.log()).toContain('left before its body was here')
  expect(house.log()).not.toContain('a management request failed')
})

test('without a key a management request is 401 at once, and nobody waits for its body', async () => {
  const client = await openRaw('POST', PROJECTS, { 'content-length': '200' }, '{')
  await client.until(/^HTTP\/1\.1 401 /)
  expect(await client.closed).toContain('denied_authentication')
})

test('a refusal before a management body leaves the connection usable once the body is there', async () => {
  const client = await openRaw('POST', PROJECTS, { 'content-length': '20' }, '{')
  await client.until(/^HTTP\/1\.1 401 /)
  client.socket.write(`${' '.repeat(18)}}GET ${PROJECTS} HTTP/1.1\r\nhost: x\r\nx-auth-token: ${house.secretKey}\r\n\r\n`)
  await client.until(/HTTP\/1\.1 200 /)
  expect(client.socket.closed).toBe(false)
  client.socket.destroy()
})

test('a management client that asks before it sends is told to go on only when its key is good', async () => {
  const ask = { expect: '100-continue', 'content-length': '30' }
  const none = await openRaw('POST', PROJECTS, ask)
  expect(await none.closed).toMatch(/^HTTP\/1\.1 401 /)
  const good = await openRaw('POST', PROJECTS, { ...ask, 'x-auth-token': house.secretKey })
  await good.until(/^HTTP\/1\.1 100 Continue\r\n\r\n/)
  good.socket.write('{"name": "asked first"}       ')
  await good.until(/HTTP\/1\.1 200 [\s\S]*asked first/)
  good.socket.destroy()
})
