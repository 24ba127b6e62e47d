import { z } from 'zod'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, invalid, notFound } from '../kit/denial.ts'
import type { ProjectId } from '../kit/ids.ts'
import { listOf, type Manage, type Needs } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { KINDS } from './kinds.ts'
import { requestRoutes } from './request-routes.ts'
import { createShare, findShare, listShares, openShare, revokeShare, type Share } from './shares.ts'
import { DIMENSIONS, MAX_VIEW_ROWS, monthOf, STEPS, type Step, type View, viewUsage } from './view.ts'

const DAY_MS = 86_400_000
/** A month of minutes, a decade of hours: what is beyond is a mistake, or a question for a coarser step. */
const MAX_STEPS: Readonly<Record<Step, number>> = {
  none: Number.POSITIVE_INFINITY,
  minute: 44_640,
  hour: 87_840,
  day: 36_600,
  month: 1_200,
}
const STEP_MS: Readonly<Record<Step, number>> = { none: 1, minute: 60_000, hour: 3_600_000, day: DAY_MS, month: 28 * DAY_MS }
const MAX_SHARE_MS = 366 * DAY_MS

const toInstant = (text: string): Instant => Date.parse(text) as Instant
const sayInstant = (instant: Instant): string => instantToDate(instant).toISOString()

/** A day, which begins in UTC, or an instant with its zone. */
const instant = z
  .union([z.iso.date(), z.iso.datetime({ offset: true })], { error: 'a date like 2027-01-31 or 2027-01-31T12:00:00Z' })
  .transform(toInstant)

const dimension = z.enum([...DIMENSIONS, 'kind'], { error: `any of ${DIMENSIONS.join(', ')}` })
const range = {
  from: instant.optional(),
  to: instant.optional(),
  step: z.enum(STEPS, { error: `one of ${STEPS.join(', ')}` }).default('none'),
  group_by: listOf(dimension),
}

const Row = z.object({
  at: z.iso.datetime().optional(),
  project_id: z.uuid().optional(),
  principal_id: z.uuid().optional(),
  access_key: z.string().optional(),
  model: z.string().optional(),
  mode: z.string().optional(),
  price_id: z.uuid().optional(),
  kind: z.enum(KINDS),
  units: z.int(),
  events: z.int(),
})
const Answer = z.object({ from: z.iso.datetime(), to: z.iso.datetime(), step: z.enum(STEPS), usage: z.array(Row) })

const ShareJson = z.object({
  id: z.uuid(),
  project_id: z.uuid(),
  description: z.string(),
  shows_from: z.iso.datetime(),
  expires_at: z.iso.datetime(),
  created_at: z.iso.datetime(),
})

const shareToJson = (share: Share) => ({
  id: share.id,
  project_id: share.projectId,
  description: share.description,
  shows_from: sayInstant(share.showsFrom),
  expires_at: sayInstant(share.expiresAt),
  created_at: sayInstant(share.createdAt),
})

const READ = { resource: 'usage', action: 'read', scope: 'project' } as const satisfies Needs
const READ_SHARES = { resource: 'usage_share', action: 'read', scope: 'project' } as const satisfies Needs
const WRITE_SHARES = { resource: 'usage_share', action: 'write', scope: 'project' } as const satisfies Needs

/**
 * Consumption as it is in the books, seconds old, and links that show one project's to somebody outside. Whatever is read from the books, or by a token of a share,
 * has the connections of `reports`; shares are made and revoked by those of `db`, so that one whose readers take all of the others can be ended.
 */
