import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { type Instant, systemClock } from '@parvis/server/kit/clock'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '@parvis/server/kit/ids'
import { openLog } from '@parvis/server/kit/log'
import { no, yes } from '@parvis/server/kit/outcome'
import { aModel, openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { addPiece, type Body, type PartialBody, SMALL_PIECE_BYTES, toBody } from './body.ts'
import { openDeadlines } from './deadlines.ts'
import { DEFAULT_LIMITS, openExchange } from './exchange.ts'
import { openMemory } from './memory.ts'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }
const BODY = JSON.stringify(ASK)
const NIL = '00000000-0000-4000-8000-000000000000'

const MB = 1024 * 1024

/** A second organization that may call. */
const OTHER = { authorization: 'Bearer other' }
const callerOf = (organizationId: string) => ({
  organizationId: organizationId as OrganizationId,
  projectId: organizationId as ProjectId,
  principalId: organizationId as PrincipalId,
  accessKey: 'SCWXXXXXXXXXXXXXXXXX' as AccessKey,
})
const startTwo = async (engine: string, limits: Parameters<typeof startDataPlane>[0]['limits'] & object) =>
  startDataPlane({
    engine,
    limits,
    rooms: { authenticate: (authorization) => yes(callerOf(authorization === OTHER.authorization ? 'other' : 'one')) },
  })

/** In HTTP's chunks, each of which comes as a piece of its own, or as two where a read ends in it. */
const inChunks = (bytes: Buffer, sizes: readonly number[]): Buffer => {
  const parts: Buffer[] = []
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const chunk = bytes.subarray(at, at + (sizes[turn % sizes.length] ?? 1))
    parts.push(Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from('\r\n'))
    at += chunk.length
  }
  return Buffer.concat([...parts, Buffer.from('0\r\n\r\n')])
}

const HEAD = `POST ${CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n`

/** The body of one request as it is read, and the pieces in which it came. */
const readOne = async (sent: Buffer): Promise<{ body: Body; came: readonly Buffer[] }> => {
  const deadlines = openDeadlines()
  const memory = openMemory(DEFAULT_LIMITS.inflightBytes)
  const rooms = { clock: systemClock, log: openLog('silent'), limits: DEFAULT_LIMITS, deadlines, memory }
  const came: Buffer[] = []
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1')
  try {
    const body = new Promise<Body>((resolve, reject) => {
      server.on('request', (request, response) => {
        const reading = openExchange(rooms, request, response, undefined).readBody('one' as OrganizationId)
        request.on('data', (piece: Buffer) => came.push(piece))
        reading.then((read) => (read.ok ? resolve(read.value) : reject(new Error(read.refusal.code))), reject)
      })
    })
    client.write(Buffer.concat([Buffer.from(`${HEAD}\r\n`), sent]))
    return { body: await body, came }
  } finally {
    client.destroy()
    server.closeAllConnections()
    server.close()
    deadlines.close()
  }
}

const count = (text: string, pattern: RegExp): number => text.match(new RegExp(pattern, 'g'))?.length ?? 0

