import type pg from 'pg'
import { recordChange } from '../audit/record.ts'
import { type Db, transaction } from '../kit/db.ts'
import { newId, type OrganizationId, type ProjectId } from '../kit/ids.ts'
import type { CockpitRoom } from './shapes.ts'

export const SOURCE_TYPES = ['metrics', 'logs', 'traces'] as const
export type SourceType = (typeof SOURCE_TYPES)[number]

/** How long data are kept when nobody says (control-plane.md 8.1). */
export const DEFAULT_RETENTION_DAYS: Record<SourceType, number> = { metrics: 31, logs: 7, traces: 7 }
export const MIN_RETENTION_DAYS = 1
export const MAX_RETENTION_DAYS = 1825

export type DataSource = {
  readonly id: string
  readonly project_id: ProjectId
  readonly region: string
  readonly name: string
  readonly type: SourceType
  readonly origin: 'scaleway' | 'custom'
  readonly retention_days: number
  readonly synchronized_with_grafana: boolean
  readonly created_at: Date
  readonly updated_at: Date
}

/** Of an organization, in a region: $1 and $2. */
export const DATA_SOURCES = `
  select data_source.id, project_id, region, data_source.name, type, origin, retention_days, synchronized_with_grafana,
         data_source.created_at, data_source.updated_at
    from data_source join project on project.id = project_id
   where organization_id = $1 and region = $2`

export const readDataSource = async (
  db: Db | pg.ClientBase,
  organizationId: OrganizationId,
  region: string,
  id: string,
): Promise<DataSource | undefined> =>
  (await db.query<DataSource>(`${DATA_SOURCES} and data_source.id = $3`, [organizationId, region, id])).rows[0]

export const sourceToAudit = ({ project_id, name, type, retention_days }: DataSource) => ({
  projectId: project_id,
  name,
  type,
  retentionDays: retention_days,
})

// Nothing is written where both are there; a race is decided by the unique index. The lock on the project waits for whoever deletes it
// just now: then it is gone, and gets none.
const MAKE = `
  insert into data_source (id, project_id, region, name, type, origin, retention_days, synchronized_with_grafana)
  select made.id, project.id, $2, made.name, made.type, 'scaleway', made.retention_days, true
    from project, (values ($3::uuid, $4, 'metrics', $5::int), ($6::uuid, $7, 'logs', $8::int)) as made (id, name, type, retention_days)
   where project.id = $1
     for key share of project
  on conflict do nothing
  returning id, project_id, region, name, type, origin, retention_days, synchronized_with_grafana, created_at, updated_at`

/** The two sources that every project has are made when somebody first looks; repeats and races make them once. */
export const makePlatformSources = async (
  { db, clock, region, platformName }: CockpitRoom,
  organizationId: OrganizationId,
  projectId: ProjectId,
): Promise<void> => {
  const { rows } = await db.query<{ count: number }>(
    `select count(*)::int as count from data_source where project_id = $1 and region = $2 and origin = 'scaleway'`,
    [projectId, region],
  )
  if (rows[0]?.count === 2) return
  await transaction(db, async (client) => {
    const made = await client.query<DataSource>(MAKE, [
      projectId,
      region,
      newId(clock.now()),
      `${platformName} Metrics`,
      DEFAULT_RETENTION_DAYS.metrics,
      newId(clock.now()),
      `${platformName} Logs`,
      DEFAULT_RETENTION_DAYS.logs,
    ])
    for (const source of made.rows) {
      await recordChange(client, {
        organizationId,
        actor: 'installation',
        action: 'created',
        resourceType: 'data_source',
        resourceId: source.id,
        before: null,
        after: sourceToAudit(source),
      })
    }
  })
}
