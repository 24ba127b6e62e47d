import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { type Clock, type Instant } from '../kit/clock.ts'
import { type Fetched, guardedFetch } from '../kit/guarded-fetch.ts'
import { newId, type OrganizationId, type ProjectId, type RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type Refusal, speak } from '../kit/refusal.ts'
import { type Body, JOIN_BYTES, piecesToBody } from './body.ts'
import type { Deadlines } from './deadlines.ts'
import type { Memory } from './memory.ts'

export type InferenceLimits = {
  /** The largest body, and how long it may take to arrive. */
  readonly bodyBytes: number
  readonly bodyMs: number
  /** From the request accepted to the last byte of the answer (data-plane.md 2.5). */
  readonly totalMs: number
  /** Until the first byte of a stream, and between two bytes of any answer. */
  readonly firstByteMs: number
  readonly idleMs: number
  /** After this long without a byte a stream gets a comment, for the proxies on the way; 0 for never (data-plane.md 6.9). */
  readonly pingMs: number
  /** Request bodies and whole answers in memory, of all requests together. */
  readonly inflightBytes: number
  /** Ranges that may be fetched from although they are not the public internet. */
  readonly fetchAllow: readonly string[]
}

export const DEFAULT_LIMITS: InferenceLimits = {
  bodyBytes: 100 * 1024 * 1024, // data-plane.md 2.6
  bodyMs: 60_000,
  totalMs: 300_000,
  firstByteMs: 120_000, // a prompt of a hundred thousand tokens on a busy engine takes a minute
  idleMs: 60_000,
  pingMs: 15_000,
  inflightBytes: 1024 * 1024 * 1024,
  fetchAllow: [],
}

/** Why nobody waits for the answer any more. */
export type Over = 'client_left' | 'timed_out'

/** One request and its answer, as the story in `serve.ts` needs them. */
export type Exchange = {
  readonly id: RequestId
  readonly acceptedAt: Instant
  /** The project in the URL; without one the key's default project is meant. */
  readonly projectId: ProjectId | undefined
  readonly authorization: string | undefined
  /** From where it comes: the address of the connection, or what a trusted proxy says it is; and what the client calls itself. */
  readonly ip: string
  readonly userAgent: string
  /** Of the body. */
  readonly contentType: string | undefined
  /** The header of that name (idempotency.ts). */
  readonly idempotencyKey: string | undefined
  /** Nobody waits for the answer any more. */
  isOver(): boolean
  /** Aborted then. Made for who asks: an AbortSignal for each request is a twentieth of what the request costs. */
  signal(): AbortSignal
  /** Reads the body, within its bounds, of which the organization has its share. Nothing of it is read before. */
  readBody(organizationId: OrganizationId): Promise<Outcome<Body>>
  /** Counts bytes that are held for this request (memory.ts); false when there is no room. Given back at the end, and when it is refused. */
  hold(bytes: number): boolean
  /** Fetches what the request points at, by the one guarded way; what comes is held for this request. */
  fetch(url: string, bounds: { readonly maxBytes: number; readonly timeMs: number; readonly accept: string }): Promise<Fetched>
  /**
   * Told at most once, when the client leaves or the time is up. Who listens here also answers for the time;
   * while nobody does, the exchange itself says that it is late.
   */
  whenOver(listener: ((over: Over) => void) | undefined): void
  /** Names and values in turn; they stand on whatever answer is sent from here on. */
  setHeaders(headers: readonly string[]): void
  /** The same, for what is true of the answer whoever gets it. They stand beside the others, on refusals too. */
  addHeaders(headers: readonly string[]): void
  /** A whole answer; JSON where nothing else is said. */
  answer(status: number, body: Body, contentType?: string): void
  /** The parts of a stream. `write` says whether the client keeps up; if it does not, `whenDrained` calls once it does. */
  /** May be said again. `failing` words what goes wrong in the middle of it, where that is not the contract's error event. */
  begin(failing?: (refusal: Refusal) => Buffer): void
  write(bytes: Buffer): boolean
  whenDrained(listener: () => void): void
  end(last: Buffer): void
  /** No, in the contract's words: an ordinary answer, or an error event where a stream has begun (data-plane.md 3.5). */
  refuse(refusal: Refusal): void
  /** The same without `[DONE]`: the usage may not be on disk, so nobody may take this for the end of an answer. */
  giveUp(refusal: Refusal): void
  /** Something broke on our side. All of it goes to the log, and to the client nothing but the request's id. */
  fault(error: unknown): void
}

