import { afterAll, beforeAll, expect, test } from 'vitest'
import { type EngineProcess, type Json, startEngine } from '../../test/engine-process.ts'

const PATH = '/v1/completions'
const prompt = 'The capital of France is'

let engine: EngineProcess
beforeAll(async () => {
  engine = await startEngine('tiny-chat', ['--context', '2048'])
})
afterAll(() => engine.stop())

test('a text goes on, streamed as unstreamed', async () => {
  const body = { prompt, temperature: 0, max_tokens: 8 }
  const whole = await engine.ask(PATH, body)
  expect(whole).toMatchObject({ object: 'text_completion', model: 'tiny-chat' })
  expect(whole.id).toMatch(/^cmpl-/)
  expect(whole.choices[0].text).toContain('Paris')
  expect(whole.choices[0].finish_reason).toBe('length')
  expect(whole.usage.completion_tokens).toBe(8)
  const chunks = await engine.stream(PATH, { ...body, stream_options: { include_usage: true } })
  expect(chunks.map((chunk) => (chunk.choices[0]?.text as string | undefined) ?? '').join('')).toBe(whole.choices[0].text)
  expect(chunks.at(-1).usage).toMatchObject({ prompt_tokens: whole.usage.prompt_tokens, completion_tokens: 8 })
  expect(chunks.at(-2).choices[0].finish_reason).toBe('length')
})

test('a prompt may be tokens, or a list with one prompt', async () => {
  const { tokens } = await engine.ask('/tokenize', { prompt })
  const texts = await Promise.all(
    [prompt, tokens, [prompt], [tokens]].map(
      async (one) => (await engine.ask(PATH, { prompt: one, temperature: 0, max_tokens: 4 })).choices[0].text as string,
    ),
  )
  expect(new Set(texts).size).toBe(1)
})

test('the raw format of the model can be written by hand', async () => {
  const raw = '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n'
  const { choices } = await engine.ask(PATH, { prompt: raw, temperature: 0, max_tokens: 30 })
  expect(choices[0]).toMatchObject({ text: 'The capital of France is Paris.', finish_reason: 'stop' })
})

test('probabilities come in the old shape', async () => {
  const body = { prompt, temperature: 0, max_tokens: 4, logprobs: 2 }
  const { choices } = await engine.ask(PATH, body)
  const { tokens, token_logprobs: logprobs, top_logprobs: top, text_offset: offsets } = choices[0].logprobs
  expect(tokens.join('')).toBe(choices[0].text)
  expect(logprobs).toHaveLength(4)
  expect(top.every((one: object) => Object.keys(one).length === 2)).toBe(true)
  for (const [index, offset] of offsets.entries()) expect(choices[0].text.startsWith(tokens[index], offset)).toBe(true)
  const chunks: Json[] = await engine.stream(PATH, body)
  expect(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.text_offset ?? [])).toEqual(offsets)
})

test.each([
  ['no prompt', {}, 'prompt'],
  ['an empty prompt', { prompt: '' }, 'prompt'],
  ['several prompts', { prompt: ['a', 'b'] }, 'prompt'],
  ['a token that does not exist', { prompt: [999_999] }, 'prompt'],
  ['too many probabilities', { prompt: 'a', logprobs: 50 }, 'logprobs'],
  ['the best of several', { prompt: 'a', best_of: 2 }, 'best_of'],
  ['the prompt once more', { prompt: 'a', echo: true }, 'echo'],
  ['what comes behind', { prompt: 'a', suffix: 'b' }, 'suffix'],
])('%s is refused with the name of the field', async (_name, body, param) => {
  const { status, error } = await engine.refusal(PATH, body)
  expect({ status, param: error.param }).toEqual({ status: 400, param })
})

test('what says nothing is taken', async () => {
  const { choices } = await engine.ask(PATH, { prompt, max_tokens: 1, best_of: 1, echo: false, suffix: '', n: null })
  expect(choices).toHaveLength(1)
})

test('text becomes tokens and tokens become the same text', async () => {
  for (const text of ['Hello world', 'Grüße aus Köln – naïve café', '日本語 🙂', '  two  spaces\n\tand a tab']) {
    const { tokens, count, max_model_len: length, token_strs: spelled } = await engine.ask('/tokenize', { prompt: text })
    expect({ count, length, spelled }).toEqual({ count: tokens.length, length: 2048, spelled: null })
    expect((await engine.ask('/detokenize', { tokens })).prompt).toBe(text)
  }
  const { token_strs: spelled } = await engine.ask('/tokenize', { prompt: 'Hello world', return_token_strs: true })
  expect(spelled.join('')).toBe('Hello world')
  expect((await engine.refusal('/detokenize', { tokens: [999_999] })).status).toBe(400)
  expect((await engine.refusal('/tokenize', {})).status).toBe(400)
})

test('a conversation is tokenized as it would be answered', async () => {
  const messages = [{ role: 'user', content: 'What is the capital of France?' }]
  const { count } = await engine.ask('/tokenize', { messages })
  const { usage } = await engine.ask('/v1/chat/completions', { messages, max_tokens: 1 })
  expect(count).toBe(usage.prompt_tokens)
})