describe('a body', () => {
  test.each(['text/plain', 'application/x-www-form-urlencoded', 'application/jsonp', 'application/json; charset=latin1', ''])(
    'of the type %j is 400',
    async (type) => {
      await using engine = await startScriptedEngine()
      await using plane = await startDataPlane({ engine: engine.url })
      const client = await plane.raw()
      client.post(CHAT, BODY, { 'content-type': type })
      expect(await client.until(/"code":400/)).toContain('application/json')
    },
  )

  test.each(['application/json', 'application/json; charset=utf-8', 'Application/JSON;charset="UTF-8"'])(
    'of the type %j is read',
    async (type) => {
      await using engine = await startScriptedEngine()
      await using plane = await startDataPlane({ engine: engine.url })
      expect((await plane.ask(CHAT, BODY, { headers: { 'content-type': type } })).status).toBe(200)
    },
  )

  test('that is compressed or not UTF-8 is 400', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, BODY, { headers: { 'content-encoding': 'gzip' } })).status).toBe(400)
    const latin1 = Buffer.from(JSON.stringify({ ...ASK, messages: [{ role: 'user', content: 'é' }] }), 'latin1')
    expect((await plane.ask(CHAT, 'x', { body: latin1 })).status).toBe(400)
  })

  test('that is declared too large is 400, before a byte of it is read', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { bodyBytes: 1000 } })
    const client = await plane.raw()
    client.post(CHAT, '', { 'content-length': '1001' })
    expect(await client.until(/"code":400/)).toContain('at most 1000 bytes')
  })

  test('that grows too large is 400, and the client gets to read it although it goes on sending', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { bodyBytes: 100_000 } })
    const client = await plane.raw()
    client.send(
      `POST ${CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${plane.key}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`,
    )
    const piece = Buffer.alloc(10_000, 'x')
    for (let sent = 0; sent < 30; sent += 1)
      client.send(Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')]))
    await client.until(/"code":400/)
    // The connection is as good as new once the rest has been dropped.
    client.send('0\r\n\r\n')
    client.post(CHAT, BODY)
    expect(await client.until(/HTTP\/1.1 200 OK/)).toContain('at most 100000 bytes')
  })

  test('of exactly the largest size is served', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { bodyBytes: BODY.length } })
    expect((await plane.ask(CHAT, BODY)).status).toBe(200)
    expect((await plane.ask(CHAT, `${BODY} `)).status).toBe(400)
  })

  test('of which only half arrives is 408 at the limit, and the connection is closed', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { bodyMs: 150 } })
    const client = await plane.raw()
    client.post(CHAT, BODY.slice(0, 20), { 'content-length': String(BODY.length) })
    const answer = await client.until(/"code":408/)
    expect(answer).toMatch(/^HTTP\/1.1 408/)
    expect(answer).toMatch(/connection: close/i)
    await client.closed
    expect(plane.settled).toEqual([])
  })

  test('that comes byte by byte does not hold us longer than the limit', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { bodyMs: 300 } })
    const client = await plane.raw()
    client.post(CHAT, '', { 'content-length': String(BODY.length) })
    let next = 0
    const drip = setInterval(() => client.send(BODY.charAt(next++)), 20)
    expect(await client.until(/"code":408/)).toContain('0.3 s')
    clearInterval(drip)
    await client.closed
  })

  test('that comes in many small pieces is the same body', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.socket.setNoDelay(true)
    client.post(CHAT, '', { 'content-length': String(BODY.length) })
    for (const letter of BODY) {
      client.send(letter)
      await new Promise((resolve) => setImmediate(resolve))
    }
    await client.until(/"finish_reason":"stop"/)
    expect(engine.requests[0]?.json).toMatchObject(ASK)
  })

  test('whose sender leaves half-way leaves nothing behind', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 1000 } })
    for (let round = 0; round < 5; round += 1) {
      const client = await plane.raw()
      client.post(CHAT, 'x'.repeat(800), { 'content-length': '900' })
      client.socket.end()
      await client.closed
    }
    await expect.poll(async () => (await plane.ask(CHAT, BODY)).status).toBe(200)
    expect(plane.log).toEqual([])
  })

  test('finds no room when too many are in flight: 503, and room again when they are gone', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 2 * MB } })
    const first = await plane.raw()
    first.post(CHAT, 'x'.repeat(MB), { 'content-length': String(2 * MB) })
    const large = `${BODY}${' '.repeat(MB)}`
    await expect.poll(async () => (await plane.ask(CHAT, large)).status).toBe(503)
    const refused = await plane.ask(CHAT, large)
    expect(refused.headers.get('retry-after')).toBe('1')
    first.socket.destroy()
    await expect.poll(async () => (await plane.ask(CHAT, large)).status).toBe(200)
  })

  test("of one organization cannot take all the memory: another's largest one still fits", async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startTwo(engine.url, { inflightBytes: 8 * MB, bodyBytes: 3 * MB })
    const clients = await Promise.all(Array.from({ length: 6 }, () => plane.raw()))
    for (const client of clients) client.post(CHAT, 'x'.repeat(MB + MB / 2), { 'content-length': String(3 * MB) })
    const large = `${BODY}${' '.repeat(3 * MB - BODY.length)}`
    await expect.poll(async () => (await plane.ask(CHAT, large)).status).toBe(503)
    expect((await plane.ask(CHAT, large, { headers: OTHER })).status).toBe(200)
    for (const client of clients) client.socket.destroy()
  })

  test('that is small gets in when the memory is full, also for whoever has filled it', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startTwo(engine.url, { inflightBytes: 2 * MB })
    const first = await plane.raw()
    first.post(CHAT, 'x'.repeat(2 * MB - MB / 8 - 60_000), { 'content-length': String(4 * MB) })
    const large = `${BODY}${' '.repeat(MB / 8)}`
    await expect.poll(async () => (await plane.ask(CHAT, large, { headers: OTHER })).status).toBe(503)
    expect((await plane.ask(CHAT, BODY)).status).toBe(200)
    expect((await plane.ask(CHAT, BODY, { headers: OTHER })).status).toBe(200)
    first.socket.destroy()
  })

  test('that is refused gives its memory back at once, although its sender goes on', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 2 * MB, bodyBytes: MB } })
    const client = await plane.raw()
    client.send(
      `POST ${CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${plane.key}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n`,
    )
    client.send(Buffer.concat([Buffer.from(`${(2 * MB).toString(16)}\r\n`), Buffer.alloc(MB + 1, 'x')]))
    await client.until(/"code":400/)
    expect((await plane.ask(CHAT, `${BODY}${' '.repeat(MB - BODY.length)}`)).status).toBe(200)
    expect(client.socket.closed).toBe(false)
    client.socket.destroy()
  })

  test.each([
    { usage: 'running', status: 200, does: 'has counted it is let go: another as large fits beside the open answer' },
    { usage: undefined, status: 503, does: 'counts at the end is kept until then, to be counted if it never does' },
    { usage: 'running', status: 200, does: 'has counted it is let go, of the older completions as well', path: '/v1/completions' },
    { usage: 'running', status: 529, does: 'gets it as a chat is kept, since the answer is written by it', path: '/v1/messages' },
    { usage: 'running', status: 503, does: 'gets it as a chat is kept, of responses as well', path: '/v1/responses' },
  ] as const)('of a stream whose engine $does', async ({ usage, status, path = CHAT }) => {
    await using engine = await startScriptedEngine({ tokens: ['a', 'b'], holdAfter: 1, ...(usage === undefined ? {} : { usage }) })
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 2 * MB } })
    const said =
      path === '/v1/completions' ? { prompt: 'Hi' } : path === '/v1/responses' ? { input: 'Hi' } : { messages: ASK.messages, max_tokens: 5 }
    const large = `${JSON.stringify({ model: ASK.model, stream: true, ...said })}${' '.repeat(MB)}`
    const first = await plane.raw()
    first.post(path, large)
    await first.until(/"a"/)
    const second = await plane.raw()
    second.post(path, large)
    expect(await second.until(/HTTP\/1.1 \d+/)).toMatch(new RegExp(`^HTTP/1.1 ${status}`))
    engine.release()
    await expect.poll(() => plane.records.find(({ ended }) => ended === 'complete')).toMatchObject({ counted: 'engine' })
    await expect.poll(async () => (await plane.ask(path, large)).status).toBe(200)
  })

  test('of eight that come at once as many are served as fit', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 10 * MB } })
    const large = `${BODY}${' '.repeat(MB)}`
    const clients = await Promise.all(Array.from({ length: 8 }, () => plane.raw()))
    // All of them have sent most of it before any of them sends the rest.
    for (const client of clients) client.post(CHAT, large.slice(0, MB / 2), { 'content-length': String(large.length) })
    await plane.ask(CHAT, BODY)
    for (const client of clients) client.send(large.slice(MB / 2))
    const answers = await Promise.all(clients.map((client) => client.until(/HTTP\/1.1 \d+/)))
    expect(answers.filter((answer) => answer.startsWith('HTTP/1.1 200')).length).toBeGreaterThanOrEqual(4)
    for (const client of clients) client.socket.destroy()
  })

  test('of a megabyte reaches the engine as it is, but for what we set', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, replica: { remoteModel: 'Org/remote' } })
    const large = { ...ASK, messages: [{ role: 'user', content: 'é"\\'.repeat(250_000) }], temperature: 0.5, stream: true }
    const answer = await plane.ask(CHAT, large)
    expect(answer.status).toBe(200)
    await answer.text()
    expect(engine.requests[0]?.json).toEqual({
      ...large,
      model: 'Org/remote',
      stream_options: { include_usage: true, continuous_usage_stats: true },
    })
    expect(engine.requests[0]?.headers['content-length']).toBe(String(engine.requests[0]?.bytes.length))
  })

  test('of a megabyte is checked too: its scalars, its end, and what its model can take', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const text = 'x'.repeat(1_000_000)
    const statusOf = async (body: unknown) => {
      const answer = await plane.ask(CHAT, body)
      return `${answer.status} ${((await answer.json()) as { error: { message: string } }).error.message}`
    }
    const messages = [{ role: 'user', content: text }]
    expect(await statusOf({ ...ASK, messages, temperature: 3 })).toMatch(/^400 .*"temperature"/)
    expect(await statusOf({ ...ASK, messages, max_tokens: 600 })).toMatch(/^416/)
    expect(await statusOf({ ...ASK, messages: text })).toMatch(/^400 .*"messages"/)
    expect(await statusOf(JSON.stringify({ ...ASK, messages }).slice(0, -1))).toMatch(/^400 Invalid JSON body/)
    const image = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: `data:image/png;base64,${text}` } }] }]
    expect(await statusOf({ ...ASK, messages: image })).toMatch(/^400 .*takes no images/)
    expect(engine.requests).toEqual([])
  })
})

