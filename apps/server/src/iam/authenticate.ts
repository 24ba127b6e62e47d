import type { Clock } from '../kit/clock.ts'
import { type AccessKey, isUuid, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { Caller } from './caller.ts'

/** What a request is judged by: all keys by the hash of their secret, and whose each project is. */
export type Known = {
  readonly keys: ReadonlyMap<string, KnownKey>
  readonly projects: ReadonlyMap<ProjectId, OrganizationId>
}

export type KnownKey = {
  readonly accessKey: AccessKey
  readonly organizationId: OrganizationId
  readonly principalId: PrincipalId
  /** Milliseconds since 1970; infinite where the key does not expire. */
  readonly expiresAt: number
}

/** How a hash is written as a key of the map: one character per byte. */
export const hashToText = (hash: Buffer): string => hash.toString('latin1')

/** Who is asking, from the `Authorization` header and the project of the URL (undefined on the short form). */
export type Authenticate = (authorization: string | undefined, projectId: ProjectId | undefined) => Outcome<Caller>

// RFC 9110 §11.1: the name of the scheme is the same in any case.
const BEARER = /^bearer +([0-9a-f-]{36}) *$/i

/**
 * Statuses are those of data-plane.md 2.2: no header is 401, anything else that does not fit is 403, and says no more than that.
 *
 * A look into a map does not take the same time for every key, and need not: what is looked up is an HMAC under a key that
 * only we have, so nobody can choose one that shares its beginning with a real one.
 */
export const authenticator =
  (known: () => Known, secrets: Secrets, clock: Clock): Authenticate =>
  (authorization, projectId) => {
    if (authorization === undefined || authorization === '') return no({ code: 'key_missing' })
    const secretKey = BEARER.exec(authorization)?.[1]?.toLowerCase()
    if (secretKey === undefined || !isUuid(secretKey)) return no({ code: 'key_refused' })
    const { keys, projects } = known()
    const key = keys.get(hashToText(secrets.hashKey(secretKey)))
    if (key === undefined || key.expiresAt <= clock.now()) return no({ code: 'key_refused' })
    if (projectId !== undefined && projects.get(projectId) !== key.organizationId) return no({ code: 'key_refused' })
    return yes({
      organizationId: key.organizationId,
      // Without one it is the organization's default project, whose id is the organization's (serverless-platform.md 5.3).
      projectId: projectId ?? (key.organizationId as string as ProjectId),
      principalId: key.principalId,
      accessKey: key.accessKey,
    })
  }
