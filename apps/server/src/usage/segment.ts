import { open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'

/**
 * How records lie in a segment file: length (4 bytes, little-endian), CRC-32 (4 bytes) of length and payload, payload
 * (JSON). Nothing else: a file without a header has no byte whose loss would cost all the others. The sum covers the length
 * as well, so zeros are not a record.
 */
const PREFIX_BYTES = 8
/** An event is half a kilobyte. More than this is a mistake, and while reading, a sign of damage. */
export const MAX_PAYLOAD_BYTES = 64 * 1024
/** Of one of the units of which JavaScript counts a text's length. */
const UTF8_MOST_BYTES = 3

const NAME = /^(\d{12})\.v1\.journal$/
const OPEN_BRACE = 0x7b
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const COMMA = 0x2c
const BLANK = 0x20

export const segmentName = (number: number): string => `${String(number).padStart(12, '0')}.v1.journal`

/** The segments of a directory, oldest first. Other files are not ours to judge. */
export const listSegments = async (directory: string): Promise<{ number: number; path: string }[]> => {
  const names = (await readdir(directory)).filter((name) => NAME.test(name)).toSorted()
  return names.map((name) => ({ number: Number(name.slice(0, 12)), path: join(directory, name) }))
}

/** Records one behind the other, in memory that is used again. */
export type Records = { bytes: Buffer; length: number }

const RECORDS_BYTES = 64 * 1024
/** Memory that a burst has made larger than that is let go. */
const KEPT_BYTES = 512 * 1024

export const noRecords = (): Records => ({ bytes: Buffer.allocUnsafeSlow(RECORDS_BYTES), length: 0 })

export const clearRecords = (records: Records): void => {
  records.length = 0
  if (records.bytes.length > KEPT_BYTES) records.bytes = Buffer.allocUnsafeSlow(RECORDS_BYTES)
}

const makeRoom = (records: Records, most: number): void => {
  if (records.length + most <= records.bytes.length) return
  const larger = Buffer.allocUnsafeSlow(Math.max(2 * records.bytes.length, records.length + most))
  records.bytes.copy(larger, 0, 0, records.length)
  records.bytes = larger
}

const NO_MORE = Buffer.alloc(0)

/**
 * Adds an object's JSON; `more`, where it is given, takes the place of its last brace. What is too large throws, and leaves the records as they were. Room is
 * made for the most that the text can be: to measure it first, V8 would make a flat copy of it.
 */
export const addRecord = (records: Records, json: string, more: Buffer = NO_MORE): void => {
  if (json.length > MAX_PAYLOAD_BYTES) throw tooLarge()
  makeRoom(records, PREFIX_BYTES + UTF8_MOST_BYTES * json.length + more.length)
  const { bytes, length: at } = records
  const start = at + PREFIX_BYTES
  const written = bytes.write(json, start)
  const length = more.length === 0 ? written : written - 1 + more.copy(bytes, start + written - 1)
  if (length > MAX_PAYLOAD_BYTES) throw tooLarge()
  bytes.writeUInt32LE(length, at)
  bytes.writeUInt32LE(sum(bytes, at, length), at + 4)
  records.length = at + PREFIX_BYTES + length
}

const tooLarge = (): Error => new Error(`A usage event is larger than the ${MAX_PAYLOAD_BYTES} bytes that the journal takes.`)

/** A record by itself. */
export const frame = (json: string): Buffer => {
  const records = noRecords()
  addRecord(records, json)
  return records.bytes.subarray(0, records.length)
}

const CRC_32 = 0xedb88320

/** The CRC-32 of a length's four bytes, bit by bit: a call to zlib for four bytes takes as long as one for an event. */
const sumOfLength = (length: number): number => {
  let rest = ~length
  for (let bit = 0; bit < 32; bit += 1) rest = (rest & 1) === 0 ? rest >>> 1 : (rest >>> 1) ^ CRC_32
  return ~rest >>> 0
}

const sum = (bytes: Buffer, at: number, length: number): number =>
  crc32(bytes.subarray(at + PREFIX_BYTES, at + PREFIX_BYTES + length), sumOfLength(length))

/** Length of the payload of the intact record that begins at `at`, or -1. */
const payloadLength = (bytes: Buffer, at: number): number => {
  if (at + PREFIX_BYTES > bytes.length) return -1
  const length = bytes.readUInt32LE(at)
  // An empty payload is never written.
  if (length === 0 || length > MAX_PAYLOAD_BYTES || at + PREFIX_BYTES + length > bytes.length) return -1
  return sum(bytes, at, length) === bytes.readUInt32LE(at + 4) ? length : -1
}

/** Where intact records begin, one right behind the other, and where the last one ends. */
export type Found = { readonly starts: readonly number[]; readonly end: number }

/** The records from `start` up to the first byte that does not belong to an intact one. */
export const findRecords = (bytes: Buffer, start: number): Found => {
  const starts: number[] = []
  let at = start
  for (let length = payloadLength(bytes, at); length >= 0; length = payloadLength(bytes, at)) {
    starts.push(at)
    at += PREFIX_BYTES + length
  }
  return { starts, end: at }
}

export const payloadsOf = (bytes: Buffer, { starts, end }: Found): string[] =>
  starts.map((start, index) => bytes.toString('utf8', start + PREFIX_BYTES, starts[index + 1] ?? end))

/**
 * The payloads as one JSON array, made where they lie: a bracket or a comma, and blanks, take the place of the eight bytes before each, and a bracket that of
 * the byte behind the last. A text of each, joined, measured and copied, is two kilobytes of garbage for an event.
 */
export const toJsonArray = (bytes: Buffer, { starts, end }: Found): Buffer => {
  for (const start of starts) {
    bytes[start] = COMMA
    for (let at = start + 1; at < start + PREFIX_BYTES; at += 1) bytes[at] = BLANK
  }
  const first = starts[0] ?? end
  bytes[first] = OPEN_BRACKET
  bytes[end] = CLOSE_BRACKET
  return bytes.subarray(first, end + 1)
}

/** The records from `start` up to the first byte that does not belong to an intact one; `end` is that byte. */
export const readIntact = (bytes: Buffer, start: number): { payloads: string[]; end: number } => {
  const found = findRecords(bytes, start)
  return { payloads: payloadsOf(bytes, found), end: found.end }
}

/** Where the next intact record begins behind a damaged place, or -1. A look at the brace comes before the sum. */
export const findIntact = (bytes: Buffer, start: number): number => {
  for (let brace = bytes.indexOf(OPEN_BRACE, start + PREFIX_BYTES); brace >= 0; brace = bytes.indexOf(OPEN_BRACE, brace + 1)) {
    if (payloadLength(bytes, brace - PREFIX_BYTES) >= 0) return brace - PREFIX_BYTES
  }
  return -1
}

/** New and deleted names in a directory are on disk only when the directory itself is. */
export const syncDirectory = async (directory: string): Promise<void> => {
  const handle = await open(directory, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
