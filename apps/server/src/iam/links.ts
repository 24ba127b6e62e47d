import { randomBytes } from 'node:crypto'
import type pg from 'pg'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { SendMail } from '../kit/mail.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Change } from './change.ts'
import type { Failures } from './failures.ts'
import { type Passwords, weaknessOf } from './passwords.ts'
import { endSessions } from './sessions.ts'
import { writePassword } from './sign-in.ts'

/**
 * A link says who somebody is until it is used or its time is over: an invitation lets a user in for the first time, or again by
 * somebody who may manage users; a reset was asked for by whoever reads the user's mail. Of each there is one per user, the last.
 */
export type Purpose = 'invitation' | 'password_reset'

const LIFE: Record<Purpose, { readonly seconds: number; readonly words: string; readonly path: string }> = {
  invitation: { seconds: 7 * 86_400, words: 'a week', path: '/invitation' },
  password_reset: { seconds: 3_600, words: 'an hour', path: '/password-reset' },
}
const TOKEN_BYTES = 32
const FAILURE_WEIGHT = 5
/** Nobody's mailbox is filled by somebody who only knows its address. */
const RESET_PAUSE_MINUTES = 5
const MAX_RESETS = 8
/** Letters on their way at once; who asks for one more then may ask again. */
const MAX_LETTERS = 50
const STOP_LIMIT_MS = 5_000

export type Link = { readonly token: string; readonly expiresAt: Date }

/** The token is 256 random bits and stands in the link alone; what is stored is its hash under the master key. */
export const makeLink = async (client: pg.ClientBase, secrets: Secrets, purpose: Purpose, principalId: PrincipalId): Promise<Link> => {
  const token = randomBytes(TOKEN_BYTES).toString('base64url')
  const { rows } = await client.query<{ expires_at: Date }>(
    `insert into ${purpose} (principal_id, token_hash, expires_at) values ($1, $2, now() + make_interval(secs => $3))
       on conflict (principal_id) do update set token_hash = excluded.token_hash, created_at = now(), expires_at = excluded.expires_at
     returning expires_at`,
    [principalId, secrets.hashKey(token), LIFE[purpose].seconds],
  )
  return { token, expiresAt: (rows[0] as { expires_at: Date }).expires_at }
}

/** With a new password or address no link that was made before says who somebody is. */
export const endLinks = async (client: pg.ClientBase, principalId: PrincipalId): Promise<void> => {
  for (const purpose of ['invitation', 'password_reset'] as const) {
    await client.query(`delete from ${purpose} where principal_id = $1`, [principalId])
  }
}

export const linkUrl = (publicUrl: string, purpose: Purpose, token: string): string => `${publicUrl}${LIFE[purpose].path}?token=${token}`

export type Linked = {
  readonly principalId: PrincipalId
  readonly organizationId: OrganizationId
  readonly organization: string
  readonly username: string
  readonly email: string
}

export type Links = ReturnType<typeof openLinks>

