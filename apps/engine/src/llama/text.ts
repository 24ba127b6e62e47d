// The longest character takes four tokens of one byte each; what is still broken after eight is broken for good.
const MAX_PENDING = 8
const RECENT = 3 // as many as the library looks at to decide about a leading space

/**
 * Turns tokens into text one by one. A token may end in the middle of a character, so a text that ends with U+FFFD waits
 * for the next token. Joined, the pieces are the text of all tokens.
 */
export const openText = (detokenize: (tokens: readonly number[], recent: readonly number[]) => string, before: readonly number[]) => {
  let pending: number[] = []
  let recent: number[] = before.slice(-RECENT)
  const flush = (text: string): string => {
    recent = [...recent, ...pending].slice(-RECENT)
    pending = []
    return text
  }
  return {
    push: (token: number): string => {
      pending.push(token)
      const text = detokenize(pending, recent)
      return text.endsWith('\uFFFD') && pending.length < MAX_PENDING ? '' : flush(text)
    },
    end: (): string => (pending.length === 0 ? '' : flush(detokenize(pending, recent))),
  }
}
