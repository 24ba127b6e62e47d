import { bufferToBody } from './body.ts'
import { keyAt, valueAt } from './events.ts'
import { scan, watch } from './scan.ts'

const DATA = 'data:'
const ERROR = '{"error"'
const FLAT_ERROR = '{"object":"error"'
const USAGE = '"usage"'
const TOP_USAGE = watch([], ['usage'])
const COMPLETION_TOKENS = 'completion_tokens"'
const CHOICES = 'choices"'
const NULL = 'null'
const MODEL_KEY = 'model"'
const MODEL = watch([], ['model'])
const ARGUMENTS = 'arguments"'
/** Where an engine's words stand in a delta; `text` is that of the older completions. Keys are written as `keyAt` takes them. */
const WORDS = ['content"', 'reasoning_content"', 'reasoning"', ARGUMENTS, 'text"'] as const
/** What stands before words that are the first thing in their delta. */
const FIRST = ['{"content":', '{"reasoning_content":', '{"reasoning":']

const LF = 0x0a
const CR = 0x0d
const SPACE = 0x20
const QUOTE = 0x22
const ZERO = 0x30
const COMMA = 0x2c
const BACKSLASH = 0x5c
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const OPEN_BRACE = 0x7b
const CLOSE_BRACE = 0x7d

/** An event as text of one byte a character: a place in one is a place in the other, and to search in text takes a third of the time. */
export type Text = string

export const toEvent = (object: object): Buffer => Buffer.from(`data: ${JSON.stringify(object)}\n\n`)

/** Where the payload of an event begins; -1 for a comment, which keeps a connection alive and says nothing. */
export const payloadOf = (text: Text): number => {
  let line = 0
  // Mostly the first line is the only one.
  while (!text.startsWith(DATA, line)) {
    const next = text.indexOf('\n', line)
    if (next < 0) return -1
    line = next + 1
  }
  const at = line + DATA.length
  return text.charCodeAt(at) === SPACE ? at + 1 : at
}

/** Worth a closer look: not a JSON object on one `data:` line, or one that begins like an error. */
export const isOdd = (text: Text, at: number): boolean =>
  !text.startsWith(DATA) || text.charCodeAt(at) !== OPEN_BRACE || text.startsWith(ERROR, at) || text.startsWith(FLAT_ERROR, at)

/** What the official SDKs take for an error: a truthy top-level `error`, or an event of that name (data-plane.md 3.5). */
export const kindOf = (text: Text, at: number): 'answer' | 'error' | 'garbage' => {
  if (/^event: ?error\r?$/m.test(text.slice(0, at))) return 'error'
  const object = textToObject(text, at)
  if (object === undefined) return 'garbage'
  return Boolean(object['error']) || object['object'] === 'error' ? 'error' : 'answer'
}

/** Where the value of a key begins; -1 where the event does not have the key. */
export const valueOf = (text: Text, from: number, key: `${string}"`): number => {
  const found = keyAt(text, from, key)
  return found < 0 ? -1 : valueAt(text, found + 1 + key.length)
}

/** Where an engine's words begin, with their opening quote; -1 where the event has none. */
export const wordsIn = (text: Text, from: number): number => {
  for (const key of WORDS) {
    const at = valueOf(text, from, key)
    if (at >= 0 && text.charCodeAt(at) === QUOTE && text.charCodeAt(at + 1) !== QUOTE) return at
  }
  return -1
}

export const beginsDelta = (text: Text, wordsAt: number): boolean => {
  for (const before of FIRST) if (text.startsWith(before, wordsAt - before.length)) return true
  return false
}

/** Where the usage of an event stands: from its opening brace to behind its closing one. */
type UsageSpan = { readonly start: number; readonly end: number }

/**
 * The usage in an event. Engines write it last, and then the two braces behind it say that it stands at the top; where they write
 * something else behind it, or below it, the event is scanned.
 */
export const usageIn = (text: Text, at: number): UsageSpan | undefined => {
  const key = text.lastIndexOf(USAGE)
  if (key < at) return undefined
  const start = valueAt(text, key + USAGE.length)
  if (text.startsWith(NULL, start)) return undefined
  if (text.charCodeAt(start) === OPEN_BRACE) {
    const end = endOfObject(text, start)
    const behind = text.charCodeAt(end + 1)
    if (text.charCodeAt(end) === CLOSE_BRACE && (behind === LF || behind === CR)) return { start, end }
  }
  const scanned = scan(bufferToBody(Buffer.from(text.slice(at), 'latin1')), TOP_USAGE)
  const span = scanned.ok ? scanned.value.spans.get('usage') : undefined
  return span === undefined || text.charCodeAt(at + span.start) !== OPEN_BRACE ? undefined : { start: at + span.start, end: at + span.end }
}

