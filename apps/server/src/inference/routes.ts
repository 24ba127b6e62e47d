import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Model } from '../catalog/model.ts'
import { isUuid, type ProjectId } from '../kit/ids.ts'
import { type Refusal, speak } from '../kit/refusal.ts'
import { openCall } from './call.ts'
import { openCount } from './count.ts'
import { openDeadlines } from './deadlines.ts'
import { chat } from './endpoints/chat.ts'
import { completions } from './endpoints/completions.ts'
import { COUNT_TOKENS_PATH, countTokens } from './endpoints/count-tokens.ts'
import { embeddings } from './endpoints/embeddings.ts'
import type { Endpoint, FormEndpoint, Reading } from './endpoints/endpoint.ts'
import { ANTHROPIC, messages } from './endpoints/messages.ts'
import { listModels, readModel } from './endpoints/models.ts'
import { ocr } from './endpoints/ocr.ts'
import { rerank } from './endpoints/rerank.ts'
import { responses } from './endpoints/responses.ts'
import { transcriptions } from './endpoints/transcriptions.ts'
import { DEFAULT_LIMITS, type Exchange, type InferenceLimits, openExchange } from './exchange.ts'
import { openGuesses } from './guess.ts'
import { type IdempotencyLimits, openIdempotency } from './idempotency.ts'
import { openMeasure } from './measure.ts'
import { openMemory } from './memory.ts'
import { openRelay } from './relay.ts'
import { type Rooms, serve } from './serve.ts'

const ENDPOINTS: readonly Endpoint[] = [chat, completions, embeddings, messages, ocr, rerank]

/** With and without the project (data-plane.md 2.1). The slash that some clients double behind `v1` is the router's to ignore. */
const BASES = ['/v1', '/:project/v1']

type Params = { readonly project?: string; readonly '*'?: string }
/** How a route speaks, and what it takes. */
type Manner = Pick<Endpoint, 'dialect' | 'accepts'>
type Handle = (exchange: Exchange, params: Params) => void | Promise<void>

/**
 * Every path of the data plane, and 404 in the contract's shape for every path of the house that nobody serves. The app must be
 * made with `routerOptions: { ignoreDuplicateSlashes: true }` and `frameworkErrors: refuseUnroutable`.
 *
 * Each route hijacks its reply in the first hook, before any body parser: the key is looked at before a byte of the body is read,
 * and what goes back is written by the exchange, as bytes (performance.md 2).
 */
export const inferenceRoutes = (
  app: FastifyInstance,
  rooms: Rooms & {
    models(): readonly Model[]
    /** Whether somebody else has answered for a path that nobody serves. */
    elsewhere?(request: FastifyRequest, reply: FastifyReply): boolean
    /** Whether another process has this request now, since it remembers its `Idempotency-Key`. */
    handOver?(request: FastifyRequest, reply: FastifyReply, refuse: (refusal: Refusal) => void): boolean
  },
  limits: Partial<InferenceLimits> & { readonly idempotency?: Partial<IdempotencyLimits> } = {},
): void => {
  const deadlines = openDeadlines()
  // What is closed `onClose` is there as long as answers run: the drain is before it (gateway.ts).
  app.addHook('onClose', async () => deadlines.close())
  const { idempotency: asked, ...given } = limits
  const all = { ...DEFAULT_LIMITS, ...given }
  const parts = { clock: rooms.clock, log: rooms.log, deadlines, limits: all, memory: openMemory(all.inflightBytes) }
  const call = openCall(rooms.takeSeat, openRelay(parts))
  const { count, countTexts, close: closeCount } = openCount(rooms)
  app.addHook('onClose', closeCount)
  const input = { ...openGuesses(), count, measure: openMeasure({ count, countTexts }) }
  const idempotency = openIdempotency({ ...parts, authenticate: rooms.authenticate }, asked)
  app.addHook('preClose', async () => idempotency.stop())

  const open = (request: FastifyRequest, reply: FastifyReply, projectId?: ProjectId, manner?: Manner): Exchange => {
    reply.hijack()
    return openExchange(parts, request.raw, reply.raw, projectId, manner, request.ip)
  }

  const refuseUnknownRoute = (request: FastifyRequest, reply: FastifyReply): void => {
    if (rooms.elsewhere?.(request, reply) === true) return
    open(request, reply).refuse({ code: 'route_unknown', method: request.method, path: pathOf(request.url) })
  }

  const handle = (request: FastifyRequest<{ Params: Params }>, reply: FastifyReply, work: Handle, manner?: Manner): void => {
    const { project } = request.params
    // Whatever else stands in front of /v1, a UUID in capitals too, is no route (data-plane.md 2.1).
    if (project !== undefined && !isUuid(project)) return refuseUnknownRoute(request, reply)
    const make = (): Exchange => open(request, reply, project as ProjectId | undefined, manner)
    if (manner !== undefined && rooms.handOver?.(request, reply, (refusal) => make().refuse(refusal)) === true) return
    run(make(), work, request.params)
  }

  const route = (method: 'GET' | 'POST', path: string, work: Handle, manner?: Manner): void => {
    for (const base of BASES) {
      app.route<{ Params: Params }>({
        method,
        url: `${base}${path}`,
        onRequest: (request, reply) => handle(request, reply, work, manner),
        handler: () => {}, // never reached: the hook does not go on
      })
    }
  }

  const mount = <R extends Reading>(endpoint: Endpoint<R> | FormEndpoint<R>): void =>
    route('POST', endpoint.path, idempotency.once(endpoint.path, serve(rooms, call, input, endpoint)), endpoint)
  for (const endpoint of [...ENDPOINTS, responses(rooms.clock)]) mount(endpoint)
  mount(transcriptions)
  route('POST', COUNT_TOKENS_PATH, countTokens(rooms, input), { dialect: ANTHROPIC })
  route('GET', '/models', listModels(rooms))
  // A wildcard, since a model's name may have a slash in it.
  route('GET', '/models/*', (exchange, params) => readModel(rooms, params['*'] ?? '')(exchange))

  app.setNotFoundHandler(refuseUnknownRoute)
  // Before the handler: otherwise a body parser would have its say about a path that does not exist.
  app.addHook('onRequest', (request, reply, done) => (request.is404 ? refuseUnknownRoute(request, reply) : done()))

  // A client that waits to be told to go on is told by whoever reads the body, also on paths that are not ours: only then is its
  // key known to be good.
  app.server.on('checkContinue', (request, response) => app.server.emit('request', request, response))
}

/** The one place where a fault is caught. */
const run = (exchange: Exchange, work: Handle, params: Params): void => {
  try {
    const working = work(exchange, params)
    if (working !== undefined) working.catch((error: unknown) => exchange.fault(error))
  } catch (error) {
    exchange.fault(error)
  }
}

const MAX_PATH_CHARACTERS = 200

const pathOf = (url: string): string => (url.split('?', 1)[0] ?? '').slice(0, MAX_PATH_CHARACTERS)

/** For Fastify's `frameworkErrors`: a URL that its router cannot even read is no route either. */
export const refuseUnroutable = (_error: unknown, request: FastifyRequest, reply: FastifyReply): void => {
  const spoken = speak({ code: 'route_unknown', method: request.raw.method ?? '', path: pathOf(request.raw.url ?? '') })
  void reply.code(spoken.status).send(spoken.body)
}
