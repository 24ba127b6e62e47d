import { expect, test } from 'vitest'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import { MAX_FAILURES, openFailures } from './failures.ts'

let now = 1_000_000
const clock: Clock = { ...systemClock, now: () => now as Instant }

test('an address waits once it has sent too many wrong keys in a minute, and begins anew after it', () => {
  const failures = openFailures(clock)
  for (let count = 0; count < MAX_FAILURES; count += 1) expect(failures.count('192.0.2.1')).toBe(0)
  now += 20_000
  expect(failures.count('192.0.2.1')).toBe(40_000)
  expect(failures.count('192.0.2.2')).toBe(0)
  now += 40_000
  expect(failures.count('192.0.2.1')).toBe(0)
})

test('what comes from one network of IPv6 is one address, however it is written; another network is another', () => {
  now = 0
  const failures = openFailures(clock)
  for (let count = 0; count < MAX_FAILURES; count += 1)
    expect(failures.count(`2001:db8:0:7:${count.toString(16)}::${count.toString(16)}`)).toBe(0)
  for (const ip of ['2001:db8:0:7::', '2001:0DB8:0000:0007:ffff:ffff:ffff:ffff', '2001:db8::7:0:0:198.51.100.7'])
    expect(failures.count(ip)).toBe(60_000)
  for (const ip of ['2001:db8:0:8::1', '2001:db8::1', '::1', '::ffff:192.0.2.7', '192.0.2.7', '2001:db8:7::'])
    expect(failures.waitMs(ip)).toBe(0)
  for (let count = 0; count <= MAX_FAILURES; count += 1) failures.count(`::ffff:192.0.2.${count}`)
  expect(failures.waitMs('192.0.2.8')).toBe(0)
})

test('however many addresses there are, those that are remembered are bounded, the oldest forgotten first', () => {
  const failures = openFailures(clock)
  for (let count = 0; count <= MAX_FAILURES; count += 1) failures.count('192.0.2.1')
  for (let address = 0; address < 9_999; address += 1) failures.count(`a${address}`)
  expect(failures.count('192.0.2.1')).toBeGreaterThan(0)
  failures.count('one more')
  expect(failures.count('192.0.2.1')).toBe(0)
})

test('what weighs as much as several counts so, and looking counts for nothing', () => {
  now = 0
  const failures = openFailures(clock)
  for (let count = 0; count < MAX_FAILURES; count += 5) expect(failures.count('192.0.2.1', 5)).toBe(0)
  expect(failures.waitMs('192.0.2.1')).toBe(0)
  expect(failures.waitMs('192.0.2.1')).toBe(0)
  expect(failures.count('192.0.2.1', 5)).toBe(60_000)
  now += 59_000
  expect(failures.waitMs('192.0.2.1')).toBe(1_000)
  expect(failures.waitMs('192.0.2.2')).toBe(0)
  now += 1_000
  expect(failures.waitMs('192.0.2.1')).toBe(0)
})

test('of several gateways each counts what the others hear, and what is told of one address has a bound', () => {
  now = 0
  const heard: ((ip: string, weight: number) => void)[] = []
  let told = 0
  const gateways = [0, 1].map((own) =>
    openFailures(clock, {
      tell: (ip, weight) => {
        told += 1
        heard[1 - own]?.(ip, weight)
      },
      listen: (hear) => void (heard[own] = hear),
    }),
  )
  for (let count = 0; count < MAX_FAILURES; count += 1) expect(gateways[count % 2]?.count('192.0.2.9')).toBe(0)
  for (const failures of gateways) expect(failures.count('192.0.2.9')).toBeGreaterThan(0)
  for (let count = 0; count < 1_000; count += 1) gateways[count % 2]?.count('192.0.2.9')
  expect(told).toBeLessThanOrEqual(MAX_FAILURES + 2)
})
