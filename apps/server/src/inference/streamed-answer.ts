import type { Usage } from '@parvis/wire/openai/usage'
import type { Model } from '../catalog/model.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Counts } from '../usage/event.ts'
import { type Answer, type Ending, LEFT_STATUS, NO_COUNTS, toCounts, type Verdict } from './answer.ts'
import { bufferToBody, splice } from './body.ts'
import type { Request } from './endpoints/endpoint.ts'
import { MAX_EVENT_BYTES, splitEvents } from './events.ts'
import { DONE_EVENT, type Exchange } from './exchange.ts'
import { withBothNames } from './reasoning-names.ts'
import { scan, watch } from './scan.ts'

const DATA = Buffer.from('data:')
const DONE = Buffer.from('[DONE]')
const ERROR = Buffer.from('{"error"')
const FLAT_ERROR = Buffer.from('{"object":"error"')
const USAGE = Buffer.from('"usage"')
const FINISH_REASON = Buffer.from('"finish_reason"')
/** Where an engine's words stand in a delta; `text` is that of the older completions. */
const WORDS = ['"content"', '"reasoning_content"', '"reasoning"', '"arguments"', '"text"'].map((key) => Buffer.from(key))
const BLANK_LINE = Buffer.from('\n\n')
const PING = Buffer.from(': ping\n\n')
const MODEL = watch([], ['model'])

const LF = 0x0a
const SPACE = 0x20
const QUOTE = 0x22
/** The reason of an answer that was cut at its limit. */
const LENGTH = Buffer.from('"length"')
const COLON = 0x3a
const OPEN_BRACE = 0x7b

/**
 * A streamed answer: the engine's bytes are handed on as they come. Held back are only the event that carries nothing but usage,
 * when it was we who asked for it, and `[DONE]`, which waits until the usage is on disk. Nothing is sent before the first event
 * has proved to be one, so that until then a failure is an ordinary error answer; unless the client had to be told that we live.
 *
 * Events are looked at by their bytes. In JSON text a quote inside a string is escaped, so `"usage"` with both its quotes is never
 * something that a model said.
 */
export const streamedAnswer = (
  exchange: Exchange,
  request: Request,
  model: Model,
  remoteModel: string,
  spend: (outputTokens: number) => void = () => undefined,
): Answer => {
  const events = splitEvents()
  const name = remoteModel === model.name ? undefined : Buffer.from(JSON.stringify(model.name))
  let out: Buffer[] = [] // what one read has brought that may go on
  let begun = false // the first event was one
  let sent = false // and is on its way to the client
  let finished = false // a finish reason has been seen
  let atLimit = false // and it was the limit of output
  let done: Buffer | undefined // the last event, as it came
  let failure: { reason: string; log: string } | undefined
  let usage: Counts | undefined
  let delivered = 0
  let latest: Buffer | undefined // the last event that went on, for what all of a stream have in common

  const look = (event: Buffer): void => {
    if (done !== undefined || failure !== undefined) return // behind the end there is nothing that a client could use
    const at = payloadOf(event)
    if (at < 0) {
      if (begun) out.push(event)
      return
    }
    if (startsWith(event, at, DONE)) {
      done = event
      return
    }
    if (!begun || isOdd(event, at)) {
      const kind = kindOf(event, at)
      if (kind === 'error') failure = { reason: 'it reported an error', log: 'an error inside a stream' }
      if (kind === 'garbage') failure = { reason: 'its stream cannot be read', log: 'an event that is no JSON object' }
      if (failure !== undefined) return
    }
    begun = true
    latest = event
    const told = usageIn(event, at)
    if (told !== undefined) {
      usage = told.counts ?? usage
      if (told.alone && !request.wantsUsage) return
    }
    if (WORDS.some((key) => holdsText(event, at, key))) delivered += 1
    const reasonAt = valueOf(event, at, FINISH_REASON)
    if (reasonAt >= 0 && event[reasonAt] === QUOTE) {
      finished = true
      atLimit ||= startsWith(event, reasonAt, LENGTH)
    }
    const named = name === undefined ? event : rename(event, at, name)
    out.push(model.features.reasoning ? withBothNames(named, at) : named)
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

  const ending = (ended: Ending['ended'], finish: () => void): { ending: Ending } => ({
    ending: {
      counts: usage ?? { ...NO_COUNTS, output: delivered },
      counted: usage !== undefined ? 'engine' : delivered > 0 ? 'delivered' : 'none',
      ended,
      status: sent ? 200 : LEFT_STATUS,
      finish,
    },
  })

  const broken = (how: Exclude<Ending['ended'], 'complete'>, refusal: Refusal): Verdict => {
    if (how === 'client_left') return ending(how, () => {})
    return sent ? ending(how, () => exchange.refuse(refusal)) : { refusal }
  }

  const failed = (reason: string, log: string): Verdict => ({
    ...broken('engine_failed', { code: 'engine_failed', model: model.name, reason }),
    log,
  })

  return {
    data(chunk) {
      const fits = events.push(chunk, look)
      const keepsUp = flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!fits) return failed('its stream cannot be read', `an event of more than ${MAX_EVENT_BYTES} bytes`)
      if (done !== undefined) return 'done'
      spend(Math.max(delivered, usage?.output ?? 0))
      return keepsUp ? undefined : 'wait'
    },

    ping() {
      exchange.begin()
      exchange.write(PING)
    },

    exhausted() {
      if (!sent || finished || done !== undefined || failure !== undefined || latest === undefined) return undefined
      const frame: Record<string, unknown> = { ...payloadToObject(latest, payloadOf(latest)), model: model.name }
      const ended = ending('budget', () => exchange.end(DONE_EVENT))
      out.push(toEvent(withoutUsage({ ...frame, choices: [exhaustedChoice(frame)] })))
      if (request.wantsUsage) out.push(toEvent({ ...frame, choices: [], usage: toUsage(ended.ending.counts) }))
      flush()
      return ended
    },

    end() {
      const rest = events.rest()
      if (rest.length > 0 && done === undefined) {
        // Some servers forget the blank line behind their last event; others were cut in the middle of it.
        const last = Buffer.concat([rest, BLANK_LINE])
        const at = payloadOf(last)
        if (at >= 0 && (startsWith(last, at, DONE) || kindOf(last, at) !== 'garbage')) look(last)
      }
      flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!sent) return failed('its stream was empty', 'a stream without an event')
      if (done === undefined && !finished) return failed('its stream ended too early', 'a stream without a finish reason')
      const last = done ?? DONE_EVENT
      return {
        ...ending(atLimit ? 'length' : 'complete', () => exchange.end(last)),
        ...(usage === undefined ? { log: 'a stream without usage' } : {}),
      }
    },

    broken,
  }
}

