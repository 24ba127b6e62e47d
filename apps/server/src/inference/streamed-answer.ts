import type { Usage } from '@parvis/wire/openai/usage'
import type { Model } from '../catalog/model.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Counts, Ended } from '../usage/event.ts'
import { type Answer, countedByUs, type Ending, LEFT_STATUS, toCounts, type Verdict } from './answer.ts'
import { breakOff } from './broken-stream.ts'
import type { Request } from './endpoints/endpoint.ts'
import {
  beginsDelta,
  copied,
  hasNoChoices,
  holdsCalls,
  isOdd,
  jsonToObject,
  kindOf,
  oneCallEach,
  outputIn,
  payloadOf,
  renamed,
  type Text,
  textToObject,
  textToValue,
  toEvent,
  toText,
  usageIn,
  valueOf,
  withoutRunning,
  wordsIn,
} from './event-text.ts'
import { endOfEvent, endOfString, MAX_EVENT_BYTES, splitEvents } from './events.ts'
import { DONE_EVENT, type Outlet } from './exchange.ts'
import { withBothNames } from './reasoning-names.ts'
import { openWords, type Words } from './words.ts'

const DONE = '[DONE]'
const FINISH_REASON = 'finish_reason"'
/** The reason of an answer that was cut at its limit. */
const LENGTH = '"length"'
const BLANK_LINE = Buffer.from('\n\n')
const NOTHING: Buffer = Buffer.alloc(0)
const PING = Buffer.from(': ping\n\n')

const QUOTE = 0x22
const CLOSE_BRACE = 0x7d

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
): Answer => new StreamedAnswer(exchange, request, model, remoteModel, spend)

type Failure = { readonly reason: string; readonly log: string }

const REPORTED: Failure = { reason: 'it reported an error', log: 'an error inside a stream' }
const UNREADABLE: Failure = { reason: 'its stream cannot be read', log: 'an event that is no JSON object' }
const TOO_LONG: Failure = { reason: 'its stream cannot be read', log: `an event of more than ${MAX_EVENT_BYTES} bytes` }
const EMPTY: Failure = { reason: 'its stream was empty', log: 'a stream without an event' }
const TOO_SHORT: Failure = { reason: 'its stream ended too early', log: 'a stream without a finish reason' }

/** A class, since thousands of streams are open at once: closures and what they shared were 2 KB of each, these fields are 250 bytes. */
class StreamedAnswer implements Answer {
  readonly exchange: Outlet
  readonly request: Request
  readonly model: Model
  readonly spend: (outputTokens: number) => void
  readonly answers: number // that come side by side
  readonly remoteName: Text | undefined // as the engine writes it, where it is another than ours
  readonly name: Text
  readonly events = splitEvents()
  hasFirst = false // the first event has come, and was one
  sent = false // and is on its way to the client
  finished = false // a finish reason has been seen
  atLimit = false // and it was the limit of output
  pastEnd = false // what follows is of no use to a client
  done: Buffer | undefined // the last event, as it came
  failure: Failure | undefined
  // The last event that went on, for what all of a stream have in common. As text: a small piece of what was read keeps 64 KB of the process' memory from being used
  // again, since it was read into so much, and 5,000 open streams were 400 MB.
  latest: Text | undefined
  usage: Text | undefined // the event with the latest usage that came, and where in it that stands
  usageStart = 0
  usageEnd = 0
  alone = false // and it came once without words, as OpenAI sends it
  delivered = 0
  // An engine that counts as it goes needs nobody else to count; of another its words are held until it has.
  words: Words | undefined
  finishedPlaces: Set<number> | undefined // of answers side by side, those that have finished
  // What was read, and what of it may go on: `changed`, and behind it all from `from` to `until` as it came.
  read: Buffer = NOTHING
  text: Text = ''
  changed: Text = ''
  from = 0
  until = 0

  constructor(exchange: Outlet, request: Request, model: Model, remoteModel: string, spend: (outputTokens: number) => void) {
    this.exchange = exchange
    this.request = request
    this.model = model
    this.spend = spend
    this.answers = request.answers ?? 1
    const isSame = remoteModel === model.name
    this.remoteName = isSame ? undefined : toText(JSON.stringify(remoteModel))
    this.name = isSame ? '' : toText(JSON.stringify(model.name))
  }

  data(chunk: Buffer): 'wait' | 'done' | Verdict | undefined {
    const bytes = this.events.join(chunk)
    if (bytes !== undefined) this.events.keep(bytes, this.lookThrough(bytes))
    const keepsUp = this.flush()
    this.forget()
    if (this.failure !== undefined) return this.failed(this.failure)
    if (this.events.isTooLong()) return this.failed(TOO_LONG)
    if (this.done !== undefined) return 'done'
    return keepsUp ? undefined : 'wait'
  }

