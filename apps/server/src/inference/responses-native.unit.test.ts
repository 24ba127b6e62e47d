import { ChatOpenAI } from '@langchain/openai'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { dataUrl, png } from '@parvis/testkit/media'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { eventReader } from '@parvis/wire/sse'
import OpenAI from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { NO_RULES } from '../catalog/model.ts'

// An engine that speaks responses gets them as they came (docs/decisions/2026-11-22-dialects-on-top-of-chat.md).

const PATH = '/v1/responses'
const ASK = { model: 'tiny-chat', input: 'Hi' }
const TOOL = {
  type: 'function' as const,
  name: 'get_x',
  parameters: { type: 'object', properties: { a: { type: 'number' } } },
  strict: true,
}
const CALLS = [{ id: 'call_1', name: 'get_x', arguments: '{"a": 1}' }]

type Event = { type: string; sequence_number: number; response?: Record<string, unknown>; [key: string]: unknown }

const eventsOf = (text: string): Event[] =>
  eventReader()(text).map((event) => {
    const data = JSON.parse(event.data) as Event
    expect(event.name).toBe(data.type)
    return data
  })

const open = async (script: Script = {}, more: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, ...more, replica: { speaks: ['responses'], ...more.replica } })
  return {
    engine,
    plane,
    sent: () => engine.requests[0]?.json as Record<string, unknown>,
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

describe('the request', () => {
  test('goes through as it came, with what an engine alone would understand', async () => {
    await using house = await open()
    const given = {
      ...ASK,
      instructions: 'Be brief.',
      input: [
        { role: 'user', content: [{ type: 'input_text', text: 'Hi' }] },
        { type: 'reasoning', id: 'rs_1', summary: [], encrypted_content: 'gAAAA' },
        { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: 'a', output: '1' },
      ],
      include: ['reasoning.encrypted_content'],
      tools: [TOOL],
      max_output_tokens: 12,
      top_k: 5,
    }
    expect((await house.plane.ask(PATH, given)).status).toBe(200)
    expect(house.engine.requests[0]?.path).toBe(PATH)
    expect(house.sent()).toEqual({ ...given, store: false })
  })

  test('is a chat for an engine that does not speak it', async () => {
    await using house = await open({}, { replica: { speaks: [] } })
    await house.plane.ask(PATH, ASK)
    expect(house.engine.requests[0]?.path).toBe('/v1/chat/completions')
  })

  test('of a chat stays a chat', async () => {
    await using house = await open()
    await house.plane.ask('/v1/chat/completions', { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] })
    expect(house.engine.requests[0]?.path).toBe('/v1/chat/completions')
  })

  test("has the engine's name of the model, the model's limit, the nearest effort, and asks that nothing be kept", async () => {
    const model = aModel({
      contextTokens: 4096,
      maxOutputTokens: 512,
      features: { tools: true, structuredOutput: true, reasoning: true, vision: false },
      rules: { ...NO_RULES, reasoningEfforts: ['low', 'high'], toolSystemPrompt: 'You have tools.' },
    })
    await using house = await open({ model: 'Org/remote' }, { models: [model], replica: { remoteModel: 'Org/remote' } })
    const asked = { ...ASK, store: true, reasoning: { effort: 'xhigh', summary: 'auto' }, tools: [TOOL] }
    const answer = await house.plane.ask(PATH, asked)
    expect(house.sent()).toEqual({
      ...asked,
      model: 'Org/remote',
      store: false,
      max_output_tokens: 512,
      reasoning: { effort: 'high', summary: 'auto' },
      instructions: 'You have tools.',
    })
    expect(await answer.json()).toMatchObject({ model: 'tiny-chat' })
  })

  test('brings its images along, and nothing that an engine could fetch by another name', async () => {
    const model = aModel({ features: { tools: true, structuredOutput: true, reasoning: false, vision: true } })
    const picture = png(4, 4)
    const data = dataUrl('image/png', picture)
    await using files = await startScriptedEngine({ raw: [picture], contentType: 'image/png' })
    await using house = await open({}, { models: [model], limits: { fetchAllow: ['127.0.0.0/8'] } })
    const url = `${files.url}/picture.png`
    const hidden = { Image_URL: 'http://10.0.0.1/', file_url: 'http://10.0.0.1/', File_Data: 'x' }
    const answer = await house.plane.ask(PATH, {
      ...ASK,
      input: [
        { role: 'developer', content: 'Look.' },
        {
          role: 'user',
          content: [
            { type: 'input_image', image_url: url, detail: 'low', ...hidden },
            { type: 'input_text', text: '?' },
          ],
        },
        { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: 'a', output: [{ type: 'input_image', image_url: data }], Output: 'x' },
        { role: 'user', content: 'And?', Content: [{ type: 'input_image', image_url: 'http://10.0.0.1/' }] },
      ],
      Input: 'x',
      previous_input_messages: [{ role: 'user', content: 'x' }],
    })
    expect(answer.status).toBe(200)
    expect(house.sent()['input']).toEqual([
      { role: 'system', content: 'Look.' },
      {
        role: 'user',
        content: [
          { type: 'input_image', image_url: data, detail: 'low' },
          { type: 'input_text', text: '?' },
        ],
      },
      { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}' },
      { type: 'function_call_output', call_id: 'a', output: [{ type: 'input_image', image_url: data }] },
      { role: 'user', content: 'And?' },
    ])
    expect(Object.keys(house.sent()).toSorted()).toEqual(['input', 'model', 'store'])
    expect(house.plane.records).toMatchObject([{ images: 2, ended: 'complete' }])
  })

  test.each<[string, object, number, string]>([
    ['an earlier response', { previous_response_id: 'resp_1' }, 400, 'previous_response_id'],
    ['a stored conversation', { conversation: 'conv_1' }, 400, 'conversation'],
    ['a stored prompt', { prompt: { id: 'pmpt_1' } }, 400, 'prompt'],
    ['an answer to be fetched later', { background: true }, 400, 'background'],
    ['a built-in tool', { tools: [{ type: 'web_search' }] }, 400, 'tools[0].type'],
    ['a file', { input: [{ role: 'user', content: [{ type: 'input_file', file_id: 'file-1' }] }] }, 400, 'input[0].content[0].type'],
    [
      "the engine's own files",
      { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'data:,', file_id: 'file-1' }] }] },
      400,
      'input[0].content[0].file_id',
    ],
    ['more output than the model has', { max_output_tokens: 513 }, 416, 'max_output_tokens'],
    ['more output than the context', { max_output_tokens: 4096 }, 416, 'max_output_tokens'],
    ['a wrong type', { temperature: 'hot' }, 400, 'temperature'],
    ['an unknown model', { model: 'nobody' }, 422, 'model'],
    ['a model of another kind', { model: 'tiny-embed' }, 400, 'model'],
  ])('is refused like a chat, with %s', async (_name, fields, status, param) => {
    await using house = await open()
    const answer = await house.plane.ask(PATH, { ...ASK, ...fields })
    const body = (await answer.json()) as { error: { code: number; param: string } }
    expect([answer.status, body.error.code, body.error.param]).toEqual([status, status, param])
    expect(house.engine.requests).toHaveLength(0)
    expect(house.plane.records).toHaveLength(0)
  })
})

