import type { PoolClient } from 'pg'
import { z } from 'zod'
import { type By, recordChange } from '../audit/record.ts'
import { type Clock, dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type ModelId, newId, type PriceId } from '../kit/ids.ts'
import type { UnitPrice } from '../kit/money.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type Fault, statusAt } from './life-cycle.ts'
import { type Model, type ModelStatus, type ModelType, NO_RULES, type Price, REASONING_EFFORTS, type ReasoningEffort } from './model.ts'
import { isStoredWeights } from './weights-path.ts'

const MODEL_NAME = /^[a-z0-9][a-z0-9._-]{0,127}$/
const MAX_TOKENS = 100_000_000

const UnitPriceSchema = z
  .bigint()
  .nonnegative()
  .transform((price) => price as UnitPrice)
const NewPrice = z.strictObject({
  input: UnitPriceSchema,
  /** The input price where a model has none of its own (serverless-platform.md 2.2). */
  cachedInput: UnitPriceSchema.optional(),
  output: UnitPriceSchema,
})

const PAID_BY: Record<Exclude<ModelType, 'chat'>, string> = {
  embedding: 'a model that makes vectors writes nothing and is paid for its input',
  rerank: 'a model that ranks writes nothing and is paid for its input: its one price is `input`, for a million tokens',
  audio: 'a model that writes down sound is paid by its length: its one price is `input`, for a minute',
  ocr: 'a model that reads documents is paid by the page: its one price is `input`, for 1,000 pages',
}

/** Whoever sets a price expects to be paid by it: one by which nothing is ever charged is refused (serverless-platform.md 3.1). */
const priceFault = (type: ModelType, { input, cachedInput, output }: z.output<typeof NewPrice>): Fault | undefined => {
  if (type === 'chat') return undefined
  const why = PAID_BY[type]
  if (output !== 0n) return { field: 'output', why: `${why}, and \`output\` is 0` }
  // Engines that make vectors say how much of the input they had in their cache.
  if (type === 'embedding' || cachedInput === undefined || cachedInput === input) return undefined
  return { field: 'cachedInput', why }
}

const Tokens = z.int().positive().max(MAX_TOKENS)

const Pixels = z.int().positive().max(65_536).nullable()
const Rules = z.strictObject({
  audioInChat: z.boolean().default(NO_RULES.audioInChat),
  maxImages: z.int().positive().max(10_000).nullable().default(NO_RULES.maxImages),
  imageTokenPx: Pixels.default(NO_RULES.imageTokenPx),
  imageMaxPx: Pixels.default(NO_RULES.imageMaxPx),
  alternatingRoles: z.boolean().default(NO_RULES.alternatingRoles),
  toolSystemPrompt: z.string().min(1).max(20_000).nullable().default(NO_RULES.toolSystemPrompt),
  reasoningEfforts: z
    .array(z.enum(REASONING_EFFORTS))
    .transform((efforts) => REASONING_EFFORTS.filter((effort) => efforts.includes(effort)))
    .default([]),
  minDimensions: z.int().positive().nullable().default(NO_RULES.minDimensions),
})

const Features = z.strictObject({ tools: z.boolean(), structuredOutput: z.boolean(), reasoning: z.boolean(), vision: z.boolean() })

export const ModelFacts = z.strictObject({
  name: z.string().regex(MODEL_NAME, 'a model name is lower-case letters, digits, ".", "_" and "-", without a vendor in front'),
  ownedBy: z.string().min(1).max(128),
  type: z.enum(['chat', 'embedding', 'rerank', 'audio', 'ocr']),
  status: z.enum(['preview', 'active', 'deprecated', 'eol']).default('active'),
  successor: z.string().regex(MODEL_NAME).nullable().default(null),
  contextTokens: Tokens,
  maxOutputTokens: Tokens.nullable().default(null),
  dimensions: z.int().positive().max(65_536).nullable().default(null),
  matryoshka: z.array(z.int().positive()).max(64).default([]),
  features: Features.default({ tools: false, structuredOutput: false, reasoning: false, vision: false }),
  rules: Rules.default({ ...NO_RULES, reasoningEfforts: [] }),
  description: z.string().max(2000).default(''),
  licence: z.string().max(200).nullable().default(null),
  source: z.string().max(1000).nullable().default(null),
})

