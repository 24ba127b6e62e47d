import type { Manage } from './kit/management.ts'
import type { Metrics } from './kit/metrics.ts'
import { yes } from './kit/outcome.ts'

const PROMETHEUS_TEXT = 'text/plain; version=0.0.4; charset=utf-8'

/**
 * `GET /metrics`, for a scraper with a key of the operator's: what this process counts of all organizations is nobody
 * else's business. Prometheus sends it as `authorization: { credentials: <secret key> }`.
 */
export const metricsRoute = (manage: Manage, metrics: Metrics): void =>
  manage({
    method: 'GET',
    path: '/metrics',
    summary: 'What this process counts of itself, in the text format of Prometheus.',
    needs: { resource: 'installation', action: 'read', scope: 'installation' },
    produces: { text: PROMETHEUS_TEXT },
    handle: async () => yes({ text: { contentType: PROMETHEUS_TEXT, body: metrics.render() } }),
  })
