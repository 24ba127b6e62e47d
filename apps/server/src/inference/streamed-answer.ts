import type { Usage } from '@parvis/wire/openai/usage'
import type { Model } from '../catalog/model.ts'
import type { Counts } from '../usage/event.ts'
import { type Answer, countedByUs, type Ending, LEFT_STATUS, toCounts } from './answer.ts'
import { bufferToBody } from './body.ts'
import { brokenStream } from './broken-stream.ts'
import type { Request } from './endpoints/endpoint.ts'
import { MAX_EVENT_BYTES, splitEvents, valueAt } from './events.ts'
import { DONE_EVENT, type Outlet } from './exchange.ts'
import { withBothNames } from './reasoning-names.ts'
import { scan, watch } from './scan.ts'
import { openWords } from './words.ts'

const DATA = 'data:'
const DONE = '[DONE]'
const ERROR = '{"error"'
const FLAT_ERROR = '{"object":"error"'
const USAGE = '"usage"'
const TOP_USAGE = watch([], ['usage'])
const COMPLETION_TOKENS = '"completion_tokens"'
const CHOICES = '"choices"'
const NULL = 'null'
const MODEL_KEY = '"model"'
const MODEL = watch([], ['model'])
const ARGUMENTS = '"arguments"'
const FINISH_REASON = '"finish_reason"'
/** The reason of an answer that was cut at its limit. */
const LENGTH = '"length"'
/** Where an engine's words stand in a delta; `text` is that of the older completions. */
const WORDS = ['"content"', '"reasoning_content"', '"reasoning"', ARGUMENTS, '"text"']
const BLANK_LINE = Buffer.from('\n\n')
const PING = Buffer.from(': ping\n\n')

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
type Text = string

/**
 * A streamed answer: the engine's bytes are handed on as they come. Taken out is only usage, when it was we who asked for it; held back
 * is `[DONE]`, which waits until the usage is on disk. Nothing is sent before the first event
 * has proved to be one, so that until then a failure is an ordinary error answer; unless the client had to be told that we live.
 *
 * Events are looked at without being parsed. In JSON text a quote inside a string is escaped, so `"usage"` with both its quotes and a
 * colon behind it is never something that a model said.
 */
