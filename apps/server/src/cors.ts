import type { FastifyInstance, FastifyRequest } from 'fastify'

// CORS as the Fetch standard has it (https://fetch.spec.whatwg.org/#http-cors-protocol). Never with credentials: a page of another
// origin brings a key or a session token of its own, and the console's cookies are of no use to it.

/** What a page may send to the inference API; whole families, since official clients describe themselves in many headers. */
const INFERENCE_HEADERS =
  /^(authorization|content-type|accept|idempotency-key|user-agent|x-api-key|(x-stainless|anthropic|openai)-[a-z0-9-]{1,64})$/
/** control-plane.md 2.1 and 13. */
const MANAGEMENT_HEADERS = /^(authorization|x-auth-token|x-session-token|content-type|accept|user-agent)$/

const INFERENCE = /^\/(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\/)?v1\//
const MANAGEMENT = /^\/(?:inference|iam|account|billing|cockpit|product-catalog|parvis)\//

const INFERENCE_METHODS = 'GET, POST'
const MANAGEMENT_METHODS = 'GET, POST, PUT, PATCH, DELETE'

/** What a page may read of an answer beside its body. */
const EXPOSED = [
  'x-request-id',
  'retry-after',
  'x-should-retry',
  ...['limit', 'remaining', 'reset'].flatMap((what) => ['requests', 'tokens'].map((of) => `x-ratelimit-${what}-${of}`)),
  'x-parvis-requested-model',
  'deprecation',
  'sunset',
  'link',
].join(', ')

/** How long a browser goes by an answer to its question; Chrome asks again after two hours at the latest. */
const ANSWER_SECONDS = 600
const MAX_ASKED_CHARACTERS = 2_048

const sideOf = (url: string) =>
  INFERENCE.test(url)
    ? { headers: INFERENCE_HEADERS, methods: INFERENCE_METHODS }
    : MANAGEMENT.test(url)
      ? { headers: MANAGEMENT_HEADERS, methods: MANAGEMENT_METHODS }
      : undefined

/** Those that were asked for and may be sent; what is not among them the browser refuses by itself. */
const allowedOf = (request: FastifyRequest, allowed: RegExp): string => {
  const asked = request.headers['access-control-request-headers'] ?? ''
  if (asked.length > MAX_ASKED_CHARACTERS) return ''
  return asked
    .toLowerCase()
    .split(',')
    .map((name) => name.trim())
    .filter((name) => allowed.test(name))
    .join(', ')
}

/**
 * Lets pages of the listed origins call the inference and the management API. Without a list nothing is said at all; to an origin
 * that is not on it nothing is said but `vary`, without which a cache would hand it what was meant for another. It must be opened
 * before any other hook of the app.
 */
export const openCors = (app: FastifyInstance, origins: readonly string[]): void => {
  if (origins.length === 0) return
  const listed = new Set(origins)
  app.addHook('onRequest', (request, reply, done) => {
    const side = sideOf(request.url)
    if (side === undefined) return done()
    // On the raw answer, since the data plane writes its own heads.
    const { raw } = reply
    raw.setHeader('vary', 'Origin')
    const { origin } = request.headers
    if (origin === undefined || !listed.has(origin)) return done()
    raw.setHeader('access-control-allow-origin', origin)
    if (request.method !== 'OPTIONS' || request.headers['access-control-request-method'] === undefined) {
      raw.setHeader('access-control-expose-headers', EXPOSED)
      return done()
    }
    raw.setHeader('access-control-allow-methods', side.methods)
    raw.setHeader('access-control-allow-headers', allowedOf(request, side.headers))
    raw.setHeader('access-control-max-age', String(ANSWER_SECONDS))
    raw.setHeader('vary', 'Origin, Access-Control-Request-Method, Access-Control-Request-Headers')
    void reply.code(204).send()
  })
}