/** The output in a usage, without parsing the rest of it: it is looked at with every read. */
export const outputIn = (text: Text, { start, end }: UsageSpan): number => {
  const value = valueOf(text, start, COMPLETION_TOKENS)
  if (value < 0) return 0
  let tokens = 0
  for (let at = value; ; at += 1) {
    const digit = text.charCodeAt(at) - ZERO
    if (at >= end || !(digit >= 0 && digit <= 9)) return tokens
    tokens = tokens * 10 + digit
  }
}

/** Behind the closing brace of the object that begins here. */
const endOfObject = (text: Text, start: number): number => {
  let depth = 0
  let inString = false
  for (let at = start; at < text.length; at += 1) {
    const byte = text.charCodeAt(at)
    if (inString) {
      if (byte === BACKSLASH) at += 1
      else if (byte === QUOTE) inString = false
    } else if (byte === QUOTE) inString = true
    else if (byte === OPEN_BRACE) depth += 1
    else if (byte === CLOSE_BRACE) {
      depth -= 1
      if (depth === 0) return at + 1
    }
  }
  return text.length
}

/**
 * As if nobody had asked for usage in this event. Who asked for it at the end gets null here (data-plane.md 6.9), others nothing; only where it
 * stands first is there no comma before it, and null says the same.
 */
export const withoutRunning = (text: Text, { start, end }: UsageSpan, asNull: boolean): Text => {
  if (asNull) return text.slice(0, start) + NULL + text.slice(end)
  const key = text.lastIndexOf(USAGE, start)
  let before = key - 1
  while (text.charCodeAt(before) === SPACE) before -= 1
  const gone = text.charCodeAt(before) === COMMA && valueAt(text, key + USAGE.length) === start
  return text.slice(0, gone ? before : start) + (gone ? '' : NULL) + text.slice(end)
}

/** More than one call: in a string the quotes of this key would be escaped. */
export const holdsCalls = (text: Text, at: number): boolean => {
  const first = keyAt(text, at, ARGUMENTS)
  return first >= 0 && keyAt(text, first + 1, ARGUMENTS) >= 0
}

type Choice = { readonly delta?: Record<string, unknown>; readonly [field: string]: unknown }

/** Fragments of calls in events of their own, since documented client code reads one of each (data-plane.md 6.5). The reason to finish comes last. */
export const oneCallEach = (text: Text): Text => {
  const frame = textToObject(text)
  const choices = frame?.['choices']
  const choice = Array.isArray(choices) && choices.length === 1 ? (choices[0] as Choice | null) : undefined
  const calls: unknown = choice?.delta?.['tool_calls']
  if (!Array.isArray(calls) || calls.length < 2) return text
  const events = calls.map((call, place) => {
    const delta = { ...(place === 0 ? choice?.delta : {}), tool_calls: [call as unknown] }
    return toEvent({ ...frame, choices: [{ ...choice, delta, ...(place < calls.length - 1 ? { finish_reason: null } : {}) }] })
  })
  return Buffer.concat(events).toString('latin1')
}

/** `"choices":[]`: the event has no words. */
export const hasNoChoices = (text: Text, at: number): boolean => {
  const value = valueOf(text, at, CHOICES)
  if (value < 0 || text.charCodeAt(value) !== OPEN_BRACKET || text.charCodeAt(valueAt(text, value + 1)) !== CLOSE_BRACKET) return false
  const choices = textToObject(text, at)?.['choices']
  return Array.isArray(choices) && choices.length === 0
}

export const textToObject = (text: Text, at = payloadOf(text)): Record<string, unknown> | undefined => jsonToObject(decoded(text.slice(at)))

export const textToValue = (text: Text): unknown => jsonToValue(decoded(text))

const decoded = (text: Text): string => Buffer.from(text, 'latin1').toString()

export const jsonToObject = (json: string): Record<string, unknown> | undefined => {
  const value = jsonToValue(json)
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined
}

const jsonToValue = (json: string): unknown => {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}

export const toText = (json: string): Text => Buffer.from(json).toString('latin1')

/** The same text, by itself. */
export const copied = (text: Text): Text => Buffer.from(text, 'latin1').toString('latin1')

/**
 * An event with the name of the model that the client knows. Where the key stands once and before the name that we asked for, that is its
 * place; else the event is scanned.
 */
export const renamed = (text: Text, at: number, from: Text, to: Text): Text => {
  const value = valueOf(text, at, MODEL_KEY)
  if (value < 0) return text
  if (text.startsWith(from, value) && keyAt(text, value, MODEL_KEY) < 0) return text.slice(0, value) + to + text.slice(value + from.length)
  const scanned = scan(bufferToBody(Buffer.from(text.slice(at), 'latin1')), MODEL)
  const span = scanned.ok ? scanned.value.spans.get('model') : undefined
  return span === undefined ? text : text.slice(0, at + span.start) + to + text.slice(at + span.end)
}
