import { Refused } from './refused.ts'

/** Code points from the first to the second, both included. */
export type Range = readonly [number, number]

/*
 * llama.cpp writes a repetition out as rules and refuses 2,000 of them (MAX_REPETITION_THRESHOLD), printing the whole grammar; longer
 * ones are made of blocks, of which there can be as many again. A greatest count beyond that is no limit at all: no answer reaches it.
 * A least count beyond it is refused by whoever reads it, with its place.
 */
const BLOCK = 1000
export const MAX_REPEAT = BLOCK * BLOCK

const MAX_RULES = 20_000 // a grammar is copied for every request that uses it
const MAX_GRAMMAR_CHARS = 2 << 20

const hex = (code: number): string => {
  const digits = code.toString(16).toUpperCase()
  if (code < 0x80) return `\\x${digits.padStart(2, '0')}`
  return code < 0x10000 ? `\\u${digits.padStart(4, '0')}` : `\\U${digits.padStart(8, '0')}`
}

const isPlain = (code: number): boolean => code >= 0x20 && code < 0x7f && code !== 0x22 && code !== 0x5c
const isWord = (code: number): boolean => /[0-9A-Za-z]/.test(String.fromCodePoint(code))

/** Exactly this text. */
export const literal = (text: string): string => {
  let body = ''
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0
    body += isPlain(code) ? char : hex(code)
  }
  return `"${body}"`
}

/** Any one of these code points. */
export const oneOf = (ranges: readonly Range[]): string => {
  const show = (code: number) => (isWord(code) ? String.fromCodePoint(code) : hex(code))
  return `[${ranges.map(([low, high]) => (low === high ? show(low) : `${show(low)}-${show(high)}`)).join('')}]`
}

export type Grammar = {
  /** Writes a rule and gives its name. */
  rule(hint: string, body: string): string
  /** A name for a rule that refers to itself; `define` writes its body. */
  reserve(hint: string): string
  define(name: string, body: string): void
  /** The item, which must be a single symbol, `least` to `most` times. */
  repeat(item: string, least: number, most: number | undefined): string
  /** The grammar with this body as its root; rules that the root does not reach are left out. */
  text(root: string): string
}

const QUOTED = /"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[0-9, ]*\}/g
const NAMES = /[a-z][a-z0-9-]*/g

const TOKENS = /"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|\{[0-9, ]*\}|[a-z][a-z0-9-]*|[()|?*+]/g

/** Whether a body can come to an end, given the rules that are known to. */
const canEnd = (tokens: readonly string[], ending: ReadonlySet<string>): boolean => {
  let at = 0
  const choice = (): boolean => {
    let any = sequence()
    while (tokens[at] === '|') {
      at += 1
      const next = sequence()
      any ||= next
    }
    return any
  }
  const sequence = (): boolean => {
    let all = true
    while (at < tokens.length && tokens[at] !== '|' && tokens[at] !== ')') {
      const token = tokens[at] ?? ''
      at += 1
      let item = true
      if (token === '(') {
        item = choice()
        at += 1
      } else if (/^[a-z]/.test(token)) item = ending.has(token)
      const times = tokens[at] ?? ''
      if (/^[?*+{]/.test(times)) {
        at += 1
        if (/^(?:[?*]|\{0[,}])/.test(times)) item = true
      }
      all &&= item
    }
    return all
  }
  return choice()
}

/** Whether a text that follows the rules can end: a thing that must contain another of its kind never does. */
const hasEnd = (rules: ReadonlyMap<string, string>): boolean => {
  // Rules mostly refer to neighbours in one direction, so passes in turns of direction settle quickly.
  let open = [...rules].map(([name, body]) => ({ name, tokens: body.match(TOKENS) ?? [] }))
  const ending = new Set<string>()
  for (;;) {
    const before = open.length
    open = open.toReversed().filter(({ name, tokens }) => {
      if (!canEnd(tokens, ending)) return true
      ending.add(name)
      return false
    })
    if (ending.has('root')) return true
    if (open.length === before) return false
  }
}

/** Collects the rules of one grammar in llama.cpp's notation. */
export const openGrammar = (): Grammar => {
  const rules = new Map<string, string | undefined>()

  const reserve = (hint: string): string => {
    if (rules.size >= MAX_RULES) throw new Refused('#', `the schema is too large: it needs more than ${MAX_RULES} grammar rules`)
    const word =
      hint
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, '-')
        .replace(/^[^a-z]+|-+$/g, '') || 'r'
    const name = `${word.slice(0, 24)}-${rules.size}`
    rules.set(name, undefined)
    return name
  }
  const define = (name: string, body: string): void => {
    rules.set(name, body)
  }
  const rule = (hint: string, body: string): string => {
    const name = reserve(hint)
    define(name, body)
    return name
  }

  const blocks = new Map<string, string>()
  const block = (item: string): string => {
    const known = blocks.get(item)
    if (known !== undefined) return known
    const name = rule('block', `${item}{${BLOCK}}`)
    blocks.set(item, name)
    return name
  }
  const exactly = (item: string, count: number): string[] => {
    if (count === 0) return []
    if (count === 1) return [item]
    if (count <= BLOCK) return [`${item}{${count}}`]
    const rest = count % BLOCK
    return [`${block(item)}{${Math.floor(count / BLOCK)}}`, ...exactly(item, rest)]
  }
  const upTo = (item: string, count: number): string[] => {
    if (count === 0) return []
    if (count <= BLOCK) return [count === 1 ? `${item}?` : `${item}{0,${count}}`]
    // Either fewer whole blocks and a part of one, or all of them and a part of the rest.
    const whole = Math.floor(count / BLOCK)
    const fewer = [...upTo(block(item), whole - 1), `${item}{0,${BLOCK - 1}}`].join(' ')
    const all = [...exactly(block(item), whole), ...upTo(item, count % BLOCK)].join(' ')
    return [rule('up-to', `${fewer} | ${all}`)]
  }

  return {
    rule,
    reserve,
    define,
    repeat(item, least, most) {
      if (least > MAX_REPEAT) throw new Refused('#', `at least ${least} of something cannot be kept: the most is ${MAX_REPEAT}`)
      if (most !== undefined && most <= MAX_REPEAT) return [...exactly(item, least), ...upTo(item, most - least)].join(' ')
      return least === 1 ? `${item}+` : [...exactly(item, least), `${item}*`].join(' ')
    },
    text(root) {
      const written = new Map([['root', root]])
      const waiting = [root]
      let chars = 0
      for (let body = waiting.pop(); body !== undefined; body = waiting.pop()) {
        for (const name of body.replace(QUOTED, ' ').match(NAMES) ?? []) {
          if (written.has(name)) continue
          const rest = rules.get(name)
          if (rest === undefined) throw new Refused('#', 'nothing can fit the schema', true)
          written.set(name, rest)
          chars += rest.length
          if (chars > MAX_GRAMMAR_CHARS) throw new Refused('#', 'the schema is too large for a grammar')
          waiting.push(rest)
        }
      }
      if (!hasEnd(written))
        throw new Refused('#', 'a value that follows the schema would never end: something must contain another of its kind')
      return [...written].map(([name, body]) => `${name} ::= ${body}\n`).join('')
    },
  }
}
