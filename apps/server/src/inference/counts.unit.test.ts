import { guessedTokens, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { describe, expect, test } from 'vitest'
import { no, yes } from '../kit/outcome.ts'
import type { Ticket } from '../quota/admit.ts'

const CHAT = '/v1/chat/completions'
const TEXT = '/v1/completions'
const ASK = { model: 'tiny-chat', stream: true, messages: [{ role: 'user', content: 'How are you today?' }] }
const TEXT_ASK = { model: 'tiny-chat', stream: true, prompt: 'How are you today?' }
const estimateOf = (body: { messages?: unknown; prompt?: unknown }): number => guessedTokens(body.messages ?? body.prompt)

type Chunk = {
  choices: { index: number; finish_reason: string | null; stop_reason?: string }[]
  usage?: { prompt_tokens: number; completion_tokens: number } | null
}
const chunks = (text: string): Chunk[] =>
  text
    .split('\n\n')
    .filter((event) => event.startsWith('data: {'))
    .map((event) => JSON.parse(event.slice('data: '.length)) as Chunk)

/** Leave to make so many tokens and no more. */
const ticketFor = (tokens: number, settled: number[]): Ticket => {
  let tell: (() => void) | undefined
  return {
    headers: () => [],
    watch: (exhausted) => {
      tell = exhausted
    },
    spend: (made) => {
      if (made >= tokens) tell?.()
    },
    settle: (used) => void settled.push(used === undefined ? 0 : used.input + used.output),
  }
}

describe('a client that leaves in mid-stream pays for its input', () => {
  test.each<[string, Script, object, string, object]>([
    ['chat, as its engine has counted', { usage: 'running' }, ASK, CHAT, { counted: 'engine', input: 7, output: 2 }],
    ['chat, as estimated', {}, ASK, CHAT, { counted: 'delivered', input: estimateOf(ASK), output: 2 }],
    ['text, as its engine has counted', { usage: 'running' }, TEXT_ASK, TEXT, { counted: 'engine', input: 7, output: 2 }],
    ['text, as estimated', {}, TEXT_ASK, TEXT, { counted: 'delivered', input: estimateOf(TEXT_ASK), output: 2 }],
  ])('of %s', async (_name, script, body, path, counts) => {
    await using engine = await startScriptedEngine({ tokens: ['a', 'b', 'c'], holdAfter: 2, ...script })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(path, JSON.stringify(body))
    await client.until(/"b"/)
    client.socket.destroy()
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', status: 200, ...counts }])
    const { input, output } = plane.records[0] ?? { input: 0, output: 0 }
    await expect.poll(() => plane.settled).toEqual([input + output])
    expect(client.received()).not.toContain('"usage"')
  })

  test('and for all words, where the last count of its engine is older than they are', async () => {
    const say = (content: string, usage?: object) =>
      `data: ${JSON.stringify({ id: 'x', choices: [{ index: 0, delta: { content }, finish_reason: null }], usage })}\n\n`
    const raw = [say('a', { prompt_tokens: 9, completion_tokens: 1 }), say('b'), say('c')]
    await using engine = await startScriptedEngine({ raw, contentType: 'text/event-stream', holdAfter: 0 })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await client.until(/"c"/)
    client.socket.destroy()
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', counted: 'engine', input: 9, output: 3 }])
  })

  test('and for nothing while no engine has it', async () => {
    await using engine = await startScriptedEngine()
    let asked = (): void => {}
    const waiting = new Promise<void>((resolve) => {
      asked = resolve
    })
    await using plane = await startDataPlane({
      engine: engine.url,
      rooms: {
        takeSeat: (model, caller) =>
          new Promise((resolve) => {
            caller
              .signal()
              .addEventListener('abort', () =>
                resolve(no({ code: 'engine_unavailable', model: model.name, reason: 'nobody waits', retryAfterMs: 1 })),
              )
            asked()
          }),
      },
    })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await waiting
    client.socket.destroy()
    await expect.poll(() => plane.settled).toEqual([0])
    expect(plane.records).toEqual([])
  })
})

describe('running usage', () => {
  test('is asked for always, and shown to a client that asked for it only', async () => {
    await using engine = await startScriptedEngine({ usage: 'running' })
    await using plane = await startDataPlane({ engine: engine.url })
    const told: Record<string, (number | null | undefined)[]> = {}
    for (const [name, options] of Object.entries({
      nothing: undefined,
      last: { include_usage: true },
      running: { continuous_usage_stats: true },
      both: { include_usage: true, continuous_usage_stats: true },
    })) {
      const text = await (await plane.ask(CHAT, { ...ASK, stream_options: options })).text()
      told[name] = chunks(text).map(({ usage }) => usage?.completion_tokens)
      expect(engine.requests.at(-1)?.json).toMatchObject({ stream_options: { include_usage: true, continuous_usage_stats: true } })
    }
    const none = undefined
    expect(told).toEqual({
      nothing: [none, none, none, none, none],
      last: [none, none, none, none, none, 3],
      running: [none, 1, 2, 3, none, 3],
      both: [none, 1, 2, 3, none, 3],
    })
  })

  test('is taken out and nothing else, wherever it stands and whatever a model says', async () => {
    const usage = '"usage":{"prompt_tokens":3,"completion_tokens":1,"note":"}\\"{"}'
    const choices = (content: string, finish = 'null') =>
      `"choices":[{"index":0,"delta":{"content":${JSON.stringify(content)}},"finish_reason":${finish}}]`
    const engineSays: [string, string][] = [
      [`{"id":"x",${choices('usage')},${usage}}`, `{"id":"x",${choices('usage')}}`],
      [`{"id":"x",${usage},${choices('usage')}}`, `{"id":"x",${choices('usage')}}`],
      [`{"id":"x" , "usage" : {"prompt_tokens":3} , ${choices('"usage":{}')} }`, `{"id":"x"  , ${choices('"usage":{}')} }`],
      [`{${usage},"id":"x",${choices('a')}}`, `{"usage":null,"id":"x",${choices('a')}}`],
      [`{"id":"x",${choices('b')},"x_other":{${usage}}}`, `{"id":"x",${choices('b')},"x_other":{${usage}}}`],
      [`{"id":"x",${choices('usage', '"stop"')}}`, `{"id":"x",${choices('usage', '"stop"')}}`],
    ]
    await using engine = await startScriptedEngine({
      raw: [...engineSays.map(([said]) => `data: ${said}\n\n`), 'data: [DONE]\n\n'],
      contentType: 'text/event-stream',
    })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, ASK)).text()
    expect(text).toBe([...engineSays.map(([, heard]) => `data: ${heard}\n\n`), 'data: [DONE]\n\n'].join(''))
    expect(plane.records).toMatchObject([{ counted: 'engine', input: 3, output: 1 }])
  })

  test('that came with the last words is shown alone to a client that asked for it', async () => {
    await using engine = await startScriptedEngine({ usage: 'last' })
    await using plane = await startDataPlane({ engine: engine.url })
    const text = await (await plane.ask(CHAT, { ...ASK, stream_options: { include_usage: true } })).text()
    expect(chunks(text).at(-2)?.usage).toBeNull()
    expect(chunks(text).at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 3 } })
  })

  test('is not asked again of an engine that refuses to be asked, and no client hears of it', async () => {
    await using engine = await startScriptedEngine()
    engine.playOnce({ status: 400, body: { error: { message: "Unknown parameter: 'stream_options.continuous_usage_stats'." } } })
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, ASK)).status).toBe(200)
    expect(await (await plane.ask(CHAT, ASK)).text()).toContain(' world')
    expect(engine.requests.map(({ json }) => (json as { stream_options: unknown }).stream_options)).toEqual([
      { include_usage: true, continuous_usage_stats: true },
      { include_usage: true },
      { include_usage: true },
    ])
    expect(plane.records).toHaveLength(2)
    // One that asks for it by itself hears what the engine says.
    engine.playOnce({ status: 400, body: { error: { message: "Unknown parameter: 'stream_options.continuous_usage_stats'." } } })
    expect((await plane.ask(CHAT, { ...ASK, stream_options: { continuous_usage_stats: true } })).status).toBe(400)
  })
})

