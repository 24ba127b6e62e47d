import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { scriptedVector, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { EmbeddingsAnswer } from '@parvis/wire/openai/embeddings'
import { ErrorBody } from '@parvis/wire/openai/error'
import { describe, expect, test } from 'vitest'
import { NO_RULES } from '../catalog/model.ts'

const PATH = '/v1/embeddings'

const floatsOf = (base64: unknown): number[] => {
  const bytes = Buffer.from(String(base64), 'base64')
  return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(index * 4))
}

describe('embeddings', () => {
  test.each([['one'], [['one', 'two']], [[1, 2, 3]], [[[1, 2], [3]]]])('takes %j', async (input) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(PATH, { model: 'tiny-embed', input })
    const { data, model } = EmbeddingsAnswer.parse(await answer.json())
    expect(data.map((row) => row.embedding)).toEqual(data.map((_row, index) => scriptedVector(index)))
    expect(model).toBe('tiny-embed')
    expect(engine.requests[0]?.json).toEqual({ model: 'tiny-embed', input })
    expect(plane.records).toMatchObject([{ endpoint: 'embeddings', counted: 'engine', input: data.length * 3, output: 0 }])
  })

  test.each(['float', 'base64'] as const)('gives %s where it was asked, whatever the engine can', async (encoding) => {
    for (const made of ['float', 'base64'] as const) {
      await using engine = await startScriptedEngine({ encoding: made })
      await using plane = await startDataPlane({ engine: engine.url, replica: { remoteModel: 'Org/remote' } })
      const answer = await plane.ask(PATH, { model: 'tiny-embed', input: ['a', 'b'], encoding_format: encoding })
      const { data, model } = EmbeddingsAnswer.parse(await answer.json())
      const vectors = data.map((row) => (encoding === 'base64' ? floatsOf(row.embedding) : row.embedding))
      expect(vectors).toEqual([scriptedVector(0), scriptedVector(1)])
      expect(model).toBe('tiny-embed')
    }
  })

  test('vectors that cannot be read are 500', async () => {
    await using engine = await startScriptedEngine({
      body: { object: 'list', data: [{ embedding: [1] }, { embedding: 7 }], usage: { prompt_tokens: 1 } },
    })
    await using plane = await startDataPlane({ engine: engine.url })
    const ask = { model: 'tiny-embed', input: 'a', encoding_format: 'base64' }
    expect((await plane.ask(PATH, ask)).status).toBe(500)
  })

  test('a length that the model can be cut to is passed on, its own is not even asked for, others are 400', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const ask = { model: 'tiny-embed', input: 'a' }
    expect((await plane.ask(PATH, { ...ask, dimensions: 4 })).status).toBe(200)
    expect((await plane.ask(PATH, { ...ask, dimensions: 8 })).status).toBe(200)
    expect(engine.requests.map((request) => (request.json as { dimensions: unknown }).dimensions)).toEqual([4, null])
    const refused = await plane.ask(PATH, { ...ask, dimensions: 5 })
    expect(refused.status).toBe(400)
    expect(ErrorBody.parse(await refused.json()).error).toMatchObject({ param: 'dimensions', message: expect.stringContaining('2, 4') })
  })

  test.each<[string, object, number, string | null]>([
    ['no input', {}, 400, 'input'],
    ['nothing', { input: [] }, 400, 'input'],
    ['an empty string', { input: '' }, 400, 'input'],
    ['an empty string among others', { input: ['a', ''] }, 400, 'input[1]'],
    ['too many inputs', { input: Array.from({ length: 2049 }, () => 'a') }, 400, 'input'],
    ['numbers among strings', { input: ['a', 1] }, 400, 'input[1]'],
    ['an object', { input: { text: 'a' } }, 400, 'input'],
    ['more tokens than the context', { input: [1, ...Array.from({ length: 4096 }, () => 2)] }, 400, null],
    ['an unknown encoding', { input: 'a', encoding_format: 'hex' }, 400, 'encoding_format'],
    ['a wrong length', { input: 'a', dimensions: '4' }, 400, 'dimensions'],
  ])('refuses %s', async (_name, ask, status, param) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    for (const text of [
      JSON.stringify({ model: 'tiny-embed', ...ask }),
      `${JSON.stringify({ model: 'tiny-embed', ...ask })}${' '.repeat(70_000)}`,
    ]) {
      const answer = await plane.ask(PATH, text)
      expect(answer.status).toBe(status)
      expect(ErrorBody.parse(await answer.json()).error.param).toBe(param)
    }
    expect(engine.requests).toEqual([])
  })

  test('takes 2,048 inputs of some length, too large to be parsed here', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const input = Array.from({ length: 2048 }, (_, index) => `${index} ${'word '.repeat(20)}`)
    const answer = await plane.ask(PATH, { model: 'tiny-embed', input, encoding_format: 'base64' })
    expect(EmbeddingsAnswer.parse(await answer.json()).data).toHaveLength(2048)
  })

  test('of an engine that gives them whole are cut to the length that was asked for, and are of length 1 again', async () => {
    const whole = [3, 4, 0, 12, 1, 2, 3, 4]
    const base64 = Buffer.from(Float32Array.from(whole).buffer).toString('base64')
    for (const embedding of [whole, base64]) {
      const body = { object: 'list', model: 'x', data: [{ object: 'embedding', index: 0, embedding }], usage: { prompt_tokens: 1 } }
      await using engine = await startScriptedEngine({ body })
      await using plane = await startDataPlane({ engine: engine.url })
      const cut = async (ask: object) => {
        const answer = EmbeddingsAnswer.parse(await (await plane.ask(PATH, { model: 'tiny-embed', input: 'a', ...ask })).json())
        const [row] = answer.data
        return typeof row?.embedding === 'string' ? floatsOf(row.embedding) : row?.embedding
      }
      for (const encoding_format of ['float', 'base64']) {
        expect((await cut({ encoding_format, dimensions: 2 }))?.map((component) => Math.round(component * 1e6) / 1e6)).toEqual([0.6, 0.8])
        expect(await cut({ encoding_format, dimensions: 8 })).toEqual(whole)
        expect(await cut({ encoding_format })).toEqual(whole)
      }
    }
  })

  test('of a model that may be cut anywhere have any length from its shortest on', async () => {
    const model = aModel({
      name: 'any',
      type: 'embedding',
      maxOutputTokens: null,
      dimensions: 4096,
      rules: { ...NO_RULES, minDimensions: 32 },
    })
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, models: [model] })
    const statusFor = async (dimensions: number) => (await plane.ask(PATH, { model: 'any', input: 'a', dimensions })).status
    expect(await Promise.all([31, 32, 2000, 4096, 4097].map(statusFor))).toEqual([400, 200, 200, 200, 400])
  })

  test('are made of the input and of nothing else that an engine might read or fetch', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const messages = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://10.0.0.1/' } }] }]
    expect((await plane.ask(PATH, { model: 'tiny-embed', input: 'a', messages })).status).toBe(200)
    expect(engine.requests[0]?.json).toEqual({ model: 'tiny-embed', input: 'a', messages: null })
  })

  test('a chat model has none', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(PATH, { model: 'tiny-chat', input: 'a' })).status).toBe(400)
  })
})
