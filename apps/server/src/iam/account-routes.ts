import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { notFound } from '../kit/denial.ts'
import { listOf, type Manage, pageQuery } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'

// Account v3: projects (control-plane.md 6). What is there is read here; they are made and changed with the rest of iam.

type Row = { id: string; name: string; organization_id: string; description: string; created_at: Date; updated_at: Date }

const toJson = (row: Row) => ({
  id: row.id,
  name: row.name,
  organization_id: row.organization_id,
  description: row.description,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  qualification: null,
})

const Project = z.object({
  id: z.uuid(),
  name: z.string(),
  organization_id: z.uuid(),
  description: z.string(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  qualification: z.null(),
})

const ORDERS = {
  created_at_asc: 'created_at, id',
  created_at_desc: 'created_at desc, id',
  name_asc: 'name, id',
  name_desc: 'name desc, id',
} as const

const COLUMNS = 'id, name, organization_id, description, created_at, updated_at'

/** `GET /account/v3/projects` and `/projects/{project_id}`. */
export const accountRoutes = (manage: Manage, room: { db: Db }): void => {
  const needs = { resource: 'project', action: 'read', scope: 'project' } as const

  manage({
    method: 'GET',
    path: '/account/v3/projects',
    summary: 'List the projects of an organization.',
    needs,
    query: pageQuery({
      max: 100,
      fallback: 100,
      orders: ['created_at_asc', 'created_at_desc', 'name_asc', 'name_desc'],
      clamp: true,
    }).extend({
      organization_id: z.uuid().optional(),
      name: z.string().optional(),
      project_ids: listOf(z.uuid()),
    }),
    answer: z.object({ total_count: z.int(), projects: z.array(Project) }),
    handle: async ({ query, actor }) => {
      // Another organization's projects are answered as an organization that has none.
      const organizationId = query.organization_id ?? actor.organizationId
      if (organizationId !== actor.organizationId) return yes({ total_count: 0, projects: [] })
      const { rows } = await room.db.query<Row>(
        `select ${COLUMNS} from project
          where organization_id = $1 and ($2::text is null or name = $2) and (cardinality($3::uuid[]) = 0 or id = any ($3))
          order by ${ORDERS[query.order_by]}`,
        [organizationId, query.name ?? null, query.project_ids],
      )
      const from = (query.page - 1) * query.page_size
      return yes({ total_count: rows.length, projects: rows.slice(from, from + query.page_size).map(toJson) })
    },
  })

  manage({
    method: 'GET',
    path: '/account/v3/projects/:project_id',
    summary: 'Read one project.',
    needs,
    params: z.object({ project_id: z.uuid() }),
    answer: Project,
    handle: async ({ params, actor }) => {
      const { rows } = await room.db.query<Row>(`select ${COLUMNS} from project where id = $1 and organization_id = $2`, [
        params.project_id,
        actor.organizationId,
      ])
      const [row] = rows
      return row === undefined ? no(notFound('project_id', params.project_id)) : yes(toJson(row))
    },
  })
}
