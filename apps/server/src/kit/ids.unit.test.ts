import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { Instant } from './clock.ts'
import { isUuid, newId } from './ids.ts'

test('an id is a UUID of version 7 that begins with its instant', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 48 - 1 }), (now) => {
      const id = newId(now as Instant)
      expect(isUuid(id)).toBe(true)
      expect(id).toMatch(/^.{14}7.{4}[89ab]/)
      expect(Number.parseInt(id.replaceAll('-', '').slice(0, 12), 16)).toBe(now)
    }),
  )
})

test('ids of one instant differ, also when the random bytes at hand are used up in between', () => {
  const ids = Array.from({ length: 2_000 }, () => newId(1_795_363_000_000 as Instant))
  expect(new Set(ids).size).toBe(ids.length)
})
