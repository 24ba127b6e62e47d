import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { assemble, type Block, type Step } from './assemble.ts'
import { type Piece, readTold } from './told.ts'

const run = (pieces: readonly Piece[]): { steps: Step[]; blocks: readonly Block[] } => {
  const assembly = assemble((index) => `made-${index}`)
  const steps = pieces.flatMap((piece) => assembly.push(piece))
  return { steps: [...steps, ...assembly.end()], blocks: assembly.blocks }
}

const text = (said: string): Piece => ({ kind: 'text', text: said })
const reasoning = (said: string): Piece => ({ kind: 'reasoning', text: said })
const call = (place: number, args: string, id = '', name = ''): Piece => ({ kind: 'call', place, id, name, arguments: args })

/** What a reader of the steps ends up with. */
const replay = (steps: readonly Step[]): unknown[] => {
  const read: { kind: string; said: string; open: boolean }[] = []
  for (const step of steps) {
    if (step.does === 'open') {
      expect(step.index).toBe(read.length)
      expect(read.every((block) => !block.open)).toBe(true)
      read.push({ kind: step.block.kind, said: '', open: true })
      continue
    }
    const block = read[step.index]
    if (block === undefined) throw new Error('a step without a block')
    expect(block.open).toBe(true)
    if (step.does === 'grow') block.said += step.delta
    else block.open = false
  }
  expect(read.every((block) => !block.open)).toBe(true)
  return read.map(({ kind, said }) => ({ kind, said }))
}