/** What does not fit together, although each field by itself would. */
const factsFault = (model: z.output<typeof ModelFacts>): Fault | undefined => {
  const { name, type, successor, maxOutputTokens, dimensions, matryoshka, rules } = model
  if (successor === name) return { field: 'successor', why: 'a model cannot follow itself' }
  if ((type === 'chat') !== (maxOutputTokens !== null))
    return { field: 'maxOutputTokens', why: 'a chat model has a maximum output, and no other has' }
  if (!matryoshka.every((length, index) => length > (matryoshka[index - 1] ?? 0) && dimensions !== null && length < dimensions))
    return { field: 'matryoshka', why: 'shorter lengths rise, and stay below the dimensions' }
  if (rules.minDimensions !== null && (dimensions === null || rules.minDimensions > dimensions))
    return { field: 'rules.minDimensions', why: 'the shortest length stays below the dimensions' }
  return undefined
}

export const refineFacts = (model: z.output<typeof ModelFacts>, context: z.RefinementCtx): void => {
  const fault = factsFault(model)
  if (fault !== undefined) context.addIssue({ code: 'custom', path: fault.field.split('.'), message: fault.why })
}

const NewModel = ModelFacts.extend({
  weights: z
    .strictObject({
      path: z.string().max(4096).refine(isStoredWeights, 'weights lie at builtin:…, pulled:… or an absolute path'),
      bytes: z.int().positive(),
      sha256: z.string().regex(/^[0-9a-f]{64}$/),
    })
    .nullable()
    .default(null),
  price: NewPrice,
}).superRefine((model, context) => {
  refineFacts(model, context)
  const fault = priceFault(model.type, model.price)
  if (fault !== undefined) context.addIssue({ code: 'custom', path: ['price', fault.field], message: fault.why })
})

/** What `addModel` takes; `weights.path` is the stored form (weights-path.ts). */
export type NewModel = z.input<typeof NewModel>
export type NewPrice = z.input<typeof NewPrice>

const issueToFault = (issue: z.core.$ZodIssue | undefined): Fault => ({
  field: (issue?.path ?? []).map(String).join('.'),
  why: issue?.message ?? 'not readable',
})

/** The first mistake as a sentence. An unknown field is one, since here it is a typing mistake. */
const sayFault = ({ field, why }: Fault, what: string): string => `${what} is not valid: ${field === '' ? '' : `${field}: `}${why}.`

const parse = <S extends z.ZodType>(schema: S, input: unknown, what: string): z.output<S> => {
  const parsed = schema.safeParse(input)
  if (parsed.success) return parsed.data
  throw new Error(sayFault(issueToFault(parsed.error.issues[0]), what))
}

/** One catalogue row as it is listed to the operator: everything the data plane knows, the price in force, and what only people need. */
export type ListedModel = Omit<Model, 'weights'> & {
  readonly description: string
  readonly updatedAt: Instant
  readonly licence: string | null
  readonly source: string | null
  /** With the stored path. */
  readonly weights: { readonly path: string; readonly bytes: number; readonly sha256: string } | null
}

