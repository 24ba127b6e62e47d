const NAMES = [Buffer.from('"reasoning_content"'), Buffer.from('"reasoning"')] as const
const COMMA = Buffer.from(',')
const COLON_BYTE = Buffer.from(':')

const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a
const SPACE = 0x20

/**
 * What a model thinks has two names: engines send one, and clients read one or the other (data-plane.md 6.7). Where only one stands, the
 * other is put before it with the same text. By the bytes: in JSON text a quote inside a string is escaped, so a name with both its
 * quotes and a colon behind it is a key.
 */
export const withBothNames = (bytes: Buffer, from = 0): Buffer => {
  const [long, short] = NAMES.map((name) => keyAt(bytes, from, name)) as [number, number]
  if (long < 0 === short < 0) return bytes
  const [name, twin] = long >= 0 ? NAMES : ([NAMES[1], NAMES[0]] as const)
  const pieces: Buffer[] = []
  let written = 0
  for (let at = Math.max(long, short); at >= 0; at = keyAt(bytes, at + name.length, name)) {
    const start = valueAt(bytes, at + name.length)
    const end = bytes[start] === QUOTE ? endOfString(bytes, start) : -1
    if (end < 0) continue // null: nothing was thought here
    pieces.push(bytes.subarray(written, at), twin, COLON_BYTE, bytes.subarray(start, end), COMMA)
    written = at
  }
  return pieces.length === 0 ? bytes : Buffer.concat([...pieces, bytes.subarray(written)])
}

const keyAt = (bytes: Buffer, from: number, name: Buffer): number => {
  for (let at = bytes.indexOf(name, from); at >= 0; at = bytes.indexOf(name, at + 1)) {
    let behind = at + name.length
    while (bytes[behind] === SPACE) behind += 1
    if (bytes[behind] === COLON) return at
  }
  return -1
}

const valueAt = (bytes: Buffer, behindKey: number): number => {
  let at = behindKey
  while (bytes[at] === SPACE || bytes[at] === COLON) at += 1
  return at
}

/** Behind the closing quote; -1 where there is none. */
const endOfString = (bytes: Buffer, quote: number): number => {
  for (let at = bytes.indexOf(QUOTE, quote + 1); at >= 0; at = bytes.indexOf(QUOTE, at + 1)) {
    let slashes = 0
    while (bytes[at - 1 - slashes] === BACKSLASH) slashes += 1
    if (slashes % 2 === 0) return at + 1
  }
  return -1
}
