import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, invalid, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import { choice, orderOf, readPage } from '../kit/listing.ts'
import { type Actor, listOf, type Manage, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { forgetKeys } from './api-keys.ts'
import type { Note } from './change.ts'
import { opens } from './groups.ts'
import { endLinks, makeLink } from './links.ts'
import { weaknessOf } from './passwords.ts'
import { covers } from './rights.ts'
import { endSessions, type SessionId } from './sessions.ts'
import { type IamRoom, iamPage, Password, Stamps, Tags } from './shapes.ts'
import { writePassword } from './sign-in.ts'

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
  /** By somebody, or by too many wrong passwords. */
  locked: boolean
  activated: boolean
  created_at: Date
  updated_at: Date
  last_login_at: Date | null
}

const SELECT = `
  select id, organization_id, role, name as username, coalesce(email, '') as email, first_name, last_name, phone_number, locale, tags,
         locked or exists (select 1 from user_password where principal_id = principal.id and locked_at is not null) as locked,
         activated, created_at, updated_at, last_login_at
    from principal where kind = 'user' and organization_id = $1`

const toJson = ({ role, activated, ...row }: Row) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  deletable: role !== 'owner',
  last_login_at: row.last_login_at?.toISOString() ?? null,
  type: role,
  two_factor_enabled: false,
  status: activated ? 'activated' : 'invitation_pending',
  mfa: false,
  account_root_user_id: role === 'owner' ? row.id : '',
})

const toAudit = ({
  id: _id,
  organization_id: _organization,
  created_at: _created,
  updated_at: _updated,
  last_login_at: _login,
  ...row
}: Row) => row

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
  last_login_at: z.iso.datetime().nullable(),
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

const PATH = '/iam/v1alpha1/users'

