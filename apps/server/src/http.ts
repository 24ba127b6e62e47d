import type { Server, ServerResponse } from 'node:http'
import { type Socket, Server as SocketServer } from 'node:net'
import Fastify, { type FastifyInstance } from 'fastify'
import { refuseUnroutable } from './inference/routes.ts'
import { type Clock, systemClock } from './kit/clock.ts'
import type { Db } from './kit/db.ts'
import type { Logger } from './kit/log.ts'
import { VERSION } from './version.ts'

/** A connection that has sent no whole header by then is closed: a slow sender must not hold a socket for ever. */
const HEADERS_MS = 15_000
// Longer than the idle time of the usual load balancers (60 s), so that it is they who close, and no request meets a closing socket.
const KEEP_ALIVE_MS = 75_000
const MAX_HEADER_BYTES = 16 * 1024
/** How often Node looks for connections that are late; its default of 30 s would stretch the limits above. */
const LATE_LOOK_MS = 5_000
const READY_LIMIT_MS = 2_000
/** How long after its beginning a look at what `/ready` says is still said. */
const READY_KEPT_MS = 500
/** After a refusal in the last words of a connection it is cut, whatever still comes in. */
const CUT_MS = 2_000

export type HttpOptions = {
  readonly trustedProxies: readonly string[]
  readonly headersMs?: number
  /** How long a body may take to arrive, on any route. */
  readonly bodyMs: number
  /** Told of everything that is registered, by whomever. */
  readonly onRoute?: (method: string, path: string) => void
  readonly lookMs?: number
  readonly clock?: Pick<Clock, 'monotonicMs'>
}

export type Readiness = {
  database(): Promise<string | undefined>
  journal(): string | undefined | Promise<string | undefined>
  catalogue(): string | undefined
}

/** What the database is short of, or nothing. One small question with a limit of its own. */
export const askDatabase = async (db: Db, clock: Clock): Promise<string | undefined> => {
  const late = new AbortController()
  try {
    return await Promise.race([
      db.query('select 1').then(() => undefined),
      clock.sleep(READY_LIMIT_MS, late.signal).then(() => `no answer within ${READY_LIMIT_MS / 1000} s`),
    ])
  } catch (error) {
    return error instanceof Error ? error.message : 'no answer'
  } finally {
    late.abort()
  }
}

type Look = { readonly ready: boolean; readonly checks: Readonly<Record<string, 'ok' | 'missing'>> }

/**
 * One look at a time, shared by all who ask meanwhile and shortly after, and a line in the log when it turns: whoever asks needs no key,
 * and a look asks the database and every gateway.
 */
const openLooks = (log: Logger, readiness: Readiness, clock: Pick<Clock, 'monotonicMs'>): (() => Promise<Look>) => {
  let shared: Promise<Look> | undefined
  let beganMs = 0
  let running = false
  let missingBefore = ''

  const look = async (): Promise<Look> => {
    const short = {
      database: await readiness.database(),
      journal: await readiness.journal(),
      catalogue: readiness.catalogue(),
    }
    const parts = Object.entries(short)
    const missing = parts.flatMap(([part, lack]) => (lack === undefined ? [] : [part])).join(', ')
    if (missing !== missingBefore) {
      if (missing === '') log.info('ready again')
      else log.warn(short, 'not ready')
    }
    missingBefore = missing
    return { ready: missing === '', checks: Object.fromEntries(parts.map(([part, lack]) => [part, lack === undefined ? 'ok' : 'missing'])) }
  }

  return () => {
    const nowMs = clock.monotonicMs()
    if (shared === undefined || (!running && nowMs - beganMs >= READY_KEPT_MS)) {
      beganMs = nowMs
      running = true
      shared = look().finally(() => (running = false))
    }
    return shared
  }
}

/** Status and sentence for what is not HTTP, by the parser's error code. */
const UNREADABLE: Record<string, { status: number; phrase: string; message: string }> = {
  HPE_HEADER_OVERFLOW: {
    status: 431,
    phrase: 'Request Header Fields Too Large',
    message: `The headers are larger than ${MAX_HEADER_BYTES} bytes.`,
  },
  ERR_HTTP_REQUEST_TIMEOUT: {
    status: 408,
    phrase: 'Request Timeout',
    message: 'The request did not arrive in time.',
  },
}
const NOT_HTTP = { status: 400, phrase: 'Bad Request', message: 'This is not a readable HTTP request.' }

