import { PassThrough } from 'node:stream'
import { expect, test } from 'vitest'
import { openLog } from '../kit/log.ts'
import { relog } from './relog.ts'

const listen = () => {
  const lines: Record<string, unknown>[] = []
  const log = openLog('trace', { write: (line: string) => lines.push(JSON.parse(line)) } as unknown as NodeJS.WritableStream)
  const stream = new PassThrough()
  const relogged = relog(stream, log.child({ engine: 'e' }))
  const write = async (text: string | Buffer): Promise<void> => {
    stream.write(text)
    await new Promise((done) => setImmediate(done))
  }
  return { lines, write, relogged }
}

test('a line of a child keeps its level, its words and its fields, and gets the name of its engine', async () => {
  const { lines, write } = listen()
  await write('{"level":"warn","time":"2026-01-01","msg":"slow","tokens":3}\n')
  expect(lines).toEqual([{ level: 40, time: expect.any(String), engine: 'e', tokens: 3, msg: 'slow' }])
})

test('lines arrive in whatever pieces, also cut inside a character', async () => {
  const { lines, write } = listen()
  const bytes = Buffer.from('{"level":"info","msg":"größer"}\n{"level":"info","msg":"b"}\n')
  for (const byte of bytes) await write(Buffer.from([byte]))
  expect(lines.map(({ msg }) => msg)).toEqual(['größer', 'b'])
})

test('what native code writes is passed on cut to a bearable length, and the last of it is remembered', async () => {
  const { lines, write, relogged } = listen()
  await write(`ggml: ${'x'.repeat(1_000)}\n`)
  expect(String(lines[0]?.['line'])).toHaveLength(300)
  await write('GGML_ASSERT failed')
  expect(relogged.last()).toBe('GGML_ASSERT failed')
})

test('a line that never ends does not fill the memory', async () => {
  const { write, relogged, lines } = listen()
  for (let piece = 0; piece < 100; piece += 1) await write('y'.repeat(10_000))
  expect(relogged.last()).toHaveLength(300)
  expect(lines).toHaveLength(1)
})

test('an error of the child is its last word, a later notice is not', async () => {
  const { write, relogged } = listen()
  await write('{"level":"error","msg":"out of memory"}\n{"level":"info","msg":"bye"}\n')
  expect(relogged.last()).toBe('out of memory')
})
