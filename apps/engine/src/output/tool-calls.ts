import { isObject, itemsOf, type JsonScan, membersOf, openJsonScan, parseJson, skipSpace } from './json-text.ts'

/** The ways in which families of models write a tool call. */
export type ToolFormat = 'hermes' | 'llama3' | 'mistral' | 'qwen3-coder' | 'deepseek' | 'functionary'

/** Finds the format by what the chat template contains; undefined when the template knows no tools. */
export const toolFormat = (template: string): ToolFormat | undefined => {
  const has = (mark: string) => template.includes(mark)
  if (has('<function=') && has('<parameter=')) return 'qwen3-coder'
  if (has('<｜tool▁call▁begin｜>') || has('<｜tool▁calls▁begin｜>')) return 'deepseek'
  if (has('[TOOL_CALLS]')) return 'mistral'
  if (has('>>>all') || (has('>>>') && has('recipient')) || has('<function=')) return 'functionary'
  if (has('<tool_call>')) return 'hermes'
  if (has('<|python_tag|>') || (has('<|start_header_id|>') && has('tools') && has('parameters'))) return 'llama3'
  return undefined
}

/**
 * What a model's text turns out to be. A `call` comes once per call with its whole name; the `arguments` pieces of that index, joined,
 * are the text of a JSON object.
 */
export type ToolPiece =
  | { kind: 'content'; text: string }
  | { kind: 'call'; index: number; name: string }
  | { kind: 'arguments'; index: number; text: string }

export type ToolParser = {
  push(text: string): ToolPiece[]
  end(): ToolPiece[]
}

/** The tools of the request. Only formats that write values without types need them: 5 may be a number or a text. */
export type KnownTool = { name: string; parameters: unknown }

type Call = { name: string; arguments: string }

type Reading =
  /** Nothing can be decided before a character of `until` has come. */
  | { kind: 'more'; until?: RegExp }
  | { kind: 'not' }
  /** Not a call, but not text for the user either: a frame around calls. */
  | { kind: 'skip'; length: number }
  | { kind: 'calls'; calls: Call[]; length: number }

const MORE: Reading = { kind: 'more' }
const MORE_JSON: Reading = { kind: 'more', until: /[}\]]/ }
const MORE_TAGS: Reading = { kind: 'more', until: />/ }
const NOT: Reading = { kind: 'not' }

/** Where in the answer we are: some formats begin a call without any mark, but only at the beginning or right after another call. */
type Place = 'start' | 'after-call' | 'text'

type Format = {
  /** Texts that may begin a call anywhere. */
  marks: readonly string[]
  /** Whether a call may also begin without a mark, at the beginning of the answer or right after another call. */
  bare: boolean
  /** Reads at the beginning of `text`. `ended` says that nothing will be added. */
  read(text: string, place: Place, ended: boolean, scan: JsonScan, tools: readonly KnownTool[]): Reading
}

/** Reads `{"name": …, "arguments": {…}}` and its variations. */
const objectToCall = (text: string): Call | undefined => {
  const parsed = parseJson(text)
  if (!parsed.ok || !isObject(parsed.value)) return undefined
  const members = membersOf(text)
  const wrapped = parsed.value['function']
  if (isObject(wrapped)) return objectToCall(members.get('function') ?? '')
  const name = parsed.value['name'] ?? wrapped
  if (typeof name !== 'string' || name === '') return undefined
  const key = 'arguments' in parsed.value ? 'arguments' : 'parameters'
  const given = parsed.value[key]
  if (given === undefined || given === null) return { name, arguments: '{}' }
  if (isObject(given)) return { name, arguments: members.get(key) ?? '{}' }
  if (typeof given !== 'string') return undefined
  // Some models write the arguments as a string with JSON in it.
  const inner = parseJson(given)
  return inner.ok && isObject(inner.value) ? { name, arguments: given.trim() } : undefined
}

