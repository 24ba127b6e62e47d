import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type FormLimits, isMultipart, readForm, writeForm } from './multipart.ts'

const LIMITS: FormLimits = { fileField: 'file', fileBytes: 4096, fieldBytes: 64, fields: 8 }
const BOUNDARY = 'b0undary'
const TYPE = `multipart/form-data; boundary=${BOUNDARY}`

const cutAt = (bytes: Uint8Array, places: readonly number[]): Uint8Array[] => {
  const cuts = [0, ...new Set(places.map((place) => place % (bytes.length + 1))), bytes.length].toSorted((a, b) => a - b)
  return cuts.slice(1).map((end, index) => bytes.subarray(cuts[index], end))
}
const formOf = (fields: readonly (readonly [string, string])[], file: Uint8Array): Buffer =>
  Buffer.concat(writeForm(BOUNDARY, fields, { field: 'file', name: 'clip.wav', pieces: [file] }))
const read = async (bytes: Uint8Array, places: readonly number[] = [], limits = LIMITS) => {
  const outcome = await readForm(TYPE, cutAt(bytes, places), limits)
  if (!outcome.ok) return { problem: outcome.problem }
  const { fields, file } = outcome.value
  return { fields: Object.fromEntries(fields), file: file && Buffer.concat(file.pieces).toString('latin1') }
}

// Twelve characters may be more bytes than a field may have.
const value = fc.string({ unit: 'grapheme', maxLength: 12 }).filter((text) => Buffer.byteLength(text) <= LIMITS.fieldBytes)

describe('a form', () => {
  test('is the same wherever it is cut, and whatever its file has in it', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.constantFrom('model', 'prompt', 'items[]', '__proto__'), value), { maxLength: 5 }),
        fc.uint8Array({ maxLength: 600 }),
        fc.array(fc.nat(), { maxLength: 40 }),
        async (fields, file, places) => {
          // A line break in a field's value is kept; a boundary cannot be in it, as senders choose one that does not occur.
          const bytes = formOf(fields, file)
          const outcome = await readForm(TYPE, cutAt(bytes, places), LIMITS)
          if (!outcome.ok) throw new Error(outcome.problem)
          const expected = new Map<string, string[]>()
          for (const [name, value] of fields) expected.set(name, [...(expected.get(name) ?? []), value])
          expect([...outcome.value.fields]).toEqual([...expected])
          expect(Buffer.concat(outcome.value.file?.pieces ?? []).equals(file)).toBe(true)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('that looks almost like its own boundary inside the file keeps every byte, byte by byte', async () => {
    const file = Buffer.from(`\r\n--${BOUNDARY.slice(0, -1)}\r\n--\r\n-\r\r\n--${BOUNDARY.slice(0, 3)}`)
    const bytes = formOf([['model', 'm']], file)
    const whole = await read(bytes)
    expect(whole.file).toBe(file.toString('latin1'))
    expect(await read(bytes, Array.from(bytes.keys()))).toEqual(whole)
  })

  test('of random bytes never does more than say that it is broken', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 400 }), fc.array(fc.nat(), { maxLength: 8 }), async (noise, places) => {
        const outcome = await read(noise, places)
        expect(outcome.problem ?? outcome.fields).toBeDefined()
      }),
      { numRuns: 200 },
    )
  })

  test('that ends too early is broken, wherever it ends', async () => {
    const bytes = formOf([['model', 'm']], Buffer.alloc(50, 1))
    for (let end = 0; end < bytes.length - 4; end += 1) expect(await read(bytes.subarray(0, end))).toEqual({ problem: 'broken' })
  })

  test('with damaged bytes is read or refused, and does not hang', async () => {
    const bytes = formOf(
      [
        ['model', 'm'],
        ['prompt', 'hello'],
      ],
      Buffer.alloc(80, 7),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 6 }), async (damage) => {
        const damaged = Buffer.from(bytes)
        for (const [place, value] of damage) damaged[place % damaged.length] = value
        await read(damaged)
      }),
      { numRuns: 300 },
    )
  })
})

describe('the limits', () => {
  test('a file may have exactly as many bytes as it may have', async () => {
    expect((await read(formOf([], Buffer.alloc(4096)))).file).toHaveLength(4096)
    expect(await read(formOf([], Buffer.alloc(4097)))).toEqual({ problem: 'file_too_large' })
  })

  test('a field that is too long, too many fields, and a second file are refused', async () => {
    expect(await read(formOf([['prompt', 'x'.repeat(65)]], Buffer.alloc(1)))).toEqual({ problem: 'field_too_large' })
    const many = Array.from({ length: 9 }, (_, index) => [`f${index}`, 'x'] as const)
    expect(await read(formOf(many, Buffer.alloc(1)))).toEqual({ problem: 'too_many' })
    const twice = Buffer.concat([formOf([], Buffer.alloc(1)).subarray(0, -4), Buffer.from('\r\n'), formOf([], Buffer.alloc(1))])
    expect(await read(twice)).toEqual({ problem: 'too_many' })
  })

  test('a header that never ends is not kept', async () => {
    const bytes = Buffer.concat([Buffer.from(`--${BOUNDARY}\r\nx: `), Buffer.alloc(100_000, 0x61)])
    expect(await read(bytes)).toEqual({ problem: 'broken' })
  })
})

test('only a form with a boundary is one', async () => {
  expect(isMultipart('Multipart/Form-Data; boundary=x')).toBe(true)
  expect(isMultipart('application/json')).toBe(false)
  expect(isMultipart(undefined)).toBe(false)
  expect(await readForm('multipart/form-data; charset=utf-8', [], LIMITS)).toMatchObject({ ok: false, problem: 'broken' })
})
