import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { type Manage, pageQuery } from '../kit/management.ts'
import { yes } from '../kit/outcome.ts'

type Row = {
  id: string
  at: Date
  organization_id: string | null
  actor: string
  ip: string | null
  user_agent: string | null
  action: 'created' | 'updated' | 'deleted'
  resource_type: string
  resource_id: string
  before: unknown
  after: unknown
}

const SELECT =
  'select id, at, organization_id, actor, host(ip) as ip, user_agent, action, resource_type, resource_id, before, after from audit_entry'

const Entry = z.object({
  id: z.uuid(),
  at: z.iso.datetime(),
  /** Null for what belongs to the installation as a whole. */
  organization_id: z.uuid().nullable(),
  actor: z.string(),
  ip: z.string().nullable(),
  user_agent: z.string().nullable(),
  action: z.enum(['created', 'updated', 'deleted']),
  resource_type: z.string(),
  resource_id: z.string(),
  before: z.unknown(),
  after: z.unknown(),
})

const READS = { resource: 'installation', action: 'read', scope: 'installation' } as const

const When = z.iso.datetime({ offset: true }).transform((text) => new Date(text))

/** The whole audit, for the operator. What belongs to one organization its own people read at `/iam/v1alpha1/logs`. */
export const auditRoutes = (manage: Manage, { db }: { readonly db: Db }): void => {
  manage({
    method: 'GET',
    path: '/parvis/v1/audit',
    summary: 'List what was changed in the installation and in its organizations: by whom, from where, from what to what.',
    needs: READS,
    query: pageQuery({ max: 1_000, fallback: 50, orders: ['at_desc', 'at_asc'], clamp: true })
      .extend({
        organization_id: z.uuid().toLowerCase().optional(),
        actor: z.string().max(128).optional(),
        resource_type: z.string().max(64).optional(),
        resource_id: z.string().max(512).optional(),
        after: When.optional(),
        before: When.optional(),
      })
      .strict(),
    answer: z.object({ entries: z.array(Entry), total_count: z.int() }),
    handle: async ({ query }) => {
      const { rows, total } = await readPage<Row>(
        db,
        `${SELECT} where ($1::uuid is null or organization_id = $1) and ($2::text is null or actor = $2)
           and ($3::text is null or resource_type = $3) and ($4::text is null or resource_id = $4)
           and ($5::timestamptz is null or at >= $5) and ($6::timestamptz is null or at < $6)`,
        [
          query.organization_id ?? null,
          query.actor ?? null,
          query.resource_type ?? null,
          query.resource_id ?? null,
          query.after ?? null,
          query.before ?? null,
        ],
        query,
        orderOf(query.order_by, { at: 'at' }, 'id'),
      )
      return yes({ entries: rows.map((row) => ({ ...row, at: row.at.toISOString() })), total_count: total })
    },
  })
}
