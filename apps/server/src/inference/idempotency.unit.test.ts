import { randomUUID } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type Instant, systemClock } from '@parvis/server/kit/clock'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '@parvis/server/kit/ids'
import { yes } from '@parvis/server/kit/outcome'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user' as const, content: 'Hi' }] }
const STREAM = { ...ASK, stream: true as const, stream_options: { include_usage: true } }

const open = async (script: Script = {}, options: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, ...options })
  const keyed = (key: string, body: unknown = STREAM, path = CHAT, init: RequestInit = {}) =>
    plane.ask(path, body, { ...init, headers: { 'idempotency-key': key } } as never)
  return {
    engine,
    plane,
    keyed,
    said: async (...asked: Parameters<typeof keyed>) => {
      const answer = await keyed(...asked)
      return { status: answer.status, headers: answer.headers, text: await answer.text() }
    },
    [Symbol.asyncDispose]: async () => {
      await plane.close()
      await engine.close()
    },
  }
}

// What a key keeps is seen only when everything else is gone.
setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

describe('a finished answer', () => {
  test('keeps nothing of its request, however large that was', async () => {
    const [requests, bytes] = [24, 2 * 2 ** 20]
    await using all = await open()
    const keptMb = (): number => {
      collect()
      return process.memoryUsage().arrayBuffers / 2 ** 20
    }
    const large = `${JSON.stringify(ASK)}${' '.repeat(bytes)}`
    const before = keptMb()
    for (let at = 0; at < requests; at += 1) {
      expect((await all.said(`k${at}`, large)).status).toBe(200)
      all.engine.requests.length = 0
    }
    await expect.poll(() => keptMb() - before).toBeLessThan((requests * bytes) / 2 ** 20 / 2)
    expect((await all.said('k0', large)).headers.get('idempotent-replayed')).toBe('true')
  })
})

