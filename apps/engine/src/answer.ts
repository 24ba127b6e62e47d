import { openReasoningSplit, type ReasoningStyle } from './output/reasoning.ts'
import { openStop } from './output/stop.ts'
import { type KnownTool, openToolParser, type ToolFormat } from './output/tool-calls.ts'

/** A piece of an answer, ready to be sent. */
export type Delta =
  | { readonly kind: 'reasoning'; readonly text: string }
  | { readonly kind: 'content'; readonly text: string }
  | { readonly kind: 'call'; readonly index: number; readonly name: string }
  | { readonly kind: 'arguments'; readonly index: number; readonly text: string }

type Thinking = 'undecided' | 'inside' | 'over'

/**
 * Sorts a model's text, as it comes, into what it thinks, what it says and what it calls, and ends it at a stop string.
 * Each stage holds back only what the next piece may still change.
 */
export const openAnswer = (options: {
  stops: readonly string[]
  reasoning: ReasoningStyle | undefined
  toolFormat: ToolFormat | undefined
  tools: readonly KnownTool[]
}) => {
  const { reasoning } = options
  const stop = openStop(options.stops)
  const split = reasoning === undefined ? undefined : openReasoningSplit(reasoning)
  const tools = options.toolFormat === undefined ? undefined : openToolParser(options.toolFormat, options.tools)
  let thinking: Thinking = reasoning === undefined ? 'over' : reasoning.startsInside ? 'inside' : 'undecided'
  let begun = '' // the text since the beginning while undecided, since then as much as may hold a closing tag
  let matched: string | undefined

  const follow = (text: string): void => {
    if (reasoning === undefined || thinking === 'over') return
    begun += text
    if (thinking === 'undecided') {
      const start = begun.trimStart()
      if (start.startsWith(reasoning.open)) thinking = 'inside'
      else if (!reasoning.open.startsWith(start)) thinking = 'over'
    }
    if (thinking === 'inside') {
      if (begun.includes(reasoning.close)) thinking = 'over'
      else begun = begun.slice(-reasoning.close.length)
    }
  }

  const content = (text: string): Delta[] => {
    if (text === '') return []
    return tools === undefined ? [{ kind: 'content', text }] : tools.push(text)
  }
  const said = (text: string): Delta[] => {
    if (split === undefined) return content(text)
    const { reasoning: thought, content: answer } = split.push(text)
    return [...(thought === '' ? [] : [{ kind: 'reasoning', text: thought } as const]), ...content(answer)]
  }

  return {
    push: (text: string): { deltas: Delta[]; passed: number } => {
      if (matched !== undefined) return { deltas: [], passed: 0 }
      follow(text)
      const out = stop.push(text)
      matched = out.matched
      return { deltas: out.text === '' ? [] : said(out.text), passed: out.text.length }
    },
    /** No more text comes: what was held back goes out. */
    end: (): { deltas: Delta[]; passed: number } => {
      const rest = matched === undefined ? stop.end() : ''
      const deltas = rest === '' ? [] : said(rest)
      if (split !== undefined) {
        const last = split.end()
        if (last.reasoning !== '') deltas.push({ kind: 'reasoning', text: last.reasoning })
        deltas.push(...content(last.content))
      }
      if (tools !== undefined) deltas.push(...tools.end())
      return { deltas, passed: rest.length }
    },
    /** The stop string that ended the answer, if one did. */
    matched: (): string | undefined => matched,
    isThinking: (): boolean => thinking === 'inside',
  }
}
