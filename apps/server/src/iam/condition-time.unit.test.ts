import { expect, test } from 'vitest'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { openConditionTime } from './condition-time.ts'

let now = 1_000_000
const clock: Clock = { ...systemClock, now: () => now as Instant }
const [mine, other] = ['a', 'b'] as OrganizationId[] as [OrganizationId, OrganizationId]

test('an organization’s conditions take a second at once and a tenth of the time for good, and nobody else’s wait for them', () => {
  const time = openConditionTime(clock)
  for (let count = 0; count < 100; count += 1) {
    expect(time.waitMs(mine)).toBe(0)
    time.spend(mine, 10)
  }
  expect(time.waitMs(mine)).toBe(0)
  time.spend(mine, 10)
  expect(time.waitMs(mine)).toBe(100)
  expect(time.waitMs(other)).toBe(0)
  now += 99
  expect(time.waitMs(mine)).toBeGreaterThan(0)
  now += 1
  expect(time.waitMs(mine)).toBe(0)

  // Whoever asks without end gets a tenth.
  let taken = 0
  for (const end = now + 60_000; now < end; now += 1) {
    if (time.waitMs(mine) > 0) continue
    time.spend(mine, 10)
    taken += 10
  }
  expect(taken).toBeGreaterThan(5_900)
  expect(taken).toBeLessThan(6_100)
  now += 11_000
  time.spend(mine, 1_000)
  expect(time.waitMs(mine)).toBe(0)
})

test('a clock that is set back gives nothing and takes nothing', () => {
  const time = openConditionTime(clock)
  time.spend(mine, 1_010)
  now -= 500_000
  expect(time.waitMs(mine)).toBe(100)
  time.spend(mine, 1)
  expect(time.waitMs(mine)).toBe(110)
})
