import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Counters, METRICS_TYPE } from './counters.ts'
import { requestIdOf, writeJson, writeRefusal } from './exchange.ts'
import { faultOf, type Log } from './log.ts'
import { badRequest, fault, keyMissing, no, type Outcome, type Refusal, routeUnknown, yes } from './refusal.ts'

const HEADERS_LIMIT_MS = 10_000
const REQUEST_LIMIT_MS = 120_000 // for the whole request to arrive, a body of the greatest size included
const KEEP_ALIVE_MS = 75_000 // longer than the clients' pools, so that they close first and never write into a closing socket

/** Reads a body up to the bound. More than that is refused before it is read, when its length is told, and else as soon as it is too much. */
export const readBytes = async (request: IncomingMessage, maxBytes: number): Promise<Outcome<Buffer[]>> => {
  const tooLarge = no(badRequest(`The body is too large: at most ${maxBytes} bytes are accepted.`))
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) return tooLarge
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of request) {
    length += (chunk as Buffer).length
    if (length > maxBytes) return tooLarge
    chunks.push(chunk as Buffer)
  }
  return yes(chunks)
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

/** One request that may enter, whose body nobody has read. */
export type Visit = {
  readonly path: string
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly requestId: string
  refuse(refusal: Refusal): void
}

/** What every kind of engine has in common: who may enter, `/health`, the one model, and how it ends. `post` serves the rest. */
export const openListener = (house: {
  readonly address: { readonly host: string; readonly port: number }
  readonly key: string | undefined
  readonly log: Log
  readonly card: Readonly<Record<string, unknown>>
  work(): { busy: number; waiting: number }
  readonly counters: Counters
  /** Undefined for a path that this engine does not have. */
  post(path: string): ((visit: Visit) => Promise<void>) | undefined
}) => {
  const { key, log, address } = house
  const expected = key === undefined || key === '' ? undefined : digest(`Bearer ${key}`)
  const mayEnter = (request: IncomingMessage): boolean =>
    expected === undefined || timingSafeEqual(digest(request.headers.authorization ?? ''), expected)

  const handle = async (request: IncomingMessage, response: ServerResponse, requestId: string): Promise<void> => {
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/'
    const method = request.method ?? 'GET'
    const refuse = (refusal: Refusal): void => {
      // What is left of the body is not worth reading: the connection ends with the answer.
      writeRefusal(response, refusal, request.complete ? {} : { connection: 'close' })
    }

    if (method === 'GET' && path === '/health') return writeJson(response, 200, { status: 'ok', ...house.work() })
    if (!mayEnter(request)) return refuse(keyMissing)
    if (method === 'GET' && path === '/v1/models') return writeJson(response, 200, { object: 'list', data: [house.card] })
    if (method === 'GET' && path === '/metrics') {
      response.writeHead(200, { 'content-type': METRICS_TYPE }).end(house.counters.render(house.work()))
      return
    }
    const serve = method === 'POST' ? house.post(path) : undefined
    if (serve === undefined) return refuse(routeUnknown(method, path))
    await serve({ path, request, response, requestId, refuse })
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
      log.error('a request failed', { requestId, reason: faultOf(error) })
      if (response.headersSent) response.destroy()
      else writeRefusal(response, fault)
    })
  })

  return {
    listen: (): Promise<number> =>
      new Promise((resolve, reject) => {
        server.once('error', reject)
        server.listen(address.port, address.host, () => {
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

export type Listener = ReturnType<typeof openListener>

/** A model that is loaded and can be served. */
export type Started = Listener & {
  /** For the log. */
  readonly facts: Readonly<Record<string, string | number>>
}
