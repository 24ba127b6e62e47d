import { z } from 'zod'
import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { invalid, notFound } from '../kit/denial.ts'
import type { ModelId } from '../kit/ids.ts'
import { pageOf } from '../kit/listing.ts'
import { type Manage, pageQuery } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import { readAddress } from './address.ts'
import type { ReplicaState } from './engines.ts'
import { ENGINE_NAME, KEY_OF_ENGINE, listEngines, putEngine, type RegisteredEngine, removeEngine } from './registry.ts'
import { ENGINE_DIALECTS } from './replica.ts'

const isAddress = (text: string): boolean => {
  try {
    readAddress(text)
    return true
  } catch {
    return false
  }
}

const Name = z.string().regex(ENGINE_NAME, 'letters, digits, dot, dash and underscore, at most 63')
const Address = z.string().max(2_048).refine(isAddress, 'written as http://host:port or https://host/path, without a key in it')
const ModelName = z.string().min(1).max(128)
const RemoteName = z.string().min(1).max(512)

const Served = z.object({
  model: z.string(),
  remote: z.string(),
  /** As this gateway sees it. */
  state: z.enum(['starting', 'ready', 'unhealthy', 'unknown']),
  reason: z.string().nullable(),
})
const Engine = z.object({
  id: z.uuid(),
  name: z.string(),
  url: z.string(),
  /** Whether it has a key, never which. */
  has_key: z.boolean(),
  models: z.array(Served),
  speaks: z.array(z.enum(ENGINE_DIALECTS)),
  created_at: z.iso.datetime(),
})

/**
 * Engines that the operator runs, by address; ours. Their keys go in and never come out. Embedded engines follow the catalogue and are not
 * among these.
 */
export const engineRoutes = (
  manage: Manage,
  room: {
    readonly db: Db
    readonly secrets: Secrets
    readonly clock: Clock
    states(): readonly ReplicaState[]
    /** The catalogue's ids by name: this room knows no models. */
    modelIds(names: readonly string[]): Promise<ReadonlyMap<string, ModelId>>
  },
): void => {
  const { db } = room
  const reads = { resource: 'installation', action: 'read', scope: 'installation' } as const
  const writes = { resource: 'installation', action: 'write', scope: 'installation' } as const
  const path = '/parvis/v1/engines'
  const params = z.object({ engine_name: z.string().max(128) })

  const toJson = (engine: RegisteredEngine): z.infer<typeof Engine> => {
    const states = room.states().filter(({ engineId }) => engineId === engine.id)
    return {
      id: engine.id,
      name: engine.name,
      url: engine.url,
      has_key: engine.hasKey,
      models: engine.models.map(({ modelId, modelName, remoteName }) => {
        const now = states.find((state) => state.modelId === modelId)
        return { model: modelName, remote: remoteName, state: now?.state ?? 'unknown', reason: now?.reason ?? null }
      }),
      speaks: [...engine.speaks],
      created_at: engine.createdAt.toISOString(),
    }
  }
  const find = async (name: string): Promise<RegisteredEngine | undefined> => (await listEngines(db)).find((each) => each.name === name)

  manage({
    method: 'GET',
    path,
    summary: 'List the engines that the operator runs, what each of them serves, and how it is.',
    needs: reads,
    query: pageQuery({ max: 1_000, fallback: 100, orders: ['name_asc'], clamp: true }).strict(),
    answer: z.object({ engines: z.array(Engine), total_count: z.int() }),
    handle: async ({ query }) => {
      const engines = await listEngines(db)
      return yes({ engines: pageOf(engines, query).map(toJson), total_count: engines.length })
    },
  })

  manage({
    method: 'GET',
    path: `${path}/:engine_name`,
    summary: 'Read one engine.',
    needs: reads,
    params,
    answer: Engine,
    handle: async ({ params: { engine_name: name } }) => {
      const engine = await find(name)
      return engine === undefined ? no(notFound('engine', name)) : yes(toJson(engine))
    },
  })

  manage({
    method: 'PUT',
    path: `${path}/:engine_name`,
    summary: 'Make an engine, or replace its address, its models and its key. Every gateway follows within a second.',
    needs: writes,
    params: z.object({ engine_name: Name }),
    nulls: 'kept',
    body: z.strictObject({
      url: Address,
      /** Without it a key that is there stays, as long as the origin does; null takes it away. */
      key: z.string().max(4_096).regex(KEY_OF_ENGINE, 'printable, and without spaces: it goes into a header').nullable().optional(),
      models: z
        .array(z.strictObject({ model: ModelName, remote: RemoteName.optional() }))
        .min(1)
        .max(256),
      /** Beside chat; without a word, what it spoke before. */
      speaks: z.array(z.enum(ENGINE_DIALECTS)).max(ENGINE_DIALECTS.length).optional(),
    }),
    answer: Engine,
    handle: async ({ params: { engine_name: name }, body, actor }) => {
      const names = body.models.map(({ model }) => model)
      const twice = names.findIndex((model, at) => names.indexOf(model) !== at)
      if (twice >= 0) return no(invalid(`models.${twice}.model`, 'constraint', 'an engine serves a model under one name'))
      const ids = await room.modelIds(names)
      const served = body.models.map(({ model, remote }) => ({ modelName: model, remoteName: remote ?? model, modelId: ids.get(model) }))
      const missing = served.findIndex(({ modelId }) => modelId === undefined)
      if (missing >= 0) return no(invalid(`models.${missing}.model`, 'constraint', 'the catalogue has no model of this name'))
      const models = served.flatMap(({ modelId, ...rest }) => (modelId === undefined ? [] : [{ ...rest, modelId }]))
      const asked = { name, url: body.url, bearer: body.key, models, ...(body.speaks && { speaks: body.speaks }) }
      const put = await putEngine(room, asked, actor)
      return put.ok ? yes(toJson(put.value)) : put
    },
  })

  manage({
    method: 'DELETE',
    path: `${path}/:engine_name`,
    summary: 'Stop sending requests to an engine. Answers that run on it end undisturbed; its models stay in the catalogue.',
    needs: writes,
    params,
    handle: async ({ params: { engine_name: name }, actor }) =>
      (await removeEngine(db, name, actor)) ? yes(undefined) : no(notFound('engine', name)),
  })
}
