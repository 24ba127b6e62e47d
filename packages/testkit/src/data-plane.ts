import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { connect, type Socket } from 'node:net'
import { Writable } from 'node:stream'
import { type Model, NO_RULES } from '@parvis/server/catalog/model'
import type { Leaving, Replica } from '@parvis/server/engines/replica'
import { bufferToBody } from '@parvis/server/inference/body'
import { guessUnseen, mixOf } from '@parvis/server/inference/guess'
import { inferenceRoutes, refuseUnroutable } from '@parvis/server/inference/routes'
import type { Rooms } from '@parvis/server/inference/serve'
import { type Instant, systemClock } from '@parvis/server/kit/clock'
import type { AccessKey, EngineId, ModelId, OrganizationId, PriceId, PrincipalId, ProjectId } from '@parvis/server/kit/ids'
import { openLog } from '@parvis/server/kit/log'
import type { UnitPrice } from '@parvis/server/kit/money'
import { no, yes } from '@parvis/server/kit/outcome'
import type { Ticket } from '@parvis/server/quota/admit'
import type { UsageEvent } from '@parvis/server/usage/event'
import Fastify from 'fastify'
import OpenAI from 'openai'
import { Client } from 'undici'

const price = (micro: bigint) => micro as UnitPrice

/** A catalogue entry as the tests of the data plane want it; the rest may be said. */
export const aModel = (given: Partial<Model> = {}): Model => ({
  id: randomUUID() as ModelId,
  name: 'tiny-chat',
  ownedBy: 'parvis',
  type: 'chat',
  status: 'active',
  deprecatedAt: null,
  endOfLifeAt: null,
  successor: null,
  createdAt: 1_750_000_000_000 as Instant,
  contextTokens: 4096,
  maxOutputTokens: 512,
  dimensions: null,
  matryoshka: [],
  features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
  rules: NO_RULES,
  price: {
    id: randomUUID() as PriceId,
    startsAt: 0 as Instant,
    input: price(100_000n),
    cachedInput: price(10_000n),
    output: price(300_000n),
  },
  weights: null,
  ...given,
})

/** What a gateway that has learned nothing takes these messages, or this prompt, for. */
export const guessedTokens = (text: unknown): number => {
  const bytes = Buffer.from(JSON.stringify(text))
  return guessUnseen('', mixOf(bufferToBody(bytes), [{ start: 0, end: bytes.length }])).tokens
}

/**
 * The data plane alone, with real sockets on both sides and the smallest rooms around it that keep their promises: one key, one
 * project, models from a list, one engine. What the rooms were asked is there to be looked at.
 */
