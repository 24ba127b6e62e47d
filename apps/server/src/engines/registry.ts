import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Denial, invalid } from '../kit/denial.ts'
import { type EngineId, type ModelId, newId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import { addressToUrl, readAddress } from './address.ts'
import type { EngineDialect } from './replica.ts'

/** One of the engine's models, and which of ours it answers for. */
export type ServedModel = { readonly modelId: ModelId; readonly modelName: string; readonly remoteName: string }

export type EngineInput = {
  readonly name: string
  readonly url: string
  readonly bearer: string | undefined
  readonly models: readonly ServedModel[]
  /** Beside chat. */
  readonly speaks?: readonly EngineDialect[]
}

/** An engine as it is shown: that it has a key, never which. */
export type RegisteredEngine = {
  readonly id: EngineId
  readonly name: string
  readonly url: string
  readonly hasKey: boolean
  readonly models: readonly ServedModel[]
  readonly speaks: readonly EngineDialect[]
  readonly createdAt: Date
}

// It stands in usage events and on the command line. No colon: those with one are the embedded ones.
export const ENGINE_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/

const LIST = `
  select engine.id, engine.name, engine.url, engine.bearer, engine.speaks, engine.created_at,
         engine_model.model_id, engine_model.model_name, engine_model.remote_name
    from engine
    left join engine_model on engine_model.engine_id = engine.id
   order by engine.name, engine_model.model_name`

type Row = { id: EngineId; name: string; url: string; bearer: Buffer | null; speaks: EngineDialect[]; created_at: Date } & (
  | { model_id: ModelId; model_name: string; remote_name: string }
  | { model_id: null; model_name: null; remote_name: null }
)

/** An engine with its key still sealed: for those who call it. */
export type EngineRow = Omit<RegisteredEngine, 'hasKey'> & { readonly sealedBearer: Buffer | null }

export const readEngines = async (db: Pick<Db, 'query'> | pg.ClientBase): Promise<EngineRow[]> => {
  const { rows } = await db.query<Row>(LIST)
  const engines = new Map<EngineId, EngineRow & { models: ServedModel[] }>()
  for (const row of rows) {
    const engine = engines.get(row.id) ?? {
      id: row.id,
      name: row.name,
      url: row.url,
      sealedBearer: row.bearer,
      models: [],
      speaks: row.speaks,
      createdAt: row.created_at,
    }
    engines.set(row.id, engine)
    if (row.model_id !== null) engine.models.push({ modelId: row.model_id, modelName: row.model_name, remoteName: row.remote_name })
  }
  return [...engines.values()]
}

export const listEngines = async (db: Db): Promise<RegisteredEngine[]> =>
  (await readEngines(db)).map(({ sealedBearer, ...engine }) => ({ ...engine, hasKey: sealedBearer !== null }))

// Engines belong to the installation, not to one of its organizations.
const WHOSE = { organizationId: null, resourceType: 'engine' } as const

/** What the audit keeps: everything but the key. */
const toAudit = (input: {
  name: string
  url: string
  hasKey: boolean
  models: readonly ServedModel[]
  speaks?: readonly EngineDialect[]
}) => ({
  name: input.name,
  url: input.url,
  hasKey: input.hasKey,
  models: input.models.map(({ modelName, remoteName }) => ({ model: modelName, remote: remoteName })),
  ...(input.speaks === undefined || input.speaks.length === 0 ? {} : { speaks: input.speaks }),
})

/** It goes into a header. */
export const KEY_OF_ENGINE = /^[\x21-\x7e]+$/

const isUniqueViolation = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === '23505'

/** Refuses a name or a key that no engine can have, before anything is done for it. */
export const requireEngine = (input: Pick<EngineInput, 'name' | 'bearer'>): void => {
  if (!ENGINE_NAME.test(input.name)) {
    throw new Error(`${JSON.stringify(input.name)} cannot be the name of an engine: letters, digits, dot, dash and underscore, at most 63.`)
  }
  if (input.bearer !== undefined && !KEY_OF_ENGINE.test(input.bearer)) {
    throw new Error('The key of an engine goes into a header: it must be printable and without spaces.')
  }
}

/** Registers an engine. Gateways hear of it within a second. */
export const addEngine = async (
  rooms: { readonly db: Db; readonly secrets: Secrets; readonly clock: Clock },
  input: EngineInput,
  actor: By,
): Promise<EngineId> => {
  requireEngine(input)
  if (input.models.length === 0) throw new Error('An engine must serve at least one model.')
  const twice = input.models.find(({ modelId }, at) => input.models.findIndex((other) => other.modelId === modelId) !== at)
  if (twice !== undefined) throw new Error(`The model ${twice.modelName} is given twice; one engine serves it under one name.`)

  const now = rooms.clock.now()
  const id = newId<'engine'>(now)
  const url = addressToUrl(readAddress(input.url))
  const sealed = input.bearer === undefined ? null : rooms.secrets.seal(input.bearer)
  try {
    await transaction(rooms.db, async (client) => {
      await client.query('insert into engine (id, name, url, bearer, created_at, speaks) values ($1, $2, $3, $4, $5, $6)', [
        id,
        input.name,
        url,
        sealed,
        new Date(now),
        input.speaks ?? [],
      ])
      await insertModels(client, id, input.models)
      const after = toAudit({ ...input, url, hasKey: sealed !== null })
      await recordChange(client, {
        ...WHOSE,
        actor,
        action: 'created',
        resourceId: id,
        before: null,
        after,
      })
      await client.query(`select note_change('engines')`)
    })
  } catch (error) {
    if (!isUniqueViolation(error)) throw error
    throw new Error(`There is already an engine named ${input.name}. Remove it first: parvis engines remove ${input.name}`, {
      cause: error,
    })
  }
  return id
}

const insertModels = async (client: pg.ClientBase, id: EngineId, models: readonly ServedModel[]): Promise<void> => {
  for (const { modelId, modelName, remoteName } of models) {
    await client.query('insert into engine_model (engine_id, model_id, model_name, remote_name) values ($1, $2, $3, $4)', [
      id,
      modelId,
      modelName,
      remoteName,
    ])
  }
}

const CLAIM = `
  insert into engine (id, name, url, bearer, created_at) values ($1, $2, $3, null, $4)
  on conflict (name) do nothing`

/**
 * Makes an engine, or makes the one of this name what is asked for, whatever it was. `bearer`: undefined leaves the key as it is, null takes
 * it away. Of two who do it at once, the later one counts whole. A key that is there goes to no other origin unless it is said again: who may
 * name an address may not thereby read the key.
 */
export const putEngine = (
  rooms: { readonly db: Db; readonly secrets: Secrets; readonly clock: Clock },
  asked: Omit<EngineInput, 'bearer'> & { readonly bearer: string | null | undefined },
  actor: By,
): Promise<Outcome<RegisteredEngine, Denial>> =>
  transaction(rooms.db, async (client) => {
    const now = rooms.clock.now()
    const address = readAddress(asked.url)
    const url = addressToUrl(address)
    // Who is second waits here for the first to be done.
    const { rowCount } = await client.query(CLAIM, [newId(now), asked.name, url, new Date(now)])
    await client.query('select 1 from engine where name = $1 for update', [asked.name])
    const find = async (): Promise<EngineRow> => {
      const engine = (await readEngines(client)).find(({ name }) => name === asked.name)
      if (engine === undefined) throw new Error('an engine that was just written is not there')
      return engine
    }
    const show = ({ sealedBearer, ...engine }: EngineRow): RegisteredEngine => ({ ...engine, hasKey: sealedBearer !== null })
    const before = await find()
    if (asked.bearer === undefined && before.sealedBearer !== null && readAddress(before.url).origin !== address.origin) {
      return no(invalid('key', 'required', 'the engine has a key, and the address is another one: give the key for it, or null for none'))
    }
    // Sealed anew the same key would look like another one, and running gateways would let go of the engine for nothing.
    const keeps = asked.bearer === undefined || (before.sealedBearer !== null && rooms.secrets.unseal(before.sealedBearer) === asked.bearer)
    const sealed = keeps ? before.sealedBearer : asked.bearer === null ? null : rooms.secrets.seal(asked.bearer ?? '')
    await client.query('update engine set url = $2, bearer = $3, speaks = $4, updated_at = $5 where id = $1', [
      before.id,
      url,
      sealed,
      asked.speaks ?? before.speaks,
      new Date(now),
    ])
    await client.query('delete from engine_model where engine_id = $1', [before.id])
    await insertModels(client, before.id, asked.models)
    const after = show(await find())
    await recordChange(client, {
      ...WHOSE,
      actor,
      action: rowCount === 1 ? 'created' : 'updated',
      resourceId: before.id,
      before: rowCount === 1 ? null : toAudit(show(before)),
      after: { ...toAudit(after), ...(keeps ? {} : { keyChanged: true }) },
    })
    await client.query(`select note_change('engines')`)
    return yes(after)
  })

/** False when there is none of this name. Answers that run on it end undisturbed. */
export const removeEngine = async (db: Db, name: string, actor: By): Promise<boolean> => {
  const engine = (await listEngines(db)).find((each) => each.name === name)
  if (engine === undefined) return false
  return transaction(db, async (client) => {
    const { rowCount } = await client.query('delete from engine where id = $1', [engine.id])
    // Somebody else was quicker, and has written it down.
    if (rowCount === 0) return false
    await recordChange(client, {
      ...WHOSE,
      actor,
      action: 'deleted',
      resourceId: engine.id,
      before: toAudit(engine),
      after: null,
    })
    await client.query(`select note_change('engines')`)
    return true
  })
}

/** Names of the engines that serve a model. */
export const enginesOf = async (db: Db, modelName: string): Promise<string[]> =>
  (await listEngines(db)).filter(({ models }) => models.some((model) => model.modelName === modelName)).map(({ name }) => name)
