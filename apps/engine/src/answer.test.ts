import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type Delta, openAnswer } from './answer.ts'

const THINK = { open: '<think>', close: '</think>', startsInside: false }
type Options = Parameters<typeof openAnswer>[0]
const NOTHING: Options = { stops: [], reasoning: undefined, toolFormat: undefined, tools: [] }

const play = (options: Partial<Options>, pieces: readonly string[]) => {
  const answer = openAnswer({ ...NOTHING, ...options })
  const deltas: Delta[] = []
  for (const piece of pieces) {
    deltas.push(...answer.push(piece).deltas)
    if (answer.matched() !== undefined) break
  }
  deltas.push(...answer.end().deltas)
  const joined = (kind: 'content' | 'reasoning' | 'arguments') => deltas.map((delta) => (delta.kind === kind ? delta.text : '')).join('')
  const calls = deltas.filter((delta) => delta.kind === 'call').map((delta) => delta.name)
  return { content: joined('content'), reasoning: joined('reasoning'), arguments: joined('arguments'), calls, matched: answer.matched() }
}

const CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

describe('an answer with everything in it', () => {
  const whole = `<think>\nI should call f.\n</think>\n\nLet me see.\n${CALL}`

  test('comes apart the same however it is cut', () => {
    const once = play({ reasoning: THINK, toolFormat: 'hermes' }, [whole])
    expect(once).toEqual({ content: 'Let me see.', reasoning: 'I should call f.', arguments: '{"a": 1}', calls: ['f'], matched: undefined })
    fc.assert(
      fc.property(fc.array(fc.nat(whole.length)), (places) => {
        const cuts = [0, ...places.toSorted((a, b) => a - b), whole.length]
        const pieces = cuts.slice(1).map((cut, index) => whole.slice(cuts[index], cut))
        expect(play({ reasoning: THINK, toolFormat: 'hermes' }, pieces)).toEqual(once)
      }),
    )
  })
})

test('a stop string ends it, and nothing behind it comes out', () => {
  expect(play({ stops: ['END'] }, ['one E', 'N', 'D two'])).toMatchObject({ content: 'one ', matched: 'END' })
  expect(play({ stops: ['END'] }, ['one EN', 'x'])).toMatchObject({ content: 'one ENx', matched: undefined })
})

test('whether the model still thinks is known at every piece', () => {
  const follow = (startsInside: boolean, pieces: string[]) => {
    const answer = openAnswer({ ...NOTHING, reasoning: { ...THINK, startsInside } })
    return [
      answer.isThinking(),
      ...pieces.map((piece) => {
        answer.push(piece)
        return answer.isThinking()
      }),
    ]
  }
  expect(follow(false, ['<th', 'ink>', 'so', '</thi', 'nk>', 'yes'])).toEqual([false, false, true, true, true, false, false])
  expect(follow(true, ['so', '</think>', 'yes'])).toEqual([true, true, false, false])
  expect(follow(false, ['yes', '<think>'])).toEqual([false, false, false])
})
