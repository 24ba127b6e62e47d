import type pg from 'pg'
import { z } from 'zod'
import { dateToInstant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { forbidden, invalid, notFound } from '../kit/denial.ts'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import { choice, orderOf, readPage } from '../kit/listing.ts'
import { type Actor, listOf, type Manage, type May, queryFlag } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import type { Note } from './change.ts'
import { insertKey } from './keys.ts'
import { Description, type IamRoom, iamPage, Stamps } from './shapes.ts'

type Row = {
  access_key: AccessKey
  organization_id: OrganizationId
  principal_id: PrincipalId
  kind: 'user' | 'application'
  role: 'owner' | 'member'
  description: string
  default_project_id: ProjectId
  expires_at: Date | null
  creation_ip: string | null
  created_at: Date
  updated_at: Date
}

const SELECT = `
  select access_key, api_key.organization_id, principal_id, kind, role, api_key.description, default_project_id, expires_at,
         host(creation_ip) as creation_ip, api_key.created_at, api_key.updated_at
    from api_key join principal on principal.id = principal_id
   where api_key.organization_id = $1`

const toJson = (row: Row) => ({
  access_key: row.access_key,
  secret_key: null as string | null,
  description: row.description,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  expires_at: row.expires_at?.toISOString() ?? null,
  default_project_id: row.default_project_id,
  editable: true,
  deletable: true,
  managed: false,
  creation_ip: row.creation_ip ?? '',
  ...(row.kind === 'user' ? { user_id: row.principal_id } : { application_id: row.principal_id }),
})

const toAudit = (row: Row) => ({
  principalId: row.principal_id,
  description: row.description,
  defaultProjectId: row.default_project_id,
  expiresAt: row.expires_at?.toISOString() ?? null,
})

const ApiKey = z.object({
  access_key: z.string(),
  secret_key: z.uuid().nullable(),
  description: z.string(),
  ...Stamps,
  expires_at: z.iso.datetime().nullable(),
  default_project_id: z.uuid(),
  editable: z.boolean(),
  deletable: z.boolean(),
  managed: z.boolean(),
  creation_ip: z.string(),
  application_id: z.uuid().optional(),
  user_id: z.uuid().optional(),
})

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, accessKey: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and access_key = $2`, [organizationId, accessKey])).rows[0]

/** Deletes all keys of a principal, each with its entry in the audit. */
export const forgetKeys = async (client: pg.ClientBase, note: Note, principalId: PrincipalId): Promise<void> => {
  const { rows } = await client.query<Pick<Row, 'access_key' | 'description'>>(
    'delete from api_key where principal_id = $1 returning access_key, description',
    [principalId],
  )
  for (const row of rows) {
    const before = { principalId, description: row.description }
    await note({ action: 'deleted', resourceType: 'api_key', resourceId: row.access_key, before })
  }
}

const reads = { resource: 'api_key', action: 'read', scope: 'self' } as const
const writes = { resource: 'api_key', action: 'write', scope: 'self' } as const

/** A key may read itself, and a user what is its own (control-plane.md 5.7). */
const maySee = (row: Row, actor: Actor, may: May): boolean =>
  may(reads) || row.access_key === actor.accessKey || (actor.kind === 'user' && row.principal_id === actor.principalId)

/** A user's own keys are its own business; those of applications need IAMManager; those of the owner are the owner's alone. */
const mayChange = (row: Row, actor: Actor, may: May): boolean =>
  (actor.kind === 'user' && row.principal_id === actor.principalId) || (may(writes) && row.role !== 'owner')

const PATH = '/iam/v1alpha1/api-keys'

/** control-plane.md 5.7 and serverless-platform.md 5.5. */
export const apiKeyRoutes = (manage: Manage, { db, change, fits, secrets, iam }: IamRoom): void => {
  const params = z.object({ access_key: z.string().max(64) })
  const ExpiresAt = z.iso.datetime({ offset: true }).transform((text) => new Date(text))

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List API keys: all of the organization, or without the right to do so those of the caller.',
    needs: reads,
    query: iamPage([
      ...(['created_at_asc', 'created_at_desc', 'updated_at_asc', 'updated_at_desc'] as const),
      ...(['expires_at_asc', 'expires_at_desc', 'access_key_asc', 'access_key_desc'] as const),
    ]).extend({
      organization_id: z.uuid().optional(),
      editable: queryFlag.optional(),
      expired: queryFlag.optional(),
      access_key: z.string().optional(),
      access_keys: listOf(z.string().max(64)),
      description: z.string().optional(),
      bearer_id: z.uuid().optional(),
      bearer_type: choice(['user', 'application']),
      application_id: z.uuid().optional(),
      user_id: z.uuid().optional(),
    }),
    answer: z.object({ api_keys: z.array(ApiKey), total_count: z.int() }),
    handle: async ({ query, actor, may }) => {
      const own = may(reads) ? null : actor.principalId
      const only = own !== null && actor.kind === 'application' ? actor.accessKey : null
      const { rows, total } = await readPage<Row>(
        db,
        `${SELECT} and ($2::uuid is null or api_key.organization_id = $2) and ($3::uuid is null or principal_id = $3)
           and ($4::text is null or access_key = $4) and $5::boolean is distinct from false
           and ($6::boolean is null or (coalesce(expires_at, 'infinity') <= now()) = $6)
           and ($7::text is null or position(lower($7) in lower(access_key)) > 0)
           and (cardinality($8::text[]) = 0 or access_key = any ($8))
           and ($9::text is null or position(lower($9) in lower(api_key.description)) > 0)
           and ($10::uuid is null or principal_id = $10) and ($11::text is null or kind = $11)
           and ($12::uuid is null or (kind = 'application' and principal_id = $12)) and ($13::uuid is null or (kind = 'user' and principal_id = $13))`,
        [
          actor.organizationId,
          query.organization_id ?? null,
          own,
          only,
          query.editable ?? null,
          query.expired ?? null,
          query.access_key ?? null,
          query.access_keys,
          query.description ?? null,
          query.bearer_id ?? null,
          query.bearer_type ?? null,
          query.application_id ?? null,
          query.user_id ?? null,
        ],
        query,
        orderOf(
          query.order_by,
          { created_at: 'created_at', updated_at: 'updated_at', expires_at: 'expires_at', access_key: 'access_key' },
          'access_key',
        ),
      )
      return yes({ api_keys: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make an API key for oneself or for an application. Its secret is in this answer and nowhere else.',
    needs: writes,
    body: z.looseObject({
      application_id: z.uuid().optional(),
      user_id: z.uuid().optional(),
      description: Description.default(''),
      default_project_id: z.uuid().optional(),
      expires_at: ExpiresAt.optional(),
    }),
    answer: ApiKey,
    handle: ({ body, actor, may }) =>
      change(actor, async (client) => {
        const { application_id: applicationId, user_id: userId } = body
        if ((applicationId === undefined) === (userId === undefined))
          return no(invalid('application_id', 'required', 'exactly one of application_id and user_id'))
        // Nobody can make a key for another user, not even the owner; and an application none for itself, or a key of it could make one that outlives it.
        if (userId !== undefined && (actor.kind !== 'user' || userId !== actor.principalId)) return no(forbidden(writes))
        if (applicationId !== undefined && !may(writes)) return no(forbidden(writes))
        if (applicationId !== undefined) {
          const { rowCount } = await client.query(
            `select 1 from principal where id = $1 and organization_id = $2 and kind = 'application'`,
            [applicationId, actor.organizationId],
          )
          if (rowCount === 0) return no(notFound('application', applicationId))
        }
        const { default_project_id: projectId = actor.organizationId as string, expires_at: expiresAt } = body
        const project = await client.query('select 1 from project where id = $1 and organization_id = $2', [
          projectId,
          actor.organizationId,
        ])
        if (project.rowCount === 0) return no(notFound('project_id', projectId))
        const { rows } = await client.query<{ past: boolean; late: boolean; seconds: bigint }>(
          `select coalesce($2 <= now(), false) as past, max_api_key_seconds as seconds,
                  max_api_key_seconds > 0 and coalesce($2 > now() + make_interval(secs => max_api_key_seconds), true) as late
             from organization where id = $1`,
          [actor.organizationId, expiresAt ?? null],
        )
        if (rows[0]?.past === true) return no(invalid('expires_at', 'constraint', 'must be in the future'))
        if (rows[0]?.late === true)
          return no(invalid('expires_at', 'constraint', `keys of this organization live for at most ${rows[0].seconds} s`))
        const principalId = (applicationId ?? userId) as PrincipalId
        // Those that have expired are counted, too: every gateway has all keys in memory, and a user may make its own without any right.
        const fit = await fits(client, actor.organizationId, 'api_key')
        if (!fit.ok) return fit
        const made = await insertKey(client, secrets, {
          organizationId: actor.organizationId,
          principalId,
          description: body.description,
          defaultProjectId: projectId as ProjectId,
          expiresAt: expiresAt === undefined ? null : dateToInstant(expiresAt),
          actor,
        })
        const row = (await read(client, actor.organizationId, made.accessKey)) as Row
        return yes({ ...toJson(row), secret_key: made.secretKey })
      }),
  })

  manage({
    method: 'GET',
    path: `${PATH}/:access_key`,
    summary: 'Read an API key; one may always read the key that one uses.',
    needs: reads,
    params,
    answer: ApiKey,
    handle: async ({ params: { access_key: accessKey }, actor, may }) => {
      const row = await read(db, actor.organizationId, accessKey)
      if (row !== undefined && maySee(row, actor, may)) return yes(toJson(row))
      return may(reads) ? no(notFound('access_key', accessKey)) : no(forbidden(reads))
    },
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:access_key`,
    summary: 'Change the description or the preferred project of an API key, or give an end to one that has none.',
    needs: writes,
    params,
    body: z.looseObject({
      description: Description.optional(),
      default_project_id: z.uuid().optional(),
      expires_at: ExpiresAt.optional(),
    }),
    answer: ApiKey,
    handle: ({ params: { access_key: accessKey }, body, actor, may }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, accessKey)
        if (before === undefined || !mayChange(before, actor, may)) {
          return before === undefined && may(writes) ? no(notFound('access_key', accessKey)) : no(forbidden(writes))
        }
        const { default_project_id: projectId, expires_at: expiresAt } = body
        if (expiresAt !== undefined && before.expires_at !== null && expiresAt.getTime() !== before.expires_at.getTime())
          return no(invalid('expires_at', 'constraint', 'the end of a key cannot be moved'))
        if (expiresAt !== undefined && before.expires_at === null && expiresAt.getTime() <= iam.clock.now())
          return no(invalid('expires_at', 'constraint', 'must be in the future'))
        if (projectId !== undefined) {
          const project = await client.query('select 1 from project where id = $1 and organization_id = $2', [
            projectId,
            actor.organizationId,
          ])
          if (project.rowCount === 0) return no(notFound('project_id', projectId))
        }
        await client.query(
          `update api_key set description = coalesce($2, description), default_project_id = coalesce($3, default_project_id),
                  expires_at = coalesce($4, expires_at), updated_at = now() where access_key = $1`,
          [accessKey, body.description ?? null, projectId ?? null, expiresAt ?? null],
        )
        const after = (await read(client, actor.organizationId, accessKey)) as Row
        await note({ action: 'updated', resourceType: 'api_key', resourceId: accessKey, before: toAudit(before), after: toAudit(after) })
        return yes(toJson(after))
      }),
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/:access_key`,
    summary: 'Delete an API key. Its secret stops working at once.',
    needs: writes,
    params,
    handle: ({ params: { access_key: accessKey }, actor, may }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, accessKey)
        if (before === undefined || !mayChange(before, actor, may)) {
          return before === undefined && may(writes) ? no(notFound('access_key', accessKey)) : no(forbidden(writes))
        }
        await client.query('delete from api_key where access_key = $1', [accessKey])
        await note({ action: 'deleted', resourceType: 'api_key', resourceId: accessKey, before: toAudit(before) })
        return yes(undefined)
      }),
  })
}
