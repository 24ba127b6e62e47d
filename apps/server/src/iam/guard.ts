import type { Denial } from '../kit/denial.ts'
import { isUuid, type ProjectId } from '../kit/ids.ts'
import { type Actor, type Guard, type May, type Origin, originOf } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { secretOf } from './authenticate.ts'
import type { Condition } from './condition.ts'
import { type Cookies, FOREIGN } from './cookies.ts'
import type { Iam } from './iam.ts'
import { permitsOnCondition, permitsPlainly, type Rights } from './rights.ts'
import type { Sessions } from './sessions.ts'

const first = (header: string | string[] | undefined): string | undefined => (Array.isArray(header) ? header[0] : header)

const WITHOUT_KEY: Denial = {
  type: 'denied_authentication',
  method: 'api_key',
  reason: 'invalid_argument',
  help_message: 'Send the secret key as X-Auth-Token.',
}

const SLOW_CONDITIONS =
  'The conditions in the policies of this organization take too much time: send fewer requests, or have them shortened.'

type Known = Pick<Iam, 'keyOf' | 'knownProjects' | 'operatorId' | 'rightsOf' | 'clock' | 'failures' | 'conditionTime'>

/**
 * Who is calling the management API, and what they may: `X-Auth-Token: <secret key>`, the same as a bearer, or
 * `X-Session-Token: <JWT>` of somebody who has signed in (control-plane.md 2.1); a browser has that in a cookie, which counts only for
 * what its own pages ask. A project that is not the caller's organization's is one in which nothing may be done.
 */
export const openGuard = (iam: Known, people: { sessions: Pick<Sessions, 'read'>; cookies: Cookies }): Guard => {
  const denied = (ip: string, method: 'api_key' | 'jwt', reason: 'invalid_argument' | 'not_found'): Outcome<never, Denial> => {
    const retryAfterMs = iam.failures.count(ip)
    return no(
      retryAfterMs > 0
        ? { type: 'too_many_requests', help_message: 'Too many wrong keys came from this address.', retryAfterMs }
        : { type: 'denied_authentication', method, reason },
    )
  }

  const known = (
    who: Pick<Actor, 'organizationId' | 'principalId' | 'kind' | 'accessKey' | 'sessionId'>,
    rights: Rights,
    origin: Origin,
  ): Outcome<{ actor: Actor; may: May }, Denial> => {
    const { organizationId } = who
    const now = iam.clock.now()
    const isOurs = (projectId: ProjectId): boolean => iam.knownProjects().get(projectId) === organizationId
    // Refused here and not at the question: nobody's rights shall look smaller than they are because of the time that they take.
    const waitMs =
      rights !== 'everything' && rights.some(({ condition }) => condition !== undefined) ? iam.conditionTime.waitMs(organizationId) : 0
    if (waitMs > 0) return no({ type: 'too_many_requests', help_message: SLOW_CONDITIONS, retryAfterMs: waitMs })
    // A route may ask for each of hundreds of projects; a condition says the same of all of them.
    const said = new Map<Condition, boolean>()
    const may: May = ({ resource, action, scope }, projectId) => {
      if (scope === 'installation' && organizationId !== iam.operatorId) return false
      if (scope !== 'anywhere' && projectId !== undefined && !isOurs(projectId)) return false
      const where = scope === 'anywhere' ? scope : projectId
      const plainly = permitsPlainly(rights, `${resource}:${action}`, where)
      if (plainly !== 'depends') return plainly
      const began = performance.now()
      const holds = permitsOnCondition(rights, `${resource}:${action}`, where, origin, now, said)
      iam.conditionTime.spend(organizationId, performance.now() - began)
      return holds
    }
    return yes({ actor: { ...who, name: who.principalId, owner: rights === 'everything', ...origin }, may })
  }

  return async (headers, address, method) => {
    const origin = originOf(headers, address)
    const { ip } = origin
    const token = first(headers['x-auth-token'])?.toLowerCase()
    const authorization = first(headers.authorization)
    const given = first(headers['x-session-token'])
    const cookie = !token && !authorization && !given ? people.cookies.session(headers) : undefined
    if (cookie !== undefined && !people.cookies.mayUse(headers, method)) return no(FOREIGN)
    const jwt = token ? undefined : given || cookie
    if (jwt) {
      const session = await people.sessions.read(jwt)
      if (session === 'bad') return denied(ip, 'jwt', 'invalid_argument')
      // Known, so not guessed.
      if (session === 'ended') return no({ type: 'denied_authentication', method: 'jwt', reason: 'invalid_argument' })
      if (session === 'expired') return no({ type: 'denied_authentication', method: 'jwt', reason: 'expired' })
      return known({ ...session, kind: 'user' }, iam.rightsOf(session.principalId), origin)
    }
    // Not even a key: nobody can guess one by sending none.
    if (!token && !authorization) return no(WITHOUT_KEY)
    const secretKey = token === undefined ? secretOf(authorization ?? '') : token
    if (secretKey === undefined || !isUuid(secretKey)) return denied(ip, 'api_key', 'invalid_argument')
    const key = iam.keyOf(secretKey)
    if (key === undefined) return denied(ip, 'api_key', 'not_found')
    if (key.expiresAt <= iam.clock.now()) return no({ type: 'denied_authentication', method: 'api_key', reason: 'expired' })
    const { organizationId, principalId, accessKey, kind, rights } = key
    return known({ organizationId, principalId, accessKey, kind }, rights, origin)
  }
}
