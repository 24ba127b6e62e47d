import { randomBytes } from 'node:crypto'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Secrets } from '../kit/secrets.ts'
import type { SourceType } from './data-source.ts'

/** What a token opens (control-plane.md 8.2). */
export const TOKEN_SCOPES = [
  'read_only_metrics',
  'write_only_metrics',
  'full_access_metrics_rules',
  'read_only_logs',
  'write_only_logs',
  'full_access_logs_rules',
  'full_access_alert_manager',
  'read_only_traces',
  'write_only_traces',
] as const
export type TokenScope = (typeof TOKEN_SCOPES)[number]

/** 384 random bits in 64 characters, the length of the recorded ones. A quick hash is enough for them (kit/secrets.ts). */
const SECRET_BYTES = 48
const SECRET = /^[A-Za-z0-9_-]{64}$/

export const newSecret = (): string => randomBytes(SECRET_BYTES).toString('base64url')

// RFC 9110 §11.1: the name of the scheme is the same in any case.
const BEARER = /^bearer +(\S+) *$/i

/** A data source that somebody was let into, and by which token. */
export type Entry = {
  readonly tokenId: string
  readonly dataSourceId: string
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId
}

const denied = (reason: 'invalid_argument' | 'not_found'): Outcome<never, Denial> =>
  no({ type: 'denied_authentication', method: 'unknown_method', reason })

/**
 * The door of a data source: who comes with a token of its project and region, and with the scope for what they want, may in. A token
 * is looked up by its hash, so the time that takes tells nothing. A source of another project, region or type, or of an
 * organization that is suspended or closed, is answered like one that does not exist.
 */
export const authenticateToken = async (
  { db, secrets }: { readonly db: Db; readonly secrets: Secrets },
  asked: {
    readonly authorization: string | undefined
    readonly dataSourceId: string
    readonly type: SourceType
    readonly action: 'read' | 'write'
  },
): Promise<Outcome<Entry, Denial>> => {
  const secret = BEARER.exec(asked.authorization ?? '')?.[1]
  if (secret === undefined || !SECRET.test(secret)) return denied('invalid_argument')
  const { rows: tokens } = await db.query<{ id: string; project_id: ProjectId; region: string; scopes: TokenScope[] }>({
    name: 'cockpit-token',
    text: 'select id, project_id, region, scopes from cockpit_token where secret_hash = $1',
    values: [secrets.hashKey(secret)],
  })
  const [token] = tokens
  if (token === undefined) return denied('not_found')
  const { rows: sources } = await db.query<{ id: string; organization_id: OrganizationId }>({
    name: 'cockpit-token-source',
    text: `
      select data_source.id, organization_id from data_source join project on project.id = project_id
        join organization on organization.id = organization_id and organization.state = 'active'
       where data_source.id = $1 and project_id = $2 and region = $3 and type = $4`,
    values: [asked.dataSourceId, token.project_id, token.region, asked.type],
  })
  const [source] = sources
  if (source === undefined) return no(notFound('data source', asked.dataSourceId))
  if (!token.scopes.includes(`${asked.action}_only_${asked.type}`)) return no(forbidden({ resource: 'cockpit', action: asked.action }))
  return yes({ tokenId: token.id, dataSourceId: source.id, organizationId: source.organization_id, projectId: token.project_id })
}
