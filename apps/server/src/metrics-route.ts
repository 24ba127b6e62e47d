import type { Denial } from './kit/denial.ts'
import type { OrganizationId } from './kit/ids.ts'
import type { Manage } from './kit/management.ts'
import type { Metrics } from './kit/metrics.ts'
import { no, yes } from './kit/outcome.ts'

const PROMETHEUS_TEXT = 'text/plain; version=0.0.4; charset=utf-8'

const NEEDS = { resource: 'metrics', action: 'read', scope: 'organization' } as const
const REFUSED: Denial = { type: 'permissions_denied', details: [{ resource: 'metrics', action: 'read' }] }

/**
 * `GET /metrics`, for a scraper with a key of the operator's: what this process counts of all organizations is nobody
 * else's business. Prometheus sends it as `authorization: { credentials: <secret key> }`.
 */
export const metricsRoute = (manage: Manage, metrics: Metrics, operator: OrganizationId): void =>
  manage({
    method: 'GET',
    path: '/metrics',
    summary: 'What this process counts of itself, in the text format of Prometheus.',
    needs: NEEDS,
    handle: async ({ actor }) => {
      if (actor.organizationId !== operator || !actor.owner) return no(REFUSED)
      return yes({ text: { contentType: PROMETHEUS_TEXT, body: metrics.render() } })
    },
  })