/** A connection, and the answer that is on it until the kernel has its last byte. Node's own code looks at the same place. */
type Answering = Socket & { readonly _httpMessage?: ServerResponse | null }

/** Answers on the raw socket what never became a whole request, in the same shape as every other refusal. */
const refuseUnreadable = (error: { code: string }, socket: Answering): void => {
  // An answer may be on its way, to this request or to one before it; other words in the middle of it would be taken for its own.
  const begun = socket._httpMessage?.headersSent === true
  if (error.code === 'ECONNRESET' || !socket.writable || begun) return void socket.destroy()
  const { status, phrase, message } = UNREADABLE[error.code] ?? NOT_HTTP
  const body = JSON.stringify({ error: { message, type: 'BadRequestError', param: null, code: status } })
  socket.end(
    `HTTP/1.1 ${status} ${phrase}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  )
  const cut = setTimeout(() => socket.destroy(), CUT_MS).unref()
  socket.once('close', () => clearTimeout(cut))
}

/**
 * The one HTTP server. `GET /health` says that the process lives, `GET /ready` that it serves; neither needs a key,
 * and neither says more than a stranger may know.
 */
export const openHttp = (log: Logger, readiness: Readiness, options: HttpOptions): FastifyInstance => {
  const { trustedProxies, headersMs = HEADERS_MS, bodyMs, lookMs = LATE_LOOK_MS, clock = systemClock } = options
  const app = Fastify({
    logger: false,
    // Bodies are bounded by the routes themselves, which read them only after the key is known to be good.
    bodyLimit: Number.MAX_SAFE_INTEGER,
    // Whoever else sends X-Forwarded-For could call itself any address.
    trustProxy: trustedProxies.length === 0 ? false : [...trustedProxies],
    keepAliveTimeout: KEEP_ALIVE_MS,
    routerOptions: { ignoreDuplicateSlashes: true, caseSensitive: true },
    // For bodies that nobody reads; whoever reads one is earlier, and words it better.
    requestTimeout: headersMs + bodyMs + lookMs,
    http: { maxHeaderSize: MAX_HEADER_BYTES, headersTimeout: headersMs, connectionsCheckingInterval: lookMs },
    // While the server drains, a request that still comes in on a kept connection is answered; idle connections are closed by gateway.ts.
    return503OnClosing: false,
    forceCloseConnections: false,
    // The drain is a hook of Fastify's, which gives each 10 s if it is told nothing else.
    pluginTimeout: 0,
    clientErrorHandler: refuseUnreadable,
    frameworkErrors: refuseUnroutable,
  })

  const { onRoute } = options
  if (onRoute !== undefined) app.addHook('onRoute', ({ method, url }) => [method].flat().forEach((each) => onRoute(each, url)))

  app.get('/health', (_request, reply) => reply.header('cache-control', 'no-store').send({ status: 'ok', version: VERSION }))

  const look = openLooks(log, readiness, clock)
  app.get('/ready', async (_request, reply) => {
    const { ready, checks } = await look()
    return reply
      .code(ready ? 200 : 503)
      .header('cache-control', 'no-store')
      .send({ status: ready ? 'ready' : 'not_ready', checks })
  })

  return app
}

/**
 * How a server ends without cutting an answer off. Node's `close` and `closeIdleConnections` take one that has been said for one that has gone out,
 * although megabytes of it may lie in our buffers; and connections that the house has handed us Node does not count.
 */
export const openDraining = (server: Server) => {
  /** With the bytes that had come when it was last looked at. */
  const connections = new Map<Answering, number>()
  server.on('connection', (socket: Answering) => {
    connections.set(socket, 0)
    socket.once('close', () => connections.delete(socket))
  })
  return {
    /** Accepts nobody new, and leaves alone who is there. */
    stopAccepting: () => void SocketServer.prototype.close.call(server),
    /** Connections whose answer is being made, or is on its way out. */
    answering: (): number => {
      let count = 0
      for (const { _httpMessage: answer } of connections.keys()) if (answer) count += 1
      return count
    },
    /** Closes connections that have no answer to wait for, and on which nothing has come since the last time. */
    closeIdle: (): void => {
      for (const [socket, bytesBefore] of connections) {
        const { bytesRead } = socket
        if (socket._httpMessage) continue
        if (bytesRead > 0 && bytesRead === bytesBefore) socket.destroy()
        else connections.set(socket, bytesRead)
      }
    },
  }
}
