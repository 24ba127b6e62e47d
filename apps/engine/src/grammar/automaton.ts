import { type Grammar, literal, oneOf, type Range } from './gbnf.ts'
import { Refused } from './refused.ts'

/*
 * Regular languages over code points. Patterns, formats, number ranges and "any key but these" all become deterministic automata, which
 * can be intersected and complemented, and whose grammar never leaves a choice open: one state of the grammar at a time while sampling.
 */

/** A way of construction: edges that take a character, and free ones, some of which are open only at the beginning or end of the text. */
export type Nfa = {
  state(): number
  edge(from: number, ranges: readonly Range[], to: number): void
  free(from: number, to: number, when?: 'always' | 'start' | 'end'): void
  /** The automaton that accepts what leads from `start` to `final`. */
  determinize(start: number, final: number): Dfa
}

export type Edge = { ranges: readonly Range[]; to: number }
/** Starts in state 0. Every other state can be reached and leads to acceptance. */
export type Dfa = { accepts: readonly boolean[]; edges: readonly (readonly Edge[])[] }

const MAX_NFA_STATES = 40_000
const MAX_STATES = 5000
const MAX_WORK = 3_000_000 // visits of states and ranges while building for one schema: some tenths of a second

/*
 * A pattern of twenty characters can ask for work without end, and the engine serves others meanwhile, so all building for one schema
 * draws on one allowance. It is kept here and not handed through every function because building never waits: no two can mix.
 */
let workLeft = MAX_WORK

/** Runs the building of one grammar with a fresh allowance. */
export const withAllowance = <T>(build: () => T): T => {
  workLeft = MAX_WORK
  return build()
}

const spend = (work: number): void => {
  workLeft -= work
  if (workLeft < 0) throw tooLarge()
}

/** All code points that can stand in a text. */
export const ANY: readonly Range[] = [
  [0, 0xd7ff],
  [0xe000, 0x10ffff],
]

const tooLarge = () => new Refused('#', 'a pattern, format or range is too large to be kept')

/** The ranges in order, those that touch joined. */
export const joinRanges = (ranges: readonly Range[]): Range[] => {
  const joined: [number, number][] = []
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = joined.at(-1)
    if (last !== undefined && low <= last[1] + 1) last[1] = Math.max(last[1], high)
    else joined.push([low, high])
  }
  return joined
}

/** What is in both, both in order. */
const commonRanges = (a: readonly Range[], b: readonly Range[]): Range[] => {
  const common: Range[] = []
  for (let left = 0, right = 0; ; ) {
    const one = a[left]
    const other = b[right]
    if (one === undefined || other === undefined) return common
    const low = Math.max(one[0], other[0])
    const high = Math.min(one[1], other[1])
    if (low <= high) common.push([low, high])
    if (one[1] < other[1]) left += 1
    else right += 1
  }
}

const LAST = 0x10ffff

export const withoutRanges = (ranges: readonly Range[], removed: readonly Range[]): Range[] => {
  const gaps: Range[] = []
  let from = 0
  for (const [low, high] of joinRanges(removed)) {
    if (low > from) gaps.push([from, low - 1])
    from = high + 1
  }
  if (from <= LAST) gaps.push([from, LAST])
  return commonRanges(joinRanges(ranges), gaps)
}

