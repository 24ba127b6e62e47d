import { isMultipart, readForm } from '@parvis/wire/multipart'
import type { Sound } from '../audio/decode.ts'
import { decodeInThread } from '../audio/decoding.ts'
import { unixSeconds } from '../clock.ts'
import type { EngineOptions } from '../command-line.ts'
import { openCounters } from '../counters.ts'
import { openExchange } from '../exchange.ts'
import { type Listener, openListener, readBytes, type Visit } from '../listener.ts'
import { openSlots } from '../llama/slots.ts'
import { faultOf, type Log } from '../log.ts'
import { badRequest, busy, fault, fieldInvalid, modelUnknown, no, type Outcome, yes } from '../refusal.ts'
import type { Manner, Segment } from './whisper.ts'
import { Broken, type Writer } from './writer.ts'

const MAX_FILE_BYTES = 25 * 1024 * 1024 // data-plane.md 11.1
const MAX_FIELD_BYTES = 16 * 1024
const MAX_FIELDS = 32
const MAX_BODY_BYTES = MAX_FILE_BYTES + 1024 * 1024
/** Files that wait in line or are being decoded, of all requests together. */
const MAX_HELD_BYTES = 256 * 1024 * 1024

const PATH = '/v1/audio/transcriptions'

/** What a form asks for. */
type Asked = { readonly bytes: Uint8Array<ArrayBuffer>; readonly manner: Manner; readonly stream: boolean; readonly verbose: boolean }

const languageCode = (given: string): string => given.trim().toLowerCase().split(/[-_]/, 1)[0] ?? ''

/** A model of one language can be told nothing, and accepts hearing what it does anyway. */
const readLanguage = (given: string | undefined, languages: readonly string[], name: string): Outcome<string | undefined> => {
  if (given === undefined || given.trim() === '') return yes(undefined)
  const code = languageCode(given)
  if (languages.includes(code)) return yes(code)
  if (languages.length > 0)
    return no(fieldInvalid('language', `${name} does not know ${JSON.stringify(given)}; an ISO 639-1 code like "fr" is wanted`))
  return ['en', 'english'].includes(code) ? yes(undefined) : no(fieldInvalid('language', `${name} knows English only`))
}

const readAsked = async (visit: Visit, options: EngineOptions, languages: readonly string[]): Promise<Outcome<Asked>> => {
  const contentType = visit.request.headers['content-type']
  if (!isMultipart(contentType)) return no(badRequest('The content type must be multipart/form-data with a boundary.'))
  const body = await readBytes(visit.request, MAX_BODY_BYTES)
  if (!body.ok) return body
  const form = await readForm(contentType, body.value, {
    fileField: 'file',
    fileBytes: MAX_FILE_BYTES,
    fieldBytes: MAX_FIELD_BYTES,
    fields: MAX_FIELDS,
  })
  if (!form.ok) {
    switch (form.problem) {
      case 'file_too_large':
        return no(fieldInvalid('file', `it is larger than ${MAX_FILE_BYTES / 1024 / 1024} MB`))
      case 'field_too_large':
        return no(fieldInvalid(form.field, `it is longer than ${MAX_FIELD_BYTES} bytes`))
      case 'too_many':
        return no(badRequest(`The form has more than one file or more than ${MAX_FIELDS} fields.`))
      case 'broken':
        return no(badRequest(`The form cannot be read: ${form.reason}.`))
    }
  }
  const { fields, file } = form.value
  const text = (name: string): string | undefined => fields.get(name)?.at(-1)

  const model = text('model')
  if (model !== undefined && model !== options.name) return no(modelUnknown(model, options.name))
  if (file === undefined) return no(fieldInvalid('file', 'a file is wanted'))
  const language = readLanguage(text('language'), languages, options.name)
  if (!language.ok) return language
  const temperature = Number(text('temperature') ?? 0)
  if (!(temperature >= 0 && temperature <= 1)) return no(fieldInvalid('temperature', 'a number from 0 to 1 is wanted'))
  const format = text('response_format') ?? 'json'
  if (format !== 'json' && format !== 'verbose_json') {
    return no(fieldInvalid('response_format', 'this engine gives json and verbose_json; the other formats are made of them by the gateway'))
  }
  const granularities = [...(fields.get('timestamp_granularities[]') ?? []), ...(fields.get('timestamp_granularities') ?? [])]
  if (granularities.includes('word')) {
    return no(
      fieldInvalid(
        'timestamp_granularities[]',
        `${options.name} gives the times of segments, not of words: this engine does not read them off a model's attentions`,
      ),
    )
  }
  return yes({
    bytes: new Uint8Array(Buffer.concat(file.pieces)),
    manner: { language: language.value, prompt: text('prompt') ?? '', temperature },
    stream: text('stream') === 'true',
    verbose: format === 'verbose_json',
  })
}

