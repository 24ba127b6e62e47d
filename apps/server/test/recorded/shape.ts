import { readFileSync } from 'node:fs'

/** One example of the contract's control-plane page, with what it cannot show by itself. */
export type Recorded = {
  readonly section: string
  readonly what: string
  readonly example: unknown
  /** Fields that may be null, and what they are otherwise; `never`: always null. */
  readonly nullable?: Readonly<Record<string, string>>
  /** Fields that may be left away. */
  readonly optional?: readonly string[]
  /** Fields of newer clients, which are not in the example. */
  readonly extra?: readonly string[]
}

/** Examples of answers of control-plane.md, with their sections; values are invented. Requests are not among them. */
export const RECORDED = JSON.parse(readFileSync(new URL('control-plane.json', import.meta.url), 'utf8')) as readonly Recorded[]

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
// control-plane.md 2.4: RFC 3339 in UTC; a fraction may be left away.
const DATE = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/
const DURATION = /^\d+(\.\d{1,9})?s$/
const URL_OF_SOMETHING = /^https?:\/\/[^/]+(\/.*[^/])?$/
const ACCESS_KEY = /^SCW[A-Z0-9]{17}$/
const ADDRESS = /^(\d{1,3}\.){3}\d{1,3}$/
const DECIMAL = /^-?\d+(\.\d+)?$/

const kindOfText = (text: string): string => {
  if (UUID.test(text)) return 'uuid'
  if (DATE.test(text)) return 'date'
  if (DURATION.test(text)) return 'duration'
  if (ACCESS_KEY.test(text)) return 'access key'
  if (ADDRESS.test(text)) return 'address'
  if (DECIMAL.test(text)) return 'decimal'
  return URL_OF_SOMETHING.test(text) ? 'url' : 'text'
}

const kindOf = (value: unknown): string => {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  if (typeof value === 'number') return Number.isInteger(value) ? 'integer' : 'number'
  return typeof value === 'string' ? kindOfText(value) : typeof value
}

/** Whether what we answer can stand where a value of this kind was recorded. Any text is text; a whole number is a number. */
const fits = (recorded: string, ours: string): boolean =>
  recorded === ours ||
  (recorded === 'text' && ['uuid', 'date', 'duration', 'access key', 'address', 'decimal', 'url'].includes(ours)) ||
  (recorded === 'number' && ours === 'integer')

/** What is different in names, types, formats and null between an example and what we answer; nothing is as it should be. */
export const differences = (recorded: Recorded, ours: unknown): string[] => {
  const { nullable = {}, optional = [], extra = [] } = recorded
  const compare = (example: unknown, own: unknown, path: string): string[] => {
    const mayBe = nullable[path]
    if (example === null && mayBe === undefined) return [`${path}: null in the example, and nobody says what else it may be`]
    if (own === null) return mayBe === undefined ? [`${path}: must not be null`] : []
    const kind = example === null ? (mayBe ?? '') : kindOf(example)
    if (!fits(kind, kindOf(own))) return [`${path}: ${kind} recorded, ${kindOf(own)} answered (${JSON.stringify(own)})`]
    if (Array.isArray(example) && Array.isArray(own)) {
      if (example.length > 0 && own.length === 0) return [`${path}: nothing to compare`]
      return example.length === 0 ? [] : own.flatMap((item) => compare(example[0], item, `${path}[]`))
    }
    if (typeof example !== 'object' || typeof own !== 'object' || example === null) return []
    const [theirs, mine] = [example as Record<string, unknown>, own as Record<string, unknown>]
    return [...new Set([...Object.keys(theirs), ...Object.keys(mine)])].flatMap((name) => {
      const at = path === '' ? name : `${path}.${name}`
      if (!(name in mine)) return optional.includes(at) ? [] : [`${at}: recorded, not answered`]
      if (!(name in theirs)) return extra.includes(at) ? [] : [`${at}: answered, not recorded`]
      return compare(theirs[name], mine[name], at)
    })
  }
  return compare(recorded.example, ours, '')
}