describe('the answer', () => {
  test('goes through as it came, and is counted', async () => {
    await using house = await open({
      reasoning: ['Hm.'],
      toolCalls: CALLS,
      usage: { prompt: 20, completion: 90, cached: 5, reasoning: 60 },
    })
    const answer = await house.plane.ask(PATH, { ...ASK, tools: [TOOL] })
    expect(await answer.json()).toMatchObject({
      id: 'resp_engine',
      service_tier: 'scripted',
      store: false,
      output: [
        { type: 'reasoning', encrypted_content: null },
        { type: 'function_call', call_id: 'call_1' },
      ],
      usage: { input_tokens: 20, output_tokens: 90 },
    })
    expect(house.plane.records).toMatchObject([
      { endpoint: 'responses', input: 20, output: 90, cachedInput: 5, reasoning: 60, counted: 'engine', ended: 'complete', status: 200 },
    ])
    expect(house.plane.settled).toEqual([110])
  })

  test('is recorded as cut where the limit cut it', async () => {
    await using house = await open({ finishReason: 'length' })
    expect(await (await house.plane.ask(PATH, ASK)).json()).toMatchObject({ status: 'incomplete' })
    expect(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text()).toContain('event: response.incomplete')
    expect(house.plane.records).toMatchObject([{ ended: 'length' }, { ended: 'length' }])
  })

  test('without usage is counted by nobody, and says so', async () => {
    await using house = await open({ usage: false })
    expect((await house.plane.ask(PATH, ASK)).status).toBe(200)
    expect(house.plane.records).toMatchObject([{ counted: 'none', input: 0, output: 0, ended: 'complete' }])
  })

  test.each<[string, Script]>([
    ['of another kind', { body: { id: 'x', choices: [] } }],
    ['with an error inside', { body: { output: [], status: 'failed', error: { code: 'server_error', message: 'secret' } } }],
    ['that failed without a word', { body: { output: [], status: 'failed', error: null } }],
    ['that is not finished', { body: { output: [], status: 'queued', error: null } }],
    ['that is no JSON', { raw: ['{"output":['] }],
    ['of a server that fails', { status: 500 }],
  ])('%s is an engine that failed', async (_name, script) => {
    await using house = await open(script)
    const answer = await house.plane.ask(PATH, ASK)
    const text = await answer.text()
    expect([answer.status, text.includes('secret')]).toEqual([500, false])
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', status: 500, output: 0 }])
  })

  test('of an engine that is away is that of another, in its own dialect', async () => {
    const second = await startScriptedEngine()
    await using house = await open({ cutAfter: 0 }, { others: [second.url] })
    const answer = await house.plane.ask(PATH, { ...ASK, stream: true })
    expect(await answer.text()).toContain('response.completed')
    expect(house.plane.records).toMatchObject([{ replica: 'scripted-2', ended: 'complete' }])
    await second.close()
  })

  test("is the engine's own refusal where it refuses", async () => {
    await using house = await open({
      status: 400,
      body: { error: { message: 'Unsupported value', type: 'invalid_request_error', param: 'reasoning', code: null } },
    })
    const answer = await house.plane.ask(PATH, ASK)
    expect([answer.status, await answer.json()]).toMatchObject([400, { error: { message: 'Unsupported value', param: 'reasoning' } }])
    expect(house.plane.records).toHaveLength(0)
  })
})