describe('the same key and body', () => {
  test.each<[string, string, object]>([
    ['a stream', CHAT, STREAM],
    ['a whole answer', CHAT, ASK],
    ['vectors', '/v1/embeddings', { model: 'tiny-embed', input: ['a', 'b'] }],
    ['a stream in another dialect', '/v1/responses', { model: 'tiny-chat', input: 'Hi', stream: true }],
  ])('get %s again as it was, by one call and one event', async (_what, path, body) => {
    await using all = await open()
    const first = await all.said('k', body, path)
    const again = await all.said('k', body, path)
    expect(first.status).toBe(200)
    expect(again.text).toBe(first.text)
    expect(again.headers.get('content-type')).toBe(first.headers.get('content-type'))
    expect([first.headers.get('idempotent-replayed'), again.headers.get('idempotent-replayed')]).toEqual([null, 'true'])
    expect(all.engine.requests).toHaveLength(1)
    expect(all.plane.records).toMatchObject([{ id: first.headers.get('x-request-id'), ended: 'complete' }])
    expect(all.plane.settled).toHaveLength(1)
  })

  test('are the same also for a form, which has another border each time it is sent', async () => {
    const transcript = { task: 'transcribe', language: 'english', text: 'Eighteen.', duration: 1.5, segments: [] }
    const models = [aModel({ name: 'tiny-whisper', type: 'audio', maxOutputTokens: null, contextTokens: 448 })]
    await using all = await open({ body: transcript }, { models })
    const send = async (sound: string) => {
      const form = new FormData()
      form.append('file', new Blob([sound]), 'sound.mp3')
      form.append('model', 'tiny-whisper')
      form.append('response_format', 'text')
      const init = { method: 'POST', body: form, headers: { 'idempotency-key': 'k' } }
      const answer = await all.plane.ask('/v1/audio/transcriptions', undefined, init)
      return { status: answer.status, type: answer.headers.get('content-type'), text: await answer.text() }
    }
    const first = await send('sound')
    expect(first).toMatchObject({ status: 200, text: expect.stringContaining('Eighteen.') as string })
    expect(await send('sound')).toEqual(first)
    expect((await send('another sound')).status).toBe(409)
    expect(all.plane.records).toHaveLength(1)
  })

  test('attach to the answer that is on its way, and get it from its beginning', async () => {
    await using all = await open({ holdAfter: 2 })
    const first = all.said('k')
    await all.engine.until('held')
    const others = [all.said('k'), all.said('k')]
    const raw = await all.plane.raw()
    raw.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await raw.until(/idempotent-replayed: true[^]*" world"/)
    all.engine.release()
    const texts = (await Promise.all([first, ...others])).map(({ text }) => text)
    expect(new Set(texts).size).toBe(1)
    expect(texts[0]).toMatch(/\[DONE\]\n\n$/)
    await raw.until(/\[DONE\]/)
    expect(all.engine.requests).toHaveLength(1)
    expect(all.plane.records).toHaveLength(1)
  })

  test('get the same bytes whenever they come, whoever leaves meanwhile', async () => {
    const client = fc.record({ afterMs: fc.nat(60), leavesAfterMs: fc.option(fc.nat(40)) })
    await fc.assert(
      fc.asyncProperty(fc.array(client, { minLength: 2, maxLength: 6 }), async (clients) => {
        await using all = await open({ tokens: ['a', 'é', '😀'], repeat: 5, tokenDelayMs: 3 })
        const texts = await Promise.all(
          clients.map(async ({ afterMs, leavesAfterMs }) => {
            await new Promise((resolve) => setTimeout(resolve, afterMs))
            const signal = leavesAfterMs === null ? undefined : AbortSignal.timeout(leavesAfterMs)
            return all.said('k', STREAM, CHAT, signal === undefined ? {} : { signal }).then(
              ({ text }) => text,
              () => undefined,
            )
          }),
        )
        const { text } = await all.said('k')
        expect(text).toMatch(/\[DONE\]\n\n$/)
        expect(new Set(texts.filter((said) => said !== undefined && said !== text))).toEqual(new Set())
        expect(all.plane.records).toMatchObject([{ ended: 'complete' }])
        expect(all.engine.requests).toHaveLength(1)
      }),
      { numRuns: 10 },
    )
  })

  test('wait together for a whole answer', async () => {
    await using all = await open({ holdAfter: 0, holdHead: true })
    const asked = [all.said('k', ASK), all.said('k', ASK)]
    await all.engine.until('held')
    await until('both bodies are read', () => all.plane.seats.taken === 1)
    all.engine.release()
    const [first, second] = await Promise.all(asked)
    expect(second?.text).toBe(first?.text)
    expect(all.plane.records).toHaveLength(1)
  })

  test('work with the official SDK, whose own option it is', async () => {
    await using all = await open()
    const client = all.plane.openai()
    const ask = () => client.chat.completions.create(ASK, { headers: { 'Idempotency-Key': 'k' } })
    expect(await ask()).toEqual(await ask())
    expect(all.plane.records).toHaveLength(1)
  })
})

describe('another', () => {
  test('body, or path, under the same key is 409, and the SDKs do not try that again', async () => {
    await using all = await open()
    await all.said('k')
    for (const [body, path] of [
      [{ ...STREAM, seed: 1 }, CHAT],
      [STREAM, '/v1/completions'],
    ] as const) {
      const answer = await all.said('k', body, path)
      expect(answer.status).toBe(409)
      expect(JSON.parse(answer.text)).toMatchObject({ error: { type: 'ConflictError', code: 409 } })
      expect(answer.headers.get('x-should-retry')).toBe('false')
    }
    expect(all.engine.requests).toHaveLength(1)
  })

  test('caller or project has keys of its own', async () => {
    const caller = (name: string) => {
      const [project, principal] = name.replace('Bearer ', '').split('/')
      return yes({
        organizationId: 'o' as OrganizationId,
        projectId: project as ProjectId,
        principalId: principal as PrincipalId,
        accessKey: 'a' as AccessKey,
      })
    }
    await using all = await open({}, { rooms: { authenticate: (authorization) => caller(authorization ?? '') } })
    for (const name of ['p/one', 'p/two', 'q/one', 'p/one']) {
      await (await all.plane.ask(CHAT, ASK, { headers: { authorization: `Bearer ${name}`, 'idempotency-key': 'k' } })).text()
    }
    expect(all.plane.records.map(({ projectId, principalId }) => `${projectId}/${principalId}`)).toEqual(['p/one', 'p/two', 'q/one'])
  })

  test('day is another request', async () => {
    let now = systemClock.now()
    await using all = await open({}, { rooms: { clock: { ...systemClock, now: () => now } } })
    await all.said('k')
    now = (now + 24 * 3_600_000 - 1) as Instant
    expect((await all.said('k')).headers.get('idempotent-replayed')).toBe('true')
    now = (now + 1) as Instant
    expect((await all.said('k')).headers.get('idempotent-replayed')).toBe(null)
    expect(all.plane.records).toHaveLength(2)
  })
})