/** Keeps what can be reached and leads to acceptance, so that a grammar made of it has no dead ends. */
const trim = (dfa: Dfa): Dfa => {
  const sources: number[][] = dfa.accepts.map(() => [])
  for (const [from, edges] of dfa.edges.entries()) for (const { to } of edges) sources[to]?.push(from)
  const alive = new Set<number>()
  const waiting = dfa.accepts.flatMap((accepts, state) => (accepts ? [state] : []))
  for (let state = waiting.pop(); state !== undefined; state = waiting.pop()) {
    if (alive.has(state)) continue
    alive.add(state)
    waiting.push(...(sources[state] ?? []))
  }
  const numbers = new Map([[0, 0]])
  const order = [0]
  const edges: Edge[][] = []
  for (const state of order) {
    const kept: Edge[] = []
    for (const edge of dfa.edges[state] ?? []) {
      if (!alive.has(edge.to) || edge.ranges.length === 0) continue
      let to = numbers.get(edge.to)
      if (to === undefined) {
        to = order.length
        numbers.set(edge.to, to)
        order.push(edge.to)
      }
      kept.push({ ranges: edge.ranges, to })
    }
    edges.push(kept)
  }
  return { accepts: order.map((state) => dfa.accepts[state] ?? false), edges }
}

const MAX_MERGED_STATES = 400 // merging is quadratic at worst; larger ones are mostly counters, with little to merge

/** Merges states that accept the same rests, so that a product with a counter stays small. */
const merge = (dfa: Dfa): Dfa => {
  if (dfa.accepts.length > MAX_MERGED_STATES) return dfa
  let classes = dfa.accepts.map(Number)
  for (let count = 0; ; ) {
    const numbers = new Map<string, number>()
    const next = dfa.edges.map((edges, state) => {
      const byClass = new Map<number, Range[]>()
      for (const { ranges, to } of edges) {
        const target = classes[to] ?? 0
        byClass.set(target, [...(byClass.get(target) ?? []), ...ranges])
      }
      spend(edges.length + 1)
      const out = [...byClass].sort(([a], [b]) => a - b).map(([target, ranges]) => `${target}:${joinRanges(ranges).join(';')}`)
      const key = `${classes[state]}|${out.join('|')}`
      const known = numbers.get(key) ?? numbers.size
      numbers.set(key, known)
      return known
    })
    classes = next
    if (numbers.size === count) break
    count = numbers.size
  }
  const first = new Map<number, number>()
  for (const [state, number] of classes.entries()) if (!first.has(number)) first.set(number, state)
  const members = [...first.values()] // state 0 is the first of class 0
  return {
    accepts: members.map((state) => dfa.accepts[state] ?? false),
    edges: members.map((state) => {
      const byClass = new Map<number, Range[]>()
      for (const { ranges, to } of dfa.edges[state] ?? []) {
        const target = classes[to] ?? 0
        byClass.set(target, [...(byClass.get(target) ?? []), ...ranges])
      }
      return [...byClass].map(([to, ranges]) => ({ to, ranges: joinRanges(ranges) }))
    }),
  }
}

export const isEmpty = (dfa: Dfa): boolean => dfa.accepts[0] !== true && dfa.edges[0]?.length === 0

