import { Agent, request as ask, type IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Refusal } from '../kit/refusal.ts'
import { gatewayDir } from '../usage/gateway.ts'

/** The address of the client, from gateway to gateway. Only the house's own processes can open a gateway's socket. */
const PEER = 'x-parvis-peer'
/** What belongs to a connection and not to what is said over it (RFC 9110 7.6.1). */
const HOP_BY_HOP = ['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'te', 'upgrade']
/** Requests that another gateway has from here at once; each is two connections. */
const MOST = 1_000
const RETRY_MS = 1_000
/** Of the path of a socket, in bytes (unix(7), less the zero at its end). */
const MOST_PATH_BYTES = 107

/** Where a gateway itself listens: for its neighbours only, since the port is the house's. The directory is closed to everybody else. */
export const socketOf = (dataDir: string, number: number): string => join(gatewayDir(dataDir, number), 'socket')

/** Refuses a data directory whose sockets would have longer names than the system takes. */
export const requireShortPath = (dataDir: string): void => {
  const length = Buffer.byteLength(socketOf(dataDir, 64))
  if (length > MOST_PATH_BYTES) {
    throw new Error(
      `The path of the data directory is ${length - MOST_PATH_BYTES} characters too long for more than one gateway: their sockets lie in it. Set PARVIS_DATA_DIR to a shorter one, or PARVIS_GATEWAYS to 1.`,
    )
  }
}

export type HandOver = {
  /** A connection from outside, as the house hands them to us. All others are of neighbours. */
  take(socket: Socket): void
  /** Whether the request's `Idempotency-Key` belongs to another gateway, which has it now. */
  handOver(request: FastifyRequest, reply: FastifyReply, refuse: (refusal: Refusal) => void): boolean
  /** Requests that others have from us. */
  open(): number
  close(): Promise<void>
}

/**
 * Each `Idempotency-Key` belongs to one gateway, which remembers it in its memory (inference/idempotency.ts): another one that gets such a request
 * hands it over, all of it, and passes the answer on. By the key alone, so that whoever comes back with it, and by whichever of its
 * secrets, meets the same gateway.
 */
export const openHandOver = (options: {
  app: FastifyInstance
  dataDir: string
  number: number
  gateways: number
  /** Longer than a request may take, and than it may be silent. */
  limitMs: number
}): HandOver => {
  const { app, dataDir, number, gateways, limitMs } = options
  const outside = new WeakSet<Socket>()
  // The one who asks closes, when it has read all: closed by the other one, what it still writes would fail before it has read the answer.
  const agent = new Agent({ keepAlive: true, maxFreeSockets: 0 })
  let open = 0

  // Before everybody else who listens: where a request comes from is what the neighbour says of it. Of nobody else that is believed, so it goes by how a
  // connection has come to us, and not by an address, which one that has just been cut has not.
  app.server.prependListener('request', ({ socket, headers }: IncomingMessage) => {
    if (outside.has(socket)) return
    Object.defineProperty(socket, 'remoteAddress', { value: headers[PEER], configurable: true })
    delete headers[PEER]
  })

  const forward = (request: FastifyRequest, reply: FastifyReply, owner: number, refuse: (refusal: Refusal) => void): void => {
    const { raw } = request
    const response = reply.raw
    const headers = Object.fromEntries(Object.entries(raw.headers).filter(([name]) => !HOP_BY_HOP.includes(name)))
    const chunked = raw.headers['transfer-encoding'] === undefined ? {} : { 'transfer-encoding': 'chunked' }
    const asked = ask({
      socketPath: socketOf(dataDir, owner),
      agent,
      method: raw.method,
      path: raw.url,
      headers: { ...headers, ...chunked, [PEER]: raw.socket.remoteAddress ?? '' },
    })
    open += 1
    asked.setTimeout(limitMs, () => asked.destroy(new Error('no word in time')))
    asked.on('continue', () => response.writeContinue())
    asked.on('response', (answer) => {
      const said = answer.rawHeaders
      const passed = said.flatMap((name, at) =>
        at % 2 === 0 && !HOP_BY_HOP.includes(name.toLowerCase()) ? [name, said[at + 1] ?? ''] : [],
      )
      response.writeHead(answer.statusCode ?? 500, passed)
      response.flushHeaders()
      answer.pipe(response)
      // Whoever was cut off in the middle must not look as if it had come to its end.
      answer.once('close', () => (answer.complete ? undefined : response.destroy()))
    })
    asked.on('error', () => {
      raw.unpipe(asked)
      if (response.headersSent || response.destroyed) return void response.destroy()
      refuse({ code: 'busy', reason: 'the gateway that has this Idempotency-Key does not answer', retryAfterMs: RETRY_MS })
    })
    asked.once('close', () => (open -= 1))
    response.once('close', () => asked.destroy())
    raw.pipe(asked)
  }

  return {
    take: (socket) => {
      outside.add(socket)
      app.server.emit('connection', socket)
    },
    handOver: (request, reply, refuse) => {
      const key = request.headers['idempotency-key']
      if (typeof key !== 'string' || !outside.has(request.raw.socket)) return false
      const owner = (crc32(key) % gateways) + 1
      if (owner === number) return false
      reply.hijack()
      if (open >= MOST) refuse({ code: 'busy', reason: 'too many requests wait for another gateway', retryAfterMs: RETRY_MS })
      else forward(request, reply, owner, refuse)
      return true
    },
    open: () => open,
    close: async () => agent.destroy(),
  }
}