const argumentsOf = (text: string): string | undefined => {
  const parsed = parseJson(text)
  return parsed.ok && isObject(parsed.value) ? text : undefined
}

/** Reads one call object, or an array of them, at `from`. */
const readObjects = (text: string, from: number, scan: JsonScan): Reading => {
  const end = scan.end(text, from)
  if (typeof end !== 'number') return end === 'more' ? MORE_JSON : NOT
  const json = text.slice(from, end)
  if (!parseJson(json).ok) return NOT
  const calls = (json.startsWith('[') ? itemsOf(json) : [json]).map(objectToCall)
  if (calls.length === 0 || calls.includes(undefined)) return NOT
  return { kind: 'calls', calls: calls as Call[], length: end }
}

/** A closing mark after `from`, with space before it: its end, or whether it may still come. */
const closing = (text: string, from: number, mark: string): number | 'more' | 'not' => {
  const at = skipSpace(text, from)
  const rest = text.slice(at, at + mark.length)
  if (rest === mark) return at + mark.length
  return mark.startsWith(rest) ? 'more' : 'not'
}

/** The name of a call in `<function=name>`, `>>>name\n` and the like. */
const NAME = /^[A-Za-z0-9_.:/-]{1,256}/

const readNamed = (text: string, from: number, after: string): { name: string; end: number } | 'more' | 'not' => {
  const name = NAME.exec(text.slice(from, from + 256))?.[0]
  if (name === undefined) return from >= text.length ? 'more' : 'not'
  const end = from + name.length
  if (text.startsWith(after, end)) return { name, end: end + after.length }
  return after.startsWith(text.slice(end)) ? 'more' : 'not'
}

/** Reads `{…}` as the arguments of a call that has its name already. */
const readArguments = (text: string, name: string, from: number, scan: JsonScan): Reading => {
  const at = skipSpace(text, from)
  if (at >= text.length) return MORE
  if (text[at] !== '{') return NOT
  const end = scan.end(text, at)
  if (typeof end !== 'number') return end === 'more' ? MORE_JSON : NOT
  const json = argumentsOf(text.slice(at, end))
  return json === undefined ? NOT : { kind: 'calls', calls: [{ name, arguments: json }], length: end }
}

/** A reading that still needs its closing mark. At the end of the answer a missing one is forgiven: the call itself is whole. */
const closed = (reading: Reading, text: string, mark: string, ended: boolean): Reading => {
  if (reading.kind !== 'calls') return reading
  const end = closing(text, reading.length, mark)
  if (typeof end === 'number') return { ...reading, length: end }
  if (end === 'not') return NOT
  return ended ? { ...reading, length: text.length } : MORE
}

const TOOL_CALL = '<tool_call>'

/** Hermes, Qwen 2.5 and 3 and many others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. */
const hermes: Format = {
  marks: [TOOL_CALL],
  bare: false,
  read(text, _place, ended, scan) {
    const at = skipSpace(text, TOOL_CALL.length)
    if (at >= text.length) return MORE
    if (text[at] !== '{') return NOT
    return closed(readObjects(text, at, scan), text, '</tool_call>', ended)
  },
}

const PYTHON_TAG = '<|python_tag|>'
const CALL_KEYS = new Set(['name', 'type', 'function', 'arguments', 'parameters', 'id'])

