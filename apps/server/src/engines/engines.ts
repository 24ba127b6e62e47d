import type { Changes } from '../kit/changes.ts'
import type { Clock, Instant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Secrets } from '../kit/secrets.ts'
import { readAddress } from './address.ts'
import { noteChildren } from './children.ts'
import { type Engine, type EngineState, newEngine, openDirectory } from './directory.ts'
import { type LocalLimits, type LocalModel, type LocalOptions, openLocal } from './local.ts'
import { openHealthWatch, type ProbeLimits } from './probe.ts'
import { type EngineRow, readEngines } from './registry.ts'
import type { Replica } from './replica.ts'
import { openSeats, type SeatLimits, type TakeSeat } from './seat.ts'
import { openTold, type ToldEngine, toTold } from './told.ts'

/** Answers that run at once on an engine that the operator gave. vLLM's own default is the same. */
const EXTERNAL_SEATS = 256

export type EngineLimits = {
  readonly seatsPerEngine?: number
  readonly seats?: Partial<SeatLimits>
  readonly probes?: Partial<ProbeLimits>
  readonly local?: Partial<LocalLimits>
}

/** How one replica is. `reason` says why it is not ready, for the operator. */
export type ReplicaState = {
  readonly engineId: EngineId
  readonly name: string
  readonly kind: 'embedded' | 'external'
  readonly modelId: ModelId
  readonly model: string
  readonly state: EngineState
  readonly reason: string | undefined
  readonly since: Instant
  /** Seats taken on its engine. */
  readonly busy: number
}

export type Engines = {
  takeSeat: TakeSeat
  /** The least busy of the ready ones, for a question that takes no place. */
  replicaOf: (model: ModelId) => Replica | undefined
  /** Which models embedded engines shall run from now on: starts, restarts and stops children to match. */
  want: (models: readonly LocalModel[]) => void
  states: () => readonly ReplicaState[]
  /** The children, for gateways that are processes of their own; `watch` says when one of them has moved. */
  children: { list: () => readonly ToldEngine[]; watch: (moved: () => void) => void }
  /** Where the children are somebody else's: what they are now. */
  hear: (children: readonly ToldEngine[]) => void
  /** Refuses those who wait and ends the children. */
  close: () => Promise<void>
}

/** What makes an engine another one: changed, it is taken out and put in anew. */
const fingerprint = (row: EngineRow): string =>
  JSON.stringify([row.name, row.url, row.sealedBearer?.toString('base64'), row.models, row.speaks])

/**
 * Opens the directory of engines: those in the database, kept up to date, and the embedded ones. Those are children of ours, asked for with
 * `want`; or without `local` children of the house, that we hear of.
 */
export const openEngines = async (options: {
  db: Db
  changes: Changes
  secrets: Secrets
  clock: Clock
  log: Logger
  /** Where the children are noted for commands on this machine. */
  dataDir: string
  local?: LocalOptions
  limits?: EngineLimits
}): Promise<Engines> => {
  const { db, changes, secrets, clock, log, dataDir, limits = {} } = options
  const directory = openDirectory({ clock, log })
  const health = openHealthWatch({ directory, clock, limits: limits.probes ?? {} })
  const seats = openSeats({ directory, clock, limits: limits.seats ?? {} })
  const told = openTold({ directory, health, clock })
  const note = options.local && noteChildren({ directory, dataDir, secrets, log })
  const local = options.local && openLocal({ directory, health, clock, log, local: options.local, limits: limits.local ?? {} })
  const external = new Map<EngineId, { engine: Engine; fingerprint: string }>()
  let closed = false

  const add = (row: EngineRow): Engine => {
    const now = clock.now()
    const { id, name, models: serves, speaks } = row
    const engine = newEngine(
      { id, name, kind: 'external', seatLimit: limits.seatsPerEngine ?? EXTERNAL_SEATS, serves, speaks, reason: 'not asked yet' },
      now,
    )
    try {
      const bearer = row.sealedBearer === null ? undefined : secrets.unseal(row.sealedBearer)
      directory.arrive(engine, readAddress(row.url), bearer)
      directory.add(engine)
      health.begin(engine)
    } catch (error) {
      // One engine that cannot be called must not keep the others out.
      log.error({ err: error, engine: name }, 'an engine cannot be used as it is registered; remove it and add it again')
      directory.add(engine)
      directory.become(engine, 'unhealthy', error instanceof Error ? error.message : String(error))
    }
    return engine
  }

  const remove = (id: EngineId): void => {
    const known = external.get(id)
    if (known === undefined) return
    external.delete(id)
    health.end(known.engine)
    directory.remove(known.engine)
  }

  const reload = async (): Promise<void> => {
    const rows = await readEngines(db)
    if (closed) return
    const there = new Map(rows.map((row) => [row.id, row]))
    for (const [id, known] of external) {
      const row = there.get(id)
      if (row === undefined || fingerprint(row) !== known.fingerprint) remove(id)
    }
    for (const row of rows) if (!external.has(row.id)) external.set(row.id, { engine: add(row), fingerprint: fingerprint(row) })
  }

  const close = async (): Promise<void> => {
    closed = true
    seats.close()
    for (const id of external.keys()) remove(id)
    await local?.close()
    await health.close()
    await note?.close()
  }

  try {
    await changes.watch('engines', reload)
  } catch (error) {
    await close()
    throw error
  }

  return {
    takeSeat: seats.takeSeat,
    replicaOf: (model) =>
      directory
        .forModel(model)
        .filter(({ state, suspect }) => state === 'ready' && !suspect)
        .toSorted((one, other) => one.busy - other.busy)[0]
        ?.replicas.get(model),
    want: (models) => local?.want(models),
    children: {
      list: () =>
        directory
          .all()
          .filter(({ kind }) => kind === 'embedded')
          .map(toTold),
      watch: (moved) => directory.watch({ moved: ({ kind }) => (kind === 'embedded' ? moved() : undefined) }),
    },
    hear: told.hear,
    states: () =>
      directory
        .all()
        .flatMap(({ id, name, kind, serves, state, reason, since, busy }) =>
          serves.map(({ modelId, modelName }) => ({ engineId: id, name, kind, modelId, model: modelName, state, reason, since, busy })),
        ),
    close,
  }
}
