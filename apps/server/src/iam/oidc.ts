import {
  allowInsecureRequests,
  authorizationCodeGrant,
  buildAuthorizationUrl,
  type Configuration,
  calculatePKCECodeChallenge,
  customFetch,
  discovery,
  enableNonRepudiationChecks,
  randomNonce,
  randomPKCECodeVerifier,
  randomState,
} from 'openid-client'
import type { Clock, Instant } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { Denial } from '../kit/denial.ts'
import { guardedFetch } from '../kit/guarded-fetch.ts'
import { newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Change } from './change.ts'
import type { Fits } from './fits.ts'
import type { Sessions } from './sessions.ts'
import { type Entered, enter } from './sign-in.ts'

/** What the operator says about the provider; without it nobody signs in this way. */
export type OidcSettings = {
  readonly issuer: string
  readonly clientId: string
  readonly clientSecret: string
  /** Only addresses of these; all when there are none. */
  readonly domains: readonly string[]
  /** Where whoever comes from these domains becomes a member; nowhere when undefined. */
  readonly join: OrganizationId | undefined
}

/** Why somebody does not get in, in words for them. What went wrong between us and the provider stands in the log. */
export type Unwelcome = { readonly words: string; readonly organizations?: readonly { readonly id: string; readonly name: string }[] }

/** What the browser keeps, sealed, while its person is at the provider. */
type Flow = {
  readonly state: string
  readonly nonce: string
  readonly verifier: string
  readonly until: number
  readonly organizationId: string | undefined
  readonly returnTo: string
}

const SCOPE = 'openid email profile'
/** For whoever has to look for a second factor. */
const FLOW_MS = 15 * 60_000
const FETCH_MS = 10_000
const MAX_ANSWER_BYTES = 256 * 1024
/** The provider's description of itself is asked for again after an hour, so that its new addresses are found. */
const DISCOVERED_MS = 3_600_000
/** Where it could not be asked, it is asked again after so long. */
const RETRY_MS = 2_000
/** The operator chose the provider: wherever it is, also inside the network. */
const ANYWHERE = ['0.0.0.0/0', '::/0']
const MAX_CANDIDATES = 8

export type Oidc = ReturnType<typeof openOidc>

/** Our bounds and timeouts around whatever the provider answers. */
const boundedFetch = async (
  url: string,
  options: { method: string; headers: Record<string, string>; body?: unknown },
): Promise<Response> => {
  const { body } = options
  const text = body instanceof URLSearchParams || typeof body === 'string' ? String(body) : undefined
  const fetched = await guardedFetch(url, {
    method: options.method,
    headers: options.headers,
    ...(text !== undefined && { body: text }),
    maxBytes: MAX_ANSWER_BYTES,
    timeMs: FETCH_MS,
    maxRedirects: 0,
    signal: AbortSignal.timeout(FETCH_MS),
    allow: ANYWHERE,
  })
  if (!fetched.ok) throw new Error(fetched.reason)
  const headers = Object.entries(fetched.headers).flatMap(([name, value]): [string, string][] =>
    typeof value === 'string' ? [[name, value]] : [],
  )
  const bodiless = fetched.status === 204 || fetched.status === 304
  return new Response(bodiless ? null : new Uint8Array(fetched.body), { status: fetched.status, headers })
}

