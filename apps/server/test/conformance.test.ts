import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { dataUrl, gif, mp3, png, wav } from '@parvis/testkit/media'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { eventReader } from '@parvis/wire/sse'
import OpenAI from 'openai'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { bufferToBody } from '../src/inference/body.ts'
import { chat as chatEndpoint } from '../src/inference/endpoints/chat.ts'

// The conformance checks of the data-plane contract, section 20, each by its number: the real engine where the model matters, and a
// scripted one where what goes over the wire does. Below them the limits of section 16; what section 17 tells of is in
// conformance-quirks.test.ts.

let database: TestDatabase
let engine: ScriptedEngine
let house: TestHouse

const CHAT = '/v1/chat/completions'
const STRANGER = '11111111-2222-4333-8444-555555555555'
const FEATURES = { tools: true, structuredOutput: true, reasoning: false, vision: false }

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine()
  house = await startHouse({ database, settings: { PARVIS_DEMO_MODELS: 'true' } })
  await serveScripted(house, engine, { name: 'plain' })
  await serveScripted(house, engine, { name: 'mistral-like', rules: { alternatingRoles: true } })
  await serveScripted(house, engine, {
    name: 'pixtral-like',
    features: { ...FEATURES, vision: true },
    rules: { maxImages: 12, imageTokenPx: 16, imageMaxPx: 1024 },
  })
  await serveScripted(house, engine, { name: 'voxtral-like', contextTokens: 32_000, rules: { audioInChat: true } })
  await serveScripted(house, engine, {
    name: 'thinking',
    features: { ...FEATURES, reasoning: true },
    rules: { reasoningEfforts: ['none', 'low', 'high'] },
  })
  await serveScripted(house, engine, {
    name: 'always-thinking',
    features: { ...FEATURES, reasoning: true },
    rules: { reasoningEfforts: ['low', 'medium', 'high'] },
  })
  await serveScripted(house, engine, {
    name: 'matryoshka',
    type: 'embedding',
    features: { tools: false, structuredOutput: false, reasoning: false, vision: false },
    maxOutputTokens: null,
    dimensions: 4096,
    rules: { minDimensions: 32 },
  })
  await Promise.all(['tiny-chat', 'tiny-embed', 'tiny-rerank', 'tiny-whisper'].map(house.ready))
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

beforeEach(() => engine.play({}))

const user = (content: unknown) => [{ role: 'user', content }]
const ask = (model: string, more: object = {}) => ({ model, messages: user('What is the capital of France?'), ...more })
type Answer = Awaited<ReturnType<TestHouse['call']>>
const errorOf = (answer: Answer): { message: string; code: number; type: string; param: string | null } =>
  (answer.json() as { error: { message: string; code: number; type: string; param: string | null } }).error

/** What the scripted engine got last. */
const lastAsked = (): Record<string, unknown> => (engine.requests.at(-1)?.json ?? {}) as Record<string, unknown>

/** Everything that a stream says, event by event. */
const eventsOf = (text: string): Record<string, unknown>[] =>
  text
    .split('\n\n')
    .filter((event) => event.startsWith('data: ') && event !== 'data: [DONE]')
    .map((event) => JSON.parse(event.slice('data: '.length)) as Record<string, unknown>)

test('1. no key is 401 and a stranger’s is 403, both with a nested error and a number for a code', async () => {
  for (const [key, status] of [
    [null, 401],
    [STRANGER, 403],
  ] as const) {
    const answer = await house.call(CHAT, { body: ask('plain'), key })
    expect(answer.status).toBe(status)
    expect(errorOf(answer).code).toBe(status)
    expect(Object.keys(answer.json() as object)).toEqual(['error'])
  }
})

test('2. the models are the same on the short form and on the form of the default project', async () => {
  const short = await house.call('/v1/models')
  const long = await house.call(`/${house.owner.organizationId}/v1/models`)
  expect(short.status).toBe(200)
  expect(long.text).toBe(short.text)
})

