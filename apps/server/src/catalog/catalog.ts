import type { Changes } from '../kit/changes.ts'
import type { Clock, Instant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { nextTurn, statusAt } from './life-cycle.ts'
import type { Model } from './model.ts'
import { type PricedModel, priceAt, readModels } from './models.ts'
import { type Resolve, resolveWith } from './resolve.ts'
import { resolveWeights, type WeightsDirs } from './weights-path.ts'

/** The catalogue as this process knows it: in memory, so that a database that is away costs no request its model. */
export type Catalog = {
  readonly resolve: Resolve
  /** What `GET /v1/models` shows: all but those at their end of life (data-plane.md 5.2), oldest first. */
  list(): readonly Model[]
  /** Calls the listener after each change; gives back what ends that. */
  onChange(listener: () => void): () => void
}

const NEVER = Number.POSITIVE_INFINITY

type Entry = {
  /** With the status that was said. */
  readonly facts: Omit<Model, 'price'>
  readonly prices: PricedModel['prices']
  /** The model with the price and the status that are in force from `from` until before `until`. */
  current: Model
  from: number
  until: number
}

const openEntry = (model: PricedModel, dirs: WeightsDirs, now: Instant): Entry => {
  const { prices, licence: _licence, source: _source, description: _description, updatedAt: _updated, weights, ...rest } = model
  const facts = { ...rest, weights: weights === null ? null : { ...weights, path: resolveWeights(dirs, weights.path) } }
  const entry: Entry = {
    facts,
    prices,
    current: { ...facts, status: statusAt(facts, now), price: priceAt(prices, now) },
    from: 0,
    until: 0,
  }
  return turn(entry, now)
}

/** A price, a deprecation and an end that were announced come into force by the clock, without a reload. */
const turn = (entry: Entry, now: Instant): Entry => {
  const price = priceAt(entry.prices, now)
  const status = statusAt(entry.facts, now)
  if (price !== entry.current.price || status !== entry.current.status) entry.current = { ...entry.facts, status, price }
  const began = [price.startsAt, entry.facts.deprecatedAt, entry.facts.endOfLifeAt].filter((at) => at !== null && at <= now)
  entry.from = Math.max(Number.NEGATIVE_INFINITY, ...began.map(Number))
  const nextPrice = entry.prices.find((next) => next.startsAt > now && next !== price)?.startsAt ?? NEVER
  entry.until = Math.min(nextPrice, nextTurn(entry.facts, now))
  return entry
}

const inForce = (entry: Entry, now: Instant): Model => (now >= entry.from && now < entry.until ? entry : turn(entry, now)).current

export const openCatalog = async (options: {
  db: Db
  changes: Changes
  clock: Clock
  log: Logger
  weightsDirs: WeightsDirs
}): Promise<Catalog> => {
  const { db, clock, log } = options
  const listeners = new Set<() => void>()
  let entries: ReadonlyMap<string, Entry> = new Map()

  await options.changes.watch('catalog', async () => {
    const now = clock.now()
    entries = new Map((await readModels(db)).map((model) => [model.name, openEntry(model, options.weightsDirs, now)]))
    for (const listener of listeners) {
      try {
        listener()
      } catch (error) {
        log.error({ err: error }, 'a listener of the catalogue failed')
      }
    }
  })

  const find = (name: string, at: Instant): Model | undefined => {
    const entry = entries.get(name)
    return entry === undefined ? undefined : inForce(entry, at)
  }
  return {
    resolve: resolveWith(find),
    list: () => {
      const now = clock.now()
      return [...entries.values()].map((entry) => inForce(entry, now)).filter(({ status }) => status !== 'eol')
    },
    onChange: (listener) => {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
  }
}
