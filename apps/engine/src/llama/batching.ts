import type { BatchItem, PrioritizedBatchItem } from 'node-llama-cpp'

// How often in a row a batch may wait for the sequences that are missing. Their consumers come back within microtasks; a bound
// keeps a sequence that never comes back from holding up the others.
const MAX_WAITS = 40

/**
 * How the sequences of one context go through the model together.
 *
 * Left alone, the library starts a batch with whoever came first: every batch misses one sequence, and the same tokens take twice as many
 * batches. So a batch waits until every generating sequence has queued its next token, and takes the items in the order of the
 * slots, since llama.cpp computes only neighbouring sequences in one go.
 *
 * The library holds its context lock for as long as the queue is not empty, which with two or more sequences is until the last one ends.
 * Whoever must change the state of a sequence (cutting it back to a common prefix) therefore asks everybody to stand still
 * for a moment: `whileStill` lets each sequence finish the token it is at, the lock comes free, and all go on.
 */
export const openBatching = () => {
  let generating = 0
  let waits = 0
  let changing = 0
  let still: { promise: Promise<void>; release: () => void } | undefined

  const strategy = ({ items, size }: { items: readonly BatchItem[]; size: number }): PrioritizedBatchItem[] => {
    if (items.length < generating && waits < MAX_WAITS) {
      waits += 1
      return []
    }
    waits = 0
    const ordered = items.toSorted((a, b) => a.evaluationPriority - b.evaluationPriority)
    const single = ordered.filter((item) => item.tokens.length === 1).length
    const long = ordered.length - single
    let left = Math.max(0, size - single) // those that generate are never held up by a prompt
    let longLeft = long
    return ordered.flatMap((item) => {
      if (item.tokens.length === 1) return [{ item, processAmount: 1 }]
      const share = Math.min(item.tokens.length, Math.ceil(left / longLeft))
      longLeft -= 1
      left -= share
      return share > 0 ? [{ item, processAmount: share }] : []
    })
  }

  return {
    strategy,
    /** A sequence begins, or stops, to hand in one item after the other. */
    enter: () => {
      generating += 1
    },
    leave: () => {
      generating -= 1
    },
    /** Undefined as long as nobody wants to change a state; otherwise what to wait for (outside of `enter` and `leave`) before the next token. */
    pause: (): Promise<void> | undefined => still?.promise,
    whileStill: async <T>(change: () => Promise<T>): Promise<T> => {
      changing += 1
      if (still === undefined) {
        let release = (): void => {}
        const promise = new Promise<void>((resolve) => {
          release = resolve
        })
        still = { promise, release }
      }
      try {
        return await change()
      } finally {
        changing -= 1
        if (changing === 0) {
          const { release } = still
          still = undefined
          release()
        }
      }
    },
  }
}
export type Batching = ReturnType<typeof openBatching>