describe('the pieces of a body', () => {
  const letters = (bytes: number): Buffer => Buffer.from(Array.from({ length: bytes }, (_, at) => 97 + (at % 23)))

  test('above 64 KB stay as they came: a body of megabytes is not copied', async () => {
    const bytes = letters(2 * MB)
    const { body, came } = await readOne(inChunks(bytes, [16 * 1024]))
    expect(Buffer.concat(body.pieces).equals(bytes)).toBe(true)
    const large = came.filter(({ length }) => length >= SMALL_PIECE_BYTES)
    const kept = new Set(body.pieces)
    expect(large.filter((piece) => !kept.has(piece))).toEqual([])
    // What is left are ends of chunks that lay across the border of two reads.
    const joinedBytes = bytes.length - large.reduce((sum, { length }) => sum + length, 0)
    expect(joinedBytes).toBeLessThan(bytes.length / 2)
  })

  test('up to 64 KB are one', async () => {
    const bytes = letters(64 * 1024)
    for (const sizes of [[64 * 1024], [16 * 1024], [5_000, 1, 300], [1]]) {
      const { body } = await readOne(inChunks(bytes, sizes))
      expect(body.pieces).toHaveLength(1)
      expect(body.pieces[0]?.equals(bytes)).toBe(true)
    }
  })

  test.each([
    ['single bytes', [1]],
    ['single bytes between larger pieces', [1, SMALL_PIECE_BYTES]],
    ['bytes in tens and hundreds, large pieces among them', [...Array.from({ length: 60 }, (_, at) => at + 1), 20_000, 700, 3, 9_000]],
  ])('are few, also where a client sends %s', async (_, sizes) => {
    const bytes = letters(100_000)
    const { body } = await readOne(inChunks(bytes, sizes))
    expect(Buffer.concat(body.pieces).equals(bytes)).toBe(true)
    expect(body.bytes).toBe(bytes.length)
    expect(body.pieces.length).toBeLessThanOrEqual(2 * Math.ceil(bytes.length / SMALL_PIECE_BYTES))
  })

  test('are few at every moment, however they are cut', () => {
    const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 2 * SMALL_PIECE_BYTES })), { maxLength: 20 })
    fc.assert(
      fc.property(sizes, (turns) => {
        const body: PartialBody = { pieces: undefined, bytes: 0, small: 0, smallBytes: 0 }
        const came: Buffer[] = []
        for (let at = 0; turns.length > 0 && at < 2_000; at += 1) {
          const piece = Buffer.alloc(turns[at % turns.length] ?? 1, at)
          came.push(piece)
          addPiece(body, piece)
          // Those at the end that are small have not been joined yet.
          expect((body.pieces?.length ?? 0) - body.small).toBeLessThanOrEqual(2 * Math.ceil(body.bytes / SMALL_PIECE_BYTES))
          expect(body.small).toBeLessThanOrEqual(SMALL_PIECE_BYTES)
        }
        const { pieces, bytes } = toBody(body)
        expect(bytes).toBe(came.reduce((sum, { length }) => sum + length, 0))
        expect(Buffer.concat(pieces).equals(Buffer.concat(came))).toBe(true)
      }),
    )
  })

  test('reach the engine in order, whatever they were', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const asked = { ...ASK, messages: [{ role: 'user', content: letters(2 * MB).toString() }], max_tokens: 5 }
    for (const [turn, sizes] of [[16 * 1024], [1_448], [40, 60_000, 4_096, 1]].entries()) {
      const client = await plane.raw()
      client.send(`${HEAD}authorization: Bearer ${plane.key}\r\n\r\n`)
      client.send(inChunks(Buffer.from(JSON.stringify(asked)), sizes))
      await client.until(/"finish_reason":"stop"/)
      expect(engine.requests[turn]?.bytes.equals(Buffer.from(JSON.stringify(asked)))).toBe(true)
      client.socket.destroy()
    }
  })
})

