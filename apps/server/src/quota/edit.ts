import { type By, recordChange } from '../audit/record.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { isUuid, newId, type OrganizationId, type ProjectId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { bringUp } from './budgets.ts'
import {
  ANY_MODEL,
  BUDGET_COLUMNS,
  type Budget,
  type BudgetRow,
  DEFAULT_TIER,
  type LimitName,
  OVER_ALL,
  readPolicy,
  rowToBudget,
  type Scope,
  TIERS,
  type Tier,
} from './policy.ts'

/** A number, null for no limit, `default` for whatever holds without it: of a tier what is published, of others what their tier has. */
export type NewLimit = number | null | 'default'
export type NewLimits = Readonly<Partial<Record<LimitName, NewLimit>>>

/** Why something was not changed, in a sentence; `missing` names what is not there. */
export type EditRefusal = { readonly why: string; readonly missing?: 'organization' | 'project' | 'principal' | 'budget' }

/** A limit is a safe integer, so that no share of it is ever rounded. */
const MAX_VALUE = Number.MAX_SAFE_INTEGER

type Edit = { readonly db: Db; readonly actor: By }

const exists = async (
  db: Pick<Db, 'query'>,
  table: 'organization' | 'project' | 'principal',
  organizationId: OrganizationId,
  id: string,
): Promise<boolean> => {
  if (!isUuid(id)) return false
  const { rows } = await db.query(
    table === 'organization'
      ? 'select 1 from organization where id = $1 and id = $2'
      : `select 1 from ${table} where organization_id = $1 and id = $2`,
    [organizationId, id],
  )
  return rows.length > 0
}

/** Limits of an organization for one model, or for `*`: all that have none of their own. Every gateway knows within a second. */
export const setOrganizationLimits = async (
  { db, actor }: Edit,
  { organizationId, model, limits }: { organizationId: OrganizationId; model: string; limits: NewLimits },
): Promise<Outcome<undefined, EditRefusal>> => {
  if (!(await exists(db, 'organization', organizationId, organizationId)))
    return no({ why: 'There is no such organization.', missing: 'organization' })
  const misplaced = misplacedIn(model, limits)
  if (misplaced !== undefined) return no(misplaced)
  return write({ db, actor }, { scope: 'organization', subject: organizationId, organizationId, model, limits })
}

/** Limits of a tier for one model, or for `*`. They hold for every organization in it that has none of its own. */
export const setTierLimits = async (
  { db, actor }: Edit,
  { tier, model, limits }: { tier: Tier; model: string; limits: NewLimits },
): Promise<Outcome<undefined, EditRefusal>> => {
  const misplaced = misplacedIn(model, limits)
  if (misplaced !== undefined) return no(misplaced)
  return write({ db, actor }, { scope: 'tier', subject: tier, organizationId: null, model, limits })
}

const misplacedIn = (model: string, limits: NewLimits): EditRefusal | undefined => {
  const name = Object.keys(limits).find((each) => model !== ANY_MODEL && OVER_ALL.includes(each as LimitName))
  return name === undefined ? undefined : { why: `${name} holds over all models together: set it for the model *.` }
}

/** Tokens per minute of a project, at most what its organization has (serverless-platform.md 4.4). */
export const setProjectLimit = async (
  { db, actor }: Edit,
  given: { organizationId: OrganizationId; projectId: ProjectId; model: string; tokensPerMinute: NewLimit },
): Promise<Outcome<undefined, EditRefusal>> => {
  const { organizationId, projectId, model, tokensPerMinute } = given
  if (!(await exists(db, 'project', organizationId, projectId))) return no({ why: 'There is no such project.', missing: 'project' })
  const { tokens_per_minute: most } = (await readPolicy(db)).limits(organizationId, model)
  if (most !== null && (tokensPerMinute === null || (tokensPerMinute !== 'default' && tokensPerMinute > most)))
    return no({ why: `A project cannot have more than its organization, which has ${most} tokens per minute for this model.` })
  return write(
    { db, actor },
    { scope: 'project', subject: projectId, organizationId, model, limits: { tokens_per_minute: tokensPerMinute } },
  )
}

const PUBLISHED = `
  insert into quota_limit (scope, subject, model, name, value)
  select 'tier', tier, model, name, value from quota_published where tier = $1 and model = $2 and name = $3`

