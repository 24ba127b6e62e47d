import { PassThrough } from 'node:stream'
import { until } from '@parvis/testkit/until'
import { expect, test } from 'vitest'
import { openLog } from '../kit/log.ts'
import { relog } from './relog.ts'

const listen = (tellMs?: number) => {
  const lines: Record<string, unknown>[] = []
  const log = openLog('trace', { write: (line: string) => lines.push(JSON.parse(line)) } as unknown as NodeJS.WritableStream)
  const stream = new PassThrough()
  const relogged = relog(stream, log.child({ engine: 'e' }), tellMs)
  const write = async (text: string | Buffer): Promise<void> => {
    stream.write(text)
    await new Promise((done) => setImmediate(done))
  }
  return { lines, write, relogged, stream }
}

const line = (level: string, msg: string, more: object = {}): string =>
  `${JSON.stringify({ ...more, level, time: '2026-01-01T00:00:00.000Z', msg })}\n`

test('a line of a child keeps its level, its words and its fields, and gets the name of its engine', async () => {
  const { lines, write } = listen()
  await write(line('warn', 'slow', { tokens: 3 }))
  expect(lines).toEqual([{ level: 40, time: expect.any(String), engine: 'e', tokens: 3, msg: 'slow' }])
})

test('lines arrive in whatever pieces, also cut inside a character', async () => {
  const { lines, write } = listen()
  const bytes = Buffer.from(line('info', 'größer') + line('info', 'b'))
  for (const byte of bytes) await write(Buffer.from([byte]))
  expect(lines.map(({ msg }) => msg)).toEqual(['größer', 'b'])
})

test.each([
  'root ::= "SECRET"',
  'parse: error parsing grammar: SECRET',
  '{"level":"warn","SECRET":',
  '{"SECRET":1}',
  '{"msg":"SECRET"}',
  '{"level":"warn","msg":"SECRET"}',
  '{"level":"warn","time":"SECRET","msg":"SECRET"}',
  '{"level":"SECRET","time":"2026-01-01T00:00:00.000Z","msg":"x"}',
  '{"level":"warn","time":"2026-01-01T00:00:00.000Z","msg":{"SECRET":1}}',
  '{"level":"warn","time":"2026-01-01T00:00:00.000Z","msg":"x","schema":{"SECRET":1}}',
  'Error: SECRET',
  '    at SECRET (x.js:1:1)',
  '  what():  Unexpected empty grammar stack after accepting piece: SECRET',
  'root ::= "GGML_ASSERT(SECRET) failed"',
  'SECRET: GGML_ASSERT(a) failed',
  'GGML_ASSERT("SECRET") failed',
  "terminate called after throwing an instance of 'the SECRET'",
  'free(): invalid SECRET',
  'FATAL ERROR: SECRET JavaScript heap out of memory',
])('of what is not a line of its log no words go on: %s', async (text) => {
  const { lines, write, relogged } = listen()
  await write(`${text}\n${text}`)
  expect(relogged.last() ?? '').not.toContain('SECRET')
  expect(lines).toHaveLength(lines[0]?.['lines'] === 2 ? 1 : 2)
  expect(JSON.stringify(lines)).not.toContain('SECRET')
})

test('lines that are not its log are counted and told once in a while, and at the end', async () => {
  const { lines, write, stream } = listen(20)
  await write('a\nb\n\nc\n')
  expect(lines).toEqual([])
  const told = (count: number) => ({
    level: 40,
    time: expect.any(String),
    engine: 'e',
    lines: count,
    msg: `the engine wrote ${count} lines that are not its log`,
  })
  await until('the first are told', () => lines.length > 0)
  expect(lines).toEqual([told(3)])
  await write('d\n')
  stream.destroy()
  await until('the last is told', () => lines.length > 1)
  expect(lines).toEqual([told(3), told(1)])
})

test.each([
  ['GGML_ASSERT(n_tokens > 0) failed', 'GGML_ASSERT(n_tokens > 0) failed'],
  ['/build/llama.cpp/ggml/src/ggml.c:1234: GGML_ASSERT(a->ne[0] == 3 && b) failed', 'ggml.c:1234: GGML_ASSERT(a->ne[0] == 3 && b) failed'],
  ["terminate called after throwing an instance of 'std::bad_alloc'", "terminate called after throwing an instance of 'std::bad_alloc'"],
  ['terminate called without an active exception', 'terminate called without an active exception'],
  ['double free or corruption (!prev)', 'the heap is corrupted'],
  ['FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory', 'JavaScript heap out of memory'],
  ['node: error while loading shared libraries: libgomp.so.1: cannot open shared object file', 'the library libgomp.so.1 cannot be loaded'],
  ["Error: Cannot find module '/opt/engine/main.js'", "Cannot find module '/opt/engine/main.js'"],
  ["Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'zod' imported from /opt/x.js", "Cannot find package 'zod'"],
])('what breaking code says is told without what it may quote, and remembered: %s', async (said, told) => {
  const { lines, write, relogged } = listen()
  await write(said)
  expect(relogged.last()).toBe(told)
  expect(lines).toMatchObject([{ level: 40, words: told }])
})

test('a line that never ends does not fill the memory', async () => {
  const { write, relogged, lines } = listen()
  for (let piece = 0; piece < 100; piece += 1) await write('y'.repeat(10_000))
  expect(relogged.last()).toBeUndefined()
  expect(lines).toMatchObject([{ lines: 1 }])
})

test('an error of the child is its last word, a later notice is not', async () => {
  const { write, relogged } = listen()
  await write(line('error', 'out of memory') + line('info', 'bye'))
  expect(relogged.last()).toBe('out of memory')
})