describe('the memory for bodies', () => {
  test('is never more than the bound, however many large ones come at once: the others are refused, and those that fit are served', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 16 * MB } })
    const large = `${BODY}${' '.repeat(MB - BODY.length)}`
    const clients = await Promise.all(Array.from({ length: 20 }, () => plane.raw()))
    for (const client of clients) client.post(CHAT, large.slice(0, -1), { 'content-length': String(MB) })
    // One organization gets as much as it leaves free: half of the 15 MB beside the reserve.
    const refused = () => clients.filter((client) => client.received().startsWith('HTTP/1.1 503'))
    await expect.poll(() => refused().length).toBeGreaterThanOrEqual(13)
    for (const client of clients) client.send(large.slice(-1))
    await Promise.all(clients.map((client) => client.until(/HTTP\/1.1 \d+/)))
    const served = clients.filter((client) => client.received().startsWith('HTTP/1.1 200'))
    expect(served.length).toBeGreaterThan(0)
    expect(served.length + refused().length).toBe(20)
    expect(engine.requests).toHaveLength(served.length)
    for (const client of clients) client.socket.destroy()
  })

  const NEARLY_ALL = `${BODY}${' '.repeat(800_000)}`
  const sent = (plane: Plane, body: string) => plane.ask(CHAT, body).then((answer) => answer.text())
  type Plane = Awaited<ReturnType<typeof startDataPlane>>
  type Engine = Awaited<ReturnType<typeof startScriptedEngine>>

  test.each<[string, (plane: Plane, engine: Engine) => Promise<unknown>]>([
    ['was served whole', (plane) => sent(plane, NEARLY_ALL)],
    ['was served as a stream', (plane) => sent(plane, NEARLY_ALL.replace('{', '{"stream":true,'))],
    ['is no JSON', (plane) => sent(plane, NEARLY_ALL.replace('{', '['))],
    ['asks for a model that nobody knows', (plane) => sent(plane, NEARLY_ALL.replace('tiny-chat', 'none'))],
    ['is over a limit', (plane) => sent(plane, NEARLY_ALL.replace('tiny-chat', 'spent'))],
    [
      'an engine has refused',
      async (plane, engine) => {
        engine.playOnce({ status: 400, body: { error: { message: 'no' } } })
        await sent(plane, NEARLY_ALL)
      },
    ],
    [
      'an engine has dropped',
      async (plane, engine) => {
        engine.playOnce({ cutAfter: 0 })
        await sent(plane, NEARLY_ALL)
      },
    ],
    ['cannot be written down', (plane) => sent(plane, NEARLY_ALL.replace('tiny-chat', 'unwritten'))],
    [
      'nobody waits for any more',
      async (plane, engine) => {
        engine.playOnce({ holdAfter: 0, holdHead: true })
        const client = await plane.raw()
        client.post(CHAT, NEARLY_ALL)
        await engine.until('held')
        client.socket.destroy()
        await engine.until('aborted')
      },
    ],
    [
      'nobody reads to its end',
      async (plane, engine) => {
        engine.playOnce({ holdAfter: 1 })
        const client = await plane.raw()
        client.post(CHAT, NEARLY_ALL.replace('{', '{"stream":true,'))
        await engine.until('held')
        client.socket.destroy()
        await engine.until('aborted')
      },
    ],
    [
      'came too slowly',
      async (plane) => {
        const client = await plane.raw()
        client.post(CHAT, NEARLY_ALL.slice(0, -1), { 'content-length': String(NEARLY_ALL.length) })
        await client.until(/"code":408/)
        await client.closed
      },
    ],
  ])('is free again after a body that %s', async (_, one) => {
    await using engine = await startScriptedEngine()
    const spent = no({ code: 'limit_reached', limit: 'requests', model: 'spent', retryAfterMs: 1_000 } as const)
    await using plane = await startDataPlane({
      engine: engine.url,
      limits: { inflightBytes: MB, bodyMs: 1_000 },
      models: [aModel(), aModel({ name: 'spent' }), aModel({ name: 'unwritten' })],
      rooms: {
        admit: (_caller, model) => (model.name === 'spent' ? spent : yes(openTicket([]))),
        record: async ({ model }) => {
          if (model === 'unwritten') throw new Error('the disk is full')
        },
      },
    })
    await one(plane, engine)
    // Two of them do not fit: what is not given back is a refusal here.
    await expect.poll(async () => (await plane.ask(CHAT, NEARLY_ALL)).status).toBe(200)
  })
})

