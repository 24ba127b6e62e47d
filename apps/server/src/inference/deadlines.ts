/** A moment at which something is over. Moving it is an assignment, since it happens for every chunk of every stream. */
export type Deadline = { atMs: number; readonly fire: () => void }

export type Deadlines = {
  /** Fires once, in so many milliseconds, unless it is removed or moved before. */
  add(inMs: number, fire: () => void): Deadline
  move(deadline: Deadline, inMs: number): void
  /** Sets a deadline again that has fired. */
  again(deadline: Deadline, inMs: number): void
  remove(deadline: Deadline): void
  close(): void
}

const SWEEP_MS = 50 // how late a deadline may be noticed; 5,000 streams cost about 2 ms of each second at this pace

/** One timer for all deadlines of all requests: a timer each would cost more than the chunk it guards (performance.md 4). */
export const openDeadlines = (): Deadlines => {
  const pending = new Set<Deadline>()
  let timer: NodeJS.Timeout | undefined

  const sweep = (): void => {
    const nowMs = performance.now()
    for (const deadline of pending) {
      if (deadline.atMs > nowMs) continue
      pending.delete(deadline)
      deadline.fire()
    }
    if (pending.size === 0) stop()
  }
  const stop = (): void => {
    clearInterval(timer)
    timer = undefined
  }

  const again = (deadline: Deadline, inMs: number): void => {
    deadline.atMs = performance.now() + inMs
    pending.add(deadline)
    timer ??= setInterval(sweep, SWEEP_MS).unref()
  }

  return {
    add(inMs, fire) {
      const deadline = { atMs: 0, fire }
      again(deadline, inMs)
      return deadline
    },
    again,
    move(deadline, inMs) {
      deadline.atMs = performance.now() + inMs
    },
    remove(deadline) {
      pending.delete(deadline)
    },
    close() {
      pending.clear()
      stop()
    },
  }
}