export const usageRoutes = (manage: Manage, room: { db: Db; reports: Db; clock: Clock }): void => {
  const { db, reports, clock } = room
  requestRoutes(manage, { db: reports, clock })

  const answer = async (view: View): Promise<Outcome<z.infer<typeof Answer>, Denial>> => {
    if (view.from >= view.to) return no(invalid('to', 'constraint', 'must be after `from`'))
    const steps = (view.to - view.from) / STEP_MS[view.step]
    if (steps > MAX_STEPS[view.step])
      return no(invalid('step', 'constraint', `more than ${MAX_STEPS[view.step]} steps: take a coarser one`))
    const seen = await viewUsage(reports, view)
    if (!seen.ok) {
      return seen.refusal.reason === 'too_many_rows'
        ? no(invalid('group_by', 'constraint', `more than ${MAX_VIEW_ROWS} rows: ask for less at once`))
        : no(invalid('from', 'constraint', `before ${sayInstant(seen.refusal.keptFrom)} only whole hours are known`))
    }
    const usage = seen.value.rows.map(({ at, units, events, ...row }) => ({
      ...(at === null ? {} : { at: sayInstant(at) }),
      ...row,
      units: Number(units),
      events: Number(events),
    }))
    return yes({ from: sayInstant(view.from), to: sayInstant(view.to), step: view.step, usage })
  }

  manage({
    method: 'GET',
    path: '/parvis/v1/usage',
    summary: 'Read exact sums of what was used, for any range, by any of its dimensions.',
    needs: READ,
    query: z.strictObject({
      ...range,
      project_id: listOf(z.uuid()),
      principal_id: listOf(z.uuid()),
      access_key: listOf(z.string().max(64)),
      model: listOf(z.string().max(256)),
      mode: listOf(z.enum(['realtime', 'batch'])),
      kind: listOf(z.enum(KINDS)),
    }),
    answer: Answer,
    handle: async ({ query, actor, may }) => {
      const projectIds = query.project_id as ProjectId[]
      const allowed = projectIds.length === 0 ? may({ ...READ, scope: 'organization' }) : projectIds.every((id) => may(READ, id))
      if (!allowed) return no(forbidden(READ))
      const now = clock.now()
      const chosen = query.group_by.filter((name) => name !== 'kind')
      return answer({
        organizationId: actor.organizationId,
        from: query.from ?? monthOf(now),
        to: query.to ?? now,
        step: query.step,
        by: [...new Set(query.group_by.length === 0 ? (['project_id', 'model'] as const) : chosen)],
        projectIds,
        only: { principal_id: query.principal_id, access_key: query.access_key, model: query.model, mode: query.mode, kind: query.kind },
      })
    },
  })

  manage({
    method: 'POST',
    path: '/parvis/v1/usage-shares',
    summary: "Make a token that lets somebody outside read one project's consumption until a date; it is shown once.",
    needs: WRITE_SHARES,
    body: z.strictObject({
      project_id: z.uuid(),
      description: z.string().max(200).default(''),
      expires_at: instant,
      shows_from: instant.optional(),
    }),
    answer: ShareJson.extend({ token: z.string(), path: z.string() }),
    handle: async ({ body, actor, may }) => {
      const projectId = body.project_id as ProjectId
      if (!may(WRITE_SHARES, projectId)) return no(forbidden(WRITE_SHARES))
      const now = clock.now()
      if (body.expires_at <= now) return no(invalid('expires_at', 'constraint', 'must lie in the future'))
      if (body.expires_at > now + MAX_SHARE_MS) return no(invalid('expires_at', 'constraint', 'at most a year from now'))
      const made = await createShare(db, clock, {
        organizationId: actor.organizationId,
        projectId,
        description: body.description,
        showsFrom: body.shows_from ?? monthOf(now),
        expiresAt: body.expires_at,
        principalId: actor.principalId,
        actor,
      })
      if (!made.ok) {
        const { limit: quota, current } = made.refusal
        return no({ type: 'quotas_exceeded', details: [{ resource: 'usage_share', quota, current }] })
      }
      const { share, token } = made.value
      return yes({ ...shareToJson(share), token, path: `/parvis/v1/shared-usage/${token}` })
    },
  })

  manage({
    method: 'GET',
    path: '/parvis/v1/usage-shares',
    summary: 'List the shares there are; their tokens are not kept.',
    needs: READ_SHARES,
    query: z.strictObject({ project_id: z.uuid().optional() }),
    answer: z.object({ total_count: z.int(), usage_shares: z.array(ShareJson) }),
    handle: async ({ query, actor, may }) => {
      const projectId = query.project_id as ProjectId | undefined
      const shares = await listShares(db, actor.organizationId, projectId)
      const seen = shares.filter((share) => may(READ_SHARES, share.projectId))
      return yes({ total_count: seen.length, usage_shares: seen.map(shareToJson) })
    },
  })

  manage({
    method: 'DELETE',
    path: '/parvis/v1/usage-shares/:share_id',
    summary: 'Revoke a share: its token is worth nothing from now on.',
    needs: WRITE_SHARES,
    params: z.object({ share_id: z.uuid() }),
    handle: async ({ params, actor, may }) => {
      const share = await findShare(db, actor.organizationId, params.share_id)
      if (share === undefined) return no(notFound('usage_share', params.share_id))
      if (!may(WRITE_SHARES, share.projectId)) return no(forbidden(WRITE_SHARES))
      const revoked = await revokeShare(db, share, actor)
      return revoked ? yes(undefined) : no(notFound('usage_share', params.share_id))
    },
  })

  manage({
    method: 'GET',
    path: '/parvis/v1/shared-usage/:token',
    summary: 'Read the consumption of the one project that the token shows.',
    needs: 'nobody',
    params: z.object({ token: z.string() }),
    // Who used it is nobody's business outside.
    query: z.strictObject({ ...range, group_by: listOf(z.enum(['model', 'mode', 'kind'], { error: 'any of model, mode, kind' })) }),
    answer: Answer.extend({ project_id: z.uuid(), expires_at: z.iso.datetime() }),
    refuses: ['expired'],
    handle: async ({ params, query }) => {
      const found = await openShare(reports, clock, params.token)
      if (!found.ok) {
        // The token is a secret, and is not repeated.
        if (found.refusal === 'unknown') return no(notFound('usage_share', 'unknown'))
        const { id, expiredSince } = found.refusal
        return no({ type: 'expired', resource: 'usage_share', resource_id: id, expired_since: sayInstant(expiredSince) })
      }
      const share = found.value
      const now = clock.now()
      const from = query.from ?? (Math.max(monthOf(now), share.showsFrom) as Instant)
      if (from < share.showsFrom)
        return no(invalid('from', 'constraint', `this share shows what was used from ${sayInstant(share.showsFrom)} on`))
      const seen = await answer({
        organizationId: share.organizationId,
        from,
        to: query.to ?? now,
        step: query.step,
        by: [...new Set(query.group_by.length === 0 ? (['model'] as const) : query.group_by.filter((name) => name !== 'kind'))],
        projectIds: [share.projectId],
        only: {},
      })
      return seen.ok ? yes({ ...seen.value, project_id: share.projectId, expires_at: sayInstant(share.expiresAt) }) : seen
    },
  })
}
