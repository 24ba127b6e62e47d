import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, invalid, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId } from '../kit/ids.ts'
import { orderOf, pageOf, readPage } from '../kit/listing.ts'
import { listOf, type Manage, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { compileCondition, MAX_CONDITION_CHARACTERS, MAX_CONDITIONS_CHARACTERS } from './condition.ts'
import { openKind } from './kind.ts'
import { PERMISSION_SETS, permissionSetId } from './permission-sets.ts'
import { Description, type IamRoom, Ids, iamPage, Name, Stamps, Tags } from './shapes.ts'

type RuleRow = { id: string; permission_set_names: string[]; project_ids: string[] | null; condition: string }

type Row = {
  id: string
  name: string
  description: string
  organization_id: OrganizationId
  tags: string[]
  user_id: string | null
  application_id: string | null
  group_id: string | null
  nb_rules: number
  nb_scopes: number
  nb_permission_sets: number
  created_at: Date
  updated_at: Date
}

const SELECT = `
  select policy.id, policy.name, policy.description, policy.organization_id, policy.tags, policy.created_at, policy.updated_at,
         case principal.kind when 'user' then principal.id end as user_id,
         case principal.kind when 'application' then principal.id end as application_id,
         policy.group_id,
         (select count(*) from policy_rule where policy_id = policy.id)::int as nb_rules,
         (select count(distinct scope) from policy_rule, unnest(coalesce(project_ids, array[policy.organization_id])) as scope
           where policy_id = policy.id)::int as nb_scopes,
         (select count(distinct name) from policy_rule, unnest(permission_set_names) as name where policy_id = policy.id)::int as nb_permission_sets
    from policy left join principal on principal.id = policy.principal_id
   where policy.organization_id = $1`

const toJson = ({ user_id, application_id, group_id, ...row }: Row) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  editable: true,
  deletable: true,
  managed: false,
  ...(user_id !== null && { user_id }),
  ...(application_id !== null && { application_id }),
  ...(group_id !== null && { group_id }),
  ...(user_id === null && application_id === null && group_id === null && { no_principal: true }),
})

const ruleToJson = (row: RuleRow, organizationId: OrganizationId) => ({
  id: row.id,
  permission_set_names: row.permission_set_names,
  permission_sets_scope_type: PERMISSION_SETS.get(row.permission_set_names[0] ?? '')?.scopeType ?? 'projects',
  condition: row.condition,
  ...(row.project_ids === null ? { organization_id: organizationId } : { project_ids: row.project_ids }),
})

const Policy = z.object({
  id: z.uuid(),
  name: z.string(),
  description: z.string(),
  organization_id: z.uuid(),
  ...Stamps,
  tags: z.array(z.string()),
  editable: z.boolean(),
  deletable: z.boolean(),
  managed: z.boolean(),
  nb_rules: z.int(),
  nb_scopes: z.int(),
  nb_permission_sets: z.int(),
  user_id: z.uuid().optional(),
  group_id: z.uuid().optional(),
  application_id: z.uuid().optional(),
  no_principal: z.literal(true).optional(),
})

