import Anthropic from '@anthropic-ai/sdk'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { MessageAnswer, MessagesError } from '@parvis/wire/anthropic/messages'
import { eventReader } from '@parvis/wire/sse'
import { describe, expect, test } from 'vitest'

const PATH = '/v1/messages'
const ASK = { model: 'tiny-chat', max_tokens: 100, messages: [{ role: 'user' as const, content: 'Hi' }] }
const TOOL = { name: 'get_x', description: 'Gets x', input_schema: { type: 'object' as const, properties: { a: { type: 'number' } } } }
const CALLS = [
  { id: 'chatcmpl-tool-1', name: 'get_x', arguments: '{"a": 1}' },
  { id: 'chatcmpl-tool-2', name: 'get_x', arguments: '{"a": 22}' },
]
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='

const SEEING = aModel({ name: 'eyes', features: { tools: true, structuredOutput: true, reasoning: true, vision: true } })
const MODELS = [aModel(), SEEING, aModel({ name: 'tiny-embed', type: 'embedding', maxOutputTokens: null, dimensions: 8 })]

const open = async (script: Script = {}, more: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, models: MODELS, ...more })
  return {
    engine,
    plane,
    sdk: (options: { authToken?: string } = {}) =>
      new Anthropic({
        baseURL: plane.url,
        maxRetries: 0,
        ...(options.authToken === undefined ? { apiKey: plane.key } : { ...options, apiKey: null }),
      }),
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

const sentTo = (engine: { requests: readonly { json: unknown }[] }): Record<string, unknown> =>
  engine.requests.at(-1)?.json as Record<string, unknown>

type Event = { type: string; [key: string]: unknown }
const eventsOf = (text: string): Event[] =>
  eventReader()(text).map((event) => {
    const data = JSON.parse(event.data) as Event
    expect(event.name).toBe(data.type)
    return data
  })

describe('the request', () => {
  test.each<[string, object, object]>([
    [
      'words and a system prompt in blocks',
      {
        system: [
          { type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral' } },
          { type: 'text', text: 'Be kind.' },
        ],
        messages: [{ role: 'user', content: [{ type: 'text', text: 'Hi', cache_control: { type: 'ephemeral' } }] }],
      },
      {
        messages: [
          { role: 'system', content: 'Be brief.\n\nBe kind.' },
          { role: 'user', content: 'Hi' },
        ],
      },
    ],
    [
      'settings by other names',
      { stop_sequences: ['END'], temperature: 0.3, top_p: 0.9, top_k: 40, metadata: { user_id: 'u' } },
      { max_completion_tokens: 100, stop: ['END'], temperature: 0.3, top_p: 0.9, top_k: 40 },
    ],
    [
      'a conversation with calls and their results, also images',
      {
        model: 'eyes',
        messages: [
          { role: 'user', content: 'Look' },
          {
            role: 'assistant',
            content: [
              { type: 'thinking', thinking: 'Hm', signature: '' },
              { type: 'text', text: 'I look.' },
              { type: 'tool_use', id: 'a', name: 'get_x', input: { a: 1 } },
              { type: 'tool_use', id: 'b', name: 'get_x', input: {} },
            ],
          },
          {
            role: 'user',
            content: [
              {
                type: 'tool_result',
                tool_use_id: 'a',
                content: [
                  { type: 'text', text: 'seen' },
                  { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PIXEL } },
                ],
              },
              { type: 'tool_result', tool_use_id: 'b', content: 'broken', is_error: true },
              { type: 'text', text: 'Go on' },
            ],
          },
        ],
      },
      {
        messages: [
          { role: 'user', content: 'Look' },
          {
            role: 'assistant',
            content: 'I look.',
            tool_calls: [
              { id: 'a', type: 'function', function: { name: 'get_x', arguments: '{"a":1}' } },
              { id: 'b', type: 'function', function: { name: 'get_x', arguments: '{}' } },
            ],
          },
          { role: 'tool', tool_call_id: 'a', content: 'seen' },
          { role: 'tool', tool_call_id: 'b', content: 'Error: broken' },
          {
            role: 'user',
            content: [
              { type: 'image_url', image_url: { url: `data:image/png;base64,${PIXEL}` } },
              { type: 'text', text: 'Go on' },
            ],
          },
        ],
      },
    ],
    [
      'a document of plain text is text',
      {
        messages: [
          { role: 'user', content: [{ type: 'document', title: 'T', source: { type: 'text', media_type: 'text/plain', data: 'words' } }] },
        ],
      },
      { messages: [{ role: 'user', content: 'T\n\nwords' }] },
    ],
    [
      'tools, and which of them',
      { tools: [TOOL], tool_choice: { type: 'any', disable_parallel_tool_use: true } },
      {
        tools: [{ type: 'function', function: { name: 'get_x', description: 'Gets x', parameters: TOOL.input_schema } }],
        tool_choice: 'required',
        parallel_tool_calls: false,
      },
    ],
    [
      'one tool by name',
      { tools: [TOOL], tool_choice: { type: 'tool', name: 'get_x' } },
      { tool_choice: { type: 'function', function: { name: 'get_x' } } },
    ],
    [
      'a schema for the answer',
      { output_config: { format: { type: 'json_schema', schema: { type: 'object' } } } },
      { response_format: { type: 'json_schema', json_schema: { schema: { type: 'object' } } } },
    ],
    ['no thinking', { model: 'eyes', thinking: { type: 'disabled' } }, { reasoning_effort: 'none' }],
    ['a little thinking', { model: 'eyes', thinking: { type: 'enabled', budget_tokens: 1024 } }, { reasoning_effort: 'low' }],
    ['much thinking', { model: 'eyes', thinking: { type: 'enabled', budget_tokens: 32_000 } }, { reasoning_effort: 'high' }],
    ['an effort', { model: 'eyes', thinking: { type: 'adaptive' }, output_config: { effort: 'medium' } }, { reasoning_effort: 'medium' }],
  ])('becomes a chat: %s', async (_name, fields, expected) => {
    await using house = await open()
    const answer = await house.plane.ask(PATH, { ...ASK, ...fields })
    expect(await answer.json()).toMatchObject({ type: 'message' })
    expect(sentTo(house.engine)).toMatchObject(expected)
  })

  test('says nothing of thinking to a model that does not', async () => {
    await using house = await open()
    await house.plane.ask(PATH, { ...ASK, thinking: { type: 'disabled' } })
    expect(Object.keys(sentTo(house.engine)).toSorted()).toEqual(['max_completion_tokens', 'messages', 'model'])
  })

  test.each<[string, object, number, string, string]>([
    ['no limit', { max_tokens: undefined }, 400, 'invalid_request_error', 'max_tokens'],
    ['a limit above the model’s', { max_tokens: 513 }, 400, 'invalid_request_error', 'max_tokens'],
    [
      'a tool that we would have to run',
      { tools: [{ type: 'web_search_20250305', name: 'web_search' }] },
      400,
      'invalid_request_error',
      'tools[0].type',
    ],
    [
      'a document to be taken apart',
      { messages: [{ role: 'user', content: [{ type: 'document', source: { type: 'url', url: 'http://a' } }] }] },
      400,
      'invalid_request_error',
      'plain text',
    ],
    [
      'a file',
      { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'file', file_id: 'f' } }] }] },
      400,
      'invalid_request_error',
      'source',
    ],
    [
      'an image to a model without eyes',
      { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'base64', media_type: 'image/png', data: PIXEL } }] }] },
      400,
      'invalid_request_error',
      'image',
    ],
    ['an unknown model', { model: 'nobody' }, 404, 'not_found_error', 'nobody'],
    ['no model', { model: undefined }, 400, 'invalid_request_error', 'model'],
    ['a model of another kind', { model: 'tiny-embed' }, 400, 'invalid_request_error', '/v1/messages'],
  ])('is refused in Anthropic’s words with %s', async (_name, fields, status, type, said) => {
    await using house = await open()
    const answer = await house.plane.ask(PATH, { ...ASK, ...fields })
    const body = MessagesError.parse(await answer.json())
    expect(answer.status).toBe(status)
    expect(body.error.type).toBe(type)
    expect(body.error.message).toContain(said)
    expect(body).toMatchObject({ type: 'error', request_id: answer.headers.get('request-id') })
    expect(house.engine.requests).toHaveLength(0)
  })

  test.each<[string, Script, number, string]>([
    ['busy', { status: 503 }, 529, 'overloaded_error'],
    ['broken', { status: 500 }, 500, 'api_error'],
    ['unwilling', { status: 400 }, 400, 'invalid_request_error'],
  ])('fails in Anthropic’s words when the engine is %s', async (_name, script, status, type) => {
    await using house = await open(script)
    const answer = await house.plane.ask(PATH, ASK)
    expect(answer.status).toBe(status)
    expect(MessagesError.parse(await answer.json()).error.type).toBe(type)
  })
})

