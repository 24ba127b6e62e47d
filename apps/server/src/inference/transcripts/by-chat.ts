import type { Form } from '@parvis/wire/multipart'
import type { TranscriptFormat } from '@parvis/wire/openai/transcription'
import type { Model } from '../../catalog/model.ts'
import { no, type Outcome, yes } from '../../kit/outcome.ts'
import { type Refusal, speak } from '../../kit/refusal.ts'
import { type Body, bufferToBody, piecesToBody, slice } from '../body.ts'
import { readTold } from '../dialects/told.ts'
import type { Translator } from '../dialects/translator.ts'
import { parse, type Request } from '../endpoints/endpoint.ts'
import { chatOf, inWordsOf } from '../endpoints/translated.ts'
import { changedOutlet } from '../exchange.ts'
import type { GuessTokens } from '../guess.ts'
import { bufferToPacked } from '../media/data-url.ts'
import { readSound } from '../media/sound.ts'
import { wholeAnswer } from '../whole-answer.ts'
import { toUsage } from './formats.ts'

const MAX_MINUTES = 30 // data-plane.md 11.2
const MS = 1000

const wrong = (field: string, reason: string): Refusal => ({ code: 'field_invalid', field, reason })

/** What the fields of a chat are called in a form. */
const FIELDS = { messages: 'file', temperature: 'temperature' }

/**
 * A transcription by a chat model that hears (data-plane.md 11.1 names one): the sound goes to it in a conversation, and what it says is the
 * transcript. It knows no times, and takes what a conversation takes: wav and mp3. Its price is by the token, so tokens are what is billed.
 */
export const transcribeByChat = (
  form: Form,
  wanted: { readonly format: TranscriptFormat; readonly stream: boolean },
  model: Model,
  guess: GuessTokens | undefined,
): Outcome<Request> => {
  const { format, stream } = wanted
  if (format !== 'json' && format !== 'text') {
    return no(wrong('response_format', `the model ${model.name} knows no times: ask for json or text, or take a model of type audio`))
  }
  const bytes = Buffer.concat(form.file?.pieces ?? [])
  const kind = bytes.toString('latin1', 0, 4) === 'RIFF' ? 'wav' : 'mp3'
  const sound = readSound(bufferToPacked(bytes), kind)
  if (!sound.ok)
    return no(wrong('file', `${sound.refusal}; the model ${model.name} takes wav and mp3: ffmpeg -i input -c:a libmp3lame output.mp3`))
  const { seconds } = sound.value
  if (seconds > MAX_MINUTES * 60) return no(wrong('file', `the audio is longer than ${MAX_MINUTES} minutes; split it`))

  const said = (name: string): string | undefined => form.fields.get(name)?.at(-1)
  const body = {
    model: model.name,
    messages: [
      {
        role: 'user',
        content: [
          { type: 'input_audio', input_audio: { data: PLACE, format: kind } },
          { type: 'text', text: instructionOf(said('language'), said('prompt')) },
        ],
      },
    ],
    temperature: Number(said('temperature') ?? 0),
    ...(stream ? { stream: true } : {}),
  }
  const chat = inWordsOf(FIELDS, chatOf(withSound(JSON.stringify(body), bytes), model, guess))
  if (!chat.ok) return chat
  const durationMs = Math.round(seconds * MS)
  const request: Request = {
    ...chat.value,
    lean: false, // the closures below keep the form
    wantsUsage: true,
    wantsRunningUsage: true,
    convert(answer) {
      const completion = parse(slice(answer, { start: 0, end: answer.bytes }))
      if (!completion.ok) return undefined
      const text = textIn(completion.value)
      return bufferToBody(Buffer.from(format === 'text' ? `${text}\n` : JSON.stringify({ text, usage: toUsage(durationMs) })))
    },
    translate: () => transcriptTranslator(durationMs),
  }
  if (stream || format === 'json') return yes(request)
  return yes({
    ...request,
    openAnswer: (exchange, { remoteModel }) =>
      wholeAnswer(changedOutlet(exchange, { answer: (status, text) => exchange.answer(status, text, PLAIN) }), request, model, remoteModel),
  })
}

/** Stands where the sound goes: it comes first, so whatever else a body says comes behind it. */
const PLACE = '\u0000sound\u0000'
/** Base64 has no rests at multiples of three. Text of all of it at once, and once more inside JSON, took half a second for 25 MB. */
const PIECE_BYTES = 3 * 256 * 1024

const withSound = (text: string, bytes: Buffer): Body => {
  const place = JSON.stringify(PLACE).slice(1, -1)
  const at = text.indexOf(place)
  const pieces = [Buffer.from(text.slice(0, at))]
  for (let from = 0; from < bytes.length; from += PIECE_BYTES) {
    pieces.push(Buffer.from(bytes.toString('base64', from, from + PIECE_BYTES), 'latin1'))
  }
  pieces.push(Buffer.from(text.slice(at + place.length)))
  return piecesToBody(
    pieces,
    pieces.reduce((sum, piece) => sum + piece.length, 0),
  )
}

const PLAIN = 'text/plain; charset=utf-8'
const MAX_WORDS_CHARACTERS = 2_000

/** `prompt` is what stands before the sound (data-plane.md 11.1); none of it is an order. */
const instructionOf = (language: string | undefined, before: string | undefined): string =>
  [
    'Transcribe this audio word for word. Write down only what is said, in the language in which it is said, and nothing else.',
    ...(language === undefined || language === '' ? [] : [`The language is ${JSON.stringify(language.slice(0, 20))}.`]),
    ...(before === undefined || before === ''
      ? []
      : [`It goes on where this ends: ${JSON.stringify(before.slice(-MAX_WORDS_CHARACTERS))}`]),
  ].join(' ')

const textIn = (told: unknown): string =>
  readTold(told)
    .pieces.map((piece) => (piece.kind === 'text' ? piece.text : ''))
    .join('')
    .trim()

const toEvent = (value: object): string => `data: ${JSON.stringify(value)}\n\n`

/** The events of data-plane.md 11.5. What a model thinks beside it is no part of what was said. */
const transcriptTranslator = (durationMs: number): Translator => {
  let text = ''
  return {
    event(chunk) {
      let out = ''
      for (const piece of readTold(chunk).pieces) {
        // A model begins with a space or a line break now and then; nobody said it.
        const delta = piece.kind !== 'text' ? '' : text === '' ? piece.text.trimStart() : piece.text
        text += delta
        if (delta !== '') out += toEvent({ type: 'transcript.text.delta', delta })
      }
      return out
    },
    ping: () => ': ping\n\n',
    end: () => `${toEvent({ type: 'transcript.text.done', text, usage: toUsage(durationMs) })}data: [DONE]\n\n`,
    failed: (refusal) => `${toEvent(speak(refusal).body)}data: [DONE]\n\n`,
  }
}
