import type pg from 'pg'
import { recordChange } from '../audit/record.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Denial, invalid } from '../kit/denial.ts'
import type { OrganizationId, PrincipalId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Failures } from './failures.ts'
import { type Passwords, weaknessOf } from './passwords.ts'
import { endSessions, type Sessions, type Tokens } from './sessions.ts'

/** A wrong password costs us a quarter of a second and a guesser nothing: twenty in a minute are enough for one address. */
const FAILURE_WEIGHT = 5
/** The same address of e-mail in several organizations; each has a password of its own. */
const MAX_CANDIDATES = 8
/** A password that is so old has tried the others' doors already; a new one each time would be a guess each time. */
const SETTLED_HOURS = 24
const TOO_MANY = 'Too many wrong passwords came from this address.'

/**
 * One sentence for whatever is wrong: who has an account, and whether it is locked, is nobody's business. The way out stands in it.
 */
const WRONG: Denial = {
  type: 'denied_authentication',
  method: 'unknown_method',
  reason: 'unknown_reason',
  help_message:
    'The name or the password is wrong, or there were too many attempts. Ask for a link to a new password, or somebody who manages users to unlock you.',
}

export type SignInRequest = {
  /** A username or an address of e-mail. */
  readonly login: string
  readonly password: string
  readonly newPassword: string | undefined
  readonly organizationId: string | undefined
}

export type Entered = { readonly principalId: PrincipalId; readonly organizationId: OrganizationId; readonly tokens: Tokens }

type Candidate = {
  id: PrincipalId
  organization_id: OrganizationId
  organization_name: string
  username: string
  email: string
  locked: boolean
  hash: string
  attempts: number
  enforce_password_renewal: boolean
  due_at: Date | null
  overdue: boolean | null
  /** The password is not of today. */
  settled: boolean
}

// Who is meant by the address comes before who is only called like it, and the older user before the newer: nobody gets in front of others by a name.
const CANDIDATES = `
  select principal.id, organization_id, organization.name as organization_name, principal.name as username, coalesce(email, '') as email, locked, hash,
         login_attempts_before_locked as attempts, enforce_password_renewal,
         case when temporary then set_at + make_interval(secs => grace_period_seconds) end as due_at,
         temporary and set_at + make_interval(secs => grace_period_seconds) <= now() as overdue,
         set_at <= now() - interval '${SETTLED_HOURS} hours' as settled
    from principal
    join organization on organization.id = organization_id
    join user_password on principal_id = principal.id
   where kind = 'user' and (lower(email) = lower($1) or lower(principal.name) = lower($1)) and ($2::uuid is null or organization_id = $2)
     and organization.state <> 'closed'
   order by (lower(email) = lower($1)) is true desc, principal.created_at, principal.id
   limit ${MAX_CANDIDATES}`

/**
 * What is found out counts for nothing unless the attempt has been counted, so many at once are no more than many in a row. Nothing comes
 * back when there were too many, or when the password is not the one any more that was looked at; 0 attempts before it is locked means
 * that it never is.
 */
const ATTEMPT = `
  update user_password set failures = failures + 1
   where principal_id = $1 and hash = $3 and locked_at is null and ($2 = 0 or failures < $2) returning failures`

/** Sets the password and lets the user use it again; `temporary` where somebody else chose it. */
export const writePassword = async (client: pg.ClientBase, principalId: PrincipalId, hash: string, temporary: boolean): Promise<void> => {
  await client.query(
    `insert into user_password (principal_id, hash, temporary) values ($1, $2, $3)
       on conflict (principal_id) do update
       set hash = excluded.hash, temporary = excluded.temporary, set_at = now(), failures = 0, locked_at = null`,
    [principalId, hash, temporary],
  )
}

/** A session for whoever has shown who they are, and its entry in the audit. None for a user who was locked meanwhile. */
export const enter = async (
  client: pg.ClientBase,
  sessions: Sessions,
  who: { readonly principalId: PrincipalId; readonly organizationId: OrganizationId },
  by: 'password' | 'openid',
  origin: Origin,
): Promise<Entered | undefined> => {
  const tokens = await sessions.begin(client, { principalId: who.principalId, origin })
  if (tokens === undefined) return undefined
  await client.query('update principal set last_login_at = now() where id = $1', [who.principalId])
  await recordChange(client, {
    organizationId: who.organizationId,
    actor: { name: who.principalId, ...origin },
    action: 'created',
    resourceType: 'session',
    resourceId: tokens.session.id,
    before: null,
    after: { by },
  })
  return { ...who, tokens }
}

/**
 * Name and password for a session. In this order: an address that has failed too often waits; the attempt is counted while the password
 * is looked at, or as much work is done where there is none: the write of the count is so much shorter that nobody sees whether there was
 * one; a password that somebody else chose may have to be renewed.
 */
