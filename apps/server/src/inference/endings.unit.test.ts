import { startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'
import type { RequestId } from '../kit/ids.ts'
import type { UsageEvent } from '../usage/event.ts'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'hi' }] }

test('an answer that was cut at its limit of output says so in its event, streamed or whole', async () => {
  for (const [finishReason, ended] of [
    ['length', 'length'],
    ['stop', 'complete'],
  ]) {
    await using engine = await startScriptedEngine({ finishReason: String(finishReason), tokens: ['"finish_reason":"length"'] })
    await using plane = await startDataPlane({ engine: engine.url })
    await (await plane.ask(CHAT, ASK)).text()
    await (await plane.ask(CHAT, { ...ASK, stream: true })).text()
    expect(plane.records.map((event) => event.ended)).toEqual([ended, ended])
  }
})

test('what an engine is given has begun before, and ends as an event or is withdrawn', async () => {
  await using engine = await startScriptedEngine()
  const begun: UsageEvent[] = []
  const withdrawn: RequestId[] = []
  const rooms = { noteOpen: (event: UsageEvent) => void begun.push(event), withdraw: (id: RequestId) => void withdrawn.push(id) }
  await using plane = await startDataPlane({ engine: engine.url, rooms })
  await (await plane.ask(CHAT, ASK)).text()
  engine.play({ status: 503 })
  expect((await plane.ask(CHAT, ASK)).status).toBe(503)
  expect((await plane.ask(CHAT, { ...ASK, model: 'unknown' })).status).toBe(422)

  const [first, second] = begun
  expect(begun).toHaveLength(2)
  expect(first).toMatchObject({ ended: 'lost', counted: 'none', input: 0, output: 0 })
  // The same instant and id: that is how the ledger knows that the one is the other.
  expect(plane.records).toMatchObject([{ id: first?.id, acceptedAt: first?.acceptedAt, projectId: first?.projectId, ended: 'complete' }])
  expect(withdrawn).toEqual([second?.id])
})
