import { randomBytes } from 'node:crypto'
import { type Form, isMultipart, readForm, writeForm } from '@parvis/wire/multipart'
import { TRANSCRIPT_FORMATS, type TranscriptFormat } from '@parvis/wire/openai/transcription'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { type Body, piecesToBody } from '../body.ts'
import { streamedTranscript, wholeTranscript } from '../transcripts/answers.ts'
import { transcribeByChat } from '../transcripts/by-chat.ts'
import { type FormEndpoint, mismatch, type Reading, type Request } from './endpoint.ts'

const MAX_FILE_BYTES = 25 * 1024 * 1024 // data-plane.md 11.1
const MAX_FIELD_BYTES = 16 * 1024
const MAX_FIELDS = 32
/** Fields and borders around the file. */
const MAX_FORM_BYTES = MAX_FILE_BYTES + MAX_FIELDS * (MAX_FIELD_BYTES + 1024)
const MAX_NAME_CHARACTERS = 256

/** What we set ourselves, or what says something that no engine of ours can do (data-plane.md 11.1); all else is handed on. */
const OURS =
  /^(?:file|model|response_format|stream|timestamp_granularities(?:\[\])?|chunking_strategy|include\[\]|known_speaker_.*|diarize)$/
/** Names that cannot break out of the header in which they stand. */
const PLAIN_NAME = /^[\w.[\]-]{1,64}$/

type FormReading = Reading & { readonly form: Form }

/** `POST /v1/audio/transcriptions` (data-plane.md 11). */
export const transcriptions: FormEndpoint<FormReading> = {
  name: 'audio.transcriptions',
  path: '/audio/transcriptions',
  enginePath: '/v1/audio/transcriptions',
  accepts: { matches: isMultipart, expected: 'multipart/form-data with a boundary', maxBytes: MAX_FORM_BYTES },

  async read(body, contentType) {
    const form = await readForm(contentType ?? '', body.pieces, {
      fileField: 'file',
      fileBytes: MAX_FILE_BYTES,
      fieldBytes: MAX_FIELD_BYTES,
      fields: MAX_FIELDS,
    })
    if (!form.ok) return no(problemToRefusal(form))
    const model = lastOf(form.value, 'model')
    if (model === undefined || model === '') return no({ code: 'model_missing' })
    if (model.length > MAX_NAME_CHARACTERS) return no({ code: 'model_unknown', model: `${model.slice(0, MAX_NAME_CHARACTERS)}…` })
    return yes({ model, body, spans: new Map(), inside: 0, value: undefined, form: form.value })
  },

  check({ form }, model, guess) {
    const hears = model.type === 'chat' && model.rules.audioInChat
    if (model.type !== 'audio' && !hears) return no(mismatch(transcriptions, model))
    const { file } = form
    if (file === undefined) return no(wrong('file', 'a file with sound is wanted'))
    if (file.bytes === 0) return no(wrong('file', 'it is empty'))
    const settings = readSettings(form)
    if (!settings.ok) return settings
    const { format, stream, granularities } = settings.value
    if (hears) return transcribeByChat(form, settings.value, model, guess)

    const timed = format === 'verbose_json' || format === 'srt' || format === 'vtt'
    const boundary = `parvis-${randomBytes(16).toString('hex')}`
    const kept = [...form.fields].flatMap(([name, values]) =>
      OURS.test(name) || !PLAIN_NAME.test(name) ? [] : values.map((value) => [name, value] as const),
    )
    const asked: (readonly [string, string])[] = [
      ['response_format', timed ? 'verbose_json' : 'json'],
      ...(stream ? [['stream', 'true'] as const] : []),
      ...(timed ? granularities.map((value) => ['timestamp_granularities[]', value] as const) : []),
    ]
    return yes({
      enginePath: transcriptions.enginePath,
      contentType: `multipart/form-data; boundary=${boundary}`,
      stream,
      wantsUsage: true,
      estimate: { inputTokens: 0, outputTokens: 0, audioSeconds: guessSeconds(file) },
      bytesFor: (remoteModel) =>
        toBody(writeForm(boundary, [['model', remoteModel], ...asked, ...kept], { field: 'file', name: 'sound', pieces: file.pieces })),
      answerKey: 'text',
      openAnswer: (exchange) =>
        stream
          ? streamedTranscript(exchange, model)
          : wholeTranscript(exchange, model, { format, segments: granularities.includes('segment') }),
    } satisfies Request)
  },
}

