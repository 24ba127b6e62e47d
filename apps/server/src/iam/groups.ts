import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { type Actor, listOf, type Manage } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { openKind } from './kind.ts'
import { PERMISSION_SETS } from './permission-sets.ts'
import { covers, type Grant } from './rights.ts'
import { Description, type IamRoom, Ids, iamPage, Name, Stamps, Tags } from './shapes.ts'

type Row = {
  id: string
  organization_id: OrganizationId
  name: string
  description: string
  tags: string[]
  everybody: 'user' | 'application' | null
  user_ids: string[]
  application_ids: string[]
  created_at: Date
  updated_at: Date
}

/** Members of one of the two managed groups are all there are of their kind. */
const members = (kind: 'user' | 'application'): string => `
  array(select principal.id from principal
         where principal.organization_id = principal_group.organization_id and principal.kind = '${kind}'
           and (principal_group.everybody = '${kind}'
             or exists (select 1 from group_member where group_member.group_id = principal_group.id and group_member.principal_id = principal.id))
         order by principal.id)`

const SELECT = `
  select id, organization_id, name, description, tags, everybody, created_at, updated_at,
         ${members('user')} as user_ids, ${members('application')} as application_ids
    from principal_group where organization_id = $1`

const toJson = ({ everybody, ...row }: Row) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  editable: everybody === null,
  deletable: everybody === null,
  managed: everybody !== null,
})

const toAudit = ({ name, description, tags, user_ids, application_ids }: Row) => ({ name, description, tags, user_ids, application_ids })