export const openNfa = (): Nfa => {
  const edges: { ranges: readonly Range[]; to: number }[][] = []
  const free: { to: number; when: 'always' | 'start' | 'end' }[][] = []

  const closure = (states: Iterable<number>, open: readonly string[]): number[] => {
    const found = new Set<number>()
    const waiting = [...states]
    for (let state = waiting.pop(); state !== undefined; state = waiting.pop()) {
      if (found.has(state)) continue
      found.add(state)
      spend(1)
      for (const { to, when } of free[state] ?? []) if (when === 'always' || open.includes(when)) waiting.push(to)
    }
    return [...found].sort((a, b) => a - b)
  }

  return {
    state() {
      if (edges.length >= MAX_NFA_STATES) throw tooLarge()
      edges.push([])
      free.push([])
      return edges.length - 1
    },
    edge(from, ranges, to) {
      edges[from]?.push({ ranges, to })
    },
    free(from, to, when = 'always') {
      free[from]?.push({ to, when })
    },
    determinize(start, final) {
      const isUniversal = (state: number) => edges[state]?.some((edge) => edge.to === state && edge.ranges === ANY) === true
      const numbers = new Map<string, number>()
      const sets: number[][] = []
      const numberOf = (states: number[], atStart = false): number => {
        // Once everything is accepted, where else we might be does not matter.
        const set = states.includes(final) && isUniversal(final) ? [final] : states
        // Only the first state stands at the beginning of the text, even if the same states are met again.
        const key = atStart ? 'start' : set.join(',')
        const known = numbers.get(key)
        if (known !== undefined) return known
        if (sets.length >= MAX_STATES) throw tooLarge()
        numbers.set(key, sets.length)
        sets.push(set)
        return sets.length - 1
      }
      numberOf(closure([start], ['start']), true)
      const accepts: boolean[] = []
      const out: Edge[][] = []
      for (const [index, set] of sets.entries()) {
        accepts.push(closure(set, index === 0 ? ['start', 'end'] : ['end']).includes(final))
        const outgoing = set.flatMap((state) => edges[state] ?? [])
        const cuts = [...new Set(outgoing.flatMap(({ ranges }) => ranges.flatMap(([low, high]) => [low, high + 1])))].sort((a, b) => a - b)
        spend(cuts.length * outgoing.reduce((sum, { ranges }) => sum + ranges.length, 0))
        const byTarget = new Map<number, Range[]>()
        for (const [at, low] of cuts.entries()) {
          const next = cuts[at + 1]
          if (next === undefined) break
          const targets = outgoing.filter(({ ranges }) => ranges.some(([from, to]) => from <= low && low <= to)).map(({ to }) => to)
          if (targets.length === 0) continue
          const target = numberOf(closure(targets, []))
          byTarget.set(target, [...(byTarget.get(target) ?? []), [low, next - 1]])
        }
        out.push([...byTarget].map(([to, ranges]) => ({ to, ranges: joinRanges(ranges) })))
      }
      return merge(trim({ accepts, edges: out }))
    },
  }
}

/** What both accept. */
export const intersect = (a: Dfa, b: Dfa): Dfa => {
  const numbers = new Map([['0,0', 0]])
  const pairs: [number, number][] = [[0, 0]]
  const edges: Edge[][] = []
  for (const [left, right] of pairs) {
    const out: Edge[] = []
    for (const one of a.edges[left] ?? []) {
      for (const other of b.edges[right] ?? []) {
        spend(one.ranges.length + other.ranges.length)
        const ranges = commonRanges(one.ranges, other.ranges)
        if (ranges.length === 0) continue
        const key = `${one.to},${other.to}`
        let to = numbers.get(key)
        if (to === undefined) {
          if (pairs.length >= MAX_STATES) throw tooLarge()
          to = pairs.length
          numbers.set(key, to)
          pairs.push([one.to, other.to])
        }
        out.push({ ranges, to })
      }
    }
    edges.push(out)
  }
  return trim({ accepts: pairs.map(([left, right]) => a.accepts[left] === true && b.accepts[right] === true), edges })
}

/** Every text that it does not accept. */
export const complement = (dfa: Dfa): Dfa => {
  const sink = dfa.accepts.length
  const edges = dfa.edges.map((out) => {
    const rest = withoutRanges(
      ANY,
      out.flatMap(({ ranges }) => ranges),
    )
    return rest.length === 0 ? [...out] : [...out, { ranges: rest, to: sink }]
  })
  return trim({ accepts: [...dfa.accepts.map((accepts) => !accepts), true], edges: [...edges, [{ ranges: ANY, to: sink }]] })
}

/** Texts of `least` to `most` code points. */
export const lengthBetween = (least: number, most: number | undefined): Dfa => {
  const last = most ?? least
  if (last >= MAX_STATES) throw tooLarge()
  const accepts = Array.from({ length: last + 1 }, (_, count) => count >= least)
  const edges = accepts.map((_, count): Edge[] => {
    if (count < last) return [{ ranges: ANY, to: count + 1 }]
    return most === undefined ? [{ ranges: ANY, to: count }] : []
  })
  return trim({ accepts, edges })
}

