import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { type Answer, type ClientOptions, openClient } from './client.ts'

type Handler = (request: IncomingMessage, response: ServerResponse, body: string) => void

let close: (() => Promise<void>) | undefined
afterEach(async () => {
  await close?.()
  close = undefined
})

/** A server that answers as the test says, and a client of it. */
const serve = async (handler: Handler, options: Partial<ClientOptions> = {}) => {
  const server = createServer((request, response) => {
    let body = ''
    request.on('data', (piece: Buffer) => {
      body += piece.toString()
    })
    request.on('end', () => handler(request, response, body))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  close = async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  }
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return { baseUrl, client: openClient({ baseUrl, key: 'secret', ...options }) }
}

const json = (response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}) =>
  response.writeHead(status, { 'content-type': 'application/json', 'x-request-id': 'r-1', ...headers }).end(JSON.stringify(body))

const COMPLETION = {
  id: 'chatcmpl-1',
  object: 'chat.completion',
  created: 1,
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: 'Hi' }, finish_reason: 'stop' }],
  usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
}
const chunk = (content: string) => ({
  id: 'chatcmpl-1',
  object: 'chat.completion.chunk',
  created: 1,
  model: 'm',
  choices: [{ index: 0, delta: { content }, finish_reason: null }],
})
const event = (payload: unknown) => `data: ${JSON.stringify(payload)}\n\n`
const ASK = { model: 'm', messages: [{ role: 'user' as const, content: 'Hello' }] }

const collect = async (answers: AsyncIterable<Answer<{ choices: { delta: { content?: string | null | undefined } }[] }>>) => {
  const found: unknown[] = []
  for await (const answer of answers) found.push(answer.ok ? answer.value.choices[0]?.delta.content : answer.problem)
  return found
}

describe('what is sent', () => {
  test('is the request, with the key, to the path of the contract', async () => {
    const seen: unknown[] = []
    const { client } = await serve((request, response, body) => {
      seen.push([request.method, request.url, request.headers.authorization, JSON.parse(body)])
      json(response, 200, COMPLETION)
    })
    const answer = await client.chat({ ...ASK, temperature: 0 })
    expect(answer.ok && [answer.value.choices[0]?.message.content, answer.requestId]).toEqual(['Hi', 'r-1'])
    expect(seen).toEqual([['POST', '/v1/chat/completions', 'Bearer secret', { ...ASK, temperature: 0, stream: false }]])
  })
  test.each([
    ['', undefined, '/v1/models'],
    ['/', undefined, '/v1/models'],
    ['/v1', undefined, '/v1/models'],
    ['/v1/', '11111111-1111-1111-1111-111111111111', '/11111111-1111-1111-1111-111111111111/v1/models'],
  ])('goes to the right place for a base address ending in "%s" and project %s', async (ending, project, path) => {
    let seen: string | undefined
    const { baseUrl } = await serve((request, response) => {
      seen = request.url
      json(response, 200, { object: 'list', data: [{ id: 'm', object: 'model', created: 1, owned_by: 'us' }] })
    })
    const answer = await openClient({ baseUrl: `${baseUrl}${ending}`, key: 'k', ...(project !== undefined && { project }) }).models()
    expect(answer.ok && answer.value.data.map(({ id }) => id)).toEqual(['m'])
    expect(seen).toBe(path)
  })
  test('embeddings come back as they were asked for', async () => {
    const { client } = await serve((_request, response, body) => {
      const asked = JSON.parse(body) as { encoding_format?: string }
      json(response, 200, {
        object: 'list',
        model: 'm',
        data: [{ object: 'embedding', index: 0, embedding: asked.encoding_format === 'base64' ? 'AACAPw==' : [1] }],
      })
    })
    const floats = await client.embeddings({ model: 'm', input: 'x' })
    const packed = await client.embeddings({ model: 'm', input: ['x'], encoding_format: 'base64' })
    expect([floats.ok && floats.value.data[0]?.embedding, packed.ok && packed.value.data[0]?.embedding]).toEqual([[1], 'AACAPw=='])
  })
})