export type ExchangeRooms = {
  readonly clock: Clock
  readonly log: Logger
  readonly limits: InferenceLimits
  readonly deadlines: Deadlines
  /** Shared by all exchanges of the process. */
  readonly memory: Memory
}

/** After a refusal the rest of the body is read and dropped for this long: closing at once would take the answer with it. */
const LINGER_MS = 5_000
/** How long the rest of an answer may lie in our buffers before the connection is cut: 100 MB of vectors over a line of 3 Mbit/s. */
const FLUSH_MS = 300_000
const BUSY_RETRY_MS = 1_000
/** Where `retry-after` says more, some official SDKs come back after seconds all the same, and others sleep for hours and say nothing. */
const WORTH_RETRYING_MS = 60_000
const JSON_TYPE = /^application\/json(?:\s*;\s*charset\s*=\s*"?utf-?8"?)?\s*$/i

/** What a route takes as a body. */
export type Accepts = {
  matches(contentType: string | undefined): boolean
  /** In words, for who sends something else. */
  readonly expected: string
  /** Where it is less than the limit for all. */
  readonly maxBytes?: number
}

const JSON_BODY: Accepts = { matches: (contentType) => JSON_TYPE.test(contentType ?? ''), expected: 'application/json' }

const errorEvent = (refusal: Refusal): Buffer => Buffer.from(`data: ${JSON.stringify(speak(refusal).body)}\n\n`)
export const DONE_EVENT: Buffer = Buffer.from('data: [DONE]\n\n')

/** How a route speaks that is not OpenAI's (dialects/). */
export type Dialect = {
  speak(refusal: Refusal, id: RequestId): { readonly status: number; readonly body: object; readonly retryAfterMs: number | undefined }
  /** The key, as the header that `iam` reads. */
  authorization(headers: IncomingHttpHeaders): string | undefined
  /** Another name that the request's id has there. */
  readonly idHeader: string
}

