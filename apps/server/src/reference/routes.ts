import { createHash } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import type { Clock } from '../kit/clock.ts'
import type { Described } from '../kit/described.ts'
import { newId } from '../kit/ids.ts'
import type { KnownRoute, Manage } from '../kit/management.ts'
import { yes } from '../kit/outcome.ts'
import { makeDocument } from './document.ts'
import { elsewhere } from './elsewhere.ts'
import { makePage, STYLE } from './page.ts'

const STYLE_HASH = createHash('sha256').update(STYLE).digest('base64')
const POLICY = `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`

/** Once, when it is first asked for: by then every room has registered its routes. */
const once = <T>(make: () => T): (() => T) => {
  let made: { readonly value: T } | undefined
  return () => {
    made ??= { value: make() }
    return made.value
  }
}

/** The reference of everything that the server answers, made from what it is checked with. It tells nobody more than the source does. */
export const referenceRoutes = (
  app: FastifyInstance,
  manage: Manage,
  parts: {
    readonly routes: () => readonly KnownRoute[]
    /** What the rooms tell of that is not registered with `manage`. */
    readonly others: readonly Described[]
    readonly version: string
    readonly clock: Clock
  },
) => {
  const toDocument = (exact: boolean) =>
    makeDocument({ routes: parts.routes(), others: [...parts.others, ...elsewhere], version: parts.version }, exact)
  const document = once(() => toDocument(false))
  const text = once(() => JSON.stringify(document()))
  const page = once(() => makePage(document()))

  manage({
    method: 'GET',
    path: '/parvis/v1/openapi.json',
    summary: 'This document, in OpenAPI 3.1.',
    needs: 'nobody',
    produces: { text: 'application/json' },
    handle: async () => yes({ text: { contentType: 'application/json', body: Buffer.from(text()) } }),
  })

  app.get('/parvis/v1/reference', async (_request, reply) =>
    reply
      .header('x-request-id', newId(parts.clock.now()))
      .header('content-type', 'text/html; charset=utf-8')
      .header('cache-control', 'no-store')
      .header('content-security-policy', POLICY)
      .header('referrer-policy', 'no-referrer')
      .header('x-content-type-options', 'nosniff')
      .header('x-frame-options', 'DENY')
      .send(page()),
  )

  return { toDocument }
}
