import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { EngineOptions } from './command-line.ts'
import type { Counters } from './counters.ts'
import type { Loaded } from './llama/model.ts'
import type { Log } from './log.ts'
import { type Refusal, refusalBody } from './refusal.ts'

/** What every route works with. */
export type Engine = {
  readonly loaded: Loaded
  readonly options: EngineOptions
  readonly log: Log
  readonly startedAtSeconds: number
  readonly counters: Counters
}

/** One request and its answer. */
export type Exchange = {
  readonly body: unknown
  /** From `x-request-id` when that is a UUID, so that ids agree through the gateway. */
  readonly requestId: string
  /** Whose cache may be used: the project, as the gateway says in `x-parvis-tenant`. */
  readonly tenant: string
  /** Aborted when the client leaves before the answer is complete. */
  readonly signal: AbortSignal
  answer(value: unknown): void
  refuse(refusal: Refusal): void
  /** Starts an event stream; before the first event the status is still open. */
  events(): EventWriter
}

export type EventWriter = {
  readonly started: () => boolean
  send(value: unknown): void
  /** An error after the status was sent goes into the stream (data-plane.md 3.5). */
  refuse(refusal: Refusal): void
  end(): void
}

// A client that does not read: its answer is kept up to here, then the connection is closed. Longer than any usual answer.
const MAX_UNSENT_BYTES = 16 * 1024 * 1024

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i
const ANONYMOUS = ''

const header = (request: IncomingMessage, name: string): string | undefined => {
  const value = request.headers[name]
  return typeof value === 'string' ? value : undefined
}

export const requestIdOf = (request: IncomingMessage): string => {
  const given = header(request, 'x-request-id')
  return given !== undefined && UUID.test(given) ? given.toLowerCase() : randomUUID()
}

export const writeJson = (response: ServerResponse, status: number, value: unknown, headers: Record<string, string> = {}): void => {
  if (response.headersSent || response.destroyed) return
  const text = JSON.stringify(value)
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), ...headers })
  response.end(text)
}

export const writeRefusal = (response: ServerResponse, refusal: Refusal, headers: Record<string, string> = {}): void =>
  writeJson(response, refusal.status, refusalBody(refusal), {
    ...headers,
    ...(refusal.retryAfterSeconds === undefined ? {} : { 'retry-after': String(refusal.retryAfterSeconds) }),
  })

export const openExchange = (request: IncomingMessage, response: ServerResponse, body: unknown, requestId: string): Exchange => {
  const controller = new AbortController()
  response.once('close', () => {
    if (!response.writableFinished) controller.abort()
  })
  if (response.destroyed) controller.abort()

  return {
    body,
    requestId,
    tenant: header(request, 'x-parvis-tenant') ?? ANONYMOUS,
    signal: controller.signal,
    answer: (value) => writeJson(response, 200, value),
    refuse: (refusal) => writeRefusal(response, refusal),
    events: () => {
      // Written when the model is at its next step: what is written between two steps all streams wait for, with eight of them a sixth of the time.
      let pending = ''
      let flushing: NodeJS.Immediate | undefined
      const flush = (): void => {
        flushing = undefined
        if (pending === '' || response.destroyed || response.writableEnded) return
        if (!response.headersSent) {
          response.writeHead(200, {
            'content-type': 'text/event-stream; charset=utf-8',
            'cache-control': 'no-cache',
            'x-accel-buffering': 'no',
          })
        }
        // Nobody waits for the network here: a slow reader would hold up the tokens of all others.
        response.write(pending)
        pending = ''
        if (response.writableLength > MAX_UNSENT_BYTES) response.destroy()
      }
      const write = (data: string): void => {
        pending += `data: ${data}\n\n`
        flushing ??= setImmediate(flush)
      }
      return {
        started: () => response.headersSent || pending !== '',
        send: (value) => write(JSON.stringify(value)),
        refuse: (refusal) => {
          if (!response.headersSent && pending === '') return writeRefusal(response, refusal)
          write(JSON.stringify(refusalBody(refusal)))
          write('[DONE]')
          flush()
          response.end()
        },
        end: () => {
          write('[DONE]')
          flush()
          response.end()
        },
      }
    },
  }
}
