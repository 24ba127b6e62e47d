import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type Body, type Span, slice } from './body.ts'

/** The keys to look for. */
export type Watch = {
  readonly keys: ReadonlySet<string>
  /**
   * Those that decide what runs and what it costs, in lower case. Engines written in Go match keys without regard to case, so
   * "Model" beside "model" would let us bill one thing while the engine runs another: a twin in other letters is refused.
   */
  readonly strict: ReadonlySet<string>
}

/** A key as a parser compares it that ignores case by Unicode's rules, as Go's does: to those the long ſ is an s, too. */
export const foldCase = (key: string): string => key.toLowerCase().replaceAll('ſ', 's')

export const watch = (strict: readonly string[], others: readonly string[] = []): Watch => ({
  keys: new Set([...strict, ...others]),
  strict: new Set(strict),
})

export type Scanned = {
  /** Where the value of each watched key stands. */
  readonly spans: ReadonlyMap<string, Span>
  /** Just behind the opening brace: where a member can be inserted, with a comma behind it. */
  readonly inside: number
}

/** Deeper than any schema of a tool, and shallow enough for every engine's parser (Python's gives up at 1,000). */
const MAX_DEPTH = 512
/** Nobody sends this many fields at the top; each costs us some work that cannot be interrupted. */
const MAX_KEYS = 1000
/** No watched key is longer, even when each of its characters is written as an escape of six. */
const MAX_KEY_BYTES = 256
/** Beyond this the native search is quicker than looking at each byte; the call itself costs as much as about forty of them. */
const SHORT_STRING_BYTES = 40

const QUOTE = 0x22
const BACKSLASH = 0x5c
const COMMA = 0x2c
const COLON = 0x3a
const OPEN_BRACE = 0x7b
const CLOSE_BRACE = 0x7d
const OPEN_BRACKET = 0x5b
const CLOSE_BRACKET = 0x5d
const END = -1