test('2. a key that is limited to a project is 403 on the short form and 200 on the form of that project', async () => {
  const manage = async (path: string, body: object): Promise<Record<string, unknown>> =>
    (await house.call(path, { body, key: null, headers: { 'x-auth-token': house.secretKey } })).json() as Record<string, unknown>
  const project = String((await manage('/account/v3/projects', { name: 'p' }))['id'])
  const { id: application_id } = await manage('/iam/v1alpha1/applications', { name: 'a' })
  const rules = [{ permission_set_names: ['GenerativeApisModelAccess'], project_ids: [project] }]
  await manage('/iam/v1alpha1/policies', { name: 'only there', application_id, rules })
  const key = String((await manage('/iam/v1alpha1/api-keys', { application_id }))['secret_key'])
  await until('the key is known', async () => (await house.call(`/${project}/v1/models`, { key })).status === 200)
  for (const [path, status] of [
    ['/v1/models', 403],
    [CHAT, 403],
    [`/${project}${CHAT}`, 200],
    [`/${house.owner.organizationId}${CHAT}`, 403],
  ] as const) {
    const answer = await house.call(path, { key, ...(path.endsWith('models') ? {} : { body: ask('plain') }) })
    expect([path, answer.status]).toEqual([path, status])
    if (status === 403) expect(errorOf(answer).message).toContain('Insufficient permissions to access the resource')
  }
})

test('3. an unknown path is 404, an unknown model 422, no model 422, half a body 400', async () => {
  const statusOf = async (path: string, body: unknown) => (await house.call(path, { body })).status
  expect(await statusOf('/v1/nothing', ask('plain'))).toBe(404)
  expect(await statusOf(CHAT, ask('nothing'))).toBe(422)
  expect(await statusOf(CHAT, { messages: user('x') })).toBe(422)
  expect(await statusOf(CHAT, '{"model":')).toBe(400)
})

test('4. one token above the maximum of output is 416, the maximum itself is 200', async () => {
  for (const name of ['max_completion_tokens', 'max_tokens']) {
    const above = await house.call(CHAT, { body: ask('plain', { [name]: 257 }) })
    expect(above.status).toBe(416)
    expect(errorOf(above).message).toMatch(/max_completion_tokens is limited for this model.* 256\b/)
    expect((await house.call(CHAT, { body: ask('plain', { [name]: 256 }) })).status).toBe(200)
  }
})

test('5. an input beyond the context is 400 and names both numbers; so is input and output together', async () => {
  const long = await house.call(CHAT, { body: { model: 'tiny-chat', messages: user('word '.repeat(4_000)) } })
  expect(long.status).toBe(400)
  expect(errorOf(long).message).toMatch(/maximum context window is 2048 tokens; \d{4,}/)
  const together = await house.call(CHAT, { body: { model: 'tiny-chat', max_tokens: 512, messages: user('word '.repeat(1_700)) } })
  expect(together.status).toBe(400)
  expect(errorOf(together).message).toMatch(/maximum context window is 2048 tokens; \d{4,}/)
})

test('6. an unknown field is ignored', async () => {
  expect((await house.call(CHAT, { body: ask('plain', { format: { type: 'json_schema' } }) })).status).toBe(200)
})

test('7. two turns of a user in a row are refused, in the documented words, by the models that insist; others take them', async () => {
  const messages = [...user('a'), ...user('b')]
  const refused = await house.call(CHAT, { body: { model: 'mistral-like', messages } })
  expect(refused.status).toBe(400)
  expect(refused.json()).toEqual({
    error: {
      message: 'After the optional system message, conversation roles must alternate user/assistant/user/assistant/...',
      type: 'BadRequestError',
      param: null,
      code: 400,
    },
  })
  expect((await house.call(CHAT, { body: { model: 'plain', messages } })).status).toBe(200)
})

test('8. a stream says what the whole answer says, ends with [DONE], and has exactly one chunk of usage when asked', async () => {
  const asked = ask('tiny-chat', { temperature: 0, seed: 7 })
  const whole = (await house.call(CHAT, { body: asked })).json() as OpenAI.ChatCompletion
  for (const include of [false, true]) {
    const streamed = await house.call(CHAT, {
      body: { ...asked, stream: true, ...(include ? { stream_options: { include_usage: true } } : {}) },
    })
    expect(streamed.headers.get('content-type')).toMatch(/^text\/event-stream/)
    expect(streamed.text.endsWith('data: [DONE]\n\n')).toBe(true)
    const chunks = eventsOf(streamed.text) as unknown as OpenAI.ChatCompletionChunk[]
    expect(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('')).toBe(whole.choices[0]?.message.content)
    expect(chunks.filter((chunk) => chunk.choices.length === 0)).toHaveLength(include ? 1 : 0)
    expect(new Set(chunks.filter((chunk) => chunk.choices.length > 0).map((chunk) => chunk.usage))).toEqual(
      new Set([include ? null : undefined]),
    )
    expect(new Set(chunks.map((chunk) => `${chunk.id} ${chunk.created} ${chunk.model}`)).size).toBe(1)
  }
})

