import { z } from 'zod'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import { pageOf } from '../kit/listing.ts'
import { type Manage, pageQuery } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { changeModel } from './change.ts'
import type { Fault } from './life-cycle.ts'
import { type ModelType, type Price, REASONING_EFFORTS } from './model.ts'
import { announcePrice, insertModel, type ListedModel, type NewModel, type PricedModel, readModels, takeOut, toListed } from './models.ts'
import { formatPrice, PRICE_UNITS, parsePrice, priceUnitOf } from './price.ts'

const TYPES = ['chat', 'embedding', 'rerank', 'audio', 'ocr'] as const satisfies readonly ModelType[]
const STATUSES = ['preview', 'active', 'deprecated', 'eol'] as const

/** Money is exact: euros as decimal text, at most six digits behind the point. */
const Euros = z
  .string()
  .regex(/^\d{1,9}(\.\d{1,6})?$/, 'euros as text, like "0.15"')
  .transform(parsePrice)
const When = z.iso.datetime({ offset: true }).transform((text) => Date.parse(text) as Instant)
const Name = z.string().regex(/^[a-z0-9][a-z0-9._-]{0,127}$/, 'lower-case letters, digits, ".", "_" and "-", without a vendor in front')

const PriceJson = z.object({
  id: z.uuid(),
  starts_at: z.iso.datetime(),
  /** What `input` and its like are for: a million tokens, a minute of sound, or a thousand pages of documents. */
  unit: z.enum(PRICE_UNITS),
  input: z.string(),
  cached_input: z.string(),
  output: z.string(),
})

const Features = z.object({ tools: z.boolean(), structured_output: z.boolean(), reasoning: z.boolean(), vision: z.boolean() })
const Pixels = z.int().positive().max(65_536).nullable()
const Rules = z.object({
  audio_in_chat: z.boolean(),
  max_images: z.int().positive().max(10_000).nullable(),
  image_token_px: Pixels,
  image_max_px: Pixels,
  alternating_roles: z.boolean(),
  tool_system_prompt: z.string().min(1).max(20_000).nullable(),
  reasoning_efforts: z.array(z.enum(REASONING_EFFORTS)).max(REASONING_EFFORTS.length),
  min_dimensions: z.int().positive().nullable(),
})
const Tokens = z.int().positive().max(100_000_000)

/** What can be said of a model at any time. */
const Said = {
  owned_by: z.string().min(1).max(128),
  description: z.string().max(2_000),
  status: z.enum(STATUSES),
  /** Who answers once this one has ended; null for nobody. */
  successor: Name.nullable(),
  context_tokens: Tokens,
  max_output_tokens: Tokens.nullable(),
  dimensions: z.int().positive().max(65_536).nullable(),
  matryoshka: z.array(z.int().positive()).max(64),
  licence: z.string().max(200).nullable(),
  source: z.string().max(1_000).nullable(),
}

const ModelJson = z.object({
  id: z.uuid(),
  name: z.string(),
  type: z.enum(TYPES),
  ...Said,
  deprecated_at: z.iso.datetime().nullable(),
  end_of_life_at: z.iso.datetime().nullable(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  features: Features,
  rules: Rules,
  weights: z.object({ path: z.string(), bytes: z.int(), sha256: z.string() }).nullable(),
  price: PriceJson,
})

const NewPrice = { input: Euros, cached_input: Euros.optional(), output: Euros }

const NewModelBody = z.strictObject({
  name: Name,
  type: z.enum(TYPES),
  owned_by: Said.owned_by,
  description: Said.description.default(''),
  status: z.enum(['preview', 'active']).default('active'),
  context_tokens: Said.context_tokens,
  max_output_tokens: Said.max_output_tokens.default(null),
  dimensions: Said.dimensions.default(null),
  matryoshka: Said.matryoshka.default([]),
  licence: Said.licence.default(null),
  source: Said.source.default(null),
  features: Features.strict().partial().default({}),
  rules: Rules.strict().partial().default({}),
  price: z.strictObject(NewPrice),
})

const ChangeBody = z
  .strictObject({
    ...Said,
    deprecated_at: When.nullable(),
    end_of_life_at: When.nullable(),
    features: Features.strict().partial(),
    rules: Rules.strict().partial(),
    /** The operator takes it upon themselves to break the guarantees of the life cycle. */
    waive_guarantees: z.boolean(),
  })
  .partial()

const say = (instant: Instant): string => instantToDate(instant).toISOString()

const priceToJson = (price: Price, type: ModelType): z.infer<typeof PriceJson> => ({
  id: price.id,
  starts_at: say(price.startsAt),
  unit: priceUnitOf(type),
  input: formatPrice(price.input),
  cached_input: formatPrice(price.cachedInput),
  output: formatPrice(price.output),
})

const modelToJson = (model: ListedModel): z.infer<typeof ModelJson> => ({
  id: model.id,
  name: model.name,
  type: model.type,
  owned_by: model.ownedBy,
  description: model.description,
  status: model.status,
  successor: model.successor,
  deprecated_at: model.deprecatedAt === null ? null : say(model.deprecatedAt),
  end_of_life_at: model.endOfLifeAt === null ? null : say(model.endOfLifeAt),
  created_at: say(model.createdAt),
  updated_at: say(model.updatedAt),
  context_tokens: model.contextTokens,
  max_output_tokens: model.maxOutputTokens,
  dimensions: model.dimensions,
  matryoshka: [...model.matryoshka],
  licence: model.licence,
  source: model.source,
  features: {
    tools: model.features.tools,
    structured_output: model.features.structuredOutput,
    reasoning: model.features.reasoning,
    vision: model.features.vision,
  },
  rules: {
    audio_in_chat: model.rules.audioInChat,
    max_images: model.rules.maxImages,
    image_token_px: model.rules.imageTokenPx,
    image_max_px: model.rules.imageMaxPx,
    alternating_roles: model.rules.alternatingRoles,
    tool_system_prompt: model.rules.toolSystemPrompt,
    reasoning_efforts: [...model.rules.reasoningEfforts],
    min_dimensions: model.rules.minDimensions,
  },
  weights: model.weights,
  price: priceToJson(model.price, model.type),
})

const toSnake = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
const toCamel = (name: string): string => name.replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())

