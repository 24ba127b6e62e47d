import { aModel, guessedTokens, startDataPlane } from '@parvis/testkit/data-plane'
import { dataUrl, png } from '@parvis/testkit/media'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { describe, expect, test } from 'vitest'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }

describe('a whole answer', () => {
  test.each<[string, Script]>([
    ['as engines write it', {}],
    ['with white space and fields we never heard of', { raw: ['{ "new": [1],\n "choices": [{}],', '"usage" : {"prompt_tokens":7} }\n'] }],
    ['with the key cut in two', { raw: ['{"choi', 'ces":[{}],"us', 'age":{"prompt_tokens":7}}'] }],
  ])('passes through byte for byte, %s', async (_name, script) => {
    await using engine = await startScriptedEngine({ ...script, contentType: 'application/json; charset=utf-8' })
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(CHAT, ASK)
    const straight = await fetch(`${engine.url}${CHAT}`, {
      method: 'POST',
      headers: { 'x-request-id': answer.headers.get('x-request-id') ?? '' },
      body: JSON.stringify(ASK),
    })
    expect(await answer.text()).toBe(await straight.text())
    expect(answer.headers.get('content-type')).toBe('application/json')
    expect(Number(answer.headers.get('content-length'))).toBeGreaterThan(0)
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'engine', input: 7, status: 200 }])
    expect(plane.seats.left).toEqual(['clean'])
  })

  test('has our name for the model, and keeps what the model said about names', async () => {
    await using engine = await startScriptedEngine({ tokens: ['"model": "Org/remote"'] })
    await using plane = await startDataPlane({ engine: engine.url, replica: { remoteModel: 'Org/remote' } })
    const answer = (await (await plane.ask(CHAT, ASK)).json()) as { model: string; choices: { message: { content: string } }[] }
    expect(answer.model).toBe('tiny-chat')
    expect(answer.choices[0]?.message.content).toBe('"model": "Org/remote"')
  })

  test('is sent only when its usage is on disk, and not at all when it cannot be written', async () => {
    await using engine = await startScriptedEngine()
    let fail: ((error: Error) => void) | undefined
    const record = () =>
      new Promise<void>((_resolve, reject) => {
        fail = reject
      })
    await using plane = await startDataPlane({ engine: engine.url, rooms: { record } })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await expect.poll(() => fail).toBeDefined()
    expect(client.received()).toBe('')
    fail?.(new Error('the disk is full'))
    expect(await client.until(/"code":500/)).not.toContain('Hello')
  })

  test('without usage is marked as counted by nobody', async () => {
    await using engine = await startScriptedEngine({ usage: false })
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, ASK)).status).toBe(200)
    expect(plane.records).toMatchObject([{ counted: 'none', input: 0, output: 0 }])
  })

  test.each([
    [{ prompt_tokens: -1, completion_tokens: 2 }],
    [{ prompt_tokens: 1.5, completion_tokens: 2 }],
    [{ prompt_tokens: '7' }],
    ['many'],
    [null],
  ])('with a count that makes no sense (%j) is marked as counted by nobody', async (usage) => {
    await using engine = await startScriptedEngine({ body: { choices: [{}], usage } })
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, ASK)).status).toBe(200)
    expect(plane.records).toMatchObject([{ counted: 'none', input: 0, output: 0 }])
  })

  test('never has more cached or reasoned tokens than tokens', async () => {
    await using engine = await startScriptedEngine({ usage: { prompt: 5, completion: 3, cached: 9, reasoning: 9 } })
    await using plane = await startDataPlane({ engine: engine.url })
    await (await plane.ask(CHAT, ASK)).text()
    expect(plane.records).toMatchObject([{ input: 5, cachedInput: 5, output: 3, reasoning: 3 }])
  })

  test('that the client does not wait for stops the engine and leaves a row', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 1 })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = await plane.raw()
    client.post(CHAT, JSON.stringify(ASK))
    await engine.until('held')
    client.socket.destroy()
    await engine.until('aborted')
    await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', counted: 'delivered', status: 499, output: 0 }])
    expect(plane.records[0]?.input).toBe(guessedTokens(ASK.messages))
    expect(plane.settled).toEqual([plane.records[0]?.input])
  })

  test('that breaks off in the middle is 500, and the engine is under suspicion', async () => {
    await using engine = await startScriptedEngine({ raw: ['{"choices":['], headers: { 'content-length': '1000', connection: 'close' } })
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(CHAT, ASK)).status).toBe(500)
    expect(plane.seats.left).toEqual(['broken'])
  })

  test('finds no room when too much is in flight: 503; its engine has worked for it and is blamed for nothing', async () => {
    await using engine = await startScriptedEngine({ tokens: ['x'.repeat(1000)], repeat: 1000 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { inflightBytes: 100_000 } })
    expect((await plane.ask(CHAT, ASK)).status).toBe(503)
    expect(plane.seats.left).toEqual(['clean'])
    expect(plane.records).toMatchObject([{ ended: 'engine_failed', status: 503, counted: 'delivered', output: 0, replica: 'scripted' }])
    expect(plane.settled).toEqual([guessedTokens(ASK.messages)])
    const said = plane.log
      .map((line) => JSON.parse(line) as { msg: string; replica?: string })
      .filter(({ replica }) => replica === 'scripted')
    expect(said.map(({ msg }) => msg)).toEqual(['No room in memory for the answer of an engine'])
    engine.play({})
    await expect.poll(async () => (await plane.ask(CHAT, ASK)).status).toBe(200)
  })
})

