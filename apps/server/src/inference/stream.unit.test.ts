import { startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'

const ASK = { model: 'tiny-chat', messages: [{ role: 'user', content: 'Hi' }] }

test('a stream goes through, byte for byte', async () => {
  await using engine = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: engine.url })
  const answer = await plane.ask('/v1/chat/completions', { ...ASK, stream: true, stream_options: { include_usage: true } })
  expect(answer.status).toBe(200)
  console.log(await answer.text(), plane.records, plane.log)
})
