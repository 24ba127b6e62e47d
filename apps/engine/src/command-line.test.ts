import { expect, test } from 'vitest'
import { readCommandLine } from './command-line.ts'

const GOOD = ['--model', 'a.gguf', '--name', 'a']

test('a model and a name are enough', () => {
  expect(readCommandLine(GOOD)).toMatchObject({
    kind: 'run',
    options: {
      modelPath: 'a.gguf',
      name: 'a',
      type: 'chat',
      sequences: 8,
      gpu: 'auto',
      host: '127.0.0.1',
      port: 0,
      matryoshka: [],
      contextTokens: undefined,
    },
  })
})

test('all options are read', () => {
  const line = [
    ...GOOD,
    '--type',
    'embedding',
    '--context',
    '512',
    '--max-output',
    '5',
    '--sequences',
    '2',
    '--threads',
    '3',
    '--memory-mb',
    '100',
  ]
  const more = [
    '--gpu',
    'off',
    '--temperature',
    '0.2',
    '--chat-template',
    'x.jinja',
    '--matryoshka',
    '32, 64',
    '--max-waiting',
    '0',
    '--max-wait-ms',
    '50',
    '--host',
    '::1',
    '--port',
    '80',
  ]
  expect(readCommandLine([...line, ...more])).toEqual({
    kind: 'run',
    options: {
      modelPath: 'a.gguf',
      name: 'a',
      type: 'embedding',
      contextTokens: 512,
      maxOutputTokens: 5,
      sequences: 2,
      threads: 3,
      memoryMb: 100,
      gpu: 'off',
      temperature: 0.2,
      chatTemplatePath: 'x.jinja',
      matryoshka: [32, 64],
      maxAudioSeconds: 7200,
      maxWaiting: 0,
      maxWaitMs: 50,
      host: '::1',
      port: 80,
    },
  })
})

test.each([
  [['--name', 'a'], '--model'],
  [['--model', 'a'], '--name'],
  [[...GOOD, '--colour', 'red'], '--colour'],
  [[...GOOD, '--type', 'video'], '--type'],
  [[...GOOD, '--gpu', 'on'], '--gpu'],
  [[...GOOD, '--context', 'many'], '--context'],
  [[...GOOD, '--sequences', '0'], '--sequences'],
  [[...GOOD, '--sequences', '65'], '--sequences'],
  [[...GOOD, '--port', '70000'], '--port'],
  [[...GOOD, '--threads', '-1'], '--threads'],
  [[...GOOD, '--temperature', 'hot'], '--temperature'],
  [[...GOOD, '--matryoshka', '32,x'], '--matryoshka'],
  [[...GOOD, 'extra'], 'extra'],
])('%j is refused, naming %s', (args, name) => {
  const line = readCommandLine(args)
  expect(line.kind).toBe('wrong')
  expect(line.kind === 'wrong' && line.message).toContain(name)
})

test('--help explains every option', () => {
  const line = readCommandLine(['--help'])
  expect(line.kind === 'help' && line.text).toContain('--matryoshka')
})
