import type { Denial } from '../kit/denial.ts'
import { isUuid, type ProjectId } from '../kit/ids.ts'
import { type Guard, originOf } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { secretOf } from './authenticate.ts'
import type { Iam } from './iam.ts'
import { permits, permitsAnywhere } from './rights.ts'

const first = (header: string | string[] | undefined): string | undefined => (Array.isArray(header) ? header[0] : header)

/**
 * Who is calling the management API, and what they may: `X-Auth-Token: <secret key>`, or the same as a bearer
 * (control-plane.md 2.1). A project that is not the caller's organization's is one in which nothing may be done.
 */
export const openGuard = (iam: Pick<Iam, 'keyOf' | 'knownProjects' | 'operatorId' | 'clock' | 'failures'>): Guard => {
  const denied = (ip: string, reason: 'invalid_argument' | 'not_found'): Outcome<never, Denial> => {
    const retryAfterMs = iam.failures.count(ip)
    return no(
      retryAfterMs > 0
        ? { type: 'too_many_requests', help_message: 'Too many wrong keys came from this address.', retryAfterMs }
        : { type: 'denied_authentication', method: 'api_key', reason },
    )
  }

  return async (headers, address) => {
    const origin = originOf(headers, address)
    const { ip } = origin
    const token = first(headers['x-auth-token'])?.toLowerCase()
    const authorization = first(headers.authorization)
    // Not even a key: nobody can guess one by sending none.
    if (!token && !authorization) return no({ type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' })
    const secretKey = token === undefined ? secretOf(authorization ?? '') : token
    if (secretKey === undefined || !isUuid(secretKey)) return denied(ip, 'invalid_argument')
    const key = iam.keyOf(secretKey)
    if (key === undefined) return denied(ip, 'not_found')
    const now = iam.clock.now()
    // Known, so not guessed.
    if (key.expiresAt <= now) return no({ type: 'denied_authentication', method: 'api_key', reason: 'expired' })

    const { organizationId, principalId, accessKey, kind, rights } = key
    const isOurs = (projectId: ProjectId): boolean => iam.knownProjects().get(projectId) === organizationId
    return yes({
      actor: { organizationId, principalId, name: principalId, kind, accessKey, owner: rights === 'everything', ...origin },
      may: ({ resource, action, scope }, projectId) =>
        scope === 'anywhere'
          ? permitsAnywhere(rights, `${resource}:${action}`, origin, now)
          : (scope !== 'installation' || organizationId === iam.operatorId) &&
            (projectId === undefined || isOurs(projectId)) &&
            permits(rights, `${resource}:${action}`, projectId, origin, now),
    })
  }
}
