import { execFile } from 'node:child_process'
import { readdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import Anthropic from '@anthropic-ai/sdk'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { ResponseObject } from '@parvis/wire/openai/responses'
import type OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

// The other ways to ask, with nothing scripted: published clients, the server, the embedded engine, the tiny chat model.

let database: TestDatabase
let house: TestHouse
let openai: OpenAI
let anthropic: Anthropic

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_DEMO_MODELS: 'true' }, checksInference: true })
  openai = house.openai()
  anthropic = new Anthropic({ baseURL: house.url, apiKey: house.secretKey, maxRetries: 0 })
  await house.ready('tiny-chat')
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const QUESTION = 'What is the capital of France?'
const SCHEMA = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'], additionalProperties: false }

describe('responses', () => {
  const tools = [{ type: 'function' as const, name: 'weather', parameters: SCHEMA, strict: true }]

  test('answer right at temperature 0, the same streamed as whole', async () => {
    const whole = await openai.responses.create({ model: 'tiny-chat', input: QUESTION, temperature: 0 })
    expect(whole.output_text).toMatch(/Paris/)
    expect(ResponseObject.parse(JSON.parse(JSON.stringify(whole)))).toMatchObject({ status: 'completed', store: false })
    const streamed = await openai.responses.stream({ model: 'tiny-chat', input: QUESTION, temperature: 0 }).finalResponse()
    expect(streamed.output_text).toBe(whole.output_text)
    expect(streamed.usage).toMatchObject({ input_tokens: whole.usage?.input_tokens, output_tokens: whole.usage?.output_tokens })
  })

  test('call a function and take what it gave', async () => {
    const input: OpenAI.Responses.ResponseInput = [{ role: 'user', content: 'What is the weather in Paris?' }]
    const body = { model: 'tiny-chat', input, tools, temperature: 0 }
    const asked = await openai.responses.stream({ ...body, tool_choice: 'required' }).finalResponse()
    const call = asked.output.find((item) => item.type === 'function_call')
    expect(JSON.parse(call?.arguments ?? '')).toEqual({ city: expect.any(String) })
    input.push(...(asked.output as OpenAI.Responses.ResponseInput))
    input.push({ type: 'function_call_output', call_id: call?.call_id ?? '', output: '{"celsius":21}' })
    const answered = await openai.responses.create({ ...body, tool_choice: 'none', max_output_tokens: 30 })
    expect(answered.output[0]).toMatchObject({ type: 'message' })
  })

  test('keep to a schema', async () => {
    const format = { type: 'json_schema' as const, name: 'place', schema: SCHEMA, strict: true }
    const answer = await openai.responses.create({ model: 'tiny-chat', input: 'Name a city.', text: { format } })
    expect(JSON.parse(answer.output_text)).toEqual({ city: expect.any(String) })
  })

  test('are incomplete where the limit cuts them, and 416 above it', async () => {
    const cut = await openai.responses.create({ model: 'tiny-chat', input: QUESTION, temperature: 0, max_output_tokens: 2 })
    expect(cut).toMatchObject({ status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } })
    await expect(openai.responses.create({ model: 'tiny-chat', input: QUESTION, max_output_tokens: 100_000 })).rejects.toMatchObject({
      status: 416,
    })
  })

  test('remember nothing', async () => {
    const earlier = { model: 'tiny-chat', input: QUESTION, previous_response_id: 'resp_1' }
    await expect(openai.responses.create(earlier)).rejects.toMatchObject({ status: 400, param: 'previous_response_id' })
  })
})