test('9. a streamed call of a tool has its id and its name once, arguments that join to JSON, and the finish reason tool_calls', async () => {
  const tools = [
    {
      type: 'function',
      function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } },
    },
  ]
  const streamed = await house.call(CHAT, { body: ask('tiny-chat', { temperature: 0, stream: true, tools, tool_choice: 'required' }) })
  const chunks = eventsOf(streamed.text) as unknown as OpenAI.ChatCompletionChunk[]
  const fragments = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? [])
  expect(fragments.filter(({ id }) => id)).toHaveLength(1)
  expect(fragments.filter((fragment) => fragment.function?.name)).toHaveLength(1)
  expect(JSON.parse(fragments.map((fragment) => fragment.function?.arguments ?? '').join(''))).toHaveProperty('city')
  expect(chunks.flatMap((chunk) => chunk.choices[0]?.finish_reason ?? []).at(-1)).toBe('tool_calls')
})

test('10. reasoning can be switched off where the model can do without; it comes first, under both names', async () => {
  const effortFor = async (model: string, reasoning_effort: string) => {
    await house.call(CHAT, { body: ask(model, { reasoning_effort }) })
    return lastAsked()['reasoning_effort']
  }
  expect(await effortFor('thinking', 'none')).toBe('none')
  expect(await effortFor('always-thinking', 'none')).toBe('low')
  expect(await effortFor('thinking', 'xhigh')).toBe('high')

  const chunk = (delta: object, finish: string | null = null) =>
    `data: ${JSON.stringify({ id: 'x', choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`
  const raw = [
    chunk({ reasoning: 'Let me "think"' }),
    chunk({ reasoning: '.' }),
    chunk({ content: 'Paris' }),
    chunk({}, 'stop'),
    'data: [DONE]\n\n',
  ]
  engine.play({ raw, contentType: 'text/event-stream' })
  const streamed = await house.call(CHAT, { body: ask('thinking', { stream: true }) })
  const deltas = eventsOf(streamed.text).map((event) => (event as unknown as OpenAI.ChatCompletionChunk).choices[0]?.delta)
  expect(deltas).toEqual([
    { reasoning: 'Let me "think"', reasoning_content: 'Let me "think"' },
    { reasoning: '.', reasoning_content: '.' },
    { content: 'Paris' },
    {},
  ])

  engine.play({
    body: {
      id: 'x',
      choices: [{ index: 0, message: { role: 'assistant', content: 'Paris', reasoning_content: 'Hm\n' }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 1, completion_tokens: 2 },
    },
  })
  const whole = (await house.call(CHAT, { body: ask('thinking') })).json() as { choices: { message: unknown }[] }
  expect(whole.choices[0]?.message).toEqual({ role: 'assistant', content: 'Paris', reasoning: 'Hm\n', reasoning_content: 'Hm\n' })
})

const dot = (a: readonly number[] = [], b: readonly number[] = []): number =>
  a.reduce((sum, value, place) => sum + value * (b[place] ?? 0), 0)

test("11. the Node SDK's embeddings are of the right length and not zero; 2,000 of 4,096 dimensions are of unit length; 2,048 inputs pass", async () => {
  const openai = house.openai()
  const plain = await openai.embeddings.create({ model: 'tiny-embed', input: 'a small dog' })
  expect(plain.data[0]?.embedding).toHaveLength(192)
  expect(dot(plain.data[0]?.embedding, plain.data[0]?.embedding)).toBeCloseTo(1, 3)

  // An engine that cannot cut gives all of it.
  const embedding = Buffer.from(Float32Array.from({ length: 4096 }, (_, index) => Math.sin(index + 1)).buffer).toString('base64')
  engine.play({
    body: {
      object: 'list',
      model: 'matryoshka',
      data: [{ object: 'embedding', index: 0, embedding }],
      usage: { prompt_tokens: 1, total_tokens: 1 },
    },
  })
  const cut = await openai.embeddings.create({ model: 'matryoshka', input: 'a', dimensions: 2000 })
  expect(cut.data[0]?.embedding).toHaveLength(2000)
  expect(dot(cut.data[0]?.embedding, cut.data[0]?.embedding)).toBeCloseTo(1, 5)

  engine.play({})
  const many = await openai.embeddings.create({ model: 'matryoshka', input: Array.from({ length: 2048 }, (_, index) => `text ${index}`) })
  expect(many.data).toHaveLength(2048)
})

test('12. the scores of a reranking are the dot products of the embeddings; top_n is kept; places are those of the request', async () => {
  const query = 'a young dog'
  const documents = ['the stock market', 'a little puppy', 'an old castle', 'puppies and dogs']
  const reranked = await house.call('/v1/rerank', { body: { model: 'tiny-embed', query, documents } })
  expect(reranked.status).toBe(200)
  const { id, results, usage } = reranked.json() as {
    id: string
    results: { index: number; document: { text: string }; relevance_score: number }[]
    usage: object
  }
  const { data } = await house.openai().embeddings.create({ model: 'tiny-embed', input: [query, ...documents], encoding_format: 'float' })
  expect(id).toMatch(/^rerank-[0-9a-f]{32}$/)
  expect(Object.keys(usage)).toEqual(['total_tokens'])
  expect(results).toHaveLength(4)
  for (const { index, document, relevance_score: score } of results) {
    expect(document.text).toBe(documents[index])
    expect(Math.abs(score - dot(data[0]?.embedding, data[index + 1]?.embedding))).toBeLessThan(1e-3)
  }
  expect(results.map((result) => result.relevance_score)).toEqual(results.map((result) => result.relevance_score).toSorted((a, b) => b - a))
  const two = await house.call('/v1/rerank', { body: { model: 'tiny-embed', query, documents, top_n: 2 } })
  expect((two.json() as { results: unknown[] }).results).toEqual(results.slice(0, 2))

  const judged = await house.call('/v1/rerank', { body: { model: 'tiny-rerank', query, documents, top_n: 3 } })
  expect(judged.status).toBe(200)
  expect((judged.json() as { results: unknown[] }).results).toHaveLength(3)
})

test('13. thirteen seconds of sound in a chat count 375 tokens, 178 count 2,250', async () => {
  const model = house.catalog.list().find(({ name }) => name === 'voxtral-like')
  if (model === undefined) throw new Error('the model is not there')
  const estimate = (content: unknown): number => {
    const reading = chatEndpoint.read(bufferToBody(Buffer.from(JSON.stringify({ model: 'voxtral-like', messages: user(content) }))))
    const request = reading.ok ? chatEndpoint.check(reading.value, model) : reading
    if (!request.ok) throw new Error(JSON.stringify(request.refusal))
    return request.value.estimate.inputTokens
  }
  const sound = (bytes: Buffer, format: string) => [{ type: 'input_audio', input_audio: { data: bytes.toString('base64'), format } }]
  for (const [format, make] of [
    ['wav', wav],
    ['mp3', mp3],
  ] as const) {
    // What is around the sound counts as text.
    const around = estimate(sound(make(13), format)) - 375
    expect(around).toBeGreaterThan(0)
    expect(around).toBeLessThan(60)
    expect(estimate(sound(make(178), format)) - around).toBe(2_250)
  }
  expect((await house.call(CHAT, { body: { model: 'voxtral-like', messages: user(sound(mp3(13), 'mp3')) } })).status).toBe(200)
  expect((await house.call(CHAT, { body: { model: 'plain', messages: user(sound(mp3(13), 'mp3')) } })).status).toBe(400)
})

test('14. twelve images pass and the thirteenth is 400', async () => {
  const images = (count: number) =>
    user(Array.from({ length: count }, () => ({ type: 'image_url', image_url: { url: dataUrl('image/png', png(64, 64)) } })))
  expect((await house.call(CHAT, { body: { model: 'pixtral-like', messages: images(12) } })).status).toBe(200)
  const refused = await house.call(CHAT, { body: { model: 'pixtral-like', messages: images(13) } })
  expect(refused.status).toBe(400)
  expect(errorOf(refused).message).toContain('takes 12 in a request')
})

const clip = (name: string): File =>
  new File([readFileSync(fileURLToPath(new URL(`../../engine/test-clips/${name}`, import.meta.url)))], name)

test('15. a transcription is a text; its stream says something before the end; an m4a is 400, and so is more than 25 MB', async () => {
  const { transcriptions } = house.openai().audio
  const file = clip('02-two-sentences.mp3')
  const whole = await transcriptions.create({ model: 'tiny-whisper', file })
  expect(whole).toEqual({ text: expect.stringContaining('eighteen boxes') as string, usage: { type: 'duration', seconds: 5 } })
  const types: string[] = []
  for await (const event of await transcriptions.create({ model: 'tiny-whisper', file, stream: true })) types.push(event.type)
  expect(types.at(-1)).toBe('transcript.text.done')
  expect(types.slice(0, -1)).toContain('transcript.text.delta')
  const m4a = new File([Buffer.from('\0\0\0\x20ftypM4A \0\0\0\0', 'latin1')], 'memo.m4a')
  await expect(transcriptions.create({ model: 'tiny-whisper', file: m4a })).rejects.toMatchObject({ status: 400, param: 'file' })
  const large = new File([wav(1), Buffer.alloc(25 * 2 ** 20)], 'long.wav')
  await expect(transcriptions.create({ model: 'tiny-whisper', file: large })).rejects.toMatchObject({ status: 400 })
})

test('16. batches are not served yet, and say so as every unknown path does', async () => {
  const batch = { input_file_id: 'https://bucket.example.com/input.jsonl', endpoint: CHAT, completion_window: '24h' }
  const answer = await house.call('/v1/batches', { body: batch })
  expect([answer.status, errorOf(answer).type]).toEqual([404, 'NotFoundError'])
})

const DURATION = /^(\d+h)?(\d+m)?(\d+(\.\d+)?(ms|s))?$/

test('17. a chat answer has the six headers, with durations like 250ms; the 101st call at once is 429', async () => {
  const { status, headers } = await house.call(CHAT, { body: ask('plain') })
  expect(status).toBe(200)
  for (const what of ['requests', 'tokens']) {
    const [limit, remaining] = ['limit', 'remaining'].map((name) => Number(headers.get(`x-ratelimit-${name}-${what}`)))
    expect(limit).toBeGreaterThan(0)
    expect(remaining).toBeLessThanOrEqual(limit ?? 0)
    expect(headers.get(`x-ratelimit-reset-${what}`)).toMatch(/\d/)
    expect(headers.get(`x-ratelimit-reset-${what}`)).toMatch(DURATION)
  }
  engine.play({ holdAfter: 0 })
  const before = engine.count('held')
  const held = Array.from({ length: 100 }, () => house.call(CHAT, { body: ask('plain', { stream: true, max_tokens: 1 }) }))
  await engine.until('held', before + 100)
  const refused = await house.call(CHAT, { body: ask('plain') })
  expect(refused.status).toBe(429)
  expect(errorOf(refused).message).toContain('exceeded your current threshold of concurrent requests')
  engine.play({})
  engine.release()
  expect(new Set((await Promise.all(held)).map((answer) => answer.status))).toEqual(new Set([200]))
})

test('18. a stream of a response is numbered without a gap, thinks before it speaks, and ends with response.completed; an earlier response is 400', async () => {
  engine.play({ reasoning: ['Let me', ' think.'] })
  const body = { model: 'thinking', input: 'What is the capital of France?' }
  const { text } = await house.call('/v1/responses', { body: { ...body, stream: true } })
  const events = eventReader()(text).map(({ name, data }) => ({ name, ...(JSON.parse(data) as { type: string; sequence_number: number }) }))
  expect(events.every(({ name, type }) => name === type)).toBe(true)
  expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, index) => index))
  const { response } = events.at(-1) as unknown as { response: { output: { type: string }[] } }
  expect(response.output.map(({ type }) => type)).toEqual(['reasoning', 'message'])
  expect([events[0]?.type, events.at(-1)?.type]).toEqual(['response.created', 'response.completed'])
  const refused = await house.call('/v1/responses', { body: { ...body, previous_response_id: 'resp_1' } })
  expect([refused.status, errorOf(refused).param]).toEqual([400, 'previous_response_id'])
})

