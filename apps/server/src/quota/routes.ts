import { z } from 'zod'
import { type Clock, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import { pageOf } from '../kit/listing.ts'
import { listOf, type Manage, pageQuery } from '../kit/management.ts'
import type { Maxima } from '../kit/maxima.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type BudgetNow, readBudgets } from './budgets.ts'
import {
  type EditRefusal,
  type NewLimit,
  type NewLimits,
  removeBudget,
  setBudget,
  setOrganizationLimits,
  setProjectLimit,
  setTier,
  setTierLimits,
} from './edit.ts'
import { ANY_MODEL, LIMIT_NAMES, type Policy, TIERS } from './policy.ts'
import { toQuota } from './quota.ts'

const NANOS = 1_000_000_000

const Value = z.union([z.int().nonnegative(), z.enum(['unlimited', 'default'])])
const toLimit = (value: z.infer<typeof Value>): NewLimit => (value === 'unlimited' ? null : value)
const ModelName = z.string().min(1).max(128).default(ANY_MODEL)

const Limits = z.object(Object.fromEntries(LIMIT_NAMES.map((name) => [name, z.union([z.int(), z.null()])])))
const LimitsRow = Limits.extend({ model: z.string() })
const LimitsAnswer = z.object({ tier: z.enum(TIERS), limits: z.array(LimitsRow) })
const Uuid = z.uuid().toLowerCase()

const NewLimitsBody = z.strictObject({ model: ModelName, ...Object.fromEntries(LIMIT_NAMES.map((name) => [name, Value.optional()])) })

const readLimits = (body: z.infer<typeof NewLimitsBody>): { model: string; limits: NewLimits } => {
  const { model, ...values } = body as { model: string } & Partial<Record<(typeof LIMIT_NAMES)[number], z.infer<typeof Value>>>
  const limits = LIMIT_NAMES.flatMap((name) => (values[name] === undefined ? [] : [[name, toLimit(values[name])] as const]))
  return { model, limits: Object.fromEntries(limits) }
}

const isOrganization = async (db: Db, id: string): Promise<boolean> =>
  (await db.query('select 1 from organization where id = $1', [id])).rows.length > 0

const BudgetAnswer = z.object({
  id: z.uuid(),
  project_id: z.union([z.uuid(), z.null()]),
  principal_id: z.union([z.uuid(), z.null()]),
  unit: z.enum(['tokens', 'money']),
  period: z.enum(['day', 'month']),
  amount: z.number(),
  used: z.number(),
  hard: z.boolean(),
  period_ends_at: z.iso.datetime(),
})

/** Tokens are whole; money is in the currency, exact to the billionth. */
const amountToJson = (unit: 'tokens' | 'money', amount: number): number => (unit === 'tokens' ? amount : amount / NANOS)

const budgetToJson = (budget: BudgetNow) => ({
  id: budget.id,
  project_id: budget.projectId,
  principal_id: budget.principalId,
  unit: budget.unit,
  period: budget.period,
  amount: amountToJson(budget.unit, budget.amount),
  used: amountToJson(budget.unit, budget.used),
  hard: budget.hard,
  period_ends_at: instantToDate(budget.endsAt).toISOString(),
})

const denied = (refusal: EditRefusal, ids: Record<NonNullable<EditRefusal['missing']>, string>): Outcome<never, Denial> =>
  no(refusal.missing === undefined ? invalid('body', 'constraint', refusal.why) : notFound(refusal.missing, ids[refusal.missing]))

/** Limits and budgets as we show and change them, and the quotas of control-plane.md 5.8. */
export const quotaRoutes = (
  manage: Manage,
  room: { db: Db; clock: Clock; policy: () => Policy; maxima: Maxima; models: () => readonly { readonly name: string }[] },
): void => {
  const { db, clock } = room
  const read = { resource: 'limit', action: 'read', scope: 'organization' } as const
  const write = { resource: 'limit', action: 'write', scope: 'organization' } as const
  const operatorReads = { resource: 'installation', action: 'read', scope: 'installation' } as const
  const operatorWrites = { resource: 'installation', action: 'write', scope: 'installation' } as const
  const writeProject = { resource: 'limit', action: 'write', scope: 'project' } as const

  const limitsOf = (organizationId: OrganizationId) => {
    const policy = room.policy()
    const names = [ANY_MODEL, ...room.models().map(({ name }) => name)]
    return { tier: policy.tierOf(organizationId), limits: names.map((model) => ({ model, ...policy.limits(organizationId, model) })) }
  }

  manage({
    method: 'GET',
    path: '/parvis/v1/limits',
    summary: "Read the tier of the caller's organization, and its limits for each model that is served.",
    needs: read,
    answer: LimitsAnswer,
    handle: async ({ actor }) => yes(limitsOf(actor.organizationId)),
  })

  manage({
    method: 'GET',
    path: '/parvis/v1/limits/organizations/:organization_id',
    summary: 'Read the tier of any organization, and its limits for each model that is served.',
    needs: operatorReads,
    params: z.object({ organization_id: Uuid }),
    answer: LimitsAnswer,
    handle: async ({ params: { organization_id: id } }) =>
      (await isOrganization(db, id)) ? yes(limitsOf(id as OrganizationId)) : no(notFound('organization', id)),
  })

  manage({
    method: 'PUT',
    path: '/parvis/v1/limits/organizations/:organization_id',
    summary: "Set an organization's limits for a model, or for all that have none of their own.",
    needs: operatorWrites,
    params: z.object({ organization_id: Uuid }),
    body: NewLimitsBody,
    handle: async ({ params, body, actor }) => {
      const organizationId = params.organization_id as OrganizationId
      const done = await setOrganizationLimits({ db, actor }, { organizationId, ...readLimits(body) })
      return done.ok ? done : denied(done.refusal, { organization: organizationId, project: '', principal: '', budget: '' })
    },
  })

  manage({
    method: 'PUT',
    path: '/parvis/v1/limits/organizations/:organization_id/tier',
    summary: 'Put an organization into a tier.',
    needs: operatorWrites,
    params: z.object({ organization_id: Uuid }),
    body: z.strictObject({ tier: z.enum(TIERS) }),
    handle: async ({ params, body, actor }) => {
      const organizationId = params.organization_id as OrganizationId
      const done = await setTier({ db, actor }, { organizationId, tier: body.tier })
      return done.ok ? done : denied(done.refusal, { organization: organizationId, project: '', principal: '', budget: '' })
    },
  })

  manage({
    method: 'GET',
    path: '/parvis/v1/tiers',
    summary: 'List the tiers, with what is limited in each of them.',
    needs: operatorReads,
    query: pageQuery({ max: 100, fallback: 50, orders: ['name_asc'], clamp: true }).strict(),
    answer: z.object({ tiers: z.array(z.object({ name: z.enum(TIERS), limits: z.array(LimitsRow) })), total_count: z.int() }),
    handle: async ({ query }) => {
      const policy = room.policy()
      const tiers = TIERS.map((name) => ({ name, limits: policy.tierLimits(name) }))
      return yes({ tiers: pageOf(tiers, query), total_count: tiers.length })
    },
  })

  manage({
    method: 'PUT',
    path: '/parvis/v1/tiers/:tier/limits',
    summary: 'Set what a tier gives for a model, or for all that have nothing of their own in it. "default" takes a line out.',
    needs: operatorWrites,
    params: z.object({ tier: z.enum(TIERS) }),
    body: NewLimitsBody,
    handle: async ({ params, body, actor }) => {
      const done = await setTierLimits({ db, actor }, { tier: params.tier, ...readLimits(body) })
      return done.ok ? done : denied(done.refusal, { organization: '', project: '', principal: '', budget: '' })
    },
  })

  manage({
    method: 'PUT',
    path: '/parvis/v1/limits/projects/:project_id',
    summary: 'Set how many tokens per minute a project may use of a model, at most what its organization may.',
    needs: writeProject,
    params: z.object({ project_id: z.uuid() }),
    body: z.strictObject({ model: ModelName, tokens_per_minute: Value }),
    handle: async ({ params, body, actor, may }) => {
      const projectId = params.project_id as ProjectId
      if (!may(writeProject, projectId)) return no(notFound('project', projectId))
      const done = await setProjectLimit(
        { db, actor },
        { organizationId: actor.organizationId, projectId, model: body.model, tokensPerMinute: toLimit(body.tokens_per_minute) },
      )
      return done.ok ? done : denied(done.refusal, { organization: '', project: projectId, principal: '', budget: '' })
    },
  })

  manage({
    method: 'GET',
    path: '/parvis/v1/budgets',
    summary: "List the budgets of the caller's organization, with what has been used of each in the period that runs.",
    needs: read,
    query: pageQuery({ max: 100, fallback: 50, orders: ['created_at_asc', 'created_at_desc'], clamp: true }).strict(),
    answer: z.object({ budgets: z.array(BudgetAnswer), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const budgets = await readBudgets(db, clock, actor.organizationId)
      const ordered = query.order_by === 'created_at_desc' ? budgets.toReversed() : budgets
      return yes({ budgets: pageOf(ordered, query).map(budgetToJson), total_count: budgets.length })
    },
  })

  manage({
    method: 'PUT',
    path: '/parvis/v1/budgets',
    summary:
      'Set an amount of tokens or money for a day or a month of UTC, for the organization, a project, a principal, or a principal in a project.',
    needs: write,
    body: z.strictObject({
      project_id: z.uuid().optional(),
      principal_id: z.uuid().optional(),
      unit: z.enum(['tokens', 'money']),
      period: z.enum(['day', 'month']),
      amount: z.number().nonnegative().max(9_000_000_000_000),
      hard: z.boolean().default(true),
    }),
    answer: z.object({ id: z.uuid() }),
    handle: async ({ body, actor }) => {
      const amount = body.unit === 'money' ? Math.round(body.amount * NANOS) : body.amount
      if (!Number.isSafeInteger(amount)) {
        return no(invalid('amount', 'constraint', body.unit === 'money' ? 'at most 9,000,000' : 'a whole number of tokens'))
      }
      const done = await setBudget(
        { db, clock, actor },
        {
          organizationId: actor.organizationId,
          projectId: (body.project_id ?? null) as ProjectId | null,
          principalId: (body.principal_id ?? null) as PrincipalId | null,
          unit: body.unit,
          period: body.period,
          amount,
          hard: body.hard,
        },
      )
      if (done.ok) return yes({ id: done.value.id })
      return denied(done.refusal, { organization: '', project: body.project_id ?? '', principal: body.principal_id ?? '', budget: '' })
    },
  })

  manage({
    method: 'DELETE',
    path: '/parvis/v1/budgets/:budget_id',
    summary: 'Remove a budget.',
    needs: write,
    params: z.object({ budget_id: z.uuid() }),
    handle: async ({ params, actor }) => {
      const done = await removeBudget({ db, actor }, { organizationId: actor.organizationId, id: params.budget_id })
      return done.ok ? done : denied(done.refusal, { organization: '', project: '', principal: '', budget: params.budget_id })
    },
  })

  const Quotum = z.object({
    name: z.string(),
    limit: z.int().optional(),
    unlimited: z.boolean().optional(),
    pretty_name: z.string(),
    unit: z.string(),
    description: z.string(),
    locality_type: z.literal('global'),
    limits: z.array(z.object({ global: z.literal(true), limit: z.int().optional(), unlimited: z.boolean().optional() })),
  })

  manage({
    method: 'GET',
    path: '/iam/v1alpha1/quota',
    summary: 'List the quotas of an organization.',
    needs: read,
    query: pageQuery({ max: 100, fallback: 20, orders: ['name_asc', 'name_desc'], clamp: false }).extend({
      organization_id: z.uuid(),
      quotum_names: listOf(z.string()),
    }),
    answer: z.object({ quota: z.array(Quotum), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      // Another organization's quotas are answered as those of one that has none.
      if (query.organization_id !== actor.organizationId) return yes({ quota: [], total_count: 0 })
      const wanted = new Set(query.quotum_names)
      const quota = toQuota(room.policy(), room.maxima, actor.organizationId, room.models())
        .filter(({ name }) => wanted.size === 0 || wanted.has(name))
        .sort((one, other) => (one.name < other.name ? -1 : 1) * (query.order_by === 'name_desc' ? -1 : 1))
      return yes({ quota: pageOf(quota, query), total_count: quota.length })
    },
  })

  manage({
    method: 'GET',
    path: '/iam/v1alpha1/quota/:quotum_name',
    summary: 'Read one quota of an organization.',
    needs: read,
    params: z.object({ quotum_name: z.string() }),
    query: z.looseObject({ organization_id: z.uuid() }),
    answer: Quotum,
    handle: async ({ params, query, actor }) => {
      const quota =
        query.organization_id === actor.organizationId ? toQuota(room.policy(), room.maxima, actor.organizationId, room.models()) : []
      const quotum = quota.find(({ name }) => name === params.quotum_name)
      return quotum === undefined ? no(notFound('quotum', params.quotum_name)) : yes(quotum)
    },
  })
}
