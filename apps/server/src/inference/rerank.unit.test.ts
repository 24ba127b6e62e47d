import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { type Script, scriptedVector, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { describe, expect, test } from 'vitest'

const RERANK = '/v1/rerank'
const MODELS = [
  aModel({ name: 'vectors', type: 'embedding', maxOutputTokens: null, dimensions: 8 }),
  aModel({ name: 'judge', type: 'rerank', maxOutputTokens: null }),
  aModel(),
]
const DOCUMENTS = ['one', 'two "2"', 'drei ü', 'four']

const start = async (script: Script = {}) => {
  const engine = await startScriptedEngine(script)
  const plane = await startDataPlane({ engine: engine.url, models: MODELS, replica: { remoteModel: 'org/remote' } })
  return {
    engine,
    plane,
    async [Symbol.asyncDispose]() {
      await plane[Symbol.asyncDispose]()
      await engine.close()
    },
  }
}

const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, value, place) => sum + value * (b[place] ?? 0), 0)
type Ranked = { id: string; model: string; usage: unknown; results: { index: number; document: unknown; relevance_score: number }[] }

describe('with an embedding model', () => {
  test.each([{}, { encoding: 'float' as const }])(
    'the scores are the dot products of the vectors, the best first, and the texts come back',
    async (script) => {
      await using house = await start(script)
      const answer = await house.plane.ask(RERANK, { model: 'vectors', query: 'q', documents: DOCUMENTS, return_documents: false })
      expect(answer.status).toBe(200)
      const ranked = (await answer.json()) as Ranked
      const query = scriptedVector(0)
      const scores = DOCUMENTS.map((_, index) => dot(query, scriptedVector(index + 1)))
      expect(ranked.id).toBe(`rerank-${answer.headers.get('x-request-id')?.replaceAll('-', '')}`)
      expect(ranked).toMatchObject({ model: 'vectors', usage: { total_tokens: 15 } })
      expect(Object.keys(ranked.usage as object)).toEqual(['total_tokens'])
      expect(ranked.results.map(({ relevance_score: score }) => score)).toEqual(scores.toSorted((a, b) => b - a))
      for (const { index, document, relevance_score: score } of ranked.results) {
        expect(document).toEqual({ text: DOCUMENTS[index], multi_modal: null })
        expect(score).toBeCloseTo(scores[index] ?? Number.NaN, 6)
      }
      expect(house.engine.requests[0]).toMatchObject({
        path: '/v1/embeddings',
        json: { model: 'org/remote', encoding_format: 'base64', input: ['q', ...DOCUMENTS] },
      })
      expect(house.plane.records).toMatchObject([{ endpoint: 'rerank', counted: 'engine', input: 15, output: 0 }])
    },
  )

  test('a score past 1 by rounding is 1; what an engine with longer vectors makes stays', async () => {
    const scoresOf = async (vectors: readonly (readonly number[])[]): Promise<number[]> => {
      const data = vectors.map((embedding, index) => ({ object: 'embedding', index, embedding }))
      await using house = await start({ body: { object: 'list', model: 'x', data, usage: { prompt_tokens: 3, total_tokens: 3 } } })
      const documents = vectors.slice(1).map(String)
      const ranked = (await (await house.plane.ask(RERANK, { model: 'vectors', query: 'q', documents })).json()) as Ranked
      return ranked.results.map(({ relevance_score: score }) => score)
    }
    expect(
      await scoresOf([
        [1, 0],
        [1.0000000016, 0],
        [0.5, 0],
        [-1.0000000016, 0],
      ]),
    ).toEqual([1, 0.5, -1])
    expect(
      await scoresOf([
        [2, 0],
        [3, 0],
        [-3, 0],
      ]),
    ).toEqual([6, -6])
  })

  test.each([
    ['input.0', 'query'],
    ['input.2', 'documents[1]'],
    ['input[1]', 'documents[0]'],
    ['input', 'input'],
  ])('what the engine refuses as %s is %s to who asked', async (param, field) => {
    await using house = await start({ status: 400, body: { error: { message: 'Too long', type: 'BadRequestError', param, code: 400 } } })
    const answer = await house.plane.ask(RERANK, { model: 'vectors', query: 'q', documents: DOCUMENTS })
    expect([answer.status, await answer.json()]).toMatchObject([400, { error: { message: 'Too long', param: field } }])
  })

  test('as many results come as were asked for, and all when more were', async () => {
    await using house = await start()
    const lengthFor = async (ask: object) =>
      ((await (await house.plane.ask(RERANK, { model: 'vectors', query: 'q', documents: DOCUMENTS, ...ask })).json()) as Ranked).results
        .length
    expect([await lengthFor({ top_n: 2 }), await lengthFor({ top_n: 9 }), await lengthFor({}), await lengthFor({ top_n: null })]).toEqual([
      2, 4, 4, 4,
    ])
  })

  test('documents may be objects, and a body may be large', async () => {
    await using house = await start()
    const documents = [{ text: 'x'.repeat(70_000), id: 7 }, 'b']
    const ranked = (await (await house.plane.ask(RERANK, { documents, query: 'q', model: 'vectors' })).json()) as Ranked
    expect(ranked.results.toSorted((a, b) => a.index - b.index).map(({ document }) => document)).toEqual([
      { text: 'x'.repeat(70_000), multi_modal: null },
      { text: 'b', multi_modal: null },
    ])
  })

  test('2,048 documents are taken', async () => {
    await using house = await start()
    const answer = await house.plane.ask(RERANK, {
      model: 'vectors',
      query: 'q',
      documents: Array.from({ length: 2048 }, (_, index) => `d${index}`),
    })
    expect(((await answer.json()) as Ranked).results).toHaveLength(2048)
  })
})

