import type { Client } from 'undici'
import type { Clock, Instant } from '../kit/clock.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Address } from './address.ts'
import type { Replica } from './replica.ts'

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
  /** Empty until its address is known. */
  replicas: ReadonlyMap<ModelId, Replica>
  address: Address | undefined
  bearer: string | undefined
  state: EngineState
  reason: string | undefined
  since: Instant
  /** Something went wrong there a moment ago: others come first until it has been asked. */
  suspect: boolean
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
  forModel: (model: ModelId) => readonly Engine[]
  all: () => readonly Engine[]
  /** Called with every engine that was moved. */
  watch: (watchers: { readonly moved?: (engine: Engine) => void; readonly suspected?: (engine: Engine) => void }) => void
}

export const newEngine = (
  fields: Pick<Engine, 'id' | 'name' | 'kind' | 'seatLimit' | 'serves'> & { readonly reason: string },
  now: Instant,
): Engine => ({
  ...fields,
  replicas: new Map(),
  address: undefined,
  bearer: undefined,
  state: 'starting',
  since: now,
  suspect: false,
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
      engine.replicas = new Map(
        engine.serves.map(({ modelId, remoteName }) => [
          modelId,
          { name: engine.name, engineId: engine.id, modelId, ...address, remoteModel: remoteName, bearer },
        ]),
      )
    },
    become: (engine, state, reason) => {
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
    },
    suspect: (engine) => {
      engine.suspect = true
      for (const watcher of watchers) watcher.suspected?.(engine)
    },
    forModel: (model) => byModel.get(model) ?? [],
    all: () => [...engines],
    watch: (watcher) => void watchers.push(watcher),
  }
}
