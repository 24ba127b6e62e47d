import { z } from 'zod'
import { type Denial, forbidden, invalid, notFound } from '../kit/denial.ts'
import { newId } from '../kit/ids.ts'
import { choice, orderOf, readPage } from '../kit/listing.ts'
import { listOf, type Manage } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import {
  DATA_SOURCES,
  type DataSource,
  DEFAULT_RETENTION_DAYS,
  MAX_RETENTION_DAYS,
  MIN_RETENTION_DAYS,
  makePlatformSources,
  readDataSource,
  SOURCE_TYPES,
  sourceToAudit,
} from './data-source.ts'
import { type CockpitRoom, change, cockpitPage, fits, GivenProject, projectOf, READS, REGIONAL, Uuid, WRITES } from './shapes.ts'

/** Of all types together, the two that every project has included. */
const MAX_SOURCES = 100

const Name = z
  .string()
  .min(3)
  .max(50)
  .regex(/^[A-Za-z0-9-_. ]+$/)
const Retention = z.int().min(MIN_RETENTION_DAYS).max(MAX_RETENTION_DAYS)
// The clients let nothing stand for "as it is": an empty name, no days.
const nothing = (value: unknown): unknown => (value === '' || value === 0 ? undefined : value)

const SourceJson = z.object({
  id: z.guid(),
  project_id: z.guid(),
  name: z.string(),
  url: z.url(),
  type: z.enum(SOURCE_TYPES),
  origin: z.enum(['scaleway', 'custom']),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  synchronized_with_grafana: z.boolean(),
  retention_days: z.int(),
  region: z.string(),
})

const PATH = `${REGIONAL}/data-sources`
const missing = (id: string): Outcome<never, Denial> => no(notFound('data source', id))

/** control-plane.md 8.1. */
export const dataSourceRoutes = (manage: Manage, room: CockpitRoom): void => {
  const { db, clock, region, places } = room
  const params = z.object({ data_source_id: Uuid })

  const toJson = (source: DataSource): z.infer<typeof SourceJson> => ({
    id: source.id,
    project_id: source.project_id,
    name: source.name,
    url: places.source(source),
    type: source.type,
    origin: source.origin,
    created_at: source.created_at.toISOString(),
    updated_at: source.updated_at.toISOString(),
    synchronized_with_grafana: source.synchronized_with_grafana,
    retention_days: source.retention_days,
    region: source.region,
  })

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the data sources of a project; two of them every project has.',
    needs: READS,
    query: cockpitPage(['created_at_asc', 'created_at_desc', 'name_asc', 'name_desc', 'type_asc', 'type_desc']).extend({
      origin: choice(['scaleway', 'external', 'custom']),
      types: listOf(z.enum([...SOURCE_TYPES, 'unknown_type'])),
    }),
    answer: z.object({ data_sources: z.array(SourceJson), total_count: z.int() }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      await makePlatformSources(room, actor.organizationId, projectId)
      const { rows, total } = await readPage<DataSource>(
        db,
        `${DATA_SOURCES} and project_id = $3 and ($4::text is null or origin = $4) and (cardinality($5::text[]) = 0 or type = any ($5))`,
        [actor.organizationId, region, projectId, query.origin ?? null, query.types.filter((type) => type !== 'unknown_type')],
        query,
        orderOf(query.order_by, { created_at: 'created_at', name: 'name', type: 'type' }, 'id'),
      )
      return yes({ data_sources: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make a data source for metrics, logs or traces of your own.',
    needs: WRITES,
    body: z.looseObject({
      ...GivenProject,
      name: Name,
      type: z.enum(SOURCE_TYPES),
      retention_days: z.preprocess(nothing, Retention.optional()),
    }),
    answer: SourceJson,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      await makePlatformSources(room, actor.organizationId, projectId)
      const id = newId(clock.now())
      return change(db, actor, async (client, note) => {
        const fit = await fits(client, projectId, { table: 'data_source', resource: 'CockpitDataSources', quota: MAX_SOURCES })
        if (!fit.ok) return fit
        await client.query(
          `insert into data_source (id, project_id, region, name, type, origin, retention_days, synchronized_with_grafana)
           values ($1, $2, $3, $4, $5, 'custom', $6, false)`,
          [id, projectId, region, body.name, body.type, body.retention_days ?? DEFAULT_RETENTION_DAYS[body.type]],
        )
        const made = (await readDataSource(client, actor.organizationId, region, id)) as DataSource
        await note({ action: 'created', resourceType: 'data_source', resourceId: id, after: sourceToAudit(made) })
        return yes(toJson(made))
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/:data_source_id`,
    summary: 'Read one data source.',
    needs: READS,
    params,
    answer: SourceJson.extend({ current_month_usage: z.int() }),
    handle: async ({ params: { data_source_id: id }, actor, may }) => {
      const source = await readDataSource(db, actor.organizationId, region, id)
      if (source === undefined || !may(READS, source.project_id)) return missing(id)
      // Nothing is taken in from outside, so nothing counts.
      return yes({ ...toJson(source), current_month_usage: 0 })
    },
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:data_source_id`,
    summary: 'Change how long a data source keeps what is in it, or its name where it is your own.',
    needs: WRITES,
    params,
    body: z.looseObject({
      name: z.preprocess(nothing, Name.optional()),
      retention_days: z.preprocess(nothing, Retention.optional()),
    }),
    answer: SourceJson,
    handle: ({ params: { data_source_id: id }, body, actor, may }) =>
      change(db, actor, async (client, note) => {
        await client.query('select from data_source where id = $1 for update', [id])
        const before = await readDataSource(client, actor.organizationId, region, id)
        if (before === undefined || !may(READS, before.project_id)) return missing(id)
        if (!may(WRITES, before.project_id)) return no(forbidden(WRITES))
        if (before.origin !== 'custom' && body.name !== undefined && body.name !== before.name)
          return no(invalid('name', 'constraint', 'a data source that every project has keeps its name'))
        await client.query(
          `update data_source set name = coalesce($2, name), retention_days = coalesce($3, retention_days), updated_at = now() where id = $1`,
          [id, body.name ?? null, body.retention_days ?? null],
        )
        const after = (await readDataSource(client, actor.organizationId, region, id)) as DataSource
        await note({
          action: 'updated',
          resourceType: 'data_source',
          resourceId: id,
          before: sourceToAudit(before),
          after: sourceToAudit(after),
        })
        return yes(toJson(after))
      }),
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/:data_source_id`,
    summary: 'Delete a data source of your own, and what is in it.',
    needs: WRITES,
    params,
    handle: ({ params: { data_source_id: id }, actor, may }) =>
      change(db, actor, async (client, note) => {
        await client.query('select from data_source where id = $1 for update', [id])
        const before = await readDataSource(client, actor.organizationId, region, id)
        if (before === undefined || !may(READS, before.project_id)) return missing(id)
        if (!may(WRITES, before.project_id)) return no(forbidden(WRITES))
        if (before.origin !== 'custom') {
          const help_message = 'a data source that every project has stays as long as its project'
          return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message })
        }
        await client.query('delete from data_source where id = $1', [id])
        await note({ action: 'deleted', resourceType: 'data_source', resourceId: id, before: sourceToAudit(before) })
        return yes(undefined)
      }),
  })
}
