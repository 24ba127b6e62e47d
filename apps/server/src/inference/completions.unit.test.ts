import { startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { Completion } from '@parvis/wire/openai/completions'
import { describe, expect, test } from 'vitest'

const PATH = '/v1/completions'
const ASK = { model: 'tiny-chat', prompt: 'Once' }

test('a text completion is the engine’s own, whole and streamed', async () => {
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: engine.url })
  const whole = await plane.openai().completions.create(ASK)
  expect(Completion.parse(whole).choices).toMatchObject([{ text: 'Hello world.', finish_reason: 'stop' }])
  let text = ''
  const stream = await plane.openai().completions.create({ ...ASK, stream: true, stream_options: { include_usage: true } })
  const usages: unknown[] = []
  for await (const chunk of stream) {
    text += chunk.choices[0]?.text ?? ''
    if (chunk.usage) usages.push(chunk.usage)
  }
  expect(text).toBe('Hello world.')
  expect(usages).toMatchObject([{ prompt_tokens: 7, completion_tokens: 3 }])
  expect(engine.requests.map((request) => request.path)).toEqual([PATH, PATH])
  const counts = { endpoint: 'completions', input: 7, output: 3, counted: 'engine', ended: 'complete' }
  expect(plane.records).toMatchObject([counts, counts])
})

test('a stream shows its usage only to who asked, and is counted by its words where it breaks', async () => {
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: engine.url })
  const text = await (await plane.ask(PATH, { ...ASK, stream: true })).text()
  expect(text).not.toContain('"usage"')
  expect(text.endsWith('data: [DONE]\n\n')).toBe(true)
  expect(engine.requests[0]?.json).toMatchObject({ stream_options: { include_usage: true } })
  engine.play({ cutAfter: 2 })
  expect(await (await plane.ask(PATH, { ...ASK, stream: true })).text()).toContain('"error"')
  expect(plane.records[1]).toMatchObject({ ended: 'engine_failed', counted: 'delivered', output: 2 })
})

test('a prompt may be one or many, of text or of tokens', async () => {
  for (const prompt of ['Once', ['Once', 'Twice'], [1, 2, 3], [[1], [2, 3]]]) {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    expect((await plane.ask(PATH, { ...ASK, prompt })).status).toBe(200)
    expect(engine.requests[0]?.json).toMatchObject({ prompt })
  }
})

test('an engine makes no more than what was reserved, whatever it calls the limit', async () => {
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: engine.url })
  const sent = async (fields: object): Promise<unknown> => {
    expect((await plane.ask(PATH, { ...ASK, ...fields })).status).toBe(200)
    return engine.requests.at(-1)?.json
  }
  expect(await sent({})).toEqual({ ...ASK, max_tokens: 16 })
  expect(await sent({ prompt: Array.from({ length: 4090 }, () => 1) })).toMatchObject({ max_tokens: 6 })
  expect(await sent({ max_tokens: null, n_predict: -1 })).toEqual({ ...ASK, max_tokens: 16, n_predict: 16 })
  expect(await sent({ max_tokens: 3, n_predict: 400, n_cmpl: 8 })).toEqual({ ...ASK, max_tokens: 3, n_predict: 3, n_cmpl: 1 })
})

describe('what cannot be is refused before an engine is called', () => {
  test.each<[string, object, number, string | null]>([
    ['no prompt', { prompt: undefined }, 400, 'prompt'],
    ['a prompt of something else', { prompt: [1, 'a'] }, 400, 'prompt[1]'],
    ['a wrong setting', { temperature: 3 }, 400, 'temperature'],
    ['more output than the model has', { max_tokens: 513 }, 416, 'max_tokens'],
    ['a prompt that fills the context', { prompt: Array.from({ length: 4096 }, () => 1) }, 400, null],
    ['a prompt and an answer beyond the context', { prompt: Array.from({ length: 4000 }, () => 1), max_tokens: 100 }, 400, null],
    ['an unknown model', { model: 'nobody' }, 422, 'model'],
    ['a model of another kind', { model: 'tiny-embed' }, 400, 'model'],
  ])('%s', async (_name, fields, status, param) => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const answer = await plane.ask(PATH, { ...ASK, ...fields })
    expect(answer.status).toBe(status)
    expect(await answer.json()).toMatchObject({ error: { param } })
    expect(engine.requests).toHaveLength(0)
  })
})