/** Exactly these texts. */
export const anyOfTexts = (texts: Iterable<string>): Dfa => {
  const accepts = [false]
  const children: Map<number, number>[] = [new Map()]
  for (const text of texts) {
    let at = 0
    for (const char of text) {
      const code = char.codePointAt(0) ?? 0
      let to = children[at]?.get(code)
      if (to === undefined) {
        to = accepts.length
        if (to >= MAX_STATES) throw tooLarge()
        accepts.push(false)
        children.push(new Map())
        children[at]?.set(code, to)
      }
      at = to
    }
    accepts[at] = true
  }
  return trim({ accepts, edges: children.map((out) => [...out].map(([code, to]) => ({ ranges: [[code, code]] as Range[], to }))) })
}

/** Every text in which `text` does not occur. */
export const without = (text: string): Dfa => {
  const nfa = openNfa()
  const start = nfa.state()
  nfa.edge(start, ANY, start)
  let at = start
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0
    const to = nfa.state()
    nfa.edge(at, [[code, code]], to)
    at = to
  }
  nfa.edge(at, ANY, at)
  return complement(nfa.determinize(start, at))
}

export const accepts = (dfa: Dfa, text: string): boolean => {
  let state = 0
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0
    const edge = dfa.edges[state]?.find(({ ranges }) => ranges.some(([low, high]) => low <= code && code <= high))
    if (edge === undefined) return false
    state = edge.to
  }
  return dfa.accepts[state] === true
}

const SHORT_ESCAPES = new Map([
  [8, 'b'],
  [9, 't'],
  [10, 'n'],
  [12, 'f'],
  [13, 'r'],
])
const MUST_ESCAPE: readonly Range[] = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
]

/** The ways to write these code points inside a JSON string. */
const escapedForms = (ranges: readonly Range[]): string[] => {
  const forms: string[] = []
  const bare = withoutRanges(ranges, MUST_ESCAPE)
  if (bare.length > 0) forms.push(oneOf(bare))
  const has = (code: number) => ranges.some(([low, high]) => low <= code && code <= high)
  const letters: Range[] = []
  for (const code of [0x22, 0x5c]) if (has(code)) letters.push([code, code])
  for (const [code, letter] of SHORT_ESCAPES) if (has(code)) letters.push([letter.charCodeAt(0), letter.charCodeAt(0)])
  if (letters.length > 0) forms.push(`${literal('\\')} ${oneOf(letters)}`)
  for (const sixteen of [0, 1]) {
    const digits: Range[] = []
    for (let low = 0; low < 16; low += 1) {
      const code = sixteen * 16 + low
      if (!has(code) || SHORT_ESCAPES.has(code)) continue
      const digit = low.toString(16)
      digits.push([digit.charCodeAt(0), digit.charCodeAt(0)])
      if (digit >= 'a') digits.push([digit.toUpperCase().charCodeAt(0), digit.toUpperCase().charCodeAt(0)])
    }
    if (digits.length > 0) forms.push(`${literal(`\\u00${sixteen}`)} ${oneOf(digits)}`)
  }
  return forms
}

/** Writes the automaton as rules, one per state, and gives the name of the first. As `json`, characters are written as JSON strings need them. */
export const automatonRule = (grammar: Grammar, hint: string, dfa: Dfa, writing: 'json' | 'plain'): string => {
  const names = dfa.accepts.map(() => grammar.reserve(hint))
  for (const [state, name] of names.entries()) {
    const ways = (dfa.edges[state] ?? []).flatMap(({ ranges, to }) => {
      const forms = writing === 'json' ? escapedForms(ranges) : [oneOf(ranges)]
      return forms.length === 0 ? [] : [`${forms.length === 1 ? forms[0] : `(${forms.join(' | ')})`} ${names[to]}`]
    })
    grammar.define(name, [...(dfa.accepts[state] === true ? ['""'] : []), ...ways].join(' | '))
  }
  return names[0] ?? '""'
}
