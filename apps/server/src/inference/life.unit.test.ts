import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'

const at = (text: string): Instant => Date.parse(text) as Instant
const CHAT = '/v1/chat/completions'

test('every answer of a deprecated model says since when, until when, and what comes after it; no other model says anything', async () => {
  await using engine = await startScriptedEngine()
  const deprecated = aModel({
    name: 'elder',
    status: 'deprecated',
    deprecatedAt: at('2026-07-01T00:00:00.500Z'),
    endOfLifeAt: at('2026-10-01T12:00:00Z'),
    successor: 'tiny-chat',
  })
  await using plane = await startDataPlane({ engine: engine.url, models: [deprecated, aModel()] })
  const asked = async (model: string, more: object = {}): Promise<unknown[]> => {
    const answer = await plane.ask(CHAT, { model, messages: [{ role: 'user', content: 'hello' }], ...more })
    await answer.text()
    return [answer.status, ...['deprecation', 'sunset', 'link'].map((name) => answer.headers.get(name))]
  }
  const said = ['@1782864000', 'Thu, 01 Oct 2026 12:00:00 GMT', '</v1/models/tiny-chat>; rel="successor-version"']
  expect(await asked('elder')).toEqual([200, ...said])
  expect(await asked('elder', { stream: true })).toEqual([200, ...said])
  expect(await asked('elder', { temperature: 'hot' })).toEqual([400, ...said])
  expect(await asked('tiny-chat')).toEqual([200, null, null, null])
})
