import { BlockList, isIP, isIPv4 } from 'node:net'
import { type ASTNode, Environment } from '@marcbachmann/cel-js'
import { plainAddress } from '../kit/addresses.ts'
import { type Instant, instantToDate } from '../kit/clock.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

export type Condition = (origin: Origin, at: Instant) => boolean

export const MAX_CONDITION_CHARACTERS = 2_048 // control-plane.md 5.6
/** Of all rules of an organization: while none of them holds, all are asked at one request, in the process that serves everybody. */
export const MAX_CONDITIONS_CHARACTERS = 32_768
const MAX_NODES = 500
const MAX_DEPTH = 50
const MAX_USER_AGENT_CHARACTERS = 255 // serverless-platform.md 5.4

/**
 * All that may be called. No loops (`all`, `map`, …) and no regular expressions: a rule is asked at every request of its
 * bearer, and nested loops or a regular expression made for it would stop the process for everybody.
 */
const CALLABLE = new Set(
  `inIpRange contains startsWith endsWith size indexOf substring lowerAscii upperAscii timestamp duration int string
   getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear getHours getMinutes getSeconds`.split(/\s+/),
)

const inIpRange = (ip: string, range: string): boolean => {
  const [address = '', prefix] = range.split('/')
  if (isIP(ip) === 0 || isIP(address) === 0) throw new Error('inIpRange takes an address and a range like 198.51.100.0/24')
  const family = isIPv4(address) ? 'ipv4' : 'ipv6'
  const ranges = new BlockList()
  ranges.addSubnet(address, prefix === undefined ? (family === 'ipv4' ? 32 : 128) : Number(prefix), family)
  return ranges.check(ip, isIPv4(ip) ? 'ipv4' : 'ipv6')
}

const MINUTE_MS = 60_000
/** No zone on earth moves its clocks at another moment. */
const STEP_MS = 15 * MINUTE_MS

/**
 * The formatter of a zone. To make one costs 70 µs and 50 KB, so it is kept; upper and lower case are one zone, so there are never more of
 * them than zones and their names. Throws where there is no such zone, and keeps nothing then.
 */
export const openFormatters = (): ((timeZone: string) => Intl.DateTimeFormat) => {
  const kept = new Map<string, Intl.DateTimeFormat>()
  const all = { year: 'numeric', month: 'numeric', day: 'numeric', hour: 'numeric', minute: 'numeric' } as const
  return (timeZone) => {
    const name = timeZone.toLowerCase()
    const known = kept.get(name)
    if (known !== undefined) return known
    const made = new Intl.DateTimeFormat('en-US', { timeZone: name, hourCycle: 'h23', ...all })
    // Of many names for one zone, one formatter.
    const zone = made.resolvedOptions().timeZone.toLowerCase()
    const format = kept.get(zone) ?? made
    kept.set(name, format).set(zone, format)
    return format
  }
}
const formatterOf = openFormatters()

const knowsZone = (timeZone: string): boolean => {
  try {
    return formatterOf(timeZone) !== undefined
  } catch {
    return false
  }
}

/** How far a zone is ahead of UTC. */
const aheadMs = (at: number, timeZone: string): number => {
  const parts = new Map(
    formatterOf(timeZone)
      .formatToParts(at)
      .map(({ type, value }) => [type, Number(value)]),
  )
  const of = (type: Intl.DateTimeFormatPartTypes): number => parts.get(type) ?? 0
  const local = Date.UTC(of('year'), of('month') - 1, of('day'), of('hour'), of('minute'))
  return local - Math.floor(at / MINUTE_MS) * MINUTE_MS
}

/** What `aheadMs` says, asked once for each zone and quarter of an hour: a condition may ask for the hour in every second word. */
export const openZones = (ask: typeof aheadMs = aheadMs): ((at: number, timeZone: string) => number) => {
  const known = new Map<string, number>()
  let step = Number.NaN
  return (at, timeZone) => {
    const now = Math.floor(at / STEP_MS)
    if (now !== step) known.clear()
    step = now
    const ahead = known.get(timeZone) ?? ask(at, timeZone)
    known.set(timeZone, ahead)
    return ahead
  }
}
const ahead = openZones()

/** The instant of a request. The interpreter asks a date for its local time by `toLocaleString`, and reads that again. */
const timeOf = (at: Instant): Date => {
  const time = instantToDate(at)
  const toLocal = (_language: string, { timeZone }: { timeZone: string }): string => {
    const local = new Date(at + ahead(at, timeZone))
    const date = `${local.getUTCMonth() + 1}/${local.getUTCDate()}/${local.getUTCFullYear()}`
    return `${date}, ${local.getUTCHours()}:${local.getUTCMinutes()}:${local.getUTCSeconds()}`
  }
  return Object.defineProperty(time, 'toLocaleString', { value: toLocal })
}