describe('what goes wrong is a value', () => {
  test('a refusal, with all that the server said', async () => {
    const { client } = await serve((_request, response) =>
      json(response, 429, { error: { message: 'slow down', type: 'RateLimitError', param: null, code: 429 } }, { 'retry-after': '2' }),
    )
    expect(await client.chat(ASK)).toEqual({
      ok: false,
      problem: { kind: 'refused', status: 429, type: 'RateLimitError', message: 'slow down', requestId: 'r-1', retryAfterMs: 2000 },
    })
    expect(await collect(client.chatStream(ASK))).toEqual([expect.objectContaining({ kind: 'refused', status: 429, message: 'slow down' })])
  })
  test('a refusal by something that does not speak our language', async () => {
    const { client } = await serve((_request, response) => response.writeHead(502).end('<html>Bad gateway</html>'))
    expect(await client.models()).toMatchObject({
      problem: { kind: 'refused', status: 502, type: undefined, message: 'the server answered with status 502' },
    })
  })
  test('nobody there', async () => {
    const { baseUrl } = await serve(() => undefined)
    await close?.()
    close = undefined
    const client = openClient({ baseUrl, key: 'k' })
    expect(await client.models()).toMatchObject({ ok: false, problem: { kind: 'unreachable', status: undefined } })
    expect(await collect(client.chatStream(ASK))).toMatchObject([{ kind: 'unreachable' }])
  })
  test('an answer that is none', async () => {
    const { client } = await serve((_request, response) => json(response, 200, { object: 'something' }))
    expect(await client.chat(ASK)).toMatchObject({ ok: false, problem: { kind: 'unreadable', status: 200, requestId: 'r-1' } })
  })
  test('a server that never answers', async () => {
    const { client } = await serve(() => undefined, { timeoutMs: 50, silenceMs: 50 })
    expect(await client.chat(ASK)).toMatchObject({ problem: { kind: 'timeout', message: 'the server did not answer within 50 ms' } })
    expect(await collect(client.chatStream(ASK))).toMatchObject([{ kind: 'timeout' }])
  })
  test('a caller who changes their mind, before or during', async () => {
    const arrived = deferred()
    const { client } = await serve(() => arrived.resolve(undefined))
    expect(await client.chat(ASK, { signal: AbortSignal.abort() })).toMatchObject({ problem: { kind: 'aborted' } })
    const controller = new AbortController()
    const answer = client.chat(ASK, { signal: controller.signal })
    await arrived.promise
    controller.abort()
    expect(await answer).toMatchObject({ problem: { kind: 'aborted' } })
  })
})

const deferred = () => {
  let resolve: (value: unknown) => void = () => undefined
  const promise = new Promise<unknown>((done) => {
    resolve = done
  })
  return { promise, resolve }
}

describe('a stream', () => {
  test('gives its pieces in order, wherever the network cut them', async () => {
    const { client } = await serve((_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      const bytes = Buffer.from(`: ping\n\n${event(chunk('H'))}${event(chunk('é😀'))}${event(chunk('!'))}data: [DONE]\n\n`)
      let at = 0
      const next = () => {
        if (at >= bytes.length) return response.end()
        response.write(bytes.subarray(at, at + 7), next)
        at += 7
        return response
      }
      next()
    })
    expect(await collect(client.chatStream(ASK))).toEqual(['H', 'é😀', '!'])
  })
  test('that fails on the way ends with the error', async () => {
    const { client } = await serve((_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.end(
        `${event(chunk('H'))}${event({ error: { message: 'engine lost', type: 'InternalServerError', param: null, code: 500 } })}data: [DONE]\n\n`,
      )
    })
    expect(await collect(client.chatStream(ASK))).toEqual([
      'H',
      expect.objectContaining({ kind: 'refused', status: 500, type: 'InternalServerError', message: 'engine lost' }),
    ])
  })
  test.each(['ends', 'is cut'])('that %s before its last event is not taken for a whole answer', async (how) => {
    const { client } = await serve((_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(event(chunk('H')), () => (how === 'ends' ? response.end() : response.destroy()))
    })
    expect(await collect(client.chatStream(ASK))).toEqual(['H', expect.objectContaining({ kind: 'unreachable' })])
  })
  test('that goes silent is given up', async () => {
    const { client } = await serve(
      (_request, response) => {
        response.writeHead(200, { 'content-type': 'text/event-stream' })
        response.write(event(chunk('H')))
      },
      { silenceMs: 1_000 },
    )
    expect(await collect(client.chatStream(ASK))).toEqual(['H', expect.objectContaining({ kind: 'timeout' })])
  })
  test('that nobody reads any more is ended at the server', async () => {
    const left = deferred()
    const { client } = await serve((_request, response) => {
      response.on('close', () => left.resolve('closed'))
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(event(chunk('H')))
    })
    for await (const answer of client.chatStream(ASK)) {
      expect(answer.ok).toBe(true)
      break
    }
    expect(await left.promise).toBe('closed')
  })
  test('ends when the caller aborts it', async () => {
    const controller = new AbortController()
    const { client } = await serve((_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(event(chunk('H')))
    })
    const found: unknown[] = []
    for await (const answer of client.chatStream(ASK, { signal: controller.signal })) {
      found.push(answer.ok ? 'piece' : answer.problem.kind)
      controller.abort()
    }
    expect(found).toEqual(['piece', 'aborted'])
  })
})
