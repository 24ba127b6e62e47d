import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { dataUrl, gif, jpeg, png } from '@parvis/testkit/media'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { InferenceLimits } from './exchange.ts'

const CHAT = '/v1/chat/completions'
const SEEING = aModel({ name: 'eyes', features: { tools: true, structuredOutput: true, reasoning: false, vision: true } })

let engine: ScriptedEngine
let web: { url: string; asked: string[]; close(): void }

/** A place on the web with pictures in it. */
const answerPicture: RequestListener = (request, response) => {
  const path = request.url ?? ''
  const pictures: Record<string, Buffer> = {
    '/a.png': png(8, 8),
    '/lies.png': jpeg(8, 8),
    '/moving.gif': gif(8, 8, 3),
    '/huge.png': png(8001, 4000),
    '/large.png': png(8, 8, 21 * 2 ** 20),
    '/page.html': Buffer.from('<html>'),
  }
  if (path === '/moved') response.writeHead(302, { location: '/a.png' }).end()
  else if (path === '/inside') response.writeHead(302, { location: 'http://169.254.169.254/latest/meta-data' }).end()
  else if (path === '/slow') return
  else if (pictures[path] === undefined) response.writeHead(404).end('no')
  else response.writeHead(200, { 'content-type': 'text/plain' }).end(pictures[path])
}

beforeAll(async () => {
  engine = await startScriptedEngine()
  const asked: string[] = []
  const server = createServer((request, response) => {
    asked.push(request.url ?? '')
    answerPicture(request, response)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  web = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    close() {
      server.close()
      server.closeAllConnections()
    },
  }
})

afterAll(async () => {
  web.close()
  await engine.close()
})

const planeWith = (limits: Partial<InferenceLimits> = { fetchAllow: ['127.0.0.0/8'] }) =>
  startDataPlane({ engine: engine.url, models: [SEEING], limits })
const askWith = (...urls: string[]) => ({
  model: 'eyes',
  messages: [
    {
      role: 'user',
      content: [{ type: 'text', text: 'What is it?' }, ...urls.map((url) => ({ type: 'image_url', image_url: { url, detail: 'low' } }))],
    },
  ],
})

describe('an image by URL', () => {
  test('stays in its share of the memory for bodies as long as the stream, also once the engine has counted it', async () => {
    await using counting = await startScriptedEngine({ tokens: ['a', 'b'], holdAfter: 1, usage: 'running' })
    const limits = { fetchAllow: ['127.0.0.0/8'], inflightBytes: 2 ** 21 }
    await using plane = await startDataPlane({ engine: counting.url, models: [SEEING], limits })
    const large = `${JSON.stringify({ ...askWith(`${web.url}/a.png`), stream: true })}${' '.repeat(2 ** 20)}`
    const first = await plane.raw()
    first.post(CHAT, large)
    await first.until(/"a"/)
    expect((await plane.ask(CHAT, large)).status).toBe(503)
    counting.release()
    await first.until(/data: \[DONE\]/)
    await expect.poll(async () => (await plane.ask(CHAT, large)).status).toBe(200)
  })

  test('is fetched by us and reaches the engine as data, in a small body and in a large one', async () => {
    await using plane = await planeWith()
    for (const padding of ['', 'x'.repeat(100_000)]) {
      const answer = await plane.ask(CHAT, { ...askWith(`${web.url}/a.png`, dataUrl('image/png', png(3, 3)), `${web.url}/moved`), padding })
      expect(answer.status).toBe(200)
      expect(engine.requests.at(-1)?.json).toEqual({
        ...askWith(dataUrl('image/png', png(8, 8)), dataUrl('image/png', png(3, 3)), dataUrl('image/png', png(8, 8))),
        padding,
      })
    }
    expect(plane.records.map((record) => record.images)).toEqual([3, 3])
  })

  test('has the type that its bytes say, whatever its name and its server say', async () => {
    await using plane = await planeWith()
    expect((await plane.ask(CHAT, askWith(`${web.url}/lies.png`))).status).toBe(200)
    expect(engine.requests.at(-1)?.json).toEqual(askWith(dataUrl('image/jpeg', jpeg(8, 8))))
  })

  test('is fetched once where it comes several times', async () => {
    await using plane = await planeWith()
    const before = web.asked.length
    expect((await plane.ask(CHAT, askWith(...Array.from({ length: 9 }, () => `${web.url}/a.png`)))).status).toBe(200)
    expect(web.asked.slice(before)).toEqual(['/a.png'])
  })

  test.each([
    ['/moving.gif', 'animated GIF images are not supported'],
    ['/huge.png', 'the image has 8001 × 4000 pixels'],
    ['/large.png', 'it is larger than 20971520 bytes'],
    ['/page.html', 'it is not a PNG, JPEG, WEBP or GIF image'],
    ['/nothing', 'its server answered 404'],
    ['/inside', 'its address is not on the public internet'],
  ])('%s is refused with 400 and no engine is asked', async (path, reason) => {
    await using plane = await planeWith()
    const answer = await plane.ask(CHAT, askWith(`${web.url}/a.png`, `${web.url}${path}`))
    expect(answer.status).toBe(400)
    expect(await answer.json()).toMatchObject({
      error: { type: 'BadRequestError', param: 'messages[0].content[2].image_url', message: expect.stringContaining(reason) as string },
    })
    expect(plane.seats.taken).toBe(0)
    expect(plane.settled).toHaveLength(1)
  })

  test('on our own network is refused unless the operator allows it', async () => {
    await using plane = await planeWith({})
    const before = web.asked.length
    for (const url of [`${web.url}/a.png`, 'http://localhost/a.png', 'http://[::1]/a.png', 'http://0x7f.1/a.png']) {
      const answer = await plane.ask(CHAT, { ...askWith(url), padding: 'x'.repeat(70_000) })
      expect(answer.status).toBe(400)
      expect(JSON.stringify(await answer.json())).toContain('its address is not on the public internet')
    }
    expect(web.asked).toHaveLength(before)
  })

  test('comes with at most a hundred others', async () => {
    await using plane = await planeWith()
    const before = web.asked.length
    const answer = await plane.ask(CHAT, askWith(...Array.from({ length: 101 }, (_, index) => `${web.url}/a.png?${index}`)))
    expect(answer.status).toBe(400)
    expect(web.asked).toHaveLength(before)
  })

  test('whose server is silent ends with the request', async () => {
    await using plane = await planeWith({ fetchAllow: ['127.0.0.0/8'], totalMs: 300 })
    expect((await plane.ask(CHAT, askWith(`${web.url}/slow`))).status).toBe(504)
    expect(plane.seats.taken).toBe(0)
  })
})
