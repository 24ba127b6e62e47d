import { afterAll, beforeAll, expect, test } from 'vitest'
import { type EngineProcess, startEngine } from '../../test/engine-process.ts'

const PATH = '/v1/embeddings'
const DIMENSIONS = 192

let engine: EngineProcess
beforeAll(async () => {
  engine = await startEngine('tiny-embed', ['--matryoshka', '32,64,128'])
})
afterAll(() => engine.stop())

const dot = (a: number[], b: number[]): number => a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0)
const vectors = async (body: object): Promise<number[][]> => {
  const { data } = await engine.ask(PATH, body)
  return data.map((one: { embedding: number[] }) => one.embedding)
}
const floats = (text: string): number[] => {
  const bytes = Buffer.from(text, 'base64')
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(index * 4))
}

test('what means nearly the same lies closer together than what does not', async () => {
  const [dog = [], puppy = [], money = []] = await vectors({ input: ['a small dog', 'a young dog', 'the stock market'] })
  expect(dot(dog, puppy)).toBeGreaterThan(dot(dog, money) + 0.2)
})

test('vectors have length one, come in the order of the inputs, and their tokens are counted', async () => {
  const answer = await engine.ask(PATH, { model: 'tiny-embed', input: ['one', 'two words', 'and three words'] })
  expect(answer).toMatchObject({ object: 'list', model: 'tiny-embed' })
  expect(answer.data.map((one: { index: number }) => one.index)).toEqual([0, 1, 2])
  for (const { embedding } of answer.data) {
    expect(embedding).toHaveLength(DIMENSIONS)
    expect(dot(embedding, embedding)).toBeCloseTo(1, 5)
  }
  const counts = await Promise.all(['one', 'two words', 'and three words'].map((prompt) => engine.ask('/tokenize', { prompt })))
  const tokens = counts.reduce((sum, { count }) => sum + (count as number), 0)
  expect(answer.usage).toEqual({ prompt_tokens: tokens, total_tokens: tokens })
  const [alone = []] = await vectors({ input: 'two words' })
  expect(dot(alone, answer.data[1].embedding)).toBeCloseTo(1, 4)
})

test('base64 holds the same numbers as the list', async () => {
  const [list = []] = await vectors({ input: 'a small dog' })
  const { data } = await engine.ask(PATH, { input: 'a small dog', encoding_format: 'base64' })
  expect(floats(data[0].embedding)).toEqual(list.map(Math.fround))
})

test('tokens in place of text give the same vector', async () => {
  const { tokens } = await engine.ask('/tokenize', { prompt: 'a small dog', add_special_tokens: false })
  const [[text = []], [one = []], [listed = []]] = await Promise.all([
    vectors({ input: 'a small dog' }),
    vectors({ input: tokens }),
    vectors({ input: [tokens] }),
  ])
  expect(dot(text, one)).toBeCloseTo(1, 4)
  expect(dot(text, listed)).toBeCloseTo(1, 4)
})

test('a shorter vector is the beginning of the long one, stretched to length one again', async () => {
  const [long = []] = await vectors({ input: 'a small dog' })
  for (const dimensions of [32, 64, 128]) {
    const [short = []] = await vectors({ input: 'a small dog', dimensions })
    expect(short).toHaveLength(dimensions)
    expect(dot(short, short)).toBeCloseTo(1, 5)
    const beginning = long.slice(0, dimensions)
    expect(dot(short, beginning)).toBeCloseTo(Math.sqrt(dot(beginning, beginning)), 4)
  }
  const [native = []] = await vectors({ input: 'a small dog', dimensions: DIMENSIONS })
  expect(native).toHaveLength(DIMENSIONS)
})

test('the longest input is taken whole, one token more is refused with both numbers', async () => {
  const { tokens } = await engine.ask('/tokenize', { prompt: 'dog', add_special_tokens: false })
  const longest = Array(510 / tokens.length)
    .fill(tokens)
    .flat()
  const { usage } = await engine.ask(PATH, { input: [longest] })
  expect(usage.prompt_tokens).toBe(longest.length + 2)
  const { status, error } = await engine.refusal(PATH, { input: ['fine', 'dog '.repeat(600)] })
  expect(status).toBe(400)
  expect(error.message).toMatch(/maximum context window is 512 tokens; \d{3,} were requested/)
})

test('an input that cannot fit whatever its tokens are is refused without being tokenized', async () => {
  const { status, error } = await engine.refusal(PATH, { input: ['fine', 'x'.repeat(256 * 512 + 1)] })
  expect({ status, param: error.param }).toEqual({ status: 400, param: 'input[1]' })
  expect(error.message).toContain('maximum context window is 512 tokens; at least 513 were requested')
})

test.each([
  ['no input', {}, 'input'],
  ['an empty text', { input: '' }, 'input[0]'],
  ['an empty text among others', { input: ['a', ''] }, 'input[1]'],
  ['an empty list', { input: [] }, 'input'],
  ['a number', { input: 3 }, 'input'],
  ['a token that does not exist', { input: [[999_999]] }, 'input[0]'],
  ['more than 2,048 inputs and a query', { input: Array(2050).fill('a') }, 'input'],
  ['a length the model was not trained for', { input: 'a', dimensions: 100 }, 'dimensions'],
  ['a length of no number', { input: 'a', dimensions: '32' }, 'dimensions'],
  ['a format nobody knows', { input: 'a', encoding_format: 'hex' }, 'encoding_format'],
])('%s is refused with the name of the field', async (_name, body, param) => {
  const { status, error } = await engine.refusal(PATH, body)
  expect({ status, param: error.param, type: error.type }).toEqual({ status: 400, param, type: 'BadRequestError' })
})

test('rerank with an embedding model scores by the dot product', async () => {
  const documents = ['the stock market', 'a young dog']
  const answer = await engine.ask('/v1/rerank', { query: 'a small dog', documents })
  const [query = [], ...others] = await vectors({ input: ['a small dog', ...documents] })
  expect(answer.results.map((result: { index: number }) => result.index)).toEqual([1, 0])
  for (const { index, relevance_score: score } of answer.results) expect(score).toBeCloseTo(dot(query, others[index] ?? []), 4)
})

test('inputs of several requests at once all come back right', async () => {
  const words = Array.from({ length: 12 }, (_, index) => `word number ${index}`)
  const alone = await vectors({ input: words })
  const together = await Promise.all(words.map((word) => vectors({ input: word })))
  for (const [index, [vector = []]] of together.entries()) expect(dot(vector, alone[index] ?? [])).toBeCloseTo(1, 4)
})
