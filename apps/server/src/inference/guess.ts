import type { Body, Span } from './body.ts'
import { slice } from './body.ts'

/** Of how many bytes of which kind a text is: letters of words, everything else in ASCII, and all other scripts. */
export type Mix = { readonly words: number; readonly marks: number; readonly wide: number }

/** How many tokens a text is likely to be, and between which bounds it almost certainly is. */
export type Guess = { readonly tokens: number; readonly least: number; readonly most: number }

export type GuessTokens = (model: string, mix: Mix) => Guess

export type Guesses = {
  guess: GuessTokens
  /** What an engine has counted in truth. */
  learn(model: string, mix: Mix, tokens: number): void
}

/**
 * A text up to so many bytes is looked at whole; of a longer one as many places, evenly spread, as make about as much. More would cost more
 * than the decision that rests on it.
 */
const LOOK_BYTES = 512
const WINDOW_BYTES = 64
const WINDOWS = LOOK_BYTES / WINDOW_BYTES
/** So long without a space is no word but a key, a hash or base64, of which tokens are short. */
const LONGEST_WORD = 24

const BACKSLASH = 0x5c
const OF_N = 0x6e
const OF_T = 0x74
const OF_U = 0x75
/** `\u4f60`, five behind the backslash, stands for a character that would be three bytes. */
const ESCAPE_BYTES = 5
const ESCAPED_BYTES = 3
/** What a sign counts for behind another. */
const TOGETHER = 0.4

const LETTER = 0
const SPACE = 1
const DIGIT = 2
const WIDE = 3
const SIGN = 4
/** What each byte is; a table, since this stands before every admission. */
const KIND_OF = Uint8Array.from({ length: 256 }, (_, byte) => {
  if (byte > 0x7f) return WIDE
  const character = String.fromCharCode(byte)
  if (/[a-z]/i.test(character)) return LETTER
  if (/[0-9]/.test(character)) return DIGIT
  return character === ' ' ? SPACE : SIGN
})

/** What these parts of a body are made of, without the places in them that are no text (images, sound). */
export const mixOf = (body: Body, parts: readonly (Span | undefined)[], without: readonly Span[] = []): Mix => {
  const texts = without.length === 0 ? parts : parts.flatMap((part) => (part === undefined ? [] : textsOf(part, without)))
  let bytes = 0
  for (const text of texts) if (text !== undefined) bytes += text.end - text.start
  const mix = { words: 0, marks: 0, wide: 0 }
  if (bytes <= LOOK_BYTES) {
    for (const text of texts) if (text !== undefined) add(mix, body, text.start, text.end)
    return mix
  }
  let seen = 0
  let window = 0
  let passed = 0
  for (const text of texts) {
    if (text === undefined) continue
    const { start, end } = text
    for (; window < WINDOWS && placeOf(window, bytes) < passed + end - start; window += 1) {
      const from = start + placeOf(window, bytes) - passed
      const to = Math.min(from + WINDOW_BYTES, end)
      add(mix, body, from, to)
      seen += to - from
    }
    passed += end - start
  }
  const times = bytes / seen
  mix.words *= times
  mix.marks *= times
  mix.wide *= times
  return mix
}

const placeOf = (window: number, bytes: number): number => Math.floor(((bytes - WINDOW_BYTES) * window) / (WINDOWS - 1))

export const plus = (one: Mix, other: Mix, times: number): Mix => ({
  words: one.words + other.words * times,
  marks: one.marks + other.marks * times,
  wide: one.wide + other.wide * times,
})

const textsOf = (part: Span, without: readonly Span[]): Span[] => {
  const texts: Span[] = []
  let from = part.start
  for (const { start, end } of without.toSorted((one, other) => one.start - other.start)) {
    if (start >= part.end || end <= part.start) continue
    if (start > from) texts.push({ start: from, end: start })
    from = Math.max(from, end)
  }
  if (from < part.end) texts.push({ start: from, end: part.end })
  return texts
}

type Sum = { words: number; marks: number; wide: number }

/** By offsets, since eight views of 64 bytes cost more than looking at them. Only what lies across two pieces is put together first. */
const add = (mix: Sum, body: Body, start: number, end: number): void => {
  let offset = 0
  for (const piece of body.pieces) {
    if (start < offset + piece.length) {
      if (end <= offset + piece.length) return addBytes(mix, piece, start - offset, end - offset)
      const bytes = slice(body, { start, end })
      return addBytes(mix, bytes, 0, bytes.length)
    }
    offset += piece.length
  }
}

/**
 * A space belongs to the word behind it, and a run of them is a token or two however long it is, so only the first counts. Digits are
 * tokens of their own in many vocabularies; signs that stand together (`":"`, `});`) mostly share one.
 */
