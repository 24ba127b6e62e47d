import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { notFound } from '../kit/denial.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { choice, orderOf, readPage } from '../kit/listing.ts'
import type { Manage } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { MIN_SESSION_SECONDS } from './sessions.ts'
import { type IamRoom, iamPage } from './shapes.ts'

type Settings = {
  enforce_password_renewal: boolean
  grace_period_seconds: bigint
  login_attempts_before_locked: number
  max_login_session_seconds: bigint
  max_api_key_seconds: bigint
}

const readSettings = async (db: Db | pg.ClientBase, organizationId: OrganizationId): Promise<Settings | undefined> =>
  (
    await db.query<Settings>(
      `select enforce_password_renewal, grace_period_seconds, login_attempts_before_locked, max_login_session_seconds, max_api_key_seconds
         from organization where id = $1`,
      [organizationId],
    )
  ).rows[0]

const settingsToJson = (row: Settings) => ({
  enforce_password_renewal: row.enforce_password_renewal,
  grace_period_duration: `${row.grace_period_seconds}s`,
  login_attempts_before_locked: row.login_attempts_before_locked,
  max_login_session_duration: `${row.max_login_session_seconds}s`,
  max_api_key_expiration_duration: `${row.max_api_key_seconds}s`,
})

const SettingsJson = z.object({
  enforce_password_renewal: z.boolean(),
  grace_period_duration: z.string(),
  login_attempts_before_locked: z.int(),
  max_login_session_duration: z.string(),
  max_api_key_expiration_duration: z.string(),
})

/** `604800s`, with a fraction that we drop (control-plane.md 2.4). */
const Duration = z
  .string()
  .regex(/^\d{1,10}(\.\d{1,9})?s$/)
  .transform((text) => BigInt(text.replace(/[.s].*$/, '')))

type LogRow = {
  id: string
  at: Date
  organization_id: string
  actor: string
  action: 'created' | 'updated' | 'deleted'
  resource_type: string
  resource_id: string
  ip: string | null
  user_agent: string | null
}

const LOGS = `
  select id, at, organization_id, actor, action, resource_type, resource_id, host(ip) as ip, user_agent from audit_entry where organization_id = $1`

const logToJson = (row: LogRow) => ({
  id: row.id,
  created_at: row.at.toISOString(),
  ip: row.ip ?? '',
  user_agent: row.user_agent ?? '',
  action: row.action,
  // A principal's id, or words such as `command line` where no principal acted.
  bearer_id: row.actor,
  organization_id: row.organization_id,
  resource_type: row.resource_type,
  resource_id: row.resource_id,
})

const Log = z.object({
  id: z.uuid(),
  created_at: z.iso.datetime(),
  ip: z.string(),
  user_agent: z.string(),
  action: z.enum(['created', 'updated', 'deleted']),
  bearer_id: z.string(),
  organization_id: z.uuid(),
  resource_type: z.string(),
  resource_id: z.string(),
})

const BASE = '/iam/v1alpha1'