describe('the key', () => {
  const body = JSON.stringify(ASK)
  const call = (url: string, headers: Record<string, string>): Promise<Response> =>
    fetch(url, { method: 'POST', body, headers: { 'content-type': 'application/json', ...headers } })

  test('may come as x-api-key, here and nowhere else', async () => {
    await using house = await open()
    const key = { 'x-api-key': house.plane.key }
    expect((await call(`${house.plane.url}${PATH}`, key)).status).toBe(200)
    expect((await call(`${house.plane.url}/${house.plane.projectId}/v1/messages`, key)).status).toBe(200)
    expect((await call(`${house.plane.url}/v1/chat/completions`, key)).status).toBe(401)
    expect((await fetch(`${house.plane.url}/v1/models`, { headers: key })).status).toBe(401)
  })

  test('may come as a bearer, which counts where both are sent', async () => {
    await using house = await open()
    const url = `${house.plane.url}${PATH}`
    expect((await call(url, { authorization: `Bearer ${house.plane.key}`, 'x-api-key': 'other' })).status).toBe(200)
    expect((await call(url, { authorization: 'Bearer other', 'x-api-key': house.plane.key })).status).toBe(403)
  })

  test('that is missing or wrong is refused in Anthropic’s words', async () => {
    await using house = await open()
    const missing = await call(`${house.plane.url}${PATH}`, {})
    expect([missing.status, MessagesError.parse(await missing.json()).error.type]).toEqual([401, 'authentication_error'])
    const wrong = await call(`${house.plane.url}${PATH}`, { 'x-api-key': '00000000-0000-4000-8000-000000000000' })
    expect([wrong.status, MessagesError.parse(await wrong.json()).error.type]).toEqual([403, 'permission_error'])
  })
})

