import { expect, test } from 'vitest'
import { openNativeLog } from './native-log.ts'

test('lines keep their words while the model loads; once it serves only what they are about is told', () => {
  const told: unknown[] = []
  const say = (...what: unknown[]): void => void told.push(what)
  const native = openNativeLog({ info: say, warn: say, error: say })
  native.line('error', 'missing tensor\n')
  native.serve()
  const words = 'llama.cpp reported an error, whose words are not kept'
  for (const text of ['failed to parse grammar: SECRET', 'decode: SECRET', 'failed to find a memory slot', 'failed to allocate', 'SECRET'])
    native.line('error', text)
  expect(told).toEqual([
    ['llama.cpp', { severity: 'error', reason: 'missing tensor' }],
    ...['sampling', 'computing', 'cache', 'memory', 'other'].map((about) => [words, { severity: 'error', about }]),
  ])
})
