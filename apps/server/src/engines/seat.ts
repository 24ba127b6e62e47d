import { buildConnector, Client } from 'undici'
import type { Clock } from '../kit/clock.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Directory, Engine } from './directory.ts'
import type { Leaving, Replica, Seat } from './replica.ts'
import { NOBODY, openTurns, type Party, type Turns } from './turns.ts'

/**
 * Waits for a ready replica with a free place, within a limit. The caller's leaving ends the wait; what was waited for goes to the next.
 * With engines to avoid, since they were tried, there is no wait: another one has a place now or the answer is no.
 */
export type TakeSeat = (
  model: { readonly id: ModelId; readonly name: string },
  caller: Leaver,
  avoid?: ReadonlySet<EngineId>,
  party?: Party,
) => Promise<Outcome<Seat>>

/** Who may leave; the signal is only asked for where there is a wait. */
export type Leaver = { isOver(): boolean; signal(): AbortSignal }

export type SeatLimits = {
  /** Requests that may wait for one model. One more is refused at once rather than making all of them slower. */
  readonly waitingPerModel: number
  /** Longer than a small engine takes to come back, shorter than a client's patience. */
  readonly waitMs: number
}

const LIMITS: SeatLimits = { waitingPerModel: 256, waitMs: 10_000 }

/** An engine answers for minutes, but it accepts a connection at once or not at all. */
const CONNECT_LIMIT_MS = 5_000
/**
 * Connections that nobody uses for so long are closed; all that an engine has seats for are kept until then, since to connect again costs more than a
 * request. Shorter than the five seconds after which uvicorn and Node close an idle connection: we must be first. An engine's own hint
 * may lengthen it.
 */
const KEEP_ALIVE_MS = 4_000
const KEEP_ALIVE_MAX_MS = 60_000

/** A busy pool frees a place any moment; one that is away is asked every few seconds; one that is not there must be set up first. */
const RETRY_BUSY_MS = 1_000
const RETRY_AWAY_MS = 5_000
const RETRY_NONE_MS = 10_000

type Candidate = Pick<Engine, 'state' | 'suspect' | 'busy' | 'seatLimit' | 'onTrial' | 'lastTaken'>

const hasPlace = (engine: Candidate): boolean => engine.state === 'ready' && engine.busy < (engine.onTrial ? 1 : engine.seatLimit)

const comesBefore = (a: Candidate, b: Candidate): boolean => {
  if (a.suspect !== b.suspect) return b.suspect
  if (a.busy !== b.busy) return a.busy < b.busy
  return a.lastTaken < b.lastTaken
}

/** The least busy engine that is ready and has a place; one under suspicion only when there is no other. */
export const pick = <T extends Candidate>(engines: readonly T[]): T | undefined => {
  let best: T | undefined
  for (const engine of engines) {
    if (!hasPlace(engine)) continue
    if (best === undefined || comesBefore(engine, best)) best = engine
  }
  return best
}

/** One for all connections: each would bring its own, with a cache of TLS sessions that is never asked twice, and keep it for as long as a stream is open. */
const CONNECTOR = buildConnector({ timeout: CONNECT_LIMIT_MS })

const connect = (origin: string): Client =>
  new Client(origin, {
    pipelining: 1,
    connect: CONNECTOR,
    keepAliveTimeout: KEEP_ALIVE_MS,
    keepAliveMaxTimeout: KEEP_ALIVE_MAX_MS,
    // The relay has deadlines of its own: an engine may think for minutes.
    headersTimeout: 0,
    bodyTimeout: 0,
  })

const discard = (client: Client): void => void client.destroy().catch(() => undefined)

type Waiter = {
  readonly order: number
  readonly model: string
  /** When its turn begins, beside those of other projects. */
  readonly start: number
  settle(outcome: Outcome<Seat>): void
}

/**
 * Seats of all engines, and the queues of those who wait for one. Projects take turns, weighed by tokens; within one, and between
 * the models that share an engine's seats, the order is that of asking. A wait ends with a seat, with a refusal after its limit, when the caller leaves,
 * or when there is nothing left to hope for.
 */
