import type { Clock } from '../kit/clock.ts'
import type { Logger } from '../kit/log.ts'
import { type Answer, type Ask, HELD_MS, type Ledger, type Limited, snap } from './ledger.ts'

/** What this gateway has in hand of something limited, and what it knows of the rest. Deciding looks at nothing else. */
export type Share = {
  readonly limited: Limited
  has(units: number): boolean
  /** Also more than there is: then the share owes it. */
  take(units: number): void
  /** What was taken has been used so far; the rest comes back. */
  settle(taken: number, used: number): void
  /** Takes as much as there is, at most so much. */
  takeUpTo(units: number): number
  /** About what is left, here and in the ledger. */
  left(): number
  /** Zero when the ledger may have so much; otherwise when it will at the earliest. */
  waitMs(units: number): number
}

export type Shares = {
  share(limited: Limited): Share
  /** Asks the ledger for the shares that lack something, all in one; false when it does not answer. */
  bring(lacking: readonly { share: Share; units: number }[]): Promise<boolean>
  /** Gives back what nobody used for a second, and renews what is held. Runs every second by itself. */
  beat(): Promise<void>
  close(): Promise<void>
}

const BEAT_MS = 1_000
/** A ledger that has not answered by then is away. */
const ANSWER_LIMIT_MS = 1_000
/** While the ledger is away, requests do not wait for it; one ask in this time looks whether it is back. */
const LOOK_AGAIN_MS = 500
/** What others hold of a budget or of places may be given back any moment; what we heard is believed this long. */
const BELIEVE_MS = 100
/** A bucket that nobody has asked for so long is full again, so that nothing is lost by forgetting it. */
const FORGET_MS = 120_000
/** The longest period a budget has: what was used in it stands in no other place of this process. */
const FORGET_BUDGET_MS = 32 * 24 * 3_600_000
/** For a limit of nothing at all. */
const NEVER_MS = 60_000
const MAX_ASKS = 500

type Kept = Share & {
  limited: Limited
  stock: number
  used: number
  held: number
  /** Until then the ledger keeps for us what we hold. */
  heldUntil: number
  /** Taken on our own account while the ledger was away. */
  owed: number
  known: { left: number; at: number } | undefined
  creditAt: number | undefined
  /** More than this in hand is kept from others. */
  keep: number
  /** Used since the last beat: cheaper to note than the time. */
  touched: boolean
  /** Not used between the last two beats. */
  idle: boolean
  touchedAt: number
  readonly waiting: number[]
  asking: Promise<boolean> | undefined
  /** Something changed that the ledger has not heard. */
  untold: boolean
}

