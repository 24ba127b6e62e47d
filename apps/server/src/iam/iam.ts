import type pg from 'pg'
import type { Changes } from '../kit/changes.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Secrets } from '../kit/secrets.ts'
import { type Authenticate, authenticator, hashToText, type Known, type KnownKey } from './authenticate.ts'
import { readInstallation } from './installation.ts'

// Between two pieces of the table the event loop serves requests: a piece costs about a millisecond of it, 100,000 keys half a second in all.
const PIECE_ROWS = 250

type KeyRow = {
  access_key: AccessKey
  secret_hash: Buffer
  organization_id: OrganizationId
  principal_id: PrincipalId
  expires_at: Date | null
}
type ProjectRow = { id: ProjectId; organization_id: OrganizationId }

/** Hands on a result piece by piece; a cursor sees the table as it was when it was opened. */
const eachRow = async <Row extends pg.QueryResultRow>(client: pg.ClientBase, sql: string, take: (row: Row) => void): Promise<void> => {
  await client.query(`declare known no scroll cursor for ${sql}`)
  for (;;) {
    const { rows } = await client.query<Row>(`fetch ${PIECE_ROWS} from known`)
    for (const row of rows) take(row)
    if (rows.length < PIECE_ROWS) break
  }
  await client.query('close known')
}

/** All keys and projects as of one moment. Expired keys stay out; those that expire later are judged by the clock. */
const readKnown = (db: Db): Promise<Known> =>
  transaction(db, async (client) => {
    await client.query('set transaction isolation level repeatable read, read only')
    const keys = new Map<string, KnownKey>()
    await eachRow<KeyRow>(
      client,
      'select access_key, secret_hash, organization_id, principal_id, expires_at from api_key where expires_at is null or expires_at > now()',
      (row) =>
        keys.set(hashToText(row.secret_hash), {
          accessKey: row.access_key,
          organizationId: row.organization_id,
          principalId: row.principal_id,
          expiresAt: row.expires_at?.getTime() ?? Number.POSITIVE_INFINITY,
        }),
    )
    const projects = new Map<ProjectId, OrganizationId>()
    await eachRow<ProjectRow>(client, 'select id, organization_id from project', (row) => projects.set(row.id, row.organization_id))
    return { keys, projects }
  })

/**
 * Knows all keys in memory and follows the database. While the database is away, the keys that are known go on; one that
 * is revoked is gone everywhere within a second of its transaction.
 */
export const openIam = async (options: {
  db: Db
  changes: Changes
  secrets: Secrets
  clock: Clock
  log: Logger
}): Promise<{ authenticate: Authenticate }> => {
  const { db, secrets, clock, log } = options
  if ((await readInstallation(db, secrets)) === undefined) throw new Error('The database is not set up: bootstrap comes before iam.')
  let known: Known = { keys: new Map(), projects: new Map() }
  await options.changes.watch('iam', async () => {
    known = await readKnown(db)
    log.debug({ keys: known.keys.size, projects: known.projects.size }, 'read the keys')
  })
  return { authenticate: authenticator(() => known, secrets, clock) }
}