export const startDataPlane = async (options: {
  /** Where the engine listens. */
  engine: string
  /** Engines of the same pool, for when the first is to be avoided. */
  others?: readonly string[]
  models?: readonly Model[]
  replica?: Partial<Replica>
  limits?: Parameters<typeof inferenceRoutes>[2]
  rooms?: Partial<Rooms>
}) => {
  const key = randomUUID()
  const projectId = randomUUID() as ProjectId
  const models = options.models ?? [
    aModel(),
    aModel({ name: 'tiny-embed', type: 'embedding', maxOutputTokens: null, dimensions: 8, matryoshka: [2, 4] }),
  ]
  const records: UsageEvent[] = []
  const seats = { taken: 0, left: [] as Leaving[] }
  const settled: number[] = []
  const lines: string[] = []
  const clients = new Set<Client>()
  const pool = [options.engine, ...(options.others ?? [])].map((origin, index) => ({
    origin,
    name: index === 0 ? 'scripted' : `scripted-${index + 1}`,
    engineId: randomUUID() as EngineId,
    idle: [] as Client[],
  }))
  const connectTo = (engine: string): Client => {
    const client = new Client(engine, { connect: { timeout: 30_000 } })
    clients.add(client)
    return client
  }
  const log = openLog(
    'debug',
    new Writable({
      write(line: Buffer, _encoding, done) {
        lines.push(line.toString())
        done()
      },
    }),
  )

  const app = Fastify({ routerOptions: { ignoreDuplicateSlashes: true }, frameworkErrors: refuseUnroutable, forceCloseConnections: true })
  inferenceRoutes(
    app,
    {
      authenticate: (authorization, project) => {
        if (authorization === undefined) return no({ code: 'key_missing' })
        if (authorization !== `Bearer ${key}` || (project !== undefined && project !== projectId)) return no({ code: 'key_refused' })
        return yes({
          organizationId: projectId as string as OrganizationId,
          projectId,
          principalId: projectId as string as PrincipalId,
          accessKey: 'SCWXXXXXXXXXXXXXXXXX' as AccessKey,
        })
      },
      resolve: (name) => {
        const model = models.find((candidate) => candidate.name === name)
        const successor = model?.status === 'eol' ? models.find((candidate) => candidate.name === model.successor) : model
        return successor === undefined ? no({ code: 'model_unknown', model: name }) : yes(successor)
      },
      admit: () => yes(openTicket(settled)),
      takeSeat: async (model, _signal, avoid) => {
        const place = pool.find(({ engineId }) => avoid?.has(engineId) !== true)
        if (place === undefined) return no({ code: 'engine_unavailable', model: model.name, reason: 'no other', retryAfterMs: 1_000 })
        const { name, engineId, origin, idle } = place
        seats.taken += 1
        const client = idle.pop() ?? connectTo(origin)
        let left = false
        return yes({
          replica: {
            name,
            engineId,
            modelId: model.id,
            origin,
            basePath: '',
            remoteModel: model.name,
            bearer: undefined,
            ...options.replica,
          },
          client,
          leave(how) {
            if (left) return
            left = true
            seats.left.push(how)
            // Only laid aside: who leaves a seat in the middle of an answer must have stopped the engine themselves.
            if (how !== 'broken') setImmediate(() => client.stats.size === 0 && idle.push(client))
          },
        })
      },
      replicaOf: () => undefined,
      noteOpen: () => undefined,
      withdraw: () => undefined,
      record: async (event) => void records.push(event),
      clock: systemClock,
      log,
      ...options.rooms,
      models: () => models,
    },
    options.limits,
  )
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}`

  const close = async (): Promise<void> => {
    app.server.closeAllConnections()
    await app.close()
    await Promise.all([...clients].map((client) => client.destroy()))
  }

  return {
    url,
    port,
    key,
    projectId,
    records,
    seats,
    settled,
    log: lines,
    /** Asks as a client with the right key would. */
    ask: (
      path: string,
      body?: unknown,
      init: Omit<RequestInit, 'headers'> & { headers?: Record<string, string> } = {},
    ): Promise<Response> =>
      fetch(`${url}${path}`, {
        ...(body === undefined ? {} : { method: 'POST', body: typeof body === 'string' ? body : JSON.stringify(body) }),
        ...init,
        headers: { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...init.headers },
      }),
    openai: (more: { maxRetries?: number; project?: boolean } = {}): OpenAI =>
      new OpenAI({ apiKey: key, baseURL: `${url}/${more.project === true ? `${projectId}/` : ''}v1`, maxRetries: more.maxRetries ?? 0 }),
    /** A bare connection, for what no HTTP client would do. */
    raw: async (): Promise<RawConnection> => openRaw(port, key),
    close,
    [Symbol.asyncDispose]: close,
  }
}

export type RawConnection = {
  readonly socket: Socket
  send(text: string | Buffer): void
  /** A request as text, with the key, the host and the length filled in. */
  post(path: string, body: string, headers?: Record<string, string>): void
  /** What has come so far. */
  received(): string
  /** Waits until what has come matches. */
  until(pattern: RegExp | ((received: string) => boolean)): Promise<string>
  closed: Promise<unknown>
}

const RAW_WAIT_MS = 30_000

const openRaw = async (port: number, key: string): Promise<RawConnection> => {
  const socket = connect({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.on('error', () => {})
  let text = ''
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1')
  })
  const closed = once(socket, 'close')
  return {
    socket,
    send: (bytes) => void socket.write(bytes),
    post(path, body, headers = {}) {
      const all = {
        host: 'localhost',
        authorization: `Bearer ${key}`,
        'content-type': 'application/json',
        'content-length': String(Buffer.byteLength(body)),
        ...headers,
      }
      socket.write(
        `POST ${path} HTTP/1.1\r\n${Object.entries(all)
          .map(([name, value]) => `${name}: ${value}\r\n`)
          .join('')}\r\n${body}`,
      )
    },
    received: () => text,
    closed,
    until: (pattern) =>
      new Promise((resolve, reject) => {
        const matches = typeof pattern === 'function' ? pattern : (received: string) => pattern.test(received)
        const look = (): void => {
          if (!matches(text)) return
          finish()
          resolve(text)
        }
        const failed = (why: string) => (): void => {
          finish()
          reject(new Error(`${why}; received: ${text.slice(-500)}`))
        }
        const late = failed('waited too long')
        const cut = failed('the connection was closed')
        const timer = setTimeout(late, RAW_WAIT_MS)
        const finish = (): void => {
          clearTimeout(timer)
          socket.off('data', look).off('close', cut)
        }
        socket.on('data', look).on('close', cut)
        look()
      }),
  }
}

/** Leave to do anything; what was used is noted, in tokens. */
export const openTicket = (settled: number[]): Ticket => ({
  headers: () => [],
  watch: () => undefined,
  spend: () => undefined,
  settle: (used) => void settled.push(used === undefined ? 0 : used.input + used.output),
})
