import { PassThrough } from 'node:stream'
import { expect, test } from 'vitest'
import { faultOf, openLog } from './log.ts'

const thrown = (message: string): Error => new TypeError(message)

test('of an error the log may have its name, its code and where it was thrown, but not its words', () => {
  const fault = faultOf(Object.assign(thrown('accepting the piece SECRET\n    at SECRET (SECRET:1:1)\nSECRET'), { code: 'ERR_X' }))
  expect(fault).toMatch(/^TypeError \[ERR_X\]\n {4}at thrown \(.*log\.test\.ts/)
  expect(fault).not.toContain('SECRET')
})

test('words in the place of a name or a code are left out too', () => {
  const error = Object.assign(thrown('SECRET'), { name: 'the secret', code: 'the secret' })
  expect(faultOf(error)).toMatch(/^Error\n {4}at /)
  expect(faultOf('SECRET')).not.toContain('SECRET')
})

test('without the message in front of them, frames cannot be told from words, and are left out', () => {
  const error = thrown('SECRET')
  error.stack = String(error.stack)
  error.message = 'something else'
  expect(faultOf(error)).toBe('TypeError')
})

test('a field cannot take the place of the level, the time or the message', async () => {
  const stream = new PassThrough()
  openLog(stream).warn('said', { level: 'fatal', msg: 'other', count: 1 })
  expect(JSON.parse(String(stream.read()))).toEqual({ level: 'warn', time: expect.any(String), msg: 'said', count: 1 })
})
