import { createHash, randomBytes } from 'node:crypto'
import { type By, recordChange } from '../audit/record.ts'
import { type Clock, dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Id, newId, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

export type ShareId = Id<'usage_share'>

/** Leave for somebody outside to see what one project uses, until a date. */
export type Share = {
  readonly id: ShareId
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId
  readonly description: string
  readonly showsFrom: Instant
  readonly expiresAt: Instant
  readonly createdAt: Instant
}

const MAX_SHARES_PER_PROJECT = 100
const TOKEN = /^[\w-]{43}$/
const TOKEN_BYTES = 32

type ShareRow = {
  id: ShareId
  organization_id: OrganizationId
  project_id: ProjectId
  description: string
  shows_from: Date
  expires_at: Date
  created_at: Date
}

const COLUMNS = 'id, organization_id, project_id, description, shows_from, expires_at, created_at'

const toShare = (row: ShareRow): Share => ({
  id: row.id,
  organizationId: row.organization_id,
  projectId: row.project_id,
  description: row.description,
  showsFrom: dateToInstant(row.shows_from),
  expiresAt: dateToInstant(row.expires_at),
  createdAt: dateToInstant(row.created_at),
})

// The token has all its chance from us, so one hash is as good as many.
const hashOf = (token: string): Buffer => createHash('sha256').update(token).digest()

export type ShareRequest = {
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId
  readonly description: string
  readonly showsFrom: Instant
  readonly expiresAt: Instant
  readonly principalId: PrincipalId
  readonly actor: By
}

/** The token is in the answer and nowhere else. */
export const createShare = (
  db: Db,
  clock: Clock,
  request: ShareRequest,
): Promise<Outcome<{ share: Share; token: string }, { reason: 'too_many'; limit: number; current: number }>> =>
  transaction(db, async (client) => {
    const token = randomBytes(TOKEN_BYTES).toString('base64url')
    // Two at once count one after the other.
    await client.query('select pg_advisory_xact_lock(hashtextextended($1, 0))', [`usage_share ${request.projectId}`])
    const { rows: counted } = await client.query<{ count: bigint }>('select count(*) as count from usage_share where project_id = $1', [
      request.projectId,
    ])
    const current = Number(counted[0]?.count ?? 0)
    if (current >= MAX_SHARES_PER_PROJECT) return no({ reason: 'too_many' as const, limit: MAX_SHARES_PER_PROJECT, current })
    const now = clock.now()
    const { rows } = await client.query<ShareRow>(
      `insert into usage_share (id, organization_id, project_id, token_hash, description, shows_from, expires_at, created_at, created_by)
       values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning ${COLUMNS}`,
      [
        newId(now),
        request.organizationId,
        request.projectId,
        hashOf(token),
        request.description,
        instantToDate(request.showsFrom),
        instantToDate(request.expiresAt),
        instantToDate(now),
        request.principalId,
      ],
    )
    const [row] = rows
    if (row === undefined) throw new Error('a share was not written')
    const share = toShare(row)
    const { organizationId, actor } = request
    const entry = { organizationId, actor, action: 'created', resourceType: 'usage_share', resourceId: share.id } as const
    await recordChange(client, { ...entry, before: null, after: share })
    return yes({ share, token })
  })

/** The newest first. */
export const listShares = async (db: Db, organizationId: OrganizationId, projectId: ProjectId | undefined): Promise<Share[]> => {
  const { rows } = await db.query<ShareRow>(
    `select ${COLUMNS} from usage_share
      where organization_id = $1 and ($2::uuid is null or project_id = $2) order by created_at desc, id desc limit 1000`,
    [organizationId, projectId ?? null],
  )
  return rows.map(toShare)
}

export const findShare = async (db: Db, organizationId: OrganizationId, id: string): Promise<Share | undefined> => {
  const { rows } = await db.query<ShareRow>(`select ${COLUMNS} from usage_share where organization_id = $1 and id = $2`, [
    organizationId,
    id,
  ])
  return rows[0] && toShare(rows[0])
}

/** From the next question on the token is worth nothing. */
export const revokeShare = (db: Db, share: Share, actor: By): Promise<boolean> =>
  transaction(db, async (client) => {
    const { rowCount } = await client.query('delete from usage_share where id = $1', [share.id])
    if (rowCount !== 1) return false
    const { organizationId } = share
    const entry = { organizationId, actor, action: 'deleted', resourceType: 'usage_share', resourceId: share.id } as const
    await recordChange(client, { ...entry, before: share, after: null })
    return true
  })

/** Asked every time, so that a revoked token is worth nothing at once. */
export const openShare = async (
  db: Db,
  clock: Clock,
  token: string,
): Promise<Outcome<Share, 'unknown' | { expiredSince: Instant; id: ShareId }>> => {
  if (!TOKEN.test(token)) return no('unknown')
  // What an organization that is suspended or closed has handed out opens nothing, like its keys.
  const { rows } = await db.query<ShareRow>(
    `select ${COLUMNS} from usage_share
      where token_hash = $1 and exists (select 1 from organization where organization.id = organization_id and state = 'active')`,
    [hashOf(token)],
  )
  if (rows[0] === undefined) return no('unknown')
  const share = toShare(rows[0])
  return share.expiresAt > clock.now() ? yes(share) : no({ expiredSince: share.expiresAt, id: share.id })
}