const SCALAR = /^(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/

const closers = new Uint8Array(MAX_DEPTH) // scanning never waits, so one stack serves all

/** What stands in nearly every conversation, by its length: making a string out of bytes costs more than comparing them. */
const COMMON: readonly (readonly string[])[] = [
  'user',
  'assistant',
  'role',
  'content',
  'type',
  'text',
  'tool',
  'system',
  'name',
  'url',
  'image_url',
].reduce<string[][]>(
  (table, word) => {
    table[word.length]?.push(word)
    return table
  },
  Array.from({ length: 16 }, () => []),
)

const commonWord = (piece: Buffer, start: number, end: number): string | undefined => {
  const words = COMMON[end - start]
  if (words === undefined) return undefined
  for (const word of words) {
    let place = 0
    while (place < word.length && piece[start + place] === word.charCodeAt(place)) place += 1
    if (place === word.length && place > 0) return word
  }
  return undefined
}

class Broken extends Error {}

/**
 * Walks the top level of a JSON object and says where the values of a few keys stand, without parsing it (performance.md 3).
 * A megabyte with an image takes about 15 µs, where `JSON.parse` takes 1 to 4 ms; at 1 KB it costs 5 µs and parsing 1.5, and at 20 KB
 * they are equal, but only here do we learn where things stand.
 *
 * It accepts every JSON object and refuses what is no object, is not closed, or has something behind it. Inside nested values it
 * checks strings and brackets only: what else is wrong there, the engine says. A key that is written with escapes is decoded
 * before it is compared, so it cannot hide.
 */
export const scan = (body: Body, watched: Watch): Outcome<Scanned, string> =>
  read(body, 0, (cursor) => {
    const spans = new Map<string, Span>()
    const inside = cursor.object((key) => {
      const known = watched.keys.has(key)
      if (known && spans.has(key)) throw new Broken(`the key "${key}" comes twice`)
      if (!known && watched.strict.has(foldCase(key))) throw new Broken(`the key ${JSON.stringify(key)} must be written "${foldCase(key)}"`)
      const span = cursor.skip()
      if (known) spans.set(key, span)
    })
    cursor.end()
    return { spans, inside }
  })

/**
 * Walks over JSON text from left to right. Every value is taken once: by `skip`, or by `object` and `array`, whose callbacks take each
 * of the values inside.
 */
export type Cursor = {
  /** The first byte of the next value, which is not taken; -1 at the end of the text. */
  peek(): number
  /** Takes the next value and says where it stands. */
  skip(): Span
  /** Takes the next value, and gives its text where it is a string; a long one is read as an empty one. */
  word(): { readonly span: Span; readonly text: string | undefined }
  /** Takes an object. The key is empty where it is too long to be one that somebody looks for. Gives the offset behind the brace. */
  object(member: (key: string) => void): number
  array(element: (index: number) => void): void
  /** Nothing may follow. */
  end(): void
}

/** Reads the text with a cursor that begins at an offset; what is wrong with the text is a reason. */
export const read = <T>(body: Body, from: number, work: (cursor: Cursor) => T): Outcome<T, string> => {
  try {
    return yes(work(openCursor(body, from)))
  } catch (error) {
    if (error instanceof Broken) return no(error.message)
    throw error
  }
}

const openCursor = (body: Body, from: number): Cursor => {
  const { pieces } = body
  let index = 0
  let piece: Buffer = pieces[0] ?? Buffer.alloc(0)
  let base = 0 // offset of the piece in the body
  while (index + 1 < pieces.length && base + piece.length <= from) {
    base += piece.length
    index += 1
    piece = pieces[index] as Buffer
  }
  let at = from - base // offset in the piece

  /** Moves on to the next piece; false behind the last one. */
  const turn = (): boolean => {
    const next = pieces[index + 1]
    if (next === undefined) {
      at = piece.length
      return false
    }
    index += 1
    base += piece.length
    piece = next
    at = 0
    return piece.length > 0 || turn()
  }

  const byte = (): number => (at < piece.length || turn() ? (piece[at] as number) : END)

  const byteAfterSpace = (): number => {
    for (;;) {
      const seen = byte()
      if (seen !== 0x20 && seen !== 0x0a && seen !== 0x0d && seen !== 0x09) return seen
      at += 1
    }
  }

  const broken = (what: string): Broken => new Broken(`${what} at byte ${base + at}`)
  const unexpected = (): Broken => (byte() === END ? broken('it ends too early,') : broken('unexpected character'))

  /** From behind the opening quote to behind the closing one. */
  const skipString = (): void => {
    const near = piece
    const stop = Math.min(at + SHORT_STRING_BYTES, near.length)
    let place = at
    while (place < stop && near[place] !== QUOTE && near[place] !== BACKSLASH) place += 1
    at = place + 1
    if (place < stop && near[place] === QUOTE) return
    at = place
    skipLongString()
  }

  /** A quote is part of the string when an odd number of backslashes stands before it. The run may begin in an earlier piece. */
  const skipLongString = (): void => {
    let floor = at
    let carried = 0
    for (;;) {
      const quote = piece.indexOf(QUOTE, at)
      const stop = quote < 0 ? piece.length : quote
      let run = 0
      while (stop - run > floor && piece[stop - run - 1] === BACKSLASH) run += 1
      if (stop - run === floor) run += carried
      if (quote < 0) {
        carried = run % 2
        if (!turn()) throw unexpected()
        floor = 0
        continue
      }
      at = quote + 1
      if (run % 2 === 0) return
      floor = at
      carried = 0
    }
  }

  /** From the opening bracket to behind the one that closes it. */
  const skipNested = (): void => {
    let depth = 0
    for (;;) {
      const near = piece
      let place = at
      let seen = END
      for (; place < near.length; place += 1) {
        seen = near[place] as number
        if (seen === QUOTE || seen === OPEN_BRACE || seen === OPEN_BRACKET || seen === CLOSE_BRACE || seen === CLOSE_BRACKET) break
      }
      if (place === near.length) {
        if (!turn()) throw unexpected()
        continue
      }
      at = place + 1
      if (seen === QUOTE) skipString()
      else if (seen === OPEN_BRACE || seen === OPEN_BRACKET) {
        if (depth === MAX_DEPTH) throw broken(`it is nested deeper than ${MAX_DEPTH} levels`)
        closers[depth] = seen + 2 // in ASCII both closing brackets stand two behind the opening ones
        depth += 1
      } else {
        depth -= 1
        if (closers[depth] !== seen) {
          at = place
          throw unexpected()
        }
        if (depth === 0) return
      }
    }
  }

  /** What was walked over since `start`; only at the border of two pieces does it have to be put together. */
  const textSince = (start: number, encoding: 'utf8' | 'latin1', behind: number): string =>
    start >= base ? piece.toString(encoding, start - base, at - behind) : slice(body, { start, end: base + at - behind }).toString(encoding)

  const skipScalar = (): void => {
    const start = base + at
    for (let seen = byte(); seen !== COMMA && seen !== CLOSE_BRACE && seen !== CLOSE_BRACKET && seen > 0x20; seen = byte()) {
      if (seen === QUOTE || seen === OPEN_BRACE || seen === OPEN_BRACKET) throw unexpected()
      at += 1
    }
    if (!SCALAR.test(textSince(start, 'latin1', 0))) {
      if (byte() === END) throw unexpected()
      throw new Broken(`unexpected value at byte ${start}`)
    }
  }

  const skipValue = (): void => {
    const seen = byteAfterSpace()
    if (seen === QUOTE) {
      at += 1
      skipString()
    } else if (seen === OPEN_BRACE || seen === OPEN_BRACKET) skipNested()
    else if (seen === END) throw unexpected()
    else skipScalar()
  }

  /** A key or another short string, from behind its opening quote; empty where it is too long to be one that we know. */
  const readWord = (): string => {
    const start = base + at
    skipString()
    if (base + at - 1 - start > MAX_KEY_BYTES) return ''
    const common = start >= base ? commonWord(piece, start - base, at - 1) : undefined
    if (common !== undefined) return common
    const text = textSince(start, 'utf8', 1)
    if (!text.includes('\\')) return text
    try {
      return JSON.parse(`"${text}"`) as string
    } catch {
      throw new Broken(`a string that is not valid at byte ${start}`)
    }
  }

  return {
    peek: byteAfterSpace,

    skip() {
      byteAfterSpace()
      const start = base + at
      skipValue()
      return { start, end: base + at }
    },

    word() {
      const isText = byteAfterSpace() === QUOTE
      const start = base + at
      if (!isText) skipValue()
      else at += 1
      const text = isText ? readWord() : undefined
      return { span: { start, end: base + at }, text }
    },

    object(member) {
      if (byteAfterSpace() !== OPEN_BRACE) throw byte() === END ? unexpected() : new Broken('it must be an object')
      at += 1
      const inside = base + at
      let seen = byteAfterSpace()
      for (let count = 1; seen !== CLOSE_BRACE; count += 1) {
        if (seen !== QUOTE) throw unexpected()
        if (count > MAX_KEYS) throw broken(`it has more than ${MAX_KEYS} fields`)
        at += 1
        const key = readWord()
        if (byteAfterSpace() !== COLON) throw unexpected()
        at += 1
        if (byteAfterSpace() === END) throw unexpected()
        member(key)
        seen = byteAfterSpace()
        if (seen === COMMA) {
          at += 1
          seen = byteAfterSpace()
          if (seen !== QUOTE) throw unexpected()
        } else if (seen !== CLOSE_BRACE) throw unexpected()
      }
      at += 1
      return inside
    },

    array(element) {
      if (byteAfterSpace() !== OPEN_BRACKET) throw unexpected()
      at += 1
      let seen = byteAfterSpace()
      for (let place = 0; seen !== CLOSE_BRACKET; place += 1) {
        element(place)
        seen = byteAfterSpace()
        if (seen === COMMA) {
          at += 1
          seen = byteAfterSpace()
          if (seen === CLOSE_BRACKET) throw unexpected()
        } else if (seen !== CLOSE_BRACKET) throw unexpected()
      }
      at += 1
    },

    end() {
      if (byteAfterSpace() !== END) throw broken('something follows the object')
    },
  }
}
