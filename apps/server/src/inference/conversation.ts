import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Body, Span } from './body.ts'
import { type Cursor, read } from './scan.ts'

/** A JSON string in a request, with the name of the field that it stands in. */
export type Pointer = { readonly field: string; readonly span: Span }

export type Turn = { readonly role: string; readonly roleSpan: Span; readonly callsTools: boolean }

/** The messages of a request as far as we act on them, and where in the body that stands. */
export type Conversation = {
  readonly turns: readonly Turn[]
  readonly images: readonly Pointer[]
  readonly sounds: readonly (Pointer & { readonly format: 'wav' | 'mp3' })[]
}

const ROLES: ReadonlySet<string> = new Set(['system', 'developer', 'user', 'assistant', 'tool'])
/** More than any context holds; each costs us work that cannot be interrupted. */
const MAX_TURNS = 20_000
const MAX_PARTS = 20_000

const QUOTE = 0x22
const OPEN_BRACE = 0x7b
const OPEN_BRACKET = 0x5b
const OF_NULL = 0x6e

/**
 * Walks over the messages without parsing them. Whatever an engine would act on beyond text is found here or refused, however large the
 * body is: some engines fetch what a part of any type points at.
 */
export const readConversation = (body: Body, messages: Span): Outcome<Conversation> => {
  const notes: Notes = { turns: [], images: [], sounds: [], parts: 0, wrong: undefined }
  const walked = read(body, messages.start, (cursor) => {
    if (cursor.peek() !== OPEN_BRACKET) invalid(notes, 'messages', 'expected an array')
    else cursor.array((place) => readTurn(cursor, notes, `messages[${place}]`))
  })
  if (!walked.ok) return no({ code: 'body_not_json', reason: walked.refusal })
  if (notes.wrong === undefined && notes.turns.length === 0) invalid(notes, 'messages', 'expected at least one message')
  return notes.wrong === undefined ? yes(notes) : no(notes.wrong)
}

type Notes = {
  readonly turns: Turn[]
  readonly images: Pointer[]
  readonly sounds: (Pointer & { format: 'wav' | 'mp3' })[]
  parts: number
  wrong: Refusal | undefined
}

const invalid = (notes: Notes, field: string, reason: string): void => {
  notes.wrong ??= { code: 'field_invalid', field, reason }
}

/** Takes an object, and of it the fields that count. Each may come once: of two, parsers differ in which they believe. */
const fieldsOf = (cursor: Cursor, notes: Notes, field: string, each: Readonly<Record<string, () => void>>): void => {
  if (cursor.peek() !== OPEN_BRACE) {
    invalid(notes, field, 'expected an object')
    cursor.skip()
    return
  }
  let seen = ' '
  cursor.object((key) => {
    const take = Object.hasOwn(each, key) ? each[key] : undefined
    if (take === undefined) return void cursor.skip()
    if (seen.includes(` ${key} `)) invalid(notes, `${field}.${key}`, 'it comes twice')
    seen += `${key} `
    take()
  })
}

const readTurn = (cursor: Cursor, notes: Notes, field: string): void => {
  let role: string | undefined
  let roleSpan: Span = { start: 0, end: 0 }
  let callsTools = false
  let foreign: string | undefined // the first part that only a user may send; whose it is may stand behind it
  fieldsOf(cursor, notes, field, {
    role() {
      const word = cursor.word()
      role = word.text
      roleSpan = word.span
    },
    content() {
      const first = cursor.peek()
      if (first !== OPEN_BRACKET) {
        if (first !== QUOTE && first !== OF_NULL) invalid(notes, `${field}.content`, 'expected a string or an array of parts')
        cursor.skip()
        return
      }
      cursor.array((place) => {
        if (readPart(cursor, notes, `${field}.content[${place}]`) !== 'text') foreign ??= `${field}.content[${place}].type`
      })
    },
    tool_calls() {
      if (cursor.peek() !== OPEN_BRACKET) return void cursor.skip()
      cursor.array(() => {
        callsTools = true
        cursor.skip()
      })
    },
  })
  if (role === undefined || !ROLES.has(role)) {
    return invalid(notes, `${field}.role`, 'expected a message with the role system, developer, user, assistant or tool')
  }
  if (foreign !== undefined && role !== 'user') invalid(notes, foreign, 'expected a part of type text')
  if (notes.turns.length === MAX_TURNS) invalid(notes, 'messages', `expected at most ${MAX_TURNS} messages`)
  else notes.turns.push({ role, roleSpan, callsTools })
}

/** Takes a part and says of which type it is. */
const readPart = (cursor: Cursor, notes: Notes, field: string): string | undefined => {
  let type: string | undefined
  let image: Span | undefined
  let sound: Span | undefined
  let format: string | undefined
  const text = (): Span | undefined => {
    const isText = cursor.peek() === QUOTE
    const span = cursor.skip()
    return isText && span.end - span.start > 2 ? span : undefined
  }
  fieldsOf(cursor, notes, field, {
    type() {
      type = cursor.word().text
    },
    image_url: () =>
      fieldsOf(cursor, notes, `${field}.image_url`, {
        url() {
          image = text()
        },
      }),
    input_audio: () =>
      fieldsOf(cursor, notes, `${field}.input_audio`, {
        data() {
          sound = text()
        },
        format() {
          format = cursor.word().text
        },
      }),
  })
  notes.parts += 1
  if (notes.parts > MAX_PARTS) invalid(notes, 'messages', `expected at most ${MAX_PARTS} parts`)
  else if (type === 'image_url') {
    if (image === undefined) invalid(notes, `${field}.image_url.url`, 'expected a string')
    else notes.images.push({ field: `${field}.image_url`, span: image })
  } else if (type === 'input_audio') {
    if (sound === undefined) invalid(notes, `${field}.input_audio.data`, 'expected a string')
    else if (format !== 'wav' && format !== 'mp3') invalid(notes, `${field}.input_audio.format`, 'expected "mp3" or "wav"')
    else notes.sounds.push({ field: `${field}.input_audio`, span: sound, format })
  } else if (type !== 'text') invalid(notes, `${field}.type`, 'expected a part of type text, image_url or input_audio')
  return type
}
