import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { afterEach, expect, test } from 'vitest'
import { discoverDialects, discoverModels } from './discover.ts'

const servers: Server[] = []
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.close()
    server.closeAllConnections()
  }
})

const serve = async (answer: RequestListener): Promise<string> => {
  const server = createServer(answer)
  servers.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
const typed =
  (type: string, value: unknown): RequestListener =>
  (_, response) =>
    response.writeHead(200, { 'content-type': type }).end(JSON.stringify(value))
const json = (value: unknown): RequestListener => typed('application/json', value)

test('models are discovered, whether the address ends with /v1 or not', async () => {
  const engine = await startScriptedEngine({}, { models: ['a', 'b'], bearer: 'k' })
  for (const url of [engine.url, `${engine.url}/v1`, `${engine.url}/v1/`]) {
    expect(await discoverModels(url, 'k')).toEqual([
      { id: 'a', contextTokens: undefined },
      { id: 'b', contextTokens: undefined },
    ])
  }
  await engine.close()
})

test('models are discovered below a path', async () => {
  const url = await serve((request, response) =>
    request.url === '/openai/v1/models' ? json({ data: [{ id: 'm' }] })(request, response) : response.writeHead(404).end(),
  )
  expect(await discoverModels(`${url}/openai`, undefined)).toEqual([{ id: 'm', contextTokens: undefined }])
})

test('the context length is read where vLLM, llama-server and hosted services say it', async () => {
  const url = await serve(
    json({
      object: 'list',
      data: [
        { id: 'vllm', max_model_len: 32768 },
        { id: 'llama', meta: { n_ctx_train: 131072, n_ctx: 4096 } },
        { id: 'older-llama', meta: { n_ctx_train: 2048 } },
        { id: 'hosted', context_length: 8192 },
        { id: 'ollama' },
        { id: 'odd', max_model_len: 'many', meta: null },
      ],
    }),
  )
  expect(await discoverModels(url, undefined)).toEqual([
    { id: 'vllm', contextTokens: 32768 },
    { id: 'llama', contextTokens: 4096 },
    { id: 'older-llama', contextTokens: 2048 },
    { id: 'hosted', contextTokens: 8192 },
    { id: 'ollama', contextTokens: undefined },
    { id: 'odd', contextTokens: undefined },
  ])
})

test('every way it can fail is told with what to do, and never with the key', async () => {
  const answering = (status: number, headers = {}, body = ''): Promise<string> =>
    serve((_, response) => response.writeHead(status, headers).end(body))
  const free = await serve(json({}))
  servers[servers.length - 1]?.close()
  const cases: [string, string | undefined, RegExp][] = [
    [await answering(401), undefined, /answers 401\. It wants a key/],
    [await answering(403), 'hunter2', /answers 403\. It does not take this key/],
    [await answering(404), undefined, /answers 404\. Is it an OpenAI-compatible server/],
    [await answering(307, { location: 'http://elsewhere' }), undefined, /sends us elsewhere/],
    [await answering(200, {}, '<html>'), 'hunter2', /does not answer with JSON/],
    [await answering(200, {}, '{"models":[]}'), undefined, /does not answer with a list of models/],
    [await answering(200, {}, `{"data":[${'"x",'.repeat(3_000_000)}"x"]}`), undefined, /cannot be asked/],
    [free, undefined, /nothing listens there/],
    ['http://no-such-host.invalid', undefined, /cannot be asked: the host name/],
    ['file:///etc/passwd', undefined, /over http or https/],
  ]
  for (const [url, key, says] of cases) {
    const error = await discoverModels(url, key).then(
      () => undefined,
      (reason: Error) => reason,
    )
    expect(error?.message).toMatch(says)
    expect(error?.message).not.toContain('hunter2')
  }
})

test.each<[string, RequestListener, string[]]>([
  ['a description with the path', json({ paths: { '/v1/responses': { post: {} }, '/health': { get: {} } } }), ['responses']],
  ['one below a path of its own', json({ paths: { '/openai/v1/responses': { post: {} } } }), ['responses']],
  ['one that can only be read', json({ paths: { '/v1/responses': { get: {} } } }), []],
  ['another path', json({ paths: { '/v1/responses/{id}': { get: {} }, '/v1/chat/completions': { post: {} } } }), []],
  ['no description', (_, response) => response.writeHead(404).end(), []],
  ['something else', (_, response) => response.writeHead(200).end('<html>'), []],
  ['a list', json([1]), []],
  ['a description of another type', typed('text/plain', { paths: { '/v1/responses': { post: {} } } }), []],
  [
    'one of a type on top of JSON',
    typed('application/vnd.oai.openapi+json;version=3.1', { paths: { '/v1/responses': { post: {} } } }),
    ['responses'],
  ],
])('what an engine speaks is read from %s', async (_name, answer, expected) => {
  expect(await discoverDialects(await serve(answer), undefined)).toEqual(expected)
})

test.each(['text/event-stream', 'application/json'])('an engine that answers every path with %s without an end is let go', async (type) => {
  const closed: Promise<unknown>[] = []
  const url = await serve((_, response) => {
    closed.push(once(response, 'close'))
    response.writeHead(200, { 'content-type': type }).write('{"paths":')
    const more = (): void => void setTimeout(() => !response.destroyed && response.write(' ', more), 5)
    more()
  })
  expect(await discoverDialects(url, undefined)).toEqual([])
  expect(await Promise.all(closed)).toHaveLength(1)
})

test('an engine that is away speaks nothing more than chat', async () => {
  expect(await discoverDialects('http://127.0.0.1:9', undefined)).toEqual([])
})
