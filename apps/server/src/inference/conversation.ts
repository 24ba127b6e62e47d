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
  const walked = read(body, messages.start, readTurns, notes)
  if (!walked.ok) return no({ code: 'body_not_json', reason: walked.refusal })
  if (notes.wrong === undefined && notes.turns.length === 0) invalid(notes, 'messages', 'expected at least one message')
  return notes.wrong === undefined ? yes(notes) : no(notes.wrong)
}

type Notes = {
  turns: Turn[]
  readonly images: Pointer[]
  readonly sounds: (Pointer & { format: 'wav' | 'mp3' })[]
  parts: number
  wrong: Refusal | undefined
}

const invalid = (notes: Notes, field: string, reason: string): void => {
  notes.wrong ??= { code: 'field_invalid', field, reason }
}

const OF_TURN: ReadonlySet<string> = new Set(['role', 'content', 'tool_calls'])
const OF_PART: ReadonlySet<string> = new Set(['type', 'image_url', 'input_audio'])
const OF_IMAGE: ReadonlySet<string> = new Set(['url'])
const OF_SOUND: ReadonlySet<string> = new Set(['data', 'format'])

/** What we look at under its own name must not count under another: engines written in Go match keys without regard to case. */
const isTwin = (known: ReadonlySet<string>, key: string): boolean => !known.has(key) && known.has(foldCase(key))

const twin = (notes: Notes, field: string, key: string): void =>
  invalid(notes, `${field}.${foldCase(key)}`, `the key ${JSON.stringify(key)} must be written "${foldCase(key)}"`)

/** A field that counts may come once: of two, parsers differ in which they believe. */
const twice = (notes: Notes, field: string): void => invalid(notes, field, 'it comes twice')

const turnField = (turn: number): string => `messages[${turn}]`
const partField = (turn: number, place: number): string => `messages[${turn}].content[${place}]`

const readTurns = (cursor: Cursor, notes: Notes): void => {
  if (cursor.peek() !== OPEN_BRACKET) return invalid(notes, 'messages', 'expected an array')
  for (let turn = 0; cursor.element(turn); turn += 1) readTurn(cursor, notes, turn)
}

const readTurn = (cursor: Cursor, notes: Notes, turn: number): void => {
  if (cursor.peek() !== OPEN_BRACE) {
    cursor.skip()
    return invalid(notes, turnField(turn), 'expected an object')
  }
  let role: string | undefined
  let roleSpan: Span | undefined
  let content: number | undefined // its first byte
  let callsTools = false
  let foreign: number | undefined // the first part that only a user may send; whose it is may stand behind it
  for (let member = 0; cursor.member(member); member += 1) {
    const { key } = cursor
    if (key === 'role') {
      if (roleSpan !== undefined) twice(notes, `${turnField(turn)}.role`)
      role = cursor.word()
      roleSpan = cursor.wordSpan()
    } else if (key === 'content') {
      if (content !== undefined) twice(notes, `${turnField(turn)}.content`)
      content = cursor.peek()
      if (content === OPEN_BRACKET) {
        for (let place = 0; cursor.element(place); place += 1) {
          if (readPart(cursor, notes, turn, place) !== 'text') foreign ??= place
        }
        continue
      }
      if (content !== QUOTE && content !== OF_NULL) {
        invalid(notes, `${turnField(turn)}.content`, 'expected a string or an array of parts')
      }
      cursor.skip()
    } else if (key === 'tool_calls' && cursor.peek() === OPEN_BRACKET) {
      for (let call = 0; cursor.element(call); call += 1) {
        callsTools = true
        cursor.skip()
      }
    } else {
      if (isTwin(OF_TURN, key)) twin(notes, turnField(turn), key)
      cursor.skip()
    }
  }
  if (role === undefined || roleSpan === undefined || !ROLES.has(role)) {
    return invalid(notes, `${turnField(turn)}.role`, 'expected a message with the role system, developer, user, assistant or tool')
  }
  if (foreign !== undefined && role !== 'user') invalid(notes, `${partField(turn, foreign)}.type`, 'expected a part of type text')
  if (notes.turns.length === MAX_TURNS) return invalid(notes, 'messages', `expected at most ${MAX_TURNS} messages`)
  const told = { role, roleSpan, callsTools }
  // Most requests have one, and what is pushed to an empty array makes room for 17.
  if (notes.turns.length === 0) notes.turns = [told]
  else notes.turns.push(told)
}

