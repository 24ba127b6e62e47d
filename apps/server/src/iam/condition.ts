import { BlockList, isIP, isIPv4 } from 'node:net'
import { type ASTNode, Environment } from '@marcbachmann/cel-js'
import { plainAddress } from '../kit/addresses.ts'
import { type Instant, instantToDate } from '../kit/clock.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

export type Condition = (origin: Origin, at: Instant) => boolean

export const MAX_CONDITION_CHARACTERS = 2_048 // control-plane.md 5.6
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

const environment = new Environment({ limits: { maxAstNodes: MAX_NODES, maxDepth: MAX_DEPTH } })
  .registerVariable({ name: 'request', schema: { ip: 'string', user_agent: 'string', time: 'google.protobuf.Timestamp' } })
  .registerFunction('inIpRange(string, string): bool', inIpRange)

const calledIn = (node: ASTNode): string[] => {
  const { op, args } = node as { op: string; args: unknown }
  const own = (op === 'call' || op === 'rcall') && Array.isArray(args) ? [String(args[0])] : []
  const inner = (value: unknown): string[] => {
    if (Array.isArray(value)) return value.flatMap(inner)
    return typeof value === 'object' && value !== null && 'op' in value ? calledIn(value as ASTNode) : []
  }
  return [...own, ...inner(args)]
}

/** A condition of a rule, or why the text is none (control-plane.md 5.6). Empty is always true and has no condition. */
export const compileCondition = (text: string): Outcome<Condition | undefined, string> => {
  if (text === '') return yes(undefined)
  try {
    const parsed = environment.parse(text)
    const foreign = calledIn(parsed.ast).find((name) => !CALLABLE.has(name))
    if (foreign !== undefined) return no(`${foreign} is not available in conditions`)
    const checked = parsed.check()
    if (!checked.valid) return no(checked.error?.message.split('\n', 1)[0] ?? 'the types do not fit')
    if (checked.type !== 'bool') return no(`must be true or false, and is ${checked.type}`)
    return yes((origin, at) => {
      const request = {
        ip: plainAddress(origin.ip),
        user_agent: origin.userAgent.slice(0, MAX_USER_AGENT_CHARACTERS),
        time: instantToDate(at),
      }
      try {
        return parsed({ request }) === true
      } catch {
        // What cannot be said to hold does not hold: a rule then grants nothing.
        return false
      }
    })
  } catch (error) {
    return no(error instanceof Error ? (error.message.split('\n', 1)[0] ?? 'does not compile') : 'does not compile')
  }
}
