import { randomBytes, randomUUID } from 'node:crypto'
import { errors, jwtVerify, SignJWT } from 'jose'
import type pg from 'pg'
import { recordChange } from '../audit/record.ts'
import { type Clock, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Id, isUuid, newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import type { Secrets } from '../kit/secrets.ts'

export type SessionId = Id<'session'>

/** A session as it may be shown: everything but its tokens, which nobody has (control-plane.md 5.9). */
export type Session = {
  readonly id: SessionId
  readonly principal_id: PrincipalId
  readonly created_at: Date
  readonly updated_at: Date
  readonly expires_at: Date
  readonly ip: string
  readonly user_agent: string
}

/** What somebody who is signed in goes by: for an hour, and what gets them the next one. */
export type Tokens = { readonly session: Session; readonly token: string; readonly renewToken: string; readonly endsAt: Date }

/** Who a token of a living session belongs to. */
export type SignedIn = { readonly sessionId: SessionId; readonly principalId: PrincipalId; readonly organizationId: OrganizationId }

type Origin = { readonly ip: string; readonly userAgent: string }

/** The hour is what a stolen token is worth where nobody notices; a session that is ended ends at once. */
const TOKEN_SECONDS = 3_600
/** Two tabs that renew at once both get what they need. */
const RENEW_TWICE_SECONDS = 60
const KEY_DAYS = 30
const KEY_BYTES = 32 // RFC 7518 §3.2: as long as the hash
/** What has ended is shown in lists for so long. */
const KEPT_DAYS = 30
/** Of a session's old renewal tokens so many are known again: more than there are in a month of hours. */
const MAX_SPENT = 1_000
/** The oldest of a user's sessions give way. */
const MAX_SESSIONS = 100
const MAX_TOKEN_CHARACTERS = 2_048
/** The shortest that an organization may set: below it, nobody gets anything done. */
export const MIN_SESSION_SECONDS = 300n
const ALGORITHM = 'HS256'
const ISSUER = 'parvis'

export const SESSION_COLUMNS = `session.id, session.principal_id, session.created_at, session.updated_at, session.expires_at,
  coalesce(host(session.ip), '') as ip, session.user_agent`

/** Where a session ends whatever it renews: the organization's word at this moment, so a shorter one counts for those that run. */
const ENDS_AT = `session.began_at + make_interval(secs => greatest(organization.max_login_session_seconds, ${MIN_SESSION_SECONDS}))`

const OWNER = `join principal on principal.id = session.principal_id join organization on organization.id = principal.organization_id`

export type Sessions = ReturnType<typeof openSessions>

/**
 * Sessions are rows, and their tokens are JWTs in which nothing stands but which session is meant: each request looks at the row, so
 * one that is ended, and those of a user that is locked or gone, are gone on every gateway with the next request.
 */
export const openSessions = ({ db, secrets, clock }: { db: Db; secrets: Secrets; clock: Clock }) => {
  // A key never changes, and there are as many as there are months in use; those that are gone sign nothing that lives.
  const keys = new Map<string, Uint8Array>()

  const keep = (row: { id: string; sealed: Buffer }): Uint8Array => {
    const key = keys.get(row.id) ?? Buffer.from(secrets.unseal(row.sealed), 'hex')
    keys.set(row.id, key)
    return key
  }

  const keyOf = async (id: string | undefined): Promise<Uint8Array> => {
    const known = id === undefined ? undefined : keys.get(id)
    if (known !== undefined) return known
    const { rows } = isUuid(id ?? '')
      ? await db.query<{ id: string; sealed: Buffer }>('select id, sealed from session_key where id = $1', [id])
      : { rows: [] }
    const [row] = rows
    if (row === undefined) throw new errors.JWSInvalid('no key of this name')
    return keep(row)
  }

  /** The newest, unless its month is over; the lock keeps two gateways from making two. */
  const signingKey = async (client: pg.ClientBase): Promise<{ id: string; key: Uint8Array }> => {
    const newest = async () =>
      (
        await client.query<{ id: string; sealed: Buffer }>(
          `select id, sealed from session_key where created_at > now() - interval '${KEY_DAYS} days' order by created_at desc, id desc limit 1`,
        )
      ).rows[0]
    let row = await newest()
    if (row === undefined) {
      await client.query('lock table session_key in share row exclusive mode')
      row = await newest()
    }
    if (row === undefined) {
      const made = { id: randomUUID(), sealed: secrets.seal(randomBytes(KEY_BYTES).toString('hex')) }
      await client.query('insert into session_key (id, sealed) values ($1, $2)', [made.id, made.sealed])
      await client.query(`delete from session_key where created_at < now() - interval '${KEY_DAYS} days' - interval '1 day'`)
      row = made
    }
    return { id: row.id, key: keep(row) }
  }

  const sign = async (client: pg.ClientBase, session: Session): Promise<string> => {
    const { id, key } = await signingKey(client)
    return new SignJWT()
      .setProtectedHeader({ alg: ALGORITHM, typ: 'JWT', kid: id })
      .setJti(session.id)
      .setIssuer(ISSUER)
      .setSubject(session.principal_id)
      .setAudience(session.principal_id)
      .setIssuedAt(Math.floor(session.updated_at.getTime() / 1000))
      .setExpirationTime(Math.floor(session.expires_at.getTime() / 1000))
      .sign(key)
  }

  const newRenewToken = (): string => randomUUID()
  const hashOf = (renewToken: string): Buffer => secrets.hashKey(`renewal ${renewToken}`)

  const EXPIRES_AT = `least(now() + interval '${TOKEN_SECONDS} seconds', ${ENDS_AT})`

  return {
    /**
     * In the transaction of whatever it is that lets them in. `parent`: the session from which this one is made; it ends when that one must.
     * None for a user who is locked: whoever locks waits for us, or we for them, and ends the sessions that are there then, so that none is
     * left to live on once the user is unlocked.
     */
    begin: async (
      client: pg.ClientBase,
      request: { readonly principalId: PrincipalId; readonly origin: Origin; readonly parent?: SessionId | undefined },
    ): Promise<Tokens | undefined> => {
      const { rowCount } = await client.query('select from principal where id = $1 and not locked for no key update', [request.principalId])
      if (rowCount !== 1) return undefined
      const id: SessionId = newId(clock.now())
      const renewToken = newRenewToken()
      await client.query(
        `delete from session where expires_at < now() - interval '${KEPT_DAYS} days'
            or id in (select id from session where principal_id = $1 order by created_at desc, id desc offset ${MAX_SESSIONS - 1})`,
        [request.principalId],
      )
      const { rows } = await client.query<Session & { ends_at: Date }>(
        `with made as (
           insert into session (id, principal_id, renew_hash, expires_at, ip, user_agent, began_at)
           values ($1, $2, $3, now(), $4, $5, coalesce((select began_at from session where id = $6), now())) returning *)
         select ${SESSION_COLUMNS.replaceAll('session.expires_at', `${EXPIRES_AT} as expires_at`)}, ${ENDS_AT} as ends_at from made as session ${OWNER}`,
        [id, request.principalId, hashOf(renewToken), request.origin.ip || null, request.origin.userAgent, request.parent ?? null],
      )
      const { ends_at: endsAt, ...session } = rows[0] as Session & { ends_at: Date }
      await client.query('update session set expires_at = $2 where id = $1', [id, session.expires_at])
      return { session, token: await sign(client, session), renewToken, endsAt }
    },

    /**
     * One more hour, and a new renewal token for the old one (RFC 9700 §4.14.2). Two tabs may bring the old one within a minute;
     * whoever brings it later has it from somewhere else, and the session ends. Undefined: sign in again.
     */
    renew: (renewToken: string, origin: Origin): Promise<(Tokens & { readonly organizationId: OrganizationId }) | 'stolen' | undefined> =>
      transaction(db, async (client) => {
        const hash = hashOf(renewToken)
        const { rows } = await client.query<{
          id: SessionId
          organization_id: OrganizationId
          current: boolean
          previous: boolean
          soon: boolean
        }>(
          `select session.id, organization_id, renew_hash = $1 as current, previous_hash is not distinct from $1 as previous,
                  coalesce((select at from session_spent where hash = $1), session.updated_at) > now() - interval '${RENEW_TWICE_SECONDS} seconds' as soon
             from session ${OWNER}
            where (renew_hash = $1 or previous_hash = $1 or session.id = (select session_id from session_spent where hash = $1))
              and not locked and ${ENDS_AT} > now()
              for update of session`,
          [hash],
        )
        const [found] = rows
        if (found === undefined) return undefined
        // A third tab, perhaps.
        if (!found.current && !found.previous && found.soon) return undefined
        if (!found.current && !found.soon) {
          await client.query('delete from session where id = $1', [found.id])
          await recordChange(client, {
            organizationId: found.organization_id,
            actor: { name: 'an old renewal token', ...origin },
            action: 'deleted',
            resourceType: 'session',
            resourceId: found.id,
            before: null,
            after: null,
          })
          return 'stolen'
        }
        const next = newRenewToken()
        await client.query(
          `insert into session_spent (hash, session_id) select previous_hash, id from session where id = $1 and previous_hash is not null
             on conflict (hash) do nothing`,
          [found.id],
        )
        await client.query(
          `delete from session_spent where hash in
             (select hash from session_spent where session_id = $1 order by at desc, hash offset ${MAX_SPENT})`,
          [found.id],
        )
        const { rows: renewed } = await client.query<Session & { ends_at: Date; organization_id: OrganizationId }>(
          `update session set previous_hash = session.renew_hash, renew_hash = $2, updated_at = now(), expires_at = ${EXPIRES_AT}
             from principal, organization
            where session.id = $1 and principal.id = session.principal_id and organization.id = principal.organization_id
          returning ${SESSION_COLUMNS}, ${ENDS_AT} as ends_at, organization_id`,
          [found.id, hashOf(next)],
        )
        const { ends_at: endsAt, organization_id: organizationId, ...session } = renewed[0] as (typeof renewed)[0]
        return { session, token: await sign(client, session), renewToken: next, endsAt, organizationId }
      }),

    /** Whose the token is. `bad` is one that we did not make; one of a session that is over is nobody's guess. */
    read: async (token: string): Promise<SignedIn | 'bad' | 'ended' | 'expired'> => {
      if (token.length > MAX_TOKEN_CHARACTERS) return 'bad'
      try {
        const { payload } = await jwtVerify(token, ({ kid }) => keyOf(kid), {
          algorithms: [ALGORITHM],
          issuer: ISSUER,
          requiredClaims: ['jti', 'sub', 'exp'],
          currentDate: instantToDate(clock.now()),
        })
        if (!isUuid(payload.jti ?? '') || !isUuid(payload.sub ?? '')) return 'bad'
        const { rows } = await db.query<{ organization_id: OrganizationId; late: boolean }>({
          name: 'session-read',
          text: `select organization_id, ${ENDS_AT} <= now() as late from session ${OWNER}
                  where session.id = $1 and session.principal_id = $2 and not locked and organization.state <> 'closed'`,
          values: [payload.jti, payload.sub],
        })
        const [row] = rows
        if (row === undefined) return 'ended'
        if (row.late) return 'expired'
        return { sessionId: payload.jti as SessionId, principalId: payload.sub as PrincipalId, organizationId: row.organization_id }
      } catch (error) {
        if (error instanceof errors.JWTExpired) return 'expired'
        if (error instanceof errors.JOSEError) return 'bad'
        throw error
      }
    },

    /** By its renewal token, for whoever signs out after the hour. */
    ofRenewal: async (renewToken: string): Promise<SignedIn | undefined> => {
      const { rows } = await db.query<{ id: SessionId; principal_id: PrincipalId; organization_id: OrganizationId }>(
        `select session.id, principal_id, organization_id from session ${OWNER} where renew_hash = $1`,
        [hashOf(renewToken)],
      )
      const [row] = rows
      return row && { sessionId: row.id, principalId: row.principal_id, organizationId: row.organization_id }
    },
  }
}

/** All sessions of a user but one; says how many there were. */
export const endSessions = async (client: pg.ClientBase, principalId: PrincipalId, but?: SessionId): Promise<number> =>
  (await client.query('delete from session where principal_id = $1 and id is distinct from $2', [principalId, but ?? null])).rowCount ?? 0
