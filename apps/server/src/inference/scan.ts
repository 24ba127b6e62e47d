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
  /** The one whose long strings are noted: whoever parses the body need not read them. */
  readonly wordy: string | undefined
}

/** A key as a parser compares it that ignores case by Unicode's rules, as Go's does: to those the long ſ is an s, too. */
export const foldCase = (key: string): string => key.toLowerCase().replaceAll('ſ', 's')

export const watch = (strict: readonly string[], others: readonly string[] = [], wordy?: string): Watch => ({
  keys: new Set([...strict, ...others]),
  strict: new Set(strict),
  wordy,
})

export type Scanned = {
  /** Where the value of each watched key stands. */
  readonly spans: ReadonlyMap<string, Span>
  /** Just behind the opening brace: where a member can be inserted, with a comma behind it. */
  readonly inside: number
  /** What stands between the quotes of the long strings in the wordy member, in their order. */
  readonly long: readonly Span[]
}

/** A shorter string costs less to read than to go round it. */
const LONG_STRING_BYTES = 1024

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

/** What stands in nearly every request and answer, by its length: making a string out of bytes costs more than comparing them. */
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
  'model',
  'messages',
  'stream',
  'stream_options',
  'max_tokens',
  'max_completion_tokens',
  'temperature',
  'top_p',
  'tools',
  'input',
  'id',
  'object',
  'created',
  'choices',
  'usage',
].reduce<string[][]>(
  (table, word) => {
    table[word.length]?.push(word)
    return table
  },
  Array.from({ length: 24 }, () => []),
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

const NO_BYTES: Buffer = Buffer.alloc(0)
const NONE: readonly Span[] = []
const NOTHING: Body = { pieces: [], bytes: 0 }

class Broken extends Error {}

/**
 * Walks the top level of a JSON object and says where the values of a few keys stand, without parsing it (performance.md 3).
 * Long strings are jumped over, so of a body with an image in it this costs a small part of what `JSON.parse` does; `npm run bench -- look`
 * prints what all looking at a request costs, beside parsing it.
 *
 * It accepts every JSON object and refuses what is no object, is not closed, or has something behind it. Inside nested values it
 * checks strings and brackets only: what else is wrong there, the engine says. A key that is written with escapes is decoded
 * before it is compared, so it cannot hide.
 */
export const scan = (body: Body, watched: Watch): Outcome<Scanned, string> => read(body, 0, scanFields, watched)

const scanFields = (cursor: Cursor, watched: Watch): Scanned => {
  const spans = new Map<string, Span>()
  let long: readonly Span[] = NONE
  cursor.peek()
  const inside = cursor.offset() + 1
  for (let place = 0; cursor.member(place); place += 1) {
    const { key } = cursor
    if (watched.keys.has(key)) {
      if (spans.has(key)) throw new Broken(`the key "${key}" comes twice`)
      if (key === watched.wordy) {
        const noted: Span[] = []
        spans.set(key, cursor.take(noted))
        long = noted
      } else spans.set(key, cursor.take())
    } else {
      if (watched.strict.size > 0 && watched.strict.has(foldCase(key))) {
        throw new Broken(`the key ${JSON.stringify(key)} must be written "${foldCase(key)}"`)
      }
      cursor.skip()
    }
  }
  cursor.nothingMore()
  return { spans, inside, long }
}

/**
 * Walks over JSON text from left to right. Every value is taken once: by `skip`, `take` or `word`, or member by member and element by
 * element, each of whose values is taken in turn:
 *
 *     for (let place = 0; cursor.member(place); place += 1) {
 *       if (cursor.key === 'model') model = cursor.take()
 *       else cursor.skip()
 *     }
 */
export type Cursor = {
  /** The first byte of the next value, which is not taken; -1 at the end of the text. */
  peek(): number
  /** Where in the body it stands. */
  offset(): number
  skip(): void
  /** Takes the next value and says where it stands; and where its long strings do, if somebody wants to know. */
  take(long?: Span[]): Span
  /** Takes the next value, and gives its text where it is a string; a long one is read as an empty one. */
  word(): string | undefined
  /** Where the word stands that was taken last. */
  wordSpan(): Span
  /** Goes to the value of the next member, the first of which is 0, and says whether there is one. Behind the last the object is taken. */
  member(place: number): boolean
  /** Of the member that the cursor went to last. Empty where it is too long to be one that somebody looks for. */
  readonly key: string
  /** The same for the elements of an array. */
  element(place: number): boolean
  nothingMore(): void
}

/** Reads the text with a cursor that begins at an offset; what is wrong with the text is a reason. `given` is handed on to the work. */
export const read = <T, G = undefined>(body: Body, from: number, work: (cursor: Cursor, given: G) => T, given?: G): Outcome<T, string> => {
  const walk = idle ?? new Walk()
  idle = undefined
  try {
    walk.begin(body, from)
    return yes(work(walk, given as G))
  } catch (error) {
    if (error instanceof Broken) return no(error.message)
    throw error
  } finally {
    walk.begin(NOTHING, 0)
    idle = walk
  }
}

/**
 * A class and one that is used again and again, since there are three walks for each request: as closures over the same variables each
 * takes 1.4 KB. There is always one, since V8 throws away what it has compiled for a class when it finds none of its objects.
 */
class Walk implements Cursor {
  key = ''
  private body = NOTHING
  private piece = NO_BYTES
  private index = 0
  private base = 0 // offset of the piece in the body
  private at = 0 // offset in the piece
  private wordStart = 0
  private long: Span[] | undefined

  begin(body: Body, from: number): void {
    const { pieces } = body
    this.body = body
    this.long = undefined
    this.piece = pieces[0] ?? NO_BYTES
    this.index = 0
    this.base = 0
    while (this.index + 1 < pieces.length && this.base + this.piece.length <= from) {
      this.base += this.piece.length
      this.index += 1
      this.piece = pieces[this.index] as Buffer
    }
    this.at = from - this.base
  }

  peek(): number {
    for (;;) {
      const seen = this.byte()
      if (seen !== 0x20 && seen !== 0x0a && seen !== 0x0d && seen !== 0x09) return seen
      this.at += 1
    }
  }

  offset(): number {
    return this.base + this.at
  }

  skip(): void {
    const seen = this.peek()
    if (seen === QUOTE) {
      this.at += 1
      this.skipString()
    } else if (seen === OPEN_BRACE || seen === OPEN_BRACKET) this.skipNested()
    else if (seen === END) throw this.unexpected()
    else this.skipScalar()
  }

  take(long?: Span[]): Span {
    this.peek()
    const start = this.offset()
    this.long = long
    this.skip()
    this.long = undefined
    return { start, end: this.offset() }
  }

  word(): string | undefined {
    const isText = this.peek() === QUOTE
    this.wordStart = this.offset()
    if (isText) return this.readWord()
    this.skip()
    return undefined
  }

  wordSpan(): Span {
    return { start: this.wordStart, end: this.offset() }
  }

  member(place: number): boolean {
    let seen = this.peek()
    if (place === 0) {
      if (seen !== OPEN_BRACE) throw seen === END ? this.unexpected() : new Broken('it must be an object')
      this.at += 1
      seen = this.peek()
      if (seen === CLOSE_BRACE) return this.leave()
    } else {
      if (seen === CLOSE_BRACE) return this.leave()
      if (seen !== COMMA) throw this.unexpected()
      this.at += 1
      seen = this.peek()
    }
    if (seen !== QUOTE) throw this.unexpected()
    if (place === MAX_KEYS) throw this.broken(`it has more than ${MAX_KEYS} fields`)
    this.key = this.readWord()
    if (this.peek() !== COLON) throw this.unexpected()
    this.at += 1
    if (this.peek() === END) throw this.unexpected()
    return true
  }

  element(place: number): boolean {
    let seen = this.peek()
    if (place === 0) {
      if (seen !== OPEN_BRACKET) throw this.unexpected()
      this.at += 1
      return this.peek() !== CLOSE_BRACKET || this.leave()
    }
    if (seen === CLOSE_BRACKET) return this.leave()
    if (seen !== COMMA) throw this.unexpected()
    this.at += 1
    seen = this.peek()
    if (seen === CLOSE_BRACKET) throw this.unexpected()
    return true
  }

  nothingMore(): void {
    if (this.peek() !== END) throw this.broken('something follows the object')
  }

  private leave(): false {
    this.at += 1
    return false
  }

  /** Moves on to the next piece; false behind the last one. */
  private turn(): boolean {
    const next = this.body.pieces[this.index + 1]
    if (next === undefined) {
      this.at = this.piece.length
      return false
    }
    this.index += 1
    this.base += this.piece.length
    this.piece = next
    this.at = 0
    return next.length > 0 || this.turn()
  }

  private byte(): number {
    return this.at < this.piece.length || this.turn() ? (this.piece[this.at] as number) : END
  }

  private broken(what: string): Broken {
    return new Broken(`${what} at byte ${this.offset()}`)
  }

  private unexpected(): Broken {
    return this.byte() === END ? this.broken('it ends too early,') : this.broken('unexpected character')
  }

  /** From behind the opening quote to behind the closing one. */
  private skipString(): void {
    const near = this.piece
    const stop = Math.min(this.at + SHORT_STRING_BYTES, near.length)
    let place = this.at
    while (place < stop && near[place] !== QUOTE && near[place] !== BACKSLASH) place += 1
    if (place < stop && near[place] === QUOTE) {
      this.at = place + 1
      return
    }
    const start = this.offset()
    this.at = place
    this.skipLongString()
    const end = this.offset() - 1
    if (this.long !== undefined && end - start >= LONG_STRING_BYTES) this.long.push({ start, end })
  }

  /** A quote is part of the string when an odd number of backslashes stands before it. The run may begin in an earlier piece. */
  private skipLongString(): void {
    let floor = this.at
    let carried = 0
    for (;;) {
      const near = this.piece
      const quote = near.indexOf(QUOTE, this.at)
      const stop = quote < 0 ? near.length : quote
      let run = 0
      while (stop - run > floor && near[stop - run - 1] === BACKSLASH) run += 1
      if (stop - run === floor) run += carried
      if (quote < 0) {
        carried = run % 2
        if (!this.turn()) throw this.unexpected()
        floor = 0
        continue
      }
      this.at = quote + 1
      if (run % 2 === 0) return
      floor = this.at
      carried = 0
    }
  }

  /** From the opening bracket to behind the one that closes it. */
  private skipNested(): void {
    let depth = 0
    for (;;) {
      const near = this.piece
      let place = this.at
      let seen = END
      for (; place < near.length; place += 1) {
        seen = near[place] as number
        if (seen === QUOTE || seen === OPEN_BRACE || seen === OPEN_BRACKET || seen === CLOSE_BRACE || seen === CLOSE_BRACKET) break
      }
      if (place === near.length) {
        if (!this.turn()) throw this.unexpected()
        continue
      }
      this.at = place + 1
      if (seen === QUOTE) this.skipString()
      else if (seen === OPEN_BRACE || seen === OPEN_BRACKET) {
        if (depth === MAX_DEPTH) throw this.broken(`it is nested deeper than ${MAX_DEPTH} levels`)
        closers[depth] = seen + 2 // in ASCII both closing brackets stand two behind the opening ones
        depth += 1
      } else {
        depth -= 1
        if (closers[depth] !== seen) {
          this.at = place
          throw this.unexpected()
        }
        if (depth === 0) return
      }
    }
  }

  private skipScalar(): void {
    const start = this.offset()
    for (let seen = this.byte(); seen !== COMMA && seen !== CLOSE_BRACE && seen !== CLOSE_BRACKET && seen > 0x20; seen = this.byte()) {
      if (seen === QUOTE || seen === OPEN_BRACE || seen === OPEN_BRACKET) throw this.unexpected()
      this.at += 1
    }
    if (!SCALAR.test(this.textSince(start, 'latin1', 0))) {
      if (this.byte() === END) throw this.unexpected()
      throw new Broken(`unexpected value at byte ${start}`)
    }
  }

  /** What was walked over since `start`; only at the border of two pieces does it have to be put together. */
  private textSince(start: number, encoding: 'utf8' | 'latin1', behind: number): string {
    const { base, piece, at } = this
    return start >= base
      ? piece.toString(encoding, start - base, at - behind)
      : slice(this.body, { start, end: base + at - behind }).toString(encoding)
  }

  /** A key or another short string, from its opening quote; empty where it is too long to be one that we know. */
  private readWord(): string {
    this.at += 1
    const start = this.offset()
    this.skipString()
    const { base, at } = this
    if (base + at - 1 - start > MAX_KEY_BYTES) return ''
    const common = start >= base ? commonWord(this.piece, start - base, at - 1) : undefined
    if (common !== undefined) return common
    const text = this.textSince(start, 'utf8', 1)
    if (!text.includes('\\')) return text
    try {
      return JSON.parse(`"${text}"`) as string
    } catch {
      throw new Broken(`a string that is not valid at byte ${start}`)
    }
  }
}

let idle: Walk | undefined = new Walk()
