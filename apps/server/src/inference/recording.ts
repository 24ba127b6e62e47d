import { guardedFetch } from '../kit/guarded-fetch.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { yes } from '../kit/outcome.ts'
import type { Body } from './body.ts'
import { type Exchange, type ExchangeRooms, type Over } from './exchange.ts'

/** One thing that was said to the clients, and how much memory it takes to say it again. */
type Step = {
  readonly bytes: number
  /** A piece of a stream, where it is one. */
  readonly piece?: Buffer
  /** Says whether the client keeps up. */
  play(to: Exchange): boolean
}

/** A client that gets the answer; `at` is how much of it, in steps. */
type Watcher = { readonly exchange: Exchange; at: number; keepsUp: boolean }

export type RecordingBounds = {
  /** How long the engine goes on when the last client has left: a connection that broke is back within seconds. */
  readonly lingerMs: number
  /** Clients at one running answer. */
  readonly watchers: number
  /** Asks for memory; false when there is none. What was asked for is given back with a negative number. */
  room(kept: Kept, bytes: number): boolean
}

/** An answer that can be given again. */
export type Kept = {
  /** Gives the answer from its beginning. False: its beginning is not kept, or there are too many already. */
  attach(exchange: Exchange): boolean
  /** Forgets the answer; who is attached gets it to its end all the same. */
  forget(): void
  readonly bytes: number
}

/** One answer on its way to any number of clients, and to those who come later. */
export type Recording = Kept & {
  /** What `serve` answers to. It outlives the client that came first. */
  readonly exchange: Exchange
  /** `serve` has nothing more to say. */
  done(): void
  /** No longer waits for clients to come back. */
  stop(): void
}

/** What a step costs beside its bytes. */
const STEP_BYTES = 128

const REPLAYED = ['idempotent-replayed', 'true']

/**
 * The exchange of several clients. While an answer is being made it goes at the pace of the quickest of them and the others
 * follow from memory; when there is no room for that any more it is no longer kept, and goes at the pace of the slowest.
 */
