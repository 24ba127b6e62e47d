import type { Counts } from '../../usage/event.ts'
import { toCounts } from '../answer.ts'

/** A piece of what a model says. `call` is a fragment of a tool call: the place says to which one it belongs. */
export type Piece =
  | { readonly kind: 'reasoning' | 'text'; readonly text: string }
  | { readonly kind: 'call'; readonly place: number; readonly id: string; readonly name: string; readonly arguments: string }

/** What an engine has told in one event of a stream, or in a whole answer. */
export type Told = {
  readonly pieces: readonly Piece[]
  readonly finish: string | undefined
  /** The client's own stop text that ended the answer, where the engine names it (vLLM does). */
  readonly stopped: string | undefined
  readonly counts: Counts | undefined
}

type Fields = Record<string, unknown>

/**
 * Reads an event of a chat stream, or a whole chat completion: both have the same fields, one below `delta` and one below `message`.
 * What is of another type than it should be is passed over, as the clients of a chat would: engines differ in small things, and
 * here every event of every stream comes by, so there is no schema.
 */
export const readTold = (answer: unknown): Told => {
  const fields = toFields(answer)
  const choice = toFields(toList(fields['choices'])[0])
  const said = toFields(choice['delta'] ?? choice['message'])
  const pieces: Piece[] = []
  // Some engines say the same under both names (data-plane.md 6.7).
  const reasoning = toText(said['reasoning_content']) || toText(said['reasoning'])
  if (reasoning !== '') pieces.push({ kind: 'reasoning', text: reasoning })
  const text = toText(said['content'])
  if (text !== '') pieces.push({ kind: 'text', text })
  for (const [index, call] of toList(said['tool_calls']).map(toFields).entries()) {
    const called = toFields(call['function'])
    const place = typeof call['index'] === 'number' ? call['index'] : index
    pieces.push({ kind: 'call', place, id: toText(call['id']), name: toText(called['name']), arguments: toText(called['arguments']) })
  }
  return {
    pieces,
    finish: toText(choice['finish_reason']) || undefined,
    stopped: toText(choice['stop_reason']) || undefined,
    counts: fields['usage'] === undefined || fields['usage'] === null ? undefined : toCounts(fields['usage']),
  }
}

const toText = (value: unknown): string => (typeof value === 'string' ? value : '')
const toList = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : [])
const toFields = (value: unknown): Fields => (typeof value === 'object' && value !== null ? (value as Fields) : {})
