/*
 * Just enough of JSON's surface to find where a value ends while it is still being written, and to take a member out of an object as
 * the model wrote it: parsing and printing it again would lose the digits of large numbers.
 */

const SPACE = /\s/
const OUTSIDE_STRINGS = /[\s:,\-+.0-9truefalsnE]/ // digits, signs and the letters of true, false, null and exponents

/** Where the value ends (the index after it), that it has not ended yet, or that this is no JSON. */
export type JsonEnd = number | 'more' | 'not'

export type JsonScan = {
  /** Looks at a text that has only grown since the last call with the same `from`: nothing is read twice. */
  end(text: string, from: number): JsonEnd
}

/** Finds the end of an object or array that starts at `from`. It checks brackets and strings; what is between them, `JSON.parse` checks. */
export const openJsonScan = (): JsonScan => {
  let start = -1
  let at = 0
  let inString = false
  let open: string[] = []
  let ended: number | undefined

  return {
    end(text, from) {
      if (from !== start) {
        start = from
        at = from
        inString = false
        open = []
        ended = undefined
      }
      if (ended !== undefined) return ended // asked again, while something is awaited behind the value
      for (; at < text.length; at += 1) {
        const char = text[at] ?? ''
        if (inString) {
          if (char === '\\') {
            if (at + 1 >= text.length) return 'more'
            at += 1
          } else if (char === '"') inString = false
          else if (char < ' ') return 'not'
        } else if (char === '{' || char === '[') open.push(char)
        else if (open.length === 0) return 'not'
        else if (char === '"') inString = true
        else if (char === '}' || char === ']') {
          if (open.pop() !== (char === '}' ? '{' : '[')) return 'not'
          if (open.length === 0) {
            ended = at + 1
            return ended
          }
        } else if (!OUTSIDE_STRINGS.test(char)) return 'not'
      }
      return 'more'
    },
  }
}

export const skipSpace = (text: string, from: number): number => {
  let at = from
  while (at < text.length && SPACE.test(text[at] ?? '')) at += 1
  return at
}

/** The end of any value in a text that is known to be JSON. */
const valueEnd = (text: string, from: number): number => {
  const first = text[from]
  if (first === '{' || first === '[') {
    const end = openJsonScan().end(text, from)
    return typeof end === 'number' ? end : text.length
  }
  let at = from
  if (first === '"') {
    for (at += 1; at < text.length && text[at] !== '"'; at += 1) if (text[at] === '\\') at += 1
    return at + 1
  }
  while (at < text.length && !/[\s,\]}]/.test(text[at] ?? '')) at += 1
  return at
}

/** The members of an object, as written. The text must be a JSON object. */
export const membersOf = (text: string): Map<string, string> => {
  const members = new Map<string, string>()
  let at = skipSpace(text, 1)
  while (text[at] === '"') {
    const keyEnd = valueEnd(text, at)
    const key = JSON.parse(text.slice(at, keyEnd)) as string
    const from = skipSpace(text, skipSpace(text, keyEnd) + 1)
    const end = valueEnd(text, from)
    members.set(key, text.slice(from, end))
    at = skipSpace(text, end)
    if (text[at] === ',') at = skipSpace(text, at + 1)
  }
  return members
}

/** The items of an array, as written. The text must be a JSON array. */
export const itemsOf = (text: string): string[] => {
  const items: string[] = []
  let at = skipSpace(text, 1)
  while (at < text.length && text[at] !== ']') {
    const end = valueEnd(text, at)
    items.push(text.slice(at, end))
    at = skipSpace(text, end)
    if (text[at] === ',') at = skipSpace(text, at + 1)
  }
  return items
}

export const parseJson = (text: string): { ok: true; value: unknown } | { ok: false } => {
  try {
    return { ok: true, value: JSON.parse(text) as unknown }
  } catch {
    return { ok: false }
  }
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