describe('a stream that its budget ends', () => {
  const exhaustedAt = async (tokens: number, script: Script, body: object) => {
    const settled: number[] = []
    await using engine = await startScriptedEngine({ tokens: ['a', 'b', 'c', 'd'], tokenDelayMs: 5, ...script })
    await using plane = await startDataPlane({ engine: engine.url, rooms: { admit: () => yes(ticketFor(tokens, settled)) } })
    const text = await (await plane.ask(CHAT, body)).text()
    return { told: chunks(text), records: plane.records, settled, text }
  }

  test('says the input too where its engine gives no running usage', async () => {
    const body = { ...ASK, stream_options: { include_usage: true } }
    const { told, records, settled } = await exhaustedAt(2, {}, body)
    const input = estimateOf(body)
    expect(told.at(-2)?.choices).toMatchObject([{ index: 0, finish_reason: 'length', stop_reason: 'budget_exhausted' }])
    expect(told.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: input, completion_tokens: 2, total_tokens: input + 2 } })
    expect(records).toMatchObject([{ ended: 'budget', counted: 'delivered', input, output: 2 }])
    expect(settled).toEqual([input + 2])
  })

  test('says what the engine has counted where it gives it', async () => {
    const { told, records } = await exhaustedAt(2, { usage: 'running' }, { ...ASK, stream_options: { include_usage: true } })
    expect(told.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 2 } })
    expect(records).toMatchObject([{ ended: 'budget', counted: 'engine', input: 7, output: 2 }])
  })

  test('gives every answer that is not at its end a reason', async () => {
    const say = (index: number, content: string, finish: string | null = null) =>
      `data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', choices: [{ index, delta: { content }, finish_reason: finish }] })}\n\n`
    const raw = [say(0, 'a') + say(1, 'b', 'stop') + say(2, 'c')]
    const { told, text } = await exhaustedAt(3, { raw, contentType: 'text/event-stream', holdAfter: 0 }, { ...ASK, n: 3 })
    expect(told.at(-1)?.choices).toMatchObject([
      { index: 0, finish_reason: 'length', stop_reason: 'budget_exhausted' },
      { index: 2, finish_reason: 'length', stop_reason: 'budget_exhausted' },
    ])
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true)
  })
})

