import { ChatOpenAI } from '@langchain/openai'
import { startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { ResponseObject } from '@parvis/wire/openai/responses'
import { eventReader } from '@parvis/wire/sse'
import OpenAI from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'

const PATH = '/v1/responses'
const ASK = { model: 'tiny-chat', input: 'Hi' }
const TOOL = {
  type: 'function' as const,
  name: 'get_x',
  parameters: { type: 'object', properties: { a: { type: 'number' } } },
  strict: true,
}
const CALLS = [
  { id: 'chatcmpl-tool-1', name: 'get_x', arguments: '{"a": 1}' },
  { id: 'chatcmpl-tool-2', name: 'get_x', arguments: '{"a": 22}' },
]

type Event = { type: string; sequence_number: number; response?: unknown; [key: string]: unknown }

const eventsOf = (text: string): Event[] =>
  eventReader()(text).map((event) => {
    const data = JSON.parse(event.data) as Event
    expect(event.name).toBe(data.type)
    return data
  })

const open = async (script: Script = {}, more: Partial<Parameters<typeof startDataPlane>[0]> = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, ...more })
  return {
    engine,
    plane,
    async [Symbol.asyncDispose]() {
      await plane.close()
      await engine.close()
    },
  }
}

const sentTo = (engine: { requests: readonly { json: unknown }[] }): Record<string, unknown> =>
  engine.requests[0]?.json as Record<string, unknown>

