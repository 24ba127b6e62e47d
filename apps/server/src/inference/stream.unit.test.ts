import { aModel, guessedTokens, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { eventReader } from '@parvis/wire/sse'
import { describe, expect, test } from 'vitest'

const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }], stream: true }
const WITH_USAGE = { ...ASK, stream_options: { include_usage: true } }
const CHAT = '/v1/chat/completions'

type Chunk = {
  model?: string
  choices?: { delta?: { content?: string }; finish_reason?: string | null }[]
  usage?: unknown
  error?: { message: string; type: string; code: number }
}

const payloads = (text: string): string[] => eventReader()(text).map((event) => event.data)
const chunks = (text: string): Chunk[] =>
  payloads(text)
    .filter((data) => data !== '[DONE]')
    .map((data) => JSON.parse(data) as Chunk)
const words = (text: string): string =>
  chunks(text)
    .map((chunk) => chunk.choices?.[0]?.delta?.content ?? '')
    .join('')

/** What the engine itself says to the same question. */
const straight = async (url: string, id: string): Promise<string> => {
  const answer = await fetch(`${url}${CHAT}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-request-id': id },
    body: JSON.stringify(WITH_USAGE),
  })
  return answer.text()
}

describe('a streamed answer', () => {
  test.each<[string, Script]>([
    ['as engines write it', {}],
    ['with CRLF', { crlf: true }],
    ['with comments between', { comments: true }],
    ['with tools', { toolCalls: [{ id: 'chatcmpl-tool-1', name: 'get_x', arguments: '{"a": 1}' }] }],
    ['with characters of several bytes', { tokens: ['é', '😀', '日本'] }],
  ])('passes through byte for byte, %s', async (_name, script) => {
    await using engine = await startScriptedEngine(script)
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, WITH_USAGE)
    const text = await answer.text()
    expect(text).toBe(await straight(engine.url, answer.headers.get('x-request-id') ?? ''))
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'engine', input: 7, status: 200 }])
    expect(plane.seats.left).toEqual(['clean'])
  })

  test('has the headers of the contract, and none of the engine', async () => {
    await using engine = await startScriptedEngine({ headers: { 'x-engine': 'secret', server: 'uvicorn' } })
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ASK)
    await answer.text()
    const named = [...answer.headers.keys()].filter((name) => !['date', 'connection', 'keep-alive', 'transfer-encoding'].includes(name))
    expect(named.toSorted()).toEqual(['cache-control', 'content-type', 'x-request-id'])
    expect(answer.headers.get('content-type')).toBe('text/event-stream')
    expect(answer.headers.get('cache-control')).toBe('no-cache')
    expect(plane.records[0]?.id).toBe(answer.headers.get('x-request-id'))
  })

  test('asks the engine for usage always, and shows it only to a client that asked', async () => {
    await using engine = await startScriptedEngine({ usage: { prompt: 11, completion: 5, cached: 4, reasoning: 2 } })
    await using plane = await startDataPlane({ engine: engine.url })
    const hidden = await (await plane.ask(CHAT, ASK)).text()
    const shown = await (await plane.ask(CHAT, WITH_USAGE)).text()
    expect(chunks(hidden).filter((chunk) => chunk.choices?.length === 0)).toEqual([])
    expect(chunks(shown).filter((chunk) => chunk.choices?.length === 0)).toMatchObject([
      { usage: { prompt_tokens: 11, completion_tokens: 5 } },
    ])
    expect(words(hidden)).toBe('Hello world.')
    expect(payloads(hidden).at(-1)).toBe('[DONE]')
    expect(engine.requests[0]?.json).toMatchObject({ stream_options: { include_usage: true } })
    const counts = { input: 11, output: 5, cachedInput: 4, reasoning: 2, counted: 'engine' }
    expect(plane.records).toMatchObject([counts, counts])
    expect(plane.settled).toEqual([16, 16])
  })

  test('has null for usage before its end for a client that asked, and not a word of it for others', async () => {
    await using engine = await startScriptedEngine({ usage: 'running' })
    await using plane = await startDataPlane({ engine: engine.url })
    const usages = async (body: object) => {
      const text = await (await plane.ask(CHAT, body)).text()
      const running = chunks(text).filter((chunk) => words(`data: ${JSON.stringify(chunk)}\n\n`) !== '')
      return { running: running.map((chunk) => chunk.usage), last: chunks(text).at(-1), hides: !text.includes('"usage"') }
    }
    expect(await usages(WITH_USAGE)).toMatchObject({ running: [null, null, null], last: { choices: [], usage: { completion_tokens: 3 } } })
    expect(await usages(ASK)).toMatchObject({ running: [undefined, undefined, undefined], hides: true })
    const every = { ...ASK, stream_options: { include_usage: true, continuous_usage_stats: true } }
    expect((await usages(every)).running).toMatchObject([1, 2, 3].map((tokens) => ({ completion_tokens: tokens })))
  })

  test('has one fragment of a call in each chunk, also where an engine puts several into one', async () => {
    const call = (index: number) => ({
      index,
      id: `c${index}`,
      type: 'function',
      function: { name: 'f', arguments: '{"arguments":"\\""}' },
    })
    const chunk = (delta: object, finish: string | null) =>
      `data: ${JSON.stringify({ id: 'x', model: 'tiny-chat', choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`
    await using engine = await startScriptedEngine({
      raw: [
        chunk({ role: 'assistant', tool_calls: [call(0)] }, null),
        chunk({ content: 'and', tool_calls: [call(1), call(2)] }, 'tool_calls'),
        'data: [DONE]\n\n',
      ],
      contentType: 'text/event-stream',
    })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(text.startsWith(chunk({ role: 'assistant', tool_calls: [call(0)] }, null))).toBe(true)
    expect(chunks(text).map(({ choices }) => choices?.[0])).toEqual([
      { index: 0, delta: { role: 'assistant', tool_calls: [call(0)] }, finish_reason: null },
      { index: 0, delta: { content: 'and', tool_calls: [call(1)] }, finish_reason: null },
      { index: 0, delta: { tool_calls: [call(2)] }, finish_reason: 'tool_calls' },
    ])
    expect(plane.records).toMatchObject([{ ended: 'complete' }])
  })

  test('keeps the other options of a stream', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    await (await plane.ask(CHAT, { ...ASK, stream_options: { include_obfuscation: false } })).text()
    expect(engine.requests[0]?.json).toMatchObject({ stream_options: { include_obfuscation: false, include_usage: true } })
  })

  test('ends only when its usage is on disk', async () => {
    await using engine = await startScriptedEngine()
    let written = (): void => {}
    const onDisk = new Promise<void>((resolve) => {
      written = resolve
    })
    await using plane = await startDataPlane({ engine: engine.url, rooms: { record: () => onDisk } })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(WITH_USAGE))
    await client.until(/"choices":\[\],"usage"/)
    await engine.until('answered')
    expect(client.received()).not.toContain('[DONE]')
    written()
    await client.until(/data: \[DONE\]\n\n\r\n0\r\n\r\n/)
  })

  test('never ends when its usage cannot be written, and the client sees an error instead', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, rooms: { record: () => Promise.reject(new Error('the disk is full')) } })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(text).not.toContain('[DONE]')
    expect(chunks(text).at(-1)?.error).toMatchObject({ type: 'InternalServerError', code: 500 })
    expect(text).not.toContain('disk')
    expect(plane.log.join('')).toContain('the disk is full')
  })

  test('does not wait for the disk longer than an answer may take, and does not end then either', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({
      engine: engine.url,
      limits: { totalMs: 1_000 },
      rooms: { record: () => new Promise(() => {}) },
    })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(text).not.toContain('[DONE]')
    expect(chunks(text).at(-1)?.error).toMatchObject({ code: 504 })
    expect((await plane.ask(CHAT, { ...ASK, stream: false })).status).toBe(504)
  })

  test('names the model as the catalogue does, where the engine knows it by another name', async () => {
    await using engine = await startScriptedEngine({ tokens: ['"model":', ' "Org/remote:Q4"'] })
    await using plane = await startDataPlane({
      engine: engine.url,
      replica: { remoteModel: 'Org/remote:Q4', basePath: '/proxy', bearer: 'engine-key' },
    })
    const text = await (await plane.ask(CHAT, WITH_USAGE)).text()
    expect(new Set(chunks(text).map((chunk) => chunk.model))).toEqual(new Set(['tiny-chat']))
    expect(words(text)).toBe('"model": "Org/remote:Q4"')
    expect(engine.requests[0]).toMatchObject({ path: '/proxy/v1/chat/completions', json: { model: 'Org/remote:Q4' } })
  })

  test('sends the engine our headers and none of the client', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, replica: { bearer: 'engine-key' } })
    const answer = await plane.ask(CHAT, ASK, {
      headers: { 'x-mine': 'mine', cookie: 'a=b', 'openai-organization': 'org', 'accept-encoding': 'gzip' },
    })
    await answer.text()
    const headers = engine.requests[0]?.headers ?? {}
    expect(Object.keys(headers).toSorted()).toEqual(
      ['accept', 'authorization', 'connection', 'content-length', 'content-type', 'host', 'x-parvis-tenant', 'x-request-id'].toSorted(),
    )
    expect(headers).toMatchObject({
      authorization: 'Bearer engine-key',
      accept: 'text/event-stream',
      'x-request-id': answer.headers.get('x-request-id'),
      'x-parvis-tenant': plane.projectId,
    })
  })

  test('counts what was delivered where the engine gives no usage', async () => {
    await using engine = await startScriptedEngine({ usage: false })
    await using plane = await startDataPlane({ engine: engine.url })
    await (await plane.ask(CHAT, ASK)).text()
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'delivered', output: 3 }])
    expect(plane.log.join('')).toContain('a stream without usage')
  })

  test('reads usage that comes with the last words, and does not hide those', async () => {
    await using engine = await startScriptedEngine({ usage: 'last' })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(chunks(text).at(-1)?.choices?.[0]?.finish_reason).toBe('stop')
    expect(plane.records).toMatchObject([{ counted: 'engine', input: 7, output: 3 }])
  })

  test('is ended for an engine that forgets to', async () => {
    await using engine = await startScriptedEngine({ done: false })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(payloads(text).at(-1)).toBe('[DONE]')
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'engine' }])
  })

  test('is whole when only the last blank line is missing', async () => {
    const chunk = { id: 'x', object: 'chat.completion.chunk', created: 1, model: 'tiny-chat' }
    await using engine = await startScriptedEngine({
      raw: [
        `data: ${JSON.stringify({ ...chunk, choices: [{ index: 0, delta: { content: 'Hi' }, finish_reason: 'stop' }] })}\n\n`,
        'data: [DONE]',
      ],
      contentType: 'text/event-stream',
    })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(words(text)).toBe('Hi')
    expect(payloads(text).at(-1)).toBe('[DONE]')
    expect(plane.records).toMatchObject([{ ended: 'complete' }])
  })
})

describe('an engine that fails in mid-stream', () => {
  test.each<[string, Script, string]>([
    ['dies', { cutAfter: 2, usage: 'running' }, 'broke off'],
    ['reports an error', { errorAfter: 2, usage: 'running' }, 'an error inside a stream'],
    [
      'says something that is no event',
      { raw: [event('Hello'), event(' world'), 'data: <html>\n\n'], contentType: 'text/event-stream' },
      '',
    ],
    [
      'ends without having finished',
      { raw: [event('Hello'), event(' world')], contentType: 'text/event-stream' },
      'without a finish reason',
    ],
    [
      'ends in the middle of an event',
      { raw: [event('Hello'), event(' world'), 'data: {"cho'], contentType: 'text/event-stream' },
      'without a finish reason',
    ],
  ])('%s: the client gets what there was and an error event, and it is recorded', async (_name, script, logged) => {
    await using engine = await startScriptedEngine(script)
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    const told = payloads(text)
    expect(words(text)).toBe('Hello world')
    expect(JSON.parse(told.at(-2) ?? '')).toMatchObject({ error: { type: 'InternalServerError', param: null, code: 500 } })
    expect(told.at(-1)).toBe('[DONE]')
    expect(plane.records).toMatchObject([{ ended: 'engine_failed', status: 200, output: 2 }])
    expect(plane.log.join('')).toContain(logged)
    expect(text).not.toContain('Scripted failure')
  })

  test('sends an event without end: it is cut off, and our memory with it', async () => {
    await using engine = await startScriptedEngine({ hugeEventBytes: 64 << 20 })
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ASK)
    expect(answer.status).toBe(500)
    await engine.until('aborted')
    expect(engine.sentBytes).toBeLessThan(16 << 20)
    expect(plane.log.join('')).toContain('an event of more than')
    expect(plane.seats.left).toEqual(['broken'])
  })

  test('goes silent: the stream ends at the idle limit', async () => {
    await using engine = await startScriptedEngine({ tokens: ['a', 'b', 'c'], holdAfter: 2 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { idleMs: 1_000 } })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(words(text)).toBe('ab')
    expect(plane.log.join('')).toContain('silent for 1000 ms')
    expect(chunks(text).at(-1)?.error).toMatchObject({ type: 'GatewayTimeoutError', code: 504 })
    expect(plane.records).toMatchObject([{ ended: 'timed_out', counted: 'delivered', output: 2 }])
    await engine.until('aborted')
  })

  test('takes longer than an answer may: the stream ends at the total limit', async () => {
    await using engine = await startScriptedEngine({ tokens: ['x'], repeat: 10_000, tokenDelayMs: 20 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { totalMs: 1_000 } })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(chunks(text).at(-1)?.error).toMatchObject({ type: 'GatewayTimeoutError', code: 504 })
    expect(plane.records).toMatchObject([{ ended: 'timed_out' }])
    expect(plane.seats.left).toEqual(['clean'])
    await engine.until('aborted')
  })

  test('says [DONE] and does not end: the client is not kept waiting', async () => {
    await using engine = await startScriptedEngine({
      raw: [event('Hi', 'stop'), 'data: [DONE]\n\n', ': still here\n\n'],
      contentType: 'text/event-stream',
      holdAfter: 0,
    })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(payloads(text).at(-1)).toBe('[DONE]')
    expect(text).not.toContain('still here')
    expect(plane.records).toMatchObject([{ ended: 'complete' }])
  })
})

describe('a client that leaves', () => {
  test('stops the engine, and what was delivered is recorded', async () => {
    await using engine = await startScriptedEngine({ tokens: ['a', 'b', 'c'], holdAfter: 2, usage: 'running' })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await client.until(/"content":"b"/)
    client.socket.destroy()
    await engine.until('aborted')
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', counted: 'engine', input: 7, output: 2, status: 200 }])
    expect(plane.seats.left).toEqual(['clean'])
    expect(plane.settled).toEqual([9])
  })

  test('stops an engine that is in the middle of talking, and no more is read from it', async () => {
    await using engine = await startScriptedEngine({ tokens: ['x'.repeat(1000)], repeat: 1_000_000 })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await client.until((received) => received.length > 100_000)
    client.socket.resetAndDestroy()
    await engine.until('aborted')
    const sent = engine.sentBytes
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', counted: 'delivered' }])
    expect(engine.sentBytes).toBe(sent)
  })

  test('before the first word leaves a row with the input that the engine was given', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 0 })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await engine.until('held')
    client.socket.destroy()
    await engine.until('aborted')
    await expect
      .poll(() => plane.records)
      .toMatchObject([{ ended: 'client_left', counted: 'delivered', output: 0, status: 499, firstByteAt: null }])
    expect(plane.records[0]?.input).toBe(guessedTokens(ASK.messages))
  })

  test('while it waits for a seat ends the waiting, and that is no fault', async () => {
    await using engine = await startScriptedEngine()
    let asked = (): void => {}
    const waiting = new Promise<void>((resolve) => {
      asked = resolve
    })
    let ended = false
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        takeSeat: (_model, caller) =>
          new Promise((_resolve, reject) => {
            asked()
            caller.signal().addEventListener('abort', () => {
              ended = true
              reject(caller.signal().reason)
            })
          }),
      },
    })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await waiting
    client.socket.destroy()
    await expect.poll(() => ended).toBe(true)
    await expect.poll(() => plane.settled).toEqual([0])
    expect(plane.log).toEqual([])
  })
})

describe('a client that does not read', () => {
  test('holds the engine back instead of filling our memory', async () => {
    await using engine = await startScriptedEngine({ tokens: ['x'.repeat(4000)], repeat: 50_000 }) // 200 MB
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await client.until(/xxxx/)
    client.socket.pause()
    // All the buffers between are filled when nothing moves any more.
    let before = -1
    await expect
      .poll(
        () => {
          const same = engine.sentBytes === before
          before = engine.sentBytes
          return same
        },
        { interval: 300 },
      )
      .toBe(true)
    expect(engine.sentBytes).toBeLessThan(32 << 20)
    client.socket.resume()
    await expect.poll(() => engine.sentBytes).toBeGreaterThan(before)
    client.socket.destroy()
    await engine.until('aborted')
  })

  test('is cut off at the total limit and pays as one that has left, and its engine is free', async () => {
    await using engine = await startScriptedEngine({ tokens: ['x'.repeat(4000)], repeat: 50_000 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { totalMs: 5_000, idleMs: 500 } })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await client.until(/xxxx/)
    client.socket.pause()
    await engine.until('aborted')
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', counted: 'delivered', status: 200 }])
    expect(plane.records[0]?.output).toBeGreaterThan(0)
    client.socket.destroy()
  })
})

describe('after a redirect', () => {
  test('the model that answers is named, and both names are recorded', async () => {
    await using engine = await startScriptedEngine()
    const models = [aModel({ name: 'old-chat', status: 'eol', successor: 'tiny-chat' }), aModel()]
    await using plane = await startDataPlane({ engine: engine.url, models })
    const text = await (await plane.ask(CHAT, { ...ASK, model: 'old-chat' })).text()
    expect(engine.requests[0]?.json).toMatchObject({ model: 'tiny-chat' })
    expect(chunks(text)[0]?.model).toBe('tiny-chat')
    expect(plane.records).toMatchObject([{ modelAsked: 'old-chat', model: 'tiny-chat' }])
  })

  test('every answer says which model was asked for: whole, streamed, refused, and replayed', async () => {
    await using engine = await startScriptedEngine()
    const models = [aModel({ name: 'old-chat', status: 'eol', successor: 'tiny-chat' }), aModel()]
    await using plane = await startDataPlane({ engine: engine.url, models })
    const asked = async (fields: object, path = CHAT, headers: Record<string, string> = {}): Promise<[number, string | null]> => {
      const answer = await plane.ask(path, { ...ASK, ...fields }, { headers })
      await answer.text()
      return [answer.status, answer.headers.get('x-parvis-requested-model')]
    }
    expect(await asked({ model: 'old-chat' })).toEqual([200, 'old-chat'])
    expect(await asked({ model: 'old-chat', stream: false })).toEqual([200, 'old-chat'])
    expect(await asked({ model: 'old-chat', max_tokens: 16 }, '/v1/messages')).toEqual([200, 'old-chat'])
    expect(await asked({ model: 'old-chat', temperature: 'hot' })).toEqual([400, 'old-chat'])
    for (const _ of [1, 2]) expect(await asked({ model: 'old-chat' }, CHAT, { 'idempotency-key': 'k' })).toEqual([200, 'old-chat'])
    expect(engine.requests).toHaveLength(4)
    expect(await asked({})).toEqual([200, null])
    expect(await asked({ model: 'nobody' })).toEqual([422, null])
  })
})

function event(content: string, finish: string | null = null): string {
  return `data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', created: 1, model: 'tiny-chat', choices: [{ index: 0, delta: { content }, finish_reason: finish }] })}\n\n`
}
