import { endOfString, keyAt, valueAt } from './events.ts'

const LONG = 'reasoning_content"'
const SHORT = 'reasoning"'

const QUOTE = 0x22
const COLON = 0x3a
const SPACE = 0x20

/**
 * What a model thinks has two names: engines send one, and clients read one or the other (data-plane.md 6.7). Where only one stands, the
 * other is put before it with the same text. The text need not be decoded (one byte a character will do) and is not parsed: in JSON text a
 * quote inside a string is escaped, so a name with both its quotes and a colon behind it is a key.
 */
export const withBothNames = (text: string, from = 0): string => {
  const long = nameAt(text, from, LONG)
  const short = nameAt(text, from, SHORT)
  if (long < 0 === short < 0) return text
  const name = long >= 0 ? LONG : SHORT
  const twin = long >= 0 ? SHORT : LONG
  let both = ''
  let written = 0
  for (let at = Math.max(long, short); at >= 0; at = nameAt(text, at + 1 + name.length, name)) {
    const start = valueAt(text, at + 1 + name.length)
    const end = text.charCodeAt(start) === QUOTE ? endOfString(text, start) : -1
    if (end < 0) continue // null: nothing was thought here
    both += `${text.slice(written, at)}"${twin}:${text.slice(start, end)},`
    written = at
  }
  return written === 0 ? text : both + text.slice(written)
}

const nameAt = (text: string, from: number, name: typeof LONG | typeof SHORT): number => {
  for (let at = keyAt(text, from, name); at >= 0; at = keyAt(text, at + 1, name)) {
    let behind = at + 1 + name.length
    while (text.charCodeAt(behind) === SPACE) behind += 1
    if (text.charCodeAt(behind) === COLON) return at
  }
  return -1
}