describe('the request', () => {
  test.each<[string, object, object]>([
    ['a string is the turn of a user', {}, { messages: [{ role: 'user', content: 'Hi' }] }],
    [
      'instructions and leading system messages are one system message',
      {
        instructions: 'Be brief.',
        input: [
          { role: 'developer', content: 'Be kind.' },
          { role: 'user', content: 'Hi' },
        ],
      },
      {
        messages: [
          { role: 'system', content: 'Be brief.\n\nBe kind.' },
          { role: 'user', content: 'Hi' },
        ],
      },
    ],
    [
      'a conversation with calls keeps its order; reasoning is left out',
      {
        input: [
          { role: 'user', content: [{ type: 'input_text', text: 'Hi' }] },
          { type: 'reasoning', id: 'rs_1', summary: [] },
          {
            type: 'message',
            id: 'msg_1',
            role: 'assistant',
            status: 'completed',
            content: [{ type: 'output_text', text: 'I look.', annotations: [] }],
          },
          { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}' },
          { type: 'function_call', call_id: 'b', name: 'g', arguments: '{"x":1}' },
          { type: 'function_call_output', call_id: 'a', output: '1' },
          { type: 'function_call_output', call_id: 'b', output: [{ type: 'input_text', text: '2' }] },
        ],
      },
      {
        messages: [
          { role: 'user', content: 'Hi' },
          {
            role: 'assistant',
            content: 'I look.',
            tool_calls: [
              { id: 'a', type: 'function', function: { name: 'f', arguments: '{}' } },
              { id: 'b', type: 'function', function: { name: 'g', arguments: '{"x":1}' } },
            ],
          },
          { role: 'tool', tool_call_id: 'a', content: '1' },
          { role: 'tool', tool_call_id: 'b', content: '2' },
        ],
      },
    ],
    [
      'settings have other names in a chat',
      { max_output_tokens: 12, temperature: 0.2, top_p: 0.7, reasoning: { effort: 'low' } },
      { max_completion_tokens: 12, temperature: 0.2, top_p: 0.7, reasoning_effort: 'low' },
    ],
    [
      'a schema gets its wrapper',
      { text: { format: { type: 'json_schema', name: 'N', schema: { type: 'object' }, strict: true } } },
      { response_format: { type: 'json_schema', json_schema: { name: 'N', schema: { type: 'object' }, strict: true } } },
    ],
    [
      'tools get theirs',
      { tools: [TOOL], tool_choice: { type: 'function', name: 'get_x' }, parallel_tool_calls: false },
      {
        tools: [{ type: 'function', function: { name: 'get_x', parameters: TOOL.parameters, strict: true } }],
        tool_choice: { type: 'function', function: { name: 'get_x' } },
        parallel_tool_calls: false,
      },
    ],
  ])('becomes a chat: %s', async (_name, fields, expected) => {
    await using house = await open()
    expect((await house.plane.ask(PATH, { ...ASK, ...fields })).status).toBe(200)
    expect(house.engine.requests[0]?.path).toBe('/v1/chat/completions')
    expect(sentTo(house.engine)).toMatchObject(expected)
  })

  test('leaves out what was not given, and what only OpenAI knows', async () => {
    await using house = await open()
    await house.plane.ask(PATH, {
      ...ASK,
      store: true,
      metadata: { a: 'b' },
      truncation: 'auto',
      include: [],
      user: 'u',
      tools: [],
      previous_response_id: null,
    })
    expect(Object.keys(sentTo(house.engine)).toSorted()).toEqual(['max_tokens', 'messages', 'model'])
  })

  test.each<[string, object, number, string]>([
    ['an earlier response', { previous_response_id: 'resp_1' }, 400, 'previous_response_id'],
    ['a stored conversation', { conversation: 'conv_1' }, 400, 'conversation'],
    ['a stored prompt', { prompt: { id: 'pmpt_1' } }, 400, 'prompt'],
    ['an answer to be fetched later', { background: true }, 400, 'background'],
    ['a built-in tool', { tools: [{ type: 'web_search' }] }, 400, 'tools[0].type'],
    ['a file', { input: [{ role: 'user', content: [{ type: 'input_file', file_id: 'file-1' }] }] }, 400, 'input[0].content[0].type'],
    [
      'an image by file',
      { input: [{ role: 'user', content: [{ type: 'input_image', file_id: 'f' }] }] },
      400,
      'input[0].content[0].image_url',
    ],
    ['an item that we do not keep', { input: [{ type: 'item_reference', id: 'msg_1' }] }, 400, 'input[0].type'],
    ['no input', { input: undefined }, 400, 'input'],
    ['an empty input', { input: [] }, 400, 'input'],
    ['a wrong type', { temperature: 'hot' }, 400, 'temperature'],
    ['more output than the model has', { max_output_tokens: 513 }, 416, 'max_output_tokens'],
    [
      'an image to a model without eyes',
      { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'data:image/png;base64,AA==' }] }] },
      400,
      'input',
    ],
    ['no model', { model: undefined }, 422, 'model'],
    ['an unknown model', { model: 'nobody' }, 422, 'model'],
    ['a model of another kind', { model: 'tiny-embed' }, 400, 'model'],
  ])('is refused with %s', async (_name, fields, status, param) => {
    await using house = await open()
    const answer = await house.plane.ask(PATH, { ...ASK, ...fields })
    const body = (await answer.json()) as { error: { code: number; param: string } }
    expect(answer.status).toBe(status)
    expect(body.error.code).toBe(status)
    expect(body.error.param).toMatch(new RegExp(`^${param.replaceAll(/[[\]]/g, '\\$&')}`))
    expect(house.engine.requests).toHaveLength(0)
    expect(house.plane.records).toHaveLength(0)
  })

  test('is refused by the name of its own field where the engine names that of a chat', async () => {
    await using house = await open({ status: 400, body: { error: { message: 'Too long', param: 'messages', code: 400 } } })
    const answer = await house.plane.ask(PATH, ASK)
    expect([answer.status, await answer.json()]).toMatchObject([400, { error: { message: 'Too long', param: 'input' } }])
  })

  test('is refused when it is too large to be written anew', async () => {
    await using house = await open()
    const answer = await house.plane.ask(PATH, { ...ASK, input: 'x'.repeat(33 * 1024 * 1024) })
    expect(answer.status).toBe(400)
  })
})