describe('the stream', () => {
  test('goes through byte for byte', async () => {
    await using engine = await startScriptedEngine({ reasoning: ['Hm', '.'], tokens: ['Hé', '😀'], toolCalls: CALLS, comments: true })
    const direct = await fetch(`${engine.url}${PATH}`, {
      method: 'POST',
      body: JSON.stringify({ ...ASK, stream: true, store: false, max_output_tokens: 512 }),
    })
    await using plane = await startDataPlane({ engine: engine.url, replica: { speaks: ['responses'] } })
    const passed = await plane.ask(PATH, { ...ASK, stream: true, max_output_tokens: 512 })
    expect(passed.headers.get('content-type')).toBe('text/event-stream')
    const comments = /^: ping\n\n/ // the first says nothing, and comes before anything that could be trusted
    expect(await passed.text()).toBe((await direct.text()).replace(comments, ''))
    expect(plane.records).toMatchObject([{ ended: 'complete', counted: 'engine', input: 7, output: 6, status: 200 }])
  })

  test.each([[{ crlf: true }], [{ comments: true }], [{ toolCalls: CALLS }], [{ tokens: [] }]] satisfies [Script][])(
    'is numbered without a gap, whatever the engine does: %j',
    async (script) => {
      await using house = await open(script)
      const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
      expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
      expect(events.at(-1)?.type).toBe('response.completed')
    },
  )

  test('of an engine that numbers badly, or forgets names, is put right', async () => {
    const response = { id: 'resp_engine', model: 'Org/remote', status: 'in_progress', output: [] }
    const usage = { input_tokens: 3, output_tokens: 1 }
    const raw = [
      `data: ${JSON.stringify({ type: 'response.created', sequence_number: 1, response })}\n\n`,
      `event: response.output_text.delta\ndata: ${JSON.stringify({ type: 'response.output_text.delta', output_index: 0, delta: 'a' })}\n\n`,
      `event: new.thing\ndata: ${JSON.stringify({ type: 'new.thing', sequence_number: 2, x: 1 })}\n\n`,
      `data: ${JSON.stringify({ type: 'response.completed', response: { ...response, status: 'completed', usage } })}\n\ndata: [DONE]\n\n`,
    ]
    await using house = await open({ raw, contentType: 'text/event-stream' }, { replica: { remoteModel: 'Org/remote' } })
    const text = await (await house.plane.ask(PATH, { ...ASK, stream: true })).text()
    const events = eventsOf(text)
    expect(events.map(({ type, sequence_number: number }) => [type, number])).toEqual([
      ['response.created', 0],
      ['response.output_text.delta', 1],
      ['new.thing', 2],
      ['response.completed', 3],
    ])
    expect(text).not.toContain('Org/remote')
    expect(events[0]?.response).toEqual({ ...response, model: 'tiny-chat' })
    expect(house.plane.records).toMatchObject([{ input: 3, output: 1, counted: 'engine' }])
  })

  test('ends only when its usage is on disk', async () => {
    let written = (): void => {}
    const onDisk = new Promise<void>((resolve) => {
      written = resolve
    })
    await using house = await open({}, { rooms: { record: () => onDisk } })
    const client = await house.plane.raw()
    client.post(PATH, JSON.stringify({ ...ASK, stream: true }))
    await client.until(/response\.output_item\.done/)
    await house.engine.until('answered')
    expect(client.received()).not.toContain('response.completed')
    written()
    await client.until(/event: response\.completed/)
  })

  test.each<[string, Script]>([
    ['breaks off', { cutAfter: 2 }],
    ['reports an error', { errorAfter: 2 }],
  ])('of an engine that %s in the middle tells how far it came, and raises', async (_name, script) => {
    await using house = await open(script)
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
    const [failed, error] = events.slice(-2)
    expect(failed).toMatchObject({
      type: 'response.failed',
      response: {
        id: 'resp_engine',
        status: 'failed',
        error: { code: 'server_error' },
        output: [{ type: 'message', status: 'incomplete', content: [{ type: 'output_text', text: 'Hello world' }] }],
      },
    })
    expect(error).toMatchObject({ type: 'error', code: 'server_error', error: { code: 500 } })
    expect(JSON.stringify(events)).not.toContain('Scripted failure')
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', output: 2, counted: 'delivered', status: 200 }])
    await expect(house.plane.openai().responses.stream(ASK).finalResponse()).rejects.toBeInstanceOf(OpenAI.APIError)
  })

  test.each<[string, Script]>([
    ['an error', { errorAfter: 0 }],
    ['rubbish', { raw: ['data: {oops\n\n'], contentType: 'text/event-stream' }],
    ['something without a type', { raw: ['data: {"id":1}\n\n'], contentType: 'text/event-stream' }],
    ['a name that is several lines', { raw: ['data: {"type":"a\\n\\ndata: x"}\n\n'], contentType: 'text/event-stream' }],
    ['nothing', { raw: [], contentType: 'text/event-stream' }],
    ['an empty event stream', { raw: [': hello\n\n', 'data: [DONE]\n\n'], contentType: 'text/event-stream' }],
    ['a chat', { raw: ['data: {"object":"chat.completion.chunk","choices":[]}\n\n'], contentType: 'text/event-stream' }],
    ['no stream at all', { body: { output: [] }, contentType: 'application/json' }],
  ])('that begins with %s fails as an ordinary answer', async (_name, script) => {
    await using house = await open(script)
    const answer = await house.plane.ask(PATH, { ...ASK, stream: true })
    expect([answer.status, await answer.json()]).toMatchObject([500, { error: { code: 500 } }])
  })

  test('that ends without an end is a failure', async () => {
    await using house = await open({ done: false })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(events.slice(-2).map(({ type }) => type)).toEqual(['response.failed', 'error'])
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', output: 3 }])
  })

  test('without usage is counted by what was delivered', async () => {
    await using house = await open({ usage: false })
    await (await house.plane.ask(PATH, { ...ASK, stream: true })).text()
    expect(house.plane.records).toMatchObject([{ ended: 'complete', counted: 'delivered', output: 3 }])
    expect(house.plane.records[0]?.input).toBeGreaterThan(0)
  })

  test('stops the engine when the client leaves, and is charged for what was made', async () => {
    await using house = await open({ holdAfter: 1 })
    const stream = await house.plane.openai().responses.create({ ...ASK, stream: true })
    for await (const event of stream) if (event.type === 'response.output_text.delta') break
    await house.engine.until('aborted')
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'client_left', output: 1, counted: 'delivered' }])
  })

  test('gets comments while the engine is silent; what fails then is said in its own words', async () => {
    await using house = await open(
      { firstTokenDelayMs: 0, holdAfter: 0, raw: [], contentType: 'text/event-stream' },
      { limits: { pingMs: 20 } },
    )
    const client = await house.plane.raw()
    client.post(PATH, JSON.stringify({ ...ASK, stream: true }))
    await client.until(/: ping/)
    house.engine.cut()
    const text = await client.until(/event: error/)
    expect(text.slice(text.indexOf('event:'))).toContain('response.failed')
    expect(text).toContain('"sequence_number":0')
  })

  test('ends cleanly where a budget ends it: what is open is closed, and nothing follows', async () => {
    const watchers: (() => void)[] = []
    const settled: number[] = []
    await using house = await open(
      { reasoning: ['Hm.'], tokens: ['Hello', ' world', '.'] },
      {
        rooms: {
          admit: () => ({
            ok: true,
            value: {
              headers: () => [],
              watch: (run) => void watchers.push(run),
              spend: (tokens) => {
                if (tokens >= 3) watchers[0]?.()
              },
              settle: (used) => void settled.push(used === undefined ? 0 : used.output),
            },
          }),
        },
      },
    )
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
    expect(events.slice(-4).map(({ type }) => type)).toEqual([
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.incomplete',
    ])
    expect(events.at(-1)?.response).toMatchObject({
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
      output: [
        { type: 'reasoning', status: 'completed' },
        { type: 'message', status: 'incomplete', content: [{ text: 'Hello world' }] },
      ],
      usage: { output_tokens: 3 },
    })
    expect(house.plane.records).toMatchObject([{ ended: 'budget', output: 3 }])
    expect(settled).toEqual([3])
  })

  test('is given again, and charged once, under one Idempotency-Key', async () => {
    await using house = await open()
    const ask = () => house.plane.ask(PATH, { ...ASK, stream: true }, { headers: { 'idempotency-key': 'k' } })
    const first = await (await ask()).text()
    const second = await ask()
    expect([second.headers.get('idempotent-replayed'), await second.text()]).toEqual(['true', first])
    expect(house.plane.records).toHaveLength(1)
  })
})

