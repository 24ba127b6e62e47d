import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { changeLife, type Fault, type Life, type LifeChange, lifeFault } from './life-cycle.ts'
import type { Model } from './model.ts'
import { ModelFacts, type ModelRow, noModel, noteChange, type PricedModel, refineFacts, rowToModel } from './models.ts'

/** What can be changed of a model. Its name and its type are what bills and clients know it by; its price has a history of its own. */
export type ModelChange = LifeChange & {
  readonly ownedBy?: string | undefined
  readonly description?: string | undefined
  readonly successor?: string | null | undefined
  readonly contextTokens?: number | undefined
  readonly maxOutputTokens?: number | null | undefined
  readonly dimensions?: number | null | undefined
  readonly matryoshka?: readonly number[] | undefined
  readonly licence?: string | null | undefined
  readonly source?: string | null | undefined
  readonly features?: { readonly [F in keyof Model['features']]?: Model['features'][F] | undefined } | undefined
  readonly rules?: { readonly [R in keyof Model['rules']]?: Model['rules'][R] | undefined } | undefined
}

type Facts = Omit<PricedModel, 'prices'>

const UPDATE = `
  update model set owned_by = $2, description = $3, status = $4, deprecated_at = $5, end_of_life_at = $6, successor = $7, context_tokens = $8,
                   max_output_tokens = $9, dimensions = $10, matryoshka = $11, licence = $12, source = $13, tools = $14,
                   structured_output = $15, reasoning = $16, vision = $17, audio_in_chat = $18, max_images = $19, image_token_px = $20,
                   image_max_px = $21, alternating_roles = $22, tool_system_prompt = $23, reasoning_efforts = $24, min_dimensions = $25,
                   updated_at = $26
   where id = $1`

const toDate = (instant: Instant | null): Date | null => (instant === null ? null : instantToDate(instant))

const write = (client: pg.ClientBase, model: Facts, now: Instant): Promise<unknown> =>
  client.query(UPDATE, [
    model.id,
    model.ownedBy,
    model.description,
    model.status,
    toDate(model.deprecatedAt),
    toDate(model.endOfLifeAt),
    model.successor,
    model.contextTokens,
    model.maxOutputTokens,
    model.dimensions,
    model.matryoshka,
    model.licence,
    model.source,
    model.features.tools,
    model.features.structuredOutput,
    model.features.reasoning,
    model.features.vision,
    model.rules.audioInChat,
    model.rules.maxImages,
    model.rules.imageTokenPx,
    model.rules.imageMaxPx,
    model.rules.alternatingRoles,
    model.rules.toolSystemPrompt,
    model.rules.reasoningEfforts,
    model.rules.minDimensions,
    instantToDate(now),
  ])

/** What the audit keeps: what can be changed. */
const toAudit = ({ id: _id, createdAt: _created, updatedAt: _updated, weights: _weights, type: _type, ...model }: Facts) => ({
  ...model,
  deprecatedAt: toDate(model.deprecatedAt),
  endOfLifeAt: toDate(model.endOfLifeAt),
})

type Given<T> = { [K in keyof T]?: Exclude<T[K], undefined> }

const given = <T extends object>(change: T): Given<T> =>
  Object.fromEntries(Object.entries(change).filter(([, value]) => value !== undefined)) as Given<T>

const merge = (before: Facts, change: ModelChange, life: Life): Facts => {
  const { features, rules, status: _status, deprecatedAt: _deprecated, endOfLifeAt: _ends, ...rest } = change
  return {
    ...before,
    ...given(rest),
    features: { ...before.features, ...given(features ?? {}) },
    rules: { ...before.rules, ...given(rules ?? {}) },
    status: life.status,
    deprecatedAt: life.deprecatedAt,
    endOfLifeAt: life.endOfLifeAt,
  }
}

/** The model with its rules in order, or what is wrong with it. */
const checkFacts = (model: Facts): Outcome<Facts, Fault> => {
  const {
    id: _id,
    createdAt: _created,
    updatedAt: _updated,
    deprecatedAt: _deprecated,
    endOfLifeAt: _ends,
    weights: _weights,
    ...facts
  } = model
  const checked = ModelFacts.superRefine(refineFacts).safeParse(facts)
  const issue = checked.error?.issues[0]
  if (issue !== undefined || !checked.success) return no({ field: (issue?.path ?? []).map(String).join('.'), why: issue?.message ?? '' })
  return yes({ ...model, rules: checked.data.rules })
}

/** A successor is there, does not lead back here, and is none for vectors: those of another model would not fit (serverless-platform.md 8.3). */
const successorFault = async (client: pg.ClientBase, model: Facts): Promise<Fault | undefined> => {
  if (model.successor === null) return undefined
  if (model.type === 'embedding')
    return { field: 'successor', why: 'nobody follows an embedding model: vectors of another one would not fit' }
  const { rows } = await client.query<{ name: string; type: string; successor: string | null }>(
    'select name, type, successor from model where removed_at is null',
  )
  const known = new Map(rows.map((row) => [row.name, row]))
  const next = known.get(model.successor)
  if (next === undefined) return { field: 'successor', why: `there is no model ${model.successor}` }
  if (next.type !== model.type) return { field: 'successor', why: `${next.name} is of type ${next.type}` }
  const passed = new Set([model.name])
  for (let at = known.get(model.successor); at !== undefined; at = at.successor === null ? undefined : known.get(at.successor)) {
    if (passed.has(at.name)) return { field: 'successor', why: `the way from ${model.successor} leads back to ${at.name}` }
    passed.add(at.name)
  }
  return undefined
}

/**
 * Changes a model, from the next request on; an empty change only shows it. Two at once are one after the other, and what one of them does
 * not name stays as the other has left it. `waived`: the operator takes it upon themselves to break the guarantees of the life cycle.
 */
export const changeModel = (
  db: Db,
  clock: Clock,
  actor: By,
  name: string,
  change: ModelChange,
  options: { readonly waived?: boolean | undefined } = {},
): Promise<Outcome<void, Fault | 'unknown'>> =>
  transaction(db, async (client) => {
    const { rows } = await client.query<ModelRow>('select * from model where name = $1 and removed_at is null for update', [name])
    const [row] = rows
    if (row === undefined) return no('unknown')
    if (Object.keys(given(change)).length === 0) return yes(undefined)
    const { prices: _prices, ...before } = rowToModel(row, [])
    const now = clock.now()
    const life = changeLife(before, change, now)
    const checked = checkFacts(merge(before, change, life))
    if (!checked.ok) return checked
    const after = checked.value
    const fault =
      lifeFault(before, life, now, { waived: options.waived === true }) ??
      (change.successor === undefined ? undefined : await successorFault(client, after))
    if (fault !== undefined) return no(fault)
    await write(client, after, now)
    const entry = { organizationId: null, actor, action: 'updated', resourceType: 'model', resourceId: before.id } as const
    await recordChange(client, { ...entry, before: toAudit(before), after: { ...toAudit(after), ...(options.waived && { waived: true }) } })
    await noteChange(client)
    return yes(undefined)
  })

/** The same for the command line: a refusal is a sentence. */
export const editModel = async (...asked: Parameters<typeof changeModel>): Promise<void> => {
  const done = await changeModel(...asked)
  if (done.ok) return
  if (done.refusal === 'unknown') throw new Error(noModel(asked[3]))
  throw new Error(`${done.refusal.field}: ${done.refusal.why}.`)
}