describe('the answer', () => {
  test('has every field of the contract', async () => {
    await using house = await open({ reasoning: ['Let me', ' think.'], usage: { prompt: 20, completion: 90, cached: 5, reasoning: 60 } })
    const given = { ...ASK, instructions: 'Be brief.', max_output_tokens: 100, metadata: { a: 'b' }, reasoning: { effort: 'low' } }
    const answer = await house.plane.ask(PATH, { ...given, tools: [TOOL], store: true, user: 'u' })
    const body = ResponseObject.parse(await answer.json())
    const hex = (answer.headers.get('x-request-id') ?? '').replaceAll('-', '')
    expect(body).toEqual({
      id: `resp_${hex}`,
      object: 'response',
      created_at: expect.any(Number),
      completed_at: expect.any(Number),
      status: 'completed',
      background: false,
      error: null,
      incomplete_details: null,
      instructions: 'Be brief.',
      max_output_tokens: 100,
      model: 'tiny-chat',
      output: [
        {
          type: 'reasoning',
          id: `rs_${hex}0000`,
          summary: [],
          content: [{ type: 'reasoning_text', text: 'Let me think.' }],
          status: 'completed',
        },
        {
          type: 'message',
          id: `msg_${hex}0001`,
          role: 'assistant',
          status: 'completed',
          content: [{ type: 'output_text', text: 'Hello world.', annotations: [], logprobs: [] }],
        },
      ],
      parallel_tool_calls: true,
      previous_response_id: null,
      reasoning: { effort: 'low', summary: null },
      store: false,
      temperature: null,
      text: { format: { type: 'text' } },
      tool_choice: 'auto',
      tools: [TOOL],
      top_logprobs: 0,
      top_p: null,
      user: 'u',
      truncation: 'disabled',
      metadata: { a: 'b' },
      usage: {
        input_tokens: 20,
        input_tokens_details: { cached_tokens: 5, cache_write_tokens: 0 },
        output_tokens: 90,
        output_tokens_details: { reasoning_tokens: 60 },
        total_tokens: 110,
      },
    })
    expect(body.created_at).toBeLessThanOrEqual(body.completed_at ?? 0)
    expect(house.plane.records).toMatchObject([{ endpoint: 'responses', input: 20, output: 90, cachedInput: 5, reasoning: 60 }])
  })

  test('is incomplete when the limit cut it', async () => {
    await using house = await open({ finishReason: 'length' })
    const body = ResponseObject.parse(await (await house.plane.ask(PATH, ASK)).json())
    expect(body).toMatchObject({ status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' }, completed_at: null })
    expect(body.output.at(-1)).toMatchObject({ type: 'message', status: 'incomplete' })
  })

  test('that cannot be read is refused', async () => {
    await using house = await open({ raw: ['{"choices":[{"message":{"content":tru}}]}'] })
    expect((await house.plane.ask(PATH, ASK)).status).toBe(500)
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', status: 500 }])
  })
})

describe('the stream', () => {
  test('has the events of the contract, in order, numbered without a gap', async () => {
    await using house = await open({ reasoning: ['Let', ' me'], toolCalls: CALLS, tokens: ['One', ' moment'] })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true, tools: [TOOL] })).text())
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
    const call = [
      'response.output_item.added',
      'response.function_call_arguments.delta',
      'response.function_call_arguments.delta',
      'response.function_call_arguments.done',
      'response.output_item.done',
    ]
    expect(events.map((event) => event.type)).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.reasoning_text.delta',
      'response.reasoning_text.delta',
      'response.reasoning_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      ...call,
      ...call,
      'response.completed',
    ])
  })

  test.each<[string, Script]>([
    ['words', {}],
    ['reasoning and words', { reasoning: ['a', 'b'] }],
    ['calls', { toolCalls: CALLS }],
    ['all of it', { reasoning: ['a'], tokens: ['b', 'é😀'], toolCalls: CALLS }],
    ['nothing', { tokens: [] }],
    ['a cut answer', { finishReason: 'length' }],
  ])('says the same as the whole answer: %s', async (_name, script) => {
    await using house = await open({ ...script, usage: { prompt: 7, completion: 5 } })
    const whole = ResponseObject.parse(await (await house.plane.ask(PATH, ASK)).json())
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    const last = ResponseObject.parse(events.at(-1)?.response)
    const same = (response: ResponseObject): unknown =>
      JSON.parse(
        JSON.stringify({ ...response, created_at: 0, completed_at: response.completed_at === null ? null : 0 }).replaceAll(
          response.id.slice('resp_'.length),
          '',
        ),
      )
    expect(same(last)).toEqual(same(whole))
    expect(events.at(-1)?.type).toBe(`response.${whole.status}`)
    // What the events said in passing is what stands at the end.
    expect(events.filter((event) => event.type === 'response.output_item.done').map((event) => event['item'])).toEqual(last.output)
    expect(ResponseObject.parse(events[0]?.response)).toMatchObject({ status: 'in_progress', output: [], usage: null })
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
    expect(client.received()).not.toContain('.done')
    expect(client.received()).not.toContain('response.completed')
    written()
    await client.until(/event: response.completed/)
  })

  test('fails in its own words', async () => {
    await using house = await open({ cutAfter: 2 })
    const events = eventsOf(await (await house.plane.ask(PATH, { ...ASK, stream: true })).text())
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
    const [failed, error] = events.slice(-2)
    expect(ResponseObject.parse(failed?.response)).toMatchObject({
      status: 'failed',
      error: { code: 'server_error' },
      output: [{ type: 'message', status: 'incomplete', content: [{ text: 'Hello world' }] }],
    })
    expect(failed?.type).toBe('response.failed')
    expect(error).toMatchObject({ type: 'error', code: 'server_error', param: null, error: { code: 500 } })
    expect(house.plane.records).toMatchObject([{ ended: 'engine_failed', output: 2 }])
  })

  test('fails as an ordinary answer while nothing has been sent', async () => {
    await using house = await open({ errorAfter: 0 })
    const answer = await house.plane.ask(PATH, { ...ASK, stream: true })
    expect(answer.status).toBe(500)
    expect(await answer.json()).toMatchObject({ error: { code: 500 } })
  })

  test('names the model as the catalogue does', async () => {
    await using house = await open({ model: 'Org/remote' }, { replica: { remoteModel: 'Org/remote' } })
    expect(sentTo(house.engine)).toBeUndefined()
    const text = await (await house.plane.ask(PATH, { ...ASK, stream: true })).text()
    expect(text).not.toContain('Org/remote')
    expect(sentTo(house.engine)['model']).toBe('Org/remote')
  })

  test('stops the engine when the client leaves', async () => {
    await using house = await open({ holdAfter: 1 })
    const stream = await house.plane.openai().responses.create({ ...ASK, stream: true })
    for await (const event of stream) if (event.type === 'response.output_text.delta') break
    await house.engine.until('aborted')
    await expect.poll(() => house.plane.records).toMatchObject([{ ended: 'client_left', output: 1 }])
  })
})

