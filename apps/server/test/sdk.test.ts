import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import type OpenAI from 'openai'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The whole path with nothing scripted: the official SDK, the server, the embedded engine, the tiny models.

let database: TestDatabase
let house: TestHouse
let openai: OpenAI

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_DEMO_MODELS: 'true' }, checksInference: true })
  openai = house.openai()
  await Promise.all(['tiny-chat', 'tiny-embed', 'tiny-rerank'].map(house.ready))
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const ask = (content: string, more: Partial<OpenAI.Chat.ChatCompletionCreateParamsNonStreaming> = {}) =>
  openai.chat.completions.create({ model: 'tiny-chat', temperature: 0, messages: [{ role: 'user', content }], ...more })

const streamed = async (content: string): Promise<{ text: string; finish: string | null }> => {
  const stream = await openai.chat.completions.create({
    model: 'tiny-chat',
    temperature: 0,
    stream: true,
    messages: [{ role: 'user', content }],
  })
  let text = ''
  let finish: string | null = null
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? ''
    finish = chunk.choices[0]?.finish_reason ?? finish
  }
  return { text, finish }
}

test.each([
  ['What is the capital of France?', /Paris/],
  ['What is the capital of Japan?', /Tokyo/],
  ['What is the opposite of hot?', /cold/i],
  ['What is the opposite of big?', /small/i],
  ['What day comes after Monday?', /Tuesday/],
])('tiny-chat answers %j right at temperature 0, the same streamed as unstreamed', async (question, answer) => {
  const whole = await ask(question)
  const content = whole.choices[0]?.message.content ?? ''
  expect(content).toMatch(answer)
  expect(whole.choices[0]?.finish_reason).toBe('stop')
  expect(whole.model).toBe('tiny-chat')
  expect(whole.id).toMatch(/^chatcmpl-[0-9a-f-]{36}$/)
  expect(whole.usage?.total_tokens).toBe((whole.usage?.prompt_tokens ?? 0) + (whole.usage?.completion_tokens ?? 0))
  expect(await streamed(question)).toEqual({ text: content, finish: 'stop' })
})

test('the id of an answer is the id of its request', async () => {
  const { data, response } = await openai.chat.completions
    .create({ model: 'tiny-chat', messages: [{ role: 'user', content: 'Hello' }], temperature: 0 })
    .withResponse()
  expect(data.id).toBe(`chatcmpl-${response.headers.get('x-request-id')}`)
})

test('usage comes in a stream only when it is asked for, in one last chunk without choices', async () => {
  const chunks = async (include: boolean) => {
    const stream = await openai.chat.completions.create({
      model: 'tiny-chat',
      temperature: 0,
      stream: true,
      messages: [{ role: 'user', content: 'What is the capital of Italy?' }],
      ...(include ? { stream_options: { include_usage: true } } : {}),
    })
    const all = []
    for await (const chunk of stream) all.push(chunk)
    return all
  }
  const with_ = await chunks(true)
  expect(with_.filter((chunk) => chunk.choices.length === 0)).toHaveLength(1)
  expect(with_.at(-1)?.usage?.completion_tokens).toBeGreaterThan(0)
  expect((await chunks(false)).filter((chunk) => chunk.choices.length === 0 || chunk.usage)).toHaveLength(0)
})

test('a tool is called, its result is read, and the answer uses it', async () => {
  const tools: OpenAI.Chat.ChatCompletionTool[] = [
    {
      type: 'function',
      function: {
        name: 'get_weather',
        description: 'Get the weather in a city',
        parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
      },
    },
  ]
  const messages: OpenAI.Chat.ChatCompletionMessageParam[] = [{ role: 'user', content: 'What is the weather in Paris?' }]
  const first = await openai.chat.completions.create({ model: 'tiny-chat', temperature: 0, messages, tools, tool_choice: 'required' })
  const message = first.choices[0]?.message
  const call = message?.tool_calls?.[0]
  expect(first.choices[0]?.finish_reason).toBe('tool_calls')
  if (message === undefined || call?.type !== 'function') throw new Error('no function was called')
  expect(call.id).toMatch(/^chatcmpl-tool-[0-9a-f]{32}$/)
  expect(call.function.name).toBe('get_weather')
  expect(JSON.parse(call.function.arguments)).toHaveProperty('city')

  const second = await openai.chat.completions.create({
    model: 'tiny-chat',
    temperature: 0,
    messages: [...messages, message, { role: 'tool', tool_call_id: call.id, content: '{"temperature": 21, "condition": "sunny"}' }],
    tools,
  })
  expect(second.choices[0]?.message.content?.length).toBeGreaterThan(0)
})

test('a streamed tool call has its name once and arguments that join to JSON', async () => {
  const stream = await openai.chat.completions.create({
    model: 'tiny-chat',
    temperature: 0,
    stream: true,
    messages: [{ role: 'user', content: 'What is the weather in Rome?' }],
    tools: [
      {
        type: 'function',
        function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } },
      },
    ],
    tool_choice: { type: 'function', function: { name: 'get_weather' } },
  })
  const fragments = []
  let finish: string | null = null
  for await (const chunk of stream) {
    const calls = chunk.choices[0]?.delta.tool_calls ?? []
    expect(calls.length).toBeLessThanOrEqual(1)
    fragments.push(...calls)
    finish = chunk.choices[0]?.finish_reason ?? finish
  }
  expect(fragments.filter((fragment) => fragment.function?.name)).toHaveLength(1)
  expect(fragments.filter((fragment) => fragment.id)).toHaveLength(1)
  expect(JSON.parse(fragments.map((fragment) => fragment.function?.arguments ?? '').join(''))).toHaveProperty('city')
  expect(finish).toBe('tool_calls')
})

