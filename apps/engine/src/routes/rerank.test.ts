import { afterAll, beforeAll, expect, test } from 'vitest'
import { type EngineProcess, startEngine } from '../../test/engine-process.ts'

const PATH = '/v1/rerank'
const DOCUMENTS = [
  'a place where shares of companies are bought and sold',
  'a domesticated animal that barks and is kept as a pet',
  'a vehicle with two wheels that is moved by pedals',
]

let engine: EngineProcess
beforeAll(async () => {
  engine = await startEngine('tiny-rerank')
})
afterAll(() => engine.stop())

test.each([
  ['what is a dog?', 1],
  ['what is a bicycle?', 2],
])('%s finds its document first', async (query, best) => {
  const answer = await engine.ask(PATH, { query, documents: DOCUMENTS })
  expect(answer.id).toMatch(/^rerank-[0-9a-f]{32}$/)
  expect(answer.model).toBe('tiny-rerank')
  const { results } = answer
  expect(results).toHaveLength(3)
  expect(results[0].index).toBe(best)
  for (const { index, document } of results) expect(document).toEqual({ text: DOCUMENTS[index], multi_modal: null })
  const scores = results.map((result: { relevance_score: number }) => result.relevance_score)
  expect(scores).toEqual(scores.toSorted((a: number, b: number) => b - a))
  expect(scores.every((score: number) => score > 0 && score < 1)).toBe(true)
  expect(Object.keys(answer.usage)).toEqual(['total_tokens'])
  expect(answer.usage.total_tokens).toBeGreaterThan(30)
})

test('top_n gives that many, and all when there are fewer', async () => {
  const body = { query: 'what is a dog?', documents: DOCUMENTS }
  expect((await engine.ask(PATH, { ...body, top_n: 1 })).results).toHaveLength(1)
  expect((await engine.ask(PATH, { ...body, top_n: 10 })).results).toHaveLength(3)
})

test('documents as objects with a text are read too', async () => {
  const { results } = await engine.ask(PATH, { query: 'what is a dog?', documents: DOCUMENTS.map((text) => ({ text })) })
  expect(results[0].index).toBe(1)
})

test.each([
  ['no query', { documents: ['a'] }, 'query'],
  ['no documents', { query: 'a' }, 'documents'],
  ['an empty list', { query: 'a', documents: [] }, 'documents'],
  ['a document that is a number', { query: 'a', documents: [3] }, 'documents[0]'],
  ['a top_n of nothing', { query: 'a', documents: ['a'], top_n: 0 }, 'top_n'],
])('%s is refused with the name of the field', async (_name, body, param) => {
  const { status, error } = await engine.refusal(PATH, body)
  expect({ status, param: error.param }).toEqual({ status: 400, param })
})

test('a document that does not fit is refused with both numbers', async () => {
  const { status, error } = await engine.refusal(PATH, { query: 'a', documents: ['fine', 'dog '.repeat(600)] })
  expect(status).toBe(400)
  expect(error.message).toMatch(/maximum context window is 512 tokens/)
})

test.each([
  ['query', { query: 'x'.repeat(256 * 512 + 1), documents: ['a'] }],
  ['documents[1]', { query: 'a', documents: ['fine', 'x'.repeat(256 * 512 + 1)] }],
])('a %s that cannot fit whatever its tokens are is refused without being tokenized', async (param, body) => {
  const { status, error } = await engine.refusal(PATH, body)
  expect({ status, param: error.param }).toEqual({ status: 400, param })
  expect(error.message).toContain('at least 513 were requested')
})