test('19. an error in the middle of a stream raises in the SDK', async () => {
  engine.play({ tokens: ['a', 'b', 'c'], errorAfter: 2 })
  const stream = await house.openai().chat.completions.create({ model: 'plain', stream: true, messages: [{ role: 'user', content: 'x' }] })
  let text = ''
  const reading = async (): Promise<void> => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
  }
  await expect(reading()).rejects.toBeInstanceOf(OpenAI.APIError)
  expect(text).toBe('ab')
})

// Section 16: the limits that have no check of their own in section 20.
test.each([
  [
    '32 million pixels',
    'pixtral-like',
    { type: 'image_url', image_url: { url: dataUrl('image/png', png(8001, 4000)) } },
    /32000000 are the most/,
  ],
  ['an animated GIF', 'pixtral-like', { type: 'image_url', image_url: { url: dataUrl('image/gif', gif(3, 3, 2)) } }, /animated GIF/],
  [
    '25 MB of audio',
    'voxtral-like',
    { type: 'input_audio', input_audio: { data: Buffer.alloc(25 * 2 ** 20 + 1).toString('base64'), format: 'wav' } },
    /larger than 25 MB/,
  ],
  [
    'forty minutes of audio',
    'voxtral-like',
    { type: 'input_audio', input_audio: { data: mp3(1, { counted: 2_401 }).toString('base64'), format: 'mp3' } },
    /longer than 40 minutes/,
  ],
  [
    'an image to a model that does not see',
    'plain',
    { type: 'image_url', image_url: { url: 'https://example.com/a.png' } },
    /takes no images/,
  ],
  [
    'an image on our own network',
    'pixtral-like',
    { type: 'image_url', image_url: { url: 'http://169.254.169.254/latest' } },
    /not on the public internet/,
  ],
])('section 16: %s is 400', async (_what, model, part, message) => {
  const refused = await house.call(CHAT, { body: { model, messages: user([part]) } })
  expect(refused.status).toBe(400)
  expect(errorOf(refused).message).toMatch(message)
})