describe('the answer', () => {
  test('has every field of a message', async () => {
    await using house = await open({
      reasoning: ['Hm.'],
      toolCalls: CALLS.slice(0, 1),
      tokens: ['I look.'],
      usage: { prompt: 20, completion: 9, cached: 5 },
    })
    const answer = await house.plane.ask(PATH, ASK)
    expect(MessageAnswer.parse(await answer.json())).toEqual({
      id: `msg_${(answer.headers.get('request-id') ?? '').replaceAll('-', '')}`,
      type: 'message',
      role: 'assistant',
      model: 'tiny-chat',
      content: [
        { type: 'thinking', thinking: 'Hm.', signature: '' },
        { type: 'text', text: 'I look.', citations: null },
        { type: 'tool_use', id: 'chatcmpl-tool-1', name: 'get_x', input: { a: 1 } },
      ],
      stop_reason: 'tool_use',
      stop_sequence: null,
      usage: { input_tokens: 15, cache_creation_input_tokens: 0, cache_read_input_tokens: 5, output_tokens: 9 },
    })
    expect(house.plane.records).toMatchObject([{ endpoint: 'messages', input: 20, cachedInput: 5, output: 9 }])
  })

  test.each<[string, Script, object]>([
    ['at its end', {}, { stop_reason: 'end_turn', stop_sequence: null }],
    ['at the limit', { finishReason: 'length' }, { stop_reason: 'max_tokens', stop_sequence: null }],
    [
      'at a text of the client’s',
      { body: { choices: [{ message: { content: 'a' }, finish_reason: 'stop', stop_reason: 'END' }] } },
      { stop_reason: 'stop_sequence', stop_sequence: 'END' },
    ],
    ['at a filter', { finishReason: 'content_filter' }, { stop_reason: 'refusal' }],
  ])('says why it stopped: %s', async (_name, script, expected) => {
    await using house = await open(script)
    expect(await (await house.plane.ask(PATH, { ...ASK, stop_sequences: ['END'] })).json()).toMatchObject(expected)
  })
})

