import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { commonPrefix, type Lease, openSlots, pickSlot, type Slot } from './slots.ts'

const numbers = (from: number, count: number): number[] => Array.from({ length: count }, (_, index) => from + index)
const slot = (index: number, more: Partial<Slot<number[]>> = {}): Slot<number[]> => ({
  index,
  sequence: [],
  tenant: undefined,
  busy: false,
  usedAt: 0,
  ...more,
})
const pick = (slots: Slot<number[]>[], tenant: string, prompt: number[]) => pickSlot(slots, (one) => one.sequence, tenant, prompt)?.index

describe('which sequence a prompt gets', () => {
  const prompt = numbers(0, 100)

  test('the one of the same tenant with the longest common beginning', () => {
    const slots = [
      slot(0),
      slot(1, { tenant: 'a', sequence: prompt.slice(0, 60) }),
      slot(2, { tenant: 'a', sequence: prompt.slice(0, 90) }),
    ]
    expect(pick(slots, 'a', prompt)).toBe(2)
  })

  test('never for the sake of what another tenant has computed', () => {
    const slots = [slot(0, { tenant: 'b', sequence: prompt, usedAt: 1 }), slot(1)]
    expect(pick(slots, 'a', prompt)).toBe(1)
  })

  test('a beginning of a few words is not worth losing a conversation', () => {
    const slots = [slot(0, { tenant: 'a', sequence: [...prompt.slice(0, 3), ...numbers(500, 300)], usedAt: 1 }), slot(1)]
    expect(pick(slots, 'a', prompt)).toBe(1)
  })

  test('otherwise one beside those at work, an empty one first, then the one used longest ago', () => {
    expect(pick([slot(0), slot(1), slot(2, { busy: true }), slot(3, { tenant: 'b', usedAt: 1 })], 'a', prompt)).toBe(1)
    expect(pick([slot(0, { tenant: 'b', usedAt: 5 }), slot(1, { tenant: 'b', usedAt: 3 })], 'a', prompt)).toBe(1)
    expect(pick([slot(0), slot(1)], 'a', prompt)).toBe(0)
    expect(pick([slot(0, { busy: true })], 'a', prompt)).toBeUndefined()
  })
})

test('the common beginning of two lists', () => {
  expect([commonPrefix([], [1]), commonPrefix([1, 2], [1, 2]), commonPrefix([1, 2, 3], [1, 3, 3])]).toEqual([0, 2, 1])
})

test('whoever leaves twice frees only once', async () => {
  const slots = openSlots({ sequences: [0], cached: () => [], maxWaiting: 5, maxWaitMs: 1000 })
  const signal = new AbortController().signal
  const first = await slots.take('a', [], signal)
  if (!first.ok) throw new Error('refused')
  first.value.leave()
  const second = await slots.take('a', [], signal)
  first.value.leave()
  expect(slots.busy()).toBe(1)
  expect(second.ok).toBe(true)
})

test('whatever the order of comings, goings and leavings, nobody shares a sequence, none is lost, and the line keeps its bound', async () => {
  const act = fc.oneof(fc.constant('take' as const), fc.constant('leave' as const), fc.constant('abort' as const))
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(act, fc.nat(20), fc.constantFrom('a', 'b')), { maxLength: 60 }), async (acts) => {
      const slots = openSlots({ sequences: [0, 1, 2], cached: () => [], maxWaiting: 4, maxWaitMs: 10_000 })
      const leases: Lease<number>[] = []
      const waiting: AbortController[] = []
      for (const [what, which, tenant] of acts) {
        if (what === 'take') {
          const controller = new AbortController()
          waiting.push(controller)
          void slots.take(tenant, [], controller.signal).then((outcome) => {
            waiting.splice(waiting.indexOf(controller), 1)
            if (outcome.ok) leases.push(outcome.value)
          })
        } else if (what === 'leave') leases.splice(which % Math.max(1, leases.length), 1)[0]?.leave()
        else waiting[which % Math.max(1, waiting.length)]?.abort()
        await new Promise((resolve) => setImmediate(resolve))
        expect(new Set(leases.map((lease) => lease.index)).size).toBe(leases.length)
        expect(slots.busy()).toBe(leases.length)
        expect(slots.waiting()).toBeLessThanOrEqual(4)
        expect(slots.waiting() === 0 || leases.length === 3).toBe(true)
      }
      for (const controller of waiting.slice()) controller.abort()
      for (const lease of leases) lease.leave()
      await new Promise((resolve) => setImmediate(resolve))
      expect({ busy: slots.busy(), waiting: slots.waiting() }).toEqual({ busy: 0, waiting: 0 })
    }),
    { numRuns: 60 },
  )
})
