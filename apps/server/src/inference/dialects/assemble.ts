import type { Piece } from './told.ts'

/** What an answer is made of, in the order in which it was said. */
export type Block =
  | { readonly kind: 'reasoning' | 'text'; text: string }
  | { readonly kind: 'call'; readonly id: string; readonly name: string; arguments: string }

/** What happens to a block: exactly one is open at a time, and blocks open in the order of their indexes. */
export type Step =
  | { readonly does: 'open'; readonly index: number; readonly block: Block }
  | { readonly does: 'close'; readonly index: number; readonly block: Block }
  | { readonly does: 'grow'; readonly index: number; readonly block: Block; readonly delta: string }

export type Assembly = {
  push(piece: Piece): readonly Step[]
  /** No more will come. An answer without a word is one empty text, since readers look for the last block. */
  end(): readonly Step[]
  readonly blocks: readonly Block[]
}

/** A call of which fragments have come. It becomes a block when its name is known and it is its turn. */
type Call = { id: string; readonly name: string; text: string; closed: boolean }

/**
 * Puts the pieces of an answer together, streamed or whole: the other dialects say of each block where it begins and where it ends,
 * which a chat leaves to be guessed. Reasoning and text end when something else begins.
 *
 * Tool calls are harder. Engines send the fragments of one call after another, but nothing forbids them to send two side by side, and
 * a block that was closed cannot be gone on with. So when another call begins, the open one is closed only if its arguments are
 * a whole object already; until then the fragments of the others wait.
 */
export const assemble = (newCallId: (index: number) => string): Assembly => {
  const blocks: Block[] = []
  const calls = new Map<number, Call>()
  let waiting: Call[] = []
  let current: { call: Call | undefined; index: number; block: Block } | undefined
  let steps: Step[] = []

  const open = (block: Block, call?: Call): void => {
    const index = blocks.push(block) - 1
    current = { call, index, block }
    steps.push({ does: 'open', index, block: { ...block } })
  }

  const grow = (delta: string): void => {
    if (current === undefined || delta === '') return
    const { index, block } = current
    if (block.kind === 'call') block.arguments += delta
    else block.text += delta
    steps.push({ does: 'grow', index, block, delta })
  }

  const close = (): void => {
    if (current === undefined) return
    const { call, index, block } = current
    // A function without parameters; as JSON an empty string would be an error to whoever parses it.
    if (block.kind === 'call' && block.arguments === '') grow('{}')
    if (call !== undefined) call.closed = true
    steps.push({ does: 'close', index, block })
    current = undefined
  }

  /** Opens calls in their order, as far as the one before them is closed. */
  const advance = (force: boolean): void => {
    for (;;) {
      if (current?.call !== undefined) {
        grow(current.call.text)
        current.call.text = ''
      }
      const next = waiting[0]
      if (next === undefined) return
      if (current?.block.kind === 'call' && !force && !isWholeObject(current.block.arguments)) return
      close()
      waiting = waiting.slice(1)
      open({ kind: 'call', id: next.id || newCallId(blocks.length), name: next.name, arguments: '' }, next)
    }
  }

  const say = (kind: 'reasoning' | 'text', text: string): void => {
    if (current?.block.kind !== kind) {
      advance(true)
      close()
      open({ kind, text: '' })
    }
    grow(text)
  }

  const callAt = (piece: Piece & { kind: 'call' }): Call | undefined => {
    const known = calls.get(piece.place)
    // Some engines number all their calls 0; another id with a name is another call.
    const another = known !== undefined && piece.name !== '' && piece.id !== '' && piece.id !== known.id
    if (known !== undefined && !another) return known
    // Without a name there is nothing that could be called.
    if (piece.name === '') return undefined
    const call = { id: piece.id, name: piece.name, text: '', closed: false }
    calls.set(piece.place, call)
    waiting.push(call)
    return call
  }

  const taken = (): readonly Step[] => {
    const done = steps
    steps = []
    return done
  }

  return {
    blocks,
    push(piece) {
      if (piece.kind !== 'call') say(piece.kind, piece.text)
      else {
        const call = callAt(piece)
        if (call !== undefined && !call.closed) call.text += piece.arguments
        advance(false)
      }
      return taken()
    },
    end() {
      advance(true)
      if (blocks.length === 0) open({ kind: 'text', text: '' })
      close()
      return taken()
    },
  }
}

const isWholeObject = (text: string): boolean => {
  if (!text.trimEnd().endsWith('}')) return false
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