/** Takes a part and says of which type it is. */
const readPart = (cursor: Cursor, notes: Notes, turn: number, place: number): string | undefined => {
  if (!isObject(cursor, notes, partField, turn, place)) return undefined
  let type: string | undefined
  let format: string | undefined
  let image: Span | undefined
  let sound: Span | undefined
  let types = 0
  let formats = 0
  let images = 0
  let sounds = 0
  for (let member = 0; cursor.member(member); member += 1) {
    const { key } = cursor
    if (key === 'type') {
      types += 1
      if (types > 1) twice(notes, `${partField(turn, place)}.type`)
      type = cursor.word()
    } else if (key === 'image_url') {
      images += 1
      if (!isObject(cursor, notes, imageField, turn, place)) continue
      for (let inner = 0; cursor.member(inner); inner += 1) {
        if (cursor.key === 'url') {
          if (image !== undefined) twice(notes, `${imageField(turn, place)}.url`)
          image = takeText(cursor)
        } else {
          if (isTwin(OF_IMAGE, cursor.key)) twin(notes, imageField(turn, place), cursor.key)
          cursor.skip()
        }
      }
    } else if (key === 'input_audio') {
      sounds += 1
      if (!isObject(cursor, notes, soundField, turn, place)) continue
      for (let inner = 0; cursor.member(inner); inner += 1) {
        if (cursor.key === 'data') {
          if (sound !== undefined) twice(notes, `${soundField(turn, place)}.data`)
          sound = takeText(cursor)
        } else if (cursor.key === 'format') {
          formats += 1
          if (formats > 1) twice(notes, `${soundField(turn, place)}.format`)
          format = cursor.word()
        } else {
          if (isTwin(OF_SOUND, cursor.key)) twin(notes, soundField(turn, place), cursor.key)
          cursor.skip()
        }
      }
    } else {
      if (isTwin(OF_PART, key)) twin(notes, partField(turn, place), key)
      cursor.skip()
    }
  }
  if (images > 1) twice(notes, imageField(turn, place))
  if (sounds > 1) twice(notes, soundField(turn, place))
  notes.parts += 1
  if (notes.parts > MAX_PARTS) invalid(notes, 'messages', `expected at most ${MAX_PARTS} parts`)
  else if (type === 'image_url') {
    if (image === undefined || isEmpty(image)) invalid(notes, `${imageField(turn, place)}.url`, 'expected a string')
    else notes.images.push({ field: imageField(turn, place), span: image })
  } else if (type === 'input_audio') {
    if (sound === undefined || isEmpty(sound)) invalid(notes, `${soundField(turn, place)}.data`, 'expected a string')
    else if (format !== 'wav' && format !== 'mp3') invalid(notes, `${soundField(turn, place)}.format`, 'expected "mp3" or "wav"')
    else notes.sounds.push({ field: soundField(turn, place), span: sound, format })
  } else if (type !== 'text') invalid(notes, `${partField(turn, place)}.type`, 'expected a part of type text, image_url or input_audio')
  return type
}

const imageField = (turn: number, place: number): string => `${partField(turn, place)}.image_url`
const soundField = (turn: number, place: number): string => `${partField(turn, place)}.input_audio`

/** Takes what is none. */
const isObject = (cursor: Cursor, notes: Notes, field: typeof partField, turn: number, place: number): boolean => {
  if (cursor.peek() === OPEN_BRACE) return true
  cursor.skip()
  invalid(notes, field(turn, place), 'expected an object')
  return false
}

/** Nowhere: it was no string. */
const takeText = (cursor: Cursor): Span => {
  const isText = cursor.peek() === QUOTE
  const span = cursor.take()
  return isText ? span : NOWHERE
}

const NOWHERE: Span = { start: 0, end: 0 }
const QUOTES_BYTES = 2
const isEmpty = (text: Span): boolean => text.end - text.start <= QUOTES_BYTES
