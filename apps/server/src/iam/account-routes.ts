import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type ProjectId } from '../kit/ids.ts'
import { orderOf, pageOf } from '../kit/listing.ts'
import { listOf, type Manage, pageQuery } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { Description, type IamRoom, Stamps } from './shapes.ts'

type Row = { id: ProjectId; name: string; organization_id: OrganizationId; description: string; created_at: Date; updated_at: Date }

const toJson = (row: Row) => ({
  id: row.id,
  name: row.name,
  organization_id: row.organization_id,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  description: row.description,
  qualification: null,
})

const toAudit = ({ name, description }: Row) => ({ name, description })

const Project = z.object({
  id: z.uuid(),
  name: z.string(),
  organization_id: z.uuid(),
  ...Stamps,
  description: z.string(),
  qualification: z.null(),
})

const SELECT = 'select id, name, organization_id, description, created_at, updated_at from project where organization_id = $1'

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and id = $2`, [organizationId, id])).rows[0]

const Name = z
  .string()
  .min(1)
  .max(64)
  .regex(/^[a-zA-Z0-9._\- ]+$/)

const FOREIGN_KEY_VIOLATION = '23503'

const PATH = '/account/v3/projects'

/** control-plane.md 6. What may be seen of projects is those in which something may be done. */
export const accountRoutes = (manage: Manage, { db, change, fits, iam }: IamRoom): void => {
  const reads = { resource: 'project', action: 'read', scope: 'project' } as const
  const writes = { resource: 'project', action: 'write', scope: 'project' } as const
  const creates = { resource: 'project', action: 'write', scope: 'organization' } as const
  const params = z.object({ project_id: z.uuid() })

  const isTaken = async (client: pg.ClientBase, organizationId: OrganizationId, name: string): Promise<string | undefined> =>
    (await client.query<{ id: string }>('select id from project where organization_id = $1 and name = $2', [organizationId, name])).rows[0]
      ?.id

  const taken = (id: string): Outcome<never, Denial> =>
    no({ type: 'already_exists', resource: 'project_id', resource_id: id, help_message: 'there is a project of this name' })

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the projects of an organization.',
    needs: reads,
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
    handle: async ({ query, actor, may }) => {
      // Another organization's projects are answered as an organization that has none.
      const { rows } = await db.query<Row>(
        `${SELECT} and ($2::uuid is null or organization_id = $2) and ($3::text is null or position(lower($3) in lower(name)) > 0)
            and (cardinality($4::uuid[]) = 0 or id = any ($4))
          order by ${orderOf(query.order_by, { created_at: 'created_at', name: 'name' }, 'id')}`,
        [actor.organizationId, query.organization_id ?? null, query.name ?? null, query.project_ids],
      )
      const seen = rows.filter(({ id }) => may(reads, id))
      return yes({ total_count: seen.length, projects: pageOf(seen, query).map(toJson) })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make a project.',
    needs: creates,
    body: z.looseObject({ name: Name, organization_id: z.uuid().optional(), description: Description.default('') }),
    answer: Project,
    handle: async ({ body, actor }) => {
      if (body.organization_id !== undefined && body.organization_id !== actor.organizationId) return no(forbidden(creates))
      const id: ProjectId = newId(iam.clock.now())
      return change(actor, async (client, note) => {
        const other = await isTaken(client, actor.organizationId, body.name)
        if (other !== undefined) return taken(other)
        const fit = await fits(client, actor.organizationId, 'project')
        if (!fit.ok) return fit
        await client.query('insert into project (id, organization_id, name, description) values ($1, $2, $3, $4)', [
          id,
          actor.organizationId,
          body.name,
          body.description,
        ])
        const made = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'created', resourceType: 'project', resourceId: id, after: toAudit(made) })
        return yes(toJson(made))
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/:project_id`,
    summary: 'Read one project.',
    needs: reads,
    params,
    answer: Project,
    handle: async ({ params: { project_id: id }, actor, may }) => {
      const row = await read(db, actor.organizationId, id)
      return row === undefined || !may(reads, row.id) ? no(notFound('project_id', id)) : yes(toJson(row))
    },
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:project_id`,
    summary: 'Change the name or the description of a project.',
    needs: writes,
    params,
    body: z.looseObject({ name: Name.optional(), description: Description.optional() }),
    answer: Project,
    handle: ({ params: { project_id: id }, body, actor, may }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, id)
        if (before === undefined || !may(reads, before.id)) return no(notFound('project_id', id))
        if (!may(writes, before.id)) return no(forbidden(writes))
        const other = body.name === undefined ? undefined : await isTaken(client, actor.organizationId, body.name)
        if (other !== undefined && other !== before.id) return taken(other)
        await client.query(
          'update project set name = coalesce($2, name), description = coalesce($3, description), updated_at = now() where id = $1',
          [id, body.name ?? null, body.description ?? null],
        )
        const after = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'updated', resourceType: 'project', resourceId: id, before: toAudit(before), after: toAudit(after) })
        return yes(toJson(after))
      }),
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/:project_id`,
    summary: 'Delete an empty project. What was used in it stays in the books.',
    needs: writes,
    params,
    handle: ({ params: { project_id: id }, actor, may }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, id)
        if (before === undefined || !may(reads, before.id)) return no(notFound('project_id', id))
        if (!may(writes, before.id)) return no(forbidden(writes))
        // As it is stored: a UUID is the same in capitals.
        if (before.id === (actor.organizationId as string))
          return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'the default project stays' })
        await client.query('update api_key set default_project_id = organization_id where default_project_id = $1', [id])
        // A rule that named only this project grants nothing from now on.
        await client.query('update policy_rule set project_ids = array_remove(project_ids, $1::uuid) where $1::uuid = any (project_ids)', [
          id,
        ])
        // Whoever keeps something in a project has a foreign key to it: that is how we know that it is not empty.
        try {
          await client.query('delete from project where id = $1', [id])
        } catch (error) {
          if (!(error instanceof Error && 'code' in error && error.code === FOREIGN_KEY_VIOLATION)) throw error
          return no({
            type: 'precondition_failed',
            precondition: 'resource_still_in_use',
            help_message: 'the project still holds resources',
          })
        }
        await note({ action: 'deleted', resourceType: 'project', resourceId: id, before: toAudit(before) })
        return yes(undefined)
      }),
  })
}