export type ModelRow = {
  readonly id: ModelId
  readonly name: string
  readonly owned_by: string
  readonly type: ModelType
  readonly status: ModelStatus
  readonly deprecated_at: Date | null
  readonly end_of_life_at: Date | null
  readonly successor: string | null
  readonly created_at: Date
  readonly updated_at: Date
  readonly description: string
  readonly context_tokens: number
  readonly max_output_tokens: number | null
  readonly dimensions: number | null
  readonly matryoshka: readonly number[]
  readonly tools: boolean
  readonly structured_output: boolean
  readonly reasoning: boolean
  readonly vision: boolean
  readonly audio_in_chat: boolean
  readonly max_images: number | null
  readonly image_token_px: number | null
  readonly image_max_px: number | null
  readonly alternating_roles: boolean
  readonly tool_system_prompt: string | null
  readonly reasoning_efforts: readonly ReasoningEffort[]
  readonly min_dimensions: number | null
  readonly licence: string | null
  readonly source: string | null
  readonly weights_path: string | null
  readonly weights_bytes: bigint | null
  readonly weights_sha256: string | null
}

type PriceRow = {
  readonly id: PriceId
  readonly model_id: ModelId
  readonly starts_at: Date
  readonly input: bigint
  readonly cached_input: bigint
  readonly output: bigint
}

/** A model with all its prices, earliest first; there is always one. Its status is the one that was said: `statusAt` says what holds. */
export type PricedModel = Omit<ListedModel, 'price'> & { readonly prices: readonly Price[] }

const rowToPrice = (row: PriceRow): Price => ({
  id: row.id,
  startsAt: dateToInstant(row.starts_at),
  input: row.input as UnitPrice,
  cachedInput: row.cached_input as UnitPrice,
  output: row.output as UnitPrice,
})

export const rowToModel = (row: ModelRow, prices: readonly Price[]): PricedModel => ({
  id: row.id,
  name: row.name,
  ownedBy: row.owned_by,
  type: row.type,
  status: row.status,
  deprecatedAt: row.deprecated_at && dateToInstant(row.deprecated_at),
  endOfLifeAt: row.end_of_life_at && dateToInstant(row.end_of_life_at),
  successor: row.successor,
  createdAt: dateToInstant(row.created_at),
  updatedAt: dateToInstant(row.updated_at),
  description: row.description,
  contextTokens: row.context_tokens,
  maxOutputTokens: row.max_output_tokens,
  dimensions: row.dimensions,
  matryoshka: row.matryoshka,
  features: { tools: row.tools, structuredOutput: row.structured_output, reasoning: row.reasoning, vision: row.vision },
  rules: {
    audioInChat: row.audio_in_chat,
    maxImages: row.max_images,
    imageTokenPx: row.image_token_px,
    imageMaxPx: row.image_max_px,
    alternatingRoles: row.alternating_roles,
    toolSystemPrompt: row.tool_system_prompt,
    reasoningEfforts: row.reasoning_efforts,
    minDimensions: row.min_dimensions,
  },
  licence: row.licence,
  source: row.source,
  weights:
    row.weights_path === null || row.weights_bytes === null || row.weights_sha256 === null
      ? null
      : { path: row.weights_path, bytes: Number(row.weights_bytes), sha256: row.weights_sha256 },
  prices,
})

// Models before prices: a price is committed with its model or later, so every model seen here has one.
const SELECT_MODELS = `
  select id, name, owned_by, type, status, deprecated_at, end_of_life_at, successor, created_at, updated_at, description, context_tokens, max_output_tokens, dimensions, matryoshka,
         tools, structured_output, reasoning, vision, audio_in_chat, max_images, image_token_px, image_max_px, alternating_roles,
         tool_system_prompt, reasoning_efforts, min_dimensions, licence, source, weights_path, weights_bytes, weights_sha256
    from model
   where removed_at is null
   order by created_at, name`

const SELECT_PRICES = `
  select price.id, price.model_id, price.starts_at, price.input, price.cached_input, price.output
    from model_price price
    join model on model.id = price.model_id and model.removed_at is null
   order by price.model_id, price.starts_at`

export const readModels = async (db: Db): Promise<readonly PricedModel[]> => {
  const models = await db.query<ModelRow>(SELECT_MODELS)
  const prices = await db.query<PriceRow>(SELECT_PRICES)
  const pricesOf = new Map<ModelId, Price[]>()
  for (const row of prices.rows) {
    const known = pricesOf.get(row.model_id)
    if (known === undefined) pricesOf.set(row.model_id, [rowToPrice(row)])
    else known.push(rowToPrice(row))
  }
  return models.rows.flatMap((row) => {
    const own = pricesOf.get(row.id)
    return own === undefined ? [] : [rowToModel(row, own)]
  })
}