  isCounted(): boolean {
    if (!this.sent) return false
    const told = this.usageText()
    return told !== undefined && toCounts(textToValue(told)) !== undefined
  }

  ping(): void {
    this.exchange.begin()
    this.exchange.write(PING)
  }

  exhausted(): Verdict | undefined {
    const { exchange, latest, model } = this
    const unfinished = this.unfinishedPlaces()
    if (unfinished.length === 0 || this.pastEnd || latest === undefined) return undefined
    this.pastEnd = true
    this.flush()
    const frame: Record<string, unknown> = { ...textToObject(latest), model: model.name }
    const ended = this.ending('budget', () => exchange.end(DONE_EVENT))
    const last = toEvent(withoutUsage({ ...frame, choices: unfinished.map((place) => exhaustedChoice(frame, place)) }))
    this.send(this.request.wantsUsage ? Buffer.concat([last, this.usageEvent(toUsage(ended.ending.counts))]) : last)
    return ended
  }

  end(): Verdict {
    const { exchange, request } = this
    const rest = this.events.rest()
    if (rest.length > 0 && this.done === undefined) {
      // Some servers forget the blank line behind their last event; others were cut in the middle of it.
      const last = Buffer.concat([rest, BLANK_LINE])
      const text = last.toString('latin1')
      const at = payloadOf(text)
      if (at >= 0 && (text.startsWith(DONE, at) || kindOf(text, at) !== 'garbage')) this.lookThrough(last)
    }
    this.flush()
    this.forget()
    if (this.failure !== undefined) return this.failed(this.failure)
    if (!this.sent) return this.failed(EMPTY)
    if (this.done === undefined && !this.finished) return this.failed(TOO_SHORT)
    const last = this.done ?? DONE_EVENT
    const told = this.usageText()
    if (request.wantsUsage && !this.alone && told !== undefined && !request.wantsRunningUsage) this.send(this.usageEvent(textToValue(told)))
    const { ending } = this.ending(this.atLimit ? 'length' : 'complete', () => exchange.end(last))
    return ending.counted === 'engine' ? { ending } : { ending, log: 'a stream without usage' }
  }

  broken(how: Exclude<Ended, 'complete'>, refusal: Refusal): Verdict {
    return breakOff(this.exchange, this, this.sent, how, refusal)
  }

  failed({ reason, log }: Failure): Verdict {
    return { ...this.broken('engine_failed', { code: 'engine_failed', model: this.model.name, reason }), log }
  }

  /** Looks at each event of what was read, and says where the last one ended. */
  lookThrough(bytes: Buffer): number {
    const text = bytes.toString('latin1')
    this.read = bytes
    this.text = text
    let start = 0
    for (let end = endOfEvent(text, 0); end >= 0; end = endOfEvent(text, start)) {
      if (!this.pastEnd) this.look(text.slice(start, end), start, end)
      start = end
    }
    // A piece of a text keeps all of it. Mostly one read is one event, and that is the text itself.
    const { latest, usage } = this
    if (start > 0 && latest !== undefined && latest.length !== text.length) {
      this.latest = copied(latest)
      if (usage !== undefined) this.usage = usage === latest ? this.latest : copied(usage)
    }
    return start
  }

  look(text: Text, start: number, end: number): void {
    const { request } = this
    const at = payloadOf(text)
    if (at < 0) return this.hasFirst ? this.pass(end) : this.change(start, end, '')
    if (text.startsWith(DONE, at)) {
      this.done = this.read.subarray(start, end)
      this.pastEnd = true
      return
    }
    if (!this.hasFirst || isOdd(text, at)) {
      const kind = kindOf(text, at)
      if (kind !== 'answer') {
        this.failure = kind === 'error' ? REPORTED : UNREADABLE
        this.pastEnd = true
        return
      }
    }
    this.hasFirst = true
    this.latest = text
    const told = usageIn(text, at)
    const isAlone = told !== undefined && hasNoChoices(text, at)
    if (told !== undefined) {
      this.usage = text
      this.usageStart = told.start
      this.usageEnd = told.end
      this.alone ||= isAlone
      if (isAlone && !request.wantsUsage && request.wantsRunningUsage !== true) return this.change(start, end, '')
    }
    const wordsAt = wordsIn(text, at)
    if (wordsAt >= 0) {
      if (this.delivered === 0 && told === undefined) this.words = openWords()
      this.delivered += 1
      if (this.words !== undefined) this.hear(this.words, text, wordsAt, start + at, end)
    }
    const reasonAt = valueOf(text, at, FINISH_REASON)
    if (reasonAt >= 0 && text.charCodeAt(reasonAt) === QUOTE) {
      this.finished = true
      this.atLimit ||= text.startsWith(LENGTH, reasonAt)
    }
    if (this.answers > 1) this.noteFinished(start + at, end)
    let whole = text
    // From behind, so that the places of what stands before stay as they are: usage is mostly last. Its place was found first.
    if (told !== undefined && !isAlone && request.wantsRunningUsage !== true) whole = withoutRunning(whole, told, request.wantsUsage)
    if (this.remoteName !== undefined) whole = renamed(whole, at, this.remoteName, this.name)
    if (this.model.features.reasoning) whole = withBothNames(whole, at)
    if (holdsCalls(whole, at)) whole = oneCallEach(whole)
    if (whole === text) this.pass(end)
    else this.change(start, end, whole)
    // Event by event: a read on a busy machine brings many, and what a hard budget does not cover must not go on.
    if (wordsAt >= 0 || told !== undefined) this.spend(Math.max(this.delivered, told === undefined ? 0 : outputIn(text, told)))
  }

