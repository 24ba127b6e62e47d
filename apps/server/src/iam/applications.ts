import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { forbidden, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { listOf, type Manage, queryFlag } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { forgetKeys } from './api-keys.ts'
import { Description, type IamRoom, iamPage, Name, Stamps, Tags } from './shapes.ts'

type Row = {
  id: PrincipalId
  name: string
  description: string
  organization_id: OrganizationId
  tags: string[]
  nb_api_keys: number
  created_at: Date
  updated_at: Date
}

const SELECT = `
  select id, name, description, organization_id, tags, created_at, updated_at,
         (select count(*) from api_key where principal_id = principal.id)::int as nb_api_keys
    from principal where kind = 'application' and organization_id = $1`

const toJson = (row: Row) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  editable: true,
  deletable: true,
  managed: false,
})

const toAudit = ({ name, description, tags }: Row) => ({ name, description, tags })

const Application = z.object({
  id: z.uuid(),
  name: z.string(),
  description: z.string(),
  organization_id: z.uuid(),
  tags: z.array(z.string()),
  nb_api_keys: z.int(),
  editable: z.boolean(),
  deletable: z.boolean(),
  managed: z.boolean(),
  ...Stamps,
})

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and id = $2`, [organizationId, id])).rows[0]

const PATH = '/iam/v1alpha1/applications'

/** control-plane.md 5.1. */
export const applicationRoutes = (manage: Manage, { db, change, iam }: IamRoom): void => {
  const reads = { resource: 'application', action: 'read', scope: 'organization' } as const
  const writes = { resource: 'application', action: 'write', scope: 'organization' } as const
  const params = z.object({ application_id: z.uuid() })

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the applications of an organization.',
    needs: reads,
    query: iamPage(['created_at_asc', 'created_at_desc', 'updated_at_asc', 'updated_at_desc', 'name_asc', 'name_desc']).extend({
      organization_id: z.uuid().optional(),
      name: z.string().optional(),
      editable: queryFlag.optional(),
      application_ids: listOf(z.uuid()),
      tag: z.string().optional(),
    }),
    answer: z.object({ applications: z.array(Application), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const { rows, total } = await readPage<Row>(
        db,
        `${SELECT} and ($2::uuid is null or organization_id = $2) and ($3::text is null or position(lower($3) in lower(name)) > 0)
           and $4::boolean is distinct from false and (cardinality($5::uuid[]) = 0 or id = any ($5)) and ($6::text is null or $6 = any (tags))`,
        [
          actor.organizationId,
          query.organization_id ?? null,
          query.name ?? null,
          query.editable ?? null,
          query.application_ids,
          query.tag ?? null,
        ],
        query,
        orderOf(query.order_by, { created_at: 'created_at', updated_at: 'updated_at', name: 'name' }, 'id'),
      )
      return yes({ applications: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make an application: somebody who is no person.',
    needs: writes,
    body: z.looseObject({
      name: Name,
      organization_id: z.uuid().optional(),
      description: Description.default(''),
      tags: Tags.default([]),
    }),
    answer: Application,
    handle: async ({ body, actor }) => {
      if (body.organization_id !== undefined && body.organization_id !== actor.organizationId) return no(forbidden(writes))
      const id: PrincipalId = newId(iam.clock.now())
      return change(actor, async (client, note) => {
        await client.query(
          `insert into principal (id, organization_id, kind, role, name, description, tags) values ($1, $2, 'application', 'member', $3, $4, $5)`,
          [id, actor.organizationId, body.name, body.description, body.tags],
        )
        const made = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'created', resourceType: 'application', resourceId: id, after: toAudit(made) })
        return yes(toJson(made))
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/:application_id`,
    summary: 'Read one application.',
    needs: reads,
    params,
    answer: Application,
    handle: async ({ params: { application_id: id }, actor }) => {
      const row = await read(db, actor.organizationId, id)
      return row === undefined ? no(notFound('application', id)) : yes(toJson(row))
    },
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:application_id`,
    summary: 'Change the name, the description or the tags of an application.',
    needs: writes,
    params,
    body: z.looseObject({ name: Name.optional(), description: Description.optional(), tags: Tags.optional() }),
    answer: Application,
    handle: ({ params: { application_id: id }, body, actor }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, id)
        if (before === undefined) return no(notFound('application', id))
        await client.query(
          `update principal set name = coalesce($2, name), description = coalesce($3, description), tags = coalesce($4, tags), updated_at = now() where id = $1`,
          [id, body.name ?? null, body.description ?? null, body.tags ?? null],
        )
        const after = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'updated', resourceType: 'application', resourceId: id, before: toAudit(before), after: toAudit(after) })
        return yes(toJson(after))
      }),
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/:application_id`,
    summary: 'Delete an application and its API keys. Policies that were its own stay, and help nobody.',
    needs: writes,
    params,
    handle: ({ params: { application_id: id }, actor }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, id)
        if (before === undefined) return no(notFound('application', id))
        await forgetKeys(client, note, before.id)
        await client.query('delete from principal where id = $1', [id])
        await note({ action: 'deleted', resourceType: 'application', resourceId: id, before: toAudit(before) })
        return yes(undefined)
      }),
  })
}
