import { durationMsOf, EngineTranscript, EngineTranscriptEvent, type TranscriptFormat } from '@parvis/wire/openai/transcription'
import type { Model } from '../../catalog/model.ts'
import { type Answer, LEFT_STATUS, NO_COUNTS, NO_ROOM, type Verdict } from '../answer.ts'
import { addPiece, bufferToBody, type PartialBody } from '../body.ts'
import { brokenStream } from '../broken-stream.ts'
import { dataOf, MAX_EVENT_BYTES, splitEvents } from '../events.ts'
import { DONE_EVENT, type Exchange } from '../exchange.ts'
import { renderTranscript, toUsage } from './formats.ts'

/** A day of speech with all that verbose_json tells about it is less. */
const MAX_TRANSCRIPT_BYTES = 64 * 1024 * 1024

const PING = Buffer.from(': ping\n\n')
const toEvent = (value: object): Buffer => Buffer.from(`data: ${JSON.stringify(value)}\n\n`)

const toValue = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** What is measured is billed; where an engine does not measure, nobody has counted. */
const countsOf = (durationMs: number | undefined) => ({
  counts: { ...NO_COUNTS, audioMs: durationMs ?? 0 },
  counted: durationMs === undefined ? ('none' as const) : ('engine' as const),
})

/** A whole transcript, turned into the format that was asked for. */
export const wholeTranscript = (
  exchange: Exchange,
  model: Model,
  wanted: { readonly format: TranscriptFormat; readonly segments: boolean },
): Answer => {
  const failed = (reason: string, log: string): Verdict => ({ refusal: { code: 'engine_failed', model: model.name, reason }, log })
  const body: PartialBody = { pieces: undefined, bytes: 0, small: 0, smallBytes: 0 }
  return {
    data(chunk) {
      if (body.bytes + chunk.length > MAX_TRANSCRIPT_BYTES) {
        return failed('its answer is too large', `an answer of more than ${MAX_TRANSCRIPT_BYTES} bytes`)
      }
      if (!exchange.hold(chunk.length)) return NO_ROOM
      addPiece(body, chunk)
      return undefined
    },
    end() {
      const value = toValue(Buffer.concat(body.pieces ?? []).toString())
      const read = EngineTranscript.safeParse(value)
      if (!read.success) return failed('its answer cannot be read', 'an answer that is no transcript')
      const durationMs = durationMsOf(read.data)
      const { contentType, text } = renderTranscript(read.data, durationMs, wanted)
      return {
        ending: {
          ...countsOf(durationMs),
          ended: 'complete',
          status: 200,
          finish: () => exchange.answer(200, bufferToBody(Buffer.from(text)), contentType),
        },
        ...(durationMs === undefined ? { log: 'a transcript without a duration' } : {}),
      }
    },
    broken: (how, refusal) =>
      how === 'client_left' ? { ending: { ...countsOf(undefined), ended: how, status: LEFT_STATUS, finish: () => {} } } : { refusal },
  }
}

/**
 * A transcript as it is written down, in OpenAI's events whatever the engine's are (data-plane.md 11.5). The last one, which has the whole
 * text and the duration, waits until the usage is on disk.
 */
export const streamedTranscript = (exchange: Exchange, model: Model): Answer => {
  const events = splitEvents()
  let out: Buffer[] = []
  let sent = false
  let text = ''
  let durationMs: number | undefined
  let finished = false // the engine has said all of the text
  let done = false // and that nothing follows
  let failure: { reason: string; log: string } | undefined

  const add = (delta: string): void => {
    if (delta === '') return
    text += delta
    out.push(toEvent({ type: 'transcript.text.delta', delta }))
  }

  const look = (event: Buffer): void => {
    if (done || failure !== undefined) return
    const payload = dataOf(event)
    if (payload === undefined) return // a comment, which keeps a connection alive
    if (payload === '[DONE]') {
      done = true
      return
    }
    const value = toValue(payload)
    if (typeof value === 'object' && value !== null && 'error' in value && Boolean(value.error)) {
      failure = { reason: 'it reported an error', log: 'an error inside a stream' }
      return
    }
    const read = EngineTranscriptEvent.safeParse(value)
    if (!read.success) {
      // Engines learn new events faster than we do; what is no object at all is no event.
      if (typeof value !== 'object' || value === null)
        failure = { reason: 'its stream cannot be read', log: 'an event that is no JSON object' }
      return
    }
    const told = read.data
    if ('choices' in told && Array.isArray(told.choices)) {
      for (const { delta, finish_reason: finish } of told.choices as {
        delta: { content?: string | null }
        finish_reason?: string | null
      }[]) {
        add(delta.content ?? '')
        finished ||= typeof finish === 'string'
      }
    } else if (told['type'] === 'transcript.text.delta') add(String(told['delta']))
    else {
      finished = true
      durationMs = durationMsOf(told as Parameters<typeof durationMsOf>[0])
    }
  }

  const begin = (): void => {
    if (!sent) exchange.begin()
    sent = true
  }
  const flush = (): boolean => {
    if (out.length === 0) return true
    const bytes = Buffer.concat(out)
    out = []
    begin()
    return exchange.write(bytes)
  }

  const { broken, failed } = brokenStream(exchange, model, {
    sent: () => sent,
    ending: (ended, finish) => ({ ending: { ...countsOf(undefined), ended, status: sent ? 200 : LEFT_STATUS, finish } }),
  })

  return {
    data(chunk) {
      const fits = events.push(chunk, look)
      const keepsUp = flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!fits) return failed('its stream cannot be read', `an event of more than ${MAX_EVENT_BYTES} bytes`)
      if (done) return 'done'
      return keepsUp ? undefined : 'wait'
    },
    ping() {
      if (out.length > 0) return
      begin()
      exchange.write(PING)
    },
    end() {
      flush()
      if (failure !== undefined) return failed(failure.reason, failure.log)
      if (!finished && !done) return failed('its stream ended too early', 'a stream without an end')
      begin() // silence has no text, and is an answer
      const last = { type: 'transcript.text.done', text, ...(durationMs === undefined ? {} : { usage: toUsage(durationMs) }) }
      return {
        ending: {
          ...countsOf(durationMs),
          ended: 'complete',
          status: 200,
          finish: () => exchange.end(Buffer.concat([toEvent(last), DONE_EVENT])),
        },
        ...(durationMs === undefined ? { log: 'a transcript without a duration' } : {}),
      }
    },
    broken,
  }
}
