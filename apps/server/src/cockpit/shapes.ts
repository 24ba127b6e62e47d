import type pg from 'pg'
import { z } from 'zod'
import { recordChange } from '../audit/record.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { Denial } from '../kit/denial.ts'
import { forbidden } from '../kit/denial.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { SendMail } from '../kit/mail.ts'
import { type Actor, type Needs, pageQuery } from '../kit/management.ts'
import { no, type Outcome } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Places } from './places.ts'

// What the routes of this room have in common (control-plane.md 8).

/** What the routes of this room work with. */
export type CockpitRoom = {
  readonly db: Db
  readonly clock: Clock
  readonly log: Logger
  readonly secrets: Secrets
  readonly region: string
  /** The sources of every project are called `<name> Metrics` and `<name> Logs`. */
  readonly platformName: string
  readonly places: Places
  readonly sendMail: SendMail
}

export const GLOBAL = '/cockpit/v1'
export const REGIONAL = '/cockpit/v1/regions/:region'

// Everything in Cockpit is `cockpit` to whoever is refused (control-plane.md 3).
export const READS = { resource: 'cockpit', action: 'read', scope: 'project' } as const satisfies Needs
export const WRITES = { resource: 'cockpit', action: 'write', scope: 'project' } as const satisfies Needs
/** For what is the same in every project: one that may be read is enough. */
export const READS_ANYWHERE = { ...READS, scope: 'anywhere' } as const satisfies Needs

export const Uuid = z.guid().transform((text) => text.toLowerCase())
/** Clients fill it in; without one the default project is meant, whose id is the organization's. */
export const GivenProject = {
  project_id: z.preprocess((given) => (given === '' ? undefined : given), Uuid.optional()),
}
export const projectOf = (actor: { readonly organizationId: OrganizationId }, given: { project_id?: string | undefined }): ProjectId =>
  (given.project_id ?? actor.organizationId) as ProjectId

export const cockpitPage = <const O extends readonly [string, ...string[]]>(orders: O) =>
  pageQuery({ max: 1_000, fallback: 50, orders, clamp: true }).extend(GivenProject)

type Noted = {
  readonly action: 'created' | 'updated' | 'deleted'
  readonly resourceType: 'data_source' | 'cockpit_token' | 'grafana_user' | 'alert_manager' | 'contact_point'
  readonly resourceId: string
  readonly before?: unknown
  readonly after?: unknown
}

/** One transaction with its entries in the audit. What is refused has written nothing yet. */
export const change = <T>(
  db: Db,
  actor: Actor,
  work: (client: pg.ClientBase, note: (noted: Noted) => Promise<void>) => Promise<Outcome<T, Denial>>,
): Promise<Outcome<T, Denial>> =>
  transaction(db, (client) =>
    work(client, ({ before = null, after = null, ...noted }) =>
      recordChange(client, { organizationId: actor.organizationId, actor, ...noted, before, after }),
    ),
  )

/**
 * Whether one more fits. The lock on the project puts those who add something to it in a row, so that two at once cannot both be
 * the last; it leaves everybody alone who only points at the project.
 */
export const fits = async (
  client: pg.ClientBase,
  projectId: ProjectId,
  what: { table: 'data_source' | 'cockpit_token' | 'grafana_user' | 'contact_point'; resource: string; quota: number },
): Promise<Outcome<undefined, Denial>> => {
  const { rowCount } = await client.query('select from project where id = $1 for no key update', [projectId])
  // Deleted since we were asked.
  if (rowCount === 0) return no(forbidden(WRITES))
  const { rows } = await client.query<{ count: number }>(`select count(*)::int as count from ${what.table} where project_id = $1`, [
    projectId,
  ])
  const current = rows[0]?.count ?? 0
  return current < what.quota
    ? { ok: true, value: undefined }
    : no({ type: 'quotas_exceeded', details: [{ resource: what.resource, quota: what.quota, current }] })
}
