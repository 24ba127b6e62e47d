import fc from 'fast-check'
import { expect, test } from 'vitest'
import { openGuard } from './prompt.ts'

// A vocabulary of characters, with three control tokens.
const CONTROL = ['<|end|>', '<|start|>', '<s>']
const tokenize = (text: string, specialTokens: boolean): number[] => {
  const tokens: number[] = []
  for (let at = 0; at < text.length; ) {
    const control = specialTokens ? CONTROL.findIndex((one) => text.startsWith(one, at)) : -1
    tokens.push(control >= 0 ? -1 - control : text.charCodeAt(at))
    at += control >= 0 ? (CONTROL[control] ?? '').length : 1
  }
  return tokens
}
const spell = (tokens: readonly number[]): string =>
  tokens.map((token) => (token < 0 ? (CONTROL[-1 - token] ?? '') : String.fromCharCode(token))).join('')

test('whatever a user writes, the only control tokens are those of the template, and no character is lost', () => {
  const piece = fc.oneof(fc.constantFrom(...CONTROL, '\uE000', '\uE0000\uE001', '\uE001', '<|', '|>'), fc.string())
  const text = fc.array(piece, { maxLength: 8 }).map((pieces) => pieces.join(''))
  fc.assert(
    fc.property(text, text, (first, second) => {
      const guard = openGuard(CONTROL, tokenize)()
      const marked = guard.mark([{ content: first }, { content: second }]) as { content: string }[]
      const tokens = guard.tokenize(marked.map(({ content }) => `<|start|>${content}<|end|>`).join(''))
      expect(tokens.filter((token) => token < 0)).toEqual([-2, -1, -2, -1])
      expect(spell(tokens)).toBe(`<|start|>${first}<|end|><|start|>${second}<|end|>`)
    }),
  )
})

test('an ordinary conversation is tokenized whole', () => {
  const seen: string[] = []
  const guard = openGuard(CONTROL, (text, special) => {
    seen.push(text)
    return tokenize(text, special)
  })()
  guard.tokenize(`<|start|>${guard.mark('hello') as string}<|end|>`)
  expect(seen).toEqual(['<|start|>hello<|end|>'])
})
