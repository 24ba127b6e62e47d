import { readFile } from 'node:fs/promises'
import fc from 'fast-check'
import { request } from 'undici'
import { describe, expect, test } from 'vitest'
import { z } from 'zod'
import { errorToLog } from './error-to-log.ts'
import { openLog } from './log.ts'

const MARK = 'the-patient-has-a-fever'
const caught = (work: () => unknown): unknown => {
  try {
    return work()
  } catch (error) {
    return error
  }
}
/** What the client of the database throws when the server says no. */
const fromDatabase = (code: string, message: string, more: object = {}): Error =>
  Object.assign(new Error(message), { name: 'error', severity: 'ERROR', routine: 'ExecConstraints', code, ...more })

describe('errors that quote are told without their words', () => {
  test.each<[string, () => unknown]>([
    ['a parser of JSON', () => JSON.parse(`{"messages": ${MARK}`)],
    ['a parser of numbers', () => BigInt(MARK)],
    ['a parser of addresses', () => new URL(MARK)],
    ['a header', () => new Headers({ 'x-a': `${MARK}\n` })],
    ['an argument of Node', () => Buffer.alloc(1).write(MARK, 'utf8' as never, MARK as never)],
    ['a regular expression', () => new RegExp(`(${MARK}`)],
    ['a schema', () => z.strictObject({}).parse({ [MARK]: 1 })],
    ['a lookup in nothing', () => (undefined as unknown as Record<string, string>)[MARK]],
    ['a value that the database does not take', () => fromDatabase('22P02', `invalid input syntax for type uuid: "${MARK}"`)],
    [
      'a row that is there already',
      () => fromDatabase('23505', 'duplicate key', { detail: `Key (name)=(${MARK}) already exists.`, where: MARK, constraint: MARK }),
    ],
    ['a thing that is no error', () => ({ message: MARK, stack: MARK })],
    ['a name that is none', () => Object.assign(new Error('x'), { name: MARK, code: MARK })],
    ['fields beside it', () => Object.assign(new SyntaxError('x'), { data: MARK, input: MARK, response: { body: MARK } })],
    ['a cause', () => new Error('cannot be read', { cause: caught(() => JSON.parse(MARK)) })],
    ['one of several', () => new AggregateError([caught(() => JSON.parse(MARK))], MARK)],
    ['a message in lines that look like a stack', () => new SyntaxError(`x\n    at ${MARK} (file:///x.js:1:1)\n    at y (/${MARK}:1:1)`)],
  ])('%s', (_name, work) => {
    const error = caught(work)
    const lines: string[] = []
    openLog('error', { write: (line: string) => lines.push(line) }).error({ err: error }, 'A request failed')
    expect(lines).toHaveLength(1)
    expect(lines.join('')).not.toContain(MARK)
    expect(lines.join('')).toContain('"type":')
  })

  test('whatever the words, of a parser', () => {
    fc.assert(
      fc.property(fc.string({ minLength: 6, unit: 'grapheme' }), (words) => {
        const error = caught(() => JSON.parse(`{"a": "${JSON.stringify(words).slice(1, -1)}" ${words}`))
        fc.pre(error instanceof SyntaxError)
        expect(Object.keys(errorToLog(error)).toSorted()).toEqual(['stack', 'type'])
      }),
    )
  })
})

describe('an operator still hears what is wrong', () => {
  test('with our own words, and where it was', () => {
    const logged = errorToLog(new Error('The numbers of 2026 are used up.', { cause: fromDatabase('53300', 'too many clients already') }))
    expect(logged).toMatchObject({
      type: 'Error',
      message: 'The numbers of 2026 are used up.',
      cause: { message: 'too many clients already' },
    })
    expect(logged.stack?.[0]).toContain('error-to-log.unit.test.ts')
  })

  test('of files and connections', async () => {
    const missing = await readFile('/nowhere/at-all').catch((error: unknown) => error)
    expect(errorToLog(missing)).toMatchObject({ code: 'ENOENT', message: expect.stringContaining('/nowhere/at-all') })
    const refused = await request('http://127.0.0.1:1/').catch((error: unknown) => error)
    expect(errorToLog(refused)).toMatchObject({ code: 'ECONNREFUSED', message: expect.stringContaining('127.0.0.1:1') })
    const late = await fetch('http://127.0.0.1:1/', { signal: AbortSignal.timeout(0) }).catch((error: unknown) => error)
    expect(errorToLog(late)).toMatchObject({ type: expect.stringMatching(/^(TimeoutError|TypeError)$/) })
  })

  test('of the database: its code, and the rule that was broken', () => {
    expect(errorToLog(fromDatabase('23505', MARK, { constraint: 'model_name_key' }))).toMatchObject({
      code: '23505',
      constraint: 'model_name_key',
    })
  })

  test('and a chain without end has one', () => {
    const error = new Error('round and round')
    error.cause = error
    expect(JSON.stringify(errorToLog(error)).length).toBeLessThan(20_000)
  })
})