describe('messages', () => {
  const ask = { model: 'tiny-chat', max_tokens: 100, temperature: 0 }

  test('are counted before as they are billed after', async () => {
    const messages = [{ role: 'user' as const, content: QUESTION }]
    const system = 'Answer in one word.'
    const counted = await anthropic.messages.countTokens({ model: 'tiny-chat', system, messages })
    const { usage } = await anthropic.messages.create({ ...ask, system, messages })
    expect(counted.input_tokens).toBe(usage.input_tokens + (usage.cache_read_input_tokens ?? 0))
  })
  const tools = [{ name: 'weather', input_schema: { ...SCHEMA, type: 'object' as const } }]

  test('answer right at temperature 0, the same streamed as whole', async () => {
    const question = { ...ask, messages: [{ role: 'user' as const, content: QUESTION }] }
    const whole = await anthropic.messages.create(question)
    expect(whole.content).toMatchObject([{ type: 'text', text: expect.stringMatching(/Paris/) }])
    expect(whole.stop_reason).toBe('end_turn')
    const streamed = await anthropic.messages.stream(question).finalMessage()
    expect(streamed.content).toEqual(whole.content)
    const inputOf = ({ usage }: Anthropic.Message): number => usage.input_tokens + (usage.cache_read_input_tokens ?? 0)
    expect([inputOf(streamed), streamed.usage.output_tokens]).toEqual([inputOf(whole), whole.usage.output_tokens])
  })

  test('call a tool and take what it gave', async () => {
    const messages: Anthropic.MessageParam[] = [{ role: 'user', content: 'What is the weather in Paris?' }]
    const asked = await anthropic.messages.stream({ ...ask, messages, tools, tool_choice: { type: 'any' } }).finalMessage()
    const call = asked.content.find((block) => block.type === 'tool_use')
    expect(call?.input).toEqual({ city: expect.any(String) })
    expect(asked.stop_reason).toBe('tool_use')
    messages.push({ role: 'assistant', content: asked.content })
    messages.push({ role: 'user', content: [{ type: 'tool_result', tool_use_id: call?.id ?? '', content: '21' }] })
    const answered = await anthropic.messages.create({ ...ask, messages, tools, tool_choice: { type: 'none' } })
    expect(answered.content[0]).toMatchObject({ type: 'text' })
  })

  test('stop at a text of the client’s and say which', async () => {
    const whole = await anthropic.messages.create({ ...ask, messages: [{ role: 'user', content: QUESTION }], stop_sequences: ['Paris'] })
    expect(whole).toMatchObject({ stop_reason: 'stop_sequence', stop_sequence: 'Paris' })
    expect(JSON.stringify(whole.content)).not.toContain('Paris')
  })
})

test('a text completion goes on where the prompt ends', async () => {
  const answer = await openai.completions.create({ model: 'tiny-chat', prompt: 'The capital of France is', max_tokens: 8, temperature: 0 })
  expect(answer).toMatchObject({ object: 'text_completion', choices: [{ text: expect.any(String) }] })
  expect(answer.usage?.completion_tokens).toBeGreaterThan(0)
})

test('every way is counted under its own name', async () => {
  const count = async (): Promise<string[]> =>
    (await house.db.query<{ endpoint: string }>('select distinct endpoint from usage_event order by endpoint')).rows.map(
      (row) => row.endpoint,
    )
  await expect.poll(count).toEqual(['completions', 'messages', 'responses'])
})

describe('the examples run as they stand', () => {
  const execute = promisify(execFile)
  const run = async (name: string): Promise<string> => {
    const file = fileURLToPath(new URL(`../../../examples/${name}.mjs`, import.meta.url))
    const env = { ...process.env, PARVIS_URL: house.url, PARVIS_API_KEY: house.secretKey }
    return (await execute(process.execPath, [file], { env })).stdout
  }

  test.each(['openai-chat', 'openai-responses', 'anthropic', 'langchain', 'ai-sdk'])('%s', async (name) => {
    const said = await run(name)
    expect(said).toMatch(/streamed: .*Paris/)
    expect(said).toMatch(/called: weather \{ city: /)
    expect(said).toMatch(/answered: /)
    expect(said).toMatch(/parsed: \{ city: /)
  })

  test('openai-embeddings', async () => {
    await house.ready('tiny-embed')
    const said = await run('openai-embeddings')
    expect(said).toMatch(/nearest: \{ text: 'a little puppy', dimensions: 192, tokens: \d+ \}/)
    expect(said).toMatch(/shorter: \{ text: 'a little puppy', dimensions: 64,/)
    expect(said).toMatch(/reranked: a little puppy/)
  })

  test('openai-audio', async () => {
    await house.ready('tiny-whisper')
    const said = await run('openai-audio')
    expect(said).toContain('text: There are eighteen boxes in the kitchen. The happy lion is in the house. (5 s)')
    expect(said).toMatch(/subtitles:\n1\n00:00:00,\d{3} --> /)
    expect(said).toMatch(/streamed: .*eighteen boxes/)
  })

  test('scaleway-sdk', async () => {
    const said = await run('scaleway-sdk')
    expect(said).toMatch(/^made: example-\d+ SCW[A-Z0-9]{17}$/m)
    // The two are made together, so which of them comes first is left to chance.
    expect(said).toMatch(
      /^in its project: 200\nin the default project: 403\nsources: Scaleway (Metrics, Scaleway Logs|Logs, Scaleway Metrics)$/m,
    )
    expect(said).toContain('gone: ResourceNotFoundError')
  })

  test('none is left out', async () => {
    const pages = (await readdir(new URL('../../../examples/', import.meta.url))).filter((name) => name.endsWith('.mjs'))
    const told = [
      'ai-sdk',
      'anthropic',
      'langchain',
      'openai-audio',
      'openai-chat',
      'openai-embeddings',
      'openai-responses',
      'scaleway-sdk',
    ]
    expect(pages.toSorted()).toEqual(told.map((name) => `${name}.mjs`))
  })
})
