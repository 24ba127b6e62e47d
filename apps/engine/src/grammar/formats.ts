import type { Dfa } from './automaton.ts'
import { readPattern } from './regular-expression.ts'

/*
 * Formats of strings, as patterns. Each accepts only texts of its format, though not always all of them: a model that writes an
 * IPv6 address in its long form has still written one. A format that is not here is a remark, as JSON Schema has it.
 */

const DAY = '(?:0[1-9]|1[0-9]|2[0-8])'
const LEAP_YEAR = '(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)'
const DATE = `(?:[0-9]{4}-(?:(?:0[1-9]|1[0-2])-${DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|${LEAP_YEAR}-02-29)`
// RFC 3339, section 5.6. Leap seconds exist only in UTC and are not written.
const TIME = '(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])'
// Without the limit of 63 letters: counting them would leave no room for a maxLength beside the format.
const LABEL = '[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*'
const HOST = `${LABEL}(?:\\.${LABEL})*`
const BYTE = '(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])'

const PATTERNS: Record<string, string> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE}T${TIME}`,
  duration:
    'P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y)?(?:[0-9]{1,9}M)?[0-9]{1,9}D(?:T[0-9]{1,9}H(?:[0-9]{1,9}M)?)?|T(?:[0-9]{1,9}H)?(?:[0-9]{1,9}M)?[0-9]{1,9}S|T(?:[0-9]{1,9}H)?[0-9]{1,9}M)',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}',
  email: `[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@${LABEL}(?:\\.${LABEL})+`,
  hostname: HOST,
  ipv4: `${BYTE}(?:\\.${BYTE}){3}`,
  ipv6: '[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}',
  uri: "[a-z][a-z0-9+.-]*:(?://[A-Za-z0-9._-]+(?::[0-9]{1,5})?)?(?:[/?#](?:[A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*)?",
}

const known = new Map<string, Dfa>()

/** What the format allows; undefined for formats that we do not enforce. */
export const formatAutomaton = (format: string): Dfa | undefined => {
  const existing = known.get(format)
  if (existing !== undefined) return existing
  if (!Object.hasOwn(PATTERNS, format)) return undefined
  const read = readPattern(`^(?:${PATTERNS[format]})$`)
  if (!read.ok) throw new Error(`the pattern of the format ${format}: ${read.reason}`)
  known.set(format, read.dfa)
  return read.dfa
}

export const KNOWN_FORMATS: readonly string[] = Object.keys(PATTERNS)