const addBytes = (mix: Sum, bytes: Buffer, start: number, end: number): void => {
  let words = 0
  let marks = 0
  let wide = 0
  let sinceSpace = 1
  let behindSign = false
  for (let at = start; at < end; at += 1) {
    const byte = bytes[at] as number
    const kind = KIND_OF[byte]
    if (kind === LETTER) {
      sinceSpace += 1
      if (sinceSpace > LONGEST_WORD) marks += 1
      else words += 1
    } else if (kind === SPACE) {
      if (sinceSpace > 0) words += 1
      sinceSpace = 0
    } else if (kind === WIDE) {
      wide += 1
      sinceSpace = 1
    } else if (kind === DIGIT) {
      sinceSpace += 1
      marks += 1
    } else if (byte === BACKSLASH) {
      at += 1
      const escaped = at < end ? bytes[at] : undefined
      if (escaped === OF_U) {
        at += ESCAPE_BYTES - 1
        wide += ESCAPED_BYTES
      } else marks += behindSign ? TOGETHER : 1
      const isBreak = escaped === OF_N || escaped === OF_T
      sinceSpace = isBreak ? 0 : sinceSpace + 1
      behindSign = !isBreak && escaped !== OF_U
      continue
    } else {
      marks += behindSign ? TOGETHER : 1
      sinceSpace += 1
      behindSign = true
      continue
    }
    behindSign = false
  }
  mix.words += words
  mix.marks += marks
  mix.wide += wide
}

/** Tokens in a byte of each kind, of a vocabulary that nobody has seen at work. */
const FIRST: Mix = { words: 0.25, marks: 0.5, wide: 0.35 }
const KINDS = ['words', 'marks', 'wide'] as const
/** What no vocabulary is beyond: a byte is a token at most, and some templates add to it. */
const LEAST_PER_BYTE = 0.02
const MOST_PER_BYTE = 1.2
/** How far a guess was off, as a part of the truth: before anything is known, and how much of it stands between guess and bound. */
const FIRST_OFF = 0.5
const OFF_TIMES = 3
const LEAST_MARGIN = 0.05
const MOST_MARGIN = 1
/** How quickly it follows: half of the first error, and never less than a twentieth of one. */
const SLOWEST = 0.05
const OFF_SPEED = 0.1
/** Of a short text most is what its template and the JSON around it weigh, which says nothing about others. */
const LEARN_BYTES = 512
/** More models than a catalogue has; one more is guessed like a new one. */
const MAX_MODELS = 10_000

type Known = { perByte: Sum; off: Sum; seen: number }

const first = (): Known => ({ perByte: { ...FIRST }, off: { words: FIRST_OFF, marks: FIRST_OFF, wide: FIRST_OFF }, seen: 0 })

const guessBy = ({ perByte, off }: Known, mix: Mix): Guess & { readonly most: number; readonly kind: (typeof KINDS)[number] } => {
  const words = perByte.words * mix.words
  const marks = perByte.marks * mix.marks
  const wide = perByte.wide * mix.wide
  const tokens = words + marks + wide
  const kind = words >= marks && words >= wide ? 'words' : marks >= wide ? 'marks' : 'wide'
  const margin = 1 + Math.min(MOST_MARGIN, Math.max(LEAST_MARGIN, OFF_TIMES * off[kind]))
  return { tokens: Math.ceil(tokens), least: Math.floor(tokens / margin), most: Math.ceil(tokens * margin), kind }
}

const UNSEEN = first()

/** The guess of a process that has learned nothing. */
export const guessUnseen: GuessTokens = (_model, mix) => guessBy(UNSEEN, mix)

/**
 * How many tokens a text will be, from its bytes and what the engines of a model have counted so far. A vocabulary has its own length of a
 * token for each kind of byte, so there are three numbers for each model; every count moves them towards itself (normalized least mean
 * squares), the more the more of that kind was in the text. Bounds are as wide as guesses have lately been off.
 *
 * Anybody's texts teach it, within bounds, and nobody can gain by that: what was guessed is only reserved, and the engine's count settles it.
 */
export const openGuesses = (): Guesses => {
  const models = new Map<string, Known>()

  return {
    guess: (model, mix) => guessBy(models.get(model) ?? UNSEEN, mix),
    learn: (model, mix, tokens) => {
      const bytes = mix.words + mix.marks + mix.wide
      if (bytes < LEARN_BYTES || tokens <= 0) return
      let known = models.get(model)
      if (known === undefined) {
        if (models.size >= MAX_MODELS) return
        known = first()
        models.set(model, known)
      }
      const { perByte, off, seen } = known
      const guessed = guessBy(known, mix)
      const error = tokens - (perByte.words * mix.words + perByte.marks * mix.marks + perByte.wide * mix.wide)
      off[guessed.kind] += OFF_SPEED * (Math.min(1, Math.abs(error) / tokens) - off[guessed.kind])
      const step = (Math.max(SLOWEST, 1 / (2 + seen)) * error) / (mix.words ** 2 + mix.marks ** 2 + mix.wide ** 2)
      for (const kind of KINDS) perByte[kind] = Math.min(MOST_PER_BYTE, Math.max(LEAST_PER_BYTE, perByte[kind] + step * mix[kind]))
      known.seen = seen + 1
    },
  }
}