/** Llama 3.1 and later: the bare object at the beginning, or after `<|python_tag|>`; several are separated by semicolons. */
const llama3: Format = {
  marks: [PYTHON_TAG],
  bare: true,
  read(text, place, _ended, scan) {
    const tagged = text.startsWith(PYTHON_TAG)
    if (!tagged && place === 'text') return NOT
    const separated = place === 'after-call' && text.startsWith(';')
    const at = skipSpace(text, tagged ? PYTHON_TAG.length : separated ? 1 : 0)
    if (at >= text.length) return MORE
    // An answer in JSON need not be held back to its end: its first key shows that it is none of ours.
    const key = /^(?:\[\s*)?\{\s*"([^"\\]*)["\\]/.exec(text.slice(at, at + 100))?.[1]
    if (key !== undefined && !CALL_KEYS.has(key)) return NOT
    if (text[at] !== '{' && !/^\[\s*(?:\{|$)/.test(text.slice(at, at + 100))) return NOT
    return readObjects(text, at, scan)
  },
}

const TOOL_CALLS = '[TOOL_CALLS]'

/** Mistral: `[TOOL_CALLS][{…}, {…}]`, and since 2025 `[TOOL_CALLS]name[ARGS]{…}` once per call, some with a `[CALL_ID]`. */
const mistral: Format = {
  marks: [TOOL_CALLS],
  bare: false,
  read(text, _place, _ended, scan) {
    let at = skipSpace(text, TOOL_CALLS.length)
    if (at >= text.length) return MORE
    if (text[at] === '[' || text[at] === '{') return readObjects(text, at, scan)
    const name = NAME.exec(text.slice(at, at + 256))?.[0]
    if (name === undefined) return NOT
    at += name.length
    for (const mark of ['[CALL_ID]', '[ARGS]']) {
      const end = closing(text, at, mark)
      if (end === 'more') return MORE
      if (end === 'not') continue
      at = end
      if (mark === '[CALL_ID]') at += NAME.exec(text.slice(at, at + 256))?.[0].length ?? 0
    }
    return readArguments(text, name, at, scan)
  },
}

const CALLS_BEGIN = '<｜tool▁calls▁begin｜>'
const CALLS_END = '<｜tool▁calls▁end｜>'
const CALL_BEGIN = '<｜tool▁call▁begin｜>'
const CALL_END = '<｜tool▁call▁end｜>'
const SEPARATOR = '<｜tool▁sep｜>'

/** DeepSeek: V3 and R1 write a kind, the name and the arguments in a code fence; V3.1 writes name and arguments. */
const deepseek: Format = {
  marks: [CALLS_BEGIN, CALL_BEGIN, CALLS_END],
  bare: false,
  read(text, place, ended, scan) {
    if (text.startsWith(CALLS_END)) return place === 'after-call' ? { kind: 'skip', length: CALLS_END.length } : NOT
    if (text.startsWith(CALLS_BEGIN)) {
      // The frame goes only when a call follows.
      const at = skipSpace(text, CALLS_BEGIN.length)
      const next = text.slice(at, at + CALL_BEGIN.length)
      if (next === CALL_BEGIN) {
        const reading = deepseek.read(text.slice(at), place, ended, scan, [])
        return reading.kind === 'calls' ? { ...reading, length: reading.length + at } : reading
      }
      return CALL_BEGIN.startsWith(next) ? MORE : NOT
    }
    const first = readNamed(text, CALL_BEGIN.length, SEPARATOR)
    if (typeof first === 'string') return first === 'more' ? MORE : NOT
    const json = skipSpace(text, first.end)
    if (json >= text.length) return MORE
    if (text[json] === '{') return closed(readArguments(text, first.name, json, scan), text, CALL_END, ended)
    const fenced = readNamed(text, first.end, '\n```json')
    if (typeof fenced === 'string') return fenced === 'more' ? MORE : NOT
    const reading = closed(readArguments(text, fenced.name, fenced.end, scan), text, '```', ended)
    return closed(reading, text, CALL_END, ended)
  },
}

const FUNCTION = '<function='

/** Functionary v3.2: `>>>name\n{…}`, where the prompt has written the first `>>>` already; v3.1: `<function=name>{…}</function>`. */
const functionary: Format = {
  marks: ['>>>', FUNCTION],
  bare: true,
  read(text, place, ended, scan, tools) {
    if (text.startsWith(FUNCTION)) {
      const named = readNamed(text, FUNCTION.length, '>')
      if (typeof named === 'string') return named === 'more' ? MORE : NOT
      return closed(readArguments(text, named.name, named.end, scan), text, '</function>', ended)
    }
    const marked = text.startsWith('>>>')
    if (!marked && place !== 'start') return NOT
    const named = readNamed(text, marked ? 3 : 0, '\n')
    if (typeof named === 'string') return named === 'more' ? MORE : NOT
    if (named.name === 'all') return { kind: 'skip', length: named.end }
    if (!marked && tools.length > 0 && !tools.some((tool) => tool.name === named.name)) return NOT
    return readArguments(text, named.name, named.end, scan)
  },
}

const PYTHON_WORDS: Record<string, string> = { True: 'true', False: 'false', None: 'null' }

/** Types that a parameter may have by its schema; undefined when the schema does not say. */
const typesOf = (schema: unknown): string[] | undefined => {
  if (!isObject(schema)) return undefined
  const type = schema['type']
  if (typeof type === 'string') return [type]
  if (Array.isArray(type)) return type.filter((one) => typeof one === 'string')
  const branches = schema['anyOf'] ?? schema['oneOf']
  if (!Array.isArray(branches))
    return Array.isArray(schema['enum']) && schema['enum'].every((one) => typeof one === 'string') ? ['string'] : undefined
  const types = branches.map(typesOf)
  return types.includes(undefined) ? undefined : types.flatMap((one) => one ?? [])
}

/** A value that was written without quotes, as JSON. The schema decides; without one, what looks like JSON is JSON. */
const valueToJson = (written: string, schema: unknown): string => {
  const types = typesOf(schema)
  const text = written.trim()
  if (types !== undefined && types.every((type) => type === 'string')) return JSON.stringify(written)
  const json = PYTHON_WORDS[text] ?? text
  const parsed = parseJson(json)
  if (!parsed.ok) return JSON.stringify(written)
  if (types?.includes('string') && typeof parsed.value !== 'object' && !types.includes(typeof parsed.value)) return JSON.stringify(written)
  return json
}

const PARAMETER = '<parameter='
const PARAMETER_END = '</parameter>'
const FUNCTION_END = '</function>'

/** Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>`, values without quotes. */
const qwen3Coder: Format = {
  marks: [TOOL_CALL, FUNCTION],
  bare: false,
  read(text, _place, ended, _scan, tools) {
    const wrapped = text.startsWith(TOOL_CALL)
    let at = wrapped ? skipSpace(text, TOOL_CALL.length) : 0
    const opening = closing(text, at, FUNCTION)
    if (typeof opening === 'string') return opening === 'more' ? MORE : NOT
    const named = readNamed(text, opening, '>')
    if (typeof named === 'string') return named === 'more' ? MORE : NOT
    const schema = tools.find((tool) => tool.name === named.name)?.parameters
    const properties = isObject(schema) && isObject(schema['properties']) ? schema['properties'] : {}
    const members = new Map<string, string>()
    at = named.end
    for (;;) {
      const next = closing(text, at, PARAMETER)
      if (typeof next !== 'number') break
      const keyEnd = text.indexOf('>', next)
      if (keyEnd < 0) return MORE
      const valueEnd = text.indexOf(PARAMETER_END, keyEnd)
      if (valueEnd < 0) return MORE_TAGS
      const key = text.slice(next, keyEnd).trim()
      if (key === '') return NOT
      const written = text
        .slice(keyEnd + 1, valueEnd)
        .replace(/^\r?\n/, '')
        .replace(/\r?\n$/, '')
      members.set(key, valueToJson(written, Object.hasOwn(properties, key) ? properties[key] : undefined))
      at = valueEnd + PARAMETER_END.length
    }
    const end = closing(text, at, FUNCTION_END)
    if (typeof end === 'string') return end === 'more' || closing(text, at, PARAMETER) === 'more' ? MORE : NOT
    const json = `{${[...members].map(([key, value]) => `${JSON.stringify(key)}: ${value}`).join(', ')}}`
    const reading: Reading = { kind: 'calls', calls: [{ name: named.name, arguments: json }], length: end }
    return wrapped ? closed(reading, text, '</tool_call>', ended) : reading
  },
}

const FORMATS: Record<ToolFormat, Format> = { hermes, llama3, mistral, 'qwen3-coder': qwen3Coder, deepseek, functionary }

const MAX_CALL_CHARS = 1 << 20 // a call that never ends must not fill our memory: what is longer is text

/**
 * Finds tool calls in a model's answer while it is written. A call is held back until it is whole and proven to be JSON: nobody can act
 * on half a call, and so a broken one can still come out as what it is, text. Whatever the pieces are, what comes out is the same.
 * Nothing is lost but the marks of calls and the space next to them.
 *
 * The text must have been detokenized with special tokens shown: several formats have their marks as special tokens.
 */
export const openToolParser = (format: ToolFormat, tools: readonly KnownTool[] = []): ToolParser => {
  const reader = FORMATS[format]
  const { marks } = reader
  const begins = new Set(marks.map((mark) => mark[0]))
  let held = ''
  let loose = '' // space whose fate depends on what comes next: a call swallows it
  let place: Place = 'start'
  let called = 0
  let scan = openJsonScan()
  // While a call is open, pieces that cannot close it are only kept: joining them each time would cost its whole length per token.
  let kept: string[] = []
  let keptChars = 0
  let until: RegExp | undefined

  /** A reading at the beginning of what is held; `more` also while a mark itself is incomplete. */
  const readHeld = (ended: boolean): Reading => {
    if (!marks.some((mark) => held.startsWith(mark))) {
      if (marks.some((mark) => mark.startsWith(held))) return MORE
      if (!reader.bare || place === 'text') return NOT
    }
    return reader.read(held, place, ended, scan, tools)
  }

  const advance = (ended: boolean): ToolPiece[] => {
    const pieces: ToolPiece[] = []
    let content = ''
    const say = (text: string) => {
      content += loose + text
      loose = ''
      place = 'text'
    }
    const flush = () => {
      if (content !== '') pieces.push({ kind: 'content', text: content })
      content = ''
    }
    const drop = (length: number) => {
      held = held.slice(length)
      scan = openJsonScan()
    }

    until = undefined
    while (held !== '') {
      const space = skipSpace(held, 0)
      if (space > 0) {
        loose += held.slice(0, space)
        drop(space)
        continue
      }
      let reading = readHeld(ended)
      if (reading.kind === 'more') {
        if (!ended && held.length <= MAX_CALL_CHARS) {
          until = reading.until
          break
        }
        reading = NOT
      }
      if (reading.kind === 'calls') {
        flush()
        loose = ''
        for (const call of reading.calls) {
          pieces.push({ kind: 'call', index: called, name: call.name }, { kind: 'arguments', index: called, text: call.arguments })
          called += 1
        }
        place = 'after-call'
        drop(reading.length)
      } else if (reading.kind === 'skip') {
        if (place === 'start') place = 'text'
        drop(reading.length)
      } else {
        // Text, up to the next place where a call could begin.
        let length = 1
        while (length < held.length && !begins.has(held[length]) && skipSpace(held, length) === length) length += 1
        say(held.slice(0, length))
        drop(length)
      }
    }
    if (ended && loose !== '' && place !== 'after-call') say('')
    flush()
    return pieces
  }

  const join = () => {
    held += kept.join('')
    kept = []
    keptChars = 0
  }

  return {
    push(text) {
      kept.push(text)
      keptChars += text.length
      if (until !== undefined && !until.test(text) && held.length + keptChars <= MAX_CALL_CHARS) return []
      join()
      return advance(false)
    },
    end() {
      join()
      return advance(true)
    },
  }
}