test.each([
  [
    'an input that is too long for the model',
    '/v1/embeddings',
    { model: 'tiny-embed', input: ['short', 'word '.repeat(2_000)] },
    /maximum context window is 512 tokens/,
  ],
  [
    'more than 2,048 inputs',
    '/v1/embeddings',
    { model: 'matryoshka', input: Array.from({ length: 2049 }, () => 'some more words to make it large') },
    /at most 2048 inputs/,
  ],
  ['31 dimensions', '/v1/embeddings', { model: 'matryoshka', input: 'a', dimensions: 31 }, /between 32 and 4096/],
  [
    'more than 2,048 documents',
    '/v1/rerank',
    { model: 'matryoshka', query: 'a', documents: Array.from({ length: 2049 }, () => 'a') },
    /at most 2048 documents/,
  ],
  ['4,097 dimensions', '/v1/embeddings', { model: 'matryoshka', input: 'a', dimensions: 4097 }, /between 32 and 4096/],
  [
    'a vector of another length than the only one',
    '/v1/embeddings',
    { model: 'tiny-embed', input: 'a', dimensions: 100 },
    /dimensions|32, 64, 128/,
  ],
  [
    'a schema that cannot be kept',
    CHAT,
    ask('tiny-chat', { response_format: { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'nonsense' } } } }),
    /schema|type/i,
  ],
])('section 16: %s is 400', async (_what, path, body, message) => {
  const refused = await house.call(path, { body })
  expect(refused.status).toBe(400)
  expect(errorOf(refused).message).toMatch(message)
})

test('section 17: an answer of the real engine that is cut at the limit says length, and is 200', async () => {
  const answer = await house.call(CHAT, { body: ask('tiny-chat', { max_tokens: 1, response_format: { type: 'json_object' } }) })
  expect(answer.status).toBe(200)
  expect((answer.json() as OpenAI.ChatCompletion).choices[0]?.finish_reason).toBe('length')
})
