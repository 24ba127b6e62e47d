/** An engine that never ends an event must not fill our memory. With 20 log probabilities a token an event has some kilobytes. */
export const MAX_EVENT_BYTES = 1 << 20

const LF = 0x0a
const CR = 0x0d
const SPACE = 0x20
const COLON = 0x3a

/** Where the event that begins at `from` ends, its blank line included; -1 while it has none. Lines may end in LF or CRLF. */
export const endOfEvent = (bytes: Buffer, from: number): number => {
  for (let at = bytes.indexOf(LF, from); at >= 0; at = bytes.indexOf(LF, at + 1)) {
    if (bytes[at + 1] === LF) return at + 2
    if (bytes[at + 1] === CR && bytes[at + 2] === LF) return at + 3
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

/** Where the value behind a key begins, in the text of an event. */
export const valueAt = (text: string, behindKey: number): number => {
  let at = behindKey
  for (let seen = text.charCodeAt(at); seen === SPACE || seen === COLON; seen = text.charCodeAt(at)) at += 1
  return at
}

export type Splitter = {
  /**
   * Takes what was read and gives each event that is now whole, as the bytes that came. Half an event is no use to a client, so
   * it waits here for its blank line. False when the event in waiting has grown beyond what it may have.
   */
  push(chunk: Buffer, each: (event: Buffer) => void): boolean
  /** What came after the last blank line. */
  rest(): Buffer
}

const NOTHING: Buffer = Buffer.alloc(0)

/** Finds events by bytes: one may be cut anywhere, inside a character too, and several may come in one read. */
export const splitEvents = (maxBytes = MAX_EVENT_BYTES): Splitter => {
  let pieces: Buffer[] = []
  let pendingBytes = 0
  let open = false // the pending bytes end inside what could become a blank line

  const keep = (piece: Buffer): void => {
    pieces.push(piece)
    pendingBytes += piece.length
    const last = piece[piece.length - 1]
    open = last === LF || last === CR
  }

  return {
    push(chunk, each) {
      // Joining only when an event can end: a long one in many pieces would otherwise be copied again for each of them.
      if (pendingBytes > 0 && !open && !chunk.includes(LF)) {
        keep(chunk)
        return pendingBytes <= maxBytes
      }
      const bytes = pendingBytes === 0 ? chunk : Buffer.concat([...pieces, chunk])
      pieces = []
      pendingBytes = 0
      let start = 0
      for (let end = endOfEvent(bytes, 0); end >= 0; end = endOfEvent(bytes, start)) {
        each(bytes.subarray(start, end))
        start = end
      }
      if (start < bytes.length) keep(start === 0 ? bytes : bytes.subarray(start))
      return pendingBytes <= maxBytes
    },
    rest: () => (pendingBytes === 0 ? NOTHING : Buffer.concat(pieces)),
  }
}
