import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Body, bufferToBody, slice, splice } from './body.ts'
import { scan, watch } from './scan.ts'

const KEYS = ['model', 'stream', 'max_tokens', 'messages', 'stream_options', '__proto__']
const WATCH = watch(KEYS)

const bodyOf = (text: string): Body => bufferToBody(Buffer.from(text))

const cut = (bytes: Buffer, at: readonly number[]): Body => {
  const borders = [0, ...at.map((place) => place % (bytes.length + 1)), bytes.length].toSorted((a, b) => a - b)
  const pieces = borders.slice(1).map((end, index) => bytes.subarray(borders[index], end))
  return { pieces, bytes: bytes.length }
}

const valueOf = (body: Body, key: string): unknown => {
  const scanned = scan(body, WATCH)
  if (!scanned.ok) throw new Error(scanned.refusal)
  const span = scanned.value.spans.get(key)
  return span === undefined ? undefined : JSON.parse(slice(body, span).toString())
}

const reasonOf = (text: string): string => {
  const scanned = scan(bodyOf(text), WATCH)
  return scanned.ok ? 'accepted' : scanned.refusal
}

const key = fc.oneof({ weight: 2, arbitrary: fc.constantFrom(...KEYS) }, { weight: 1, arbitrary: fc.string({ unit: 'binary' }) })
/** Any JSON object, as anybody might write it: any order, any white space, escapes where nobody needs them. */
const written = fc
  .record({
    members: fc.uniqueArray(fc.tuple(key, fc.jsonValue({ maxDepth: 4 })), { selector: ([name]) => name.toLowerCase(), maxLength: 8 }),
    indent: fc.constantFrom(undefined, 1, '\t', '  \r\n'),
    escapeKeys: fc.boolean(),
    around: fc.constantFrom('', ' ', '\n\t'),
  })
  .map(({ members, indent, escapeKeys, around }) => {
    const text = members.map(([name, value]) => {
      const quoted = escapeKeys
        ? `"${[...Array(name.length).keys()].map((place) => `\\u${name.charCodeAt(place).toString(16).padStart(4, '0')}`).join('')}"`
        : JSON.stringify(name)
      return `${around}${quoted}${around}:${around}${JSON.stringify(value, undefined, indent)}${around}`
    })
    return `${around}{${text.join(',')}}${around}`
  })
const cuts = fc.array(fc.nat(), { maxLength: 12 })

