import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, invalid, notFound } from '../kit/denial.ts'
import type { ProjectId } from '../kit/ids.ts'
import { choice, orderOf, readPage } from '../kit/listing.ts'
import type { Manage } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type CockpitRoom, change, cockpitPage, fits, GivenProject, GLOBAL, projectOf, READS, WRITES } from './shapes.ts'
import { newSecret } from './token.ts'

const MAX_USERS = 50
/** Grafana's own. */
const RESERVED_LOGIN = 'admin'
/** `id` is a 32-bit integer with the clients and with us. */
const MAX_USER_ID = 2 ** 31 - 1

type Row = { readonly id: number; readonly project_id: ProjectId; readonly login: string; readonly role: 'editor' | 'viewer' }

const UserJson = z.object({ id: z.int(), login: z.string(), password: z.string(), role: z.enum(['editor', 'viewer']) })

const toJson = ({ id, login, role }: Row, password = ''): z.infer<typeof UserJson> => ({ id, login, password, role })

const toAudit = ({ project_id, login, role }: Row) => ({ projectId: project_id, login, role })

const read = async (db: Db | pg.ClientBase, projectId: ProjectId, id: number): Promise<Row | undefined> =>
  (await db.query<Row>('select id, project_id, login, role from grafana_user where project_id = $1 and id = $2', [projectId, id])).rows[0]

const PATH = `${GLOBAL}/grafana`
const missing = (id: number): Outcome<never, Denial> => no(notFound('grafana user', String(id)))

/**
 * control-plane.md 8.3. We run no Grafana: who may edit or view is kept for one that the operator runs, and the address is where it
 * is looked for.
 */
export const grafanaRoutes = (manage: Manage, { db, secrets, places }: CockpitRoom): void => {
  const ofProject = z.looseObject(GivenProject)
  const params = z.object({ grafana_user_id: z.coerce.number().int().min(1).max(MAX_USER_ID) })

  manage({
    method: 'GET',
    path: PATH,
    summary: "Read where a project's dashboards are.",
    needs: READS,
    query: ofProject,
    answer: z.object({ grafana_url: z.url() }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      return may(READS, projectId) ? yes({ grafana_url: places.grafana(projectId) }) : no(forbidden(READS))
    },
  })

  manage({
    method: 'POST',
    path: `${PATH}/sync-data-sources`,
    summary: 'Mark all data sources of a project as known to Grafana.',
    needs: WRITES,
    body: ofProject,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      return change(db, actor, async (client, note) => {
        const { rows } = await client.query<{ id: string }>(
          `update data_source set synchronized_with_grafana = true, updated_at = now()
            where project_id = $1 and not synchronized_with_grafana returning id`,
          [projectId],
        )
        for (const { id } of rows) {
          const after = { synchronizedWithGrafana: true }
          await note({ action: 'updated', resourceType: 'data_source', resourceId: id, before: { synchronizedWithGrafana: false }, after })
        }
        return yes(undefined)
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/users`,
    summary: "List who may use a project's Grafana.",
    needs: READS,
    query: cockpitPage(['login_asc', 'login_desc']),
    answer: z.object({ grafana_users: z.array(UserJson), total_count: z.int() }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      const { rows, total } = await readPage<Row>(
        db,
        'select id, project_id, login, role from grafana_user where project_id = $1',
        [projectId],
        query,
        orderOf(query.order_by, { login: 'login' }, 'id'),
      )
      return yes({ grafana_users: rows.map((row) => toJson(row)), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: `${PATH}/users`,
    summary: 'Add somebody; the password is in this answer and nowhere else.',
    needs: WRITES,
    body: z.looseObject({
      ...GivenProject,
      login: z
        .string()
        .min(1)
        .max(64)
        .regex(/^[A-Za-z0-9@._-]+$/),
      role: choice(['editor', 'viewer']),
    }),
    answer: UserJson,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      if (body.login.toLowerCase() === RESERVED_LOGIN) return no(invalid('login', 'constraint', `${RESERVED_LOGIN} is Grafana's own`))
      const password = newSecret()
      return change(db, actor, async (client, note) => {
        const fit = await fits(client, projectId, { table: 'grafana_user', resource: 'CockpitGrafanaUsers', quota: MAX_USERS })
        if (!fit.ok) return fit
        const { rows } = await client.query<Row>(
          `insert into grafana_user (project_id, login, role, password_hash) values ($1, $2, $3, $4)
           on conflict do nothing returning id, project_id, login, role`,
          [projectId, body.login, body.role ?? 'viewer', secrets.hashKey(password)],
        )
        const [made] = rows
        if (made === undefined)
          return no({ type: 'already_exists', resource: 'grafana user', resource_id: '', help_message: 'there is one of this login' })
        await note({ action: 'created', resourceType: 'grafana_user', resourceId: String(made.id), after: toAudit(made) })
        return yes(toJson(made, password))
      })
    },
  })

  manage({
    method: 'POST',
    path: `${PATH}/users/:grafana_user_id/reset-password`,
    summary: 'Give somebody a new password; it is in this answer and nowhere else.',
    needs: WRITES,
    params,
    body: ofProject,
    answer: UserJson,
    handle: async ({ params: { grafana_user_id: id }, body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      const password = newSecret()
      return change(db, actor, async (client, note) => {
        const row = await read(client, projectId, id)
        if (row === undefined) return missing(id)
        await client.query('update grafana_user set password_hash = $2 where id = $1', [id, secrets.hashKey(password)])
        await note({ action: 'updated', resourceType: 'grafana_user', resourceId: String(id), before: toAudit(row), after: toAudit(row) })
        return yes(toJson(row, password))
      })
    },
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/users/:grafana_user_id`,
    summary: 'Remove somebody.',
    needs: WRITES,
    params,
    query: ofProject,
    handle: async ({ params: { grafana_user_id: id }, query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      return change(db, actor, async (client, note) => {
        const row = await read(client, projectId, id)
        const { rowCount } = await client.query('delete from grafana_user where project_id = $1 and id = $2', [projectId, id])
        if (row === undefined || rowCount === 0) return missing(id)
        await note({ action: 'deleted', resourceType: 'grafana_user', resourceId: String(id), before: toAudit(row) })
        return yes(undefined)
      })
    },
  })
}