describe('a client that leaves', () => {
  test('does not stop the engine while another one reads', async () => {
    await using all = await open({ holdAfter: 1 })
    const raw = await all.plane.raw()
    raw.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await raw.until(/"Hello"/)
    const other = all.said('k')
    const third = await all.plane.raw()
    third.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await third.until(/"Hello"/)
    raw.socket.destroy()
    await raw.closed
    all.engine.release()
    expect((await other).text).toContain('[DONE]')
    expect(all.engine.count('aborted')).toBe(0)
    expect(all.plane.records).toMatchObject([{ ended: 'complete', counted: 'engine' }])
  })

  test('may come back for its answer within seconds, and pays once', async () => {
    await using all = await open({ holdAfter: 1 })
    const raw = await all.plane.raw()
    raw.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await raw.until(/"Hello"/)
    raw.socket.destroy()
    await raw.closed
    const again = all.said('k')
    const reader = await all.plane.raw()
    reader.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await reader.until(/"Hello"/)
    all.engine.release()
    expect((await again).text).toMatch(/"Hello"[^]*" world"[^]*\[DONE\]/)
    expect(all.plane.records).toMatchObject([{ ended: 'complete' }])
    expect(all.engine.requests).toHaveLength(1)
  })

  test('and does not come back stops the engine; the same key begins anew', async () => {
    await using all = await open({ holdAfter: 1 }, { limits: { idempotency: { lingerMs: 50 } } })
    const raw = await all.plane.raw()
    raw.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await raw.until(/"Hello"/)
    raw.socket.destroy()
    await all.engine.until('aborted')
    await until('it is recorded', () => all.plane.records.length === 1)
    expect(all.plane.records).toMatchObject([{ ended: 'client_left', output: 1 }])
    all.engine.play({})
    expect((await all.said('k')).text).toContain('[DONE]')
    expect(all.plane.records).toHaveLength(2)
  })

  test('is not waited for when the server stops', async () => {
    await using all = await open({ holdAfter: 1 })
    const raw = await all.plane.raw()
    raw.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
    await raw.until(/"Hello"/)
    raw.socket.destroy()
    await raw.closed
    await all.plane.close()
    await all.engine.until('aborted')
    await until('it is recorded', () => all.plane.records.length === 1)
  })
})

describe('what is not kept', () => {
  test.each<[string, Script, number]>([
    ['a busy engine', { status: 503 }, 503],
    ['an engine that fails', { status: 500 }, 500],
    ['an engine that refuses the body', { status: 400 }, 400],
    ['an engine that fails in the middle', { errorAfter: 1 }, 200],
  ])('is the word of %s: the same key tries again', async (_who, script, status) => {
    await using all = await open(script)
    expect((await all.said('k')).status).toBe(status)
    all.engine.play({})
    const again = await all.said('k')
    expect([again.status, again.text.includes('[DONE]'), again.text.includes('"error"')]).toEqual([200, true, false])
    expect(again.headers.get('idempotent-replayed')).toBe(null)
  })

  test('is an answer whose usage could not be written', async () => {
    let broken = true
    await using all = await open({}, { rooms: { record: () => (broken ? Promise.reject(new Error('full')) : Promise.resolve()) } })
    const first = await all.said('k')
    expect(first.text).toContain('"error"')
    expect(first.text).not.toContain('[DONE]')
    broken = false
    expect((await all.said('k')).text).toContain('[DONE]')
  })

  test('is an answer that is too large: those who are attached get it whole, later ones 409', async () => {
    await using all = await open({ repeat: 400, holdAfter: 900 }, { limits: { idempotency: { answerBytes: 20_000 } } })
    const first = all.said('k')
    await all.engine.until('held')
    const late = await all.said('k')
    all.engine.release()
    const text = (await first).text
    expect(text.match(/"Hello"/g)).toHaveLength(400)
    expect(text).toContain('[DONE]')
    const again = await all.said('k')
    expect([late.status, again.status]).toEqual([409, 409])
    expect(again.text).toContain('not kept')
    expect(all.plane.records).toHaveLength(1)
  })

  test('are the answers used longest ago, when all of them together are too many', async () => {
    await using all = await open({}, { limits: { idempotency: { totalBytes: 5_000 } } })
    const { text } = await all.said('a')
    expect(text.length).toBeGreaterThan(800)
    await all.said('b')
    await all.said('a')
    await all.said('c')
    expect((await all.said('a')).text).toBe(text)
    expect((await all.said('b')).status).toBe(409)
    expect(all.plane.records).toHaveLength(3)
  })

  test('are more keys than are remembered', async () => {
    await using all = await open({}, { limits: { idempotency: { keys: 2 } } })
    for (const key of ['a', 'b', 'c', 'a']) await all.said(key)
    expect(all.plane.records).toHaveLength(4)
  })
})