describe('the official SDK', () => {
  test('reads it whole and streamed, with its reasoning', async () => {
    await using house = await open({ reasoning: ['Hm.'] })
    const client = house.plane.openai()
    expect((await client.responses.create(ASK)).output_text).toBe('Hello world.')
    const streamed = await client.responses.stream(ASK).finalResponse()
    expect(streamed.output_text).toBe('Hello world.')
    expect(streamed.output[0]).toMatchObject({ type: 'reasoning', content: [{ text: 'Hm.' }] })
    expect(streamed.usage?.input_tokens).toBe(7)
    expect(house.engine.requests.map(({ path }) => path)).toEqual([PATH, PATH])
  })

  test('calls tools and sends back what they gave', async () => {
    await using house = await open({ toolCalls: CALLS })
    const client = house.plane.openai()
    const input: OpenAI.Responses.ResponseInput = [{ role: 'user', content: 'Hi' }]
    const asked = await client.responses.stream({ model: 'tiny-chat', input, tools: [TOOL] }).finalResponse()
    const [call] = asked.output.filter((item) => item.type === 'function_call')
    expect(call?.arguments).toBe('{"a": 1}')
    input.push(...(asked.output as OpenAI.Responses.ResponseInput))
    input.push({ type: 'function_call_output', call_id: call?.call_id ?? '', output: '7' })
    house.engine.play({})
    expect((await client.responses.create({ model: 'tiny-chat', input, tools: [TOOL] })).output_text).toBe('Hello world.')
    const sent = house.engine.requests[1]?.json as { input: unknown[] }
    expect(sent.input.slice(1)).toMatchObject([
      { type: 'function_call', call_id: 'call_1' },
      { type: 'function_call_output', output: '7' },
    ])
  })

  test('parses structured text', async () => {
    await using house = await open({ tokens: ['{"city":', '"Paris"}'] })
    const format = zodTextFormat(z.object({ city: z.string() }), 'place')
    const parsed = await house.plane.openai().responses.parse({ ...ASK, text: { format } })
    expect(parsed.output_parsed).toEqual({ city: 'Paris' })
    expect(house.sent()).toMatchObject({ text: { format: { type: 'json_schema', name: 'place', strict: true } } })
  })
})

test('LangChain reads it, whole and streamed', async () => {
  await using house = await open({ reasoning: ['Hm.'] })
  const chat = new ChatOpenAI({
    model: 'tiny-chat',
    apiKey: house.plane.key,
    configuration: { baseURL: `${house.plane.url}/v1` },
    useResponsesApi: true,
    maxRetries: 0,
  })
  expect((await chat.invoke('Hi')).text).toBe('Hello world.')
  let text = ''
  for await (const chunk of await chat.stream('Hi')) text += chunk.text
  expect(text).toBe('Hello world.')
  expect(house.engine.requests.map(({ path }) => path)).toEqual([PATH, PATH])
})