/**
 * The price at an instant: the latest that has started. Before the first has, the first: clocks of two machines differ, and a model is
 * never without a price.
 */
export const priceAt = (prices: readonly Price[], now: Instant): Price => {
  const started = prices.findLast((price) => price.startsAt <= now) ?? prices[0]
  if (started === undefined) throw new Error('a model has no price')
  return started
}

/** As it is at an instant. */
export const toListed = ({ prices, ...model }: PricedModel, now: Instant): ListedModel => ({
  ...model,
  status: statusAt(model, now),
  price: priceAt(prices, now),
})

/** What the operator sees, models at their end of life included. */
export const listModels = async (db: Db, clock: Clock): Promise<readonly ListedModel[]> => {
  const now = clock.now()
  return (await readModels(db)).map((model) => toListed(model, now))
}

export const noteChange = (client: PoolClient): Promise<unknown> => client.query(`select note_change('catalog')`)

const insertPrice = async (
  client: PoolClient,
  id: PriceId,
  model: ModelId,
  startsAt: Instant,
  price: { input: bigint; cachedInput: bigint; output: bigint },
): Promise<void> => {
  await client.query('insert into model_price (id, model_id, starts_at, input, cached_input, output) values ($1, $2, $3, $4, $5, $6)', [
    id,
    model,
    instantToDate(startsAt),
    price.input,
    price.cachedInput,
    price.output,
  ])
}

// `$21` is true for models that come with the house: those are added once, and not again when the operator has removed them.
// Two processes that start at once both find none; the unique index lets one of them win and `do nothing` lets the other go on.
const INSERT_MODEL = `
  insert into model (id, name, owned_by, type, status, successor, created_at, context_tokens, max_output_tokens, dimensions, matryoshka,
                     tools, structured_output, reasoning, vision, licence, source, weights_path, weights_bytes, weights_sha256,
                     audio_in_chat, max_images, image_token_px, image_max_px, alternating_roles, tool_system_prompt, reasoning_efforts,
                     min_dimensions, description, updated_at)
  select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $22, $23, $24, $25, $26, $27, $28, $29, $30, $7
   where not ($21 and exists (select 1 from model where name = $2))
      on conflict (name) where removed_at is null do nothing`

/** `onlyOnce`: also a name that has ever been there is taken. */
export const insertModel = async (
  db: Db,
  clock: Clock,
  actor: By,
  input: NewModel,
  onlyOnce: boolean,
): Promise<Outcome<ModelId, Fault | 'taken'>> => {
  const parsed = NewModel.safeParse(input)
  if (!parsed.success) return no(issueToFault(parsed.error.issues[0]))
  const model = parsed.data
  const now = clock.now()
  const id: ModelId = newId<'model'>(now)
  const price = { input: model.price.input, cachedInput: model.price.cachedInput ?? model.price.input, output: model.price.output }
  return transaction(db, async (client) => {
    const { rowCount } = await client.query(INSERT_MODEL, [
      id,
      model.name,
      model.ownedBy,
      model.type,
      model.status,
      model.successor,
      instantToDate(now),
      model.contextTokens,
      model.maxOutputTokens,
      model.dimensions,
      model.matryoshka,
      model.features.tools,
      model.features.structuredOutput,
      model.features.reasoning,
      model.features.vision,
      model.licence,
      model.source,
      model.weights?.path ?? null,
      model.weights?.bytes ?? null,
      model.weights?.sha256 ?? null,
      onlyOnce,
      model.rules.audioInChat,
      model.rules.maxImages,
      model.rules.imageTokenPx,
      model.rules.imageMaxPx,
      model.rules.alternatingRoles,
      model.rules.toolSystemPrompt,
      model.rules.reasoningEfforts,
      model.rules.minDimensions,
      model.description,
    ])
    if (rowCount !== 1) return no('taken')
    await insertPrice(client, newId<'price'>(now), id, now, price)
    // The catalogue belongs to the installation, not to one of its organizations.
    await recordChange(client, {
      organizationId: null,
      actor,
      action: 'created',
      resourceType: 'model',
      resourceId: id,
      before: null,
      after: { ...model, price },
    })
    await noteChange(client)
    return yes(id)
  })
}

