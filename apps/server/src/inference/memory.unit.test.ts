import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openMemory } from './memory.ts'

const open = (memory: ReturnType<typeof openMemory>, owner: string) => {
  const held = memory.open()
  held.own(owner)
  return held
}

test('an organization holds as much as it leaves free for the others', () => {
  const memory = openMemory(16 << 20) // 15 MB, and one in reserve
  const fill = (owner: string): number => {
    let held = 0
    for (let each = 0; each < 20; each += 1) held += Number(open(memory, owner).hold(1 << 20))
    return held
  }
  expect([fill('a'), fill('b'), fill('c')]).toEqual([7, 4, 2])
})

test('one request of an organization that holds nothing else may take all that is free', () => {
  const memory = openMemory(16 << 20)
  expect(open(memory, 'a').hold(5 << 20)).toBe(true)
  const one = open(memory, 'b')
  expect([one.hold(6 << 20), one.hold(4 << 20), one.hold(1 << 20)]).toEqual([true, true, false])
})

test('whatever comes and goes, nothing is ever over the bound, and all of it is given back', () => {
  const step = fc.record({
    who: fc.nat(9),
    act: fc.oneof({ weight: 4, arbitrary: fc.nat(100_000) }, { weight: 1, arbitrary: fc.constant('release' as const) }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const memory = openMemory(1 << 20)
      const requests = Array.from({ length: 10 }, (_, index) => ({ held: open(memory, `owner-${index % 3}`), bytes: 0 }))
      for (const { who, act } of steps) {
        const request = requests[who]
        if (request === undefined) continue
        if (act === 'release') {
          request.held.release()
          request.bytes = 0
        } else if (request.held.hold(act)) request.bytes += act
        expect(requests.reduce((sum, { bytes }) => sum + bytes, 0)).toBeLessThanOrEqual(1 << 20)
      }
      for (const { held } of requests) held.release()
      expect(open(memory, 'anybody').hold((1 << 20) - (1 << 16))).toBe(true)
    }),
  )
})
