import { expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import type { Origin } from '../kit/management.ts'
import { compileCondition } from './condition.ts'

const origin: Origin = { ip: '198.51.100.7', userAgent: 'terraform/1.11.0' }
const sunday = Date.parse('2026-11-22T10:30:00Z') as Instant

const holds = (text: string, from: Partial<Origin> = {}): boolean => {
  const compiled = compileCondition(text)
  if (!compiled.ok || compiled.value === undefined) throw new Error(`${text} is no condition`)
  return compiled.value({ ...origin, ...from }, sunday)
}

test.each([
  ['1 == 1', true],
  ["request.user_agent == 'terraform-test'", false],
  ['request.user_agent.contains("terraform/")', true],
  ['inIpRange(request.ip, "198.51.100.0/24")', true],
  ['inIpRange(request.ip, "198.51.100.8")', false],
  ['inIpRange(request.ip, "2001:db8::/32")', false],
  ['request.time.getDayOfWeek() == 0', true],
  ['request.time.getHours("Europe/Paris") == 11', true],
  ['request.time >= timestamp("2026-11-22T10:30:00Z") && request.time < timestamp("2027-01-01T00:00:00Z")', true],
  ['request.ip in ["198.51.100.7", "198.51.100.8"]', true],
])('%s is %s', (text, expected) => {
  expect(holds(text)).toBe(expected)
})

test('an IPv4 address in an IPv6 socket is the IPv4 address', () => {
  expect(holds('inIpRange(request.ip, "198.51.100.0/24")', { ip: '::ffff:198.51.100.7' })).toBe(true)
})

test('what a client calls itself is cut at 255 characters', () => {
  expect(holds('size(request.user_agent) == 255', { userAgent: 'x'.repeat(10_000) })).toBe(true)
})

test.each([
  ['inIpRange(request.ip, "nonsense")'],
  ['inIpRange(request.ip, "10.0.0.0/99")'],
  ['inIpRange("", request.ip)'],
  ['int(request.user_agent) > 1'],
])('%s cannot be said to hold, so it does not', (text) => {
  expect(holds(text)).toBe(false)
})

test('an empty text is no condition at all', () => {
  expect(compileCondition('')).toEqual({ ok: true, value: undefined })
})

const nested = (depth: number): string => (depth === 0 ? 'true' : `[1, 2, 3, 4, 5, 6, 7, 8, 9].all(x${depth}, ${nested(depth - 1)})`)

test.each([
  ['1 +'],
  ['request.colour == "red"'],
  ['request'],
  ['"text"'],
  ['nobody(request.ip)'],
  ['request.user_agent.matches("(a+)+$")'],
  ['[1].exists(x, x == 1)'],
  ['[1].map(x, x == 1).size() > 0'],
  ['cel.bind(x, 1, x == 1)'],
  [nested(20)],
  ['('.repeat(2_000)],
  [Array.from({ length: 400 }, () => '1 == 1').join('&&')],
])('%s is refused with a reason in one line', (text) => {
  const compiled = compileCondition(text)
  expect(compiled.ok).toBe(false)
  expect(compiled.ok ? '' : compiled.refusal).toMatch(/^[^\n]{3,}$/)
})
