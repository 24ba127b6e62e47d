import type { ResponsesRequest } from '@parvis/wire/openai/responses'
import type { Model } from '../../../catalog/model.ts'
import type { Clock } from '../../../kit/clock.ts'
import type { Refusal } from '../../../kit/refusal.ts'
import type { Counts } from '../../../usage/event.ts'
import { type Answer, countedByUs, type Ending, LEFT_STATUS } from '../../answer.ts'
import { brokenStream } from '../../broken-stream.ts'
import type { Request } from '../../endpoints/endpoint.ts'
import { dataOf, MAX_EVENT_BYTES, splitEvents } from '../../events.ts'
import type { Exchange } from '../../exchange.ts'
import { openWords } from '../../words.ts'
import { beginResponse, failureOf, toUsage } from './answer.ts'
import { responseCounts } from './counts.ts'
import { type Fields, openItems } from './items.ts'

const PING = Buffer.from(': ping\n\n')
const BLANK_LINE = Buffer.from('\n\n')
/** The first and the last event tell all of the answer, with log probabilities too, and repeat what was asked. */
const MAX_ANSWER_BYTES = 16 * MAX_EVENT_BYTES

/**
 * A streamed response of an engine that speaks responses: its events are handed on as they come. Held back is the last one, which waits
 * until the usage is on disk. Changed is the name of the model, and a number where it leaves a gap (data-plane.md 8.5). As in a chat,
 * nothing is sent before the first event has proved to be one, unless the client had to be told that we live.
 *
 * Each event is parsed: what has been said so far must be told again when a budget or a failure ends the stream in the middle.
 */