describe('with a rerank model', () => {
  const results = (scores: readonly number[]) => scores.map((score, index) => ({ index, relevance_score: score }))

  test("the engine's own scores are sorted, cut and given their texts", async () => {
    await using house = await start({ body: { results: results([0.1, 0.9, 0.5, 0.7]), usage: { prompt_tokens: 40, total_tokens: 40 } } })
    const answer = await house.plane.ask(RERANK, { model: 'judge', query: 'q', documents: ['a', { text: 'b' }, 'c', 'd'], top_n: 3 })
    expect(await answer.json()).toEqual({
      id: expect.stringMatching(/^rerank-[0-9a-f]{32}$/) as string,
      model: 'judge',
      usage: { total_tokens: 40 },
      results: [
        { index: 1, document: { text: 'b', multi_modal: null }, relevance_score: 0.9 },
        { index: 3, document: { text: 'd', multi_modal: null }, relevance_score: 0.7 },
        { index: 2, document: { text: 'c', multi_modal: null }, relevance_score: 0.5 },
      ],
    })
    expect(house.engine.requests[0]).toMatchObject({
      path: '/v1/rerank',
      json: { model: 'org/remote', query: 'q', documents: ['a', 'b', 'c', 'd'] },
    })
  })

  test.each([
    ['too few scores', { results: results([0.1]) }],
    ['a place that there is not', { results: [...results([0.1, 0.2, 0.3]), { index: 9, relevance_score: 1 }] }],
    ['one place twice', { results: [...results([0.1, 0.2, 0.3]), { index: 0, relevance_score: 1 }] }],
    ['scores that are no numbers', { results: [{ index: 0, relevance_score: 'high' }] }],
    ['no results', { data: [] }],
  ])('an engine that gives %s has failed', async (_what, body) => {
    await using house = await start({ body })
    expect((await house.plane.ask(RERANK, { model: 'judge', query: 'q', documents: DOCUMENTS })).status).toBe(500)
  })
})

test.each<[object, number, string | null]>([
  [{ query: '' }, 400, 'query'],
  [{ query: 7 }, 400, 'query'],
  [{ query: null }, 400, 'query'],
  [{ documents: [] }, 400, 'documents'],
  [{ documents: 'one' }, 400, 'documents'],
  [{ documents: ['a', ''] }, 400, 'documents[1]'],
  [{ documents: ['a', 7] }, 400, 'documents[1]'],
  [{ documents: [{ title: 'a' }] }, 400, 'documents[0]'],
  [{ documents: [{ text: 7 }] }, 400, 'documents[0].text'],
  [{ documents: Array.from({ length: 2049 }, () => 'a') }, 400, 'documents'],
  [{ top_n: 0 }, 400, 'top_n'],
  [{ top_n: '3' }, 400, 'top_n'],
  [{ model: 'tiny-chat' }, 400, 'model'],
  [{ model: 'nothing' }, 422, 'model'],
])('a wrong request is refused and no engine is asked: %j', async (ask, status, param) => {
  await using house = await start()
  for (const padding of ['', 'x'.repeat(70_000)]) {
    const answer = await house.plane.ask(RERANK, { model: 'vectors', query: 'q', documents: ['a'], padding, ...ask })
    expect(answer.status).toBe(status)
    expect(await answer.json()).toMatchObject({ error: { param } })
  }
  expect(house.engine.requests).toEqual([])
})
