/** Texts of one answer that are held to be counted: longer than any context that we know. */
const MAX_CHARACTERS = 4 * 1024 * 1024
/** Pieces that are held as they came, before they become one text: a token by itself takes ten times the memory of its letters. */
const MAX_PIECES = 64
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

/**
 * What an engine has said in all, thoughts and calls included, an answer each, for the tokenizer of its model. It is held only where the
 * engine may end without a count of its own, goes nowhere but to an engine, and with the request.
 */
export const openWords = () => {
  const texts = new Map<number, string[]>()
  let characters = 0
  return {
    /** A whole answer, or a frame of one. */
    add: (frame: Readonly<Record<string, unknown>> | undefined): void => {
      if (characters > MAX_CHARACTERS) return
      if (Array.isArray(frame?.['output'])) {
        const said = itemsOf(frame['output'] as Item[])
        texts.set(0, [said])
        characters += said.length
      }
      if (!Array.isArray(frame?.['choices'])) return
      for (const { index, text, message, delta } of frame['choices'] as Choice[]) {
        const part = message ?? delta ?? {}
        const said = textOf(text) + textOf(part.reasoning_content ?? part.reasoning) + textOf(part.content) + callsOf(part.tool_calls)
        const place = Number(index ?? 0)
        const pieces = texts.get(place)
        if (pieces === undefined) texts.set(place, [said])
        else if (pieces.push(said) === MAX_PIECES) texts.set(place, [pieces.join('')])
        characters += said.length
      }
    },
    /** Undefined where it was more than is worth holding. */
    all: (): readonly string[] | undefined =>
      characters > MAX_CHARACTERS || texts.size > MAX_CHOICES
        ? undefined
        : [...texts.values()].map((pieces) => pieces.join('')).filter((text) => text !== ''),
  }
}
