import { randomBytes } from 'node:crypto'
import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import { type Actor, listOf, type Manage, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { forgetKeys } from './api-keys.ts'
import { insertKey } from './keys.ts'
import { choice, forbidden, type IamRoom, iamPage, orderOf, readPage, Stamps, Tags } from './shapes.ts'

type Row = {
  id: PrincipalId
  organization_id: OrganizationId
  role: 'owner' | 'member'
  username: string
  email: string
  first_name: string
  last_name: string
  phone_number: string
  locale: string
  tags: string[]
  locked: boolean
  activated: boolean
  created_at: Date
  updated_at: Date
}

const SELECT = `
  select id, organization_id, role, name as username, coalesce(email, '') as email, first_name, last_name, phone_number, locale, tags, locked,
         activated, created_at, updated_at
    from principal where kind = 'user' and organization_id = $1`

const toJson = ({ role, activated, ...row }: Row) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  deletable: role !== 'owner',
  last_login_at: null,
  type: role,
  two_factor_enabled: false,
  status: activated ? 'activated' : 'invitation_pending',
  mfa: false,
  account_root_user_id: role === 'owner' ? row.id : '',
})

const toAudit = ({ id: _id, organization_id: _organization, created_at: _created, updated_at: _updated, ...row }: Row) => row

