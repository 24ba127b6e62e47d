import { z } from 'zod'
import type { Clock } from '../kit/clock.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import { type Directory, type Engine, newEngine } from './directory.ts'
import type { HealthWatch } from './probe.ts'

/** A child of the house, as a gateway that is another process must know it to call it. It holds a key: it goes from process to process and nowhere else. */
export const ToldEngine = z.object({
  id: z.string().transform((id) => id as EngineId),
  name: z.string(),
  seatLimit: z.int().min(1),
  serves: z.array(z.object({ modelId: z.string().transform((id) => id as ModelId), modelName: z.string(), remoteName: z.string() })),
  state: z.enum(['starting', 'ready', 'unhealthy']),
  reason: z.string().optional(),
  address: z.object({ origin: z.string(), basePath: z.string() }).optional(),
  bearer: z.string().optional(),
})
export type ToldEngine = z.infer<typeof ToldEngine>

export const toTold = ({ id, name, seatLimit, serves, state, reason, address, bearer }: Engine): ToldEngine => ({
  id,
  name,
  seatLimit,
  serves: [...serves],
  state,
  ...(reason === undefined ? {} : { reason }),
  ...(address === undefined ? {} : { address }),
  ...(bearer === undefined ? {} : { bearer }),
})

/** A gateway's part of the seats of a child, so that all gateways together have no more than it has; each has one. */
export const partOfSeats = (told: ToldEngine, number: number, gateways: number): ToldEngine => ({
  ...told,
  seatLimit: Math.max(1, Math.floor((told.seatLimit + gateways - number) / gateways)),
})

/**
 * Keeps the directory as the house says that its children are. Whether a process is there is the house's to say, and to end one that hangs; while it
 * says ready, we ask the child ourselves as we ask every engine, so that a broken call is looked into at once.
 */
export const openTold = (options: {
  directory: Directory
  health: HealthWatch
  clock: Clock
}): { hear: (children: readonly ToldEngine[]) => void } => {
  const { directory, health, clock } = options
  const known = new Map<EngineId, Engine>()
  const watched = new Set<Engine>()

  const leave = (engine: Engine): void => {
    watched.delete(engine)
    health.end(engine)
  }

  const follow = (engine: Engine, { state, reason, address, bearer }: ToldEngine): void => {
    if (state !== 'ready' || address === undefined) {
      leave(engine)
      return directory.become(engine, state, reason)
    }
    // A key is new for each life of a child.
    if (engine.bearer !== bearer) {
      leave(engine)
      directory.arrive(engine, address, bearer)
    }
    if (watched.has(engine)) return
    watched.add(engine)
    directory.become(engine, 'ready')
    health.begin(engine)
  }

  return {
    hear: (children) => {
      const there = new Set(children.map(({ id }) => id))
      for (const [id, engine] of known) {
        if (there.has(id)) continue
        known.delete(id)
        leave(engine)
        directory.remove(engine)
      }
      for (const child of children) {
        const now = clock.now()
        let engine = known.get(child.id)
        if (engine === undefined) {
          const { id, name, seatLimit, serves } = child
          engine = newEngine({ id, name, kind: 'embedded', seatLimit, serves, reason: child.reason ?? 'not asked yet' }, now)
          known.set(id, engine)
          directory.add(engine)
        }
        follow(engine, child)
      }
    },
  }
}