export const streamedAnswer = (
  exchange: Outlet,
  request: Request,
  model: Model,
  remoteModel: string,
  spend: (outputTokens: number) => void = () => undefined,
): Answer => {
  const events = splitEvents()
  const rename = remoteModel === model.name ? undefined : renamer(remoteModel, model.name)
  let out: Buffer[] = [] // what one read has brought that may go on
  let begun = false // the first event was one
  let sent = false // and is on its way to the client
  let finished = false // a finish reason has been seen
  let atLimit = false // and it was the limit of output
  let done: Buffer | undefined // the last event, as it came
  let failure: { reason: string; log: string } | undefined
  let lastUsage: Text | undefined // the latest that came, as it came
  let alone = false // and it came once without words, as OpenAI sends it
  let delivered = 0
  let exhausted = false // the budget has ended it
  // An engine that counts as it goes needs nobody else to count; of another its words are held until it has.
  let words: ReturnType<typeof openWords> | undefined
  const open = openChoices(request.answers ?? 1)
  // The last event that went on, for what all of a stream have in common. As text: a small piece of what was read keeps 64 KB of the process' memory from being used
  // again, since it was read into so much, and 5,000 open streams were 400 MB.
  let latest: Text | undefined

  const look = (event: Buffer): void => {
    if (done !== undefined || failure !== undefined || exhausted) return // behind the end there is nothing that a client could use
    const text = event.toString('latin1')
    const at = payloadOf(text)
    if (at < 0) {
      if (begun) out.push(event)
      return
    }
    if (text.startsWith(DONE, at)) {
      done = event
      return
    }
    if (!begun || isOdd(text, at)) {
      const kind = kindOf(event, at)
      if (kind === 'error') failure = { reason: 'it reported an error', log: 'an error inside a stream' }
      if (kind === 'garbage') failure = { reason: 'its stream cannot be read', log: 'an event that is no JSON object' }
      if (failure !== undefined) return
    }
    begun = true
    latest = text
    const told = usageIn(event, text, at)
    const isAlone = told !== undefined && hasNoChoices(event, text, at)
    if (told !== undefined) {
      lastUsage = text.slice(told.start, told.end)
      alone ||= isAlone
      if (isAlone && !request.wantsUsage && request.wantsRunningUsage !== true) return
    }
    const worded = WORDS.some((key) => holdsText(text, at, key))
    if (worded) {
      if (delivered === 0 && told === undefined) words = openWords()
      delivered += 1
      words?.add(payloadToObject(event, at))
    }
    const reasonAt = valueOf(text, at, FINISH_REASON)
    if (reasonAt >= 0 && text.charCodeAt(reasonAt) === QUOTE) {
      finished = true
      atLimit ||= text.startsWith(LENGTH, reasonAt)
    }
    if ((request.answers ?? 1) > 1 || finished) open.close(event, at)
    let whole = text
    // From behind, so that the places of what stands before stay as they are: usage is mostly last. Its place was found first.
    if (told !== undefined && !isAlone && request.wantsRunningUsage !== true) whole = withoutRunning(whole, told, request.wantsUsage)
    if (rename !== undefined) whole = rename(whole, at)
    if (model.features.reasoning) whole = withBothNames(whole, at)
    const bytes = whole === text ? event : Buffer.from(whole, 'latin1')
    if (holdsCalls(whole, at)) out.push(...oneCallEach(bytes))
    else out.push(bytes)
    // Event by event: a read on a busy machine brings many, and what a hard budget does not cover must not go on.
    if (worded || told !== undefined) spend(Math.max(delivered, told === undefined ? 0 : outputIn(lastUsage)))
  }

  /** One write per read; says whether the client keeps up. */
  const flush = (): boolean => {
    if (out.length === 0) return true
    const bytes = joined(out)
    out = []
    if (!sent) exchange.begin()
    sent = true // a comment before it does not count: it was none of the engine's
    return exchange.write(bytes)
  }

  const ending = (ended: Ending['ended'], finish: () => void): { ending: Ending } => {
    const told = lastUsage === undefined ? undefined : toCounts(textToValue(lastUsage))
    // Of a stream that was broken off this may be a count from before: a word is at least a token.
    const usage = told && ended !== 'complete' && ended !== 'length' ? { ...told, output: Math.max(told.output, delivered) } : told
    const counted = usage === undefined ? countedByUs(request, delivered) : ({ counts: usage, counted: 'engine' } as const)
    const heard = usage === undefined ? words?.all : undefined
    return { ending: { counts: counted.counts, counted: counted.counted, ended, status: sent ? 200 : LEFT_STATUS, words: heard, finish } }
  }

  /** The last usage, alone, for a client that asked for it and whose engine gave it in another place, or none. */
  const usageEvent = (told: unknown): Buffer =>
    toEvent({ ...(latest && textToObject(latest)), model: model.name, choices: [], usage: told })

  const { broken, failed } = brokenStream(exchange, model, { sent: () => sent, ending })

  return {
    data(chunk) {
      const fits = events.push(chunk, look)
      const keepsUp = flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!fits) return failed('its stream cannot be read', `an event of more than ${MAX_EVENT_BYTES} bytes`)
      if (done !== undefined) return 'done'
      return keepsUp ? undefined : 'wait'
    },

    ping() {
      exchange.begin()
      exchange.write(PING)
    },

    exhausted() {
      const unfinished = open.places()
      if (unfinished.length === 0 || done !== undefined || failure !== undefined || latest === undefined) return undefined
      exhausted = true
      flush()
      const frame: Record<string, unknown> = { ...textToObject(latest), model: model.name }
      const ended = ending('budget', () => exchange.end(DONE_EVENT))
      out.push(toEvent(withoutUsage({ ...frame, choices: unfinished.map((place) => exhaustedChoice(frame, place)) })))
      if (request.wantsUsage) out.push(usageEvent(toUsage(ended.ending.counts)))
      flush()
      return ended
    },

    end() {
      const rest = events.rest()
      if (rest.length > 0 && done === undefined) {
        // Some servers forget the blank line behind their last event; others were cut in the middle of it.
        const last = Buffer.concat([rest, BLANK_LINE])
        const text = last.toString('latin1')
        const at = payloadOf(text)
        if (at >= 0 && (text.startsWith(DONE, at) || kindOf(last, at) !== 'garbage')) look(last)
      }
      flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!sent) return failed('its stream was empty', 'a stream without an event')
      if (done === undefined && !finished) return failed('its stream ended too early', 'a stream without a finish reason')
      const last = done ?? DONE_EVENT
      if (request.wantsUsage && !alone && lastUsage !== undefined && !request.wantsRunningUsage) {
        out.push(usageEvent(textToValue(lastUsage)))
        flush()
      }
      const ended = ending(atLimit ? 'length' : 'complete', () => exchange.end(last))
      return { ...ended, ...(ended.ending.counted === 'engine' ? {} : { log: 'a stream without usage' }) }
    },

    broken,
  }
}

