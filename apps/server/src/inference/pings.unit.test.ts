import { startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { expect, test } from 'vitest'

const CHAT = '/v1/chat/completions'
const ASK = { model: 'tiny-chat', messages: [{ role: 'user' as const, content: 'Hi' }], stream: true as const }
const limits = { pingMs: 60 }

test('a stream that waits for its first token is kept open by comments, and they are no first byte', async () => {
  await using engine = await startScriptedEngine({ holdAfter: 0, holdHead: true })
  await using plane = await startDataPlane({ engine: engine.url, limits })
  const client = await plane.raw()
  client.post(CHAT, JSON.stringify(ASK))
  await client.until(/: ping\n\n[^]*: ping\n\n/)
  expect(client.received()).toMatch(/^HTTP\/1.1 200 OK\r\ncontent-type: text\/event-stream/)
  const pingedAt = Date.now()
  // What is not held yet would not be let go.
  await engine.until('held')
  engine.release()
  await client.until(/\[DONE\]\n\n\r\n0\r\n\r\n/)
  expect(plane.records).toMatchObject([{ ended: 'complete', status: 200 }])
  expect(plane.records[0]?.firstByteAt).toBeGreaterThanOrEqual(pingedAt)
})

test('comments stand between events also later, and the official SDK does not see them', async () => {
  await using engine = await startScriptedEngine({ holdAfter: 1 })
  await using plane = await startDataPlane({ engine: engine.url, limits })
  const raw = await plane.raw()
  raw.post(CHAT, JSON.stringify(ASK))
  await raw.until(/: ping\n\n/)
  let text = ''
  const stream = await plane.openai().chat.completions.create(ASK)
  const reading = (async () => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
  })()
  await raw.until(/(: ping\n\n[^]*){4}/)
  await engine.until('held', 2)
  engine.release()
  await reading
  expect(text).toBe('Hello world.')
  const said = await raw.until(/\[DONE\]/)
  // Never inside an event: every line is a comment, data or nothing.
  const lines = said
    .slice(said.indexOf('\r\n\r\n') + 4)
    .split('\r\n')
    .filter((_, index) => index % 2 === 1)
    .join('')
    .split('\n')
  expect(lines.filter((line) => line !== '' && line !== ': ping' && !line.startsWith('data: '))).toEqual([])
})

test('an engine that fails after a comment ends the stream with an error event, and is recorded', async () => {
  await using engine = await startScriptedEngine({ holdAfter: 0, holdHead: true })
  await using plane = await startDataPlane({ engine: engine.url, limits })
  const client = await plane.raw()
  client.post(CHAT, JSON.stringify(ASK))
  await client.until(/: ping\n\n/)
  await engine.until('held')
  engine.cut()
  const said = await client.until(/0\r\n\r\n$/)
  expect(said).toMatch(/data: \{"error":\{"message":"No engine is ready[^\n]*"code":503\}\}\n\ndata: \[DONE\]\n\n/)
  // The comment had begun a 200.
  expect(plane.records).toMatchObject([{ ended: 'engine_failed', status: 200, output: 0 }])
})

test('after a comment another engine may still answer', async () => {
  await using first = await startScriptedEngine({ holdAfter: 0, holdHead: true })
  await using second = await startScriptedEngine()
  await using plane = await startDataPlane({ engine: first.url, others: [second.url], limits })
  const client = await plane.raw()
  client.post(CHAT, JSON.stringify(ASK))
  await client.until(/: ping\n\n/)
  await first.until('held')
  first.cut()
  expect(await client.until(/\[DONE\]/)).toContain('" world"')
  expect(plane.records).toMatchObject([{ replica: 'scripted-2', ended: 'complete' }])
})

test('whole answers get none, and neither does anybody when they are switched off', async () => {
  for (const [body, pingMs] of [
    [{ ...ASK, stream: false }, 20],
    [ASK, 0],
  ] as const) {
    await using engine = await startScriptedEngine({ headDelayMs: 120 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { pingMs } })
    expect(await (await plane.ask(CHAT, body)).text()).not.toContain('ping')
  }
})
