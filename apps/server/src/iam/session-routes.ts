import { z } from 'zod'
import { recordChange } from '../audit/record.ts'
import { transaction } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import type { PrincipalId } from '../kit/ids.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { type Manage, pageQuery, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { FOREIGN } from './cookies.ts'
import { SESSION_COLUMNS, type Session, type SessionId, type SignedIn, type Tokens } from './sessions.ts'
import { type IamRoom, LinkToken, Login, Password } from './shapes.ts'

const Jwt = z.object({
  jti: z.uuid(),
  issuer_id: z.uuid(),
  audience_id: z.uuid(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  expires_at: z.iso.datetime(),
  ip: z.string(),
  user_agent: z.string(),
})

const toJson = (session: Session) => ({
  jti: session.id,
  issuer_id: session.principal_id,
  audience_id: session.principal_id,
  created_at: session.created_at.toISOString(),
  updated_at: session.updated_at.toISOString(),
  expires_at: session.expires_at.toISOString(),
  ip: session.ip,
  user_agent: session.user_agent,
})

const tokensToJson = ({ session, token, renewToken }: Tokens) => ({ jwt: toJson(session), token, renew_token: renewToken })

const OURS = '/parvis/v1'
const JWTS = '/iam/v1alpha1/jwts'

/** Signing in and out (ours), and the sessions of a user (control-plane.md 5.9). */
export const sessionRoutes = (manage: Manage, { db, people }: IamRoom): void => {
  const { sessions, cookies, signIn } = people

  const Entered = z.object({
    user_id: z.uuid(),
    organization_id: z.uuid(),
    jwt: Jwt,
    token: z.string().optional(),
    renew_token: z.string().optional(),
    password_renewal_due_at: z.iso.datetime().nullable(),
  })

  manage({
    method: 'GET',
    path: `${OURS}/sign-in`,
    summary: 'In which ways people sign in here. `openid` is where a browser is sent to do so.',
    needs: 'nobody',
    answer: z.object({ password: z.boolean(), openid: z.string().nullable() }),
    handle: async () => yes({ password: true, openid: people.oidc === undefined ? null : '/oidc/start' }),
  })

  manage({
    method: 'POST',
    path: `${OURS}/sign-in`,
    summary:
      'Sign in with a username or an address of e-mail and a password. The token goes into X-Session-Token for an hour; a browser asks for cookies instead, and its scripts see no token.',
    needs: 'nobody',
    body: z.strictObject({
      login: Login,
      password: Password,
      new_password: Password.optional(),
      organization_id: z.uuid().optional(),
      cookies: z.boolean().default(false),
    }),
    answer: Entered,
    refuses: ['denied_authentication'],
    handle: async ({ body, from, carried }): Promise<Outcome<unknown, Denial>> => {
      if (body.cookies && !cookies.mayUse(carried.headers, carried.method)) return no(FOREIGN)
      const { login, password, new_password: newPassword, organization_id: organizationId } = body
      const entered = await signIn({ login, password, newPassword, organizationId }, from)
      if (!entered.ok) return entered
      const { tokens, renewalDueAt } = entered.value
      const who = {
        user_id: entered.value.principalId,
        organization_id: entered.value.organizationId,
        password_renewal_due_at: renewalDueAt?.toISOString() ?? null,
      }
      if (!body.cookies) return yes({ ...who, ...tokensToJson(tokens) })
      return yes({ cookies: cookies.set(tokens, carried.https), json: { ...who, jwt: toJson(tokens.session) } })
    },
  })

  manage({
    method: 'POST',
    path: `${OURS}/sign-in/renew`,
    summary: 'Go on for another hour, with the renewal token or the cookies. Each renewal token is good once.',
    needs: 'nobody',
    body: z.strictObject({ renew_token: LinkToken.optional() }),
    answer: Entered.omit({ password_renewal_due_at: true }),
    refuses: ['denied_authentication'],
    handle: async ({ body, from, carried }): Promise<Outcome<unknown, Denial>> => {
      const usesCookies = body.renew_token === undefined
      if (usesCookies && !cookies.mayUse(carried.headers, carried.method)) return no(FOREIGN)
      const renewToken = body.renew_token ?? cookies.renewal(carried.headers)
      const tokens = renewToken === undefined ? undefined : await sessions.renew(renewToken, from)
      if (tokens === undefined || tokens === 'stolen') {
        const retryAfterMs = renewToken === undefined ? 0 : people.failures.count(from.ip)
        return retryAfterMs > 0
          ? no({ type: 'too_many_requests', help_message: 'Too many wrong tokens came from this address.', retryAfterMs })
          : no({ type: 'denied_authentication', method: 'jwt', reason: 'expired', help_message: 'Sign in again.' })
      }
      const who = { user_id: tokens.session.principal_id, organization_id: tokens.organizationId }
      if (!usesCookies) return yes({ ...who, ...tokensToJson(tokens) })
      return yes({ cookies: cookies.set(tokens, carried.https), json: { ...who, jwt: toJson(tokens.session) } })
    },
  })

  manage({
    method: 'POST',
    path: `${OURS}/sign-out`,
    summary: 'End the session that the token, the renewal token or the cookies belong to, everywhere and at once. Safe to repeat.',
    needs: 'nobody',
    body: z.strictObject({ renew_token: LinkToken.optional() }),
    handle: async ({ body, from, carried }) => {
      const header = carried.headers['x-session-token']
      const given = typeof header === 'string' ? header : undefined
      const own = cookies.mayUse(carried.headers, carried.method)
      const token = given ?? (own ? cookies.session(carried.headers) : undefined)
      const renewToken = body.renew_token ?? (own ? cookies.renewal(carried.headers) : undefined)
      const read = token === undefined ? 'bad' : await sessions.read(token)
      const session = typeof read === 'object' ? read : renewToken === undefined ? undefined : await sessions.ofRenewal(renewToken)
      if (session !== undefined) await end(session, { name: session.principalId, ...from })
      return yes({ cookies: own ? cookies.clear(carried.https) : [], json: undefined })
    },
  })

  const end = (session: SignedIn, actor: { name: string; ip: string; userAgent: string }): Promise<void> =>
    transaction(db, async (client) => {
      const { rowCount } = await client.query('delete from session where id = $1', [session.sessionId])
      if (rowCount !== 1) return
      await recordChange(client, {
        organizationId: session.organizationId,
        actor,
        action: 'deleted',
        resourceType: 'session',
        resourceId: session.sessionId,
        before: null,
        after: null,
      })
    })

  const reads = { resource: 'user', action: 'read', scope: 'self' } as const
  const writes = { resource: 'user', action: 'write', scope: 'self' } as const
  const asks = { ...reads, scope: 'organization' } as const
  const changes = { ...writes, scope: 'organization' } as const
  const params = z.object({ jti: z.uuid() })

  manage({
    method: 'POST',
    path: JWTS,
    summary: 'Sign in with what one has: a user may make sessions for itself, and nobody for anybody else.',
    needs: writes,
    body: z.looseObject({ user_id: z.uuid(), referrer: z.string().max(1_024).optional() }),
    answer: z.object({ jwt: Jwt, token: z.string(), renew_token: z.string() }),
    handle: async ({ body, actor }) => {
      if (actor.kind !== 'user' || body.user_id !== actor.principalId) return no(forbidden(writes))
      return transaction(db, async (client) => {
        const parent = actor.sessionId as SessionId | undefined
        const tokens = await sessions.begin(client, { principalId: actor.principalId, origin: actor, parent })
        if (tokens === undefined) return no(forbidden(writes))
        await recordChange(client, {
          organizationId: actor.organizationId,
          actor,
          action: 'created',
          resourceType: 'session',
          resourceId: tokens.session.id,
          before: null,
          after: { by: parent === undefined ? 'api_key' : 'session' },
        })
        return yes(tokensToJson(tokens))
      })
    },
  })

  const FOUND = `
    select ${SESSION_COLUMNS}, organization_id, role from session join principal on principal.id = session.principal_id
     where organization_id = $1`
  type Row = Session & { organization_id: string; role: 'owner' | 'member' }

  manage({
    method: 'GET',
    path: JWTS,
    summary: 'List the sessions of a user: one’s own, or those of others with the right to read users.',
    needs: reads,
    query: pageQuery({
      max: 100,
      fallback: 20,
      orders: ['created_at_asc', 'created_at_desc', 'updated_at_asc', 'updated_at_desc'],
      clamp: false,
    }).extend({ audience_id: z.uuid(), expired: queryFlag.optional() }),
    answer: z.object({ jwts: z.array(Jwt), total_count: z.int() }),
    handle: async ({ query, actor, may }) => {
      if (query.audience_id !== actor.principalId && !may(asks)) return no(forbidden(reads, { resource: 'self_user', action: 'read' }))
      const { rows, total } = await readPage<Row>(
        db,
        `${FOUND} and session.principal_id = $2 and ($3::boolean is null or (session.expires_at <= now()) = $3)`,
        [actor.organizationId, query.audience_id, query.expired ?? null],
        query,
        orderOf(query.order_by, { created_at: 'created_at', updated_at: 'updated_at' }, 'id'),
      )
      return yes({ jwts: rows.map(toJson), total_count: total })
    },
  })

  const find = async (organizationId: string, jti: string): Promise<Row | undefined> =>
    (await db.query<Row>(`${FOUND} and session.id = $2`, [organizationId, jti])).rows[0]

  manage({
    method: 'GET',
    path: `${JWTS}/:jti`,
    summary: 'Read one session.',
    needs: reads,
    params,
    answer: Jwt,
    handle: async ({ params: { jti }, actor, may }) => {
      const session = await find(actor.organizationId, jti)
      if (session !== undefined && (session.principal_id === actor.principalId || may(asks))) return yes(toJson(session))
      return may(asks) ? no(notFound('jwt', jti)) : no(forbidden(reads, { resource: 'self_user', action: 'read' }))
    },
  })

  manage({
    method: 'DELETE',
    path: `${JWTS}/:jti`,
    summary: 'End a session. Its token stops working at once.',
    needs: writes,
    params,
    handle: async ({ params: { jti }, actor, may }) => {
      const session = await find(actor.organizationId, jti)
      const own = session?.principal_id === actor.principalId
      if (session === undefined || !(own || may(changes))) return may(changes) ? no(notFound('jwt', jti)) : no(forbidden(writes))
      // Nobody but the owner changes anything about the owner.
      if (session.role === 'owner' && !own && !actor.owner) return no(forbidden(writes))
      const { organizationId } = actor
      await end({ sessionId: session.id, principalId: session.principal_id as PrincipalId, organizationId }, actor)
      return yes(undefined)
    },
  })
}