/** The organization, its security settings, and what was changed in it (control-plane.md 5.9). */
export const organizationRoutes = (manage: Manage, { db, change, people }: IamRoom): void => {
  const readsName = { resource: 'organization', action: 'read', scope: 'self' } as const
  const reads = { resource: 'organization', action: 'read', scope: 'organization' } as const
  const writes = { resource: 'organization', action: 'write', scope: 'organization' } as const
  const params = z.object({ organization_id: z.uuid() })

  manage({
    method: 'GET',
    path: `${BASE}/organizations/:organization_id`,
    summary: 'Read the organization; everybody in it may.',
    needs: readsName,
    params,
    answer: z.object({
      id: z.uuid(),
      name: z.string(),
      alias: z.string(),
      login_password_enabled: z.boolean(),
      login_magic_code_enabled: z.boolean(),
      login_oauth2_enabled: z.boolean(),
      login_saml_enabled: z.boolean(),
    }),
    handle: async ({ params: { organization_id: id }, actor }) => {
      const { rows } = await db.query<{ id: string; name: string; alias: string }>(
        'select id, name, alias from organization where id = $1 and id = $2',
        [id, actor.organizationId],
      )
      const [row] = rows
      if (row === undefined) return no(notFound('organization', id))
      const ways = {
        login_password_enabled: true,
        login_magic_code_enabled: false,
        login_oauth2_enabled: people.oidc !== undefined,
        login_saml_enabled: false,
      }
      return yes({ ...row, ...ways })
    },
  })

  manage({
    method: 'GET',
    path: `${BASE}/organizations/:organization_id/security-settings`,
    summary: 'Read the security settings of the organization.',
    needs: reads,
    params,
    answer: SettingsJson,
    handle: async ({ params: { organization_id: id }, actor }) => {
      const row = id === actor.organizationId ? await readSettings(db, actor.organizationId) : undefined
      return row === undefined ? no(notFound('organization', id)) : yes(settingsToJson(row))
    },
  })

  manage({
    method: 'PATCH',
    path: `${BASE}/organizations/:organization_id/security-settings`,
    summary: 'Change the security settings, the longest life of an API key among them; keys that are there stay as they are.',
    needs: writes,
    params,
    body: z.looseObject({
      enforce_password_renewal: z.boolean().optional(),
      grace_period_duration: Duration.optional(),
      login_attempts_before_locked: z.int().min(0).max(1_000).optional(),
      max_login_session_duration: Duration.refine((seconds) => seconds >= MIN_SESSION_SECONDS, {
        error: `at least ${MIN_SESSION_SECONDS} s`,
      }).optional(),
      max_api_key_expiration_duration: Duration.optional(),
    }),
    answer: SettingsJson,
    handle: async ({ params: { organization_id: id }, body, actor }) => {
      if (id !== actor.organizationId) return no(notFound('organization', id))
      return change(actor, async (client, note) => {
        const before = (await readSettings(client, actor.organizationId)) as Settings
        await client.query(
          `update organization set enforce_password_renewal = coalesce($2, enforce_password_renewal),
                  grace_period_seconds = coalesce($3, grace_period_seconds),
                  login_attempts_before_locked = coalesce($4, login_attempts_before_locked),
                  max_login_session_seconds = coalesce($5, max_login_session_seconds),
                  max_api_key_seconds = coalesce($6, max_api_key_seconds), updated_at = now() where id = $1`,
          [
            id,
            body.enforce_password_renewal ?? null,
            body.grace_period_duration ?? null,
            body.login_attempts_before_locked ?? null,
            body.max_login_session_duration ?? null,
            body.max_api_key_expiration_duration ?? null,
          ],
        )
        const after = (await readSettings(client, actor.organizationId)) as Settings
        await note({
          action: 'updated',
          resourceType: 'organization',
          resourceId: id,
          before: settingsToJson(before),
          after: settingsToJson(after),
        })
        return yes(settingsToJson(after))
      })
    },
  })

  for (const kind of ['saml', 'scim'] as const) {
    manage({
      method: 'GET',
      path: `${BASE}/organizations/:organization_id/${kind}`,
      summary: `There is no ${kind.toUpperCase()} here: always not found.`,
      needs: reads,
      params,
      answer: z.never(),
      handle: async ({ params: { organization_id: id } }) => no(notFound(`organization_${kind}`, id)),
    })
  }

  const readsLog = { resource: 'log', action: 'read', scope: 'organization' } as const
  const When = z.iso.datetime({ offset: true }).transform((text) => new Date(text))

  manage({
    method: 'GET',
    path: `${BASE}/logs`,
    summary: 'List what was changed in the organization, by whom and from where.',
    needs: readsLog,
    query: iamPage(['created_at_asc', 'created_at_desc']).extend({
      organization_id: z.uuid().optional(),
      created_after: When.optional(),
      created_before: When.optional(),
      action: choice(['created', 'updated', 'deleted']),
      resource_type: z
        .string()
        .max(64)
        .optional()
        .transform((type) => (type?.startsWith('unknown_') === true ? undefined : type)),
      search: z.string().max(256).optional(),
    }),
    answer: z.object({ logs: z.array(Log), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const { rows, total } = await readPage<LogRow>(
        db,
        `${LOGS} and ($2::uuid is null or organization_id = $2) and ($3::timestamptz is null or at >= $3) and ($4::timestamptz is null or at <= $4)
           and ($5::text is null or action = $5) and ($6::text is null or resource_type = $6)
           and ($7::text is null or position(lower($7) in lower(resource_id || ' ' || actor)) > 0)`,
        [
          actor.organizationId,
          query.organization_id ?? null,
          query.created_after ?? null,
          query.created_before ?? null,
          query.action ?? null,
          query.resource_type ?? null,
          query.search ?? null,
        ],
        query,
        orderOf(query.order_by, { created_at: 'at' }, 'id'),
      )
      return yes({ logs: rows.map(logToJson), total_count: total })
    },
  })

  manage({
    method: 'GET',
    path: `${BASE}/logs/:log_id`,
    summary: 'Read one change.',
    needs: readsLog,
    params: z.object({ log_id: z.uuid() }),
    answer: Log,
    handle: async ({ params: { log_id: id }, actor }) => {
      const { rows } = await db.query<LogRow>(`${LOGS} and id = $2`, [actor.organizationId, id])
      const [row] = rows
      return row === undefined ? no(notFound('log', id)) : yes(logToJson(row))
    },
  })
}
