import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import OpenAI from 'openai'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'

// What users of the service ask its support about: section 17 of the data-plane contract, row by row, in the order of its table. Rows that
// are no server's doing (a legacy model without its opening tag, a bug of one client) leave nothing to be tested.

let database: TestDatabase
let engine: ScriptedEngine
let house: TestHouse

const CHAT = '/v1/chat/completions'
const STRANGER = '11111111-2222-4333-8444-555555555555'
const user = (content: string) => [{ role: 'user' as const, content }]
const ask = (more: object = {}) => ({ model: 'plain', messages: user('What is the capital of France?'), ...more })

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine()
  house = await startHouse({ database })
  await serveScripted(house, engine, { name: 'plain', contextTokens: 1_000_000, maxOutputTokens: 256 })
  await serveScripted(house, engine, { name: 'small', contextTokens: 300, maxOutputTokens: 300 })
  await serveScripted(house, engine, { name: 'mistral-like', rules: { alternatingRoles: true } })
  await serveScripted(house, engine, { name: 'told', rules: { toolSystemPrompt: 'You may call functions.' } })
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

beforeEach(() => engine.play({}))

type Answer = Awaited<ReturnType<TestHouse['call']>>
const refusalOf = (answer: Answer): [status: number, message: string] => {
  const { error } = answer.json() as { error: { message: string; code: number } }
  expect(error.code).toBe(answer.status)
  return [answer.status, error.message]
}
const lastAsked = (): Record<string, unknown> => (engine.requests.at(-1)?.json ?? {}) as Record<string, unknown>

test('a context that is exceeded, by the output that is asked for or by what the engine counts, is 400 and says by how much', async () => {
  expect(refusalOf(await house.call(CHAT, { body: ask({ model: 'small', max_tokens: 300 }) }))).toEqual([
    400,
    expect.stringMatching(/maximum context window is 300 tokens; 301/),
  ])
  const counted =
    "This model's maximum context length is 300 tokens. However, you requested 450 tokens (350 in the messages, 100 in the completion)."
  engine.play({ status: 400, body: { error: { message: counted, type: 'BadRequestError', param: null, code: 400 } } })
  const refused = await house.call(CHAT, { body: ask({ model: 'small', max_tokens: 100 }) })
  expect(refusalOf(refused)).toEqual([400, expect.stringMatching(/maximum context window is 300 tokens; 450/)])
})

test.each([
  ['single quotes', `{'model':'plain'}`],
  ['a comma too many', '{"model":"plain",}'],
  ['a comma too few', '{"model":"plain" "messages":[]}'],
  ['a line break in a string', '{"model":"plain","messages":[{"role":"user","content":"a\nb"}]}'],
  ['a backslash in a string', '{"model":"plain","messages":[{"role":"user","content":"C:\\path"}]}'],
  ['half of it', '{"model":"nobody"'],
])('malformed JSON, with %s, is 400, before anybody looks for the model', async (_what, body) => {
  expect(refusalOf(await house.call(CHAT, { body }))).toEqual([400, expect.stringContaining('Invalid JSON body')])
})

test('a wrong key, and the address of another project, are 403', async () => {
  for (const answer of [
    await house.call(CHAT, { body: ask(), key: STRANGER }),
    await house.call(CHAT, { body: ask(), key: 'not even a UUID' }),
    await house.call(`/${STRANGER}${CHAT}`, { body: ask() }),
  ]) {
    expect(refusalOf(answer)).toEqual([
      403,
      expect.stringMatching(/^Insufficient permissions to access the resource: .* is used at \/{project_id}\/v1\.$/),
    ])
  }
})

test('a limit of output above the model’s is 416 although the context would allow it', async () => {
  for (const name of ['max_completion_tokens', 'max_tokens']) {
    const refused = refusalOf(await house.call(CHAT, { body: ask({ [name]: 8_000 }) }))
    expect(refused).toEqual([416, expect.stringContaining('max_completion_tokens is limited for this model')])
  }
})