describe('the official SDK', () => {
  test('creates a response, whole and streamed', async () => {
    await using house = await open({ reasoning: ['Hm.'] })
    const client = house.plane.openai()
    const whole = await client.responses.create(ASK)
    expect(whole.output_text).toBe('Hello world.')
    const streamed = await client.responses.stream(ASK).finalResponse()
    expect(streamed.output_text).toBe('Hello world.')
    expect(streamed.output[0]).toMatchObject({ type: 'reasoning', content: [{ text: 'Hm.' }] })
    expect(streamed.usage?.input_tokens).toBe(7)
  })

  test('calls tools and sends back what they gave', async () => {
    await using house = await open({ toolCalls: CALLS })
    const client = house.plane.openai()
    const input: OpenAI.Responses.ResponseInput = [{ role: 'user', content: 'Hi' }]
    const asked = await client.responses.stream({ model: 'tiny-chat', input, tools: [TOOL] }).finalResponse()
    const calls = asked.output.filter((item) => item.type === 'function_call')
    expect(calls.map((call) => call.arguments)).toEqual(['{"a": 1}', '{"a": 22}'])
    input.push(
      ...(asked.output as OpenAI.Responses.ResponseInput),
      ...calls.map((call) => ({ type: 'function_call_output' as const, call_id: call.call_id, output: '7' })),
    )
    house.engine.play({})
    expect((await client.responses.create({ model: 'tiny-chat', input, tools: [TOOL] })).output_text).toBe('Hello world.')
    expect(house.engine.requests[1]?.json).toMatchObject({
      messages: [
        { role: 'user' },
        { role: 'assistant', content: null, tool_calls: [{ id: 'chatcmpl-tool-1' }, { id: 'chatcmpl-tool-2' }] },
        { role: 'tool', tool_call_id: 'chatcmpl-tool-1', content: '7' },
        { role: 'tool', tool_call_id: 'chatcmpl-tool-2', content: '7' },
      ],
    })
  })

  test('parses structured text', async () => {
    await using house = await open({ tokens: ['{"city":', '"Paris"}'] })
    const format = zodTextFormat(z.object({ city: z.string() }), 'place')
    const parsed = await house.plane.openai().responses.parse({ ...ASK, text: { format } })
    expect(parsed.output_parsed).toEqual({ city: 'Paris' })
    expect(sentTo(house.engine)).toMatchObject({ response_format: { type: 'json_schema', json_schema: { name: 'place', strict: true } } })
  })

  test('raises what goes wrong, before and in the middle of a stream', async () => {
    await using house = await open({ cutAfter: 1 })
    const client = house.plane.openai()
    await expect(client.responses.create({ ...ASK, previous_response_id: 'resp_1' })).rejects.toBeInstanceOf(OpenAI.BadRequestError)
    const reading = async (): Promise<void> => {
      for await (const _ of await client.responses.create({ ...ASK, stream: true }));
    }
    await expect(reading()).rejects.toBeInstanceOf(OpenAI.APIError)
  })
})