/** control-plane.md 5.2; invitations by link are ours. */
export const userRoutes = (manage: Manage, { db, change, fits, secrets, iam, people }: IamRoom): void => {
  const reads = { resource: 'user', action: 'read', scope: 'organization' } as const
  const writes = { resource: 'user', action: 'write', scope: 'organization' } as const
  const readsSelf = { resource: 'user', action: 'read', scope: 'self' } as const
  const writesSelf = { resource: 'user', action: 'write', scope: 'self' } as const
  const params = z.object({ user_id: z.uuid() })

  /** Nobody but the owner may lock, remove or rename the owner: that would be a way to take the organization over. */
  const untouchable = (row: Row, actor: Actor): Outcome<never, Denial> | undefined =>
    row.role === 'owner' && !actor.owner
      ? no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'only the owner may change the owner' })
      : undefined

  /**
   * Who makes a way in for somebody could go it: a link, a password, an address that links are sent to. So nobody does that for a user
   * who may more.
   */
  const outranked = (row: Row, actor: Actor): Outcome<never, Denial> | undefined =>
    row.id === actor.principalId || covers(iam.rightsOf(actor.principalId), iam.rightsOf(row.id))
      ? undefined
      : no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'this user may do more than you' })

  /**
   * Who adds a user can go in as it, and is where all users are then: for an application that is as much as coming into a group
   * (groups.ts). A user is in it already.
   */
  const overEverybody = async (client: pg.ClientBase, actor: Actor): Promise<Outcome<never, Denial> | undefined> => {
    if (actor.kind === 'user') return undefined
    const { rows } = await client.query<{ id: string }>(
      `select id from principal_group where organization_id = $1 and everybody = 'user'`,
      [actor.organizationId],
    )
    return covers(iam.rightsOf(actor.principalId), await opens(client, rows[0]?.id ?? ''))
      ? undefined
      : no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'every user here may do more than you' })
  }

  /** Who is called so, or has this address. */
  const takenBy = async (client: pg.ClientBase, organizationId: OrganizationId, by: { username?: string; email?: string }) =>
    (
      await client.query<{ id: PrincipalId }>(
        `select id from principal where organization_id = $1 and kind = 'user' and (lower(name) = lower($2) or lower(email) = lower($3))`,
        [organizationId, by.username ?? null, by.email ?? null],
      )
    ).rows.map(({ id }) => id)

  const taken = (id: PrincipalId): Outcome<never, Denial> =>
    no({ type: 'already_exists', resource: 'user', resource_id: id, help_message: 'there is a user of this name or address' })

  type Edit = {
    readonly assignments: string
    readonly values: readonly unknown[]
    readonly username?: string | undefined
    readonly email?: string | undefined
    /** Why not, once it is known who is meant. */
    readonly refuses?: (user: Row) => Outcome<never, Denial> | undefined
    /** What else is to be done in the same transaction. */
    readonly also?: (client: pg.ClientBase, user: Row, note: Note) => Promise<void>
  }

  /** One user, changed by one statement. */
  const edit = (actor: Actor, id: string, { assignments, values, username, email, refuses, also }: Edit) =>
    change(actor, async (client, note) => {
      const before = await read(client, actor.organizationId, id)
      if (before === undefined) return no(notFound('user', id))
      const refused = untouchable(before, actor) ?? refuses?.(before)
      if (refused !== undefined) return refused
      const others = await takenBy(client, actor.organizationId, { ...(username && { username }), ...(email && { email }) })
      const [other] = others.filter((one) => one !== before.id)
      if (other !== undefined) return taken(other)
      await client.query(`update principal set ${assignments}, updated_at = now() where id = $1`, [id, ...values])
      await also?.(client, before, note)
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
        orderOf(
          query.order_by,
          { created_at: 'created_at', updated_at: 'updated_at', email: 'email', username: 'username', last_login: 'last_login_at' },
          'id',
        ),
      )
      return yes({ users: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary:
      'Add a member. What it may do, its policies and groups say. It gets in by the password given here, or by an invitation, which is sent where there is a mail server and stands in the answer otherwise.',
    needs: writes,
    body: z.looseObject({
      organization_id: z.uuid().optional(),
      tags: Tags.default([]),
      email: Email.optional(),
      member: z
        .looseObject({
          email: Email,
          username: Username,
          password: Password.or(z.literal('')).nullish(),
          send_password_email: z.boolean().nullish(),
          send_welcome_email: z.boolean().nullish(),
          first_name: Text.nullish(),
          last_name: Text.nullish(),
          phone_number: Profile.phone_number.nullish(),
          locale: Locale.or(z.literal('')).nullish(),
        })
        .optional(),
    }),
    answer: User.extend({ invitation_url: z.string().optional() }),
    handle: async ({ body, actor }) => {
      if (body.organization_id !== undefined && body.organization_id !== actor.organizationId) return no(forbidden(writes))
      const { member } = body
      const email = member?.email ?? body.email
      if (email === undefined) return no(invalid('email', 'required', 'the address of the new user'))
      // Who is only invited by an address is called by it until they are called otherwise.
      const username = member?.username ?? email.slice(0, 64)
      const id: PrincipalId = newId(iam.clock.now())
      const password = member?.password || undefined
      const weakness = password === undefined ? undefined : weaknessOf(password, [username, email])
      if (weakness !== undefined) return no(invalid('member.password', 'constraint', weakness))
      const hash = password === undefined ? undefined : await people.passwords.hash(password, actor.ip)
      if (hash?.ok === false) return hash
      // A password never goes by mail: whoever is to get one by mail gets a link to choose it.
      const invited = member === undefined || member.send_password_email === true
      const made = await change(actor, async (client, note) => {
        const [other] = await takenBy(client, actor.organizationId, { username, email })
        if (other !== undefined) return taken(other)
        const refused = await overEverybody(client, actor)
        if (refused !== undefined) return refused
        const fit = await fits(client, actor.organizationId, 'user')
        if (!fit.ok) return fit
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
        if (hash !== undefined) await writePassword(client, id, hash.value, true)
        const link = invited ? await makeLink(client, secrets, 'invitation', id) : undefined
        const user = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'created', resourceType: 'user', resourceId: id, after: toAudit(user) })
        if (link !== undefined)
          await note({ action: 'created', resourceType: 'invitation', resourceId: id, after: { expiresAt: link.expiresAt.toISOString() } })
        return yes({ user, link })
      })
      if (!made.ok) return made
      const { user, link } = made.value
      const letter = { email, username, organization: await organizationOf(actor) }
      if (link === undefined) {
        if (member?.send_welcome_email === true) await people.links.welcome(letter)
        return yes(toJson(user))
      }
      const url = people.links.url('invitation', link.token)
      return yes({ ...toJson(user), ...(!(await people.links.send('invitation', letter, url)) && { invitation_url: url }) })
    },
  })

  const organizationOf = async ({ organizationId }: Actor): Promise<string> =>
    (await db.query<{ name: string }>('select name from organization where id = $1', [organizationId])).rows[0]?.name ?? ''

  manage({
    method: 'GET',
    path: `${PATH}/:user_id`,
    summary: 'Read one user; everybody may read themselves.',
    needs: readsSelf,
    params,
    answer: User,
    handle: async ({ params: { user_id: id }, actor, may }) => {
      if (id !== actor.principalId && !may(reads)) return no(forbidden(reads, { resource: 'self_user', action: 'read' }))
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
      edit(actor, id, {
        assignments: `tags = coalesce($2, tags), email = coalesce($3, email), first_name = coalesce($4, first_name),
          last_name = coalesce($5, last_name), phone_number = coalesce($6, phone_number), locale = coalesce($7, locale)`,
        values: [body.tags, body.email, body.first_name, body.last_name, body.phone_number, body.locale].map((value) => value ?? null),
        email: body.email,
        refuses: (user) => (body.email === undefined || body.email === user.email ? undefined : outranked(user, actor)),
        also: async (client, user) => {
          if (body.email === undefined || body.email === user.email) return
          // What was sent to the old address, or known of it elsewhere, is not the new one's.
          await endLinks(client, user.id)
          await client.query('delete from oidc_identity where principal_id = $1', [user.id])
        },
      }),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:user_id/update-username`,
    summary: 'Rename a user.',
    needs: writes,
    params,
    body: z.looseObject({ username: Username }),
    answer: User,
    handle: ({ params: { user_id: id }, body, actor }) =>
      edit(actor, id, { assignments: 'name = $2', values: [body.username], username: body.username }),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:user_id/update-password`,
    summary: 'Give a user another password, oneself among them. All its other sessions end; its API keys stay.',
    needs: writesSelf,
    params,
    body: z.looseObject({ password: Password }),
    answer: User,
    handle: async ({ params: { user_id: id }, body, actor, may }) => {
      const own = id === actor.principalId
      if (!own && !may(writes)) return no(forbidden(writes))
      const user = await read(db, actor.organizationId, id)
      if (user === undefined) return no(notFound('user', id))
      const refused = untouchable(user, actor) ?? outranked(user, actor)
      if (refused !== undefined) return refused
      const weakness = weaknessOf(body.password, [user.username, user.email])
      if (weakness !== undefined) return no(invalid('password', 'constraint', weakness))
      const hash = await people.passwords.hash(body.password, actor.ip)
      if (!hash.ok) return hash
      return edit(actor, id, {
        // It was not invited any more.
        assignments: 'activated = true',
        values: [],
        refuses: (now) => outranked(now, actor),
        also: async (client, now, note) => {
          await writePassword(client, now.id, hash.value, !own)
          await endSessions(client, now.id, own ? (actor.sessionId as SessionId | undefined) : undefined)
          await endLinks(client, now.id)
          await note({ action: 'updated', resourceType: 'user', resourceId: id, after: { password: 'changed' } })
        },
      })
    },
  })

  manage({
    method: 'POST',
    path: `${PATH}/:user_id/lock`,
    summary: 'Lock a user: its keys and sessions stop working at once.',
    needs: writes,
    params,
    answer: User,
    handle: ({ params: { user_id: id }, actor }) =>
      edit(actor, id, {
        assignments: 'locked = true',
        values: [],
        refuses: (user) =>
          user.role === 'owner'
            ? no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'the owner cannot be locked' })
            : undefined,
        also: async (client, user) => void (await endSessions(client, user.id)),
      }),
  })

  manage({
    method: 'POST',
    path: `${PATH}/:user_id/unlock`,
    summary: 'Unlock a user, whoever locked it, too many wrong passwords included: its keys and its password work again.',
    needs: writes,
    params,
    answer: User,
    handle: ({ params: { user_id: id }, actor }) =>
      edit(actor, id, {
        assignments: 'locked = false',
        values: [],
        also: async (client, user) =>
          void (await client.query('update user_password set locked_at = null, failures = 0 where principal_id = $1', [user.id])),
      }),
  })

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
    path: `/parvis/v1/users/:user_id/invitation`,
    summary:
      'Make a link by which a user gets in, good for a week and once, and send it where there is a mail server. An earlier one is void.',
    needs: writes,
    params,
    body: z.strictObject({}),
    answer: z.object({ token: z.string(), url: z.string(), expires_at: z.iso.datetime(), sent: z.boolean() }),
    handle: async ({ params: { user_id: id }, actor }) => {
      const made = await change(actor, async (client, note) => {
        const user = await read(client, actor.organizationId, id)
        if (user === undefined) return no(notFound('user', id))
        const refused = untouchable(user, actor) ?? outranked(user, actor)
        if (refused !== undefined) return refused
        const link = await makeLink(client, secrets, 'invitation', user.id)
        await note({ action: 'created', resourceType: 'invitation', resourceId: id, after: { expiresAt: link.expiresAt.toISOString() } })
        return yes({ user, link })
      })
      if (!made.ok) return made
      const { user, link } = made.value
      const url = people.links.url('invitation', link.token)
      const letter = { email: user.email, username: user.username, organization: await organizationOf(actor) }
      const sent = user.email !== '' && (await people.links.send('invitation', letter, url))
      return yes({ token: link.token, url, expires_at: link.expiresAt.toISOString(), sent })
    },
  })
}