type Camel<Name extends string> = Name extends `${infer First}_${infer Rest}` ? `${First}${Capitalize<Camel<Rest>>}` : Name
const inCamel = <Fields extends object>(fields: Fields) =>
  Object.fromEntries(Object.entries(fields).map(([name, value]) => [toCamel(name), value])) as {
    [Name in keyof Fields as Camel<Name & string>]: Fields[Name]
  }

const faulty = ({ field, why }: Fault): Outcome<never, Denial> => no(invalid(toSnake(field), 'constraint', why))

/** The catalogue as the operator keeps it: models, their lives and their prices; ours. */
export const catalogRoutes = (
  manage: Manage,
  room: {
    readonly db: Db
    readonly clock: Clock
    /** Names of the engines that serve a model: this room knows none. */
    servedBy(name: string): Promise<readonly string[]>
  },
): void => {
  const { db, clock } = room
  const reads = { resource: 'installation', action: 'read', scope: 'installation' } as const
  const writes = { resource: 'installation', action: 'write', scope: 'installation' } as const
  const path = '/parvis/v1/models'
  const params = z.object({ model_name: z.string().max(128) })

  const find = async (name: string): Promise<PricedModel | undefined> => (await readModels(db)).find((model) => model.name === name)
  const show = async (name: string): Promise<Outcome<z.infer<typeof ModelJson>, Denial>> => {
    const model = await find(name)
    return model === undefined ? no(notFound('model', name)) : yes(modelToJson(toListed(model, clock.now())))
  }

  manage({
    method: 'GET',
    path,
    summary: 'List the models of the catalogue with all that is known of them, those at their end of life included.',
    needs: reads,
    query: pageQuery({ max: 1_000, fallback: 100, orders: ['created_at_asc', 'name_asc', 'name_desc'], clamp: true })
      .extend({ name: z.string().max(128).optional(), status: z.enum(STATUSES).optional(), type: z.enum(TYPES).optional() })
      .strict(),
    answer: z.object({ models: z.array(ModelJson), total_count: z.int() }),
    handle: async ({ query }) => {
      const now = clock.now()
      const found = (await readModels(db))
        .map((model) => toListed(model, now))
        .filter(({ name, status, type }) => {
          const { name: part, status: wanted, type: kind } = query
          return (part === undefined || name.includes(part)) && (wanted ?? status) === status && (kind ?? type) === type
        })
      const sign = query.order_by === 'name_desc' ? -1 : 1
      const sorted = query.order_by === 'created_at_asc' ? found : found.toSorted((a, b) => (a.name < b.name ? -sign : sign))
      return yes({ models: pageOf(sorted, query).map(modelToJson), total_count: found.length })
    },
  })

  manage({
    method: 'POST',
    path,
    summary: 'Add a model that engines given by address serve, with its first price. Models with weights are pulled on the command line.',
    needs: writes,
    nulls: 'kept',
    body: NewModelBody,
    answer: ModelJson,
    handle: async ({ body, actor }) => {
      const { features, rules, price, ...rest } = body
      const input = {
        ...inCamel(rest),
        features: { tools: false, structuredOutput: false, reasoning: false, vision: false, ...inCamel(features) },
        rules: inCamel(rules),
        price: {
          input: price.input,
          output: price.output,
          ...(price.cached_input === undefined ? {} : { cachedInput: price.cached_input }),
        },
      } as NewModel
      const made = await insertModel(db, clock, actor, input, false)
      if (made.ok) return show(body.name)
      if (made.refusal !== 'taken') return faulty(made.refusal)
      return no({ type: 'already_exists', resource: 'model', resource_id: body.name, help_message: 'there is a model of this name' })
    },
  })

  manage({
    method: 'GET',
    path: `${path}/:model_name`,
    summary: 'Read one model of the catalogue.',
    needs: reads,
    params,
    answer: ModelJson,
    handle: ({ params: { model_name: name } }) => show(name),
  })

  manage({
    method: 'PATCH',
    path: `${path}/:model_name`,
    summary:
      'Change what is said of a model and where it is in its life. What is not named stays. The guarantees of the life cycle are checked where an end is set.',
    needs: writes,
    params,
    nulls: 'kept',
    body: ChangeBody,
    answer: ModelJson,
    handle: async ({ params: { model_name: name }, body, actor }) => {
      const { features, rules, waive_guarantees: waived, ...rest } = body
      const change = { ...inCamel(rest), ...(features && { features: inCamel(features) }), ...(rules && { rules: inCamel(rules) }) }
      const done = await changeModel(db, clock, actor, name, change, { waived })
      if (done.ok) return show(name)
      return done.refusal === 'unknown' ? no(notFound('model', name)) : faulty(done.refusal)
    },
  })

  manage({
    method: 'DELETE',
    path: `${path}/:model_name`,
    summary: 'Take a model out of the catalogue. Its prices stay for the bills that they are part of, and its weights on the disk.',
    needs: writes,
    params,
    query: z.strictObject({ force: z.enum(['true', 'false']).default('false') }),
    handle: async ({ params: { model_name: name }, query, actor }) => {
      const force = query.force === 'true'
      const inUse = (help: string): Outcome<never, Denial> =>
        no({
          type: 'precondition_failed',
          precondition: 'resource_still_in_use',
          help_message: `${help}; force=true removes it all the same`,
        })
      const engines = await room.servedBy(name)
      if (engines.length > 0 && !force) return inUse(`it is served by ${engines.join(', ')}`)
      const done = await takeOut(db, clock, actor, name, { force })
      if (done.ok) return yes(undefined)
      return done.refusal.because === 'unknown'
        ? no(notFound('model', name))
        : inUse(`it is the successor of ${done.refusal.by.join(', ')}`)
    },
  })

  manage({
    method: 'GET',
    path: `${path}/:model_name/prices`,
    summary: 'List the prices of a model, past, present and announced, the earliest first.',
    needs: reads,
    params,
    query: pageQuery({ max: 1_000, fallback: 100, orders: ['starts_at_asc', 'starts_at_desc'], clamp: true }).strict(),
    answer: z.object({ prices: z.array(PriceJson), total_count: z.int() }),
    handle: async ({ params: { model_name: name }, query }) => {
      const model = await find(name)
      if (model === undefined) return no(notFound('model', name))
      const prices = query.order_by === 'starts_at_asc' ? model.prices : model.prices.toReversed()
      const shown = pageOf(prices, query)
      return yes({ prices: shown.map((price) => priceToJson(price, model.type)), total_count: prices.length })
    },
  })

  manage({
    method: 'POST',
    path: `${path}/:model_name/prices`,
    summary: 'Announce a price from an instant on, or set it from now on. What was charged before stays as it was.',
    needs: writes,
    params,
    body: z.strictObject({ ...NewPrice, starts_at: When.optional() }),
    answer: PriceJson,
    handle: async ({ params: { model_name: name }, body, actor }) => {
      const { input, cached_input: cachedInput, output, starts_at: from } = body
      const asked = { input, output, ...(cachedInput === undefined ? {} : { cachedInput }) }
      const done = await announcePrice(db, clock, actor, name, from, asked)
      if (done.ok) {
        const model = await find(name)
        return yes(priceToJson(done.value, model?.type ?? 'chat'))
      }
      switch (done.refusal.because) {
        case 'unknown':
          return no(notFound('model', name))
        case 'unfit':
          return faulty(done.refusal.fault)
        case 'past':
          return no(invalid('starts_at', 'constraint', 'a price does not start in the past: what was charged until now stays as it was'))
        case 'taken': {
          const help_message = 'another price starts at that instant'
          return no({ type: 'already_exists', resource: 'price', resource_id: done.refusal.by.id, help_message })
        }
      }
    },
  })
}
