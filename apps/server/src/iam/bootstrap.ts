import { recordChange } from '../audit/record.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type AccessKey, newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Secrets } from '../kit/secrets.ts'
import { readInstallation } from './installation.ts'
import { insertKey } from './keys.ts'
import { furnish } from './organizations.ts'

export type Bootstrapped = {
  readonly organizationId: OrganizationId
  /** The owner's first key when this call made it; `given` when its secret came from the settings and need not be shown. */
  readonly created: { readonly accessKey: AccessKey; readonly secretKey: string; readonly given: boolean } | null
}

// The first eight bytes of sha256('parvis bootstrap'). Two processes may start on an empty database at once: one of them does it.
const LOCK = '3256297891918086788'
const ACTOR = 'first start'

/**
 * What the first start makes: an organization, its default project with the same id, its owner and the owner's first key.
 * Later it makes nothing. A given secret key counts at the first start only: to add it later without being asked would
 * turn whoever can set a variable into an owner, and bring back a key that was revoked.
 */
export const bootstrap = (
  db: Db,
  secrets: Secrets,
  clock: Clock,
  options: { readonly secretKey?: string | undefined; readonly log?: Logger | undefined } = {},
): Promise<Bootstrapped> =>
  transaction(db, async (client) => {
    const secretKey = options.secretKey?.toLowerCase()
    await client.query(`select pg_advisory_xact_lock(${LOCK})`)
    const installation = await readInstallation(client, secrets)
    if (installation !== undefined) {
      if (secretKey !== undefined) {
        const { rowCount } = await client.query('select 1 from api_key where secret_hash = $1', [secrets.hashKey(secretKey)])
        if (rowCount === 0) {
          options.log?.warn(
            'PARVIS_BOOTSTRAP_SECRET_KEY is not a key of this database and is not made one: it counts at the first start only. Use `parvis keys create`.',
          )
        }
      }
      return { organizationId: installation.organizationId, created: null }
    }

    const now = clock.now()
    const organizationId: OrganizationId = newId(now)
    const ownerId: PrincipalId = newId(now)
    await client.query(`insert into organization (id, name) values ($1, 'default')`, [organizationId])
    await furnish(client, organizationId, { ownerId, username: 'owner', email: undefined })
    await client.query('insert into installation (id, master_key_fingerprint, organization_id, owner_id) values ($1, $2, $3, $4)', [
      newId(now),
      secrets.fingerprint,
      organizationId,
      ownerId,
    ])
    await recordChange(client, {
      organizationId,
      actor: ACTOR,
      action: 'created',
      resourceType: 'organization',
      resourceId: organizationId,
      before: null,
      after: { name: 'default', ownerId },
    })
    const key = await insertKey(client, secrets, {
      organizationId,
      principalId: ownerId,
      description: 'first key',
      expiresAt: null,
      actor: ACTOR,
      ...(secretKey !== undefined && { secretKey }),
    })
    return { organizationId, created: { accessKey: key.accessKey, secretKey: key.secretKey, given: secretKey !== undefined } }
  })