export const openLinks = (parts: {
  db: Db
  clock: Clock
  log: Logger
  secrets: Secrets
  change: Change
  passwords: Passwords
  failures: Failures
  sendMail: SendMail
  publicUrl: () => string
}) => {
  const { db, clock, log, secrets, change, passwords, failures, sendMail, publicUrl } = parts
  const onTheirWay = new Set<Promise<void>>()

  const find = async (purpose: Purpose, token: string, from: Origin): Promise<Outcome<Linked, Denial>> => {
    const waitMs = failures.waitMs(from.ip)
    if (waitMs > 0)
      return no({ type: 'too_many_requests', help_message: 'Too many wrong links came from this address.', retryAfterMs: waitMs })
    const { rows } = await db.query<Linked>(
      `select principal.id as "principalId", organization_id as "organizationId", organization.name as organization, principal.name as username,
              coalesce(email, '') as email
         from ${purpose} join principal on principal.id = principal_id join organization on organization.id = organization_id
        where token_hash = $1 and expires_at > now() and not locked and organization.state <> 'closed'`,
      [secrets.hashKey(token)],
    )
    const [linked] = rows
    if (linked !== undefined) return yes(linked)
    failures.count(from.ip, FAILURE_WEIGHT)
    return no(notFound(purpose, ''))
  }

  /** Of two who hold the link at once, one gets in. */
  const take = async (client: pg.ClientBase, purpose: Purpose, token: string): Promise<boolean> =>
    (await client.query(`delete from ${purpose} where token_hash = $1 and expires_at > now()`, [secrets.hashKey(token)])).rowCount === 1

  /** A letter that tells the same twice is worse than one that is late, so there is one try; the link can be asked for again. */
  const send = async (purpose: Purpose, to: { email: string; username: string; organization: string }, url: string): Promise<boolean> => {
    const [subject, first] =
      purpose === 'invitation'
        ? [
            `Your way into ${to.organization}`,
            `You are invited to ${to.organization} as ${to.username}. This link lets you in and asks for a password:`,
          ]
        : [
            'A new password',
            `Somebody, most likely you, wants a new password for ${to.username} in ${to.organization}. This link asks for it:`,
          ]
    const last =
      purpose === 'invitation'
        ? 'If you expect no invitation, do nothing.'
        : 'If it was not you, do nothing: without the link nothing changes.'
    const lines = [first, '', url, '', `It works once, and for ${LIFE[purpose].words}. ${last}`]
    const failure = await sendMail({ id: newId(clock.now()), to: to.email, subject, lines })
    // Neither the address nor the link: the log is for whoever runs the machine.
    if (failure !== undefined) log.warn({ purpose, reason: failure }, 'a letter could not be sent')
    return failure === undefined
  }

  /** For a member whose password somebody else hands over. */
  const welcome = async (to: { email: string; username: string; organization: string }): Promise<void> => {
    const lines = [
      `${to.organization} has an account for you at ${publicUrl()}`,
      '',
      `Your name there: ${to.username}`,
      '',
      'The password you get from whoever made it.',
    ]
    const failure = await sendMail({ id: newId(clock.now()), to: to.email, subject: `Welcome to ${to.organization}`, lines })
    if (failure !== undefined) log.warn({ reason: failure }, 'a letter could not be sent')
  }

  /** Whose address is changed meanwhile gets none: it would go to the old one, after the links of before have been voided. */
  const resets = async (login: string): Promise<void> => {
    const made = await transaction(db, async (client) => {
      const { rows } = await client.query<{ id: PrincipalId; email: string; username: string; organization: string }>(
        `select principal.id, email, principal.name as username, organization.name as organization
           from principal join organization on organization.id = organization_id
          where kind = 'user' and (lower(email) = lower($1) or lower(principal.name) = lower($1)) and email <> '' and activated and not locked
            and organization.state <> 'closed'
            and not exists (select 1 from password_reset
                             where principal_id = principal.id and created_at > now() - interval '${RESET_PAUSE_MINUTES} minutes')
          order by principal.created_at, principal.id limit ${MAX_RESETS}
            for share of principal`,
        [login],
      )
      const links: { to: (typeof rows)[number]; url: string }[] = []
      for (const to of rows)
        links.push({ to, url: linkUrl(publicUrl(), 'password_reset', (await makeLink(client, secrets, 'password_reset', to.id)).token) })
      return links
    })
    for (const { to, url } of made) await send('password_reset', to, url)
  }

  return {
    find,
    take,
    send,
    welcome,
    url: (purpose: Purpose, token: string): string => linkUrl(publicUrl(), purpose, token),

    /** A password by a link: the user may sign in with it from now on, and whoever else was signed in as them no longer is. */
    choose: async (purpose: Purpose, token: string, password: string, from: Origin): Promise<Outcome<Linked, Denial>> => {
      const linked = await find(purpose, token, from)
      if (!linked.ok) return linked
      const { principalId, organizationId, username, email } = linked.value
      const weakness = weaknessOf(password, [username, email])
      if (weakness !== undefined) return no(invalid('password', 'constraint', weakness))
      const hash = await passwords.hash(password, from.ip)
      if (!hash.ok) return hash
      return change({ organizationId, name: principalId, ...from }, async (client, note) => {
        if (!(await take(client, purpose, token))) return no(notFound(purpose, ''))
        await writePassword(client, principalId, hash.value, false)
        await endSessions(client, principalId)
        await endLinks(client, principalId)
        await client.query('update principal set activated = true, updated_at = now() where id = $1', [principalId])
        await note({ action: 'updated', resourceType: 'user', resourceId: principalId, after: { password: 'changed', by: purpose } })
        return linked
      })
    },

    /**
     * A link to a new password for whoever reads the mail of that user. The answer is the same, and as quick, whether there is such a
     * user or not: all the work comes after it.
     */
    requestReset: (login: string, from: Origin): Outcome<undefined, Denial> => {
      const waitMs = failures.waitMs(from.ip)
      if (waitMs > 0)
        return no({ type: 'too_many_requests', help_message: 'Too many requests came from this address.', retryAfterMs: waitMs })
      failures.count(from.ip, FAILURE_WEIGHT)
      if (onTheirWay.size >= MAX_LETTERS) log.warn('too many letters are on their way; a reset was left out')
      else {
        const letter: Promise<void> = resets(login)
          .catch((error: unknown) => log.error({ err: error }, 'a reset could not be made'))
          .finally(() => onTheirWay.delete(letter))
        onTheirWay.add(letter)
      }
      return yes(undefined)
    },

    close: async (): Promise<void> => {
      const late = new AbortController()
      await Promise.race([Promise.all(onTheirWay), clock.sleep(STOP_LIMIT_MS, late.signal).catch(() => undefined)])
      late.abort()
    },
  }
}