export const passedStream = (
  exchange: Exchange,
  request: Request,
  asked: ResponsesRequest,
  { model, remoteModel, spend, clock }: { model: Model; remoteModel: string; spend(outputTokens: number): void; clock: Clock },
): Answer => {
  const maxBytes = MAX_ANSWER_BYTES + 2 * request.bytesFor(remoteModel).bytes
  const events = splitEvents(maxBytes)
  const items = openItems()
  let out: Buffer[] = []
  let sent = false
  let sequence = 0
  let response: Fields | undefined // the latest that the engine told
  let last: Buffer | undefined // the last event, which waits
  let counts: Counts | undefined
  let atLimit = false
  let pastEnd = false // nothing that follows matters
  let failure: { reason: string; log: string } | undefined
  let delivered = 0

  const emit = (type: string, fields: object): Buffer => {
    const event = Buffer.from(`event: ${type}\ndata: ${JSON.stringify({ type, sequence_number: sequence, ...fields })}\n\n`)
    sequence += 1
    return event
  }

  const look = (event: Buffer): void => {
    if (pastEnd) return
    const read = readEvent(event)
    if (read === 'comment') {
      if (sequence > 0) out.push(event)
      return
    }
    if (read === 'done') {
      pastEnd = true
      return
    }
    const named = read === 'garbage' ? undefined : read['type']
    const type = typeof named === 'string' && EVENT_NAME.test(named) ? named : ''
    if (read === 'garbage') failure = { reason: 'its stream cannot be read', log: 'an event that is no JSON object' }
    else if (type === 'error' || type === 'response.failed' || Boolean(read['error'])) {
      failure = { reason: 'it reported an error', log: 'an error inside a stream' }
    } else if (type === '') failure = { reason: 'its stream cannot be read', log: 'an event without a type' }
    if (failure !== undefined || read === 'garbage') {
      pastEnd = true
      return
    }
    const theirs = renamed(read, type)
    items.note(type, theirs.fields)
    const numbered = read['sequence_number'] === sequence
    const passed = theirs.changed || !numbered || !startsWithName(event) ? emit(type, withoutNumber(theirs.fields)) : event
    if (passed === event) sequence += 1
    if (type !== 'response.completed' && type !== 'response.incomplete') {
      out.push(passed)
      if (!type.endsWith('.delta') || typeof read['delta'] !== 'string' || read['delta'] === '') return
      delivered += 1
      // What a hard budget does not cover must not go on.
      spend(delivered)
      return
    }
    pastEnd = true
    last = passed
    counts = responseCounts(response?.['usage'])
    atLimit = toFields(response?.['incomplete_details'])['reason'] === 'max_output_tokens'
    if (counts !== undefined) spend(Math.max(delivered, counts.output))
  }

  /** The event with the catalogue's name of the model. */
  const renamed = (fields: Fields, type: string): { fields: Fields; changed: boolean } => {
    const told = toFields(fields['response'])
    if (!type.startsWith('response.') || Object.keys(told).length === 0) return { fields, changed: false }
    response = { ...told, model: model.name }
    return told['model'] === model.name ? { fields, changed: false } : { fields: { ...fields, response }, changed: true }
  }

  /** How it went wrong, with what the engine has told of the response until then. */
  const failureEvents = (refusal: Refusal): Buffer => {
    const created = response ?? beginResponse(exchange, asked, model.name, clock)
    const opening =
      sequence > 0 ? [] : [emit('response.created', { response: created }), emit('response.in_progress', { response: created })]
    const { error, event } = failureOf(refusal)
    const told = { ...created, status: 'failed', error, output: items.all('incomplete'), completed_at: null }
    return Buffer.concat([...opening, emit('response.failed', { response: told }), emit('error', event)])
  }

  const begin = (): void => exchange.begin(failureEvents)

  /** One write per read; says whether the client keeps up. */
  const flush = (): boolean => {
    if (out.length === 0) return true
    const [only] = out
    const bytes = out.length === 1 && only !== undefined ? only : Buffer.concat(out)
    out = []
    begin()
    sent = true
    return exchange.write(bytes)
  }

  const wordsSaid = (): readonly string[] | undefined => {
    const words = openWords()
    words.add({ output: items.all('incomplete') })
    return words.all()
  }

  const ending = (ended: Ending['ended'], finish: () => void): { ending: Ending } => {
    const counted =
      counts === undefined ? { ...countedByUs(request, delivered), words: wordsSaid } : ({ counts, counted: 'engine' } as const)
    return { ending: { ...counted, ended, status: sent ? 200 : LEFT_STATUS, finish } }
  }

  const { broken, failed } = brokenStream(exchange, model, { sent: () => sent, ending })

  return {
    data(chunk) {
      const fits = events.push(chunk, look)
      const keepsUp = flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!fits) return failed('its stream cannot be read', `an event of more than ${maxBytes} bytes`)
      if (pastEnd) return 'done'
      return keepsUp ? undefined : 'wait'
    },

    ping() {
      begin()
      exchange.write(PING)
    },

    exhausted() {
      if (pastEnd || response === undefined) return undefined
      pastEnd = true
      for (const { type, ...fields } of items.close()) out.push(emit(type, fields))
      flush()
      const ended = ending('budget', () => exchange.end(cut))
      const told = {
        ...response,
        status: 'incomplete',
        incomplete_details: { reason: 'max_output_tokens' },
        output: items.all('incomplete'),
        usage: toUsage(ended.ending.counts),
      }
      const cut = emit('response.incomplete', { response: told })
      return ended
    },

    end() {
      const rest = events.rest()
      // Some servers forget the blank line behind their last event; others were cut in the middle of it.
      if (rest.length > 0 && readEvent(rest) !== 'garbage') look(Buffer.concat([rest, BLANK_LINE]))
      flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      const end = last
      if (end === undefined) {
        return sent
          ? failed('its stream ended too early', 'a stream without an end')
          : failed('its stream was empty', 'a stream without an event')
      }
      begin()
      sent = true
      const ended = ending(atLimit ? 'length' : 'complete', () => exchange.end(end))
      return { ...ended, ...(counts === undefined ? { log: 'a stream without usage' } : {}) }
    },

    broken,
  }
}

/** What may stand on a line of its own. */
const EVENT_NAME = /^[\w.-]+$/

const readEvent = (event: Buffer): Fields | 'comment' | 'done' | 'garbage' => {
  const payload = dataOf(event)
  if (payload === undefined) return 'comment'
  if (payload === '[DONE]') return 'done'
  try {
    const value: unknown = JSON.parse(payload)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : 'garbage'
  } catch {
    return 'garbage'
  }
}

const NAME = Buffer.from('event:')
const startsWithName = (event: Buffer): boolean => event.compare(NAME, 0, NAME.length, 0, Math.min(NAME.length, event.length)) === 0

const toFields = (value: unknown): Fields => (typeof value === 'object' && value !== null ? (value as Fields) : {})

const withoutNumber = ({ type: _type, sequence_number: _number, ...fields }: Fields): Fields => fields
