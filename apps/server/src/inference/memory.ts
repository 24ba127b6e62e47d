/** So much of a request finds room in the reserve when there is none elsewhere: an ordinary chat, its answer included. */
const SMALL_BYTES = 64 * 1024
const RESERVE = 1 / 16

/** A part of the memory, and how much of it who holds. */
type Pool = { readonly mostBytes: number; bytes: number; readonly ofOwner: Map<string, number> }

/** The memory of the process for bodies and answers; every exchange holds its part of it. */
export type Memory = { open(): Held }

/** What one request holds. */
export type Held = {
  /** For whom; said before anything is held. */
  own(organizationId: string): void
  /** False when there is no room. */
  hold(bytes: number): boolean
  /** May be said again. */
  release(): void
}

/**
 * An organization may hold as much as it leaves free for the others: half of the memory when it is alone, a third when there are
 * two that want all. One request of an organization that holds nothing else may take whatever is free, so that the largest body that
 * is allowed can be sent by everybody. Small requests have a reserve, under the same rule, and get in when the rest is full.
 */
export const openMemory = (mostBytes: number): Memory => {
  const reserve: Pool = { mostBytes: Math.floor(mostBytes * RESERVE), bytes: 0, ofOwner: new Map() }
  const most: Pool = { mostBytes: mostBytes - reserve.mostBytes, bytes: 0, ofOwner: new Map() }

  return {
    open() {
      let owner = ''
      const large = openPart(most)
      const small = openPart(reserve)
      return {
        own: (organizationId) => {
          owner = organizationId
        },
        hold: (bytes) => large.take(owner, bytes) || (large.held() + small.held() + bytes <= SMALL_BYTES && small.take(owner, bytes)),
        release() {
          large.release(owner)
          small.release(owner)
        },
      }
    },
  }
}

const openPart = (pool: Pool) => {
  let held = 0
  return {
    held: () => held,
    take(owner: string, bytes: number): boolean {
      const free = pool.mostBytes - pool.bytes - bytes
      if (free < 0) return false
      const others = (pool.ofOwner.get(owner) ?? 0) - held
      if (others > 0 && others + held + bytes > free) return false
      held += bytes
      pool.bytes += bytes
      pool.ofOwner.set(owner, others + held)
      return true
    },
    release(owner: string): void {
      if (held === 0) return
      const left = (pool.ofOwner.get(owner) ?? 0) - held
      if (left > 0) pool.ofOwner.set(owner, left)
      else pool.ofOwner.delete(owner)
      pool.bytes -= held
      held = 0
    },
  }
}
