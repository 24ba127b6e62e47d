/** Texts of one answer that are held to be counted: longer than any context that we know. */
const MAX_BYTES = 4 * 1024 * 1024
/** Room for the first fifty tokens or so. */
const FIRST_BYTES = 256
/** Answers side by side that are worth counting one by one. */
const MAX_CHOICES = 8

type Part = { content?: unknown; reasoning?: unknown; reasoning_content?: unknown; tool_calls?: unknown }
type Choice = { index?: unknown; text?: unknown; message?: Part; delta?: Part }

const textOf = (value: unknown): string => (typeof value === 'string' ? value : '')

const callsOf = (calls: unknown): string =>
  Array.isArray(calls)
    ? (calls as { function?: { name?: unknown; arguments?: unknown } }[])
        .map((call) => textOf(call.function?.name) + textOf(call.function?.arguments))
        .join('')
    : ''

type Item = { content?: unknown; name?: unknown; arguments?: unknown }

/** What stands in the items of a response, in their order (data-plane.md 8.4). */
const itemsOf = (items: readonly Item[]): string =>
  items
    .map(({ content, name, arguments: given }) => {
      const parts = Array.isArray(content) ? (content as { text?: unknown; refusal?: unknown }[]) : []
      return parts.map(({ text, refusal }) => textOf(text) + textOf(refusal)).join('') + textOf(name) + textOf(given)
    })
    .join('')

/** The words of an answer in bytes, as they stand between the quotes of JSON: as strings, tokens take ten times the memory of their letters. */
type Said = { bytes: Buffer; used: number }

/** Adds a piece of text that has one byte a character. */
const put = (said: Said, text: string, start: number, end: number): void => {
  const used = said.used + end - start
  if (used > said.bytes.length) {
    const bytes = Buffer.allocUnsafeSlow(Math.max(FIRST_BYTES, 2 * used))
    said.bytes.copy(bytes, 0, 0, said.used)
    said.bytes = bytes
  }
  for (let at = start, to = said.used; at < end; at += 1, to += 1) said.bytes[to] = text.charCodeAt(at)
  said.used = used
}

const toWords = ({ bytes, used }: Said): string => {
  const json = bytes.toString('utf8', 0, used)
  try {
    return JSON.parse(`"${json}"`) as string
  } catch {
    return json // an engine that cannot write JSON; it will do to be counted
  }
}

const NOTHING: Buffer = Buffer.alloc(0)

/**
 * What an engine has said in all, thoughts and calls included, an answer each, for the tokenizer of its model. It is held only where the
 * engine may end without a count of its own, goes nowhere but to an engine, and with the request.
 */
export type Words = {
  /** A whole answer, or a frame of one. */
  add(frame: Readonly<Record<string, unknown>> | undefined): void
  /** Of a frame that has but one answer: its words as they stand between the quotes, in a text of one byte a character. */
  addText(text: string, start: number, end: number): void
  /** Undefined where it was more than is worth holding. */
  all(): readonly string[] | undefined
}

export const openWords = (): Words => new HeldWords()

class HeldWords implements Words {
  readonly first: Said = { bytes: NOTHING, used: 0 }
  others: Map<number, Said> | undefined
  bytes = 0

  add(frame: Readonly<Record<string, unknown>> | undefined): void {
    const { output, choices } = frame ?? {}
    if (Array.isArray(output)) this.say(0, itemsOf(output as Item[]))
    if (!Array.isArray(choices)) return
    for (const { index, text, message, delta } of choices as Choice[]) {
      const part = message ?? delta ?? {}
      const said = textOf(text) + textOf(part.reasoning_content ?? part.reasoning) + textOf(part.content) + callsOf(part.tool_calls)
      this.say(Number(index ?? 0), said)
    }
  }

  addText(text: string, start: number, end: number): void {
    this.put(this.first, text, start, end)
  }

  all(): readonly string[] | undefined {
    if (this.bytes > MAX_BYTES || (this.others?.size ?? 0) >= MAX_CHOICES) return undefined
    return [this.first, ...(this.others?.values() ?? [])].map(toWords).filter((text) => text !== '')
  }

  say(place: number, words: string): void {
    const json = Buffer.from(JSON.stringify(words)).toString('latin1')
    this.put(this.saidAt(place), json, 1, json.length - 1)
  }

  saidAt(place: number): Said {
    if (place === 0) return this.first
    this.others ??= new Map()
    const said = this.others.get(place) ?? { bytes: NOTHING, used: 0 }
    this.others.set(place, said)
    return said
  }

  put(said: Said, text: string, start: number, end: number): void {
    if (this.bytes > MAX_BYTES) return
    this.bytes += end - start
    put(said, text, start, end)
  }
}