describe('the stream', () => {
  test('has the events of a message, in order', async () => {
    await using house = await open({
      reasoning: ['Hm.'],
      toolCalls: CALLS.slice(0, 1),
      tokens: ['I', ' look'],
      usage: { prompt: 20, completion: 9 },
    })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true, tools: [TOOL] })).text())
    expect(events).toMatchObject([
      { type: 'message_start', message: { content: [], stop_reason: null, usage: { output_tokens: 0 } } },
      { type: 'ping' },
      { type: 'content_block_start', index: 0, content_block: { type: 'thinking', thinking: '' } },
      { type: 'content_block_delta', index: 0, delta: { type: 'thinking_delta', thinking: 'Hm.' } },
      { type: 'content_block_stop', index: 0 },
      { type: 'content_block_start', index: 1, content_block: { type: 'text', text: '' } },
      { type: 'content_block_delta', index: 1, delta: { type: 'text_delta', text: 'I' } },
      { type: 'content_block_delta', index: 1, delta: { type: 'text_delta', text: ' look' } },
      { type: 'content_block_stop', index: 1 },
      { type: 'content_block_start', index: 2, content_block: { type: 'tool_use', id: 'chatcmpl-tool-1', name: 'get_x', input: {} } },
      { type: 'content_block_delta', index: 2, delta: { type: 'input_json_delta', partial_json: '{"a"' } },
      { type: 'content_block_delta', index: 2, delta: { type: 'input_json_delta', partial_json: ': 1}' } },
      { type: 'content_block_stop', index: 2 },
      {
        type: 'message_delta',
        delta: { stop_reason: 'tool_use', stop_sequence: null },
        usage: { input_tokens: 20, output_tokens: 9, cache_read_input_tokens: 0 },
      },
      { type: 'message_stop' },
    ])
    expect(events).toHaveLength(15)
  })

  test('turns signs of life into pings', async () => {
    await using house = await open({ comments: true })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(events.filter((event) => event.type === 'ping')).toHaveLength(4)
  })

  test('ends only when its usage is on disk', async () => {
    let written = (): void => {}
    const onDisk = new Promise<void>((resolve) => {
      written = resolve
    })
    await using house = await open({}, { rooms: { record: () => onDisk } })
    const client = await house.plane.raw()
    client.post(PATH, JSON.stringify({ ...ASK, stream: true }))
    await client.until(/world/)
    await house.engine.until('answered')
    expect(client.received()).not.toMatch(/content_block_stop|message_delta|message_stop/)
    written()
    await client.until(/event: message_stop/)
  })

  test('fails in Anthropic’s words', async () => {
    await using house = await open({ cutAfter: 2 })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(MessagesError.parse(events.at(-1)).error.type).toBe('api_error')
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', output: 2 }])
  })

  test('does not end when its usage cannot be written', async () => {
    await using house = await open({}, { rooms: { record: () => Promise.reject(new Error('the disk is full')) } })
    const text = await (await house.plane.ask(PATH, { ...ASK, stream: true })).text()
    expect(text).not.toContain('message_stop')
    expect(eventsOf(text).at(-1)?.type).toBe('error')
  })
})

describe('the official SDK', () => {
  const asking = { ...ASK, tools: [TOOL] }

  test.each<[string, Script]>([
    ['words', {}],
    ['thoughts and words', { reasoning: ['a', 'b'] }],
    ['calls', { toolCalls: CALLS }],
    ['all of it', { reasoning: ['a'], tokens: ['b', 'é😀'], toolCalls: CALLS }],
    ['a cut answer', { finishReason: 'length' }],
  ])('reads the same streamed and whole: %s', async (_name, script) => {
    await using house = await open({ ...script, usage: { prompt: 7, completion: 5, cached: 2 } })
    const whole = await house.sdk().messages.create(asking)
    const streamed = await house.sdk().messages.stream(asking).finalMessage()
    const { parsed_output: _, ...same } = streamed
    expect({ ...same, id: '' }).toEqual({ ...whole, id: '' })
  })

  test('calls tools and sends back what they gave', async () => {
    await using house = await open({ toolCalls: CALLS })
    const first = await house.sdk().messages.stream(asking).finalMessage()
    expect(first.stop_reason).toBe('tool_use')
    const results = first.content
      .filter((block) => block.type === 'tool_use')
      .map((block) => ({ type: 'tool_result' as const, tool_use_id: block.id, content: JSON.stringify(block.input) }))
    house.engine.play({})
    const last = await house.sdk().messages.create({
      ...asking,
      messages: [...ASK.messages, { role: 'assistant', content: first.content }, { role: 'user', content: results }],
    })
    expect(last.content).toMatchObject([{ type: 'text', text: 'Hello world.' }])
    expect(sentTo(house.engine)).toMatchObject({
      messages: [{ role: 'user' }, { role: 'assistant' }, { role: 'tool', content: '{"a":1}' }, { role: 'tool', content: '{"a":22}' }],
    })
  })

  test('sends images, and takes a bearer', async () => {
    await using house = await open()
    const image = { type: 'image' as const, source: { type: 'base64' as const, media_type: 'image/png' as const, data: PIXEL } }
    const answer = await house.sdk({ authToken: house.plane.key }).messages.create({
      ...ASK,
      model: 'eyes',
      messages: [{ role: 'user', content: [image, { type: 'text', text: 'What is it?' }] }],
    })
    expect(answer.content).toMatchObject([{ text: 'Hello world.' }])
    expect(answer._request_id).toBe(house.plane.records[0]?.id)
  })

  test('raises the classes that its users catch', async () => {
    await using house = await open({ cutAfter: 1 })
    const sdk = house.sdk()
    await expect(sdk.messages.create({ ...ASK, model: 'nobody' })).rejects.toBeInstanceOf(Anthropic.NotFoundError)
    await expect(sdk.messages.create({ ...ASK, max_tokens: 9999 })).rejects.toBeInstanceOf(Anthropic.BadRequestError)
    await expect(sdk.messages.stream(ASK).finalMessage()).rejects.toMatchObject({ type: 'api_error' })
  })
})
