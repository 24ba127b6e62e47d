import { no, yes } from '@parvis/server/kit/outcome'
import type { Refusal } from '@parvis/server/kit/refusal'
import { aModel, guessedTokens, openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { ErrorBody } from '@parvis/wire/openai/error'
import { describe, expect, test } from 'vitest'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }
const NIL = '00000000-0000-4000-8000-000000000000'

/** Every refusal has the one shape, whatever it says. */
const refusalOf = async (answer: Response) => {
  const { error } = ErrorBody.parse(await answer.json())
  expect(answer.headers.get('content-type')).toBe('application/json')
  expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/)
  expect(error.code).toBe(answer.status)
  return { status: answer.status, ...error }
}

describe('every row of the contract', () => {
  test('no key is 401, a wrong one 403, on every path and whatever the body', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    for (const path of [CHAT, '/v1/embeddings', '/v1/models', '/v1/models/tiny-chat', `/${plane.projectId}${CHAT}`]) {
      const post = path.endsWith('s') && !path.endsWith('models') ? { method: 'POST', body: '{"broken' } : {}
      const none = await fetch(`${plane.url}${path}`, post)
      expect(await refusalOf(none)).toMatchObject({ status: 401, type: 'AuthenticationError', param: null })
      const wrong = await fetch(`${plane.url}${path}`, { ...post, headers: { authorization: `Bearer ${NIL}` } })
      expect(await refusalOf(wrong)).toMatchObject({ status: 403, type: 'PermissionDeniedError' })
    }
    expect(engine.requests).toEqual([])
  })

  test('another project is 403, and the right one is served', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    expect(await refusalOf(await plane.ask(`/${NIL}${CHAT}`, ASK))).toMatchObject({
      status: 403,
      message: expect.stringContaining('Insufficient permissions'),
    })
    expect((await plane.ask(`/${plane.projectId}${CHAT}`, ASK)).status).toBe(200)
  })

  test.each([
    ['POST', '/v1/images/generations'],
    ['POST', '/chat/completions'],
    ['POST', '/v2/chat/completions'],
    ['POST', `/${NIL.toUpperCase().replace('8000', 'A000')}/v1/chat/completions`],
    ['POST', '/default/v1/chat/completions'],
    ['GET', '/v1/chat/completions'],
    ['PUT', '/v1/chat/completions'],
    ['OPTIONS', '/v1/chat/completions'],
    ['DELETE', '/v1/models/tiny-chat'],
    ['GET', '/'],
    ['GET', '/v1'],
    ['GET', '/v1/models/%zz'],
    ['GET', `/${'x'.repeat(300)}/v1/models`],
  ])('%s %s is 404, key or no key, body or no body', async (method, path) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const body = method === 'GET' ? null : '{"broken'
    const answer = await fetch(`${plane.url}${path}`, { method, body, headers: { 'content-type': 'application/json' } })
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({ error: { type: 'NotFoundError', param: null, code: 404 } })
  })

  test('HEAD of an unknown path has no body', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await fetch(`${plane.url}/nowhere`, { method: 'HEAD' })
    expect([answer.status, await answer.text()]).toEqual([404, ''])
  })

  test.each<[string, unknown, number, string]>([
    ['broken JSON', '{"model":', 400, 'Invalid JSON body'],
    ['no object', '[]', 400, 'Invalid JSON body'],
    ['an empty body', '', 400, 'Invalid JSON body'],
    ['a line break in a string', '{"model":"tiny-chat","messages":[{"role":"user","content":"a\nb"}]}', 400, 'Invalid JSON body'],
    ['broken inside the messages', '{"model":"tiny-chat","messages":[{"role":}]}', 400, 'Invalid JSON body'],
    ['two models', '{"model":"a","model":"b"}', 400, 'comes twice'],
    [
      'an image of which JSON.parse does not see that it is one',
      `{"model":"tiny-chat","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://a"},"type":"text","text":"b"}]}]}`,
      400,
      'it comes twice',
    ],
    [
      'a content that only some engines would read',
      `{"model":"tiny-chat","messages":[{"role":"user","content":"a","Content":[{"type":"image_url","image_url":{"url":"http://a"}}]}]}`,
      400,
      'must be written',
    ],
    ['no model', { messages: ASK.messages }, 422, '"model" is missing'],
    ['no model at all', {}, 422, '"model" is missing'],
    ['an unknown model', { ...ASK, model: 'gpt-17' }, 422, 'gpt-17'],
    ['a model that is no string', { ...ASK, model: 7 }, 400, 'expected a string'],
    ['a model of another kind', { ...ASK, model: 'tiny-embed' }, 400, 'does not serve /v1/chat/completions'],
    ['no messages', { model: 'tiny-chat' }, 400, '"messages"'],
    ['a wrong type', { ...ASK, temperature: '1' }, 400, '"temperature"'],
    ['more output than there is', { ...ASK, max_tokens: 513 }, 416, 'max_completion_tokens is limited for this model'],
  ])('%s', async (_name, body, status, said) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const refusal = await refusalOf(await plane.ask(CHAT, body))
    expect(refusal).toMatchObject({ status, message: expect.stringContaining(said) })
    expect(engine.requests).toEqual([])
    expect(plane.records).toEqual([])
  })

  test('what is checked first is said first', async () => {
    await using engine = await startScriptedEngine()
    const models = [aModel({ name: 'tiny-embed', type: 'embedding' }), aModel({ contextTokens: 100, maxOutputTokens: 50 })]
    await using plane = await startDataPlane({ engine: engine.url, models })
    const wrong = { messages: [], temperature: 9, max_tokens: 1000 }
    const statusOf = async (body: unknown) => (await plane.ask(CHAT, body)).status
    expect(await statusOf('{"messages":[')).toBe(400)
    expect(await statusOf(wrong)).toBe(422)
    expect(await statusOf({ ...wrong, model: 'nobody' })).toBe(422)
    expect(await refusalOf(await plane.ask(CHAT, { ...wrong, model: 'tiny-embed' }))).toMatchObject({ status: 400, param: 'model' })
    expect(await refusalOf(await plane.ask(CHAT, { ...wrong, model: 'tiny-chat' }))).toMatchObject({ status: 400, param: 'temperature' })
    expect(await statusOf({ ...ASK, max_tokens: 1000 })).toBe(416)
  })

  test.each<[string, Refusal, number, string | null, string | null]>([
    ['requests', { code: 'limit_reached', limit: 'requests', model: 'm', retryAfterMs: 250 }, 429, '1', '250'],
    ['concurrency', { code: 'limit_reached', limit: 'concurrency', model: 'm', retryAfterMs: 1500 }, 429, '2', '1500'],
  ])('a limit of %s is an ordinary 429, also for a stream, and says when to come back', async (_name, refusal, status, seconds, ms) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, rooms: { admit: () => no(refusal) } })
    const answer = await plane.ask(CHAT, { ...ASK, stream: true })
    expect([answer.headers.get('retry-after'), answer.headers.get('retry-after-ms')]).toEqual([seconds, ms])
    expect(await refusalOf(answer)).toMatchObject({ status, type: 'RateLimitError' })
    expect(plane.seats.taken).toBe(0)
  })

  test.each([
    ['a budget that is spent until tomorrow', 'budget_money_day', 3_600_000, 'false'],
    ['a limit that is over within the minute', 'tokens', 60_000, null],
  ] as const)('%s: whether official SDKs should try again is said', async (_what, limit, retryAfterMs, should) => {
    await using engine = await startScriptedEngine()
    const refusal: Refusal = { code: 'limit_reached', limit, model: 'tiny-chat', retryAfterMs }
    const asked: string[] = []
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: { admit: (_caller, model) => (asked.push(model.name), no(refusal)) },
    })
    const answer = await plane.ask(CHAT, ASK)
    expect([answer.status, answer.headers.get('x-should-retry')]).toEqual([429, should])
    if (should === null) return
    await expect(plane.openai({ maxRetries: 2 }).chat.completions.create(ASK as never)).rejects.toMatchObject({ status: 429 })
    expect(asked).toHaveLength(2)
  })

  test('no seat is 503 with a time to come back, and the ticket is given back', async () => {
    await using engine = await startScriptedEngine()
    const settled: number[] = []
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        admit: () => yes(openTicket(settled)),
        takeSeat: async () => no({ code: 'engine_unavailable', model: 'tiny-chat', reason: 'it is starting', retryAfterMs: 5000 }),
      },
    })
    const answer = await plane.ask(CHAT, ASK)
    expect(answer.headers.get('retry-after')).toBe('5')
    expect(await refusalOf(answer)).toMatchObject({ status: 503, type: 'ServiceUnavailableError' })
    expect(settled).toEqual([0])
  })

  test('a bug of ours is 500, says nothing but the id, and is in the log', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        resolve: () => {
          throw new Error('the secret reason')
        },
      },
    })
    const answer = await plane.ask(CHAT, ASK)
    const id = answer.headers.get('x-request-id')
    expect(await refusalOf(answer)).toMatchObject({
      status: 500,
      type: 'InternalServerError',
      message: expect.not.stringContaining('secret'),
    })
    expect(plane.log.join('')).toContain('the secret reason')
    expect(plane.log.join('')).toContain(id)
  })
})

