import type { Manage } from './kit/management.ts'
import { yes } from './kit/outcome.ts'

const PROMETHEUS_TEXT = 'text/plain; version=0.0.4; charset=utf-8'

/**
 * `GET /metrics`, for a scraper with a key of the operator's: what the installation counts of all organizations is nobody
 * else's business. Prometheus sends it as `authorization: { credentials: <secret key> }`.
 */
export const metricsRoute = (manage: Manage, metrics: () => string | Promise<string>): void =>
  manage({
    method: 'GET',
    path: '/metrics',
    summary: 'What the gateways of this machine count of themselves, together, in the text format of Prometheus.',
    needs: { resource: 'installation', action: 'read', scope: 'installation' },
    produces: { text: PROMETHEUS_TEXT },
    handle: async () => yes({ text: { contentType: PROMETHEUS_TEXT, body: await metrics() } }),
  })