test('too many requests, or tokens, in a minute are 429, each in its own words and with the headers', async () => {
  const limit = async (limits: object): Promise<void> => {
    const path = `/parvis/v1/limits/organizations/${house.owner.organizationId}`
    expect((await house.call(path, { method: 'PUT', body: limits })).status).toBe(204)
  }
  for (const [limits, message] of [
    [{ requests_per_minute: 1, tokens_per_minute: 'unlimited' }, 'exceeded your current quota of requests per minute'],
    [{ requests_per_minute: 'unlimited', tokens_per_minute: 300 }, 'exceeded your current quota of tokens per minute'],
  ] as const) {
    await limit(limits)
    // More than a minute has, once it is counted.
    engine.play({ usage: { prompt: 2_000 } })
    let refused: Answer | undefined
    await until('the limit holds', async () => {
      const answer = await house.call(CHAT, { body: ask({ max_tokens: 200 }) })
      refused = answer
      return answer.status === 429 && answer.text.includes(message)
    })
    expect(refused?.headers.get('x-ratelimit-limit-requests') ?? refused?.headers.get('x-ratelimit-limit-tokens')).not.toBe(null)
    expect(Number(refused?.headers.get('retry-after'))).toBeGreaterThan(0)
  }
  engine.play({})
  await limit({ requests_per_minute: 'unlimited', tokens_per_minute: 'unlimited' })
  await until('it serves again', async () => (await house.call(CHAT, { body: ask() })).status === 200)
})

test('a generation that does not end is 504', async () => {
  const other = await freshDatabase()
  const impatient = await startHouse({ database: other, settings: { PARVIS_REQUEST_TIMEOUT_SECONDS: '2' } })
  try {
    await serveScripted(impatient, engine, { name: 'plain' })
    engine.play({ holdAfter: 0, holdHead: true })
    expect(refusalOf(await impatient.call(CHAT, { body: ask() }))[0]).toBe(504)
  } finally {
    engine.release()
    await impatient.stop()
    await other.drop()
  }
})

test('`format` in place of `response_format` is ignored, and an answer that was cut says length', async () => {
  engine.play({ tokens: ['{"city":'], finishReason: 'length' })
  const answer = await house.call(CHAT, { body: ask({ format: { type: 'json_schema' } }) })
  expect(answer.status).toBe(200)
  expect((answer.json() as OpenAI.ChatCompletion).choices[0]).toMatchObject({ message: { content: '{"city":' }, finish_reason: 'length' })
})

test('two turns of a user in a row are 400 in the documented words, where the model insists', async () => {
  const messages = [...user('a'), ...user('b')]
  expect(refusalOf(await house.call(CHAT, { body: { model: 'mistral-like', messages } }))).toEqual([
    400,
    'After the optional system message, conversation roles must alternate user/assistant/user/assistant/...',
  ])
  expect((await house.call(CHAT, { body: { model: 'plain', messages } })).status).toBe(200)
})

test('a model is told of its tools where nobody else has told it', async () => {
  const tools = [{ type: 'function', function: { name: 'a' } }]
  const told = { role: 'system', content: 'You may call functions.' }
  await house.call(CHAT, { body: ask({ model: 'told', tools }) })
  expect(lastAsked()['messages']).toEqual([told, ...ask().messages])
  const own = { role: 'system', content: 'Mine.' }
  await house.call(CHAT, { body: ask({ model: 'told', tools, messages: [own, ...user('Hi')] }) })
  expect(lastAsked()['messages']).toEqual([own, ...user('Hi')])
})

test('nothing of an earlier turn is known: what the engine gets is what was sent', async () => {
  await house.call(CHAT, { body: ask({ messages: user('My name is Ada.'), user: 'ada' }) })
  await house.call(CHAT, { body: ask({ messages: user('What is my name?'), user: 'ada' }) })
  expect(lastAsked()['messages']).toEqual(user('What is my name?'))
})

test('consumption is seen within seconds', async () => {
  const project = house.owner.organizationId
  const tokensOf = async (query: string): Promise<number> => {
    const { usage } = (await house.call(`/parvis/v1/usage?${query}`)).json() as { usage: { units: number }[] }
    return usage.reduce((sum, { units }) => sum + units, 0)
  }
  const before = await tokensOf(`project_id=${project}`)
  expect((await house.call(CHAT, { body: ask() })).status).toBe(200)
  await until('it is seen', async () => (await tokensOf(`project_id=${project}`)) > before)
})

test('what fails after a 200 is an error inside the stream, which the SDK raises', async () => {
  engine.play({ tokens: ['a', 'b'], errorAfter: 1 })
  const streamed = await house.call(CHAT, { body: ask({ stream: true }) })
  expect(streamed.status).toBe(200)
  expect(streamed.text).toMatch(/\ndata: \{"error":\{[^\n]*"code":500\}\}\n\ndata: \[DONE\]\n\n$/)
  const reading = async (): Promise<void> => {
    for await (const _ of await house.openai().chat.completions.create({ model: 'plain', stream: true, messages: user('x') }));
  }
  await expect(reading()).rejects.toBeInstanceOf(OpenAI.APIError)
})