export const openSeats = (options: {
  directory: Directory
  clock: Clock
  limits?: Partial<SeatLimits>
}): { takeSeat: TakeSeat; waiting: () => number; close: () => void } => {
  const { directory, clock } = options
  const limits = { ...LIMITS, ...options.limits }
  const queues = new Map<ModelId, Waiter[]>()
  const turnsOf = new Map<ModelId, Turns>()
  const clients = new Set<Client>()
  let orders = 0
  let taken = 0
  let closed = false

  /** A connection that is over while nobody uses it; of one in use the seat's end decides. */
  const forget = (shelf: Client[], client: Client): void => {
    const at = shelf.indexOf(client)
    if (at >= 0) shelf.splice(at, 1)
    else if (!client.destroyed) return
    clients.delete(client)
    discard(client)
  }

  const occupy = (engine: Engine, replica: Replica): Seat => {
    taken += 1
    engine.busy += 1
    engine.lastTaken = taken
    const shelf = engine.idle
    let client = shelf.pop()
    if (client === undefined) {
      client = connect(replica.origin)
      clients.add(client)
      client.on('disconnect', () => forget(shelf, connection))
    }
    const connection = client
    let left = false

    const giveBack = (how: Leaving): void => {
      engine.busy -= 1
      // Whoever leaves in the middle of an exchange has left it broken, whatever they say; but it says nothing about the engine.
      const reusable = how !== 'broken' && connection.stats.size === 0 && !connection.destroyed
      if (reusable && !closed && !engine.gone && engine.state === 'ready' && engine.idle === shelf) {
        shelf.push(connection)
      } else {
        clients.delete(connection)
        discard(connection)
      }
      if (how === 'broken' && !engine.gone) directory.suspect(engine)
      // An earlier process of the engine is nothing to judge this one by.
      if (engine.idle === shelf) {
        if (how === 'failed' || how === 'broken') directory.failed(engine, how)
        else if (how === 'clean' && reusable) directory.served(engine)
      }
      serve(engine)
    }

    return {
      replica,
      client: connection,
      leave: (how) => {
        if (left) return
        left = true
        // undici counts an exchange as running until its last callback has returned, and seats are left in that callback.
        queueMicrotask(() => giveBack(how))
      },
    }
  }

  /** In the queue with the one who has waited longest, the one whose turn it is. */
  const next = (engine: Engine): { modelId: ModelId; waiter: Waiter } | undefined => {
    let oldest: { modelId: ModelId; order: number } | undefined
    for (const { modelId } of engine.serves) {
      const waiter = queues.get(modelId)?.[0]
      if (waiter !== undefined && (oldest === undefined || waiter.order < oldest.order)) oldest = { modelId, order: waiter.order }
    }
    const [first, ...others] = oldest === undefined ? [] : (queues.get(oldest.modelId) ?? [])
    if (oldest === undefined || first === undefined) return undefined
    return { modelId: oldest.modelId, waiter: others.reduce((best, other) => (other.start < best.start ? other : best), first) }
  }

  const serve = (engine: Engine): void => {
    while (!engine.gone && hasPlace(engine)) {
      const turn = next(engine)
      const replica = turn && engine.replicas.get(turn.modelId)
      if (turn === undefined || replica === undefined) return
      turnsOf.get(turn.modelId)?.served(turn.waiter.start)
      turn.waiter.settle(yes(occupy(engine, replica)))
    }
  }

  /** Nothing to wait for is a refusal at once. */
  const hopeless = (model: { id: ModelId; name: string }): Outcome<never> | undefined => {
    const engines = directory.forModel(model.id)
    if (engines.length === 0) return unavailable(model.name, 'no engine serves it', RETRY_NONE_MS)
    if (engines.some(({ state }) => state !== 'unhealthy')) return undefined
    return unavailable(model.name, engines.length === 1 ? 'its engine does not answer' : 'none of its engines answers', RETRY_AWAY_MS)
  }

  directory.watch({
    moved: (engine) => {
      serve(engine)
      for (const { modelId, modelName } of engine.serves) {
        const refusal = hopeless({ id: modelId, name: modelName })
        if (refusal === undefined) continue
        for (const waiter of queues.get(modelId)?.slice() ?? []) waiter.settle(refusal)
      }
    },
  })

  const wait = (model: { id: ModelId; name: string }, signal: AbortSignal, party: Party): Promise<Outcome<Seat>> => {
    const queue = queues.get(model.id) ?? []
    const turns = turnsOf.get(model.id) ?? openTurns()
    const start = turns.startOf(party)
    if (queue.length >= limits.waitingPerModel) {
      const full = unavailable(model.name, `${limits.waitingPerModel} requests already wait for it`, RETRY_BUSY_MS)
      // A project must not keep the others out by filling the queue: whoever would come last gives way.
      const last = queue.reduce<Waiter | undefined>(
        (best, other) => (best === undefined || other.start >= best.start ? other : best),
        undefined,
      )
      if (last === undefined || last.start <= start) return Promise.resolve(full)
      last.settle(full)
    }
    turns.enter(party, start)
    queues.set(model.id, queue)
    turnsOf.set(model.id, turns)
    return new Promise((resolve) => {
      const ended = new AbortController()
      const waiter: Waiter = {
        order: (orders += 1),
        model: model.name,
        start,
        settle: (outcome) => {
          const at = queue.indexOf(waiter)
          if (at < 0) return
          queue.splice(at, 1)
          if (!outcome.ok) turns.left(party)
          if (queue.length === 0 && queues.get(model.id) === queue) {
            queues.delete(model.id)
            turnsOf.delete(model.id)
          }
          signal.removeEventListener('abort', leave)
          ended.abort()
          resolve(outcome)
        },
      }
      const leave = (): void => waiter.settle(gaveUp(model.name))
      const late = (): void => {
        const busy = directory.forModel(model.id).some(({ state }) => state === 'ready')
        const seconds = limits.waitMs / 1000
        waiter.settle(
          busy
            ? unavailable(model.name, `all places were taken for ${seconds} s`, RETRY_BUSY_MS)
            : unavailable(model.name, `its engine was still starting after ${seconds} s`, RETRY_AWAY_MS),
        )
      }
      queue.push(waiter)
      signal.addEventListener('abort', leave, { once: true })
      clock.sleep(limits.waitMs, ended.signal).then(late, () => undefined)
    })
  }

  const takeSeat: TakeSeat = (model, caller, avoid, party = NOBODY) => {
    if (closed) return Promise.resolve(stopping(model.name))
    if (caller.isOver()) return Promise.resolve(gaveUp(model.name))
    const engines = directory.forModel(model.id)
    const engine = pick(avoid === undefined ? engines : engines.filter(({ id }) => !avoid.has(id)))
    const replica = engine?.replicas.get(model.id)
    if (engine !== undefined && replica !== undefined) return Promise.resolve(yes(occupy(engine, replica)))
    if (avoid !== undefined) return Promise.resolve(unavailable(model.name, 'no other engine has a place', RETRY_BUSY_MS))
    return Promise.resolve(hopeless(model) ?? wait(model, caller.signal(), party))
  }

  return {
    takeSeat,
    waiting: () => [...queues.values()].reduce((total, queue) => total + queue.length, 0),
    close: () => {
      closed = true
      for (const waiter of [...queues.values()].flat()) waiter.settle(stopping(waiter.model))
      for (const client of clients) discard(client)
      clients.clear()
    },
  }
}

const unavailable = (model: string, reason: string, retryAfterMs: number): Outcome<never> =>
  no({ code: 'engine_unavailable', model, reason, retryAfterMs })

/** Nobody is there to read it. */
const gaveUp = (model: string): Outcome<never> => unavailable(model, 'the client left while it waited', RETRY_BUSY_MS)

const stopping = (model: string): Outcome<never> => unavailable(model, 'the server is stopping', RETRY_AWAY_MS)