describe('the blocks of an answer', () => {
  test.each<[string, Piece[], unknown[]]>([
    ['nothing is one empty text', [], [{ kind: 'text', text: '' }]],
    ['text in pieces is one block', [text('a'), text('b')], [{ kind: 'text', text: 'ab' }]],
    [
      'reasoning ends where text begins',
      [reasoning('a'), reasoning('b'), text('c')],
      [
        { kind: 'reasoning', text: 'ab' },
        { kind: 'text', text: 'c' },
      ],
    ],
    ['reasoning alone stays alone', [reasoning('a')], [{ kind: 'reasoning', text: 'a' }]],
    [
      'a call in fragments',
      [call(0, '', 'x', 'f'), call(0, '{"a":'), call(0, '1}')],
      [{ kind: 'call', id: 'x', name: 'f', arguments: '{"a":1}' }],
    ],
    ['a call without arguments has an empty object', [call(0, '', 'x', 'f')], [{ kind: 'call', id: 'x', name: 'f', arguments: '{}' }]],
    ['a call without an id gets one', [call(0, '{}', '', 'f')], [{ kind: 'call', id: 'made-0', name: 'f', arguments: '{}' }]],
    [
      'two calls side by side are not mixed',
      [call(0, '{"a"', 'x', 'f'), call(1, '{"b"', 'y', 'g'), call(0, ':1}'), call(1, ':2}')],
      [
        { kind: 'call', id: 'x', name: 'f', arguments: '{"a":1}' },
        { kind: 'call', id: 'y', name: 'g', arguments: '{"b":2}' },
      ],
    ],
    [
      'calls that are all numbered 0 are told apart by their ids',
      [call(0, '{}', 'x', 'f'), call(0, '{"b":2}', 'y', 'g')],
      [
        { kind: 'call', id: 'x', name: 'f', arguments: '{}' },
        { kind: 'call', id: 'y', name: 'g', arguments: '{"b":2}' },
      ],
    ],
    [
      'a name that is repeated is one call',
      [call(0, '{"a', 'x', 'f'), call(0, '":1}', 'x', 'f')],
      [{ kind: 'call', id: 'x', name: 'f', arguments: '{"a":1}' }],
    ],
    ['a fragment of nothing is dropped', [call(3, '{"a":1}')], [{ kind: 'text', text: '' }]],
    [
      'text behind a call is a block of its own',
      [call(0, '{"a":1', 'x', 'f'), text('b')],
      [
        { kind: 'call', id: 'x', name: 'f', arguments: '{"a":1' },
        { kind: 'text', text: 'b' },
      ],
    ],
  ])('%s', (_name, pieces, expected) => {
    const { steps, blocks } = run(pieces)
    expect(blocks).toEqual(expected)
    expect(replay(steps)).toEqual(blocks.map((block) => ({ kind: block.kind, said: block.kind === 'call' ? block.arguments : block.text })))
  })

  test('are the same in one piece and in many, however the fragments of calls are mixed', () => {
    const argumentsOf = fc
      .dictionary(fc.string(), fc.oneof(fc.string(), fc.integer(), fc.constant('}{"')), { maxKeys: 3 })
      .map((value) => JSON.stringify(value))
    const answer = fc.record({
      reasoning: fc.array(fc.string({ minLength: 1 }), { maxLength: 3 }),
      text: fc.array(fc.string({ minLength: 1 }), { maxLength: 3 }),
      calls: fc.array(
        fc.array(fc.string({ minLength: 1, maxLength: 1 }), { maxLength: 0 }).chain(() => argumentsOf),
        { maxLength: 3 },
      ),
      cuts: fc.array(fc.nat(7), { minLength: 1, maxLength: 8 }),
      turns: fc.array(fc.nat(2), { minLength: 1, maxLength: 12 }),
    })
    fc.assert(
      fc.property(answer, (said) => {
        const whole = readTold({
          choices: [
            {
              message: {
                reasoning_content: said.reasoning.join(''),
                content: said.text.join(''),
                tool_calls: said.calls.map((args, index) => ({ id: `id-${index}`, function: { name: `f${index}`, arguments: args } })),
              },
            },
          ],
        })
        const fragments = said.calls.map((args, index) => {
          const pieces: Piece[] = [call(index, '', `id-${index}`, `f${index}`)]
          let cut = index
          for (let rest = args; rest !== ''; cut += 1) {
            const length = 1 + (said.cuts[cut % said.cuts.length] ?? 0)
            pieces.push(call(index, rest.slice(0, length)))
            rest = rest.slice(length)
          }
          return pieces
        })
        // Calls begin in their order; after that their fragments come as they like.
        const mixed: Piece[] = fragments.map((pieces) => pieces.shift() as Piece)
        for (let turn = 0; fragments.some((pieces) => pieces.length > 0); turn += 1) {
          const open = fragments.filter((pieces) => pieces.length > 0)
          mixed.push(open[(said.turns[turn % said.turns.length] ?? 0) % open.length]?.shift() as Piece)
        }
        const streamed = run([...said.reasoning.map(reasoning), ...said.text.map(text), ...mixed])
        expect(streamed.blocks).toEqual(run(whole.pieces).blocks)
        replay(streamed.steps)
      }),
      { numRuns: 300 },
    )
  })
})

describe('what an engine tells', () => {
  test('is read from a stream and from a whole answer alike', () => {
    const usage = { prompt_tokens: 7, completion_tokens: 3 }
    expect(readTold({ choices: [{ delta: { content: 'a' }, finish_reason: 'stop', stop_reason: 'X' }], usage })).toEqual(
      readTold({ choices: [{ message: { content: 'a' }, finish_reason: 'stop', stop_reason: 'X' }], usage }),
    )
  })

  test('once, where it is told under two names', () => {
    expect(readTold({ choices: [{ delta: { reasoning: 'a', reasoning_content: 'a' } }] }).pieces).toEqual([reasoning('a')])
    expect(readTold({ choices: [{ delta: { reasoning: 'a', reasoning_content: null } }] }).pieces).toEqual([reasoning('a')])
  })

  test.each([null, 5, 'text', [], {}, { choices: 1 }, { choices: [null] }, { choices: [{ delta: { content: 5, tool_calls: 'x' } }] }])(
    'is nothing where it is nonsense: %j',
    (nonsense) => expect(readTold(nonsense)).toEqual({ pieces: [], finish: undefined, stopped: undefined, counts: undefined }),
  )
})
