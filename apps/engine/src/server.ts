import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Engine, type Exchange, openExchange, requestIdOf, writeJson, writeRefusal } from './exchange.ts'
import {
  badRequest,
  endpointMismatch,
  fault,
  keyMissing,
  modelUnknown,
  no,
  type Outcome,
  type Refusal,
  routeUnknown,
  yes,
} from './refusal.ts'
import { chat } from './routes/chat.ts'
import { completions } from './routes/completions.ts'
import { embeddings } from './routes/embeddings.ts'
import { rerank } from './routes/rerank.ts'
import { detokenize, tokenize } from './routes/tokenize.ts'

const MAX_BODY_BYTES = 100 * 1024 * 1024 // data-plane.md 2.6
const HEADERS_LIMIT_MS = 10_000
const REQUEST_LIMIT_MS = 120_000 // for the whole request to arrive, a body of the greatest size included
const KEEP_ALIVE_MS = 75_000 // longer than the clients' pools, so that they close first and never write into a closing socket

type Route = { readonly serves: readonly string[]; run(engine: Engine, exchange: Exchange): Promise<void> }
const ANY = ['chat', 'embedding', 'rerank']
const ROUTES: Readonly<Record<string, Route>> = {
  '/v1/chat/completions': { serves: ['chat'], run: chat },
  '/v1/completions': { serves: ['chat'], run: completions },
  '/v1/embeddings': { serves: ['embedding'], run: embeddings },
  '/v1/rerank': { serves: ['embedding', 'rerank'], run: rerank },
  '/tokenize': { serves: ANY, run: tokenize },
  '/detokenize': { serves: ANY, run: detokenize },
}

/** Reads a body up to the bound. More than that is refused before it is read, when its length is told, and else as soon as it is too much. */
const readBytes = async (request: IncomingMessage): Promise<Outcome<Buffer>> => {
  const tooLarge = no(badRequest(`The body is too large: at most ${MAX_BODY_BYTES} bytes are accepted.`))
  if (Number(request.headers['content-length'] ?? 0) > MAX_BODY_BYTES) return tooLarge
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of request) {
    length += (chunk as Buffer).length
    if (length > MAX_BODY_BYTES) return tooLarge
    chunks.push(chunk as Buffer)
  }
  return yes(Buffer.concat(chunks))
}

const parseObject = (bytes: Buffer): Outcome<Record<string, unknown>> => {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    return no(badRequest(`Invalid JSON body: ${error instanceof Error ? error.message : String(error)}.`))
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return no(badRequest('Invalid JSON body: it must be an object.'))
  return yes(value as Record<string, unknown>)
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

/** The HTTP surface of one loaded model. */
export const openServer = (engine: Engine, key: string | undefined) => {
  const { options, loaded, log } = engine
  const expected = key === undefined || key === '' ? undefined : digest(`Bearer ${key}`)
  const mayEnter = (request: IncomingMessage): boolean =>
    expected === undefined || timingSafeEqual(digest(request.headers.authorization ?? ''), expected)

  const card = {
    id: options.name,
    object: 'model',
    created: engine.startedAtSeconds,
    owned_by: 'parvis',
    max_model_len: loaded.contextTokens,
    type: options.type,
  }

  const handle = async (request: IncomingMessage, response: ServerResponse, requestId: string): Promise<void> => {
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/'
    const method = request.method ?? 'GET'
    const refuse = (refusal: Refusal): void => {
      // What is left of the body is not worth reading: the connection ends with the answer.
      writeRefusal(response, refusal, request.complete ? {} : { connection: 'close' })
    }

    if (method === 'GET' && path === '/health') {
      const { slots } = loaded.serves
      return writeJson(response, 200, { status: 'ok', busy: slots.busy(), waiting: slots.waiting() })
    }
    if (!mayEnter(request)) return refuse(keyMissing)
    if (method === 'GET' && path === '/v1/models') return writeJson(response, 200, { object: 'list', data: [card] })

    const route = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined
    if (method !== 'POST' || route === undefined) return refuse(routeUnknown(method, path))
    const bytes = await readBytes(request)
    if (!bytes.ok) return refuse(bytes.refusal)
    const body = parseObject(bytes.value)
    if (!body.ok) return refuse(body.refusal)
    const model = body.value['model']
    if (model !== undefined && typeof model !== 'string')
      return refuse(badRequest('The field "model" is not valid: it must be a string.', 'model'))
    if (model !== undefined && model !== options.name) return refuse(modelUnknown(model, options.name))
    if (!route.serves.includes(options.type)) return refuse(endpointMismatch(options.name, options.type, path))

    await route.run(engine, openExchange(request, response, body.value, requestId))
  }

  const server = createServer({ headersTimeout: HEADERS_LIMIT_MS, requestTimeout: REQUEST_LIMIT_MS, keepAliveTimeout: KEEP_ALIVE_MS })
  let running = 0
  // Connections that are kept alive, or were opened and never used, would hold up the end for as long as the client likes.
  const endConnections = (): void => {
    if (!server.listening && running === 0) server.closeAllConnections()
  }
  server.on('request', (request, response) => {
    const requestId = requestIdOf(request)
    response.setHeader('x-request-id', requestId)
    running += 1
    response.once('close', () => {
      running -= 1
      endConnections()
    })
    handle(request, response, requestId).catch((error: unknown) => {
      if (request.destroyed && !request.complete) return // the client left in the middle of its own request
      log.error('a request failed', { requestId, reason: error instanceof Error ? (error.stack ?? error.message) : String(error) })
      if (response.headersSent) response.destroy()
      else writeRefusal(response, fault)
    })
  })

  return {
    listen: (): Promise<number> =>
      new Promise((resolve, reject) => {
        server.once('error', reject)
        server.listen(options.port, options.host, () => {
          server.off('error', reject)
          resolve((server.address() as AddressInfo).port)
        })
      }),
    /** Takes no new requests; those that run may end within the limit, then they are cut off. */
    close: (limitMs: number): Promise<void> =>
      new Promise((resolve) => {
        const timer = setTimeout(() => server.closeAllConnections(), limitMs)
        server.close(() => {
          clearTimeout(timer)
          resolve()
        })
        endConnections()
      }),
  }
}