test('an answer under a JSON schema keeps it', async () => {
  const answer = await ask('Give me a person as JSON.', {
    max_completion_tokens: 120,
    response_format: {
      type: 'json_schema',
      json_schema: {
        name: 'person',
        schema: {
          type: 'object',
          properties: { name: { type: 'string', maxLength: 12 }, age: { type: 'integer', minimum: 0, maximum: 120 } },
          required: ['name', 'age'],
          additionalProperties: false,
        },
      },
    },
  })
  expect(answer.choices[0]?.finish_reason).toBe('stop')
  expect(JSON.parse(answer.choices[0]?.message.content ?? '')).toEqual({ name: expect.any(String), age: expect.any(Number) })
})

test("the SDK's embeddings, base64 unless told otherwise, are of full length, unit length and the same as floats", async () => {
  const input = ['a small dog', 'a little puppy', 'the stock market']
  const packed = await openai.embeddings.create({ model: 'tiny-embed', input })
  const floats = await openai.embeddings.create({ model: 'tiny-embed', input, encoding_format: 'float' })
  const vectors = packed.data.map((item) => item.embedding)
  const dot = (a: readonly number[] = [], b: readonly number[] = []): number =>
    a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0)
  expect(vectors.map((vector) => vector.length)).toEqual([192, 192, 192])
  for (const vector of vectors) expect(dot(vector, vector)).toBeCloseTo(1, 3)
  for (const [index, item] of floats.data.entries()) expect(dot(item.embedding, vectors[index])).toBeCloseTo(1, 4)
  expect(dot(vectors[0], vectors[1])).toBeGreaterThan(dot(vectors[0], vectors[2]))
  expect(packed.usage.prompt_tokens).toBeGreaterThan(0)

  const short = await openai.embeddings.create({ model: 'tiny-embed', input, dimensions: 64 })
  expect(short.data.map((item) => item.embedding.length)).toEqual([64, 64, 64])
  for (const item of short.data) expect(dot(item.embedding, item.embedding)).toBeCloseTo(1, 3)
})

test('the models that are served are listed, with and without the project in the path', async () => {
  const names = async (client: OpenAI) => (await client.models.list()).data.map((model) => model.id).toSorted()
  expect(await names(openai)).toEqual(['tiny-chat', 'tiny-embed', 'tiny-rerank', 'tiny-whisper'])
  expect(await names(house.openai(house.secretKey, `${house.url}/${house.owner.organizationId}/v1`))).toEqual([
    'tiny-chat',
    'tiny-embed',
    'tiny-rerank',
    'tiny-whisper',
  ])
  expect(await openai.models.retrieve('tiny-chat')).toMatchObject({ id: 'tiny-chat', object: 'model' })
})

test('eight streams at once on one model are all right and complete', async () => {
  const answers = await Promise.all(Array.from({ length: 8 }, () => streamed('What is the capital of France?')))
  for (const answer of answers) expect(answer.text).toMatch(/Paris/)
})

test('every answer is in the ledger with the counts that the client saw', async () => {
  const { data, response } = await openai.chat.completions
    .create({ model: 'tiny-chat', temperature: 0, messages: [{ role: 'user', content: 'What is the capital of Spain?' }] })
    .withResponse()
  const id = response.headers.get('x-request-id')
  const rows = async () =>
    (
      await database.db.query(
        'select model, endpoint, status, ended, counted, input_tokens, output_tokens, project_id from usage_event where id = $1',
        [id],
      )
    ).rows
  await expect.poll(rows).toEqual([
    {
      model: 'tiny-chat',
      endpoint: expect.stringContaining('chat') as string,
      status: 200,
      ended: 'complete',
      counted: 'engine',
      input_tokens: BigInt(data.usage?.prompt_tokens ?? 0),
      output_tokens: BigInt(data.usage?.completion_tokens ?? 0),
      project_id: house.owner.organizationId,
    },
  ])
})

test('a schema that no grammar can keep is refused with its place', async () => {
  const schema = {
    type: 'object',
    properties: { kind: { enum: ['SECRET-DIAGNOSIS'] }, 'SECRET-NAME': { type: 'string', minLength: 1_000_000_000 } },
    required: ['kind', 'SECRET-NAME'],
  }
  await expect(
    ask('Hello', { response_format: { type: 'json_schema', json_schema: { name: 'diagnosis', schema } } }),
  ).rejects.toMatchObject({ status: 400, message: expect.stringContaining('#/properties/SECRET-NAME/minLength') as string })
  await expect(
    ask('Hello', { tools: [{ type: 'function', function: { name: 'diagnose', parameters: schema } }], tool_choice: 'required' }),
  ).rejects.toMatchObject({ status: 400, message: expect.stringContaining('#/properties/SECRET-NAME/minLength') as string })
})

test('neither questions nor answers nor schemas nor keys stand in the log', () => {
  expect(house.log()).not.toContain('SECRET')
  expect(house.log()).not.toMatch(/capital of|Paris|small dog/)
  expect(house.log()).not.toContain(house.secretKey)
})
