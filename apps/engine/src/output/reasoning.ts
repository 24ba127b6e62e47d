/** How a model marks what it thinks before it answers. */
export type ReasoningStyle = {
  open: string
  close: string
  /** The prompt already ends with the opening tag, so the answer begins inside. */
  startsInside: boolean
  /** A tag that begins an answer given without any reasoning; it is not part of the answer. */
  plain?: string
}

const KNOWN: readonly { seen: readonly string[]; open: string; close: string; plain?: string }[] = [
  {
    // The harmony format of gpt-oss: channels instead of tags.
    seen: ['<|channel|>', 'analysis'],
    open: '<|channel|>analysis<|message|>',
    close: '<|end|><|start|>assistant<|channel|>final<|message|>',
    plain: '<|channel|>final<|message|>',
  },
  { seen: ['[/THINK]'], open: '[THINK]', close: '[/THINK]' },
  { seen: ['</seed:think>'], open: '<seed:think>', close: '</seed:think>' },
  { seen: ['<|END_THINKING|>'], open: '<|START_THINKING|>', close: '<|END_THINKING|>' },
  { seen: ['◁/think▷'], open: '◁think▷', close: '◁/think▷' },
  { seen: ['</think>'], open: '<think>', close: '</think>' },
  // A template that only opens the tag: the model closes it.
  { seen: ['<think>'], open: '<think>', close: '</think>' },
  { seen: ['[THINK]'], open: '[THINK]', close: '[/THINK]' },
]

/** Finds the style by what the template contains. `renderedPrompt` tells whether the template has opened the tag for the model. */
export const reasoningStyle = (template: string, renderedPrompt: string): ReasoningStyle | undefined => {
  const style = KNOWN.find(({ seen }) => seen.every((mark) => template.includes(mark)))
  if (style === undefined) return undefined
  // Only the very end counts: a user may write the tag in a message.
  const startsInside = renderedPrompt.trimEnd().endsWith(style.open)
  return { open: style.open, close: style.close, startsInside, ...(style.plain !== undefined && { plain: style.plain }) }
}

export type ReasoningSplit = {
  push(text: string): { reasoning: string; content: string }
  end(): { reasoning: string; content: string }
}

const NEWLINES_AT_END = /[\r\n]+$/
const NEWLINES_AT_START = /^[\r\n]+/
const ONLY_SPACE = /^\s*$/

/** How much of the end of `text` may be the beginning of `tag`. */
const partOf = (text: string, tag: string): number => {
  for (let length = Math.min(tag.length - 1, text.length); length > 0; length -= 1) {
    if (tag.startsWith(text.slice(text.length - length))) return length
  }
  return 0
}

/**
 * Splits what a model thinks from what it answers (contract 6.7: first all reasoning, then all content). The opening tag counts only
 * at the beginning, since an answer may speak about the tag; so does the first closing tag after it. Newlines around the tags belong
 * to neither side. When the answer ends inside the tag, all of it was reasoning.
 *
 * The text must have been detokenized with special tokens shown: some models have the tags as special tokens.
 */
export const openReasoningSplit = (options: ReasoningStyle): ReasoningSplit => {
  const { open, close, plain } = options
  const openers = plain === undefined ? [open] : [open, plain]
  let place: 'start' | 'inside' | 'after' | 'answer' = 'start'
  let held = '' // bounded by the longest tag and the run of newlines before it
  let begun = false // whether any reasoning was given out: newlines before it are dropped

  const start = (): boolean => {
    const text = held.trimStart()
    const opener = openers.find((tag) => text.startsWith(tag))
    if (opener !== undefined) {
      held = text.slice(opener.length)
      place = opener === open ? 'inside' : 'after'
      return true
    }
    if (openers.some((tag) => tag.startsWith(text))) return false
    place = options.startsInside ? 'inside' : 'answer'
    return true
  }

  const inside = (): string => {
    if (!begun) held = held.replace(NEWLINES_AT_START, '')
    const at = held.indexOf(close)
    let reasoning: string
    if (at >= 0) {
      reasoning = held.slice(0, at).replace(NEWLINES_AT_END, '')
      held = held.slice(at + close.length)
      place = 'after'
    } else {
      const safe = held.slice(0, held.length - partOf(held, close)).replace(NEWLINES_AT_END, '')
      held = held.slice(safe.length)
      reasoning = safe
    }
    begun ||= reasoning !== ''
    return reasoning
  }

  const push = (text: string) => {
    held += text
    let reasoning = ''
    let content = ''
    if (place === 'start' && !start()) return { reasoning, content }
    if (place === 'inside') reasoning = inside()
    if (place === 'after') {
      held = held.replace(NEWLINES_AT_START, '')
      if (held !== '') place = 'answer'
    }
    if (place === 'answer') {
      content = held
      held = ''
    }
    return { reasoning, content }
  }

  return {
    push,
    end() {
      const rest = held
      held = ''
      if (place === 'inside') return { reasoning: rest, content: '' }
      if (place === 'start' && options.startsInside) return { reasoning: ONLY_SPACE.test(rest) ? '' : rest, content: '' }
      return { reasoning: '', content: rest }
    },
  }
}