const Rule = z.object({
  id: z.uuid(),
  permission_set_names: z.array(z.string()),
  permission_sets_scope_type: z.enum(['projects', 'organization']),
  condition: z.string(),
  project_ids: z.array(z.uuid()).optional(),
  organization_id: z.uuid().optional(),
})

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and policy.id = $2`, [organizationId, id])).rows[0]

const RULES = 'select id, permission_set_names, project_ids, condition, position from policy_rule where policy_id = $1'

const readRules = async (db: Db | pg.ClientBase, policyId: string): Promise<RuleRow[]> =>
  (await db.query<RuleRow>(`${RULES} order by position`, [policyId])).rows

const toAudit = (row: Row, rules: readonly RuleRow[]) => ({
  name: row.name,
  description: row.description,
  tags: row.tags,
  userId: row.user_id,
  applicationId: row.application_id,
  groupId: row.group_id,
  rules: rules.map(({ permission_set_names, project_ids, condition }) => ({
    permission_set_names,
    project_ids,
    condition,
  })),
})

const MAX_RULES = 50

const GivenRule = z.looseObject({
  permission_set_names: z.array(z.string().max(64)).max(100).nullish(),
  condition: z.string().max(MAX_CONDITION_CHARACTERS).nullish(),
  project_ids: Ids.nullish(),
  organization_id: z.uuid().nullish(),
})
type GivenRule = z.infer<typeof GivenRule>
const GivenRules = z.array(GivenRule).max(MAX_RULES)

const Principal = {
  user_id: z.uuid().optional(),
  group_id: z.uuid().optional(),
  application_id: z.uuid().optional(),
  no_principal: z.boolean().optional(),
}
type Principal = {
  user_id?: string | undefined
  group_id?: string | undefined
  application_id?: string | undefined
  no_principal?: boolean | undefined
}

/** Writes a rule's scope and sets down as they are kept, or says what is wrong with them. */
const checkRule = async (
  client: pg.ClientBase,
  organizationId: OrganizationId,
  rule: GivenRule,
): Promise<Outcome<Omit<RuleRow, 'id'>, Denial>> => {
  const names = rule.permission_set_names ?? []
  if (names.length === 0) return no(invalid('permission_set_names', 'required', 'at least one permission set'))
  const unknown = names.find((name) => !PERMISSION_SETS.has(name))
  if (unknown !== undefined) return no(invalid('permission_set_names', 'unknown', `there is no permission set ${unknown}`))
  const types = new Set(names.map((name) => PERMISSION_SETS.get(name)?.scopeType))
  if (types.size > 1) return no(invalid('permission_set_names', 'constraint', 'all sets of one rule have the same type of scope'))
  const condition = compileCondition(rule.condition ?? '')
  if (!condition.ok) return no(invalid('condition', 'format', condition.refusal))
  const kept = { permission_set_names: [...new Set(names)], condition: rule.condition ?? '' }
  // Go sends an empty list where it means none.
  const projectIds = rule.project_ids?.length ? rule.project_ids : undefined
  if ((projectIds === undefined) === ((rule.organization_id ?? undefined) === undefined))
    return no(invalid('project_ids', 'required', 'exactly one of project_ids and organization_id'))
  if (projectIds === undefined) {
    return rule.organization_id === organizationId
      ? yes({ ...kept, project_ids: null })
      : no(forbidden({ resource: 'policy', action: 'write' }))
  }
  if (types.has('organization')) return no(invalid('project_ids', 'constraint', 'these permission sets are granted on the organization'))
  const { rows } = await client.query<{ id: string }>('select id from project where organization_id = $1 and id = any ($2::uuid[])', [
    organizationId,
    projectIds,
  ])
  const there = new Set(rows.map(({ id }) => id))
  const missing = projectIds.find((id) => !there.has(id.toLowerCase()))
  return missing === undefined ? yes({ ...kept, project_ids: [...there] }) : no(notFound('project_id', missing))
}

const TOO_LONG_TOGETHER = invalid(
  'condition',
  'constraint',
  `the conditions of all rules of an organization have at most ${MAX_CONDITIONS_CHARACTERS} characters together: put rules with the same condition into one, or shorten them`,
)

/** Whoever writes stands in a row with all others (change.ts), so what is added up here is all there is. */
const conditionsLength = async (client: pg.ClientBase, organizationId: OrganizationId): Promise<number> => {
  const { rows } = await client.query<{ characters: number }>(
    `select coalesce(sum(length(condition)), 0)::int as characters
       from policy_rule join policy on policy.id = policy_id where organization_id = $1`,
    [organizationId],
  )
  return rows[0]?.characters ?? 0
}

/**
 * Writes rules unless the conditions are too long together then. Where they were so before, all that makes them no longer is taken.
 * `given`: how long those are that come; what cannot fit anyway is refused before each of them is compiled.
 */
const fitting = async (
  client: pg.ClientBase,
  organizationId: OrganizationId,
  given: number,
  write: () => Promise<Outcome<undefined, Denial>>,
): Promise<Outcome<undefined, Denial>> => {
  const before = await conditionsLength(client, organizationId)
  if (given > MAX_CONDITIONS_CHARACTERS && given > before) return no(TOO_LONG_TOGETHER)
  const done = await write()
  if (!done.ok) return done
  const after = await conditionsLength(client, organizationId)
  return after > MAX_CONDITIONS_CHARACTERS && after > before ? no(TOO_LONG_TOGETHER) : done
}

const PATH = '/iam/v1alpha1/policies'

/** control-plane.md 5.4 and 5.5. */
export const policyRoutes = (manage: Manage, room: IamRoom): void => {
  const { db, change, iam } = room
  const { reads, writes, make, edit } = openKind(manage, room, {
    resource: 'policy',
    table: 'policy',
    path: PATH,
    answer: Policy,
    summaries: { read: 'Read one policy.', remove: 'Delete a policy; what it granted is gone within a second.' },
    read,
    toJson,
    toAudit: async (client, row) => toAudit(row, await readRules(client, row.id)),
  })
  const params = z.object({ policy_id: z.uuid() })

  const setRules = async (
    client: pg.ClientBase,
    organizationId: OrganizationId,
    policyId: string,
    given: readonly GivenRule[],
  ): Promise<Outcome<undefined, Denial>> => {
    // In code points, as the database counts.
    const characters = given.reduce((sum, { condition }) => sum + Array.from(condition ?? '').length, 0)
    return fitting(client, organizationId, characters, async () => {
      await client.query('delete from policy_rule where policy_id = $1', [policyId])
      for (const [position, rule] of given.entries()) {
        const checked = await checkRule(client, organizationId, rule)
        if (!checked.ok) return checked
        await client.query(
          'insert into policy_rule (id, policy_id, position, permission_set_names, project_ids, condition) values ($1, $2, $3, $4, $5, $6)',
          [
            newId(iam.clock.now()),
            policyId,
            position,
            checked.value.permission_set_names,
            checked.value.project_ids,
            checked.value.condition,
          ],
        )
      }
      return yes(undefined)
    })
  }

  /** The columns of whoever the policy is for; undefined where the request says nothing of it. */
  const principalOf = async (
    client: pg.ClientBase,
    organizationId: OrganizationId,
    given: Principal,
  ): Promise<Outcome<{ principalId: string | null; groupId: string | null } | undefined, Denial>> => {
    const named = (['user_id', 'group_id', 'application_id'] as const).filter((field) => given[field] !== undefined)
    const count = named.length + (given.no_principal === true ? 1 : 0)
    if (count > 1) return no(invalid('no_principal', 'constraint', 'at most one of user_id, group_id, application_id and no_principal'))
    const [field] = named
    if (field === undefined) return yes(given.no_principal === true ? { principalId: null, groupId: null } : undefined)
    const id = given[field] ?? ''
    const kind = field.slice(0, -'_id'.length)
    const { rowCount } =
      field === 'group_id'
        ? await client.query('select 1 from principal_group where organization_id = $1 and id = $2', [organizationId, id])
        : await client.query('select 1 from principal where organization_id = $1 and id = $2 and kind = $3', [organizationId, id, kind])
    if (rowCount === 0) return no(notFound(kind, id))
    return yes(field === 'group_id' ? { principalId: null, groupId: id } : { principalId: id, groupId: null })
  }

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the policies of an organization.',
    needs: reads,
    query: iamPage(['policy_name_asc', 'policy_name_desc', 'created_at_asc', 'created_at_desc']).extend({
      organization_id: z.uuid().optional(),
      editable: queryFlag.optional(),
      user_ids: listOf(z.uuid()),
      group_ids: listOf(z.uuid()),
      application_ids: listOf(z.uuid()),
      no_principal: queryFlag.optional(),
      policy_name: z.string().optional(),
      policy_ids: listOf(z.uuid()),
      tag: z.string().optional(),
    }),
    answer: z.object({ policies: z.array(Policy), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const { rows, total } = await readPage<Row>(
        db,
        `select * from (${SELECT}) as policies
          where ($2::uuid is null or organization_id = $2) and $3::boolean is distinct from false
            and (cardinality($4::uuid[]) = 0 or user_id = any ($4)) and (cardinality($5::uuid[]) = 0 or group_id = any ($5))
            and (cardinality($6::uuid[]) = 0 or application_id = any ($6))
            and ($7::boolean is null or (num_nonnulls(user_id, group_id, application_id) = 0) = $7)
            and ($8::text is null or position(lower($8) in lower(name)) > 0) and (cardinality($9::uuid[]) = 0 or id = any ($9))
            and ($10::text is null or $10 = any (tags))`,
        [
          actor.organizationId,
          query.organization_id ?? null,
          query.editable ?? null,
          query.user_ids,
          query.group_ids,
          query.application_ids,
          query.no_principal ?? null,
          query.policy_name ?? null,
          query.policy_ids,
          query.tag ?? null,
        ],
        query,
        orderOf(query.order_by, { created_at: 'created_at', policy_name: 'name' }, 'id'),
      )
      return yes({ policies: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make a policy: rules that grant something to one principal, to a group, or for now to nobody.',
    needs: writes,
    body: z.looseObject({
      name: Name,
      organization_id: z.uuid().optional(),
      description: Description.default(''),
      rules: GivenRules.default([]),
      tags: Tags.default([]),
      ...Principal,
    }),
    answer: Policy,
    handle: ({ body, actor }) =>
      make(actor, body, async (client, id) => {
        const principal = await principalOf(client, actor.organizationId, body)
        if (!principal.ok) return principal
        await client.query(
          'insert into policy (id, organization_id, name, description, tags, principal_id, group_id) values ($1, $2, $3, $4, $5, $6, $7)',
          [
            id,
            actor.organizationId,
            body.name,
            body.description,
            body.tags,
            principal.value?.principalId ?? null,
            principal.value?.groupId ?? null,
          ],
        )
        return setRules(client, actor.organizationId, id, body.rules)
      }),
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:policy_id`,
    summary: 'Change the name, the description, the tags or the principal of a policy.',
    needs: writes,
    params,
    body: z.looseObject({ name: Name.optional(), description: Description.optional(), tags: Tags.optional(), ...Principal }),
    answer: Policy,
    handle: ({ params: { policy_id: id }, body, actor }) =>
      edit(actor, id, async (client) => {
        const principal = await principalOf(client, actor.organizationId, body)
        if (!principal.ok) return principal
        await client.query(
          `update policy set name = coalesce($2, name), description = coalesce($3, description), tags = coalesce($4, tags),
                  principal_id = case when $5 then $6 else principal_id end, group_id = case when $5 then $7 else group_id end
            where id = $1`,
          [
            id,
            body.name ?? null,
            body.description ?? null,
            body.tags ?? null,
            principal.value !== undefined,
            principal.value?.principalId ?? null,
            principal.value?.groupId ?? null,
          ],
        )
        return yes(undefined)
      }),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:policy_id/clone`,
    summary: 'Make a policy with the same rules, for the same principal.',
    needs: writes,
    params,
    answer: Policy,
    handle: ({ params: { policy_id: id }, actor }) =>
      make(actor, {}, async (client, copy) => {
        const { rowCount } = await client.query(
          `insert into policy (id, organization_id, name, description, tags, principal_id, group_id)
           select $3, organization_id, left(name, 57) || ' (copy)', description, tags, principal_id, group_id
             from policy where organization_id = $1 and id = $2`,
          [actor.organizationId, id, copy],
        )
        if (rowCount === 0) return no(notFound('policy', id))
        return fitting(client, actor.organizationId, 0, async () => {
          await client.query(
            `insert into policy_rule (id, policy_id, position, permission_set_names, project_ids, condition)
             select gen_random_uuid(), $2, position, permission_set_names, project_ids, condition from policy_rule where policy_id = $1`,
            [id, copy],
          )
          return yes(undefined)
        })
      }),
  })

  manage({
    method: 'GET',
    path: '/iam/v1alpha1/rules',
    summary: 'List the rules of a policy.',
    needs: reads,
    query: iamPage(['created_at_asc']).extend({ policy_id: z.uuid() }),
    answer: z.object({ rules: z.array(Rule), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      if ((await read(db, actor.organizationId, query.policy_id)) === undefined) return no(notFound('policy', query.policy_id))
      const { rows, total } = await readPage<RuleRow>(db, RULES, [query.policy_id], query, 'position')
      return yes({ rules: rows.map((row) => ruleToJson(row, actor.organizationId)), total_count: total })
    },
  })

  manage({
    method: 'PUT',
    path: '/iam/v1alpha1/rules',
    summary: 'Replace all rules of a policy.',
    needs: writes,
    body: z.looseObject({ policy_id: z.uuid(), rules: GivenRules.default([]) }),
    answer: z.object({ rules: z.array(Rule) }),
    handle: ({ body: { policy_id: id, rules: given }, actor }) =>
      change(actor, async (client, note) => {
        const row = await read(client, actor.organizationId, id)
        if (row === undefined) return no(notFound('policy', id))
        const before = await readRules(client, id)
        const set = await setRules(client, actor.organizationId, id, given)
        if (!set.ok) return set
        await client.query('update policy set updated_at = now() where id = $1', [id])
        const after = await readRules(client, id)
        await note({
          action: 'updated',
          resourceType: 'policy',
          resourceId: id,
          before: toAudit(row, before),
          after: toAudit(row, after),
        })
        return yes({ rules: after.map((rule) => ruleToJson(rule, actor.organizationId)) })
      }),
  })

  const readsSets = { resource: 'permission_set', action: 'read', scope: 'self' } as const
  const PermissionSet = z.object({
    id: z.uuid(),
    name: z.string(),
    scope_type: z.enum(['projects', 'organization']),
    description: z.string(),
    categories: z.array(z.string()),
  })

  manage({
    method: 'GET',
    path: '/iam/v1alpha1/permission-sets',
    summary: 'List the permission sets; they are the same for everybody.',
    needs: readsSets,
    query: iamPage(['name_asc', 'name_desc', 'created_at_asc', 'created_at_desc']).extend({ organization_id: z.uuid().optional() }),
    answer: z.object({ permission_sets: z.array(PermissionSet), total_count: z.int() }),
    handle: async ({ query }) => {
      const turn = query.order_by.endsWith('desc') ? -1 : 1
      const sets = [...PERMISSION_SETS.values()]
        .sort((one, other) => (one.name < other.name ? -1 : 1) * turn)
        .map(({ name, scopeType, description, category }) => ({
          id: permissionSetId(name),
          name,
          scope_type: scopeType,
          description,
          categories: [category],
        }))
      return yes({ permission_sets: pageOf(sets, query), total_count: sets.length })
    },
  })
}
