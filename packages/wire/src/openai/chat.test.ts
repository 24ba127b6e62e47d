import fc from 'fast-check'
import { expect, test } from 'vitest'
import { ChatRequest, isPlainChat } from './chat.ts'

const odd = fc.constantFrom<unknown>(null, '', 'text', 0, 1, 1.5, -1, 3, 2 ** 53, true, [], ['a'], {}, { include_usage: true })
const few = (...usual: readonly unknown[]) => fc.oneof({ weight: 15, arbitrary: fc.constantFrom(...usual) }, { weight: 1, arbitrary: odd })

const message = fc.oneof(
  { weight: 15, arbitrary: fc.record({ role: fc.constantFrom('user', 'assistant', 'system'), content: fc.string(), name: few('Ada') }) },
  {
    weight: 1,
    arbitrary: fc.record(
      {
        role: few('user', 'assistant', 'tool', 'developer', 'robot'),
        content: few('Hi', null),
        tool_calls: few(null, []),
        tool_call_id: few('a'),
      },
      { requiredKeys: [] },
    ),
  },
  { weight: 1, arbitrary: odd },
)
const plain = fc.record(
  {
    model: few('m'),
    messages: fc.oneof({ weight: 15, arbitrary: fc.array(message, { minLength: 1, maxLength: 3 }) }, { weight: 1, arbitrary: odd }),
    stream: few(true, false),
    max_tokens: few(1, 400),
    max_completion_tokens: few(1, 400),
    temperature: few(0, 0.7, 2),
    top_p: few(0, 0.9, 1),
    ours: odd,
  },
  { requiredKeys: ['model', 'messages'] },
)
const more = fc.record(
  { model: odd, messages: odd, n: few(1), stop: few('a'), response_format: few({ type: 'text' }) },
  { requiredKeys: [] },
)
const request = fc.oneof(
  { weight: 3, arbitrary: plain },
  { weight: 1, arbitrary: fc.tuple(plain, more).map(([one, other]) => ({ ...one, ...other })) },
)

test('what counts as a plain chat is what the schema takes as it is', () => {
  let seen = 0
  fc.assert(
    fc.property(request, (fields) => {
      if (!isPlainChat(fields)) return
      seen += 1
      expect(ChatRequest.parse(fields)).toEqual(fields)
    }),
    { numRuns: 20_000 },
  )
  expect(seen).toBeGreaterThan(500)
})

test.each([
  [{ model: 'm', messages: [{ role: 'user', content: 'Hi' }] }, true],
  [
    { model: 'm', messages: [{ role: 'user', content: 'Hi' }], stream: true, max_completion_tokens: 400, temperature: 0.7, user: 'Ada' },
    true,
  ],
  [{ model: 'm', messages: [{ role: 'user', content: 'Hi' }], tools: [] }, false],
  [{ model: 'm', messages: [{ role: 'tool', content: 'Hi' }] }, false],
  [{ model: 'm', messages: [{ role: 'assistant', content: 'Hi', tool_calls: [{}] }] }, false],
  [{ model: 'm', messages: [] }, false],
  [{ model: 'm' }, false],
  [{ messages: [{ role: 'user', content: 'Hi' }] }, false],
])('%j is plain: %s', (fields, plain) => {
  expect(isPlainChat(fields)).toBe(plain)
})