const toEvent = (object: object): Buffer => Buffer.from(`data: ${JSON.stringify(object)}\n\n`)

const withoutUsage = ({ usage: _usage, ...frame }: Record<string, unknown>): object => frame

/** The last choice of a stream that a budget has ended: the reason that every client knows, and beside it the true one. */
const exhaustedChoice = (frame: Record<string, unknown>, index: number): object => ({
  index,
  ...(frame['object'] === 'text_completion' ? { text: '' } : { delta: {} }),
  logprobs: null,
  finish_reason: 'length',
  stop_reason: 'budget_exhausted',
})

const toUsage = (counts: Counts): Usage => ({
  prompt_tokens: counts.input,
  completion_tokens: counts.output,
  total_tokens: counts.input + counts.output,
})

/** Where the payload of an event begins; -1 for a comment, which keeps a connection alive and says nothing. */
const payloadOf = (text: Text): number => {
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
const isOdd = (text: Text, at: number): boolean =>
  !text.startsWith(DATA) || text.charCodeAt(at) !== OPEN_BRACE || text.startsWith(ERROR, at) || text.startsWith(FLAT_ERROR, at)

const payloadToObject = (event: Buffer, at = payloadOf(event.toString('latin1'))): Record<string, unknown> | undefined => {
  try {
    const value: unknown = JSON.parse(event.toString('utf8', at))
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

/** What the official SDKs take for an error: a truthy top-level `error`, or an event of that name (data-plane.md 3.5). */
const kindOf = (event: Buffer, at: number): 'answer' | 'error' | 'garbage' => {
  if (/^event: ?error\r?$/m.test(event.toString('latin1', 0, at))) return 'error'
  const object = payloadToObject(event, at)
  if (object === undefined) return 'garbage'
  return Boolean(object['error']) || object['object'] === 'error' ? 'error' : 'answer'
}

/** Where the value of a key begins; -1 where the event does not have the key. */
const valueOf = (text: Text, from: number, key: string): number => {
  const found = text.indexOf(key, from)
  return found < 0 ? -1 : valueAt(text, found + key.length)
}

const holdsText = (text: Text, from: number, key: string): boolean => {
  const at = valueOf(text, from, key)
  return at >= 0 && text.charCodeAt(at) === QUOTE && text.charCodeAt(at + 1) !== QUOTE
}

/** Where the usage of an event stands: from its opening brace to behind its closing one. */
type UsageSpan = { readonly start: number; readonly end: number }

/**
 * The usage in an event. Engines write it last, and then the two braces behind it say that it stands at the top; where they write
 * something else behind it, or below it, the event is scanned.
 */
const usageIn = (event: Buffer, text: Text, at: number): UsageSpan | undefined => {
  const key = text.lastIndexOf(USAGE)
  if (key < at) return undefined
  const start = valueAt(text, key + USAGE.length)
  if (text.startsWith(NULL, start)) return undefined
  if (text.charCodeAt(start) === OPEN_BRACE) {
    const end = endOfObject(text, start)
    const behind = text.charCodeAt(end + 1)
    if (text.charCodeAt(end) === CLOSE_BRACE && (behind === LF || behind === CR)) return { start, end }
  }
  const scanned = scan(bufferToBody(event.subarray(at)), TOP_USAGE)
  const span = scanned.ok ? scanned.value.spans.get('usage') : undefined
  return span === undefined || event[at + span.start] !== OPEN_BRACE ? undefined : { start: at + span.start, end: at + span.end }
}

/** The output in a usage, without parsing the rest of it: it is looked at with every read. */
const outputIn = (usage: Text | undefined): number => {
  if (usage === undefined) return 0
  let tokens = 0
  for (let at = Math.max(0, valueOf(usage, 0, COMPLETION_TOKENS)); ; at += 1) {
    const digit = usage.charCodeAt(at) - ZERO
    if (!(digit >= 0 && digit <= 9)) return tokens
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
const withoutRunning = (text: Text, { start, end }: UsageSpan, asNull: boolean): Text => {
  if (asNull) return text.slice(0, start) + NULL + text.slice(end)
  const key = text.lastIndexOf(USAGE, start)
  let before = key - 1
  while (text.charCodeAt(before) === SPACE) before -= 1
  const gone = text.charCodeAt(before) === COMMA && valueAt(text, key + USAGE.length) === start
  return text.slice(0, gone ? before : start) + (gone ? '' : NULL) + text.slice(end)
}

/** More than one call: in a string the quotes of this key would be escaped. */
const holdsCalls = (text: Text, at: number): boolean => {
  const first = text.indexOf(ARGUMENTS, at)
  return first >= 0 && text.indexOf(ARGUMENTS, first + ARGUMENTS.length) >= 0
}

type Choice = { readonly delta?: Record<string, unknown>; readonly [field: string]: unknown }

/** Fragments of calls in events of their own, since documented client code reads one of each (data-plane.md 6.5). The reason to finish comes last. */
const oneCallEach = (event: Buffer): readonly Buffer[] => {
  const frame = payloadToObject(event)
  const choices = frame?.['choices']
  const choice = Array.isArray(choices) && choices.length === 1 ? (choices[0] as Choice | null) : undefined
  const calls: unknown = choice?.delta?.['tool_calls']
  if (!Array.isArray(calls) || calls.length < 2) return [event]
  return calls.map((call, place) => {
    const delta = { ...(place === 0 ? choice?.delta : {}), tool_calls: [call as unknown] }
    return toEvent({ ...frame, choices: [{ ...choice, delta, ...(place < calls.length - 1 ? { finish_reason: null } : {}) }] })
  })
}

/** `"choices":[]`: the event has no words. */
const hasNoChoices = (event: Buffer, text: Text, at: number): boolean => {
  const value = valueOf(text, at, CHOICES)
  if (value < 0 || text.charCodeAt(value) !== OPEN_BRACKET || text.charCodeAt(valueAt(text, value + 1)) !== CLOSE_BRACKET) return false
  const choices = payloadToObject(event, at)?.['choices']
  return Array.isArray(choices) && choices.length === 0
}

/** As many answers as OpenAI makes at once; an engine that makes more has a limit of its own. */
const MAX_CHOICES = 128

/** Which of the answers that come side by side have not finished. Only where there are several an event is parsed for it. */
const openChoices = (answers: number) => {
  const closed = new Set<number>()
  return {
    places: (): readonly number[] =>
      Array.from({ length: Math.min(answers, MAX_CHOICES) }, (_, place) => place).filter((place) => !closed.has(place)),
    close(event: Buffer, at: number): void {
      if (answers === 1) return void closed.add(0)
      const choices = payloadToObject(event, at)?.['choices']
      if (!Array.isArray(choices)) return
      for (const choice of choices as { index?: unknown; finish_reason?: unknown }[]) {
        if (typeof choice.finish_reason === 'string') closed.add(Number(choice.index ?? 0))
      }
    },
  }
}

const textToObject = (text: Text): Record<string, unknown> | undefined => payloadToObject(Buffer.from(text, 'latin1'), payloadOf(text))

const textToValue = (text: Text): unknown => {
  try {
    return JSON.parse(Buffer.from(text, 'latin1').toString())
  } catch {
    return undefined
  }
}

/** Gives the events of a stream the name that the client knows. Where the key stands once and before the name that we asked for, that is its place; else the event is scanned. */
const renamer = (remoteModel: string, model: string) => {
  const [from, to] = [remoteModel, model].map((name) => Buffer.from(JSON.stringify(name)).toString('latin1')) as [Text, Text]
  return (text: Text, at: number): Text => {
    const key = text.indexOf(MODEL_KEY, at)
    if (key < 0) return text
    const value = valueAt(text, key + MODEL_KEY.length)
    if (text.startsWith(from, value) && text.indexOf(MODEL_KEY, value) < 0)
      return text.slice(0, value) + to + text.slice(value + from.length)
    const scanned = scan(bufferToBody(Buffer.from(text.slice(at), 'latin1')), MODEL)
    const span = scanned.ok ? scanned.value.spans.get('model') : undefined
    return span === undefined ? text : text.slice(0, at + span.start) + to + text.slice(at + span.end)
  }
}

/** Neighbours in one read are one view of it; only where something was taken out or changed are bytes copied. */
const joined = (events: readonly Buffer[]): Buffer => {
  const [first, ...others] = events
  if (first === undefined) return BLANK_LINE.subarray(0, 0)
  let end = first.byteOffset + first.length
  for (const event of others) {
    if (event.buffer !== first.buffer || event.byteOffset !== end) return Buffer.concat(events)
    end += event.length
  }
  return others.length === 0 ? first : Buffer.from(first.buffer, first.byteOffset, end - first.byteOffset)
}
