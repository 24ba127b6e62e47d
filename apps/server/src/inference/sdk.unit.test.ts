import { startDataPlane } from '@parvis/testkit/data-plane'
import { scriptedVector, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import OpenAI from 'openai'
import { describe, expect, test } from 'vitest'

const ASK = { model: 'tiny-chat', messages: [{ role: 'user' as const, content: 'Hi' }] }

describe.each([false, true])('the official Node SDK (project in the URL: %s)', (project) => {
  test('chats', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const completion = await plane.openai({ project }).chat.completions.create(ASK)
    expect(completion.choices[0]?.message.content).toBe('Hello world.')
    expect(completion.usage).toMatchObject({ prompt_tokens: 7, completion_tokens: 3, total_tokens: 10 })
    expect(completion._request_id).toBe(plane.records[0]?.id)
    expect(completion.id).toBe(`chatcmpl-${plane.records[0]?.id}`)
  })

  test('streams, with usage when it asks', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    let text = ''
    const usages: unknown[] = []
    const stream = await plane
      .openai({ project })
      .chat.completions.create({ ...ASK, stream: true, stream_options: { include_usage: true } })
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
      if (chunk.usage) usages.push(chunk.usage)
    }
    expect(text).toBe('Hello world.')
    expect(usages).toMatchObject([{ prompt_tokens: 7, completion_tokens: 3 }])
  })

  test('embeds with its default, which is base64', async () => {
    for (const encoding of ['float', 'base64'] as const) {
      await using engine = await startScriptedEngine({ encoding })
      await using plane = await startDataPlane({ engine: engine.url })
      const embedded = await plane.openai({ project }).embeddings.create({ model: 'tiny-embed', input: ['a', 'b'] })
      expect(embedded.data.map((row) => row.embedding)).toEqual([scriptedVector(0), scriptedVector(1)])
    }
  })

  test('lists models and reads one', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const client = plane.openai({ project })
    expect((await client.models.list()).data.map((model) => model.id)).toEqual(['tiny-chat', 'tiny-embed'])
    expect((await client.models.retrieve('tiny-embed')).owned_by).toBe('parvis')
    await expect(client.models.retrieve('nobody')).rejects.toBeInstanceOf(OpenAI.NotFoundError)
  })
})

describe('tools', () => {
  const tools = [
    { type: 'function' as const, function: { name: 'get_x', parameters: { type: 'object', properties: { a: { type: 'number' } } } } },
  ]
  const toolCalls = [{ id: 'chatcmpl-tool-1', name: 'get_x', arguments: '{"a": 1}' }]

  test('go to the engine and their calls come back, whole and streamed', async () => {
    await using engine = await startScriptedEngine({ toolCalls })
    await using plane = await startDataPlane({ engine: engine.url })
    const client = plane.openai()
    const completion = await client.chat.completions.create({ ...ASK, tools, tool_choice: 'required' })
    expect(engine.requests[0]?.json).toMatchObject({ tools, tool_choice: 'required' })
    expect(completion.choices[0]).toMatchObject({
      finish_reason: 'tool_calls',
      message: { tool_calls: [{ id: 'chatcmpl-tool-1', function: { name: 'get_x', arguments: '{"a": 1}' } }] },
    })
    const final = await client.chat.completions.stream({ ...ASK, tools }).finalChatCompletion()
    expect(final.choices[0]?.message.tool_calls?.[0]).toMatchObject({ function: { name: 'get_x', arguments: '{"a": 1}' } })
  })

  test('and their results go to the engine', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const call = { id: 'chatcmpl-tool-1', type: 'function' as const, function: { name: 'get_x', arguments: '{"a": 1}' } }
    const messages = [
      ...ASK.messages,
      { role: 'assistant' as const, content: null, tool_calls: [call] },
      { role: 'tool' as const, tool_call_id: call.id, content: '1' },
    ]
    await plane.openai().chat.completions.create({ model: 'tiny-chat', messages, tools })
    expect(engine.requests[0]?.json).toMatchObject({ messages })
  })
})

describe('errors', () => {
  test('arrive as the classes that clients catch', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const client = plane.openai()
    const stranger = new OpenAI({ apiKey: '00000000-0000-4000-8000-000000000000', baseURL: `${plane.url}/v1`, maxRetries: 0 })
    await expect(stranger.chat.completions.create(ASK)).rejects.toBeInstanceOf(OpenAI.PermissionDeniedError)
    await expect(client.chat.completions.create({ ...ASK, model: 'nobody' })).rejects.toBeInstanceOf(OpenAI.UnprocessableEntityError)
    await expect(client.chat.completions.create({ ...ASK, temperature: 9 })).rejects.toMatchObject({
      status: 400,
      param: 'temperature',
      type: 'BadRequestError',
    })
    await expect(client.chat.completions.create({ ...ASK, max_tokens: 9999 })).rejects.toMatchObject({ status: 416 })
  })

  test('in the middle of a stream are raised', async () => {
    await using engine = await startScriptedEngine({ cutAfter: 2 })
    await using plane = await startDataPlane({ engine: engine.url })
    let text = ''
    const reading = async (): Promise<void> => {
      const stream = await plane.openai().chat.completions.create({ ...ASK, stream: true })
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? ''
    }
    await expect(reading()).rejects.toBeInstanceOf(OpenAI.APIError)
    expect(text).toBe('Hello world')
  })

  test('that pass are tried again, as often as the SDK does', async () => {
    await using engine = await startScriptedEngine()
    engine.playOnce({ status: 503, headers: { 'retry-after-ms': '10' } })
    engine.playOnce({ cutAfter: 0 })
    await using plane = await startDataPlane({ engine: engine.url })
    const completion = await plane.openai({ maxRetries: 2 }).chat.completions.create(ASK)
    expect(completion.choices[0]?.message.content).toBe('Hello world.')
    // A request that is sent again is another; the one in the middle had an engine that broke off, and is not charged.
    expect(plane.records.map(({ ended }) => ended)).toEqual(['engine_failed', 'complete'])
  })
})

test('an aborted SDK call stops the engine', async () => {
  await using engine = await startScriptedEngine({ holdAfter: 1 })
  await using plane = await startDataPlane({ engine: engine.url })
  const stream = await plane.openai().chat.completions.create({ ...ASK, stream: true })
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content === 'Hello') break
  await engine.until('aborted')
  await expect.poll(() => plane.records).toMatchObject([{ ended: 'client_left', output: 1 }])
})
