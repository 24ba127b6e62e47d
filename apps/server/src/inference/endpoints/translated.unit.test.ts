import { aModel } from '@parvis/testkit/data-plane'
import { ChatRequest } from '@parvis/wire/openai/chat'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { systemClock } from '../../kit/clock.ts'
import { bufferToBody, slice } from '../body.ts'
import { completions } from './completions.ts'
import type { Endpoint } from './endpoint.ts'
import { messages } from './messages.ts'
import { responses } from './responses.ts'

const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
const MODEL = aModel({ features: { tools: true, structuredOutput: true, reasoning: true, vision: true } })

const ask = (endpoint: Endpoint, body: unknown) => {
  const reading = endpoint.read(bufferToBody(Buffer.from(JSON.stringify(body))))
  return reading.ok ? endpoint.check(reading.value, MODEL) : reading
}

const text = fc.string({ maxLength: 5 })
const name = fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 3 })
const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined })

const responsesRequest = fc.record({
  model: fc.constant('tiny-chat'),
  instructions: maybe(text),
  max_output_tokens: maybe(fc.integer({ min: 1, max: 512 })),
  tools: maybe(fc.array(fc.record({ type: fc.constant('function'), name, parameters: fc.constant({ type: 'object' }) }), { maxLength: 2 })),
  tool_choice: maybe(fc.constantFrom('auto', 'none', 'required')),
  stream: maybe(fc.boolean()),
  input: fc.oneof(
    text,
    fc.array(
      fc.oneof(
        fc.record({ role: fc.constantFrom('user', 'assistant', 'system', 'developer'), content: text }),
        fc.record({
          type: fc.constant('message'),
          role: fc.constant('user'),
          content: fc.array(
            fc.oneof(
              fc.record({ type: fc.constant('input_text'), text }),
              fc.constant({ type: 'input_image', image_url: `data:image/png;base64,${PIXEL}` }),
            ),
            { maxLength: 3 },
          ),
        }),
        fc.record({ type: fc.constant('function_call'), call_id: name, name, arguments: text }),
        fc.record({ type: fc.constant('function_call_output'), call_id: name, output: text }),
        fc.constant({ type: 'reasoning', summary: [] }),
      ),
      { minLength: 1, maxLength: 8 },
    ),
  ),
})

const block = fc.oneof(
  fc.record({ type: fc.constant('text'), text }),
  fc.constant({ type: 'image', source: { type: 'base64', media_type: 'image/png', data: PIXEL } }),
)
const messagesRequest = fc.record({
  model: fc.constant('tiny-chat'),
  max_tokens: fc.integer({ min: 1, max: 512 }),
  system: maybe(fc.oneof(text, fc.array(fc.record({ type: fc.constant('text'), text }), { maxLength: 2 }))),
  stream: maybe(fc.boolean()),
  messages: fc.array(
    fc.oneof(
      fc.record({
        role: fc.constant('user'),
        content: fc.oneof(
          text,
          fc.array(
            fc.oneof(block, fc.record({ type: fc.constant('tool_result'), tool_use_id: name, content: fc.array(block, { maxLength: 2 }) })),
            { maxLength: 3 },
          ),
        ),
      }),
      fc.record({
        role: fc.constant('assistant'),
        content: fc.oneof(
          text,
          fc.array(
            fc.oneof(
              fc.record({ type: fc.constant('text'), text }),
              fc.record({ type: fc.constant('tool_use'), id: name, name, input: fc.constant({ a: 1 }) }),
              fc.constant({ type: 'thinking', thinking: 'a', signature: '' }),
            ),
            { maxLength: 3 },
          ),
        ),
      }),
    ),
    { minLength: 1, maxLength: 5 },
  ),
})

const DIALECTS: [Endpoint, fc.Arbitrary<unknown>][] = [
  [responses(systemClock), responsesRequest],
  [messages, messagesRequest],
]

describe.each(DIALECTS)('$path', (endpoint, valid) => {
  test('every valid request is a valid chat, and its pictures are all there', () => {
    fc.assert(
      fc.property(valid, (body) => {
        // Reasoning alone is a conversation without a turn, which no model can answer.
        const asked = ask(endpoint, body)
        if (!asked.ok) {
          expect(asked.refusal).toMatchObject({ code: 'field_invalid', field: endpoint.name === 'responses' ? 'input' : 'messages' })
          expect(JSON.stringify(body)).not.toMatch(/"role"|function_call|"input":"/)
          return
        }
        const bytes = asked.value.bytesFor('tiny-chat')
        const chat = JSON.parse(slice(bytes, { start: 0, end: bytes.bytes }).toString()) as ChatRequest
        expect(ChatRequest.safeParse(chat).success).toBe(true)
        const count = (value: unknown): number => JSON.stringify(value).split(PIXEL).length
        expect(count(chat)).toBe(count(body))
        const roles = chat.messages.map((message) => message.role)
        // Chat templates know one system message at a time.
        expect(roles.every((role, index) => role !== 'system' || roles[index - 1] !== 'system')).toBe(true)
      }),
      { numRuns: 300 },
    )
  })

  test('whatever else comes is refused or served, and never a fault', () => {
    const field = fc.oneof(fc.jsonValue(), fc.constant(undefined))
    fc.assert(
      fc.property(
        valid,
        fc.dictionary(
          fc.constantFrom('input', 'messages', 'tools', 'tool_choice', 'system', 'text', 'stop_sequences', 'thinking', 'stream'),
          field,
        ),
        (body, wrong) => {
          const asked = ask(endpoint, { ...(body as object), ...wrong })
          if (!asked.ok) expect(['field_invalid', 'body_not_json']).toContain(asked.refusal.code)
        },
      ),
      { numRuns: 500 },
    )
  })
})

test('a completion is refused or served, and never a fault', () => {
  fc.assert(
    fc.property(fc.oneof(fc.jsonValue(), fc.array(fc.nat(5000)), fc.array(fc.array(fc.nat(5000)))), fc.jsonValue(), (prompt, n) => {
      const asked = ask(completions, { model: 'tiny-chat', prompt, n })
      if (!asked.ok) expect(['field_invalid', 'context_exceeded']).toContain(asked.refusal.code)
    }),
  )
})
