import { addPiece, type PartialBody } from './body.ts'

/** An engine that never ends an event must not fill our memory. With 20 log probabilities a token an event has some kilobytes. */
export const MAX_EVENT_BYTES = 1 << 20

const LF = 0x0a
const CR = 0x0d
const SPACE = 0x20
const QUOTE = 0x22
const COLON = 0x3a
const BACKSLASH = 0x5c

/** Where the event that begins at `from` ends, its blank line included; -1 while it has none. Lines may end in LF or CRLF. */
export const endOfEvent = (text: string, from: number): number => {
  for (let at = text.indexOf('\n', from); at >= 0; at = text.indexOf('\n', at + 1)) {
    const next = text.charCodeAt(at + 1)
    if (next === LF) return at + 2
    if (next === CR && text.charCodeAt(at + 2) === LF) return at + 3
  }
  return -1
}

/**
 * The payload of an event, for who reads it as text: its `data` lines, joined. Undefined for a comment. Only LF and CRLF end a line; other
 * characters that look like it may stand in a JSON string.
 */
export const dataOf = (event: Buffer): string | undefined => {
  const lines = event.toString().split(/\r?\n/)
  const data = lines.filter((line) => line.startsWith('data:'))
  return data.length === 0
    ? undefined
    : data
        .map((line) => line.slice('data:'.length))
        .join('\n')
        .trim()
}

/**
 * Where a key stands in JSON text, with its quotes; -1 where it does not. It is given without the first of them: quotes are everywhere, and to
 * search for a word that begins with one takes several times as long (docs/decisions/2026-11-22-hot-path.md).
 */
export const keyAt = (text: string, from: number, key: `${string}"`): number => {
  for (let at = text.indexOf(key, from + 1); at >= 0; at = text.indexOf(key, at + 1)) if (text.charCodeAt(at - 1) === QUOTE) return at - 1
  return -1
}

/** Where the value behind a key begins, in the text of an event. */
export const valueAt = (text: string, behindKey: number): number => {
  let at = behindKey
  for (let seen = text.charCodeAt(at); seen === SPACE || seen === COLON; seen = text.charCodeAt(at)) at += 1
  return at
}

/** Behind the closing quote of the string that begins here; -1 where there is none. */
export const endOfString = (text: string, quote: number): number => {
  for (let at = text.indexOf('"', quote + 1); at >= 0; at = text.indexOf('"', at + 1)) {
    let slashes = 0
    while (text.charCodeAt(at - 1 - slashes) === BACKSLASH) slashes += 1
    if (slashes % 2 === 0) return at + 1
  }
  return -1
}

export type Splitter = {
  /**
   * Takes what was read and gives each event that is now whole, as the bytes that came. Half an event is no use to a client, so
   * it waits here for its blank line. False when the event in waiting has grown beyond what it may have.
   */
  push(chunk: Buffer, each: (event: Buffer) => void): boolean
  /** For who looks for events by itself: what has waited and what was read, as one; undefined while no event can end in it. */
  join(chunk: Buffer): Buffer | undefined
  /** And then keeps what came behind the last event. */
  keep(bytes: Buffer, from: number): void
  /** The event in waiting has grown beyond what it may have. */
  isTooLong(): boolean
  /** What came after the last blank line. */
  rest(): Buffer
}

const NOTHING: Buffer = Buffer.alloc(0)

/** Finds events by bytes: one may be cut anywhere, inside a character too, and several may come in one read. */
export const splitEvents = (maxBytes = MAX_EVENT_BYTES): Splitter => new EventSplitter(maxBytes)

class EventSplitter implements Splitter, PartialBody {
  readonly maxBytes: number
  pieces: Buffer[] | undefined
  bytes = 0
  small = 0
  smallBytes = 0
  open = false // the pending bytes end inside what could become a blank line

  constructor(maxBytes: number) {
    this.maxBytes = maxBytes
  }

  push(chunk: Buffer, each: (event: Buffer) => void): boolean {
    const bytes = this.join(chunk)
    if (bytes !== undefined) {
      const text = bytes.toString('latin1')
      let start = 0
      for (let end = endOfEvent(text, 0); end >= 0; end = endOfEvent(text, start)) {
        each(bytes.subarray(start, end))
        start = end
      }
      this.keep(bytes, start)
    }
    return !this.isTooLong()
  }

  join(chunk: Buffer): Buffer | undefined {
    if (this.pieces === undefined) return chunk
    // Joining only when an event can end: a long one in many pieces would otherwise be copied again for each of them.
    if (!this.open && !chunk.includes(LF)) {
      this.add(chunk)
      return undefined
    }
    const bytes = Buffer.concat([...this.pieces, chunk])
    this.pieces = undefined
    this.bytes = 0
    this.small = 0
    this.smallBytes = 0
    return bytes
  }

  keep(bytes: Buffer, from: number): void {
    if (from === bytes.length) return
    this.add(from === 0 ? bytes : bytes.subarray(from))
  }

  add(piece: Buffer): void {
    addPiece(this, piece)
    const last = piece[piece.length - 1]
    this.open = last === LF || last === CR
  }

  isTooLong(): boolean {
    return this.bytes > this.maxBytes
  }

  rest(): Buffer {
    return this.pieces === undefined ? NOTHING : Buffer.concat(this.pieces)
  }
}
