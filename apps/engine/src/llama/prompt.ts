// Stand in the rendered prompt for a piece of a user's text that spells a special token. Private-use characters, and a user's own
// are marked too, so every one that comes out of the template is ours.
const OPEN = '\uE000'
const CLOSE = '\uE001'
const MARK = /\uE000(\d+)\uE001/

const escapeForRegex = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

export type Tokenize = (text: string, specialTokens: boolean, continues: boolean) => number[]

/**
 * Keeps a user's text from becoming control tokens: somebody who writes `<|im_end|>` writes eight characters, and does not end their turn.
 *
 * `mark` replaces such pieces by marks before the template is rendered, `tokenize` puts them back as ordinary text. Prompts
 * without such a piece, which is nearly all, are tokenized whole and thus exactly as the model was trained.
 */
export const openGuard = (controlTexts: readonly string[], tokenize: Tokenize) => {
  const longestFirst = controlTexts.filter((text) => text !== '').toSorted((a, b) => b.length - a.length)
  const dangerous = new RegExp([OPEN, ...longestFirst].map(escapeForRegex).join('|'), 'g')

  return () => {
    const pieces: string[] = []
    const markText = (text: string): string =>
      text.replace(dangerous, (piece) => {
        pieces.push(piece)
        return `${OPEN}${pieces.length - 1}${CLOSE}`
      })
    const mark = (value: unknown): unknown => {
      if (typeof value === 'string') return markText(value)
      if (Array.isArray(value)) return value.map(mark)
      if (typeof value === 'object' && value !== null)
        return Object.fromEntries(Object.entries(value).map(([key, item]) => [markText(key), mark(item)]))
      return value
    }
    return {
      mark,
      tokenize: (rendered: string): number[] => {
        if (pieces.length === 0) return tokenize(rendered, true, false)
        // Splitting by a pattern with one group gives text, number, text, number, …
        return rendered.split(MARK).flatMap((part, place) => {
          if (place % 2 === 0) return part === '' ? [] : tokenize(part, true, place > 0)
          return tokenize(pieces[Number(part)] ?? '', false, true)
        })
      },
    }
  }
}