test.each(['', 'x'.repeat(256), 'ünicode', 'a\tb'])('the key %j is 400', async (key) => {
  await using all = await open()
  const answer = await all.said(Buffer.from(key).toString('latin1'), ASK)
  expect(answer.status).toBe(400)
  expect(answer.text).toContain('Idempotency-Key')
})

test('a key is looked at only when its caller is known, and the longest one is taken', async () => {
  await using all = await open()
  expect((await all.said('x'.repeat(255), ASK)).status).toBe(200)
  const stranger = await all.plane.ask(CHAT, ASK, { headers: { authorization: `Bearer ${randomUUID()}`, 'idempotency-key': '' } })
  expect(stranger.status).toBe(403)
})

test('more clients at one answer than may be are told to come back', async () => {
  await using all = await open({ holdAfter: 1 }, { limits: { idempotency: { watchers: 1 } } })
  const first = all.said('k')
  await all.engine.until('held')
  const answer = await all.said('k')
  expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
  all.engine.release()
  expect((await first).text).toContain('[DONE]')
})

test('the time for an answer holds for all who wait for it', async () => {
  await using all = await open({ holdAfter: 1 }, { limits: { totalMs: 1_500 } })
  const [first, second] = await Promise.all([all.said('k'), all.said('k')])
  for (const { text } of [first, second]) expect(text).toMatch(/"code":504\}\}\n\ndata: \[DONE\]\n\n$/)
  expect(all.plane.records).toMatchObject([{ ended: 'timed_out' }])
})

test('one who does not read holds nobody else up, and gets the answer when it reads', async () => {
  const piece = 'x'.repeat(10_000)
  await using all = await open({ tokens: [piece], repeat: 1_000 })
  const slow = await all.plane.raw()
  slow.socket.pause()
  slow.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
  await all.engine.until('asked')
  const quick = await all.said('k')
  expect(quick.text).toContain('[DONE]')
  slow.socket.resume()
  const got = await slow.until(/data: \[DONE\]\n\n/)
  expect(got.length).toBeGreaterThan(10_000_000)
  expect(all.plane.records).toHaveLength(1)
})

test('an answer that is not kept goes at the pace of the slowest, and our memory does not fill', async () => {
  const piece = 'x'.repeat(10_000)
  await using all = await open({ tokens: [piece], repeat: 2_500 }, { limits: { idempotency: { answerBytes: 100_000 } } })
  const slow = await all.plane.raw()
  slow.socket.pause()
  slow.post(CHAT, JSON.stringify(STREAM), { 'idempotency-key': 'k' })
  await all.engine.until('asked')
  let before = -1
  await until('the engine is held back', async () => {
    const now = all.engine.sentBytes
    const same = now === before && now > 0
    before = now
    await new Promise((resolve) => setTimeout(resolve, 100))
    return same
  })
  expect(before).toBeLessThan(20_000_000)
  slow.socket.resume()
  await until('it ends', () => all.plane.records.length === 1)
  expect(all.plane.records).toMatchObject([{ ended: 'complete' }])
})

test('memory for bodies and answers is given back', async () => {
  await using all = await open({}, { limits: { inflightBytes: 4_000 } })
  for (let round = 0; round < 30; round += 1) {
    expect((await all.said(`k${round}`, ASK)).status).toBe(200)
    expect((await all.said(`k${round}`, ASK)).status).toBe(200)
  }
})