describe.each([true, false])('an engine in trouble before the first byte (stream: %s)', (stream) => {
  const ask = { ...ASK, stream }

  test.each<[string, Script, number, string]>([
    ['cuts the connection', { cutAfter: 0 }, 503, 'ServiceUnavailableError'],
    ['does not know our key', { status: 401 }, 500, 'InternalServerError'],
    ['does not let us', { status: 403 }, 500, 'InternalServerError'],
    ['does not know the model', { status: 404 }, 500, 'InternalServerError'],
    ['fails', { status: 500 }, 500, 'InternalServerError'],
    ['fails without words', { status: 502, raw: ['<html>Bad Gateway</html>'], contentType: 'text/html' }, 500, 'InternalServerError'],
    ['sends us elsewhere', { status: 302, raw: [], headers: { location: 'http://example.com' } }, 500, 'InternalServerError'],
    ['has an error inside a 200', { body: { error: { message: 'Scripted refusal', code: 400 } } }, 500, 'InternalServerError'],
    [
      'has an answer and an error inside a 200',
      { body: { choices: [{}], error: { message: 'Scripted refusal' } } },
      500,
      'InternalServerError',
    ],
    ['has the wrong content type', { raw: ['<html></html>'], contentType: 'text/html' }, 500, 'InternalServerError'],
    [
      'compresses',
      { raw: ['data: x'], contentType: stream ? 'text/event-stream' : 'application/json', headers: { 'content-encoding': 'gzip' } },
      500,
      'InternalServerError',
    ],
    ['says nothing', { raw: [], contentType: stream ? 'text/event-stream' : 'application/json' }, 500, 'InternalServerError'],
    ['says nonsense', { raw: ['nonsense'], contentType: stream ? 'text/event-stream' : 'application/json' }, 500, 'InternalServerError'],
    [
      'says half a thing',
      { raw: ['{"choices":[', '{}'], contentType: stream ? 'text/event-stream' : 'application/json' },
      500,
      'InternalServerError',
    ],
    [
      'has no answer in its answer',
      {
        raw: [stream ? 'data: [DONE]\n\n' : '{"object":"list","data":[]}'],
        contentType: stream ? 'text/event-stream' : 'application/json',
      },
      500,
      'InternalServerError',
    ],
  ])('%s', async (_name, script, status, type) => {
    await using engine = await startScriptedEngine(script)
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ask)
    // Who does not take the request has not worked on it; all others are in the books, with the input that they were given.
    const idle = (script.status ?? 200) >= 300 && (script.status ?? 200) < 500
    expect(answer.headers.get('retry-after')).toBe(status === 503 ? '1' : null)
    const refusal = await refusalOf(answer)
    expect(refusal).toMatchObject({ status, type })
    expect(refusal.message).not.toContain('Scripted')
    expect(plane.log.join('')).toContain('Engine: ')
    expect(plane.log.join('')).toContain(answer.headers.get('x-request-id'))
    expect(plane.log.join('')).not.toContain('Scripted')
    const input = guessedTokens(ask.messages)
    expect(plane.records).toMatchObject(idle ? [] : [{ ended: 'engine_failed', counted: 'delivered', status, input, output: 0 }])
    expect(plane.settled).toEqual([idle ? 0 : input])
    expect(plane.seats.left).toHaveLength(1)
  })

  test('an engine that is not there is 503 with a time to come back', async () => {
    const engine = await startScriptedEngine()
    await engine.close()
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ask)
    expect(answer.headers.get('retry-after-ms')).toBe('1000')
    expect(await refusalOf(answer)).toMatchObject({ status: 503, type: 'ServiceUnavailableError' })
    expect(plane.seats.left).toEqual(['broken'])
  })

  test('an error inside a stream that has just begun is an ordinary error', async () => {
    await using engine = await startScriptedEngine({ errorAfter: 0, ...(stream ? {} : { body: { object: 'error', message: 'x' } }) })
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, ask)).status).toBe(500)
  })

  test('a 400 of the engine is handed on in its words, with our name for the model', async () => {
    const error = { message: 'Org/remote:Q4 cannot do that', type: 'invalid_request_error', param: 'tools', code: 'x' }
    await using engine = await startScriptedEngine({ status: 422, body: { error } })
    await using plane = await startDataPlane({ engine: engine.url, replica: { remoteModel: 'Org/remote:Q4' } })
    expect(await refusalOf(await plane.ask(CHAT, ask))).toEqual({
      status: 400,
      message: 'tiny-chat cannot do that',
      type: 'BadRequestError',
      param: 'tools',
      code: 400,
    })
    expect(plane.seats.left).toEqual(['clean'])
  })

  test('the flat shape of older engines is understood', async () => {
    await using engine = await startScriptedEngine({
      status: 400,
      body: { object: 'error', message: 'No such thing', type: 'BadRequestError', param: null, code: 400 },
    })
    await using plane = await startDataPlane({ engine: engine.url })
    expect(await refusalOf(await plane.ask(CHAT, ask))).toMatchObject({ status: 400, message: 'No such thing' })
  })

  test.each([
    [
      'vLLM',
      {
        error: {
          message:
            "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2000 in the messages, 1000 in the completion).",
          code: 400,
        },
      },
    ],
    [
      'llama.cpp',
      {
        error: {
          code: 400,
          message: 'the request exceeds the available context size',
          type: 'exceed_context_size_error',
          n_prompt_tokens: 3000,
          n_ctx: 2048,
        },
      },
    ],
  ])('a full context is said in the words of the contract, with both numbers (%s)', async (_name, body) => {
    await using engine = await startScriptedEngine({ status: 400, body })
    await using plane = await startDataPlane({ engine: engine.url })
    const { message } = await refusalOf(await plane.ask(CHAT, ask))
    expect(message).toContain('maximum context window')
    expect(message).toContain('2048')
    expect(message).toContain('3000')
  })

  test.each([
    [429, { 'retry-after': '7' }, '7'],
    [503, { 'retry-after-ms': '1200' }, '2'],
    [503, {}, '1'],
    [503, { 'retry-after': '86400' }, '60'],
  ])('a busy engine (%i) is 503 and says when to come back', async (status, headers, seconds) => {
    await using engine = await startScriptedEngine({ status, headers })
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ask)
    expect(answer.headers.get('retry-after')).toBe(seconds)
    expect(await refusalOf(answer)).toMatchObject({ status: 503, type: 'ServiceUnavailableError' })
  })

  test('an answer that does not come in time is 504, and the engine is stopped', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 0, holdHead: true })
    await using plane = await startDataPlane({ engine: engine.url, limits: stream ? { firstByteMs: 600 } : { totalMs: 600 } })
    expect(await refusalOf(await plane.ask(CHAT, ask))).toMatchObject({ status: 504, type: 'GatewayTimeoutError' })
    await engine.until('aborted')
    expect(plane.records).toMatchObject([{ ended: 'timed_out', counted: 'delivered', status: 504, output: 0 }])
    expect(plane.records[0]?.input).toBeGreaterThan(0)
  })
})

describe('waiting for a seat', () => {
  test('counts against the time for the whole answer', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({
      engine: engine.url,
      limits: { totalMs: 150 },
      rooms: {
        takeSeat: (_model, caller) =>
          new Promise((_resolve, reject) => caller.signal().addEventListener('abort', () => reject(caller.signal().reason))),
      },
    })
    expect(await refusalOf(await plane.ask(CHAT, ASK))).toMatchObject({ status: 504 })
    await expect.poll(() => plane.settled).toEqual([0])
    expect(plane.log).toEqual([])
  })
})