const Group = z.object({
  id: z.uuid(),
  ...Stamps,
  organization_id: z.uuid(),
  name: z.string(),
  description: z.string(),
  user_ids: z.array(z.uuid()),
  application_ids: z.array(z.uuid()),
  tags: z.array(z.string()),
  editable: z.boolean(),
  deletable: z.boolean(),
  managed: z.boolean(),
})

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and id = $2`, [organizationId, id])).rows[0]

/** What the group's policies open for whoever is in it; what holds on a condition counts as if it always did. */
export const opens = async (client: pg.ClientBase, groupId: string): Promise<Grant[]> => {
  const { rows } = await client.query<{ permission_set_names: string[]; project_ids: ProjectId[] | null }>(
    'select permission_set_names, project_ids from policy_rule join policy on policy.id = policy_id where group_id = $1',
    [groupId],
  )
  return rows.map(({ permission_set_names: names, project_ids: projects }) => ({
    rights: new Set(names.flatMap((name) => PERMISSION_SETS.get(name)?.rights ?? [])),
    projects: projects === null ? undefined : new Set(projects),
    condition: undefined,
  }))
}

const PATH = '/iam/v1alpha1/groups'

/** control-plane.md 5.3. */
export const groupRoutes = (manage: Manage, room: IamRoom): void => {
  const { db, iam } = room
  const { reads, writes, make, edit } = openKind(manage, room, {
    resource: 'group',
    table: 'principal_group',
    path: PATH,
    answer: Group,
    summaries: {
      read: 'Read one group with its members.',
      remove: 'Delete a group. Its members stay; policies that were its own help nobody.',
    },
    read,
    toJson,
    toAudit: (_client, row) => toAudit(row),
    keeps: ({ everybody }) =>
      everybody === null
        ? undefined
        : { type: 'precondition_failed', precondition: 'protected_resource', help_message: 'a managed group stays as it is' },
  })
  const params = z.object({ group_id: z.uuid() })

  type Members = { readonly user_ids?: readonly string[] | undefined; readonly application_ids?: readonly string[] | undefined }

  /**
   * The first of them that is nobody of the kind here is said to be missing; nothing is added then. Nobody brings somebody, oneself among
   * them, into a group that may more than oneself: only who writes policies gives rights away (serverless-platform.md 5.2).
   */
  const add = async (client: pg.ClientBase, actor: Actor, group: Row, given: Members): Promise<Outcome<undefined, Denial>> => {
    const inside = new Set([...group.user_ids, ...group.application_ids])
    const fresh = [...(given.user_ids ?? []), ...(given.application_ids ?? [])].some((id) => !inside.has(id.toLowerCase()))
    if (fresh && !covers(iam.rightsOf(actor.principalId), await opens(client, group.id)))
      return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'this group may do more than you' })
    for (const [kind, ids = []] of [['user', given.user_ids] as const, ['application', given.application_ids] as const]) {
      const { rows } = await client.query<{ id: string }>(
        'select id from principal where organization_id = $1 and kind = $2 and id = any ($3::uuid[])',
        [group.organization_id, kind, ids],
      )
      const there = new Set(rows.map((row) => row.id))
      const missing = ids.find((id) => !there.has(id.toLowerCase()))
      if (missing !== undefined) return no(notFound(kind, missing))
      await client.query(
        `insert into group_member (organization_id, group_id, principal_id) select $1, $2, unnest($3::uuid[]) on conflict do nothing`,
        [group.organization_id, group.id, ids],
      )
    }
    return yes(undefined)
  }

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the groups of an organization.',
    needs: reads,
    query: iamPage(['created_at_asc', 'created_at_desc', 'updated_at_asc', 'updated_at_desc', 'name_asc', 'name_desc']).extend({
      organization_id: z.uuid().optional(),
      name: z.string().optional(),
      application_ids: listOf(z.uuid()),
      user_ids: listOf(z.uuid()),
      group_ids: listOf(z.uuid()),
      tag: z.string().optional(),
    }),
    answer: z.object({ groups: z.array(Group), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const { rows, total } = await readPage<Row>(
        db,
        `select * from (${SELECT}) as groups
          where ($2::uuid is null or organization_id = $2) and ($3::text is null or position(lower($3) in lower(name)) > 0)
            and (cardinality($4::uuid[]) = 0 or application_ids && $4) and (cardinality($5::uuid[]) = 0 or user_ids && $5)
            and (cardinality($6::uuid[]) = 0 or id = any ($6)) and ($7::text is null or $7 = any (tags))`,
        [
          actor.organizationId,
          query.organization_id ?? null,
          query.name ?? null,
          query.application_ids,
          query.user_ids,
          query.group_ids,
          query.tag ?? null,
        ],
        query,
        orderOf(query.order_by, { created_at: 'created_at', updated_at: 'updated_at', name: 'name' }, 'id'),
      )
      return yes({ groups: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make a group of users and applications.',
    needs: writes,
    body: z.looseObject({
      name: Name,
      organization_id: z.uuid().optional(),
      description: Description.default(''),
      tags: Tags.default([]),
    }),
    answer: Group,
    handle: ({ body, actor }) =>
      make(actor, body, async (client, id) => {
        await client.query('insert into principal_group (id, organization_id, name, description, tags) values ($1, $2, $3, $4, $5)', [
          id,
          actor.organizationId,
          body.name,
          body.description,
          body.tags,
        ])
        return yes(undefined)
      }),
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:group_id`,
    summary: 'Change the name, the description or the tags of a group.',
    needs: writes,
    params,
    body: z.looseObject({ name: Name.optional(), description: Description.optional(), tags: Tags.optional() }),
    answer: Group,
    handle: ({ params: { group_id: id }, body, actor }) =>
      edit(actor, id, async (client) => {
        await client.query(
          'update principal_group set name = coalesce($2, name), description = coalesce($3, description), tags = coalesce($4, tags) where id = $1',
          [id, body.name ?? null, body.description ?? null, body.tags ?? null],
        )
        return yes(undefined)
      }),
  })

  const Several = z.looseObject({ user_ids: Ids.default([]), application_ids: Ids.default([]) })
  const One = z.looseObject({ user_id: z.uuid().optional(), application_id: z.uuid().optional() })

  const oneOf = (body: z.infer<typeof One>): Outcome<{ kind: 'user' | 'application'; id: string }, Denial> => {
    const { user_id: userId, application_id: applicationId } = body
    if (userId !== undefined && applicationId === undefined) return yes({ kind: 'user', id: userId })
    if (applicationId !== undefined && userId === undefined) return yes({ kind: 'application', id: applicationId })
    return no(invalid('user_id', 'required', 'exactly one of user_id and application_id'))
  }

  manage({
    method: 'PUT',
    path: `${PATH}/:group_id/members`,
    summary: 'Set the members of a group; who is not named leaves it.',
    needs: writes,
    params,
    body: Several,
    answer: Group,
    handle: ({ params: { group_id: id }, body, actor }) =>
      edit(actor, id, async (client, group) => {
        await client.query('delete from group_member where group_id = $1', [id])
        return add(client, actor, group, body)
      }),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:group_id/add-members`,
    summary: 'Add members to a group; who is in it already stays.',
    needs: writes,
    params,
    body: Several,
    answer: Group,
    handle: ({ params: { group_id: id }, body, actor }) => edit(actor, id, (client, group) => add(client, actor, group, body)),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:group_id/add-member`,
    summary: 'Add one member to a group.',
    needs: writes,
    params,
    body: One,
    answer: Group,
    handle: async ({ params: { group_id: id }, body, actor }) => {
      const one = oneOf(body)
      return one.ok ? edit(actor, id, (client, group) => add(client, actor, group, { [`${one.value.kind}_ids`]: [one.value.id] })) : one
    },
  })

  manage({
    method: 'POST',
    path: `${PATH}/:group_id/remove-member`,
    summary: 'Take one member out of a group.',
    needs: writes,
    params,
    body: One,
    answer: Group,
    handle: async ({ params: { group_id: id }, body, actor }) => {
      const one = oneOf(body)
      if (!one.ok) return one
      return edit(actor, id, async (client) => {
        const { rowCount } = await client.query('delete from group_member where group_id = $1 and principal_id = $2', [id, one.value.id])
        return rowCount === 0 ? no(notFound('', one.value.id)) : yes(undefined)
      })
    },
  })
}
