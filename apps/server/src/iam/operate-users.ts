import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import type { Instant } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import type { Secrets } from '../kit/secrets.ts'
import { endLinks, type Link, makeLink } from './links.ts'
import { hashPassword, weaknessOf } from './passwords.ts'
import { endSessions } from './sessions.ts'
import { writePassword } from './sign-in.ts'

// What whoever runs the machine does about people, by commands; what people do about one another is in users.ts.

export type OperatedUser = {
  readonly id: PrincipalId
  readonly organizationId: OrganizationId
  readonly organization: string
  readonly username: string
  readonly email: string
  readonly role: 'owner' | 'member'
  readonly activated: boolean
  readonly hasPassword: boolean
  readonly locked: boolean
  /** By too many wrong passwords. */
  readonly signInLocked: boolean
  readonly lastLoginAt: Date | null
}

const SELECT = `
  select principal.id, organization_id as "organizationId", organization.name as organization, principal.name as username,
         coalesce(email, '') as email, role, activated, user_password.hash is not null as "hasPassword", locked,
         locked_at is not null as "signInLocked", last_login_at as "lastLoginAt"
    from principal join organization on organization.id = organization_id left join user_password on principal_id = principal.id
   where kind = 'user'`

export const listOperatedUsers = async (db: Db): Promise<OperatedUser[]> =>
  (await db.query<OperatedUser>(`${SELECT} order by organization.created_at, organization_id, principal.created_at, principal.id`)).rows

/** By username or address of e-mail. In several organizations it has to be said which. */
export const findUser = async (
  db: Db | pg.ClientBase,
  login: string,
  organizationId: string | undefined,
): Promise<OperatedUser | undefined> => {
  const { rows } = await db.query<OperatedUser>(
    `${SELECT} and (lower(principal.name) = lower($1) or lower(email) = lower($1)) and ($2::uuid is null or organization_id = $2) limit 10`,
    [login, organizationId ?? null],
  )
  if (rows.length > 1) {
    const places = rows.map(({ organization, organizationId: id, username }) => `${username} in ${organization} (${id})`).join(', ')
    throw new Error(`Several users are called so: ${places}. Say --organization <id>, or give the username.`)
  }
  return rows[0]
}

const note = (client: pg.ClientBase, by: By, user: Pick<OperatedUser, 'id' | 'organizationId'>, after: unknown): Promise<void> =>
  recordChange(client, {
    organizationId: user.organizationId,
    actor: by,
    action: 'updated',
    resourceType: 'user',
    resourceId: user.id,
    before: null,
    after,
  })

/** A link for a user that is there, or for a new member of the organization. */
export const invite = (
  parts: { db: Db; secrets: Secrets; now: Instant },
  request: { readonly login: string; readonly organizationId: string | undefined; readonly into: OrganizationId },
  by: By,
): Promise<{ user: OperatedUser; link: Link; made: boolean }> =>
  transaction(parts.db, async (client) => {
    await client.query(`select note_change('iam')`)
    const { login } = request
    let user = await findUser(client, login, request.organizationId)
    const made = user === undefined
    if (user === undefined) {
      if (!/^[^\s@]+@[^\s@]+$/.test(login) || login.length > 254)
        throw new Error(`There is no user ${login}. To invite somebody new, give an address of e-mail.`)
      const id: PrincipalId = newId(parts.now)
      await client.query(
        `insert into principal (id, organization_id, kind, role, name, email, activated) values ($1, $2, 'user', 'member', left($3, 64), $3, false)`,
        [id, request.into, login],
      )
      user = (await findUser(client, login, request.into)) as OperatedUser
      await recordChange(client, {
        organizationId: request.into,
        actor: by,
        action: 'created',
        resourceType: 'user',
        resourceId: id,
        before: null,
        after: { email: login },
      })
    }
    const link = await makeLink(client, parts.secrets, 'invitation', user.id)
    await note(client, by, user, { invitedUntil: link.expiresAt.toISOString() })
    return { user, link, made }
  })

/** Ends the user's sessions and unlocks its sign-in. What the owner gets is the owner's own; another may be asked to renew it. */
export const setPassword = async (
  { db, secrets }: { db: Db; secrets: Secrets },
  user: OperatedUser,
  password: string,
  by: By,
): Promise<void> => {
  const weakness = weaknessOf(password, [user.username, user.email])
  if (weakness !== undefined) throw new Error(`That is too weak: ${weakness}.`)
  const hash = await hashPassword(secrets, password)
  await transaction(db, async (client) => {
    await client.query(`select note_change('iam')`)
    await writePassword(client, user.id, hash, user.role !== 'owner')
    await endSessions(client, user.id)
    await endLinks(client, user.id)
    await client.query('update principal set activated = true, updated_at = now() where id = $1', [user.id])
    await note(client, by, user, { password: 'changed' })
  })
}

/** Locked, its keys and sessions stop working within a second. Unlocked, its password works again as well, however it was locked. */
export const setLocked = async (db: Db, user: OperatedUser, locked: boolean, by: By): Promise<void> => {
  if (locked && user.role === 'owner') throw new Error('The owner of an organization cannot be locked.')
  await transaction(db, async (client) => {
    await client.query(`select note_change('iam')`)
    await client.query('update principal set locked = $2, updated_at = now() where id = $1', [user.id, locked])
    if (locked) await endSessions(client, user.id)
    else await client.query('update user_password set locked_at = null, failures = 0 where principal_id = $1', [user.id])
    await note(client, by, user, { locked })
  })
}