describe('the scanner', () => {
  test('agrees with JSON.parse on every watched key, however the body is written and cut', () => {
    fc.assert(
      fc.property(written, cuts, (text, at) => {
        const parsed = JSON.parse(text) as object
        const body = cut(Buffer.from(text), at)
        for (const name of KEYS) {
          const expected: unknown = Object.hasOwn(parsed, name) ? (parsed as Record<string, unknown>)[name] : undefined
          expect(valueOf(body, name)).toEqual(expected)
        }
      }),
      { numRuns: 2000 },
    )
  })

  test('finds the ends of long strings with any number of backslashes, wherever they are cut', () => {
    const long = fc.string({ unit: fc.constantFrom('\\', '"', 'a', 'é', '\n'), minLength: 30, maxLength: 200 })
    fc.assert(
      fc.property(long, cuts, (content, at) => {
        const body = cut(Buffer.from(JSON.stringify({ first: content, messages: [content, { a: content }], model: 'm' })), at)
        expect(valueOf(body, 'messages')).toEqual([content, { a: content }])
        expect(valueOf(body, 'model')).toBe('m')
      }),
      { numRuns: 1000 },
    )
  })

  test('a spliced body parses to what we meant', () => {
    fc.assert(
      fc.property(written, cuts, fc.jsonValue(), (text, at, wanted) => {
        const body = cut(Buffer.from(text), at)
        const scanned = scan(body, WATCH)
        if (!scanned.ok) throw new Error(scanned.refusal)
        const value = Buffer.from(JSON.stringify(wanted))
        const span = scanned.value.spans.get('model')
        const { inside } = scanned.value
        const empty = Object.keys(JSON.parse(text) as object).length === 0
        const changed =
          span === undefined
            ? splice(body, [{ start: inside, end: inside, bytes: Buffer.from(`"model":${value.toString()}${empty ? '' : ','}`) }])
            : splice(body, [{ ...span, bytes: value }])
        expect(changed.bytes).toBe(Buffer.concat(changed.pieces).length)
        const meant = new Map(Object.entries(JSON.parse(text) as object))
        meant.set('model', JSON.parse(JSON.stringify(wanted)))
        expect(new Map(Object.entries(JSON.parse(Buffer.concat(changed.pieces).toString()) as object))).toEqual(meant)
      }),
      { numRuns: 1000 },
    )
  })

  test('whatever it accepts at the top level, JSON.parse accepts too; cut anywhere it is refused and never hangs', () => {
    fc.assert(
      fc.property(written, fc.nat(), (text, length) => {
        const trimmed = text.trim()
        const short = trimmed.slice(0, length % trimmed.length)
        expect(reasonOf(short)).toMatch(/ends too early|must be an object/)
      }),
      { numRuns: 1000 },
    )
  })

  test('accepts every object that JSON.parse accepts, and answers anything else without a fault', () => {
    const isObject = (text: string): boolean => {
      try {
        const value: unknown = JSON.parse(text)
        return typeof value === 'object' && value !== null && !Array.isArray(value)
      } catch {
        return false
      }
    }
    const soup = fc.string({ unit: fc.constantFrom('{', '}', '[', ']', '"', ':', ',', '\\', '1', 't', ' ', '"a":', 'null'), maxLength: 12 })
    const wrapped = fc.oneof(
      soup,
      soup.map((text) => `{"a":${text}}`),
      soup.map((text) => `{${text}}`),
    )
    fc.assert(
      fc.property(wrapped, cuts, (text, at) => {
        expect(scan(cut(Buffer.from(text), at), WATCH).ok || !isObject(text)).toBe(true)
      }),
      { numRuns: 5000 },
    )
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), cuts, (bytes, at) => {
        expect(scan(cut(Buffer.from(bytes), at), WATCH)).toHaveProperty('ok')
      }),
    )
  })

  test('refuses a watched key that comes twice, even when one is written with escapes', () => {
    expect(reasonOf('{"model":"a","model":"b"}')).toBe('the key "model" comes twice')
    expect(reasonOf('{"model":"a","mod\\u0065l":"b"}')).toBe('the key "model" comes twice')
    expect(reasonOf('{"other":"a","other":"b"}')).toBe('accepted')
  })

  test('refuses a key that only an engine that ignores case would take for one of ours', () => {
    expect(reasonOf('{"model":"a","Model":"b"}')).toBe('the key "Model" must be written "model"')
    expect(reasonOf('{"MAX_TOKENS":1}')).toBe('the key "MAX_TOKENS" must be written "max_tokens"')
    expect(reasonOf('{"max_tokenſ":1}')).toBe('the key "max_tokenſ" must be written "max_tokens"')
    expect(reasonOf('{"max_to\u212aens":1}')).toBe('the key "max_to\u212aens" must be written "max_tokens"')
  })

  test('finds a key that is written with escapes', () => {
    expect(valueOf(bodyOf('{"\\u006dodel":"x"}'), 'model')).toBe('x')
  })

  test('is not fooled by keys of Object.prototype', () => {
    expect(valueOf(bodyOf('{"__proto__":{"model":"y"},"constructor":1,"model":"x"}'), 'model')).toBe('x')
    expect(reasonOf('{"toString":1,"hasOwnProperty":2}')).toBe('accepted')
  })

  test.each([
    ['', 'it ends too early, at byte 0'],
    ['   ', 'it ends too early, at byte 3'],
    ['[]', 'it must be an object'],
    ['"model"', 'it must be an object'],
    ['\ufeff{}', 'it must be an object'],
    ['{"model":', 'it ends too early, at byte 9'],
    ['{"model":"abc', 'it ends too early, at byte 13'],
    ['{"model":"abc\\"', 'it ends too early, at byte 15'],
    ['{"a":[1,2', 'it ends too early, at byte 9'],
    ['{"a":[1,2}', 'unexpected character at byte 9'],
    ['{"a":1}}', 'something follows the object at byte 7'],
    ['{"a":1} {"a":1}', 'something follows the object at byte 8'],
    ['{"a":1,}', 'unexpected character at byte 7'],
    ['{,}', 'unexpected character at byte 1'],
    ['{"a" 1}', 'unexpected character at byte 5'],
    ['{"a":tru}', 'unexpected value at byte 5'],
    ['{"a":}', 'unexpected value at byte 5'],
    ['{"a":01}', 'unexpected value at byte 5'],
    ["{'a':1}", 'unexpected character at byte 1'],
    ['{"a":"b" "c":1}', 'unexpected character at byte 9'],
  ])('refuses %j and says where', (text, reason) => {
    expect(reasonOf(text)).toBe(reason)
  })

  test('gives up on nesting and on fields without end', () => {
    expect(reasonOf(`{"a":${'['.repeat(512)}${']'.repeat(512)}}`)).toBe('accepted')
    expect(reasonOf(`{"a":${'['.repeat(600)}`)).toMatch(/^it is nested deeper than 512 levels/)
    expect(reasonOf(`{${Array.from({ length: 1001 }, (_, n) => `"k${n}":1`).join(',')}}`)).toMatch(/^it has more than 1000 fields/)
  })
})