/**
 * Adds a model unless one of its name is there, in one statement: of two who add it at the same moment one gets its id and the other undefined.
 * Other refusals are sentences.
 */
export const addModelIfFree = async (db: Db, clock: Clock, actor: By, input: NewModel): Promise<ModelId | undefined> => {
  const made = await insertModel(db, clock, actor, input, false)
  if (made.ok) return made.value
  if (made.refusal === 'taken') return undefined
  throw new Error(sayFault(made.refusal, 'The model'))
}

/** Adds a model with its first price, which is in force at once. Running gateways know it within a second. A refusal is a sentence. */
export const addModel = async (db: Db, clock: Clock, actor: By, input: NewModel): Promise<ModelId> => {
  const id = await addModelIfFree(db, clock, actor, input)
  if (id !== undefined) return id
  throw new Error(
    `There is a model ${input.name} already. Remove it first (parvis models remove ${input.name}), or choose another name (--name).`,
  )
}

/** Adds a model unless one of this name is, or ever was, there: what an operator has removed stays removed. */
export const addModelOnce = async (db: Db, clock: Clock, actor: By, input: NewModel): Promise<boolean> => {
  const made = await insertModel(db, clock, actor, input, true)
  if (!made.ok && made.refusal !== 'taken') throw new Error(sayFault(made.refusal, 'The model'))
  return made.ok
}

export type RemovedModel = {
  readonly id: ModelId
  readonly name: string
  /** Stored form; null when the model had none, or another model still uses them. */
  readonly unusedWeights: string | null
}

/** Why a model stays: there is none of the name, others send their callers to it, or engines serve it. */
export type RemovalRefusal = { readonly because: 'unknown' } | { readonly because: 'followed'; readonly by: readonly string[] }

/**
 * Takes a model out of the catalogue; its row and its prices stay for the bills they are part of. Refused while models at their
 * end of life send their callers here, unless forced: those callers would be left with nothing.
 */
export const takeOut = (
  db: Db,
  clock: Clock,
  actor: By,
  name: string,
  options: { force?: boolean | undefined },
): Promise<Outcome<RemovedModel, RemovalRefusal>> =>
  transaction(db, async (client) => {
    const { rows } = await client.query<{ id: ModelId; status: ModelStatus; weights_path: string | null }>(
      'select id, status, weights_path from model where name = $1 and removed_at is null for update',
      [name],
    )
    const model = rows[0]
    if (model === undefined) return no({ because: 'unknown' })
    const followed = await client.query<{ name: string }>(
      'select name from model where successor = $1 and removed_at is null order by name',
      [name],
    )
    if (followed.rows.length > 0 && options.force !== true) return no({ because: 'followed', by: followed.rows.map((row) => row.name) })
    await client.query('update model set removed_at = $2 where id = $1', [model.id, instantToDate(clock.now())])
    await recordChange(client, {
      organizationId: null,
      actor,
      action: 'deleted',
      resourceType: 'model',
      resourceId: model.id,
      before: { name, status: model.status, weights: model.weights_path },
      after: null,
    })
    await noteChange(client)
    const sharing = await client.query('select 1 from model where weights_path = $1 and removed_at is null limit 1', [model.weights_path])
    return yes({ id: model.id, name, unusedWeights: sharing.rows.length > 0 ? null : model.weights_path })
  })