const toEvent = (object: object): Buffer => Buffer.from(`data: ${JSON.stringify(object)}\n\n`)

const withoutUsage = ({ usage: _usage, ...frame }: Record<string, unknown>): object => frame

/** The last choice of a stream that a budget has ended: the reason that every client knows, and beside it the true one. */
const exhaustedChoice = (frame: Record<string, unknown>): object => ({
  index: 0,
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
const payloadOf = (event: Buffer): number => {
  let line = 0
  // Mostly the first line is the only one.
  while (!startsWith(event, line, DATA)) {
    const next = event.indexOf(LF, line)
    if (next < 0) return -1
    line = next + 1
  }
  const at = line + DATA.length
  return event[at] === SPACE ? at + 1 : at
}

const startsWith = (bytes: Buffer, at: number, start: Buffer): boolean =>
  bytes[at] === start[0] && bytes.compare(start, 0, start.length, at, Math.min(at + start.length, bytes.length)) === 0

/** Worth a closer look: not a JSON object on one `data:` line, or one that begins like an error. */
const isOdd = (event: Buffer, at: number): boolean =>
  event[0] !== DATA[0] || event[at] !== OPEN_BRACE || startsWith(event, at, ERROR) || startsWith(event, at, FLAT_ERROR)

const payloadToObject = (event: Buffer, at: number): Record<string, unknown> | undefined => {
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
const valueOf = (event: Buffer, from: number, key: Buffer): number => {
  const found = event.indexOf(key, from)
  return found < 0 ? -1 : valueAt(event, found + key.length)
}

const valueAt = (event: Buffer, behindKey: number): number => {
  let at = behindKey
  while (event[at] === SPACE || event[at] === COLON) at += 1
  return at
}

const holdsText = (event: Buffer, from: number, key: Buffer): boolean => {
  const found = event.indexOf(key, from)
  if (found < 0) return false
  const at = valueAt(event, found + key.length)
  return event[at] === QUOTE && event[at + 1] !== QUOTE
}

/** The usage in an event, and whether the event carries nothing else. Only an event that has some is parsed. */
const usageIn = (event: Buffer, at: number): { counts: Counts | undefined; alone: boolean } | undefined => {
  if (event[valueOf(event, at, USAGE)] !== OPEN_BRACE) return undefined
  const object = payloadToObject(event, at)
  if (object === undefined) return undefined
  const { choices } = object
  return { counts: toCounts(object['usage']), alone: Array.isArray(choices) && choices.length === 0 }
}

const rename = (event: Buffer, at: number, name: Buffer): Buffer => {
  const scanned = scan(bufferToBody(event.subarray(at)), MODEL)
  const span = scanned.ok ? scanned.value.spans.get('model') : undefined
  if (span === undefined) return event
  return Buffer.concat(splice(bufferToBody(event), [{ start: at + span.start, end: at + span.end, bytes: name }]).pieces)
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
