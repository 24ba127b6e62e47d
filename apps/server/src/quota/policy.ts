import type { Changes } from '../kit/changes.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'

/** How much an organization is trusted: what stricter platforms verify (serverless-platform.md 4.1). */
export const TIERS = ['none', 'payment_method', 'identity_verified'] as const
export type Tier = (typeof TIERS)[number]
/** Of an organization that nobody has put anywhere: whoever installs Parvis knows whom they let in. */
export const DEFAULT_TIER: Tier = 'identity_verified'

/** By the names of the table. Null is not limited. */
export const LIMIT_NAMES = [
  'tokens_per_minute',
  'requests_per_minute',
  'audio_seconds_per_minute',
  'concurrent_requests',
  'concurrent_batches',
  'free_tokens_per_month',
] as const
export type LimitName = (typeof LIMIT_NAMES)[number]
export type Limits = Readonly<Record<LimitName, number | null>>

/** Where a limit is written for all models that have none of their own. */
export const ANY_MODEL = '*'
/** These hold over all models together (data-plane.md 4.1). */
export const OVER_ALL: readonly LimitName[] = ['concurrent_requests', 'concurrent_batches', 'free_tokens_per_month']

export type Scope = 'tier' | 'organization' | 'project'

/** An amount for a day or a month of UTC. `project` and `principal` null: of the whole organization. */
export type Budget = {
  readonly id: string
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId | null
  readonly principalId: PrincipalId | null
  readonly unit: 'tokens' | 'money'
  readonly period: 'day' | 'month'
  /** Tokens, or billionths of the currency. */
  readonly amount: number
  readonly hard: boolean
}

/** Everything that is limited, as of one moment. */
export type Policy = {
  tierOf(organizationId: OrganizationId): Tier
  /** What is written at exactly this place; undefined where nothing is. */
  written(scope: Scope, subject: string, model: string, name: LimitName): number | null | undefined
  limits(organizationId: OrganizationId, model: string): Limits
  /** What holds in a tier, for all models together first, then for each model that has something of its own. */
  tierLimits(tier: Tier): readonly (Limits & { readonly model: string })[]
  /** Tokens per minute of the project, never above the organization's (serverless-platform.md 4.4). Null: none of its own. */
  projectTokens(organizationId: OrganizationId, projectId: ProjectId, model: string): number | null
  budgets(organizationId: OrganizationId): readonly Budget[]
}

export type LimitRow = { scope: Scope; subject: string; model: string; name: LimitName; value: bigint | null }
export type BudgetRow = {
  id: string
  organization_id: OrganizationId
  project_id: ProjectId | null
  principal_id: PrincipalId | null
  unit: 'tokens' | 'money'
  period: 'day' | 'month'
  amount: bigint
  hard: boolean
}

export const rowToBudget = (row: BudgetRow): Budget => ({
  id: row.id,
  organizationId: row.organization_id,
  projectId: row.project_id,
  principalId: row.principal_id,
  unit: row.unit,
  period: row.period,
  amount: Number(row.amount),
  hard: row.hard,
})

const placeOf = (scope: Scope, subject: string, model: string, name: LimitName): string => `${scope} ${subject} ${model} ${name}`

export const toPolicy = (rows: {
  limits: readonly LimitRow[]
  tiers: readonly { organization_id: OrganizationId; tier: Tier }[]
  budgets: readonly Budget[]
}): Policy => {
  const values = new Map(
    rows.limits.map((row) => [placeOf(row.scope, row.subject, row.model, row.name), row.value === null ? null : Number(row.value)]),
  )
  const tiers = new Map(rows.tiers.map((row) => [row.organization_id, row.tier]))
  const budgets = new Map<OrganizationId, Budget[]>()
  for (const budget of rows.budgets) {
    const others = budgets.get(budget.organizationId)
    if (others === undefined) budgets.set(budget.organizationId, [budget])
    else others.push(budget)
  }

  const written: Policy['written'] = (scope, subject, model, name) => values.get(placeOf(scope, subject, model, name))
  const tierOf = (organizationId: OrganizationId): Tier => tiers.get(organizationId) ?? DEFAULT_TIER

  /** The narrowest row counts. */
  const find = (organizationId: OrganizationId, model: string, name: LimitName): number | null => {
    const tier = tierOf(organizationId)
    for (const value of [
      written('organization', organizationId, model, name),
      written('organization', organizationId, ANY_MODEL, name),
      written('tier', tier, model, name),
      written('tier', tier, ANY_MODEL, name),
    ]) {
      if (value !== undefined) return value
    }
    return null
  }
  const limits: Policy['limits'] = (organizationId, model) => ({
    tokens_per_minute: find(organizationId, model, 'tokens_per_minute'),
    requests_per_minute: find(organizationId, model, 'requests_per_minute'),
    audio_seconds_per_minute: find(organizationId, model, 'audio_seconds_per_minute'),
    concurrent_requests: find(organizationId, ANY_MODEL, 'concurrent_requests'),
    concurrent_batches: find(organizationId, ANY_MODEL, 'concurrent_batches'),
    free_tokens_per_month: find(organizationId, ANY_MODEL, 'free_tokens_per_month'),
  })

  const tierLimits: Policy['tierLimits'] = (tier) => {
    const own = rows.limits.filter((row) => row.scope === 'tier' && row.subject === tier).map((row) => row.model)
    const models = [ANY_MODEL, ...[...new Set(own)].filter((model) => model !== ANY_MODEL).sort()]
    return models.map((model) => {
      const at = (name: LimitName): number | null => {
        const own = written('tier', tier, model, name)
        // Null is a word of its own: not limited.
        return (own === undefined ? written('tier', tier, ANY_MODEL, name) : own) ?? null
      }
      return { model, ...(Object.fromEntries(LIMIT_NAMES.map((name) => [name, at(name)])) as Limits) }
    })
  }

  return {
    tierOf,
    written,
    limits,
    tierLimits,
    projectTokens: (organizationId, projectId, model) => {
      const narrow = written('project', projectId, model, 'tokens_per_minute')
      // Null is a word of its own: not limited, whatever holds for the other models.
      const own = narrow === undefined ? (written('project', projectId, ANY_MODEL, 'tokens_per_minute') ?? null) : narrow
      const organizations = find(organizationId, model, 'tokens_per_minute')
      return own === null || organizations === null ? own : Math.min(own, organizations)
    },
    budgets: (organizationId) => budgets.get(organizationId) ?? NO_BUDGETS,
  }
}

const NO_BUDGETS: readonly Budget[] = []

export const BUDGET_COLUMNS = 'id, organization_id, project_id, principal_id, unit, period, amount, hard'

export const readPolicy = async (db: Pick<Db, 'query'>): Promise<Policy> => {
  const limits = await db.query<LimitRow>('select scope, subject, model, name, value from quota_limit')
  const tiers = await db.query<{ organization_id: OrganizationId; tier: Tier }>('select organization_id, tier from quota_organization')
  const budgets = await db.query<BudgetRow>(`select ${BUDGET_COLUMNS} from quota_budget order by id`)
  return toPolicy({ limits: limits.rows, tiers: tiers.rows, budgets: budgets.rows.map(rowToBudget) })
}

/** The policy in memory, following the database: a change holds in every gateway within a second. */
export const watchPolicy = async (parts: { db: Db; changes: Changes }): Promise<() => Policy> => {
  let policy: Policy | undefined
  await parts.changes.watch('quota', async () => {
    policy = await readPolicy(parts.db)
  })
  return () => {
    if (policy === undefined) throw new Error('the limits were never read')
    return policy
  }
}
