import { Ajv, type Options, type ValidateFunction } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'
import { accepts, anyOfTexts, automatonRule, complement, type Dfa, intersect, isEmpty, lengthBetween, withAllowance } from './automaton.ts'
import { formatAutomaton, KNOWN_FORMATS } from './formats.ts'
import { type Grammar, literal, MAX_REPEAT, openGrammar } from './gbnf.ts'
import { type Bound, numbersIn } from './number-range.ts'
import { attempt, Refused } from './refused.ts'
import { readPattern } from './regular-expression.ts'

/*
 * JSON Schema to llama.cpp's grammar notation. What cannot be kept by a grammar is refused with the keyword and its place, never dropped
 * in silence. The grammar may allow less than the schema, and everything it allows is valid, with one exception: `oneOf` is written like
 * `anyOf`, and a value that fits two of its branches is found by `check`. Narrower than the schema on purpose:
 *
 * - properties come in the order of the schema; an object that names properties and does not say `additionalProperties` has no others,
 *   and an array with `prefixItems` and without `items` ends with them;
 * - a schema without `type` takes the types that its keywords speak of, or any when there are none;
 * - space is a single blank, or a line break with at most 20 blanks, and only where JSON is usually laid out: a model cannot loop on it.
 *
 * A schema object is never rewritten. A place in the answer is described by the list of schema objects that all apply to it ($ref and
 * allOf lengthen the list, anyOf splits it into several); rules are remembered by that list, so recursive schemas end.
 */

export type SchemaGrammar =
  | {
      ok: true
      gbnf: string
      /** Undefined when the text is valid, else what is wrong with it. */
      check(text: string): string | undefined
    }
  | { ok: false; reason: string }

const MAX_SCHEMA_BYTES = 64 * 1024
const MAX_DEPTH = 64
const MAX_ALTERNATIVES = 256

type Schema = Record<string, unknown>
type Node = boolean | Schema
type Kind = 'object' | 'array' | 'string' | 'number' | 'integer' | 'boolean' | 'null'

const KINDS: readonly Kind[] = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']

/** Keywords that a grammar cannot keep. A value that changes nothing is let through. */
const UNKEPT: Record<string, (value: unknown) => boolean> = {
  not: () => false,
  if: () => false,
  dependentSchemas: () => false,
  dependentRequired: () => false,
  dependencies: () => false,
  contains: (value) => value === true,
  minContains: () => false,
  maxContains: () => false,
  uniqueItems: (value) => value === false,
  unevaluatedItems: (value) => value === true || value === false,
  unevaluatedProperties: (value) => value === true || value === false,
  $dynamicRef: () => false,
  $recursiveRef: () => false,
}