const User = z.object({
  id: z.uuid(),
  email: z.string(),
  username: z.string(),
  first_name: z.string(),
  last_name: z.string(),
  phone_number: z.string(),
  locale: z.string(),
  ...Stamps,
  organization_id: z.uuid(),
  deletable: z.boolean(),
  last_login_at: z.null(),
  type: z.enum(['owner', 'member']),
  two_factor_enabled: z.boolean(),
  status: z.enum(['activated', 'invitation_pending']),
  mfa: z.boolean(),
  account_root_user_id: z.string(),
  tags: z.array(z.string()),
  locked: z.boolean(),
})

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${SELECT} and id = $2`, [organizationId, id])).rows[0]

const Username = z
  .string()
  .min(2)
  .max(64)
  .regex(/^[a-zA-Z0-9@._-]+$/)
const Email = z.email().max(254)
const Text = z.string().max(128)
const Locale = z.string().regex(/^[a-z]{2}_[A-Z]{2}$/)
const Profile = { first_name: Text, last_name: Text, phone_number: z.string().max(32), locale: Locale }

/** An invitation is good for a week. */
const INVITATION_DAYS = 7
const TOKEN_BYTES = 32

const PATH = '/iam/v1alpha1/users'
const OURS = '/parvis/v1'

/** control-plane.md 5.2; invitations by link are ours. */
export const userRoutes = (manage: Manage, { db, change, secrets, iam }: IamRoom): void => {
  const reads = { resource: 'user', action: 'read', scope: 'organization' } as const
  const writes = { resource: 'user', action: 'write', scope: 'organization' } as const
  const readsSelf = { resource: 'user', action: 'read', scope: 'self' } as const
  const params = z.object({ user_id: z.uuid() })

  /** Nobody but the owner may lock, remove or rename the owner: that would be a way to take the organization over. */
  const untouchable = (row: Row, actor: Actor): Outcome<never, Denial> | undefined =>
    row.role === 'owner' && !actor.owner
      ? no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'only the owner may change the owner' })
      : undefined

  const isTaken = async (client: pg.ClientBase, organizationId: OrganizationId, username: string): Promise<PrincipalId | undefined> =>
    (
      await client.query<{ id: PrincipalId }>(
        `select id from principal where organization_id = $1 and kind = 'user' and lower(name) = lower($2)`,
        [organizationId, username],
      )
    ).rows[0]?.id

  const taken = (id: PrincipalId): Outcome<never, Denial> =>
    no({ type: 'already_exists', resource: 'user', resource_id: id, help_message: 'there is a user of this name' })

  /** One user, changed by one statement. */
  const edit = (actor: Actor, id: string, assignments: string, values: readonly unknown[], ownerToo: boolean, username?: string) =>
    change(actor, async (client, note) => {
      const before = await read(client, actor.organizationId, id)
      if (before === undefined) return no(notFound('user', id))
      const refused = untouchable(before, actor)
      if (refused !== undefined) return refused
      if (!ownerToo && before.role === 'owner')
        return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'the owner cannot be locked' })
      const other = username === undefined ? undefined : await isTaken(client, actor.organizationId, username)
      if (other !== undefined && other !== before.id) return taken(other)
      await client.query(`update principal set ${assignments}, updated_at = now() where id = $1`, [id, ...values])
      const after = (await read(client, actor.organizationId, id)) as Row
      await note({ action: 'updated', resourceType: 'user', resourceId: id, before: toAudit(before), after: toAudit(after) })
      return yes(toJson(after))
    })

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the users of an organization.',
    needs: reads,
    query: iamPage([
      ...(['created_at_asc', 'created_at_desc', 'updated_at_asc', 'updated_at_desc', 'email_asc', 'email_desc'] as const),
      ...(['last_login_asc', 'last_login_desc', 'username_asc', 'username_desc'] as const),
    ]).extend({
      organization_id: z.uuid().optional(),
      user_ids: listOf(z.uuid()),
      mfa: queryFlag.optional(),
      tag: z.string().optional(),
      type: choice(['owner', 'member']),
    }),
    answer: z.object({ users: z.array(User), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      const { rows, total } = await readPage<Row>(
        db,
        `${SELECT} and ($2::uuid is null or organization_id = $2) and (cardinality($3::uuid[]) = 0 or id = any ($3))
           and $4::boolean is distinct from true and ($5::text is null or $5 = any (tags)) and ($6::text is null or role = $6)`,
        [actor.organizationId, query.organization_id ?? null, query.user_ids, query.mfa ?? null, query.tag ?? null, query.type ?? null],
        query,
        orderOf(query.order_by, { created_at: 'created_at', updated_at: 'updated_at', email: 'email', username: 'username' }, 'id'),
      )
      return yes({ users: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Add a member. What it may do, its policies and groups say; it gets in by an invitation.',
    needs: writes,
    body: z.looseObject({
      organization_id: z.uuid().optional(),
      tags: Tags.default([]),
      email: Email.optional(),
      member: z
        .looseObject({
          email: Email,
          username: Username,
          first_name: Text.nullish(),
          last_name: Text.nullish(),
          phone_number: Profile.phone_number.nullish(),
          locale: Locale.or(z.literal('')).nullish(),
        })
        .optional(),
    }),
    answer: User,
    handle: async ({ body, actor }) => {
      if (body.organization_id !== undefined && body.organization_id !== actor.organizationId) return forbidden(writes)
      const { member } = body
      const email = member?.email ?? body.email
      if (email === undefined) return no(invalid('email', 'required', 'the address of the new user'))
      // Who is only invited by an address is called by it until they are called otherwise.
      const username = member?.username ?? email.slice(0, 64)
      const id: PrincipalId = newId(iam.clock.now())
      return change(actor, async (client, note) => {
        const other = await isTaken(client, actor.organizationId, username)
        if (other !== undefined) return taken(other)
        await client.query(
          `insert into principal (id, organization_id, kind, role, name, email, first_name, last_name, phone_number, locale, tags, activated)
           values ($1, $2, 'user', 'member', $3, $4, $5, $6, $7, $8, $9, $10)`,
          [
            id,
            actor.organizationId,
            username,
            email,
            member?.first_name ?? '',
            member?.last_name ?? '',
            member?.phone_number ?? '',
            member?.locale || 'en_US',
            body.tags,
            member !== undefined,
          ],
        )
        const made = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'created', resourceType: 'user', resourceId: id, after: toAudit(made) })
        return yes(toJson(made))
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/:user_id`,
    summary: 'Read one user; everybody may read themselves.',
    needs: readsSelf,
    params,
    answer: User,
    handle: async ({ params: { user_id: id }, actor, may }) => {
      if (id !== actor.principalId && !may(reads)) return forbidden(reads, { resource: 'self_user', action: 'read' })
      const row = await read(db, actor.organizationId, id)
      return row === undefined ? no(notFound('user', id)) : yes(toJson(row))
    },
  })

  manage({
    method: 'PATCH',
    path: `${PATH}/:user_id`,
    summary: 'Change what is known of a user.',
    needs: writes,
    params,
    body: z.looseObject({
      tags: Tags.optional(),
      email: Email.optional(),
      first_name: Text.optional(),
      last_name: Text.optional(),
      phone_number: Profile.phone_number.optional(),
      locale: Locale.optional(),
    }),
    answer: User,
    handle: ({ params: { user_id: id }, body, actor }) =>
      edit(
        actor,
        id,
        `tags = coalesce($2, tags), email = coalesce($3, email), first_name = coalesce($4, first_name), last_name = coalesce($5, last_name),
         phone_number = coalesce($6, phone_number), locale = coalesce($7, locale)`,
        [body.tags, body.email, body.first_name, body.last_name, body.phone_number, body.locale].map((value) => value ?? null),
        true,
      ),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:user_id/update-username`,
    summary: 'Rename a user.',
    needs: writes,
    params,
    body: z.looseObject({ username: Username }),
    answer: User,
    handle: ({ params: { user_id: id }, body, actor }) => edit(actor, id, 'name = $2', [body.username], true, body.username),
  })

  for (const [verb, locked, summary] of [
    ['lock', true, 'Lock a user: its keys stop working at once.'],
    ['unlock', false, 'Unlock a user: its keys work again.'],
  ] as const) {
    manage({
      method: 'POST',
      path: `${PATH}/:user_id/${verb}`,
      summary,
      needs: writes,
      params,
      answer: User,
      handle: ({ params: { user_id: id }, actor }) => edit(actor, id, 'locked = $2', [locked], false),
    })
  }

  manage({
    method: 'DELETE',
    path: `${PATH}/:user_id`,
    summary: 'Remove a user and its API keys.',
    needs: writes,
    params,
    handle: ({ params: { user_id: id }, actor }) =>
      change(actor, async (client, note) => {
        const before = await read(client, actor.organizationId, id)
        if (before === undefined) return no(notFound('user', id))
        if (before.role === 'owner')
          return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'the owner cannot be removed' })
        await forgetKeys(client, note, before.id)
        await client.query('delete from principal where id = $1', [id])
        await note({ action: 'deleted', resourceType: 'user', resourceId: id, before: toAudit(before) })
        return yes(undefined)
      }),
  })

  manage({
    method: 'POST',
    path: `${OURS}/users/:user_id/invitation`,
    summary: 'Make a link by which a user gets in, good for a week and once. An earlier one is void.',
    needs: writes,
    params,
    body: z.strictObject({}),
    answer: z.object({ token: z.string(), expires_at: z.iso.datetime() }),
    handle: ({ params: { user_id: id }, actor }) =>
      change(actor, async (client, note) => {
        const user = await read(client, actor.organizationId, id)
        if (user === undefined) return no(notFound('user', id))
        const refused = untouchable(user, actor)
        if (refused !== undefined) return refused
        const token = randomBytes(TOKEN_BYTES).toString('base64url')
        const { rows } = await client.query<{ expires_at: Date }>(
          `insert into invitation (principal_id, token_hash, expires_at) values ($1, $2, now() + make_interval(days => $3))
             on conflict (principal_id) do update set token_hash = excluded.token_hash, created_at = now(), expires_at = excluded.expires_at
           returning expires_at`,
          [id, secrets.hashKey(token), INVITATION_DAYS],
        )
        const expiresAt = rows[0]?.expires_at.toISOString() ?? ''
        await note({ action: 'created', resourceType: 'invitation', resourceId: id, after: { expiresAt } })
        return yes({ token, expires_at: expiresAt })
      }),
  })

  manage({
    method: 'POST',
    path: `${OURS}/invitations/accept`,
    summary: 'Take up an invitation: the token of the link, for a first API key.',
    needs: 'nobody',
    body: z.strictObject({ token: z.string().min(1).max(128) }),
    answer: z.object({ user_id: z.uuid(), organization_id: z.uuid(), access_key: z.string(), secret_key: z.uuid() }),
    handle: async ({ body, from }) => {
      const { rows } = await db.query<{ principal_id: PrincipalId; organization_id: OrganizationId }>(
        `select principal_id, organization_id from invitation join principal on principal.id = principal_id
          where token_hash = $1 and expires_at > now() and not locked`,
        [secrets.hashKey(body.token)],
      )
      const [invited] = rows
      if (invited === undefined) return no(notFound('invitation', ''))
      const { principal_id: id, organization_id: organizationId } = invited
      const invitee = { organizationId, name: id, ...from }
      return change(invitee, async (client, note) => {
        // Of two who hold the link at once, one gets in.
        const { rowCount } = await client.query('delete from invitation where principal_id = $1 and token_hash = $2', [
          id,
          secrets.hashKey(body.token),
        ])
        const before = await read(client, organizationId, id)
        if (rowCount === 0 || before === undefined) return no(notFound('invitation', ''))
        await client.query('update principal set activated = true, updated_at = now() where id = $1', [id])
        await note({
          action: 'updated',
          resourceType: 'user',
          resourceId: id,
          before: toAudit(before),
          after: toAudit({
            ...before,
            activated: true,
          }),
        })
        const request = { organizationId, principalId: id, description: 'from an invitation', expiresAt: null, actor: invitee }
        const key = await insertKey(client, secrets, request)
        return yes({ user_id: id, organization_id: organizationId, access_key: key.accessKey, secret_key: key.secretKey })
      })
    },
  })
}
