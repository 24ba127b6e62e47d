import { type AddressInfo, connect } from 'node:net'
import { openDraining, openHttp } from '@parvis/server/http'
import { openLog } from '@parvis/server/kit/log'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// What the connection itself keeps, whatever the route.

const nothing = { database: async () => undefined, journal: () => undefined, catalogue: () => undefined }
const app = openHttp(openLog('silent'), nothing, { trustedProxies: [], headersMs: 800, bodyMs: 300, lookMs: 100 })
const draining = openDraining(app.server)
app.get('/stream', (request, reply) => {
  reply.hijack()
  reply.raw.writeHead(200, { 'content-type': 'text/plain' })
  reply.raw.write('words')
  request.raw.resume()
})

beforeAll(() => app.listen({ host: '127.0.0.1', port: 0 }))
afterAll(async () => {
  app.server.closeAllConnections()
  await app.close()
})

const said = async (text: string): Promise<string> => {
  // Half open: a client that does not close its own side must not keep ours.
  const socket = connect({ port: (app.server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true })
  let received = ''
  socket.on('data', (chunk) => {
    received += chunk.toString()
  })
  socket.on('error', () => {})
  socket.write(text)
  const drip = setInterval(() => socket.write('x'), 200)
  await new Promise((resolve) => socket.on('close', resolve))
  clearInterval(drip)
  return received
}

test('a body that nobody reads does not keep a connection', async () => {
  expect(await said('GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n{')).toMatch(/^HTTP\/1\.1 200 /)
})

test('half a header is 408 in JSON, and the connection is cut', async () => {
  const received = await said('GET /health HTTP/1.1\r\nhost: ')
  expect(received).toMatch(/^HTTP\/1\.1 408 /)
  expect(JSON.parse(received.split('\r\n\r\n')[1] ?? '')).toMatchObject({ error: { code: 408 } })
})

test('a body that is late while the answer is on its way puts no words into that answer', async () => {
  const received = await said('GET /stream HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n{')
  expect(received).toMatch(/words/)
  expect(received).not.toContain('408')
})

test('a connection is idle when it has had its answer and says nothing more: not before the first, nor in the middle of one', async () => {
  const open = async (text: string, answered: RegExp) => {
    const socket = connect({ port: (app.server.address() as AddressInfo).port, host: '127.0.0.1' })
    let received = ''
    socket.on('data', (chunk) => {
      received += chunk.toString()
    })
    const closed = new Promise<'closed'>((resolve) => void socket.once('close', () => resolve('closed')))
    if (text !== '') socket.write(text)
    await until('it is answered', () => answered.test(received) && !socket.connecting)
    return { socket, closed }
  }
  const kept = await open('GET /health HTTP/1.1\r\nhost: x\r\n\r\n', /"status":"ok"/)
  const silent = await open('', /^$/)
  const running = await open('GET /stream HTTP/1.1\r\nhost: x\r\n\r\n', /words/)
  await until('the running one alone has an answer', () => draining.answering() === 1)
  draining.closeIdle()
  draining.closeIdle()
  expect(await kept.closed).toBe('closed')
  expect([silent.socket.closed, running.socket.closed]).toEqual([false, false])
  expect(draining.answering()).toBe(1)
  for (const { socket, closed } of [silent, running]) {
    socket.destroy()
    await closed
  }
  await until('nobody waits', () => draining.answering() === 0)
})

test('/ready looks once for all who ask at once, again after half a second, and the log says when it turns', async () => {
  const lines: string[] = []
  const log = openLog('info', { write: (line) => lines.push(line) })
  let nowMs = 1_000
  let lack: string | undefined
  let looks = 0
  let answer: (() => void) | undefined
  let arrived = 0
  const database = async () => {
    looks += 1
    if (looks === 1) await new Promise<void>((resolve) => (answer = resolve))
    return lack
  }
  const served = openHttp(log, { ...nothing, database }, { trustedProxies: [], bodyMs: 300, clock: { monotonicMs: () => nowMs } })
  served.addHook('onRequest', async () => void (arrived += 1))
  const url = await served.listen({ host: '127.0.0.1', port: 0 })
  try {
    const ask = async () => {
      const response = await fetch(`${url}/ready`)
      return [response.status, await response.json()]
    }
    const ready = [200, { status: 'ready', checks: { database: 'ok', journal: 'ok', catalogue: 'ok' } }]
    const short = [503, { status: 'not_ready', checks: { database: 'missing', journal: 'ok', catalogue: 'ok' } }]
    const all = Array.from({ length: 200 }, ask)
    await until('all have asked', () => arrived === 200)
    // However long it takes: nobody begins a second one beside it.
    nowMs += 10_000
    answer?.()
    for (const each of await Promise.all(all)) expect(each).toEqual(ready)
    expect(looks).toBe(1)

    await ask()
    expect(looks).toBe(2)
    lack = 'no answer'
    nowMs += 499
    expect(await ask()).toEqual(ready)
    nowMs += 1
    expect(await ask()).toEqual(short)
    expect(looks).toBe(3)
    for (let at = 0; at < 5; at++) {
      nowMs += 500
      expect(await ask()).toEqual(short)
    }
    lack = undefined
    nowMs += 500
    expect(await ask()).toEqual(ready)
    expect(looks).toBe(9)
    expect(lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual(['not ready', 'ready again'])
  } finally {
    answer?.()
    served.server.closeAllConnections()
    await served.close()
  }
})
