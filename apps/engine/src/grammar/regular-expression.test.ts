import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { accepts, anyOfTexts, complement, intersect, lengthBetween, withAllowance, without } from './automaton.ts'
import { formatAutomaton } from './formats.ts'
import { numbersIn } from './number-range.ts'
import { readPattern } from './regular-expression.ts'

const automatonOf = (pattern: string) => {
  const read = withAllowance(() => readPattern(pattern))
  if (!read.ok) throw new Error(read.reason)
  return read.dfa
}

/** By code points, as a schema means it: only so `\u{63}` is a character. What is too lax for that is taken as pages of the web have it. */
const expressionOf = (pattern: string): RegExp => {
  try {
    return new RegExp(pattern, 'u')
  } catch {
    return new RegExp(pattern)
  }
}

test.each([
  '^$',
  'a',
  '^a|b$',
  '^(?:a|b)*$',
  '(^a)|(b$)',
  '^a?b+c*$',
  '^(a*)*$',
  '^(a|a*)+b$',
  '^.{2,3}$',
  '^[^ab]$',
  '^[a-c-]+$',
  '^[\\w-]+$',
  '^\\d{2}\\D$',
  '^\\s*\\S$',
  '^(?<year>\\d+)-a$',
  '^a{2}b{0,1}c{1,}$',
  'a{,2}',
  '^x*?y+?$',
  '^\\x61\\u0062\\u{63}$',
  '^\\.\\*\\-\\/$',
  '(^|b)a',
  'a($|b)',
  '^^a$$',
  '$',
  '',
  'a||b',
  '^(?:)$',
  '(?:^a|b)a',
])('%s accepts what the engine of the language accepts', (pattern) => {
  const expression = expressionOf(pattern)
  const dfa = automatonOf(pattern)
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom('a', 'b', 'c', 'x', 'y', '1', '-', '.', ' ', '\n'), maxLength: 6 }), (text) => {
      expect([text, accepts(dfa, text)]).toEqual([text, expression.test(text)])
    }),
    { numRuns: 400, examples: [['abc']] },
  )
})

const pattern = fc.letrec<{ pattern: string }>((tie) => ({
  pattern: fc.oneof(
    { maxDepth: 4 },
    fc.constantFrom('a', 'b', '.', '[ab]', '[^a]', '^', '$', 'ab', ''),
    fc.tuple(tie('pattern'), tie('pattern')).map(([one, other]) => `${one}${other}`),
    fc.tuple(tie('pattern'), tie('pattern')).map(([one, other]) => `(?:${one}|${other})`),
    fc.tuple(tie('pattern'), fc.constantFrom('*', '+', '?', '{2}', '{1,2}', '{0,3}')).map(([one, times]) => `(?:${one})${times}`),
  ),
})).pattern

test('random patterns accept what the engine of the language accepts', () => {
  fc.assert(
    fc.property(
      pattern,
      fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 5 }), { minLength: 10 }),
      (pattern, texts) => {
        const read = withAllowance(() => readPattern(pattern))
        const expression = new RegExp(pattern)
        for (const text of texts) {
          expect([pattern, text, read.ok && accepts(read.dfa, text)]).toEqual([pattern, text, expression.test(text)])
        }
      },
    ),
    { numRuns: 500 },
  )
})

describe('languages', () => {
  const texts = fc.string({ unit: fc.constantFrom('a', 'b', 'ü', '😀'), maxLength: 6 })
  test('an intersection accepts what both accept, a complement what the other does not', () => {
    const left = automatonOf('^a|b$')
    const right = lengthBetween(2, 4)
    fc.assert(
      fc.property(texts, (text) => {
        expect(accepts(right, text)).toBe(Array.from(text).length >= 2 && Array.from(text).length <= 4)
        expect(accepts(intersect(left, right), text)).toBe(accepts(left, text) && accepts(right, text))
        expect(accepts(complement(left), text)).toBe(!accepts(left, text))
        expect(accepts(without('ab'), text)).toBe(!text.includes('ab'))
        expect(accepts(anyOfTexts(['a', 'ab', '😀']), text)).toBe(['a', 'ab', '😀'].includes(text))
      }),
    )
  })
  test('every format has an automaton that its own example fits', () => {
    const examples: Record<string, string> = {
      date: '2024-02-29',
      time: '10:00:00Z',
      'date-time': '2024-01-31T23:59:59.999+01:00',
      duration: 'P1Y2M3DT4H5M',
      uuid: '00000000-0000-7000-8000-000000000000',
      email: 'someone@example.org',
      hostname: 'a-b.example.org',
      ipv4: '192.168.0.255',
      ipv6: '2001:db8:0:0:0:0:0:1',
      uri: 'https://example.org:8080/a?b=c#d',
    }
    for (const [format, example] of Object.entries(examples)) {
      const dfa = formatAutomaton(format)
      expect([format, dfa && accepts(dfa, example)]).toEqual([format, true])
      expect([format, dfa && accepts(dfa, `${example} `)]).toEqual([format, false])
    }
  })
})

describe('numbers in a range', () => {
  const bound = fc.option(
    fc.record({
      value: fc.oneof(fc.integer({ min: -1500, max: 1500 }), fc.double({ min: -20, max: 20, noNaN: true })),
      exclusive: fc.boolean(),
    }),
    { nil: undefined },
  )
  const inside = (
    value: number,
    low: { value: number; exclusive: boolean } | undefined,
    high: { value: number; exclusive: boolean } | undefined,
  ) =>
    (low === undefined || (low.exclusive ? value > low.value : value >= low.value)) &&
    (high === undefined || (high.exclusive ? value < high.value : value <= high.value))

  test('are exactly those of the range', () => {
    fc.assert(
      fc.property(
        bound,
        bound,
        fc.boolean(),
        fc.array(
          fc.oneof(
            fc.integer({ min: -2000, max: 2000 }),
            fc.integer({ min: -20_000, max: 20_000 }).map((thousandths) => thousandths / 1000),
          ),
          { minLength: 20 },
        ),
        (low, high, integer, values) => {
          const dfa = withAllowance(() => numbersIn({ low, high, multipleOf: undefined, integer }))
          for (const value of values) {
            const text = String(value === 0 ? 0 : value)
            expect([value, dfa !== undefined && accepts(dfa, text)]).toEqual([
              value,
              inside(value, low, high) && (!integer || Number.isInteger(value)),
            ])
          }
        },
      ),
    )
  })
  test('are exactly the multiples of the step', () => {
    for (const step of [1, 2, 3, 7, 10, 25, 100, 0.5, 0.25, 0.01]) {
      const dfa = withAllowance(() => numbersIn({ low: undefined, high: undefined, multipleOf: step, integer: false }))
      for (let hundredths = 1; hundredths <= 1000; hundredths += 1) {
        const value = hundredths / 100
        const expected = Math.abs(value / step - Math.round(value / step)) < 1e-9
        for (const text of [String(value), `-${value}`]) expect([step, text, dfa && accepts(dfa, text)]).toEqual([step, text, expected])
      }
    }
  })
})
