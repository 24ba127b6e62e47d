import type { RecordedEvent, Stamp, UsageEvent } from './event.ts'

/** A field's name as it stands before its value: `,"status":`. */
const before = (name: keyof RecordedEvent): Buffer => Buffer.from((name === 'id' ? '{' : ',') + JSON.stringify(name) + ':')

const ID = before('id')
const ORGANIZATION_ID = before('organizationId')
const PROJECT_ID = before('projectId')
const PRINCIPAL_ID = before('principalId')
const ACCESS_KEY = before('accessKey')
const MODEL_ASKED = before('modelAsked')
const MODEL = before('model')
const PRICE_ID = before('priceId')
const POOL_ID = before('poolId')
const REPLICA = before('replica')
const ENDPOINT = before('endpoint')
const MODE = before('mode')
const STATUS = before('status')
const ENDED = before('ended')
const COUNTED = before('counted')
const ACCEPTED_AT = before('acceptedAt')
const FIRST_BYTE_AT = before('firstByteAt')
const ENDED_AT = before('endedAt')
const INPUT = before('input')
const CACHED_INPUT = before('cachedInput')
const OUTPUT = before('output')
const REASONING = before('reasoning')
const AUDIO_INPUT = before('audioInput')
const AUDIO_MS = before('audioMs')
const IMAGES = before('images')
const PAGES = before('pages')
const GATEWAY = before('gateway')
const CHARGED = before('charged')
const TRUE = Buffer.from('true}')
const FALSE = Buffer.from('false}')

const QUOTE = 0x22
const BACKSLASH = 0x5c
const ZERO = 0x30
const MILLION = 1_000_000

const put = (bytes: Buffer, from: number, made: Uint8Array): number => {
  const { length } = made
  for (let index = 0; index < length; index += 1) bytes[from + index] = made[index] as number
  return from + length
}

const putText = (bytes: Buffer, from: number, name: Uint8Array, text: string): number => {
  const start = put(bytes, from, name) + 1
  const { length } = text
  for (let index = 0; index < length; index += 1) {
    const code = text.charCodeAt(index)
    // What JSON escapes, or is more than one byte: nearly never, and not ours to do again.
    if (code > 0x7e || PLAIN[code] === 0) return start - 1 + bytes.write(JSON.stringify(text), start - 1)
    bytes[start + index] = code
  }
  bytes[start - 1] = QUOTE
  bytes[start + length] = QUOTE
  return start + length + 1
}

const PLAIN = Uint8Array.from({ length: 127 }, (_, code) => (code < 0x20 || code === QUOTE || code === BACKSLASH ? 0 : 1))

const putDigits = (bytes: Buffer, from: number, value: number, least: number): number => {
  let length = least
  for (let bound = 10 ** least; bound <= value; bound *= 10) length += 1
  let rest = value
  for (let at = from + length - 1; at >= from; at -= 1) {
    const tenth = Math.floor(rest / 10)
    bytes[at] = ZERO + rest - tenth * 10
    rest = tenth
  }
  return from + length
}

const putNumber = (bytes: Buffer, from: number, name: Uint8Array, value: number | null): number => {
  let at = put(bytes, from, name)
  if (value === null || !Number.isSafeInteger(value) || value < 0) return at + bytes.write(JSON.stringify(value), at)
  // Most are small, and an instant is two of them: whole numbers of 32 bits are divided ten times as fast as others.
  if (value < MILLION) return putDigits(bytes, at, value, 1)
  at = putDigits(bytes, at, Math.floor(value / MILLION), 1)
  return putDigits(bytes, at, value % MILLION, 6)
}

/** Names, numbers, quotes and commas, with room to spare. */
const FRAME_BYTES = 1_024
/** A character of a text is never longer than that, whatever it is escaped to: `\u0000`. */
const CHARACTER_BYTES = 6

/** What an event needs at most. */
export const mostBytesOf = (event: UsageEvent, { gateway }: Stamp): number =>
  FRAME_BYTES +
  CHARACTER_BYTES *
    (event.id.length +
      event.organizationId.length +
      event.projectId.length +
      event.principalId.length +
      event.accessKey.length +
      event.modelAsked.length +
      event.model.length +
      event.priceId.length +
      event.poolId.length +
      event.replica.length +
      event.endpoint.length +
      event.mode.length +
      event.ended.length +
      event.counted.length +
      gateway.length)

/**
 * Writes the event as `JSON.stringify` would write it with its stamp, and says where it ends. There must be room for `mostBytesOf` it. Byte by byte it takes two
 * thirds of the time of a text that is made and copied, and makes no garbage, where that made two kilobytes: a thirtieth of a request's.
 */
export const writeEvent = (bytes: Buffer, from: number, event: UsageEvent, { gateway, charged }: Stamp): number => {
  let at = putText(bytes, from, ID, event.id)
  at = putText(bytes, at, ORGANIZATION_ID, event.organizationId)
  at = putText(bytes, at, PROJECT_ID, event.projectId)
  at = putText(bytes, at, PRINCIPAL_ID, event.principalId)
  at = putText(bytes, at, ACCESS_KEY, event.accessKey)
  at = putText(bytes, at, MODEL_ASKED, event.modelAsked)
  at = putText(bytes, at, MODEL, event.model)
  at = putText(bytes, at, PRICE_ID, event.priceId)
  at = putText(bytes, at, POOL_ID, event.poolId)
  at = putText(bytes, at, REPLICA, event.replica)
  at = putText(bytes, at, ENDPOINT, event.endpoint)
  at = putText(bytes, at, MODE, event.mode)
  at = putNumber(bytes, at, STATUS, event.status)
  at = putText(bytes, at, ENDED, event.ended)
  at = putText(bytes, at, COUNTED, event.counted)
  at = putNumber(bytes, at, ACCEPTED_AT, event.acceptedAt)
  at = putNumber(bytes, at, FIRST_BYTE_AT, event.firstByteAt)
  at = putNumber(bytes, at, ENDED_AT, event.endedAt)
  at = putNumber(bytes, at, INPUT, event.input)
  at = putNumber(bytes, at, CACHED_INPUT, event.cachedInput)
  at = putNumber(bytes, at, OUTPUT, event.output)
  at = putNumber(bytes, at, REASONING, event.reasoning)
  at = putNumber(bytes, at, AUDIO_INPUT, event.audioInput)
  at = putNumber(bytes, at, AUDIO_MS, event.audioMs)
  at = putNumber(bytes, at, IMAGES, event.images)
  at = putNumber(bytes, at, PAGES, event.pages)
  at = putText(bytes, at, GATEWAY, gateway)
  at = put(bytes, at, CHARGED)
  return put(bytes, at, charged ? TRUE : FALSE)
}