describe('a refusal before the body', () => {
  test('reaches a client that is still sending, and leaves the connection usable', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, 'x'.repeat(100), { authorization: `Bearer ${NIL}`, 'content-length': '500000' })
    await client.until(/"code":403/)
    client.send('x'.repeat(499_900))
    client.post(CHAT, BODY)
    expect(await client.until(/HTTP\/1.1 200 OK/)).toMatch(/^HTTP\/1.1 403/)
  })

  test('a client that asks before it sends is told to go on only when its key is good', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const good = await plane.raw()
    good.post(CHAT, '', { expect: '100-continue', 'content-length': String(BODY.length) })
    await good.until(/^HTTP\/1.1 100 Continue\r\n\r\n/)
    good.send(BODY)
    await good.until(/HTTP\/1.1 200 OK/)
    const bad = await plane.raw()
    bad.post(CHAT, '', { expect: '100-continue', 'content-length': '1000', authorization: `Bearer ${NIL}` })
    await bad.until(/"code":403/)
    expect(bad.received()).not.toContain('100 Continue')
    await bad.closed
    const large = await plane.raw()
    large.post(CHAT, '', { expect: '100-continue', 'content-length': '1000000000' })
    expect(await large.until(/"code":400/)).not.toContain('100 Continue')
  })
})

