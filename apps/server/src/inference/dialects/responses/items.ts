export type Fields = Record<string, unknown>

type Part = Fields & { type: string; text?: string; refusal?: string }
type Item = Fields & { id?: unknown; type?: unknown; content?: Part[]; arguments?: string }

/** Which part a delta goes on with, by the name of its event. */
const PARTS: Readonly<Record<string, string>> = {
  'response.output_text.delta': 'output_text',
  'response.reasoning_text.delta': 'reasoning_text',
  'response.refusal.delta': 'refusal',
}

/** More than one answer has; each is held until its end. */
const MAX_ITEMS = 1_000

/**
 * Follows the items of a streamed response, for when it does not come to its own end: what has been said stands in the event that says so
 * (data-plane.md 8.5).
 */
export const openItems = () => {
  const items = new Map<number, { item: Item; done: boolean }>()

  const at = (fields: Fields): { item: Item; done: boolean } | undefined => items.get(Number(fields['output_index']))

  const grow = (type: string, fields: Fields): void => {
    const known = at(fields)
    const delta = fields['delta']
    if (known === undefined || typeof delta !== 'string') return
    if (type === 'response.function_call_arguments.delta') known.item.arguments = (known.item.arguments ?? '') + delta
    const named = PARTS[type]
    if (named === undefined) return
    const key = named === 'refusal' ? 'refusal' : 'text'
    known.item.content ??= []
    const place = Math.min(Number(fields['content_index'] ?? 0), known.item.content.length)
    const part = known.item.content[place]
    if (part === undefined) known.item.content[place] = { type: named, [key]: delta, ...(key === 'text' ? { annotations: [] } : {}) }
    else part[key] = String(part[key] ?? '') + delta
  }

  return {
    /** Takes the next event. */
    note(type: string, fields: Fields): void {
      const index = Number(fields['output_index'])
      if (type === 'response.output_item.added' && items.size < MAX_ITEMS) {
        items.set(index, { item: structuredClone(toItem(fields['item'])), done: false })
      } else if (type === 'response.output_item.done' && items.has(index)) {
        items.set(index, { item: toItem(fields['item']), done: true })
      } else grow(type, fields)
    },

    /** All of them, in order; those that are not over have this status. */
    all: (status: 'incomplete'): Item[] => [...items.values()].map(({ item, done }) => (done ? item : { ...item, status })),

    /** The events that end what is open. */
    close(): ({ type: string } & Fields)[] {
      return [...items].flatMap(([index, known]) => {
        if (known.done) return []
        known.done = true
        known.item = { ...known.item, status: 'incomplete' }
        const { item } = known
        const place = { item_id: item.id, output_index: index }
        const last = item.content?.at(-1)
        const part = { ...place, content_index: (item.content?.length ?? 0) - 1 }
        return [
          ...(item.type === 'function_call'
            ? [{ type: 'response.function_call_arguments.done', ...place, name: item['name'], arguments: item.arguments ?? '' }]
            : []),
          ...(last === undefined
            ? []
            : [
                { type: `response.${last.type}.done`, ...part, ...textOf(last) },
                { type: 'response.content_part.done', ...part, part: last },
              ]),
          { type: 'response.output_item.done', output_index: index, item },
        ]
      })
    },
  }
}

const textOf = (part: Part): Fields =>
  part.type === 'refusal'
    ? { refusal: part.refusal ?? '' }
    : { text: part.text ?? '', ...(part.type === 'output_text' ? { logprobs: [] } : {}) }

const toItem = (value: unknown): Item => (typeof value === 'object' && value !== null ? (value as Item) : {})