export const openShares = (parts: { ledger: Ledger; clock: Clock; log: Logger }): Shares => {
  const { ledger, clock, log } = parts
  const all = new Map<string, Kept>()
  let wanted = new Set<Kept>()
  let gateways = 1
  /** The ledger has said that there is no other gateway. Before its first word there may be. */
  let alone = false
  let awaySince: number | undefined
  let lookAt = 0
  const closing = new AbortController()

  const make = (first: Limited): Kept => {
    const share: Kept = {
      limited: first,
      stock: 0,
      used: 0,
      held: 0,
      heldUntil: 0,
      owed: 0,
      known: undefined,
      creditAt: undefined,
      keep: 0,
      touched: true,
      idle: false,
      touchedAt: clock.monotonicMs(),
      waiting: [],
      asking: undefined,
      untold: false,
      has(units) {
        if (isLost(share)) giveUp(share)
        if (awaySince !== undefined) credit(share)
        return share.stock >= units
      },
      take(units) {
        share.touched = true
        share.stock -= units
        // The next ones need not wait, if somebody asks in time.
        if (share.stock * 2 < share.keep) void ask(share)
      },
      takeUpTo(units) {
        if (isLost(share)) giveUp(share)
        const taken = Math.max(0, Math.min(units, Math.floor(share.stock)))
        if (taken > 0) share.take(taken)
        return taken
      },
      settle(taken, used) {
        share.touched = true
        share.stock += taken - used
        if (share.limited.kind === 'minute') giveBack(share)
        else {
          share.used += used
          share.held -= used
          share.untold = true
        }
        if (gateways > 1 && share.stock > 2 * share.keep) void ask(share)
      },
      left() {
        const rest = share.known === undefined ? share.limited.capacity : leftNow(share, share.known)
        return Math.max(0, Math.min(share.limited.capacity, Math.floor(rest + share.stock)))
      },
      waitMs(units) {
        const { known, limited } = share
        if (limited.capacity === 0 && limited.kind === 'minute') return NEVER_MS
        if (known === undefined) return 0
        const lacking = units - share.stock
        const now = clock.monotonicMs()
        if (limited.kind !== 'minute') {
          if (lacking <= known.left) return 0
          return Math.max(0, known.at + BELIEVE_MS - now)
        }
        const missing = Math.min(lacking, limited.capacity) - leftNow(share, known)
        return missing <= 0 ? 0 : Math.ceil(missing / limited.refillPerMs)
      },
    }
    return share
  }

  /**
   * What was reserved and not used can be more than a bucket holds, and the bucket then owes it: in hand it would be spent while the bucket
   * refills. It goes back with the next word.
   */
  const giveBack = (share: Kept): void => {
    const surplus = share.stock - share.limited.capacity
    if (surplus <= 0) return
    share.stock -= surplus
    share.owed -= surplus
    if (share.known !== undefined) share.known = { ...share.known, left: share.known.left + surplus }
  }

  /**
   * The ledger has not heard of us for as long as it keeps what we hold of a budget: others may have it by now, and it does not come back. Nobody
   * else has what is in the hand of a gateway that is alone.
   */
  const isLost = (share: Kept): boolean =>
    !alone && share.limited.kind === 'budget' && share.stock > 0 && clock.monotonicMs() >= share.heldUntil

  /** What is in hand counts no more, nor what we heard: it is of a limit that the operator has changed, or it is lost. */
  const giveUp = (share: Kept): void => {
    share.known = undefined
    if (share.stock <= 0) return
    if (share.limited.kind === 'minute') share.owed -= share.stock
    else share.held -= share.stock
    share.stock = 0
    share.untold = true
  }

  const leftNow = ({ limited }: Kept, known: { left: number; at: number }): number =>
    limited.kind === 'minute'
      ? snap(Math.min(limited.capacity, known.left + limited.refillPerMs * (clock.monotonicMs() - known.at)))
      : known.left

  /**
   * With the ledger away every gateway goes on with its part of the fleet's: of what was left as it last heard, then of what refills. Money
   * and tokens of a budget are not lent: they do not come back.
   */
  const credit = (share: Kept): void => {
    const { limited } = share
    const now = clock.monotonicMs()
    const part = limited.capacity / gateways
    if (limited.kind === 'places') {
      const more = Math.max(0, Math.floor(part) - share.held)
      share.held += more
      share.stock += more
    }
    if (limited.kind !== 'minute') return
    const since = share.creditAt
    const due =
      since === undefined
        ? Math.max(0, share.known === undefined ? limited.capacity : leftNow(share, share.known)) / gateways
        : (limited.refillPerMs / gateways) * (now - since)
    const more = Math.max(0, Math.min(due, part - share.stock))
    share.creditAt = now
    share.stock += more
    share.owed += more
    share.known = { left: 0, at: now }
  }

  const toAsk = (share: Kept, how: 'ask' | 'tell'): Ask => {
    if (isLost(share)) giveUp(share)
    const { limited, stock, waiting } = share
    const idle = share.idle && !share.touched
    let back = -share.owed
    // What nobody used, what is too much beside other gateways, and what we owe goes back.
    const surplus = gateways > 1 && stock > 2 * share.keep ? stock - share.keep : 0
    const unused = waiting.length > 0 ? 0 : how === 'tell' && idle ? stock : surplus
    const returned = stock < 0 ? stock : unused
    if (returned !== 0) {
      share.stock -= returned
      if (limited.kind === 'minute') back += returned
      else share.held -= returned
    }
    share.owed = 0
    share.untold = false
    const nothing = how === 'tell' || (waiting.length === 0 && returned > 0)
    const least = waiting.length === 0 ? 0 : Math.max(0, Math.min(...waiting) - share.stock)
    const need = Math.max(least, waiting.reduce((sum, units) => sum + units, 0) - share.stock, 0)
    return { ...limited, need: nothing ? 0 : need, least: nothing ? null : least, back, used: share.used, held: Math.max(0, share.held) }
  }

  const heard = (share: Kept, ask: Ask, { granted, left }: Answer, askedAt: number): void => {
    share.stock += granted
    if (ask.kind !== 'minute') share.held += granted
    // From when we asked: the ledger has counted from a moment after it.
    share.heldUntil = askedAt + HELD_MS
    // What refills has done so since the ledger looked, which was after we asked: counted from when we heard, somebody would be refused who fits.
    share.known = { left, at: ask.kind === 'minute' ? askedAt : clock.monotonicMs() }
    share.creditAt = undefined
    if (ask.least !== null) share.keep = Math.max(0, granted - ask.need)
  }

  const call = async (shares: readonly Kept[], how: 'ask' | 'tell'): Promise<boolean> => {
    const asks = shares.map((share) => toAsk(share, how))
    const askedAt = clock.monotonicMs()
    try {
      const answers = await limited(ledger.ask(asks))
      for (const [index, share] of shares.entries()) {
        const ask = asks[index]
        const answer = answers[index]
        if (ask !== undefined && answer !== undefined) heard(share, ask, answer, askedAt)
      }
      back()
      return true
    } catch (error) {
      // Whether it was heard or not: what we hold and used is said again as it is then, and a bucket refills.
      for (const [index, share] of shares.entries()) {
        share.owed -= Math.min(0, asks[index]?.back ?? 0)
        share.untold = true
      }
      away(error)
      return false
    }
  }

  const limited = async <T>(work: Promise<T>): Promise<T> => {
    const ended = new AbortController()
    const late = clock.sleep(ANSWER_LIMIT_MS, ended.signal).then(() => {
      throw new Error(`no answer within ${ANSWER_LIMIT_MS} ms`)
    })
    try {
      return await Promise.race([work, late])
    } finally {
      late.catch(() => undefined)
      ended.abort()
    }
  }

  const away = (error: unknown): void => {
    lookAt = clock.monotonicMs() + LOOK_AGAIN_MS
    if (awaySince !== undefined) return
    awaySince = clock.monotonicMs()
    log.warn({ err: error, gateways }, 'limits cannot be shared now; this gateway goes on with its part of them')
  }

  const back = (): void => {
    if (awaySince === undefined) return
    log.info({ awayMs: Math.round(clock.monotonicMs() - awaySince) }, 'limits are shared again')
    awaySince = undefined
  }

  /** Everything that is wanted in this turn of the loop is one question. */
  const ask = (share: Kept): Promise<boolean> => {
    if (share.asking !== undefined) return share.asking
    if (awaySince !== undefined && clock.monotonicMs() < lookAt) return AWAY
    if (wanted.size === 0) {
      const batch = new Set<Kept>()
      wanted = batch
      const asked = Promise.resolve().then(() => {
        if (wanted === batch) wanted = new Set()
        return call([...batch], 'ask')
      })
      turn = asked
    }
    wanted.add(share)
    const asking = turn.finally(() => {
      if (share.asking === asking) share.asking = undefined
    })
    share.asking = asking
    return asking
  }
  let turn: Promise<boolean> = Promise.resolve(true)

  const bring = async (lacking: readonly { share: Share; units: number }[]): Promise<boolean> => {
    const shares = lacking.map(({ share, units }) => ({ share: share as Kept, units }))
    for (const { share, units } of shares) share.waiting.push(units)
    try {
      const answered = await Promise.all(shares.map(({ share }) => ask(share)))
      return answered.every(Boolean)
    } finally {
      for (const { share, units } of shares) share.waiting.splice(share.waiting.indexOf(units), 1)
    }
  }

  const tell = async (shares: readonly Kept[]): Promise<void> => {
    for (let from = 0; from < shares.length; from += MAX_ASKS) {
      const piece = shares.slice(from, from + MAX_ASKS)
      const telling = call(piece, 'tell')
      for (const share of piece) share.asking = telling
      const told = await telling
      for (const share of piece) if (share.asking === telling) share.asking = undefined
      if (!told) return
    }
  }

  const beat = async (): Promise<void> => {
    const now = clock.monotonicMs()
    for (const [key, share] of all) {
      share.idle = !share.touched
      if (share.touched) share.touchedAt = now
      share.touched = false
      const forgetMs = share.limited.kind === 'budget' ? FORGET_BUDGET_MS : FORGET_MS
      const empty = share.stock === 0 && share.held === 0 && share.owed === 0 && !share.untold && share.asking === undefined
      if (empty && now - share.touchedAt > forgetMs) all.delete(key)
    }
    try {
      gateways = await limited(ledger.beat())
      alone = gateways === 1
    } catch (error) {
      return away(error)
    }
    const due = [...all.values()].filter((share) => {
      if (share.asking !== undefined) return false
      if (share.owed !== 0 || share.untold || share.stock < 0) return true
      return share.limited.kind === 'minute' ? share.idle && !share.touched && share.stock > 0 : share.held > 0
    })
    await tell(due)
    if (due.length === 0) back()
  }

  const loop = async (): Promise<void> => {
    while (!closing.signal.aborted) {
      await clock.sleep(BEAT_MS, closing.signal).catch(() => undefined)
      if (!closing.signal.aborted) await beat()
    }
  }
  const running = loop()

  return {
    share: (limited) => {
      let share = all.get(limited.key)
      if (share === undefined) {
        share = make(limited)
        all.set(limited.key, share)
      }
      if (share.limited.capacity !== limited.capacity) giveUp(share)
      share.limited = limited
      share.touched = true
      return share
    },
    bring,
    beat,
    close: async () => {
      closing.abort()
      await running
      for (const share of all.values()) {
        share.idle = true
        share.touched = false
      }
      await tell([...all.values()].filter((share) => share.stock !== 0 || share.held !== 0 || share.untold))
    },
  }
}

const AWAY = Promise.resolve(false)
