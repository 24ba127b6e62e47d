import { addModel } from '@parvis/server/catalog/models'
import { addEngine, removeEngine } from '@parvis/server/engines/registry'
import { systemClock } from '@parvis/server/kit/clock'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import type OpenAI from 'openai'
import { afterAll, beforeAll, expect, test } from 'vitest'

// One pool of two engines, of which one speaks responses: each gets what it speaks, and the client sees no difference.

let database: TestDatabase
let house: TestHouse
let speaking: ScriptedEngine
let plain: ScriptedEngine
let openai: OpenAI

beforeAll(async () => {
  database = await freshDatabase()
  speaking = await startScriptedEngine({ reasoning: ['Hm.'], usage: { prompt: 20, completion: 4, cached: 5 } })
  plain = await startScriptedEngine({ reasoning: ['Hm.'], usage: { prompt: 20, completion: 4, cached: 5 } })
  house = await startHouse({ database })
  openai = house.openai()
  const modelId = await addModel(house.db, systemClock, 'test', {
    name: 'mixed',
    ownedBy: 'test',
    type: 'chat',
    contextTokens: 4096,
    maxOutputTokens: 256,
    features: { tools: true, structuredOutput: true, reasoning: true, vision: false },
    price: { input: 150_000n, output: 350_000n },
  })
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
  for (const [name, engine, speaks] of [
    ['speaking', speaking, ['responses']],
    ['plain', plain, []],
  ] as const) {
    const models = [{ modelId, modelName: 'mixed', remoteName: 'Org/mixed' }]
    await addEngine({ db: house.db, secrets, clock: systemClock }, { name, url: engine.url, bearer: undefined, models, speaks }, 'test')
  }
  await until('both are ready', () => house.engines.states().filter(({ state }) => state === 'ready').length === 2)
})

afterAll(async () => {
  await house?.stop()
  await speaking?.close()
  await plain?.close()
  await database?.drop()
})

const ask = { model: 'mixed', input: 'Hi' }
const pathsOf = (engine: ScriptedEngine): Set<string> =>
  new Set(engine.requests.map(({ path }) => path).filter((path) => path.startsWith('/v1/')))

test('each engine of a pool gets what it speaks, and all is counted alike', async () => {
  for (let round = 0; round < 4; round += 1) {
    const whole = await openai.responses.create(ask)
    const streamed = await openai.responses.stream(ask).finalResponse()
    for (const response of [whole, streamed]) {
      expect(response).toMatchObject({ model: 'mixed', status: 'completed', output_text: 'Hello world.', store: false })
      expect(response.output.map(({ type }) => type)).toEqual(['reasoning', 'message'])
      expect(response.usage).toMatchObject({ input_tokens: 20, input_tokens_details: { cached_tokens: 5 }, output_tokens: 4 })
    }
  }
  expect([pathsOf(speaking), pathsOf(plain)]).toEqual([new Set(['/v1/responses']), new Set(['/v1/chat/completions'])])
  const rows = async () =>
    (
      await house.db.query<{ replica: string; input_tokens: bigint; output_tokens: bigint; charged: boolean }>(
        `select distinct replica, input_tokens, cached_input_tokens, output_tokens, charged, ended from usage_event
          where endpoint = 'responses' order by replica`,
      )
    ).rows
  const counted = { input_tokens: 20n, cached_input_tokens: 5n, output_tokens: 4n, charged: true, ended: 'complete' }
  await expect.poll(rows).toEqual([
    { replica: 'plain', ...counted },
    { replica: 'speaking', ...counted },
  ])
})

test('where one of them fails the other answers, each in its own dialect', async () => {
  for (const [failing, other] of [
    [speaking, plain],
    [plain, speaking],
  ] as const) {
    failing.play({ status: 500 })
    const before = other.requests.length
    for (let round = 0; round < 3; round += 1) {
      expect((await openai.responses.stream(ask).finalResponse()).output_text).toBe('Hello world.')
    }
    expect(other.requests.length).toBe(before + 3)
    failing.play({})
  }
})

test('an engine that is added anew without the mark gets chats', async () => {
  const { rows } = await house.db.query<{ id: string }>(`select id from model where name = 'mixed'`)
  await removeEngine(house.db, 'plain', 'test')
  await removeEngine(house.db, 'speaking', 'test')
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
  const models = [{ modelId: rows[0]?.id as never, modelName: 'mixed', remoteName: 'Org/mixed' }]
  await addEngine({ db: house.db, secrets, clock: systemClock }, { name: 'speaking', url: speaking.url, bearer: undefined, models }, 'test')
  const before = speaking.requests.length
  await until(
    'it answers',
    async () => (await house.call('/v1/responses', { body: ask })).status === 200 && speaking.requests.length > before,
  )
  expect(speaking.requests.at(-1)?.path).toBe('/v1/chat/completions')
})
