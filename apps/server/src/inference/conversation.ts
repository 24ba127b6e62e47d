import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Body, Span } from './body.ts'
import { type Cursor, foldCase, read } from './scan.ts'

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
    else cursor.array((place) => readTurn(cursor, notes, place))
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

/** Takes what should be an object. */
const objectAt = (cursor: Cursor, notes: Notes, field: () => string, member: (key: string) => void): void => {
  if (cursor.peek() === OPEN_BRACE) {
    cursor.object(member)
    return
  }
  invalid(notes, field(), 'expected an object')
  cursor.skip()
}

/** A field that counts may come once: of two, parsers differ in which they believe. */
const onlyOnce = (notes: Notes, before: unknown, field: () => string, key: string): void => {
  if (before !== undefined) invalid(notes, `${field()}.${key}`, 'it comes twice')
}

const OF_TURN: ReadonlySet<string> = new Set(['role', 'content', 'tool_calls'])
const OF_PART: ReadonlySet<string> = new Set(['type', 'image_url', 'input_audio'])
const OF_IMAGE: ReadonlySet<string> = new Set(['url'])
const OF_SOUND: ReadonlySet<string> = new Set(['data', 'format'])

/** What we look at under its own name must not count under another: engines written in Go match keys without regard to case. */
const noTwin = (notes: Notes, known: ReadonlySet<string>, field: () => string, key: string): void => {
  if (known.has(key) || !known.has(foldCase(key))) return
  invalid(notes, `${field()}.${foldCase(key)}`, `the key ${JSON.stringify(key)} must be written "${foldCase(key)}"`)
}

const readTurn = (cursor: Cursor, notes: Notes, turn: number): void => {
  const field = (): string => `messages[${turn}]`
  let role: { readonly span: Span; readonly text: string | undefined } | undefined
  let content: number | undefined // its first byte
  let callsTools = false
  let foreign: number | undefined // the first part that only a user may send; whose it is may stand behind it
  objectAt(cursor, notes, field, (key) => {
    if (key === 'role') {
      onlyOnce(notes, role, field, key)
      role = cursor.word()
    } else if (key === 'content') {
      onlyOnce(notes, content, field, key)
      content = cursor.peek()
      if (content === OPEN_BRACKET) {
        cursor.array((place) => {
          if (readPart(cursor, notes, turn, place) !== 'text') foreign ??= place
        })
        return
      }
      if (content !== QUOTE && content !== OF_NULL) invalid(notes, `${field()}.content`, 'expected a string or an array of parts')
      cursor.skip()
    } else if (key === 'tool_calls' && cursor.peek() === OPEN_BRACKET) {
      cursor.array(() => {
        callsTools = true
        cursor.skip()
      })
    } else {
      noTwin(notes, OF_TURN, field, key)
      cursor.skip()
    }
  })
  if (role?.text === undefined || !ROLES.has(role.text)) {
    return invalid(notes, `${field()}.role`, 'expected a message with the role system, developer, user, assistant or tool')
  }
  if (foreign !== undefined && role.text !== 'user') invalid(notes, `${field()}.content[${foreign}].type`, 'expected a part of type text')
  if (notes.turns.length === MAX_TURNS) invalid(notes, 'messages', `expected at most ${MAX_TURNS} messages`)
  else notes.turns.push({ role: role.text, roleSpan: role.span, callsTools })
}

/** Takes a part and says of which type it is. */
const readPart = (cursor: Cursor, notes: Notes, turn: number, place: number): string | undefined => {
  const field = (): string => `messages[${turn}].content[${place}]`
  const imageField = (): string => `${field()}.image_url`
  const soundField = (): string => `${field()}.input_audio`
  let type: { readonly text: string | undefined } | undefined
  let format: { readonly text: string | undefined } | undefined
  let image: Span | undefined
  let sound: Span | undefined
  let images = 0
  let sounds = 0
  const text = (): Span => {
    const isText = cursor.peek() === QUOTE
    const span = cursor.skip()
    return isText ? span : NOWHERE
  }
  objectAt(cursor, notes, field, (key) => {
    if (key === 'type') {
      onlyOnce(notes, type, field, key)
      type = cursor.word()
    } else if (key === 'image_url') {
      images += 1
      objectAt(cursor, notes, imageField, (inner) => {
        if (inner !== 'url') {
          noTwin(notes, OF_IMAGE, imageField, inner)
          return void cursor.skip()
        }
        onlyOnce(notes, image, imageField, inner)
        image = text()
      })
    } else if (key === 'input_audio') {
      sounds += 1
      objectAt(cursor, notes, soundField, (inner) => {
        if (inner === 'data') {
          onlyOnce(notes, sound, soundField, inner)
          sound = text()
        } else if (inner === 'format') {
          onlyOnce(notes, format, soundField, inner)
          format = cursor.word()
        } else {
          noTwin(notes, OF_SOUND, soundField, inner)
          cursor.skip()
        }
      })
    } else {
      noTwin(notes, OF_PART, field, key)
      cursor.skip()
    }
  })
  if (images > 1) invalid(notes, imageField(), 'it comes twice')
  if (sounds > 1) invalid(notes, soundField(), 'it comes twice')
  notes.parts += 1
  const named = type?.text
  if (notes.parts > MAX_PARTS) invalid(notes, 'messages', `expected at most ${MAX_PARTS} parts`)
  else if (named === 'image_url') {
    if (image === undefined || isEmpty(image)) invalid(notes, `${imageField()}.url`, 'expected a string')
    else notes.images.push({ field: imageField(), span: image })
  } else if (named === 'input_audio') {
    if (sound === undefined || isEmpty(sound)) invalid(notes, `${soundField()}.data`, 'expected a string')
    else if (format?.text !== 'wav' && format?.text !== 'mp3') invalid(notes, `${soundField()}.format`, 'expected "mp3" or "wav"')
    else notes.sounds.push({ field: soundField(), span: sound, format: format.text })
  } else if (named !== 'text') invalid(notes, `${field()}.type`, 'expected a part of type text, image_url or input_audio')
  return named
}

const NOWHERE: Span = { start: 0, end: 0 }
const QUOTES_BYTES = 2
const isEmpty = (text: Span): boolean => text.end - text.start <= QUOTES_BYTES