const environment = new Environment({ limits: { maxAstNodes: MAX_NODES, maxDepth: MAX_DEPTH } })
  .registerVariable({ name: 'request', schema: { ip: 'string', user_agent: 'string', time: 'google.protobuf.Timestamp' } })
  .registerFunction('inIpRange(string, string): bool', inIpRange)

type Node = { readonly op: string; readonly args: unknown }

const isNode = (value: unknown): value is Node => typeof value === 'object' && value !== null && 'op' in value

const isRequestTime = (node: unknown): boolean => {
  if (!isNode(node) || node.op !== '.' || !Array.isArray(node.args) || node.args[1] !== 'time') return false
  const [of] = node.args as unknown[]
  return isNode(of) && of.op === 'id' && of.args === 'request'
}

/** What is wrong with the calls of an expression, if anything. */
const wrongCall = (node: ASTNode | Node): string | undefined => {
  const { op, args } = node as Node
  if ((op === 'call' || op === 'rcall') && Array.isArray(args)) {
    const name = String(args[0])
    if (!CALLABLE.has(name)) return `${name} is not available in conditions`
    const [zone] = op === 'rcall' && name.startsWith('get') && Array.isArray(args[2]) ? (args[2] as unknown[]) : []
    if (zone !== undefined) {
      // Of any other time, and in a zone that is made at the request, the hour would have to be asked for anew at each call.
      if (!isRequestTime(args[1])) return `${name} with a time zone is there for request.time only`
      const zoneName = isNode(zone) && zone.op === 'value' && typeof zone.args === 'string' ? zone.args : undefined
      if (zoneName === undefined || !knowsZone(zoneName)) return `${name} takes a time zone like "Europe/Paris"`
    }
  }
  const inner = (value: unknown): string | undefined => {
    if (isNode(value)) return wrongCall(value)
    if (!Array.isArray(value)) return undefined
    for (const each of value) {
      const wrong = inner(each)
      if (wrong !== undefined) return wrong
    }
    return undefined
  }
  return inner(args)
}

/** To search in a text takes as long as the text and what is looked for are long, times one another. */
const SEARCHES = new Set(['contains', 'indexOf'])
const ADDS_UP = new Set(['int', 'double', 'uint', 'google.protobuf.Timestamp', 'google.protobuf.Duration'])

/** Whether a checked expression searches, and whether it makes texts longer than those that a request or the condition itself has. */
const usesOf = (value: unknown, uses = { searches: false, joins: false }): { searches: boolean; joins: boolean } => {
  if (Array.isArray(value)) for (const each of value) usesOf(each, uses)
  if (!isNode(value)) return uses
  if (value.op === 'rcall' && Array.isArray(value.args) && SEARCHES.has(String(value.args[0]))) uses.searches = true
  if (value.op === '+') uses.joins ||= !ADDS_UP.has((value as { checkedType?: { name?: string } }).checkedType?.name ?? '')
  return usesOf(value.args, uses)
}

/**
 * Takes its text from an expression that has been checked. The interpreter would draw a picture of the whole text for each error at a
 * request, also for those that it passes over: a hundred `int("x") == 1` in one text took 2 ms.
 */
const forgetText = (value: unknown): void => {
  if (Array.isArray(value)) for (const each of value) forgetText(each)
  if (!isNode(value)) return
  Object.defineProperty(value, 'input', { value: '' })
  forgetText(value.args)
}

/** A condition of a rule, or why the text is none (control-plane.md 5.6). Empty is always true and has no condition. */
export const compileCondition = (text: string): Outcome<Condition | undefined, string> => {
  if (text === '') return yes(undefined)
  try {
    const parsed = environment.parse(text)
    const wrong = wrongCall(parsed.ast)
    if (wrong !== undefined) return no(wrong)
    const checked = parsed.check()
    if (!checked.valid) return no(checked.error?.message.split('\n', 1)[0] ?? 'the types do not fit')
    if (checked.type !== 'bool') return no(`must be true or false, and is ${checked.type}`)
    const { searches, joins } = usesOf(parsed.ast)
    // Sixteen conditions that look for one such text in another took a quarter of a second.
    if (searches && joins) return no('contains and indexOf are not there beside + of texts')
    forgetText(parsed.ast)
    return yes((origin, at) => {
      const request = {
        ip: plainAddress(origin.ip),
        user_agent: origin.userAgent.slice(0, MAX_USER_AGENT_CHARACTERS),
        time: timeOf(at),
      }
      // Nobody reads where an error of a condition comes from, and one text may make a hundred of them: `int("x") == 1 || …`.
      const { stackTraceLimit } = Error
      Error.stackTraceLimit = 0
      try {
        return parsed({ request }) === true
      } catch {
        // What cannot be said to hold does not hold: a rule then grants nothing.
        return false
      } finally {
        Error.stackTraceLimit = stackTraceLimit
      }
    })
  } catch (error) {
    return no(error instanceof Error ? (error.message.split('\n', 1)[0] ?? 'does not compile') : 'does not compile')
  }
}