describe('a request that failed after an engine had it', () => {
  test('is recorded once, and the one that answered in its place instead', async () => {
    await using first = await startScriptedEngine({ cutAfter: 0 })
    await using second = await startScriptedEngine({ status: 500 })
    await using plane = await startDataPlane({ engine: first.url, others: [second.url] })
    const body = { ...ASK, stream: false }
    expect((await plane.ask(CHAT, body)).status).toBe(500)
    const input = estimateOf(body)
    expect(plane.records).toMatchObject([{ replica: 'scripted-2', ended: 'engine_failed', counted: 'delivered', status: 500, input }])
    second.play({})
    expect((await plane.ask(CHAT, body)).status).toBe(200)
    expect(plane.records.slice(1)).toMatchObject([{ replica: 'scripted-2', ended: 'complete', counted: 'engine' }])
    expect(plane.settled).toEqual([input, 10])
  })

  test('is recorded of the engine that had it, where the next one is not there', async () => {
    await using first = await startScriptedEngine({ cutAfter: 0 })
    const gone = await startScriptedEngine()
    await gone.close()
    await using plane = await startDataPlane({ engine: first.url, others: [gone.url] })
    expect((await plane.ask(CHAT, { ...ASK, stream: false })).status).toBe(503)
    expect(plane.records).toMatchObject([{ replica: 'scripted', ended: 'engine_failed', status: 503 }])
  })

  test('is settled with the input where an answer came without a count', async () => {
    await using engine = await startScriptedEngine({ usage: false })
    await using plane = await startDataPlane({ engine: engine.url })
    const body = { ...ASK, stream: false }
    expect((await plane.ask(CHAT, body)).status).toBe(200)
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'none' }])
    expect(plane.settled).toEqual([estimateOf(body)])
  })
})