const wrong = (field: string, reason: string): Refusal => ({ code: 'field_invalid', field, reason })

const lastOf = (form: Form, name: string): string | undefined => form.fields.get(name)?.at(-1)

const problemToRefusal = (form: Exclude<Awaited<ReturnType<typeof readForm>>, { ok: true }>): Refusal => {
  switch (form.problem) {
    case 'file_too_large':
      return wrong('file', `it is larger than ${MAX_FILE_BYTES / 1024 / 1024} MB; compress it (mp3, ogg or flac), or split it`)
    case 'field_too_large':
      return wrong(form.field, `it is longer than ${MAX_FIELD_BYTES} bytes`)
    case 'too_many':
      return wrong('file', `one file and at most ${MAX_FIELDS} fields are accepted`)
    case 'broken':
      return { code: 'form_broken', reason: form.reason }
  }
}

type Settings = { readonly format: TranscriptFormat; readonly stream: boolean; readonly granularities: readonly ('segment' | 'word')[] }

/** Everything in a form is text, and a language, a prompt or a temperature is the engine's to judge. */
const readSettings = (form: Form): Outcome<Settings> => {
  const asked = lastOf(form, 'response_format') ?? 'json'
  const format = TRANSCRIPT_FORMATS.find((each) => each === asked)
  if (format === undefined) {
    const reason = asked === 'diarized_json' ? 'speakers are not told apart here' : 'it is unknown'
    return no(wrong('response_format', `${reason}; expected one of ${TRANSCRIPT_FORMATS.join(', ')}`))
  }
  const streamed = (lastOf(form, 'stream') ?? 'false').toLowerCase()
  if (streamed !== 'true' && streamed !== 'false') return no(wrong('stream', 'expected true or false'))
  const stream = streamed === 'true'
  if (stream && format !== 'json' && format !== 'text') {
    return no(wrong('response_format', `a stream has the text only; ask for ${format} without "stream"`))
  }
  const temperature = Number(lastOf(form, 'temperature') ?? 0)
  if (!(temperature >= 0 && temperature <= 1)) return no(wrong('temperature', 'expected a number from 0 to 1'))
  const granularities = new Set<'segment' | 'word'>()
  for (const name of ['timestamp_granularities[]', 'timestamp_granularities']) {
    for (const value of form.fields.get(name) ?? []) {
      if (value !== 'segment' && value !== 'word') return no(wrong(name, 'expected "segment" or "word"'))
      granularities.add(value)
    }
  }
  if (granularities.size > 0 && format !== 'verbose_json')
    return no(wrong('timestamp_granularities[]', 'it needs the response_format verbose_json'))
  return yes({ format, stream, granularities: granularities.size === 0 ? ['segment'] : [...granularities] })
}

const WAV_HEADER_BYTES = 32
/** 128 kbit/s. Only to reserve: the engine measures. */
const COMPRESSED_BYTES_PER_SECOND = 16_000

const guessSeconds = ({ pieces, bytes }: { pieces: readonly Uint8Array[]; bytes: number }): number => {
  const head = Buffer.from(pieces[0] ?? []).subarray(0, WAV_HEADER_BYTES)
  const isWav = head.length === WAV_HEADER_BYTES && head.toString('latin1', 0, 4) === 'RIFF'
  const perSecond = isWav ? head.readUInt32LE(28) : 0
  return Math.ceil(bytes / (perSecond > 0 ? perSecond : COMPRESSED_BYTES_PER_SECOND))
}

const toBody = (pieces: readonly Uint8Array[]): Body => {
  const buffers = pieces.map((piece) => Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength))
  return piecesToBody(
    buffers,
    buffers.reduce((sum, piece) => sum + piece.length, 0),
  )
}
