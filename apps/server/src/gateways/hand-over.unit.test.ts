import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import Fastify from 'fastify'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Refusal } from '../kit/refusal.ts'
import { makeGatewayDir } from '../usage/gateway.ts'
import { openHandOver, requireShortPath, socketOf } from './hand-over.ts'

// Two gateways, each with its socket for the other one and a port on which it is handed what comes, as the house would.

const LIMIT_MS = 60_000
const keyOf = (owner: number): string => {
  for (let count = 0; ; count += 1) if ((crc32(`key ${count}`) % 2) + 1 === owner) return `key ${count}`
}

const openGateway = async (dataDir: string, number: number, trustProxy: boolean) => {
  const app = Fastify({ trustProxy, bodyLimit: 64 * 1024 * 1024 })
  app.addContentTypeParser('text/plain', { parseAs: 'string' }, (_request, body, done) => done(null, body))
  const handing = openHandOver({ app, dataDir, number, gateways: 2, limitMs: LIMIT_MS })
  const refused: Refusal[] = []
  const left: string[] = []
  const slow: { cut(): void; end(): void }[] = []
  app.addHook('onRequest', (asked, reply, done) => {
    const refuse = (refusal: Refusal): void => {
      refused.push(refusal)
      reply.raw.writeHead(503).end()
    }
    if (!handing.handOver(asked, reply, refuse)) done()
  })
  app.post('/echo', async ({ ip, headers, body }) => ({ number, ip, peer: headers['x-parvis-peer'] ?? null, body }))
  app.post('/slow', (asked, reply) => {
    reply.hijack()
    reply.raw.writeHead(200, { 'x-number': String(number) }).write('first ')
    reply.raw.once('close', () => reply.raw.writableFinished || left.push(String(asked.headers['idempotency-key'])))
    slow.push({ cut: () => void reply.raw.destroy(), end: () => void reply.raw.end('last') })
  })
  await makeGatewayDir(dataDir, number)
  await app.listen({ path: socketOf(dataDir, number) })
  const front = createServer({ pauseOnConnect: true }, (socket) => {
    handing.take(socket)
    socket.resume()
  })
  await new Promise<void>((resolve) => void front.listen(0, '127.0.0.1', resolve))
  const { port } = front.address() as AddressInfo
  return {
    port,
    refused,
    left,
    slow,
    handing,
    close: async () => {
      front.close()
      await handing.close()
      const closed = app.close()
      app.server.closeAllConnections()
      await closed
    },
  }
}

let dataDir: string
let gateways: Awaited<ReturnType<typeof openGateway>>[] = []
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-hand-'))
})
afterEach(async () => {
  await Promise.all(gateways.splice(0).map(({ close }) => close()))
  await rm(dataDir, { recursive: true, force: true })
})
const both = async (trustProxy = false) => {
  const [one, two] = [await openGateway(dataDir, 1, trustProxy), await openGateway(dataDir, 2, trustProxy)]
  gateways = [one, two]
  return { one, two }
}

const begin = (port: number, path: string, key: string, headers: Record<string, string> = {}) =>
  request({ port, path, method: 'POST', agent: false, headers: { 'content-type': 'text/plain', 'idempotency-key': key, ...headers } })
const send = async (port: number, path: string, key: string, body = '', headers: Record<string, string> = {}) => {
  const asked = begin(port, path, key, headers)
  asked.end(body)
  const [answer] = (await once(asked, 'response')) as [IncomingMessage]
  let text = ''
  for await (const piece of answer) text += String(piece)
  return { status: answer.statusCode, headers: answer.headers, text, json: () => JSON.parse(text) as Record<string, unknown> }
}

test('a key is answered by its owner, whichever gateway it meets, as if the client had come to it', async () => {
  const { one, two } = await both()
  const large = 'x'.repeat(3_000_000)
  for (const { port } of [one, two]) {
    for (const owner of [1, 2]) {
      const answer = await send(port, '/echo', keyOf(owner), large, { 'x-parvis-peer': '192.0.2.1' })
      // What a client says of itself is taken away where it is handed over, and is only a header where it is not.
      expect(answer.json()).toMatchObject({ number: owner, ip: '127.0.0.1', body: large })
      expect(answer.headers['content-length']).toBe(String(answer.text.length))
    }
  }
  expect([one.handing.open(), two.handing.open()]).toEqual([0, 0])
})

test('what a trusted proxy says of the client is believed as it would be without the detour', async () => {
  const { one } = await both(true)
  const answer = await send(one.port, '/echo', keyOf(2), 'x', { 'x-forwarded-for': '203.0.113.7' })
  expect(answer.json()).toMatchObject({ number: 2, ip: '203.0.113.7', peer: null })
})

test('a body in chunks, and one that waits to be told to go on, arrive whole', async () => {
  const { one } = await both()
  const asked = begin(one.port, '/echo', keyOf(2), { expect: '100-continue', 'transfer-encoding': 'chunked' })
  asked.flushHeaders()
  await once(asked, 'continue')
  asked.write('a')
  asked.end('b')
  const [answer] = (await once(asked, 'response')) as [IncomingMessage]
  expect(JSON.parse(String((await answer.toArray())[0]))).toMatchObject({ number: 2, body: 'ab' })
})

test('a client that leaves is gone at the owner, too', async () => {
  const { one, two } = await both()
  const asked = begin(one.port, '/slow', keyOf(2))
  asked.on('error', () => undefined)
  asked.end('x')
  await once(asked, 'response')
  expect(one.handing.open()).toBe(1)
  asked.destroy()
  await expect.poll(() => two.left).toEqual([keyOf(2)])
  await expect.poll(() => one.handing.open()).toBe(0)
})

test('an answer that is cut at the owner is cut for the client, and one that ends has its end', async () => {
  const { one, two } = await both()
  for (const how of ['cut', 'end'] as const) {
    const asked = begin(one.port, '/slow', keyOf(2))
    asked.end('x')
    const [answer] = (await once(asked, 'response')) as [IncomingMessage]
    answer.on('error', () => undefined)
    const closed = new Promise((resolve) => answer.on('close', resolve))
    answer.resume()
    two.slow.at(-1)?.[how]()
    await closed
    expect(answer.complete).toBe(how === 'end')
  }
})

test('while the owner is away the answer is to come back', async () => {
  const { one, two } = await both()
  await two.close()
  gateways = [one]
  expect((await send(one.port, '/echo', keyOf(2), 'x'.repeat(100_000))).status).toBe(503)
  expect(one.refused).toMatchObject([{ code: 'busy', retryAfterMs: 1_000 }])
  expect((await send(one.port, '/echo', keyOf(1), 'x')).status).toBe(200)
})

test('a data directory whose sockets would have too long a name is refused in words', () => {
  expect(() => requireShortPath(`/${'d'.repeat(60)}`)).not.toThrow()
  expect(() => requireShortPath(`/${'d'.repeat(120)}`)).toThrow(/characters too long.*PARVIS_DATA_DIR/)
})