  pass(end: number): void {
    this.until = end
  }

  change(start: number, end: number, whole: Text): void {
    this.changed += this.text.slice(this.from, start) + whole
    this.from = end
    this.until = end
  }

  /** A token alone in its delta needs no parser, which takes 400 bytes of garbage and half a microsecond for it. */
  hear(words: Words, text: Text, wordsAt: number, start: number, end: number): void {
    if (this.answers === 1 && beginsDelta(text, wordsAt)) {
      const behind = endOfString(text, wordsAt)
      if (behind >= 0 && text.charCodeAt(behind) === CLOSE_BRACE) return words.addText(text, wordsAt + 1, behind - 1)
    }
    words.add(jsonToObject(this.read.toString('utf8', start, end)))
  }

  /** One write per read; says whether the client keeps up. */
  flush(): boolean {
    const { changed, from, read, until } = this
    if (changed === '' && from === until) return true
    this.changed = ''
    this.from = until
    if (changed !== '') return this.send(Buffer.from(changed + this.text.slice(from, until), 'latin1'))
    return this.send(from === 0 && until === read.length ? read : read.subarray(from, until))
  }

  /** Between two reads nothing is kept of the first. */
  forget(): void {
    this.read = NOTHING
    this.text = ''
    this.from = 0
    this.until = 0
  }

  send(bytes: Buffer): boolean {
    if (!this.sent) this.exchange.begin()
    this.sent = true // a comment before it does not count: it was none of the engine's
    return this.exchange.write(bytes)
  }

  usageText(): Text | undefined {
    return this.usage?.slice(this.usageStart, this.usageEnd)
  }

  ending(ended: Ending['ended'], finish: () => void): { ending: Ending } {
    const { delivered, words } = this
    const text = this.usageText()
    const told = text === undefined ? undefined : toCounts(textToValue(text))
    // Of a stream that was broken off this may be a count from before: a word is at least a token.
    const usage = told && ended !== 'complete' && ended !== 'length' ? { ...told, output: Math.max(told.output, delivered) } : told
    const counted = usage === undefined ? countedByUs(this.request, delivered) : ({ counts: usage, counted: 'engine' } as const)
    const heard = usage === undefined && words !== undefined ? () => words.all() : undefined
    const status = this.sent ? 200 : LEFT_STATUS
    return { ending: { counts: counted.counts, counted: counted.counted, ended, status, words: heard, finish } }
  }

  /** The last usage, alone, for a client that asked for it and whose engine gave it in another place, or none. */
  usageEvent(told: unknown): Buffer {
    return toEvent({ ...(this.latest && textToObject(this.latest)), model: this.model.name, choices: [], usage: told })
  }

  /** The answers that have not finished. Only where there are several an event is parsed for it. */
  unfinishedPlaces(): readonly number[] {
    if (this.answers === 1) return this.finished ? [] : [0]
    return Array.from({ length: Math.min(this.answers, MAX_CHOICES) }, (_, place) => place).filter(
      (place) => !this.finishedPlaces?.has(place),
    )
  }

  noteFinished(start: number, end: number): void {
    const choices = jsonToObject(this.read.toString('utf8', start, end))?.['choices']
    if (!Array.isArray(choices)) return
    for (const choice of choices as { index?: unknown; finish_reason?: unknown }[]) {
      if (typeof choice.finish_reason === 'string') (this.finishedPlaces ??= new Set()).add(Number(choice.index ?? 0))
    }
  }
}

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

/** As many answers as OpenAI makes at once; an engine that makes more has a limit of its own. */
const MAX_CHOICES = 128
