/** A moment at which something is over. Moving it is an assignment, since it happens for every chunk of every stream. */
export type Deadline = {
  atMs: number
  readonly fire: () => void
  /** Among those that are pending; -1 when it is not. */
  place: number
}

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

/**
 * One timer for all deadlines of all requests: a timer each would cost more than the chunk it guards (performance.md 4).
 *
 * They lie in a list where the last one takes the place of one that goes. A Set would be simpler, but V8 copies one that is added to and deleted
 * from into a new table again and again, each old table holds the next one and what stood in it, and so every request outlives the quick
 * collection of young objects: a third of the processor time of a request went into that.
 */
export const openDeadlines = (): Deadlines => {
  const pending: Deadline[] = []
  let timer: NodeJS.Timeout | undefined

  const remove = (deadline: Deadline): void => {
    const { place } = deadline
    if (place < 0) return
    deadline.place = -1
    const last = pending.pop()
    if (last === undefined || last === deadline) return
    pending[place] = last
    last.place = place
  }

  const sweep = (): void => {
    const nowMs = performance.now()
    // From behind: whatever takes the place of one that goes has been looked at.
    for (let place = pending.length - 1; place >= 0; place -= 1) {
      const deadline = pending[place]
      if (deadline === undefined || deadline.atMs > nowMs) continue
      remove(deadline)
      deadline.fire()
    }
    if (pending.length === 0) stop()
  }
  const stop = (): void => {
    clearInterval(timer)
    timer = undefined
  }

  const again = (deadline: Deadline, inMs: number): void => {
    deadline.atMs = performance.now() + inMs
    if (deadline.place < 0) {
      deadline.place = pending.length
      pending.push(deadline)
    }
    timer ??= setInterval(sweep, SWEEP_MS).unref()
  }

  return {
    add(inMs, fire) {
      const deadline = { atMs: 0, fire, place: -1 }
      again(deadline, inMs)
      return deadline
    },
    again,
    move(deadline, inMs) {
      deadline.atMs = performance.now() + inMs
    },
    remove,
    close() {
      for (const deadline of pending) deadline.place = -1
      pending.length = 0
      stop()
    },
  }
}
