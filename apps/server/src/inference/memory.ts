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

  return { open: () => new Parts(most, reserve) }
}

/** A class, since there is one for each request (exchange.ts). */
class Parts implements Held {
  readonly most: Pool
  readonly reserve: Pool
  owner = ''
  large = 0
  small = 0

  constructor(most: Pool, reserve: Pool) {
    this.most = most
    this.reserve = reserve
  }

  own(organizationId: string): void {
    this.owner = organizationId
  }

  hold(bytes: number): boolean {
    const { most, reserve, owner, large, small } = this
    if (take(most, owner, large, bytes)) this.large += bytes
    else if (large + small + bytes <= SMALL_BYTES && take(reserve, owner, small, bytes)) this.small += bytes
    else return false
    return true
  }

  release(): void {
    giveBack(this.most, this.owner, this.large)
    giveBack(this.reserve, this.owner, this.small)
    this.large = 0
    this.small = 0
  }
}

/** `held` is what this request has of the pool already. */
const take = (pool: Pool, owner: string, held: number, bytes: number): boolean => {
  const free = pool.mostBytes - pool.bytes - bytes
  if (free < 0) return false
  const ofOwner = pool.ofOwner.get(owner) ?? 0
  if (ofOwner > held && ofOwner + bytes > free) return false
  pool.bytes += bytes
  pool.ofOwner.set(owner, ofOwner + bytes)
  return true
}

const giveBack = (pool: Pool, owner: string, held: number): void => {
  if (held === 0) return
  const left = (pool.ofOwner.get(owner) ?? 0) - held
  if (left > 0) pool.ofOwner.set(owner, left)
  else pool.ofOwner.delete(owner)
  pool.bytes -= held
}
