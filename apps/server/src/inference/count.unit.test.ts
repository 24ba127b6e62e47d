import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { describe, expect, test } from 'vitest'
import type { Model } from '../catalog/model.ts'
import type { Replica } from '../engines/replica.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { bufferToBody } from './body.ts'
import { openCount } from './count.ts'
import type { Request } from './endpoints/endpoint.ts'

const MODEL = { id: 'model' as ModelId, name: 'tiny-chat' } as Model
const REQUEST: Request = {
  enginePath: '/v1/chat/completions',
  stream: false,
  wantsUsage: false,
  estimate: { inputTokens: 1, outputTokens: 1 },
  bytesFor: (model) => bufferToBody(Buffer.from(JSON.stringify({ model, messages: [{ role: 'user', content: 'Hello' }] }))),
  answerKey: 'choices',
}
const STAY = new AbortController().signal

/** Longer than any machine stalls: where the time is not what a test is about, it must not end it. */
const LONG_MS = 60_000

const open = (origin: string | undefined, answerMs = LONG_MS) => {
  const replica: Replica | undefined =
    origin === undefined
      ? undefined
      : {
          name: 'scripted',
          engineId: 'engine' as EngineId,
          modelId: MODEL.id,
          origin,
          basePath: '/base',
          remoteModel: 'theirs',
          bearer: 'secret',
        }
  const { count, close } = openCount({ log: openLog('silent'), replicaOf: () => replica, answerMs })
  return { count: (request: Request = REQUEST, signal = STAY) => count(MODEL, request, signal), [Symbol.asyncDispose]: close }
}

describe('an engine is asked how many tokens an input is', () => {
  test('with the body that it would get, by its own name for the model and with its key', async () => {
    await using engine = await startScriptedEngine()
    await using asking = open(engine.url)
    expect(await asking.count()).toBe(7)
    expect(engine.requests).toMatchObject([
      {
        path: '/base/tokenize',
        headers: { authorization: 'Bearer secret' },
        json: { model: 'theirs', messages: [{ role: 'user', content: 'Hello' }] },
      },
    ])
  })

  test.each([
    ['before the tokens', { count: 123_456, max_model_len: 200_000, tokens: Array.from({ length: 100_000 }, () => 12_345) }, 123_456],
    ['behind the tokens', { tokens: Array.from({ length: 100_000 }, () => 12_345), count: 99, max_model_len: 4_096 }, 99],
    ['as the last of all', { tokens: [1, 2], count: 2 }, 2],
    ['nowhere', { tokens: [1, 2] }, undefined],
    ['as nothing', { count: 0, tokens: [] }, undefined],
    ['as what a prompt says', { tokens: [1], token_strs: ['"count":5,'] }, undefined],
  ])('and its count is found %s', async (_, body, expected) => {
    await using engine = await startScriptedEngine({ body })
    await using asking = open(engine.url)
    expect(await asking.count()).toBe(expected)
  })

  test('one that has no such route is asked once', async () => {
    await using engine = await startScriptedEngine({ status: 404 })
    await using asking = open(engine.url)
    expect(await asking.count()).toBeUndefined()
    engine.play({})
    expect(await asking.count()).toBeUndefined()
    expect(engine.requests).toHaveLength(1)
  })

  test('one that refuses is asked the next time', async () => {
    await using engine = await startScriptedEngine({ status: 400 })
    await using asking = open(engine.url)
    expect(await asking.count()).toBeUndefined()
    engine.play({})
    expect(await asking.count()).toBe(7)
  })

  test('one that is not there, is away, or does not answer in time says nothing, and nobody waits for it any longer', async () => {
    await using nowhere = open(undefined)
    expect(await nowhere.count()).toBeUndefined()
    const gone = await startScriptedEngine()
    await gone.close()
    await using away = open(gone.url)
    expect(await away.count()).toBeUndefined()
    await using engine = await startScriptedEngine({ holdAfter: 0, holdHead: true })
    await using asking = open(engine.url, 50)
    expect(await asking.count()).toBeUndefined()
  })

  test('at most four at a time: the fifth is left to the guess, and a client that leaves ends its question', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 0, holdHead: true })
    await using asking = open(engine.url)
    const leave = new AbortController()
    const four = Array.from({ length: 4 }, () => asking.count(REQUEST, leave.signal))
    await engine.until('held', 4)
    expect(await asking.count()).toBeUndefined()
    expect(engine.requests).toHaveLength(4)
    leave.abort()
    expect(await Promise.all(four)).toEqual([undefined, undefined, undefined, undefined])
    engine.play({})
    expect(await asking.count()).toBe(7)
  })

  test('of vectors and of rankings no engine is asked', async () => {
    await using engine = await startScriptedEngine()
    await using asking = open(engine.url)
    expect(await asking.count({ ...REQUEST, enginePath: '/v1/embeddings' })).toBeUndefined()
    expect(engine.requests).toEqual([])
  })
})