export const openExchange = (
  rooms: ExchangeRooms,
  request: IncomingMessage,
  response: ServerResponse,
  projectId: ProjectId | undefined,
  { dialect, accepts = JSON_BODY }: { dialect?: Dialect | undefined; accepts?: Accepts | undefined } = {},
  ip: string = request.socket.remoteAddress ?? '',
): Exchange => {
  const { clock, log, limits, deadlines, memory } = rooms
  const maxBodyBytes = Math.min(limits.bodyBytes, accepts.maxBytes ?? limits.bodyBytes)
  const acceptedAt = clock.now()
  const id = newId<'request'>(acceptedAt)
  let abort: AbortController | undefined
  const held = memory.open()
  let answered = false // the last byte has been handed to the socket, or there is no socket any more
  let over: Over | undefined
  let listener: ((over: Over) => void) | undefined
  let failing: ((refusal: Refusal) => Buffer) | undefined

  let continued = request.headers.expect === undefined

  const total = deadlines.add(limits.totalMs, () => {
    if (answered) response.destroy()
    else becomeOver('timed_out')
  })

  /** From here on only the network is between us and the client; one that does not read must not hold the connection for ever. */
  const answeredNow = (): void => {
    answered = true
    deadlines.again(total, FLUSH_MS)
  }

  const becomeOver = (how: Over): void => {
    if (answered || over !== undefined) return
    over = how
    abort?.abort(reasonOf(how))
    if (how === 'client_left') answered = true
    if (listener !== undefined) listener(how)
    else if (how === 'timed_out') giveUp({ code: 'engine_late', limitMs: limits.totalMs })
  }

  const closed = (): void => {
    deadlines.remove(total)
    held.release()
    socket.off('close', closed)
    becomeOver('client_left')
    answered = true
  }
  response.once('close', closed)
  response.on('error', () => {}) // a client that goes away in the middle of a write; `close` follows and says so
  const { socket } = request
  // A pipelined request has no socket of its own yet and hears nothing of the client leaving, so it listens to the connection.
  if (response.socket === null) {
    socket.setMaxListeners(0)
    socket.once('close', closed)
  }

  let extra: readonly string[] = []
  let added: readonly string[] = []
  const named = dialect === undefined ? [] : [dialect.idHeader, id]
  const headers = (contentType: string, ...more: string[]): string[] => [
    'content-type',
    contentType,
    'x-request-id',
    id,
    ...named,
    ...added,
    ...extra,
    ...more,
  ]

  /** When the request has not arrived whole, the answer goes out and the rest is dropped before the connection is used again. */
  const endAfterRequest = (): void => {
    if (request.complete) {
      response.end()
      return
    }
    const linger = deadlines.add(LINGER_MS, () => response.destroy())
    response.once('close', () => deadlines.remove(linger))
    request.once('end', () => response.end())
    request.on('error', () => {})
    request.resume()
  }

  const refuse = (refusal: Refusal): void => {
    if (answered) return
    if (response.headersSent) return end(failing?.(refusal) ?? Buffer.concat([errorEvent(refusal), DONE_EVENT]))
    answeredNow()
    held.release() // now, since a client that goes on sending keeps the connection for a while
    const spoken = dialect === undefined ? speak(refusal) : dialect.speak(refusal, id)
    if ('headers' in refusal && refusal.headers !== undefined) extra = refusal.headers
    const body = JSON.stringify(spoken.body)
    const more = ['content-length', String(Buffer.byteLength(body))]
    if (spoken.retryAfterMs !== undefined) {
      // RFC 9110 §10.2.3: whole seconds; rounding down would invite the client back too early. Official SDKs prefer the exact one.
      more.push('retry-after', String(Math.ceil(spoken.retryAfterMs / 1000)), 'retry-after-ms', String(Math.ceil(spoken.retryAfterMs)))
    }
    // Official SDKs would try both again by themselves: a conflict with the same end; a spent budget either in vain or silently tomorrow.
    const spent = spoken.status === 429 && (spoken.retryAfterMs ?? 0) > WORTH_RETRYING_MS
    if (spoken.status === 409 || spent) more.push('x-should-retry', 'false')
    // RFC 9110 §15.5.9: who was too slow once is not read any further. And who waits to be told to send the body will not send it.
    const unread = refusal.code === 'body_late' || !continued
    if (unread) more.push('connection', 'close')
    response.writeHead(spoken.status, headers('application/json', ...more))
    if (unread || request.complete) {
      response.end(body)
      return
    }
    response.write(body)
    endAfterRequest()
  }

  const giveUp = (refusal: Refusal): void => {
    if (response.headersSent) end(failing?.(refusal) ?? errorEvent(refusal))
    else refuse(refusal)
  }

  const end = (last: Buffer): void => {
    if (answered) return
    answeredNow()
    response.end(last)
  }

  return {
    id,
    acceptedAt,
    projectId,
    ip,
    userAgent: request.headers['user-agent'] ?? '',
    authorization: dialect === undefined ? request.headers.authorization : dialect.authorization(request.headers),
    contentType: request.headers['content-type'],
    idempotencyKey: request.headers['idempotency-key']?.toString(),
    isOver: () => over !== undefined,
    signal,
    readBody: (organizationId) =>
      new Promise((resolve) => {
        held.own(organizationId)
        const wrong = wrongHeader(request, accepts, maxBodyBytes)
        if (wrong !== undefined) return resolve(no(wrong))
        if (!continued) response.writeContinue()
        continued = true

        let pieces: Buffer[] = []
        let small: Buffer[] = []
        let smallBytes = 0
        let bytes = 0
        const settle = (outcome: Outcome<Body>): void => {
          deadlines.remove(slow)
          request.off('data', take).off('end', whole).off('close', halved)
          if (!outcome.ok) {
            request.pause()
            pieces = []
            small = []
          }
          resolve(outcome)
        }
        const take = (piece: Buffer): void => {
          bytes += piece.length
          if (bytes > maxBodyBytes) return settle(no({ code: 'body_too_large', maxBytes: maxBodyBytes }))
          if (!hold(piece.length)) return settle(no(BUSY))
          // A sender of single bytes must not make us walk a list of a million pieces.
          small.push(piece)
          smallBytes += piece.length
          if (smallBytes < JOIN_BYTES) return
          pieces.push(small.length === 1 ? piece : Buffer.concat(small, smallBytes))
          small = []
          smallBytes = 0
        }
        const whole = (): void => {
          if (small.length > 0) pieces.push(small.length === 1 && small[0] !== undefined ? small[0] : Buffer.concat(small, smallBytes))
          settle(yes(piecesToBody(pieces, bytes)))
          pieces = []
        }
        const halved = (): void => settle(no({ code: 'body_not_json', reason: 'the connection ended before the body did' }))
        const slow = deadlines.add(limits.bodyMs, () => settle(no({ code: 'body_late', limitMs: limits.bodyMs })))
        request.on('error', () => {}) // `close` follows
        if (request.destroyed) return halved()
        request.on('data', take).on('end', whole).on('close', halved)
      }),
    hold: (bytes) => hold(bytes),
    async fetch(url, { maxBytes, timeMs, accept }) {
      const fetched = await guardedFetch(url, { maxBytes, timeMs, headers: { accept }, signal: signal(), allow: limits.fetchAllow })
      if (fetched.ok && !hold(fetched.body.length)) return { ok: false, reason: 'too many large requests are in flight' }
      return fetched
    },
    whenOver(told) {
      listener = told
      if (over !== undefined) told?.(over)
    },
    setHeaders(given) {
      extra = given
    },
    addHeaders(given) {
      added = [...added, ...given]
    },
    answer(status, body, contentType = 'application/json') {
      if (answered) return
      answeredNow()
      response.writeHead(status, headers(contentType, 'content-length', String(body.bytes)))
      for (const piece of body.pieces.slice(0, -1)) response.write(piece)
      response.end(body.pieces.at(-1))
    },
    begin(inDialect) {
      if (answered || response.headersSent) return
      failing = inDialect
      response.writeHead(200, headers('text/event-stream', 'cache-control', 'no-cache'))
    },
    write: (bytes) => answered || response.write(bytes),
    whenDrained(drained) {
      response.on('drain', drained)
    },
    end,
    refuse,
    giveUp,
    fault(error) {
      // Whoever was waiting for something when it became pointless is told so by a rejection; that is no fault.
      if (over !== undefined && answered) return
      log.error({ requestId: id, err: error }, 'A request failed')
      giveUp({ code: 'fault' })
    },
  }

  function signal(): AbortSignal {
    if (abort === undefined) {
      abort = new AbortController()
      if (over !== undefined) abort.abort(reasonOf(over))
    }
    return abort.signal
  }

  function hold(bytes: number): boolean {
    return !answered && held.hold(bytes)
  }
}

const reasonOf = (over: Over): Error => new Error(over === 'client_left' ? 'the client has left' : 'the time for the answer is up')

const BUSY: Refusal = { code: 'busy', reason: 'too many large requests are in flight', retryAfterMs: BUSY_RETRY_MS }

const wrongHeader = (request: IncomingMessage, accepts: Accepts, maxBytes: number): Refusal | undefined => {
  const encoding = request.headers['content-encoding']
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') {
    return { code: 'content_type_wrong', expected: `${accepts.expected}, not compressed` }
  }
  if (!accepts.matches(request.headers['content-type'])) return { code: 'content_type_wrong', expected: accepts.expected }
  const declared = Number(request.headers['content-length'] ?? 0)
  return declared > maxBytes ? { code: 'body_too_large', maxBytes } : undefined
}