const write = async (
  { db, actor }: Edit,
  place: { scope: Scope; subject: string; organizationId: OrganizationId | null; model: string; limits: NewLimits },
): Promise<Outcome<undefined, EditRefusal>> => {
  const { scope, subject, model } = place
  const wrong = Object.values(place.limits).find(
    (value) => typeof value === 'number' && !(Number.isSafeInteger(value) && value >= 0 && value <= MAX_VALUE),
  )
  if (wrong !== undefined) return no({ why: 'A limit is a whole number, zero or more.' })
  await transaction(db, async (client) => {
    const { rows } = await client.query<{ name: string; value: bigint | null }>(
      'select name, value from quota_limit where scope = $1 and subject = $2 and model = $3 for update',
      [scope, subject, model],
    )
    const before = Object.fromEntries(rows.map(({ name, value }) => [name, value === null ? 'unlimited' : Number(value)]))
    for (const [name, value] of Object.entries(place.limits)) {
      if (value === 'default') {
        await client.query('delete from quota_limit where scope = $1 and subject = $2 and model = $3 and name = $4', [
          scope,
          subject,
          model,
          name,
        ])
        if (scope === 'tier') await client.query(PUBLISHED, [subject, model, name])
      } else {
        await client.query(
          `insert into quota_limit (scope, subject, model, name, value) values ($1, $2, $3, $4, $5)
             on conflict (scope, subject, model, name) do update set value = excluded.value`,
          [scope, subject, model, name, value],
        )
      }
    }
    await recordChange(client, {
      organizationId: place.organizationId,
      actor,
      action: 'updated',
      resourceType: `${scope}_limit`,
      resourceId: `${subject}/${model}`,
      before,
      after: { ...before, ...Object.fromEntries(Object.entries(place.limits).map(([name, value]) => [name, value ?? 'unlimited'])) },
    })
    await client.query(`select note_change('quota')`)
  })
  return yes(undefined)
}

export const isTier = (text: string): text is Tier => TIERS.some((tier) => tier === text)

export const setTier = async (
  { db, actor }: Edit,
  { organizationId, tier }: { organizationId: OrganizationId; tier: Tier },
): Promise<Outcome<undefined, EditRefusal>> => {
  if (!(await exists(db, 'organization', organizationId, organizationId)))
    return no({ why: 'There is no such organization.', missing: 'organization' })
  await transaction(db, async (client) => {
    const { rows } = await client.query<{ tier: string }>('select tier from quota_organization where organization_id = $1 for update', [
      organizationId,
    ])
    await client.query(
      `insert into quota_organization (organization_id, tier) values ($1, $2) on conflict (organization_id) do update set tier = excluded.tier`,
      [organizationId, tier],
    )
    await recordChange(client, {
      organizationId,
      actor,
      action: 'updated',
      resourceType: 'organization_tier',
      resourceId: organizationId,
      before: rows[0] ?? { tier: DEFAULT_TIER },
      after: { tier },
    })
    await client.query(`select note_change('quota')`)
  })
  return yes(undefined)
}

/** A budget for the same people, unit and period replaces the one before; what has been used of it stays used. */
export const setBudget = async (
  { db, actor, clock }: Edit & { readonly clock: Pick<Clock, 'now'> },
  budget: Omit<Budget, 'id'>,
): Promise<Outcome<Budget, EditRefusal>> => {
  const { organizationId, projectId, principalId } = budget
  if (!(await exists(db, 'organization', organizationId, organizationId)))
    return no({ why: 'There is no such organization.', missing: 'organization' })
  if (projectId !== null && !(await exists(db, 'project', organizationId, projectId)))
    return no({ why: 'There is no such project.', missing: 'project' })
  if (principalId !== null && !(await exists(db, 'principal', organizationId, principalId)))
    return no({ why: 'There is no such user or application.', missing: 'principal' })
  const made = await transaction(db, async (client) => {
    const where = `organization_id = $1 and project_id is not distinct from $2 and principal_id is not distinct from $3 and unit = $4 and period = $5`
    const place = [organizationId, projectId, principalId, budget.unit, budget.period]
    const { rows: there } = await client.query<BudgetRow>(`select ${BUDGET_COLUMNS} from quota_budget where ${where} for update`, place)
    const [before] = there.map(rowToBudget)
    const { rows } = await client.query<BudgetRow>(
      `insert into quota_budget (id, organization_id, project_id, principal_id, unit, period, amount, hard) values ($6, $1, $2, $3, $4, $5, $7, $8)
         on conflict (organization_id, project_id, principal_id, unit, period) do update set amount = excluded.amount, hard = excluded.hard
       returning ${BUDGET_COLUMNS}`,
      [...place, newId(clock.now()), budget.amount, budget.hard],
    )
    const [after] = rows.map(rowToBudget)
    if (after === undefined) throw new Error('a budget that was written is not there')
    await client.query('delete from quota_alert where budget_id = $1 and used < $2', [after.id, after.amount])
    // No gateway can know the budget before it knows what is used of it.
    await bringUp(client, clock, after)
    await recordChange(client, {
      organizationId,
      actor,
      action: before === undefined ? 'created' : 'updated',
      resourceType: 'budget',
      resourceId: after.id,
      before: before ?? null,
      after,
    })
    await client.query(`select note_change('quota')`)
    return after
  })
  return yes(made)
}

export const removeBudget = async (
  { db, actor }: Edit,
  { organizationId, id }: { organizationId: OrganizationId; id: string },
): Promise<Outcome<undefined, EditRefusal>> => {
  const gone = await transaction(db, async (client) => {
    const { rows } = await client.query<BudgetRow>(
      `delete from quota_budget where organization_id = $1 and id = $2 returning ${BUDGET_COLUMNS}`,
      [organizationId, id],
    )
    const [before] = rows.map(rowToBudget)
    if (before === undefined) return false
    await recordChange(client, { organizationId, actor, action: 'deleted', resourceType: 'budget', resourceId: id, before, after: null })
    await client.query(`select note_change('quota')`)
    return true
  })
  return gone ? yes(undefined) : no({ why: 'There is no such budget.', missing: 'budget' })
}
