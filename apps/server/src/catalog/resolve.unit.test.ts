import { describe, expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import type { Model } from './model.ts'
import { resolveWith } from './resolve.ts'

type Row = Pick<Model, 'name' | 'status' | 'successor'> & { type?: Model['type'] }

/** A catalogue of nothing but what resolving looks at. */
const over = (...rows: readonly Row[]) => {
  const models = new Map(rows.map((row) => [row.name, { type: 'chat', ...row } as Model]))
  const resolve = resolveWith((name) => models.get(name))
  return (name: string): string => {
    const outcome = resolve(name, 0 as Instant)
    if (outcome.ok) return outcome.value.name
    expect(outcome.refusal).toEqual({ code: 'model_unknown', model: name })
    return 'unknown'
  }
}

const served = (name: string, status: Model['status'] = 'active', successor: string | null = null): Row => ({ name, status, successor })
const gone = (name: string, successor: string | null): Row => ({ name, status: 'eol', successor })

describe('a name becomes a model', () => {
  const resolve = over(
    served('a'),
    served('early', 'preview'),
    served('late', 'deprecated', 'a'),
    gone('b', 'a'),
    gone('c', 'b'),
    gone('d', 'late'),
    gone('alone', null),
    gone('lost', 'never-there'),
    gone('ring-1', 'ring-2'),
    gone('ring-2', 'ring-3'),
    gone('ring-3', 'ring-1'),
    gone('self', 'self'),
    { ...gone('vectors', 'other-vectors'), type: 'embedding' },
    { ...served('other-vectors'), type: 'embedding' },
    { ...gone('chat-to-vectors', 'vectors'), type: 'chat' },
    { ...gone('old-rank', 'rank'), type: 'rerank' },
    { ...served('rank'), type: 'rerank' },
  )
  const cases: readonly [name: string, answers: string, why: string][] = [
    ['a', 'a', 'active answers'],
    ['early', 'early', 'preview answers'],
    ['late', 'late', 'deprecated answers itself, although it has a successor'],
    ['b', 'a', 'end of life sends on'],
    ['c', 'a', 'and on again'],
    ['d', 'late', 'to a deprecated one, where it stops'],
    ['alone', 'unknown', 'end of life without a successor is gone'],
    ['lost', 'unknown', 'a successor that is not there is no answer'],
    ['ring-1', 'unknown', 'a circle ends'],
    ['self', 'unknown', 'also the smallest one'],
    ['vectors', 'unknown', 'embedding models send nobody on'],
    ['chat-to-vectors', 'unknown', 'not even as a station on the way'],
    ['old-rank', 'rank', 'rerank models do'],
    ['', 'unknown', 'no name is no model'],
    ['A', 'unknown', 'names are exact'],
    ['constructor', 'unknown', 'names are data'],
  ]
  for (const [name, answers, why] of cases) {
    test(`${why} (${name})`, () => {
      expect(resolve(name)).toBe(answers)
    })
  }

  test('a long chain of successors is followed to its end', () => {
    const chain = Array.from({ length: 500 }, (_, index) => gone(`m${index}`, `m${index + 1}`))
    expect(over(...chain, served('m500'))('m0')).toBe('m500')
  })
})
