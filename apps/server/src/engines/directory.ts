import type { Client } from 'undici'
import type { Clock, Instant } from '../kit/clock.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Address } from './address.ts'
import type { EngineDialect, Replica } from './replica.ts'

/**
 * `starting` may become ready within a wait; requests wait for it. `ready` gets requests. `unhealthy` gets none until it
 * has answered again. An engine comes as starting; every other move is possible, since what happens to it is not ours to decide.
 */
export type EngineState = 'starting' | 'ready' | 'unhealthy'

export type Served = { readonly modelId: ModelId; readonly modelName: string; readonly remoteName: string }

/**
 * One process or address, with everything that is known about it now. An engine that serves several models is one engine:
 * its seats and its health are shared by all its replicas.
 */
export type Engine = {
  readonly id: EngineId
  readonly name: string
  readonly kind: 'embedded' | 'external'
  readonly seatLimit: number
  readonly serves: readonly Served[]
  /** Beside chat. */
  readonly speaks?: readonly EngineDialect[] | undefined
  /** Empty until its address is known. */
  replicas: ReadonlyMap<ModelId, Replica>
  address: Address | undefined
  bearer: string | undefined
  state: EngineState
  reason: string | undefined
  since: Instant
  /** Something went wrong there a moment ago: others come first until it has been asked. */
  suspect: boolean
  /** Calls in a row that failed, whatever it says about its health; and how often it was taken out for them without serving one since. */
  failures: number
  takenOut: number
  /** Taken out until then, although it may say that it is well. */
  outUntil: Instant | undefined
  /** Back after that, for one call at a time until one has been served. */
  onTrial: boolean
  /** Seats taken now. */
  busy: number
  /** Greater for the one that was given a seat later; ties are broken by it, so that light traffic is shared too. */
  lastTaken: number
  /** Connections that nobody uses. A new list for each address, so that none of an earlier process comes back. */
  idle: Client[]
  /** No longer in the directory; the seats that are out may still end. */
  gone: boolean
}

export type Directory = {
  add: (engine: Engine) => void
  /** What runs there may end; nobody new is sent. */
  remove: (engine: Engine) => void
  /** The engine can be called here from now on, by this key. */
  arrive: (engine: Engine, address: Address, bearer: string | undefined) => void
  become: (engine: Engine, state: EngineState, reason?: string) => void
  /** Something went wrong with a connection: ask it now. */
  suspect: (engine: Engine) => void
  /** A call came to its end as it should. */
  served: (engine: Engine) => void
  /** A call failed. `broken`: the connection went with it. */
  failed: (engine: Engine, how: 'failed' | 'broken') => void
  forModel: (model: ModelId) => readonly Engine[]
  all: () => readonly Engine[]
  /** Called with every engine that was moved. */
  watch: (watchers: { readonly moved?: (engine: Engine) => void; readonly suspected?: (engine: Engine) => void }) => void
}

/** Fewer may be chance, or one caller's odd request sent again and again. */
const FAILURES_IN_A_ROW = 5
const OUT_MS = 5_000
const MAX_OUT_MS = 60_000

export const newEngine = (
  fields: Pick<Engine, 'id' | 'name' | 'kind' | 'seatLimit' | 'serves' | 'speaks'> & { readonly reason: string },
  now: Instant,
): Engine => ({
  ...fields,
  replicas: new Map(),
  address: undefined,
  bearer: undefined,
  state: 'starting',
  since: now,
  suspect: false,
  failures: 0,
  takenOut: 0,
  outUntil: undefined,
  onTrial: false,
  busy: 0,
  lastTaken: 0,
  idle: [],
  gone: false,
})

const destroyIdle = (engine: Engine): void => {
  for (const client of engine.idle.splice(0)) void client.destroy().catch(() => undefined)
}

/** Which engines there are and how they are, in memory. Rows and children are brought in from outside. */
export const openDirectory = (options: { clock: Clock; log: Logger }): Directory => {
  const { clock, log } = options
  const engines = new Set<Engine>()
  const watchers: { readonly moved?: (engine: Engine) => void; readonly suspected?: (engine: Engine) => void }[] = []
  let byModel = new Map<ModelId, Engine[]>()

  const index = (): void => {
    byModel = new Map()
    for (const engine of engines) {
      for (const { modelId } of engine.serves) byModel.set(modelId, [...(byModel.get(modelId) ?? []), engine])
    }
  }
  const moved = (engine: Engine): void => {
    for (const watcher of watchers) watcher.moved?.(engine)
  }

  const become: Directory['become'] = (engine, state, reason) => {
    if (state === 'ready' && engine.outUntil !== undefined) {
      if (clock.now() < engine.outUntil) return
      engine.outUntil = undefined
      engine.onTrial = true
    }
    const turned = engine.state !== state
    engine.reason = reason
    if (state === 'ready') engine.suspect = false
    if (!turned) return
    engine.state = state
    engine.since = clock.now()
    if (state === 'unhealthy') destroyIdle(engine)
    if (!engine.gone) {
      if (state === 'unhealthy') log.warn({ engine: engine.name, reason }, 'engine is not healthy')
      else log.info({ engine: engine.name, reason }, `engine is ${state}`)
    }
    moved(engine)
  }

  /** One of its models would be left without an engine. */
  const isLast = (engine: Engine): boolean =>
    engine.serves.some(({ modelId }) => !byModel.get(modelId)?.some((other) => other !== engine && other.state === 'ready'))

  /** An engine that says it is well and fails every call is taken out for a while, and longer each time. */
  const takeOut = (engine: Engine): void => {
    engine.outUntil = (clock.now() + Math.min(OUT_MS * 2 ** engine.takenOut, MAX_OUT_MS)) as Instant
    engine.takenOut += 1
    engine.onTrial = false
    become(engine, 'unhealthy', engine.failures === 1 ? 'a call to it failed again' : `${engine.failures} calls to it failed in a row`)
  }

  return {
    add: (engine) => {
      engines.add(engine)
      index()
      moved(engine)
    },
    remove: (engine) => {
      if (!engines.delete(engine)) return
      engine.gone = true
      destroyIdle(engine)
      index()
      moved(engine)
    },
    arrive: (engine, address, bearer) => {
      destroyIdle(engine)
      engine.idle = []
      engine.address = address
      engine.bearer = bearer
      // Another process: what the earlier one did is forgotten.
      Object.assign(engine, { failures: 0, takenOut: 0, outUntil: undefined, onTrial: false })
      engine.replicas = new Map(
        engine.serves.map(({ modelId, remoteName }) => [
          modelId,
          { name: engine.name, engineId: engine.id, modelId, ...address, remoteModel: remoteName, bearer, speaks: engine.speaks },
        ]),
      )
    },
    become,
    suspect: (engine) => {
      engine.suspect = true
      for (const watcher of watchers) watcher.suspected?.(engine)
    },
    served: (engine) => {
      engine.failures = 0
      engine.takenOut = 0
      engine.onTrial = false
    },
    failed: (engine, how) => {
      if (engine.gone || engine.state !== 'ready') return
      engine.failures += 1
      if (engine.failures < FAILURES_IN_A_ROW && !engine.onTrial) return
      // Errors that it says in good order may be one caller's doing; for them nobody is left without an engine.
      if (how === 'broken' || !isLast(engine)) takeOut(engine)
    },
    forModel: (model) => byModel.get(model) ?? [],
    all: () => [...engines],
    watch: (watcher) => void watchers.push(watcher),
  }
}