/** Only a path of ours: a link to sign in must not lead to somebody else's page in the end. */
export const localPath = (text: string | undefined): string =>
  text !== undefined && text.length <= 512 && /^\/(?![/\\])[\w\-./?=&%#~]*$/.test(text) ? text : '/'

/**
 * Signing in with an OpenID provider: authorization code with PKCE, state and nonce, all checked by the library, the signature of the
 * ID token too. Whoever comes must have an address that the provider has verified, and be a user already, unless the operator has said
 * that everybody of a domain is to become one.
 */
export const openOidc = (parts: {
  settings: OidcSettings
  db: Db
  clock: Clock
  log: Logger
  secrets: Secrets
  change: Change
  fits: Fits
  sessions: Sessions
  publicUrl: () => string
}) => {
  const { settings, db, clock, log, secrets, change, fits, sessions, publicUrl } = parts
  let found: { readonly configuration: Promise<Configuration>; readonly at: Instant } | undefined

  /** Asked once for all who wait, and not again at once where it failed: nobody's reloading becomes a flood on the provider. */
  const provider = (): Promise<Configuration> => {
    if (found !== undefined && clock.now() - found.at < DISCOVERED_MS) return found.configuration
    const insecure = settings.issuer.startsWith('http:') // on this machine only: config.ts
    const configuration = discovery(new URL(settings.issuer), settings.clientId, settings.clientSecret, undefined, {
      [customFetch]: boundedFetch,
      execute: [enableNonRepudiationChecks, ...(insecure ? [allowInsecureRequests] : [])],
    })
    const asked = { configuration, at: clock.now() }
    found = asked
    configuration.catch(() => {
      if (found === asked) found = { configuration, at: (clock.now() - DISCOVERED_MS + RETRY_MS) as Instant }
    })
    return configuration
  }

  const redirectUri = (): string => `${publicUrl()}/oidc/callback`

  const isOurs = (email: string): boolean => settings.domains.length === 0 || settings.domains.includes(email.split('@').at(-1) ?? '')

  type User = { id: PrincipalId; organization_id: OrganizationId; name: string; subject: string | null; email: string }

  /** Those who have signed in with this subject before, and else those with this address. */
  const usersOf = async (subject: string, email: string, organizationId: string | undefined): Promise<User[]> =>
    (
      await db.query<User>(
        `select principal.id, organization_id, organization.name, subject, email
           from principal join organization on organization.id = organization_id
           left join oidc_identity on oidc_identity.principal_id = principal.id and issuer = $1
          where kind = 'user' and not locked and organization.state <> 'closed' and (subject = $2 or (subject is null and lower(email) = $3))
            and ($4::uuid is null or organization_id = $4)
          order by principal.created_at, principal.id limit ${MAX_CANDIDATES}`,
        [settings.issuer, subject, email, organizationId ?? null],
      )
    ).rows

  /** A new member without any rights, of the organization that the operator named. Two at once make one. */
  const join = (organizationId: OrganizationId, email: string, from: Origin): Promise<Outcome<User, Denial>> =>
    change({ organizationId, name: 'openid', ...from }, async (client, note) => {
      const { rows: there } = await client.query<{ id: PrincipalId }>(
        `select id from principal where kind = 'user' and organization_id = $1 and (lower(email) = $2 or lower(name) = $2)`,
        [organizationId, email],
      )
      // Somebody who is there and was not found is locked, or is somebody else at the provider.
      if (there.length > 0) return no({ type: 'not_found', resource: 'user', resource_id: '' })
      const fit = await fits(client, organizationId, 'user')
      if (!fit.ok) return fit
      const id: PrincipalId = newId(clock.now())
      await client.query(
        `insert into principal (id, organization_id, kind, role, name, email) values ($1, $2, 'user', 'member', left($3, 64), $3)`,
        [id, organizationId, email],
      )
      await note({ action: 'created', resourceType: 'user', resourceId: id, after: { email, by: 'openid' } })
      return yes({ id, organization_id: organizationId, name: '', subject: null, email })
    })

  return {
    /** Where the browser goes, and what it keeps until it comes back. */
    begin: async (wanted: { organizationId: string | undefined; returnTo: string | undefined }): Promise<{ url: URL; kept: string }> => {
      const configuration = await provider()
      const flow: Flow = {
        state: randomState(),
        nonce: randomNonce(),
        verifier: randomPKCECodeVerifier(),
        until: clock.now() + FLOW_MS,
        organizationId: wanted.organizationId,
        returnTo: localPath(wanted.returnTo),
      }
      const url = buildAuthorizationUrl(configuration, {
        redirect_uri: redirectUri(),
        scope: SCOPE,
        state: flow.state,
        nonce: flow.nonce,
        code_challenge: await calculatePKCECodeChallenge(flow.verifier),
        code_challenge_method: 'S256',
      })
      return { url, kept: secrets.seal(JSON.stringify(flow)).toString('base64url') }
    },

    /** The way back: `query` is that of the callback, `kept` what the same browser was given to keep. */
    finish: async (
      query: string,
      kept: string | undefined,
      from: Origin,
    ): Promise<Outcome<Entered & { readonly returnTo: string }, Unwelcome>> => {
      const flow = openFlow(secrets, kept)
      if (flow === undefined || flow.until <= clock.now()) return no({ words: 'This sign-in was not begun here, or too long ago.' })
      let claims: Record<string, unknown>
      try {
        const tokens = await authorizationCodeGrant(await provider(), new URL(`${redirectUri()}${query}`), {
          pkceCodeVerifier: flow.verifier,
          expectedState: flow.state,
          expectedNonce: flow.nonce,
          idTokenExpected: true,
        })
        claims = { ...tokens.claims() }
      } catch (error) {
        // What an error of the library says may hold what the provider sent, so only its kind is kept.
        log.warn({ reason: error instanceof Error ? error.name : 'unknown', code: codeOf(error) }, 'a sign-in with the provider failed')
        return no({ words: 'The provider did not let you in, or could not be asked.' })
      }
      const { sub, email: given, email_verified: verified } = claims
      if (typeof sub !== 'string' || typeof given !== 'string' || verified !== true)
        return no({ words: 'The provider does not vouch for your address of e-mail.' })
      const email = given.toLowerCase()
      if (!isOurs(email)) return no({ words: 'Addresses of this domain do not sign in here.' })

      let users = await usersOf(sub, email, flow.organizationId)
      if (users.length === 0 && settings.join !== undefined && (flow.organizationId ?? settings.join) === settings.join) {
        const joined = await join(settings.join, email, from)
        if (!joined.ok && joined.refusal.type === 'quotas_exceeded')
          return no({ words: 'There are as many users as there may be. Ask whoever runs this installation.' })
        users = joined.ok ? [joined.value] : []
      }
      const [user] = users
      if (user === undefined) return no({ words: 'There is no user with your address. Ask for an invitation.' })
      if (users.length > 1)
        return no({
          words: 'You are in several organizations. Which do you mean?',
          organizations: users.map(({ organization_id: id, name }) => ({ id, name })),
        })

      const entered = await transaction(db, async (client) => {
        // Whoever else has become this user at the provider meanwhile was first.
        const { rowCount } = await client.query(
          `insert into oidc_identity (issuer, subject, principal_id) values ($1, $2, $3)
             on conflict (principal_id, issuer) do update set subject = excluded.subject where oidc_identity.subject = excluded.subject`,
          [settings.issuer, sub, user.id],
        )
        if (rowCount !== 1) return undefined
        await client.query('delete from invitation where principal_id = $1', [user.id])
        await client.query('update principal set activated = true where id = $1 and not activated', [user.id])
        return enter(client, sessions, { principalId: user.id, organizationId: user.organization_id }, 'openid', from)
      })
      if (entered === undefined) return no({ words: 'There is no user with your address. Ask for an invitation.' })
      return yes({ ...entered, returnTo: flow.returnTo })
    },
  }
}

const openFlow = (secrets: Secrets, kept: string | undefined): Flow | undefined => {
  if (kept === undefined) return undefined
  try {
    return JSON.parse(secrets.unseal(Buffer.from(kept, 'base64url'))) as Flow
  } catch {
    return undefined
  }
}

const codeOf = (error: unknown): string | undefined =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
