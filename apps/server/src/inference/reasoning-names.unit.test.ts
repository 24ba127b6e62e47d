import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { withBothNames } from './reasoning-names.ts'

const both = (value: unknown): unknown => JSON.parse(withBothNames(JSON.stringify(value)))
const delta = (...deltas: object[]) => ({ id: 'x', choices: deltas.map((each, index) => ({ index, delta: each })) })

describe('what a model thinks', () => {
  test('has both names, whichever the engine gave, whatever it is', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('reasoning', 'reasoning_content'),
        fc.array(fc.string({ unit: 'binary' }), { minLength: 1, maxLength: 3 }),
        fc.string(),
        (name, thoughts, content) => {
          const said = thoughts.map((thought) => ({ [name]: thought, content }))
          expect(both(delta(...said))).toEqual(
            delta(...thoughts.map((thought) => ({ reasoning: thought, reasoning_content: thought, content }))),
          )
        },
      ),
    )
  })

  test.each([
    [delta({ content: 'reasoning' })],
    [delta({ content: '"reasoning":"x"' })],
    [delta({ content: 'a', tool_calls: [{ function: { arguments: '{"reasoning_content":"x"}' } }] })],
    [delta({ reasoning: null })],
    [delta({ reasoning: { effort: 'low' } })],
    [delta({ reasoning: 'a', reasoning_content: 'a' })],
    [delta({ role: 'assistant', content: '' })],
  ])('is left alone where there is nothing to add: %j', (event) => {
    const text = JSON.stringify(event)
    expect(withBothNames(text)).toBe(text)
  })

  test('is found behind spaces, and nothing before the payload is looked at', () => {
    expect(withBothNames('data: {"reasoning" : "a\\\\"}\n\n', 6)).toBe('data: {"reasoning_content":"a\\\\","reasoning" : "a\\\\"}\n\n')
    const broken = '{"reasoning":"a\\"'
    expect(withBothNames(broken)).toBe(broken)
  })
})