export const openSignIn =
  (parts: { db: Db; passwords: Passwords; sessions: Sessions; failures: Failures; log: Logger }) =>
  async (request: SignInRequest, from: Origin): Promise<Outcome<Entered & { readonly renewalDueAt: Date | null }, Denial>> => {
    const { db, passwords, sessions, failures, log } = parts
    const waitMs = failures.waitMs(from.ip)
    if (waitMs > 0) return no({ type: 'too_many_requests', help_message: TOO_MANY, retryAfterMs: waitMs })
    const full = passwords.refusal(from.ip)
    if (full !== undefined) return no(full)

    const { rows: candidates } = await db.query<Candidate>(CANDIDATES, [request.login, request.organizationId ?? null])
    const counted = new Set<Candidate>()
    // Those whose last attempt this was. The others get nothing more written: it would show in the time that there is such a user.
    const last: Candidate[] = []
    const count = async (): Promise<void> => {
      for (const candidate of candidates) {
        const { id, locked, attempts, hash } = candidate
        if (locked) continue
        const { rows } = await db.query<{ failures: number }>(ATTEMPT, [id, attempts, hash])
        const [row] = rows
        if (row !== undefined) counted.add(candidate)
        if (attempts > 0 && (row === undefined || row.failures >= attempts)) last.push(candidate)
      }
    }
    const hashes = candidates.map(({ locked, hash }) => (locked ? undefined : hash))
    const [found] = await Promise.all([passwords.matching(request.password, hashes.length === 0 ? [undefined] : hashes, from.ip), count()])
    const takeBack = (ids: readonly PrincipalId[]) =>
      db.query('update user_password set failures = greatest(0, failures - 1) where principal_id = any ($1)', [ids])
    if (!found.ok) {
      // Nothing was looked at, so nothing was attempted.
      await takeBack([...counted].map(({ id }) => id))
      return found
    }
    const matching = candidates.filter((candidate, index) => found.value[index] && counted.has(candidate))
    const [user] = matching
    if (user === undefined) {
      failures.count(from.ip, FAILURE_WEIGHT)
      log.info({ ip: from.ip, users: candidates.map(({ id }) => id) }, 'a sign-in failed')
      for (const candidate of last) await lockWhenTooMany(db, candidate, from)
      return no(WRONG)
    }
    // One person may be in several organizations, so whose password it was not has failed nothing. But whoever gives somebody's address to
    // a user of theirs could try a password on both by giving it to their own first: one that is new counts as an attempt on the others.
    const others = candidates.filter((candidate) => !matching.includes(candidate))
    if (matching.every(({ settled }) => settled)) await takeBack(others.filter((other) => counted.has(other)).map(({ id }) => id))
    else if (others.length > 0) {
      failures.count(from.ip, FAILURE_WEIGHT)
      for (const other of others) if (last.includes(other)) await lockWhenTooMany(db, other, from)
    }
    if (matching.length > 1) {
      await takeBack(matching.map(({ id }) => id))
      const places = matching.map(({ organization_name: name, organization_id: id }) => `${name} (${id})`).join(', ')
      return no(invalid('organization_id', 'required', `this address is in several organizations; say which: ${places}`))
    }

    const { newPassword } = request
    let renewed: string | undefined
    if (newPassword !== undefined) {
      const weakness =
        newPassword === request.password ? 'the new password is the old one' : weaknessOf(newPassword, [user.username, user.email])
      if (weakness !== undefined) return no(invalid('new_password', 'constraint', weakness))
      const hashed = await passwords.hash(newPassword, from.ip)
      if (!hashed.ok) return hashed
      renewed = hashed.value
    } else if (user.enforce_password_renewal && user.overdue === true) {
      const help_message = 'This password was chosen by somebody else. Sign in with new_password beside it, or take a link to a new one.'
      return no({ type: 'precondition_failed', precondition: 'attribute_must_be_set', help_message })
    }

    return transaction(db, async (client) => {
      const who = { principalId: user.id, organizationId: user.organization_id }
      // What was shown may have become an old password meanwhile; who changes it waits for us or we for them.
      const { rowCount } = await client.query('update user_password set failures = 0 where principal_id = $1 and hash = $2', [
        user.id,
        user.hash,
      ])
      if (rowCount !== 1) return no(WRONG)
      if (renewed !== undefined) {
        await writePassword(client, user.id, renewed, false)
        await endSessions(client, user.id)
        await recordChange(client, {
          organizationId: user.organization_id,
          actor: { name: user.id, ...from },
          action: 'updated',
          resourceType: 'user',
          resourceId: user.id,
          before: null,
          after: { password: 'changed' },
        })
      }
      const entered = await enter(client, sessions, who, 'password', from)
      if (entered === undefined) return no(WRONG)
      const renewalDueAt = user.enforce_password_renewal && renewed === undefined ? user.due_at : null
      return yes({ ...entered, renewalDueAt })
    })
  }

/** Said in the audit once; unlocking, a link and a new password take it away. */
const lockWhenTooMany = (db: Db, { id, organization_id: organizationId, attempts }: Candidate, from: Origin): Promise<void> =>
  transaction(db, async (client) => {
    const { rowCount } = await client.query(
      'update user_password set locked_at = now() where principal_id = $1 and locked_at is null and $2 > 0 and failures >= $2',
      [id, attempts],
    )
    if (rowCount !== 1) return
    await recordChange(client, {
      organizationId,
      actor: { name: 'sign-in', ...from },
      action: 'updated',
      resourceType: 'user',
      resourceId: id,
      before: { sign_in_locked: false },
      after: { sign_in_locked: true, attempts },
    })
  })
