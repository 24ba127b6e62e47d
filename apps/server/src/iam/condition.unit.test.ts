import { expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import type { Origin } from '../kit/management.ts'
import { compileCondition, openFormatters, openZones } from './condition.ts'

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

const FIELDS = {
  getFullYear: 'year',
  getMonth: 'month',
  getDate: 'day',
  getHours: 'hour',
  getMinutes: 'minute',
  getSeconds: 'second',
} as const

test.each([
  ['Europe/Paris', '2026-03-29T00:59:59Z'],
  ['Europe/Paris', '2026-03-29T01:00:00Z'],
  ['America/New_York', '2026-11-01T05:59:59Z'],
  ['America/New_York', '2026-11-01T06:00:00Z'],
  ['Asia/Kathmandu', '2026-12-31T18:14:59Z'],
  ['Australia/Lord_Howe', '2027-04-03T14:59:59Z'],
  ['Pacific/Kiritimati', '2026-12-31T10:00:00Z'],
  ['UTC', '2026-11-22T10:30:00Z'],
])('the time in %s at %s is what its clocks say', (zone, instant) => {
  const at = Date.parse(instant) as Instant
  const said = new Intl.DateTimeFormat('en-US', {
    timeZone: zone,
    hourCycle: 'h23',
    year: 'numeric',
    month: 'numeric',
    day: 'numeric',
    hour: 'numeric',
    minute: 'numeric',
    second: 'numeric',
  }).formatToParts(at)
  const text = Object.entries(FIELDS)
    .map(([get, type]) => {
      const value = Number(said.find((part) => part.type === type)?.value)
      return `request.time.${get}("${zone}") == ${get === 'getMonth' ? value - 1 : value}`
    })
    .join(' && ')
  const compiled = compileCondition(text)
  expect(compiled.ok && compiled.value?.(origin, at)).toBe(true)
})

test('a zone is asked once in a quarter of an hour, however often conditions want to know', () => {
  const asked: string[] = []
  const ahead = openZones((at, zone) => {
    asked.push(`${zone} ${at}`)
    return 3_600_000
  })
  const quarter = 900_000
  for (const at of [0, 1, quarter - 1, quarter, quarter + 1]) for (const zone of ['A', 'B', 'A']) expect(ahead(at, zone)).toBe(3_600_000)
  expect(asked).toEqual(['A 0', 'B 0', `A ${quarter}`, `B ${quarter}`])
})

test('a zone has one formatter, in small letters or large and by all of its names, and what is no zone has none', () => {
  const format = openFormatters()
  const paris = format('Europe/Paris')
  expect([format('EUROPE/PARIS'), format('europe/paris'), format('Europe/Paris')].every((other) => other === paris)).toBe(true)
  expect(format('US/Eastern')).toBe(format('America/New_York'))
  expect(() => format('Atlantis/Capital')).toThrow('time zone')
})

test('what fails in a condition is passed over, and errors elsewhere still say where they come from', () => {
  const { stackTraceLimit } = Error
  expect(holds(`${Array.from({ length: 80 }, () => 'int("x") == 1').join(' || ')} || request.ip == "198.51.100.7"`)).toBe(true)
  expect(holds('int("x") == 1')).toBe(false)
  expect(Error.stackTraceLimit).toBe(stackTraceLimit)
})

test.each([
  ['timestamp("2026-11-22T10:30:00Z").getHours("Europe/Paris") == 11', 'getHours with a time zone is there for request.time only'],
  ['(request.time - duration("1h")).getHours("Europe/Paris") == 10', 'getHours with a time zone is there for request.time only'],
  ['request.time.getHours(request.user_agent) == 11', 'getHours takes a time zone like "Europe/Paris"'],
  ['request.time.getDayOfWeek("Atlantis/Capital") == 0', 'getDayOfWeek takes a time zone like "Europe/Paris"'],
])('%s is refused', (text, why) => {
  expect(compileCondition(text)).toEqual({ ok: false, refusal: why })
})

test('a text that is put together is not searched, since a hundred of them would hold the process for a quarter of a second', () => {
  const agent = (times: number): string => Array.from({ length: times }, () => 'request.user_agent').join(' + ')
  const no = { ok: false, refusal: 'contains and indexOf are not there beside + of texts' }
  expect(compileCondition(`(${agent(40)}).contains("b" + ${agent(20)})`)).toEqual(no)
  expect(compileCondition(`(${agent(40)}).indexOf("b" + ${agent(20)}) == 1`)).toEqual(no)
  expect(holds('request.user_agent == "terraform" + "/1.11.0"')).toBe(true)
  expect(holds('request.user_agent.contains("1.1") && request.user_agent.indexOf("form") + 1 == 6')).toBe(true)
  expect(holds('request.user_agent.contains("1.1") && request.time + duration("1h") > request.time')).toBe(true)
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
