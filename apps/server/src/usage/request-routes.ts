import { z } from 'zod'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { forbidden, invalid } from '../kit/denial.ts'
import { isUuid, type ProjectId } from '../kit/ids.ts'
import { listOf, type Manage, type Needs, queryFlag } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { KINDS } from './kinds.ts'
import { type LedgerRow, listRequests, type Place } from './requests.ts'
import { monthOf } from './view.ts'

const MAX_PAGE_SIZE = 1_000
const PAGE_SIZE = 100

const sayInstant = (instant: Instant): string => instantToDate(instant).toISOString()
const instant = z
  .union([z.iso.date(), z.iso.datetime({ offset: true })], { error: 'a date like 2027-01-31 or 2027-01-31T12:00:00Z' })
  .transform((text) => Date.parse(text) as Instant)

const placeToToken = ({ acceptedAt, id }: Place): string => Buffer.from(`${acceptedAt}.${id}`).toString('base64url')
const tokenToPlace = (token: string): Place | undefined => {
  const [, at, id = ''] = /^(\d{1,15})\.(.*)$/.exec(Buffer.from(token, 'base64url').toString()) ?? []
  return at !== undefined && isUuid(id) ? { acceptedAt: Number(at) as Instant, id } : undefined
}

const RequestJson = z.object({
  id: z.uuid(),
  project_id: z.uuid(),
  principal_id: z.uuid(),
  access_key: z.string(),
  model_asked: z.string(),
  model: z.string(),
  price_id: z.uuid(),
  pool_id: z.uuid().nullable(),
  replica: z.string(),
  gateway: z.string(),
  endpoint: z.string(),
  mode: z.string(),
  status: z.int(),
  ended: z.string(),
  counted: z.string(),
  charged: z.boolean(),
  accepted_at: z.iso.datetime(),
  first_byte_at: z.iso.datetime().nullable(),
  ended_at: z.iso.datetime(),
  units: z.object(Object.fromEntries(KINDS.map((kind) => [kind, z.int()])) as Record<(typeof KINDS)[number], z.ZodInt>),
})

/** As it is shown: no word of what was said is in it, since none is in the ledger. */
export const requestToJson = ({ acceptedAt, firstByteAt, endedAt, units, ...row }: LedgerRow): z.infer<typeof RequestJson> => ({
  ...row,
  accepted_at: sayInstant(acceptedAt),
  first_byte_at: firstByteAt === null ? null : sayInstant(firstByteAt),
  ended_at: sayInstant(endedAt),
  units: {
    input_tokens: Number(units.input_tokens),
    cached_input_tokens: Number(units.cached_input_tokens),
    output_tokens: Number(units.output_tokens),
    audio_milliseconds: Number(units.audio_milliseconds),
    pages: Number(units.pages),
  },
})

const READ = { resource: 'usage', action: 'read', scope: 'project' } as const satisfies Needs

/** The requests behind any sum of usage, and so behind any line of a bill (product.md 4.1). */
export const requestRoutes = (manage: Manage, room: { db: Db; clock: Clock }): void =>
  manage({
    method: 'GET',
    path: '/parvis/v1/usage-requests',
    summary: 'List the requests that a sum of usage, or a line of a bill, is made of: newest first.',
    needs: READ,
    query: z.strictObject({
      from: instant.optional(),
      to: instant.optional(),
      project_id: listOf(z.uuid()),
      principal_id: listOf(z.uuid()),
      access_key: listOf(z.string().max(64)),
      model: listOf(z.string().max(256)),
      mode: listOf(z.enum(['realtime', 'batch'])),
      price_id: listOf(z.uuid()),
      kind: z.enum(KINDS).optional(),
      charged: queryFlag.optional(),
      page_size: z.coerce.number().int().min(1).max(MAX_PAGE_SIZE).default(PAGE_SIZE),
      page_token: z.string().max(128).optional(),
    }),
    answer: z.object({ requests: z.array(RequestJson), next_page_token: z.string().nullable() }),
    handle: async ({ query, actor, may }) => {
      const projectIds = query.project_id as ProjectId[]
      const allowed = projectIds.length === 0 ? may({ ...READ, scope: 'organization' }) : projectIds.every((id) => may(READ, id))
      if (!allowed) return no(forbidden(READ))
      const now = room.clock.now()
      const [from, to] = [query.from ?? monthOf(now), query.to ?? now]
      if (from >= to) return no(invalid('to', 'constraint', 'must be after `from`'))
      const behind = query.page_token === undefined ? undefined : tokenToPlace(query.page_token)
      if (query.page_token !== undefined && behind === undefined)
        return no(invalid('page_token', 'format', 'the `next_page_token` of an answer is wanted'))
      const rows = await listRequests(room.db, {
        organizationId: actor.organizationId,
        from,
        to,
        projectIds,
        only: {
          principal_id: query.principal_id,
          access_key: query.access_key,
          model: query.model,
          mode: query.mode,
          price_id: query.price_id,
        },
        kind: query.kind,
        charged: query.charged,
        behind,
        // One more than is shown: whether there is a next page.
        limit: query.page_size + 1,
      })
      const shown = rows.slice(0, query.page_size)
      const last = shown.at(-1)
      return yes({
        requests: shown.map(requestToJson),
        next_page_token: rows.length > shown.length && last !== undefined ? placeToToken(last) : null,
      })
    },
  })