const KEYWORDS_OF: Record<'object' | 'array' | 'string' | 'number', readonly string[]> = {
  object: ['properties', 'required', 'additionalProperties', 'patternProperties', 'propertyNames', 'minProperties', 'maxProperties'],
  array: ['items', 'prefixItems', 'additionalItems', 'minItems', 'maxItems'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
}

const isSchema = (value: unknown): value is Schema => typeof value === 'object' && value !== null && !Array.isArray(value)

/** Texts that mean the same value are equal: members in order of their names. */
const canonical = (value: unknown): string => {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (!isSchema(value)) return JSON.stringify(value)
  const keys = Object.keys(value).sort()
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(',')}}`
}

const ANY_JSON = {
  ws: '"" | " " | "\\n" [ ]{0,20}',
  char: '[\\x20-\\x21\\x23-\\x5B\\x5D-\\uD7FF\\uE000-\\U0010FFFF] | "\\\\" (["\\\\/bfnrt] | "u" ([0-9A-CE-Fa-ce-f] hex{3} | [Dd] [0-7] hex{2}))',
  hex: '[0-9A-Fa-f]',
  string: '"\\"" char* "\\""',
  integer: '"-"? ("0" | [1-9] [0-9]{0,15})',
  number: '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,17})? ([Ee] ("-" [0-9]{1,3} | "+"? [0-9]{1,2}))?',
  boolean: '"true" | "false"',
  null: '"null"',
  member: 'string ":" ws value',
  object: '"{" ws (member ("," ws member)* ws)? "}"',
  array: '"[" ws (value ("," ws value)* ws)? "]"',
  value: 'object | array | string | number | boolean | null',
}

/** Any JSON object, for the JSON mode without a schema (contract 6.6). */
export const JSON_OBJECT_GBNF: string = [
  'root ::= object',
  ...Object.entries(ANY_JSON).map(([name, body]) => `${name} ::= ${body}`),
  '',
].join('\n')

/** Writes schemas as rules of a grammar. */
export type SchemaRules = {
  /** The name of the rule for a whole schema with its own definitions; `only` narrows it to a type. Throws `Refused`. */
  root(schema: unknown, only?: Kind): string
  /** The same for a schema somewhere inside another one, to whose definitions it may refer. */
  inside(whole: unknown, schema: unknown, path: string): string
}

export const openSchemaRules = (grammar: Grammar): SchemaRules => {
  for (const [name, body] of Object.entries(ANY_JSON)) grammar.define(name, body)
  return {
    root(schema, only) {
      measure(schema)
      return schemaRule(grammar, schema, schema, '#', only)
    },
    inside(whole, schema, path) {
      measure(whole)
      return schemaRule(grammar, whole, schema, path, undefined)
    },
  }
}

const schemaRule = (grammar: Grammar, root: unknown, place: unknown, path: string, only: Kind | undefined): string => {
  const ids = new Map<Node, number>()
  const paths = new Map<Node, string>()
  const idOf = (node: Node): number => {
    const known = ids.get(node)
    if (known !== undefined) return known
    ids.set(node, ids.size)
    return ids.size - 1
  }
  const pathOf = (node: Node | undefined): string => (node === undefined ? '#' : (paths.get(node) ?? '#'))
  const keywordPath = (schema: Schema, ...keys: (string | number)[]): string =>
    [pathOf(schema), ...keys.map((key) => String(key).replaceAll('~', '~0').replaceAll('/', '~1'))].join('/')

  // Reading keywords, with their types checked.

  const asNode = (value: unknown, path: string): Node => {
    if (typeof value !== 'boolean' && !isSchema(value)) throw new Refused(path, 'a schema must be an object or a boolean')
    if (typeof value !== 'boolean' && !paths.has(value)) paths.set(value, path)
    return value
  }
  const count = (schema: Schema, key: string): number | undefined => {
    const value = schema[key]
    if (value === undefined) return undefined
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0)
      throw new Refused(keywordPath(schema, key), 'must be a whole number')
    return value
  }
  /** A count that an answer must reach. */
  const atLeast = (schema: Schema, key: string): number => {
    const value = count(schema, key) ?? 0
    if (value > MAX_REPEAT) throw new Refused(keywordPath(schema, key), `cannot be kept by a grammar: it can be at most ${MAX_REPEAT}`)
    return value
  }
  const number = (schema: Schema, key: string): number | undefined => {
    const value = schema[key]
    if (value === undefined) return undefined
    if (typeof value !== 'number' || !Number.isFinite(value)) throw new Refused(keywordPath(schema, key), 'must be a number')
    return value
  }
  const text = (schema: Schema, key: string): string | undefined => {
    const value = schema[key]
    if (value !== undefined && typeof value !== 'string') throw new Refused(keywordPath(schema, key), 'must be a string')
    return value
  }
  const texts = (schema: Schema, key: string): string[] => {
    const value = schema[key] ?? []
    if (!Array.isArray(value) || !value.every((one) => typeof one === 'string'))
      throw new Refused(keywordPath(schema, key), 'must be a list of strings')
    return value
  }
  const nodes = (schema: Schema, key: string): Node[] | undefined => {
    const value = schema[key]
    if (value === undefined) return undefined
    if (!Array.isArray(value)) throw new Refused(keywordPath(schema, key), 'must be a list of schemas')
    return value.map((one, index) => asNode(one, keywordPath(schema, key, index)))
  }
  const nodeMap = (schema: Schema, key: string): Map<string, Node> => {
    const value = schema[key] ?? {}
    if (!isSchema(value)) throw new Refused(keywordPath(schema, key), 'must be an object of schemas')
    return new Map(Object.entries(value).map(([name, one]) => [name, asNode(one, keywordPath(schema, key, name))]))
  }
  const node = (schema: Schema, key: string): Node | undefined =>
    schema[key] === undefined ? undefined : asNode(schema[key], keywordPath(schema, key))

  const resolve = (schema: Schema): Node => {
    const reference = text(schema, '$ref') ?? ''
    const path = keywordPath(schema, '$ref')
    if (reference !== '#' && !reference.startsWith('#/'))
      throw new Refused(path, `only references inside the schema are followed, not ${JSON.stringify(reference)}`)
    let at: unknown = root
    for (const part of reference.split('/').slice(1)) {
      const key = unescapePointer(part)
      at = typeof at === 'object' && at !== null && Object.hasOwn(at, key) ? (at as Record<string, unknown>)[key] : undefined
    }
    if (at === undefined) throw new Refused(path, `there is no ${JSON.stringify(reference)} in the schema`)
    return asNode(at, reference)
  }

  // From the schemas of a place to its alternatives: lists of schema objects that have to be read only for their simple keywords.

  type Group = { branches: Node[]; chain: readonly Schema[]; key: unknown }
  type Flat = { simple: Schema[]; groups: Group[]; done: unknown[] }

  const add = (node: Node, flat: Flat, chain: readonly Schema[]): void => {
    if (node === true) return
    if (node === false) throw new Refused(pathOf(chain.at(-1)), 'nothing fits a schema that is false', true)
    if (chain.includes(node)) throw new Refused(pathOf(node), 'the schema refers to itself without anything in between')
    if (flat.simple.includes(node)) return
    for (const [keyword, harmless] of Object.entries(UNKEPT)) {
      if (node[keyword] !== undefined && !harmless(node[keyword]))
        throw new Refused(keywordPath(node, keyword), 'this keyword cannot be kept by a grammar')
    }
    if (node['$id'] !== undefined && node !== root) throw new Refused(keywordPath(node, '$id'), 'only the whole schema may have an $id')
    flat.simple.push(node)
    const longer = [...chain, node]
    if (node['$ref'] !== undefined) add(resolve(node), flat, longer)
    for (const one of nodes(node, 'allOf') ?? []) add(one, flat, longer)
    for (const key of ['anyOf', 'oneOf']) {
      const branches = nodes(node, key)
      if (branches === undefined || flat.done.includes(node[key]) || flat.groups.some((group) => group.key === node[key])) continue
      if (branches.length === 0) throw new Refused(keywordPath(node, key), 'must not be empty')
      flat.groups.push({ branches, chain: longer, key: node[key] })
    }
  }

  const spread = (flat: Flat): Schema[][] => {
    const [group, ...groups] = flat.groups
    if (group === undefined) return [flat.simple]
    const found: Schema[][] = []
    for (const branch of group.branches) {
      const next: Flat = { simple: [...flat.simple], groups: [...groups], done: [...flat.done, group.key] }
      try {
        add(branch, next, group.chain)
        found.push(...spread(next))
      } catch (error) {
        if (!(error instanceof Refused && error.contradiction)) throw error
      }
      if (found.length > MAX_ALTERNATIVES)
        throw new Refused(pathOf(group.chain.at(-1)), `more than ${MAX_ALTERNATIVES} combinations of anyOf and oneOf`)
    }
    if (found.length === 0) throw new Refused(pathOf(group.chain.at(-1)), 'no branch can be met', true)
    return found
  }

  const alternatives = (place: readonly Node[]): Schema[][] => {
    const flat: Flat = { simple: [], groups: [], done: [] }
    for (const node of place) add(node, flat, [])
    return spread(flat)
  }

  const kindsOf = (schemas: readonly Schema[]): Set<Kind> => {
    let kinds: Set<Kind> | undefined
    for (const schema of schemas) {
      if (schema['type'] === undefined) continue
      const types = Array.isArray(schema['type']) ? (schema['type'] as unknown[]) : [schema['type']]
      const given = new Set<Kind>()
      for (const type of types) {
        if (!KINDS.includes(type as Kind)) throw new Refused(keywordPath(schema, 'type'), `${JSON.stringify(type)} is not a type`)
        given.add(type as Kind)
      }
      if (schema['nullable'] === true) given.add('null')
      if (given.has('number')) given.add('integer')
      kinds = kinds === undefined ? given : new Set([...kinds].filter((kind) => given.has(kind)))
    }
    if (kinds !== undefined) {
      if (kinds.size === 0) throw new Refused(pathOf(schemas[0]), 'no type fits all that is asked for', true)
    } else {
      const spokenOf = (['object', 'array', 'string', 'number'] as const).filter((kind) =>
        schemas.some((schema) => KEYWORDS_OF[kind].some((key) => schema[key] !== undefined)),
      )
      kinds = new Set(spokenOf.length > 0 ? spokenOf : KINDS)
    }
    if (kinds.has('number')) kinds.delete('integer')
    return kinds
  }

  // Strings

  const patternOf = (pattern: string, path: string): Dfa => {
    const read = readPattern(pattern)
    if (!read.ok) throw new Refused(path, read.reason)
    return read.dfa
  }

  type StringView = { dfas: Dfa[]; least: number; most: number | undefined }
  const stringView = (schemas: readonly Schema[]): StringView => {
    const dfas: Dfa[] = []
    let least = 0
    let most: number | undefined
    for (const schema of schemas) {
      const pattern = text(schema, 'pattern')
      if (pattern !== undefined) dfas.push(patternOf(pattern, keywordPath(schema, 'pattern')))
      const format = formatAutomaton(text(schema, 'format') ?? '')
      if (format !== undefined) dfas.push(format)
      least = Math.max(least, atLeast(schema, 'minLength'))
      most = lesser(most, count(schema, 'maxLength'))
    }
    if (most !== undefined && most < least) throw new Refused(pathOf(schemas[0]), 'minLength is greater than maxLength', true)
    return { dfas, least, most }
  }

  /** All of it as one automaton; undefined when every string fits. */
  const stringAutomaton = (view: StringView, path: string): Dfa | undefined => {
    const dfas = [...view.dfas]
    if (view.least > 0 || view.most !== undefined) dfas.push(lengthBetween(view.least, view.most))
    const [first, ...rest] = dfas
    if (first === undefined) return undefined
    const all = rest.reduce(intersect, first)
    if (isEmpty(all)) throw new Refused(path, 'no string has the pattern, the format and the length together', true)
    return all
  }

  const stringBody = (schemas: readonly Schema[]): string => {
    const view = stringView(schemas)
    if (view.dfas.length === 0) {
      if (view.least === 0 && view.most === undefined) return 'string'
      return `"\\"" ${grammar.repeat('char', view.least, view.most)} "\\""`
    }
    const dfa = stringAutomaton(view, pathOf(schemas[0]))
    return dfa === undefined ? 'string' : `"\\"" ${automatonRule(grammar, 'text', dfa, 'json')} "\\""`
  }

  // Numbers

  type NumberView = { low: Bound | undefined; high: Bound | undefined; steps: number[] }
  const numberView = (schemas: readonly Schema[]): NumberView => {
    let low: Bound | undefined
    let high: Bound | undefined
    const steps: number[] = []
    for (const schema of schemas) {
      for (const [key, exclusive] of [
        ['minimum', false],
        ['exclusiveMinimum', true],
      ] as const) {
        const value = number(schema, key)
        if (value !== undefined && (low === undefined || value > low.value || (value === low.value && exclusive)))
          low = { value, exclusive }
      }
      for (const [key, exclusive] of [
        ['maximum', false],
        ['exclusiveMaximum', true],
      ] as const) {
        const value = number(schema, key)
        if (value !== undefined && (high === undefined || value < high.value || (value === high.value && exclusive)))
          high = { value, exclusive }
      }
      const step = number(schema, 'multipleOf')
      if (step !== undefined && step <= 0) throw new Refused(keywordPath(schema, 'multipleOf'), 'must be greater than 0')
      if (step !== undefined) steps.push(step)
    }
    return { low, high, steps }
  }

  const numberBody = (schemas: readonly Schema[], integer: boolean): string => {
    const { low, high, steps } = numberView(schemas)
    if (low === undefined && high === undefined && steps.length === 0) return integer ? 'integer' : 'number'
    const whole = [...steps, undefined].map((multipleOf) => numbersIn({ low, high, multipleOf, integer }))
    const place = schemas.find((schema) => schema['multipleOf'] !== undefined)
    const kept = whole.filter((dfa) => dfa !== undefined)
    if (kept.length < whole.length)
      throw new Refused(place === undefined ? '#' : keywordPath(place, 'multipleOf'), 'this step cannot be kept by a grammar')
    const dfa = kept.reduce(intersect)
    if (isEmpty(dfa)) throw new Refused(pathOf(schemas[0]), 'no number is in the range', true)
    return automatonRule(grammar, 'number', dfa, 'plain')
  }

  // Fixed values

  const fits = (value: unknown, schemas: readonly Schema[], kinds: ReadonlySet<Kind>): boolean => {
    if (value === null) return kinds.has('null')
    if (typeof value === 'boolean') return kinds.has('boolean')
    if (Array.isArray(value)) return kinds.has('array')
    if (typeof value === 'string') {
      if (!kinds.has('string')) return false
      const { dfas, least, most } = stringView(schemas)
      const length = Array.from(value).length // code points, as JSON Schema counts
      return length >= least && length <= (most ?? length) && dfas.every((dfa) => accepts(dfa, value))
    }
    if (typeof value === 'number') {
      if (!kinds.has('number') && !(kinds.has('integer') && Number.isInteger(value))) return false
      const { low, high, steps } = numberView(schemas)
      if (low !== undefined && (low.exclusive ? value <= low.value : value < low.value)) return false
      if (high !== undefined && (high.exclusive ? value >= high.value : value > high.value)) return false
      return steps.every((step) => Math.abs(value / step - Math.round(value / step)) < 1e-9)
    }
    return kinds.has('object')
  }

  const fixedValues = (schemas: readonly Schema[]): unknown[] | undefined => {
    let values: Map<string, unknown> | undefined
    for (const schema of schemas) {
      for (const key of ['enum', 'const']) {
        if (schema[key] === undefined) continue
        const given = key === 'const' ? [schema[key]] : schema[key]
        if (!Array.isArray(given) || given.length === 0) throw new Refused(keywordPath(schema, key), 'must be a list of values')
        const known = values
        const next = new Map(given.map((value: unknown) => [canonical(value), value]))
        values = known === undefined ? next : new Map([...next].filter(([text]) => known.has(text)))
      }
    }
    return values && [...values.values()]
  }

  // Arrays

  const arrayBody = (schemas: readonly Schema[], depth: number): string => {
    let least = 0
    let most: number | undefined
    const lists = schemas.map((schema) => {
      least = Math.max(least, atLeast(schema, 'minItems'))
      most = lesser(most, count(schema, 'maxItems'))
      // Before the draft of 2020 a list under `items` was what `prefixItems` is now.
      const old = Array.isArray(schema['items'])
      if (old && schema['prefixItems'] !== undefined)
        throw new Refused(keywordPath(schema, 'items'), 'must not be a list beside prefixItems')
      return { prefix: nodes(schema, old ? 'items' : 'prefixItems') ?? [], rest: node(schema, old ? 'additionalItems' : 'items') }
    })
    const prefix = lists.reduce((length, list) => Math.max(length, list.prefix.length), 0)
    const itemAt = (index: number): Node[] => lists.flatMap((list) => present(list.prefix[index] ?? list.rest))
    const open = prefix === 0 || least > prefix || lists.some((list) => list.rest !== undefined)

    const itemRule = (place: Node[]): string | undefined => orNothing(() => ruleFor(place, 'item', depth + 1))
    const ends = (from: number) => (from === 0 ? '"]"' : 'ws "]"')
    const tail = (from: number): string | undefined => {
      const need = Math.max(0, least - from)
      const room = most === undefined ? undefined : most - from
      const item = open && room !== 0 ? itemRule(itemAt(prefix)) : undefined
      if (item === undefined) return need === 0 ? ends(from) : undefined
      const more = grammar.rule('more', `"," ws ${item}`)
      if (from > 0) return `${grammar.repeat(more, need, room)} ws "]"`
      const some = `${item} ${grammar.repeat(more, Math.max(0, need - 1), room === undefined ? undefined : room - 1)} ws "]"`
      return need === 0 ? `"]" | ${some}` : some
    }
    const from = (index: number): string | undefined => {
      if (index >= prefix) return tail(index)
      const ways: string[] = []
      if (index >= least) ways.push(ends(index))
      const item = most !== undefined && index >= most ? undefined : itemRule(itemAt(index))
      const next = item === undefined ? undefined : from(index + 1)
      if (item !== undefined && next !== undefined) ways.push(`${index > 0 ? '"," ws ' : ''}${item} ${grammar.rule('items', next)}`)
      return ways.length === 0 ? undefined : ways.join(' | ')
    }
    if (most !== undefined && most < least) throw new Refused(pathOf(schemas[0]), 'minItems is greater than maxItems', true)
    const body = from(0)
    if (body === undefined) throw new Refused(pathOf(schemas[0]), 'no list of items fits', true)
    return `"[" ws (${body})`
  }

  // Objects

  const objectBody = (schemas: readonly Schema[], depth: number): string => {
    let least = 0
    let most: number | undefined
    const required = new Set<string>()
    const nameChecks: Dfa[] = []
    const parts = schemas.map((schema) => {
      least = Math.max(least, atLeast(schema, 'minProperties'))
      most = lesser(most, count(schema, 'maxProperties'))
      for (const name of texts(schema, 'required')) required.add(name)
      const names = node(schema, 'propertyNames')
      if (names !== undefined) nameChecks.push(...nameAutomata(names, keywordPath(schema, 'propertyNames')))
      const patterns = [...nodeMap(schema, 'patternProperties')].map(([pattern, place]) => ({
        dfa: patternOf(pattern, keywordPath(schema, 'patternProperties', pattern)),
        path: keywordPath(schema, 'patternProperties', pattern),
        place,
      }))
      return { properties: nodeMap(schema, 'properties'), patterns, rest: node(schema, 'additionalProperties') }
    })

    /** The schemas that apply to the member of this name. */
    const placeOf = (name: string): Node[] =>
      parts.flatMap(({ properties, patterns, rest }) => {
        const own = properties.get(name)
        const found = [...(own === undefined ? [] : [own]), ...patterns.filter(({ dfa }) => accepts(dfa, name)).map(({ place }) => place)]
        return found.length > 0 ? found : present(rest)
      })

    const names = [...new Set([...parts.flatMap(({ properties }) => [...properties.keys()]), ...required])]
    const members: { key: string; needed: boolean }[] = []
    for (const name of names) {
      const allowed = nameChecks.every((dfa) => accepts(dfa, name))
      const value = allowed ? orNothing(() => ruleFor(placeOf(name), name, depth + 1)) : undefined
      if (value === undefined && required.has(name))
        throw new Refused(pathOf(schemas[0]), `nothing can be the required property ${JSON.stringify(name)}`, true)
      if (value !== undefined) members.push({ key: `${literal(`${JSON.stringify(name)}:`)} ws ${value}`, needed: required.has(name) })
    }

    // Members that the schema does not name: one class of names for each pattern, and one for the rest.
    const patterns = parts.flatMap((part, index) => part.patterns.map((pattern) => ({ ...pattern, index })))
    for (const [index, one] of patterns.entries()) {
      for (const other of patterns.slice(index + 1)) {
        if (!isEmpty(intersect(one.dfa, other.dfa))) throw new Refused(other.path, 'overlaps with another pattern of property names')
      }
    }
    const closed =
      parts.every(({ rest }) => rest === undefined) &&
      schemas.some(
        (schema) =>
          schema['properties'] !== undefined || schema['patternProperties'] !== undefined || schema['unevaluatedProperties'] === false,
      )
    const keyRule = (dfas: readonly Dfa[]): string | undefined => {
      const known = names.length > 0 ? [complement(anyOfTexts(names))] : []
      const [first, ...rest] = [...dfas, ...nameChecks, ...known]
      if (first === undefined) return 'string'
      const dfa = rest.reduce(intersect, first)
      return isEmpty(dfa) ? undefined : `"\\"" ${automatonRule(grammar, 'key', dfa, 'json')} "\\""`
    }
    const extras: string[] = []
    const addExtra = (dfas: readonly Dfa[], place: Node[]): void => {
      const key = keyRule(dfas)
      const value = key === undefined ? undefined : orNothing(() => ruleFor(place, 'extra', depth + 1))
      if (value !== undefined) extras.push(`${key} ":" ws ${value}`)
    }
    if (most === undefined || most > members.filter(({ needed }) => needed).length) {
      for (const { dfa, place, index } of patterns) {
        addExtra([dfa], [place, ...parts.flatMap(({ rest }, part) => (part === index ? [] : present(rest)))])
      }
      if (!closed) {
        addExtra(
          patterns.map(({ dfa }) => complement(dfa)),
          parts.flatMap(({ rest }) => present(rest)),
        )
      }
    }
    const extra = extras.length === 0 ? undefined : grammar.rule('extra', extras.join(' | '))
    const more = extra === undefined ? undefined : grammar.rule('more', `"," ws ${extra}`)

    const tail = (written: number): string | undefined => {
      const need = Math.max(0, least - written)
      const room = most === undefined ? undefined : most - written
      if (extra === undefined || more === undefined || room === 0) return need > 0 ? undefined : written === 0 ? '"}"' : 'ws "}"'
      if (written > 0) return `${grammar.repeat(more, need, room)} ws "}"`
      const some = `${extra} ${grammar.repeat(more, Math.max(0, need - 1), room === undefined ? undefined : room - 1)} ws "}"`
      return need === 0 ? `"}" | ${some}` : some
    }
    // How many members are written matters only as far as the limits look.
    const enough = most ?? Math.max(1, least)
    const made = new Map<string, string | undefined>()
    const from = (index: number, written: number): string | undefined => {
      const key = `${index},${written}`
      if (made.has(key)) return made.get(key)
      const member = members[index]
      let rule: string | undefined
      if (member === undefined) {
        const body = tail(written)
        rule = body === undefined ? undefined : grammar.rule('rest', body)
      } else {
        const ways: string[] = []
        const next = most !== undefined && written >= most ? undefined : from(index + 1, Math.min(written + 1, enough))
        if (next !== undefined) ways.push(`${written > 0 ? '"," ws ' : ''}${member.key} ${next}`)
        const skipped = member.needed ? undefined : from(index + 1, written)
        if (skipped !== undefined) ways.push(skipped)
        rule = ways.length === 0 ? undefined : grammar.rule('members', ways.join(' | '))
      }
      made.set(key, rule)
      return rule
    }
    const body = from(0, 0)
    if (body === undefined) throw new Refused(pathOf(schemas[0]), 'no set of properties fits', true)
    return `"{" ws ${body}`
  }

  const nameAutomata = (names: Node, path: string): Dfa[] => {
    const found = alternatives([names])
    const [schemas] = found
    if (schemas === undefined || found.length > 1) throw new Refused(path, 'a choice of property names cannot be kept by a grammar')
    const values = fixedValues(schemas)?.filter((value) => typeof value === 'string')
    const dfa = stringAutomaton(stringView(schemas), path)
    return [...(dfa === undefined ? [] : [dfa]), ...(values === undefined ? [] : [anyOfTexts(values)])]
  }

  // Places

  const bodyOf = (schemas: readonly Schema[], depth: number): string => {
    const kinds = kindsOf(schemas)
    const values = fixedValues(schemas)
    if (values !== undefined) {
      const fitting = values.filter((value) => fits(value, schemas, kinds))
      if (fitting.length === 0) throw new Refused(pathOf(schemas[0]), 'no value of enum or const fits the rest of the schema', true)
      return fitting.map((value) => literal(JSON.stringify(value))).join(' | ')
    }
    if (kinds.size === KINDS.length - 1 && schemas.every((schema) => schema['type'] === undefined)) return 'value'
    const bodies: string[] = []
    let contradiction: Refused | undefined
    for (const kind of kinds) {
      try {
        bodies.push(kindBody(kind, schemas, depth))
      } catch (error) {
        if (!(error instanceof Refused && error.contradiction)) throw error
        contradiction = error
      }
    }
    if (bodies.length === 0 && contradiction !== undefined) throw contradiction
    return bodies.join(' | ')
  }

  const kindBody = (kind: Kind, schemas: readonly Schema[], depth: number): string => {
    switch (kind) {
      case 'object':
        return schemas.some((schema) => KEYWORDS_OF.object.some((key) => schema[key] !== undefined)) ? objectBody(schemas, depth) : 'object'
      case 'array':
        return schemas.some((schema) => KEYWORDS_OF.array.some((key) => schema[key] !== undefined)) ? arrayBody(schemas, depth) : 'array'
      case 'string':
        return stringBody(schemas)
      case 'number':
      case 'integer':
        return numberBody(schemas, kind === 'integer')
      case 'boolean':
      case 'null':
        return kind
    }
  }

  const rules = new Map<string, string | Refused>()
  const ruleFor = (place: readonly Node[], hint: string, depth: number): string => {
    if (depth > MAX_DEPTH) throw new Refused(pathOf(place[0]), `the schema is nested deeper than ${MAX_DEPTH} levels`)
    const key = [...new Set(place.map(idOf))].sort((a, b) => a - b).join(',')
    const known = rules.get(key)
    if (known instanceof Refused) throw known
    if (known !== undefined) return known
    const name = grammar.reserve(hint)
    rules.set(key, name)
    try {
      const bodies = new Set<string>()
      let contradiction: Refused | undefined
      for (const schemas of alternatives(place)) {
        try {
          bodies.add(bodyOf(schemas, depth))
        } catch (error) {
          if (!(error instanceof Refused && error.contradiction)) throw error
          contradiction = error
        }
      }
      if (bodies.size === 0 && contradiction !== undefined) throw contradiction
      grammar.define(name, [...bodies].join(' | '))
      return name
    } catch (error) {
      if (error instanceof Refused) rules.set(key, error)
      throw error
    }
  }

  const whole = asNode(place, path)
  if (whole === false) throw new Refused(path, 'nothing fits a schema that is false')
  return ruleFor(only === undefined ? [whole] : [whole, { type: only }], 'value', 0)
}

const lesser = (a: number | undefined, b: number | undefined): number | undefined =>
  a === undefined ? b : b === undefined ? a : Math.min(a, b)

/** A part of a JSON pointer in a URI fragment (RFC 6901, section 6). */
const unescapePointer = (part: string): string => {
  try {
    return decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')
  } catch {
    return part
  }
}

const present = (node: Node | undefined): Node[] => (node === undefined ? [] : [node])

/** What a contradiction rules out is left out; other refusals go on. */
const orNothing = <T>(build: () => T): T | undefined => {
  try {
    return build()
  } catch (error) {
    if (error instanceof Refused && error.contradiction) return undefined
    throw error
  }
}

/** Measures without recursion what comes from outside, before anything recursive looks at it. */
const measure = (schema: unknown): void => {
  let level: unknown[] = [schema]
  // Every level of schemas is two or three levels of JSON.
  for (let depth = 0; level.length > 0; depth += 1) {
    if (depth > MAX_DEPTH * 3) throw new Refused('#', `the schema is nested deeper than ${MAX_DEPTH} levels`)
    level = level.flatMap((value) => (typeof value === 'object' && value !== null ? Object.values(value) : []))
  }
  const bytes = Buffer.byteLength(JSON.stringify(schema) ?? '')
  if (bytes > MAX_SCHEMA_BYTES) throw new Refused('#', `the schema is larger than ${MAX_SCHEMA_BYTES} bytes`)
}

/** Whether the schema uses the list form of `items`, which the newer drafts do not know. */
const hasOldItems = (schema: unknown): boolean => {
  if (typeof schema !== 'object' || schema === null) return false
  if (isSchema(schema) && Array.isArray(schema['items'])) return true
  return Object.values(schema).some(hasOldItems)
}

const compileCheck = (schema: Schema | boolean): ValidateFunction => {
  const options: Options = {
    strict: false,
    logger: false,
    validateSchema: false,
    multipleOfPrecision: 9,
    // Patterns run on our automata: a hostile one costs no more than a step per character.
    code: {
      regExp: Object.assign(
        (pattern: string) => {
          const read = readPattern(pattern)
          // ajv tells patterns apart by their text.
          return { test: (text: string) => read.ok && accepts(read.dfa, text), toString: () => pattern }
        },
        { code: '' },
      ),
    },
    formats: Object.fromEntries(KNOWN_FORMATS.map((format) => [format, (text: string) => accepts(formatAutomaton(format) as Dfa, text)])),
  }
  const ajv = hasOldItems(schema) ? new Ajv(options) : new Ajv2020(options)
  return ajv.compile(schema)
}

/**
 * Turns a JSON Schema (2020-12, and what of older drafts is in use) into a grammar, and into a check of the finished text. The reason
 * of a refusal names the keyword and its place, for the caller who wrote the schema.
 */
export const jsonSchemaToGbnf = (schema: unknown): SchemaGrammar => {
  const made = attempt(() =>
    withAllowance(() => {
      const grammar = openGrammar()
      const gbnf = grammar.text(openSchemaRules(grammar).root(schema))
      return { gbnf, validate: compile(schema as Schema | boolean) }
    }),
  )
  if (!made.ok) return made
  const { gbnf, validate } = made.value
  return {
    ok: true,
    gbnf,
    check(text) {
      let value: unknown
      try {
        value = JSON.parse(text)
      } catch {
        return 'the text is not JSON'
      }
      if (validate(value)) return undefined
      const error = validate.errors?.[0]
      return `${error?.instancePath || 'the value'} ${error?.message ?? 'does not follow the schema'}`
    },
  }
}

const compile = (schema: Schema | boolean): ValidateFunction => {
  try {
    return compileCheck(schema)
  } catch (error) {
    throw new Refused('#', `the schema is not valid: ${error instanceof Error ? error.message : 'it cannot be read'}`)
  }
}