/** Segments carry their own spaces; only the very first is not wanted. */
const openText = () => {
  let text = ''
  return {
    add: (segment: Segment): string => {
      const piece = text === '' ? segment.text.trimStart() : segment.text
      text += piece
      return piece
    },
    whole: (): string => text,
  }
}

const languageNames = new Intl.DisplayNames('en', { type: 'language' })

/** `duration` is exact, for a bill; `usage` is what clients know (data-plane.md 11.4). */
const measured = (sound: Sound) => ({
  duration: sound.durationMs / 1000,
  usage: { type: 'duration', seconds: Math.ceil(sound.durationMs / 1000) },
})

/**
 * The HTTP surface of one speech model. One file at a time is decoded and written down; others wait in line. Nobody but this process
 * reads its own answers of kind `json` and `verbose_json`: the formats that people ask for are made in the gateway.
 */
export const openSpeechServer = (engine: { options: EngineOptions; writer: Writer; log: Log }, key: string | undefined): Listener => {
  const { options, writer, log } = engine
  const line = openSlots({ sequences: [undefined], cached: () => [], maxWaiting: options.maxWaiting, maxWaitMs: options.maxWaitMs })
  const counters = openCounters(options.name)
  let heldBytes = 0

  const serve = async (visit: Visit): Promise<void> => {
    const exchange = openExchange(visit.request, visit.response, undefined, visit.requestId)
    const asked = await readAsked(visit, options, writer.languages)
    if (!asked.ok) return visit.refuse(asked.refusal)
    const { bytes, manner, stream, verbose } = asked.value
    const size = bytes.length
    if (heldBytes + size > MAX_HELD_BYTES) return visit.refuse(busy('too many files are waiting already'))
    heldBytes += size
    try {
      const place = await line.take('', [], exchange.signal)
      if (!place.ok) return visit.refuse(place.refusal)
      try {
        const sound = await decodeInThread(bytes, options.maxAudioSeconds, exchange.signal)
        if (sound === undefined) return
        if (!sound.ok) return visit.refuse(fieldInvalid('file', `${sound.refusal.reason}. ${sound.refusal.remedy.replace(/\.$/, '')}`))

        const events = stream ? exchange.events() : undefined
        const text = openText()
        const segments: Segment[] = []
        const tell = (told: readonly Segment[]): void => {
          const delta = told.map(text.add).join('')
          segments.push(...told)
          if (delta !== '') events?.send({ type: 'transcript.text.delta', delta })
        }
        // What is written down is sent away with the order, so its length is taken before.
        const measures = measured(sound.value)
        counters.heard(sound.value.durationMs)
        let written: { language: string | undefined } | undefined
        try {
          written = await writer.write(sound.value, manner, tell, exchange.signal)
        } catch (error) {
          counters.ended('error')
          log.error('a file could not be written down', {
            requestId: visit.requestId,
            reason: error instanceof Broken ? error.message : faultOf(error),
          })
          if (events?.started() === true) return events.refuse(fault)
          return visit.refuse(fault)
        }
        counters.ended(written === undefined ? 'abort' : 'stop')
        if (written === undefined) return
        if (events !== undefined) {
          events.send({ type: 'transcript.text.done', text: text.whole(), ...measures })
          return events.end()
        }
        if (!verbose) return exchange.answer({ text: text.whole(), ...measures })
        exchange.answer({
          task: 'transcribe',
          language: (languageNames.of(written.language ?? 'en') ?? 'english').toLowerCase(),
          text: text.whole(),
          segments: segments.map((segment, id) => ({ id, seek: Math.floor(segment.start * 100), ...segment })),
          ...measures,
        })
      } finally {
        place.value.leave()
      }
    } finally {
      heldBytes -= size
    }
  }

  return openListener({
    address: options,
    key,
    log,
    card: { id: options.name, object: 'model', created: unixSeconds(), owned_by: 'parvis', type: options.type },
    counters,
    work: () => ({ busy: line.busy(), waiting: line.waiting() }),
    post: (path) => (path === PATH ? serve : undefined),
  })
}