export const record = (
  rooms: ExchangeRooms,
  first: Exchange,
  body: Body,
  organizationId: OrganizationId,
  bounds: RecordingBounds,
  told: {
    /**
     * Once. `complete`: it was said to its end; otherwise it was refused, it failed, or nobody waited for it. What is kept of it then takes the
     * place of the recording, which has the request and whoever asked.
     */
    ended(complete: boolean, kept?: Kept): void
    /** Only who is attached gets it to its end. */
    forgotten(): void
  },
): Recording => {
  const { clock, log, limits, deadlines, memory } = rooms
  const abort = new AbortController()
  const held = memory.open()
  const watchers = new Set<Watcher>()
  let steps: Step[] = []
  let bytes = 0
  let kept = true
  let closed = false
  let begun = false
  let waits = false // whoever writes was told to wait
  let over: Over | undefined
  let listener: ((over: Over) => void) | undefined
  let drained: (() => void) | undefined
  let lingerMs = bounds.lingerMs

  held.own(organizationId)
  held.hold(body.bytes)
  const total = deadlines.add(Math.max(0, limits.totalMs - (clock.now() - first.acceptedAt)), () => becomeOver('timed_out'))
  const lonely = deadlines.add(Number.POSITIVE_INFINITY, () => becomeOver('client_left'))

  const becomeOver = (how: Over): void => {
    if (closed || over !== undefined) return
    over = how
    abort.abort(new Error(how === 'client_left' ? 'all clients have left' : 'the time for the answer is up'))
    // Whoever comes now begins anew: this one will not be said to its end.
    if (how === 'client_left') end(false)
    if (listener !== undefined) listener(how)
    else if (how === 'timed_out')
      close(
        one(0, (to) => to.giveUp({ code: 'engine_late', limitMs: limits.totalMs })),
        false,
      )
  }

  let toldEnd = false
  const end = (complete: boolean): void => {
    if (toldEnd) return
    toldEnd = true
    if (complete && kept) told.ended(complete, toKept(steps, bytes, bounds.room))
    else told.ended(complete)
  }

  /** All that there is, whether the client keeps up or not. */
  const playAll = (watcher: Watcher): void => {
    while (watcher.at < steps.length) watcher.keepsUp = steps[watcher.at++]?.play(watcher.exchange) === true
  }
  const play = (watcher: Watcher): void => {
    while (watcher.keepsUp && watcher.at < steps.length) watcher.keepsUp = steps[watcher.at++]?.play(watcher.exchange) === true
  }

  const forget = (): void => {
    if (!kept) return
    for (const watcher of watchers) playAll(watcher)
    kept = false
    steps = []
    bounds.room(recording, -bytes)
    bytes = 0
    told.forgotten()
  }

  const say = (step: Step): void => {
    if (closed) return
    if (kept && !bounds.room(recording, step.bytes + STEP_BYTES)) forget()
    if (!kept) {
      for (const watcher of watchers) watcher.keepsUp = step.play(watcher.exchange)
      return
    }
    bytes += step.bytes + STEP_BYTES
    steps.push(step)
    for (const watcher of watchers) play(watcher)
  }

  const keepsUp = (): boolean => {
    if (watchers.size === 0) return true
    const all = [...watchers]
    return kept ? all.some((watcher) => watcher.keepsUp) : all.every((watcher) => watcher.keepsUp)
  }
  const goOn = (): void => {
    if (!waits || !keepsUp()) return
    waits = false
    drained?.()
  }

  const close = (last: Step, complete: boolean): void => {
    if (closed) return
    say(last)
    closed = true
    for (const { exchange } of watchers) exchange.whenOver(undefined)
    // It is the same bytes for all of them: who is behind has them waiting in the socket.
    for (const watcher of watchers) playAll(watcher)
    watchers.clear()
    deadlines.remove(total)
    deadlines.remove(lonely)
    held.release()
    steps = joined(steps)
    const now = steps.reduce((sum, step) => sum + step.bytes + STEP_BYTES, 0)
    bounds.room(recording, now - bytes)
    bytes = now
    end(complete)
  }

  const leave = (watcher: Watcher): void => {
    if (!watchers.delete(watcher) || closed) return
    if (watchers.size === 0) deadlines.again(lonely, lingerMs)
    goOn()
  }

  const join = (exchange: Exchange): void => {
    const watcher: Watcher = { exchange, at: 0, keepsUp: true }
    watchers.add(watcher)
    deadlines.move(lonely, Number.POSITIVE_INFINITY)
    exchange.whenDrained(() => {
      watcher.keepsUp = true
      play(watcher)
      goOn()
    })
    // The answer began before whoever came later, so when their time is up the answer's own is.
    exchange.whenOver((how) => (how === 'client_left' ? leave(watcher) : becomeOver(how)))
    play(watcher)
  }

  const shared: Exchange = {
    // Who asked and when, as it was for the one that came first.
    id: first.id,
    acceptedAt: first.acceptedAt,
    projectId: first.projectId,
    authorization: first.authorization,
    ip: first.ip,
    userAgent: first.userAgent,
    contentType: first.contentType,
    idempotencyKey: first.idempotencyKey,
    get over() {
      return over
    },
    isOver: () => abort.signal.aborted,
    signal: () => abort.signal,
    readBody: async () => yes(body),
    hold: (more) => !closed && held.hold(more),
    release: () => undefined, // what was held is the body, which is ours until the end
    async fetch(url, { maxBytes, timeMs, accept }) {
      const fetched = await guardedFetch(url, { maxBytes, timeMs, headers: { accept }, signal: abort.signal, allow: limits.fetchAllow })
      if (fetched.ok && !held.hold(fetched.body.length)) return { ok: false, reason: 'too many large requests are in flight' }
      return fetched
    },
    whenOver(listening) {
      listener = listening
      if (over !== undefined) listening?.(over)
    },
    // What is left of a limit is true for the one whose request was counted, and only now.
    setHeaders: (headers) => first.setHeaders(headers),
    addHeaders: (headers) => say(toHeaders(headers)),
    answer: (...given) => close(toAnswer(given), true),
    get begun() {
      return begun
    },
    begin(...given) {
      begun = true
      say(toBeginning(given))
    },
    write(piece) {
      if (closed) return true
      say(toStep(piece))
      waits = !keepsUp()
      return !waits
    },
    whenDrained(listening) {
      drained = listening
    },
    end: (last) => close(toEnd(last), true),
    refuse: (refusal) =>
      close(
        one(0, (to) => to.refuse(refusal)),
        false,
      ),
    giveUp: (refusal) =>
      close(
        one(0, (to) => to.giveUp(refusal)),
        false,
      ),
    fault(error) {
      if (over !== undefined && watchers.size === 0) return
      log.error({ requestId: first.id, err: error }, 'A request failed')
      shared.giveUp({ code: 'fault' })
    },
  }

  const recording: Recording = {
    exchange: shared,
    attach(exchange) {
      if (!kept || watchers.size >= bounds.watchers) return false
      exchange.setHeaders(REPLAYED)
      join(exchange)
      return true
    },
    done: () =>
      close(
        one(0, () => {}),
        false,
      ),
    stop() {
      lingerMs = 0
      if (watchers.size === 0) becomeOver('client_left')
    },
    forget,
    get bytes() {
      return bytes
    },
  }
  join(first)
  return recording
}

/** A step that every client keeps up with. */
const one = (bytes: number, tell: (to: Exchange) => void): Step => ({
  bytes,
  play(to) {
    tell(to)
    return true
  },
})

// What may be kept is made out here: a closure that is made inside `record` keeps alive the request, its body and whoever asked.
const toHeaders = (headers: readonly string[]): Step => one(0, (to) => to.addHeaders(headers))
const toAnswer = (given: Parameters<Exchange['answer']>): Step => one(given[1].bytes, (to) => to.answer(...given))
const toBeginning = (given: Parameters<Exchange['begin']>): Step => one(0, (to) => to.begin(...given))
const toStep = (piece: Buffer): Step => ({ bytes: piece.length, piece, play: (to) => to.write(piece) })
const toEnd = (last: Buffer): Step => one(last.length, (to) => to.end(last))

/** A finished answer, which is all there is to say at once. */
const toKept = (steps: readonly Step[], bytes: number, room: RecordingBounds['room']): Kept => {
  const kept: Kept = {
    bytes,
    attach(exchange) {
      exchange.setHeaders(REPLAYED)
      for (const step of steps) step.play(exchange)
      return true
    },
    forget: () => void room(kept, -bytes),
  }
  return kept
}

/** The pieces of a stream as one: what is kept for a day shall not keep the buffers that they came in. */
const joined = (steps: readonly Step[]): Step[] => {
  const whole: Step[] = []
  let pieces: Buffer[] = []
  const join = (): void => {
    if (pieces.length > 0) whole.push(toStep(Buffer.concat(pieces)))
    pieces = []
  }
  for (const step of steps) {
    if (step.piece !== undefined) pieces.push(step.piece)
    else {
      join()
      whole.push(step)
    }
  }
  join()
  return whole
}