/** The same for the command line: a refusal is a sentence that says what to do. */
export const removeModel = async (
  db: Db,
  clock: Clock,
  actor: By,
  name: string,
  options: { force?: boolean } = {},
): Promise<RemovedModel> => {
  const done = await takeOut(db, clock, actor, name, options)
  if (done.ok) return done.value
  if (done.refusal.because === 'unknown') throw new Error(noModel(name))
  throw new Error(
    `${name} is the successor of ${done.refusal.by.join(', ')}. Remove those first, or use --force to leave their callers without an answer.`,
  )
}

export const noModel = (name: string): string => `There is no model ${JSON.stringify(name)}. See: parvis models list`

export type PriceRefusal =
  | { readonly because: 'unknown' | 'past' }
  | { readonly because: 'taken'; readonly by: Price }
  | { readonly because: 'unfit'; readonly fault: Fault }

/**
 * A new price from an instant on, or from now on: what has been charged stays as it was. The same price for the same instant once more
 * is the one that is there.
 */
export const announcePrice = async (
  db: Db,
  clock: Clock,
  actor: By,
  name: string,
  from: Instant | undefined,
  input: NewPrice,
): Promise<Outcome<Price, PriceRefusal>> => {
  const parsed = parse(NewPrice, input, 'The price')
  const price = { input: parsed.input, cachedInput: parsed.cachedInput ?? parsed.input, output: parsed.output }
  return transaction(db, async (client) => {
    // The lock puts two who announce at once one behind the other.
    const { rows } = await client.query<{ id: ModelId; type: ModelType }>(
      'select id, type from model where name = $1 and removed_at is null for update',
      [name],
    )
    const model = rows[0]
    if (model === undefined) return no({ because: 'unknown' })
    const fault = priceFault(model.type, price)
    if (fault !== undefined) return no({ because: 'unfit', fault })
    const now = clock.now()
    const startsAt = from ?? now
    const { rows: there } = await client.query<PriceRow>(
      'select id, model_id, starts_at, input, cached_input, output from model_price where model_id = $1 and starts_at = $2',
      [model.id, instantToDate(startsAt)],
    )
    const [taken] = there.map(rowToPrice)
    if (taken !== undefined) {
      const same = taken.input === price.input && taken.cachedInput === price.cachedInput && taken.output === price.output
      return same ? yes(taken) : no({ because: 'taken', by: taken })
    }
    if (startsAt < now) return no({ because: 'past' })
    const id: PriceId = newId<'price'>(now)
    await insertPrice(client, id, model.id, startsAt, price)
    await recordChange(client, {
      organizationId: null,
      actor,
      action: 'created',
      resourceType: 'model_price',
      resourceId: id,
      before: null,
      after: { model: name, startsAt: instantToDate(startsAt).toISOString(), ...price },
    })
    await noteChange(client)
    return yes({ id, startsAt, ...price })
  })
}

/** The same for the command line: a refusal is a sentence. */
export const addPrice = async (
  db: Db,
  clock: Clock,
  actor: By,
  name: string,
  from: Instant | undefined,
  input: NewPrice,
): Promise<PriceId> => {
  const done = await announcePrice(db, clock, actor, name, from, input)
  if (done.ok) return done.value.id
  switch (done.refusal.because) {
    case 'unknown':
      throw new Error(noModel(name))
    case 'unfit':
      throw new Error(sayFault(done.refusal.fault, 'The price'))
    case 'past':
      throw new Error('A price cannot start in the past: what was charged until now stays as it was.')
    case 'taken':
      throw new Error(`${name} has a price that starts at that instant already.`)
  }
}

/** Their ids, of those that there are. */
export const readModelIds = async (db: Db, names: readonly string[]): Promise<ReadonlyMap<string, ModelId>> => {
  const { rows } = await db.query<{ id: ModelId; name: string }>(
    'select id, name from model where removed_at is null and name = any ($1)',
    [names],
  )
  return new Map(rows.map(({ id, name }) => [name, id]))
}
