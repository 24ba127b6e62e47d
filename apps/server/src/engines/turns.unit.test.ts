import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openTurns, type Party } from './turns.ts'

/** Serves everybody who waits, the earliest beginning first; gives the order. */
const serveAll = (parties: readonly Party[]): Party[] => {
  const turns = openTurns()
  const waiting = parties.map((party) => {
    const start = turns.startOf(party)
    turns.enter(party, start)
    return { party, start }
  })
  const order: Party[] = []
  while (waiting.length > 0) {
    const next = waiting.reduce((best, other) => (other.start < best.start ? other : best))
    waiting.splice(waiting.indexOf(next), 1)
    turns.served(next.start)
    order.push(next.party)
  }
  return order
}

test('a project with a single request does not wait behind the two hundred of another', () => {
  const crowd = Array.from({ length: 200 }, () => ({ projectId: 'crowd', tokens: 100 }))
  const order = serveAll([...crowd, { projectId: 'one', tokens: 100 }])
  expect(order.findIndex(({ projectId }) => projectId === 'one')).toBeLessThanOrEqual(1)
})

test('turns are weighed in tokens: ten short ones for each long one', () => {
  const long = Array.from({ length: 10 }, () => ({ projectId: 'long', tokens: 1_000 }))
  const short = Array.from({ length: 100 }, () => ({ projectId: 'short', tokens: 100 }))
  const half = serveAll([...long, ...short]).slice(0, 55)
  expect(half.filter(({ projectId }) => projectId === 'long')).toHaveLength(5)
})

test('within a project the order is that of asking', () => {
  const asked = Array.from({ length: 20 }, (_, index) => ({ projectId: 'one', tokens: 20 - index }))
  expect(serveAll(asked)).toEqual(asked)
})

test('whoever gave up takes no turn from their project', () => {
  const turns = openTurns()
  const party = { projectId: 'one', tokens: 500 }
  const start = turns.startOf(party)
  turns.enter(party, start)
  turns.left(party)
  expect(turns.startOf(party)).toBe(start)
})

test('while all wait, no project is ahead of another by more than the largest request of each', () => {
  const party = fc.record({ projectId: fc.constantFrom('a', 'b', 'c'), tokens: fc.integer({ min: 1, max: 1_000 }) })
  fc.assert(
    fc.property(fc.array(party, { minLength: 1, maxLength: 100 }), (parties) => {
      const order = serveAll(parties)
      const left = new Map<string, number>()
      for (const { projectId } of parties) left.set(projectId, (left.get(projectId) ?? 0) + 1)
      const served = new Map([...left.keys()].map((projectId) => [projectId, 0]))
      for (const { projectId, tokens } of order) {
        served.set(projectId, (served.get(projectId) ?? 0) + tokens)
        left.set(projectId, (left.get(projectId) ?? 0) - 1)
        const waiting = [...served].filter(([project]) => (left.get(project) ?? 0) > 0).map(([, sum]) => sum)
        if (waiting.length > 1) expect(Math.max(...waiting) - Math.min(...waiting)).toBeLessThanOrEqual(2_000)
      }
    }),
  )
})
