import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import type { OrganizationId, PrincipalId } from '../kit/ids.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { listOf, type Manage, queryFlag } from '../kit/management.ts'
import { yes } from '../kit/outcome.ts'
import { forgetKeys } from './api-keys.ts'
import { openKind } from './kind.ts'
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
export const applicationRoutes = (manage: Manage, room: IamRoom): void => {
  const { db } = room
  const { reads, writes, make, edit } = openKind(manage, room, {
    resource: 'application',
    table: 'principal',
    path: PATH,
    answer: Application,
    summaries: {
      read: 'Read one application.',
      remove: 'Delete an application and its API keys. Policies that were its own stay, and help nobody.',
    },
    read,
    toJson,
    toAudit: (_client, row) => toAudit(row),
    clear: (client, row, note) => forgetKeys(client, note, row.id),
  })
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
    handle: ({ body, actor }) =>
      make(actor, body, async (client, id) => {
        await client.query(
          `insert into principal (id, organization_id, kind, role, name, description, tags) values ($1, $2, 'application', 'member', $3, $4, $5)`,
          [id, actor.organizationId, body.name, body.description, body.tags],
        )
        return yes(undefined)
      }),
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
      edit(actor, id, async (client) => {
        await client.query(
          `update principal set name = coalesce($2, name), description = coalesce($3, description), tags = coalesce($4, tags) where id = $1`,
          [id, body.name ?? null, body.description ?? null, body.tags ?? null],
        )
        return yes(undefined)
      }),
  })
}
