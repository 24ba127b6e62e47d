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

const NAME = /^(\d{12})\.v1\.journal$/
const OPEN_BRACE = 0x7b

export const segmentName = (number: number): string => `${String(number).padStart(12, '0')}.v1.journal`

/** The segments of a directory, oldest first. Other files are not ours to judge. */
export const listSegments = async (directory: string): Promise<{ number: number; path: string }[]> => {
  const names = (await readdir(directory)).filter((name) => NAME.test(name)).toSorted()
  return names.map((name) => ({ number: Number(name.slice(0, 12)), path: join(directory, name) }))
}

export const frame = (payload: string): Buffer => {
  const length = Buffer.byteLength(payload)
  if (length > MAX_PAYLOAD_BYTES)
    throw new Error(`A usage event of ${length} bytes is larger than the ${MAX_PAYLOAD_BYTES} that the journal takes.`)
  const record = Buffer.allocUnsafe(PREFIX_BYTES + length)
  record.writeUInt32LE(length, 0)
  record.write(payload, PREFIX_BYTES)
  record.writeUInt32LE(sum(record, 0, length), 4)
  return record
}

const lengthBytes = Buffer.alloc(4)

const sum = (bytes: Buffer, at: number, length: number): number => {
  lengthBytes.writeUInt32LE(length)
  return crc32(bytes.subarray(at + PREFIX_BYTES, at + PREFIX_BYTES + length), crc32(lengthBytes))
}

/** Length of the payload of the intact record that begins at `at`, or -1. */
const payloadLength = (bytes: Buffer, at: number): number => {
  if (at + PREFIX_BYTES > bytes.length) return -1
  const length = bytes.readUInt32LE(at)
  // An empty payload is never written.
  if (length === 0 || length > MAX_PAYLOAD_BYTES || at + PREFIX_BYTES + length > bytes.length) return -1
  return sum(bytes, at, length) === bytes.readUInt32LE(at + 4) ? length : -1
}

/** The records from `start` up to the first byte that does not belong to an intact one; `end` is that byte. */
export const readIntact = (bytes: Buffer, start: number): { payloads: string[]; end: number } => {
  const payloads: string[] = []
  let at = start
  for (let length = payloadLength(bytes, at); length >= 0; length = payloadLength(bytes, at)) {
    payloads.push(bytes.toString('utf8', at + PREFIX_BYTES, at + PREFIX_BYTES + length))
    at += PREFIX_BYTES + length
  }
  return { payloads, end: at }
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