describe('LangChain on the Responses API', () => {
  const langchain = (house: { plane: { url: string; key: string } }): ChatOpenAI =>
    new ChatOpenAI({
      model: 'tiny-chat',
      apiKey: house.plane.key,
      configuration: { baseURL: `${house.plane.url}/v1` },
      useResponsesApi: true,
      maxRetries: 0,
    })

  test('reads words and usage, whole and streamed', async () => {
    await using house = await open({ reasoning: ['Hm.'] })
    const whole = await langchain(house).invoke('Hi')
    expect(whole.text).toBe('Hello world.')
    expect(whole.usage_metadata).toMatchObject({ input_tokens: 7, output_tokens: 4 })
    let text = ''
    for await (const chunk of await langchain(house).stream('Hi')) text += chunk.text
    expect(text).toBe('Hello world.')
    expect(house.engine.requests.map((request) => request.path)).toEqual(['/v1/chat/completions', '/v1/chat/completions'])
    expect(house.plane.records.map((record) => record.endpoint)).toEqual(['responses', 'responses'])
  })

  test('reads calls', async () => {
    await using house = await open({ toolCalls: CALLS })
    const { type, name, parameters } = TOOL
    const asked = await langchain(house)
      .bindTools([{ type, function: { name, parameters } }])
      .invoke('Hi')
    expect(asked.tool_calls).toMatchObject([
      { name: 'get_x', args: { a: 1 } },
      { name: 'get_x', args: { a: 22 } },
    ])
  })
})
