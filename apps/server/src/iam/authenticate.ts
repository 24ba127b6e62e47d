import type { Clock } from '../kit/clock.ts'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import type { Origin } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Caller } from './caller.ts'
import type { ConditionTime } from './condition-time.ts'
import type { Failures } from './failures.ts'
import { permitsOnCondition, permitsPlainly, type Rights } from './rights.ts'

/** What a request is judged by: all keys by the hash of their secret, and whose each project is. */
export type Known = {
  readonly keys: ReadonlyMap<string, KnownKey>
  readonly projects: ReadonlyMap<ProjectId, OrganizationId>
}

export type KnownKey = {
  readonly accessKey: AccessKey
  readonly organizationId: OrganizationId
  readonly principalId: PrincipalId
  readonly kind: 'user' | 'application'
  /** Shared by all keys of a principal. */
  readonly rights: Rights
  /** Milliseconds since 1970; infinite where the key does not expire. */
  readonly expiresAt: number
}

/** How a hash is written as a key of the map: one character per byte, as `hashKeyToText` has it. */
export const hashToText = (hash: Buffer): string => hash.toString('latin1')

/**
 * Who is asking to use a model, from the `Authorization` header and the project of the URL (undefined on the short form).
 * Where it comes from is looked at only for a rule with a condition, and for a key that is refused.
 */
export type Authenticate = (authorization: string | undefined, projectId: ProjectId | undefined, origin?: Origin) => Outcome<Caller>

// RFC 9110 §11.1: the name of the scheme is the same in any case.
const BEARER = /^bearer +[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12} *$/i
const UUID_LENGTH = 36
const RIGHT = 'serverless:use'

/** The secret key in the header, in lower case, if it has the form of one. */
export const secretOf = (authorization: string): string | undefined =>
  BEARER.test(authorization) ? authorization.trimEnd().slice(-UUID_LENGTH).toLowerCase() : undefined

/**
 * Statuses are those of data-plane.md 2.2: no header is 401, anything else that does not fit is 403, and says no more than that.
 * An address that has sent too many unknown keys is told to wait instead; a good key is never held back by its neighbours. So is an
 * organization whose conditions take too much time, where nothing but a condition could let the key in.
 *
 * A look into a map does not take the same time for every key, and need not: what is looked up is an HMAC under a key that
 * only we have, so nobody can choose one that shares its beginning with a real one.
 */
export const authenticator = (
  known: () => Known,
  secrets: Secrets,
  clock: Clock,
  failures: Failures,
  conditionTime: ConditionTime,
): Authenticate => {
  const refuse = (origin: Origin | undefined): Outcome<never> => {
    const waitMs = origin === undefined ? 0 : failures.count(origin.ip)
    return no(waitMs > 0 ? { code: 'key_guessed', retryAfterMs: waitMs } : { code: 'key_refused' })
  }
  return (authorization, projectId, origin) => {
    if (authorization === undefined || authorization === '') return no({ code: 'key_missing' })
    const secretKey = secretOf(authorization)
    if (secretKey === undefined) return refuse(origin)
    const { keys, projects } = known()
    const key = keys.get(secrets.hashKeyToText(secretKey))
    const now = clock.now()
    if (key === undefined) return refuse(origin)
    if (key.expiresAt <= now) return no({ code: 'key_refused' })
    // Without one it is the organization's default project, whose id is the organization's (serverless-platform.md 5.3).
    const project = projectId ?? (key.organizationId as string as ProjectId)
    if (projectId !== undefined && projects.get(projectId) !== key.organizationId) return no({ code: 'key_refused' })
    const plainly = permitsPlainly(key.rights, RIGHT, project)
    if (plainly === false || (plainly === 'depends' && origin === undefined)) return no({ code: 'key_refused' })
    if (plainly === 'depends' && origin !== undefined) {
      const retryAfterMs = conditionTime.waitMs(key.organizationId)
      if (retryAfterMs > 0) return no({ code: 'conditions_slow', retryAfterMs })
      const began = performance.now()
      const holds = permitsOnCondition(key.rights, RIGHT, project, origin, now)
      conditionTime.spend(key.organizationId, performance.now() - began)
      if (!holds) return no({ code: 'key_refused' })
    }
    return yes({ organizationId: key.organizationId, projectId: project, principalId: key.principalId, accessKey: key.accessKey })
  }
}