test('a price that begins while the body is coming is not the price of its request', async () => {
  const [before, after] = [aModel(), aModel()]
  const beginsAt = 1_800_000_000_000
  let now = beginsAt - 1
  let accepted = (): void => undefined
  const heard = new Promise<void>((resolve) => (accepted = resolve))
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({
    engine: engine.url,
    rooms: {
      clock: { ...systemClock, now: () => now as Instant },
      resolve: (_name, at) => yes(at < beginsAt ? before : after),
      authenticate: () => {
        accepted()
        return yes(callerOf('one'))
      },
    },
  })
  const client = await plane.raw()
  client.post(CHAT, '', { 'content-length': String(Buffer.byteLength(BODY)) })
  await heard
  now = beginsAt
  client.send(BODY)
  await client.until(/"finish_reason":"stop"/)
  client.post(CHAT, BODY)
  await expect.poll(() => plane.records.length).toBe(2)
  expect(plane.records.map(({ acceptedAt, priceId }) => [acceptedAt, priceId])).toEqual([
    [beginsAt - 1, before.price.id],
    [beginsAt, after.price.id],
  ])
})

describe('pipelined requests', () => {
  test('are answered in order, whichever engine is done first', async () => {
    await using engine = await startScriptedEngine()
    engine.playOnce({ tokens: ['first'], holdAfter: 1 })
    engine.playOnce({ tokens: ['second'] })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, BODY)
    await engine.until('held')
    client.post(CHAT, BODY)
    client.send(`GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${plane.key}\r\n\r\n`)
    await engine.until('answered')
    engine.release()
    const all = await client.until(/"object":"list"/)
    expect(count(all, /HTTP\/1.1 200 OK/)).toBe(3)
    expect(all.indexOf('first')).toBeLessThan(all.indexOf('second'))
    expect(plane.records).toHaveLength(2)
  })

  test('of a client that leaves are all stopped', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 1 })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    for (let each = 0; each < 12; each += 1) client.post(CHAT, BODY)
    await engine.until('held', 12)
    client.socket.destroy()
    await engine.until('aborted', 12)
    await expect.poll(() => plane.records.length).toBe(12)
  })
})

describe('the connection', () => {
  test('is used again after an answer, a refusal and a stream', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, BODY)
    await client.until(/"finish_reason":"stop"/)
    client.post(CHAT, '{')
    await client.until(/"code":400/)
    client.post(CHAT, JSON.stringify({ ...ASK, stream: true }))
    await client.until(/data: \[DONE\]\n\n\r\n0\r\n\r\n/)
    client.post(CHAT, BODY)
    expect(count(await client.until((received) => count(received, /HTTP\/1.1 200 OK/) === 3), /HTTP\/1.1 400/)).toBe(1)
    client.socket.end()
    await once(client.socket, 'close')
  })
})