describe('the limit of the output', () => {
  const sent = async (ask: object, model = {}) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, models: [aModel(model)] })
    const answer = await plane.ask(CHAT, { ...ASK, ...ask })
    expect(answer.status).toBe(200)
    return engine.requests[0]?.json as Record<string, unknown>
  }

  test("is the model's own where the client sets none and the context surely has room", async () => {
    expect(await sent({})).toMatchObject({ max_tokens: 512 })
    expect(await sent({ max_tokens: null })).toMatchObject({ max_tokens: 512 })
  })

  test('is left to the engine where the room is not sure, or the model has none', async () => {
    expect(await sent({}, { contextTokens: 1024 })).not.toHaveProperty('max_tokens')
    expect(await sent({}, { maxOutputTokens: null })).not.toHaveProperty('max_tokens')
    const image = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: dataUrl('image/png', png()) } }] }]
    const vision = { features: { tools: true, structuredOutput: true, reasoning: false, vision: true } }
    expect(await sent({ messages: image }, vision)).not.toHaveProperty('max_tokens')
  })

  test("is the client's where it sets one; the newer name wins", async () => {
    expect(await sent({ max_tokens: 512 })).toMatchObject({ max_tokens: 512 })
    expect(await sent({ max_completion_tokens: 20 })).toEqual({ ...ASK, max_completion_tokens: 20 })
    expect(await sent({ max_completion_tokens: 20, max_tokens: 900 })).toMatchObject({ max_completion_tokens: 20, max_tokens: 20 })
    // llama.cpp's own names, which win over the others there.
    expect(await sent({ max_tokens: 20, n_predict: 900, n_cmpl: 8 })).toEqual({ ...ASK, max_tokens: 20, n_predict: 20, n_cmpl: 1 })
    expect(await sent({ n_predict: -1 })).toMatchObject({ n_predict: 512 })
  })
})

test('the role developer is system to an engine, and nothing else is touched', async () => {
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: engine.url })
  const messages = [{ role: 'developer', content: 'Be brief', name: 'x' }, ...ASK.messages]
  await (await plane.ask(CHAT, { ...ASK, messages, format: 'json', top_k: 3 })).text()
  expect(engine.requests[0]?.json).toMatchObject({
    messages: [{ role: 'system', content: 'Be brief', name: 'x' }, ...ASK.messages],
    format: 'json',
    top_k: 3,
  })
})
