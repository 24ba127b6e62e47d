import { randomInt, randomUUID } from 'node:crypto'
import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type AccessKey, isUuid, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import type { Secrets } from '../kit/secrets.ts'
import { readInstallation } from './installation.ts'

/** A key as it may be shown: everything but the secret, which nobody has. */
export type Key = {
  readonly accessKey: AccessKey
  readonly organizationId: OrganizationId
  readonly principalId: PrincipalId
  readonly description: string
  readonly createdAt: Instant
  readonly expiresAt: Instant | null
}

/** What a new key's owner is told, once. */
export type NewKey = Key & { readonly secretKey: string }

const MAX_DESCRIPTION_CHARS = 200 // serverless-platform.md 5.5
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'
const ACCESS_KEY = /^SCW[A-Z0-9]{17}$/

export const isAccessKey = (text: string): text is AccessKey => ACCESS_KEY.test(text)

// 36^17 of them: that two are the same is a fault of the random source, and the primary key would say so.
const newAccessKey = (): AccessKey => `SCW${Array.from({ length: 17 }, () => LETTERS[randomInt(LETTERS.length)]).join('')}` as AccessKey

type Row = {
  access_key: AccessKey
  organization_id: OrganizationId
  principal_id: PrincipalId
  description: string
  created_at: Date
  expires_at: Date | null
}

const COLUMNS = 'access_key, organization_id, principal_id, description, created_at, expires_at'

const rowToKey = (row: Row): Key => ({
  accessKey: row.access_key,
  organizationId: row.organization_id,
  principalId: row.principal_id,
  description: row.description,
  createdAt: dateToInstant(row.created_at),
  expiresAt: row.expires_at === null ? null : dateToInstant(row.expires_at),
})

const keyToAudit = (key: Key) => ({
  principalId: key.principalId,
  description: key.description,
  expiresAt: key.expiresAt === null ? null : instantToDate(key.expiresAt).toISOString(),
})

export type KeyRequest = {
  readonly organizationId: OrganizationId
  readonly principalId: PrincipalId
  readonly description: string
  readonly expiresAt: Instant | null
  /** Who asks, for the audit. */
  readonly actor: By
  /** The organization's default project, unless told otherwise; it says nothing about what the key may (serverless-platform.md 5.5). */
  readonly defaultProjectId?: ProjectId
  /** A UUID in lower case that somebody else has chosen; a random one otherwise. */
  readonly secretKey?: string
}

/** Inside the caller's transaction; `createKey` is this one in a transaction of its own. */
export const insertKey = async (client: pg.ClientBase, secrets: Secrets, request: KeyRequest): Promise<NewKey> => {
  if (request.description.length > MAX_DESCRIPTION_CHARS)
    throw new Error(`A key's description has at most ${MAX_DESCRIPTION_CHARS} characters.`)
  const secretKey = request.secretKey ?? randomUUID()
  if (!isUuid(secretKey)) throw new Error('A secret key must be a UUID in lower case.')
  const { rows } = await client.query<Row>(
    `insert into api_key (access_key, secret_hash, organization_id, principal_id, description, default_project_id, expires_at, creation_ip)
     select $1, $2, $3::uuid, $4, $5, coalesce($8::uuid, $3::uuid), $6, $7
      where $6::timestamptz is null or $6::timestamptz > now()
     returning ${COLUMNS}`,
    [
      newAccessKey(),
      secrets.hashKey(secretKey),
      request.organizationId,
      request.principalId,
      request.description,
      request.expiresAt === null ? null : instantToDate(request.expiresAt),
      (typeof request.actor === 'string' ? '' : request.actor.ip) || null,
      request.defaultProjectId ?? null,
    ],
  )
  const [row] = rows
  if (row === undefined) throw new Error('A key cannot expire in the past.')
  const key = rowToKey(row)
  await recordChange(client, {
    organizationId: key.organizationId,
    actor: request.actor,
    action: 'created',
    resourceType: 'api_key',
    resourceId: key.accessKey,
    before: null,
    after: keyToAudit(key),
  })
  await client.query(`select note_change('iam')`)
  return { ...key, secretKey }
}

/** The answer is the only place where the secret ever stands. */
export const createKey = (db: Db, secrets: Secrets, request: KeyRequest): Promise<NewKey> =>
  transaction(db, async (client) => {
    if ((await readInstallation(client, secrets)) === undefined)
      throw new Error('Nothing is set up in this database yet: start Parvis once first.')
    return insertKey(client, secrets, request)
  })

/** All keys of an organization, the newest first; expired ones too. */
export const listKeys = async (db: Db, organizationId: OrganizationId): Promise<Key[]> => {
  const { rows } = await db.query<Row>(`select ${COLUMNS} from api_key where organization_id = $1 order by created_at desc, access_key`, [
    organizationId,
  ])
  return rows.map(rowToKey)
}

/** Deletes the key; false when there was none. Every process knows within a second. */
export const revokeKey = (db: Db, request: { organizationId: OrganizationId; accessKey: AccessKey; actor: By }): Promise<boolean> =>
  transaction(db, async (client) => {
    const { rows } = await client.query<Row>(`delete from api_key where organization_id = $1 and access_key = $2 returning ${COLUMNS}`, [
      request.organizationId,
      request.accessKey,
    ])
    const [row] = rows
    if (row === undefined) return false
    await recordChange(client, {
      organizationId: request.organizationId,
      actor: request.actor,
      action: 'deleted',
      resourceType: 'api_key',
      resourceId: request.accessKey,
      before: keyToAudit(rowToKey(row)),
      after: null,
    })
    await client.query(`select note_change('iam')`)
    return true
  })
