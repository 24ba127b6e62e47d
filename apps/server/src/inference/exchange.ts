import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { type Clock, type Instant } from '../kit/clock.ts'
import { type Fetched, guardedFetch } from '../kit/guarded-fetch.ts'
import { newId, type OrganizationId, type ProjectId, type RequestId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type Refusal, speak } from '../kit/refusal.ts'
import { addPiece, type Body, type PartialBody, toBody } from './body.ts'
import type { Deadline, Deadlines } from './deadlines.ts'
import type { Held, Memory } from './memory.ts'

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

export type FetchBounds = { readonly maxBytes: number; readonly timeMs: number; readonly accept: string }

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
  /** Why nobody waits for the answer any more. */
  readonly over: Over | undefined
  isOver(): boolean
  /** Aborted then. Made for who asks: an AbortSignal for each request is a twentieth of what the request costs. */
  signal(): AbortSignal
  /** Reads the body, within its bounds, of which the organization has its share. Nothing of it is read before. */
  readBody(organizationId: OrganizationId): Promise<Outcome<Body>>
  /** Counts bytes that are held for this request (memory.ts); false when there is no room. Given back at the end, and when it is refused. */
  hold(bytes: number): boolean
  /** Gives back what is held, where it was let go before the end. */
  release(): void
  /** Fetches what the request points at, by the one guarded way; what comes is held for this request. */
  fetch(url: string, bounds: FetchBounds): Promise<Fetched>
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
  /** A stream has been begun: its status is 200, whatever follows. */
  readonly begun: boolean
  /** Begins one. May be said again. `failing` words what goes wrong in the middle of it, where that is not the contract's error event. */
  begin(failing?: (refusal: Refusal) => Buffer): void
  /** A part of it. Says whether the client keeps up. */
  write(bytes: Buffer): boolean
  /** Told whenever a client that did not keep up does again. One listens at a time, as at `whenOver`. */
  whenDrained(listener: (() => void) | undefined): void
  /** The last part. */
  end(last: Buffer): void
  /** No, in the contract's words: an ordinary answer, or an error event where a stream has begun (data-plane.md 3.5). */
  refuse(refusal: Refusal): void
  /** The same without `[DONE]`: the usage may not be on disk, so nobody may take this for the end of an answer. */
  giveUp(refusal: Refusal): void
  /** Something broke on our side. All of it goes to the log, and to the client nothing but the request's id. */
  fault(error: unknown): void
}

/** Where an answer goes: the exchange itself, or whatever writes it there in another way (dialects/translator.ts). */
export type Outlet = Pick<Exchange, 'id' | 'acceptedAt' | 'hold' | 'begin' | 'write' | 'end' | 'answer' | 'refuse'>

/** The same outlet, but for these parts. */
export const changedOutlet = (outlet: Outlet, parts: Partial<Outlet>): Outlet => ({
  id: outlet.id,
  acceptedAt: outlet.acceptedAt,
  hold: (bytes) => outlet.hold(bytes),
  begin: (failing) => outlet.begin(failing),
  write: (bytes) => outlet.write(bytes),
  end: (last) => outlet.end(last),
  answer: (...answer) => outlet.answer(...answer),
  refuse: (refusal) => outlet.refuse(refusal),
  ...parts,
})

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

/** Opens the exchange of a request whose head has come. */
export const openExchange = (
  rooms: ExchangeRooms,
  request: IncomingMessage,
  response: ServerResponse,
  projectId: ProjectId | undefined,
  manner: Manner = PLAIN,
  ip: string = request.socket.remoteAddress ?? '',
): Exchange => new HttpExchange(rooms, request, response, projectId, manner, ip)

type Manner = { readonly dialect?: Dialect | undefined; readonly accepts?: Accepts | undefined }

const PLAIN: Manner = {}
const NONE: readonly string[] = []
const ignore = (): void => undefined

/**
 * A class, since there is one for each request: as closures its two dozen functions were a twentieth of all that a request left behind,
 * and lived for as long as a stream is open.
 */
class HttpExchange implements Exchange {
  readonly id: RequestId
  readonly acceptedAt: Instant
  readonly projectId: ProjectId | undefined
  readonly ip: string

  readonly rooms: ExchangeRooms
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly manner: Manner
  readonly held: Held
  readonly total: Deadline
  /** The last byte has been handed to the socket, or there is no socket any more. */
  answered = false
  over: Over | undefined
  begun = false
  continued: boolean
  extra = NONE
  added = NONE
  listener: ((over: Over) => void) | undefined
  drained: (() => void) | undefined
  failing: ((refusal: Refusal) => Buffer) | undefined
  abort: AbortController | undefined

  constructor(
    rooms: ExchangeRooms,
    request: IncomingMessage,
    response: ServerResponse,
    projectId: ProjectId | undefined,
    manner: Manner,
    ip: string,
  ) {
    const { clock, deadlines, limits, memory } = rooms
    this.acceptedAt = clock.now()
    this.id = newId<'request'>(this.acceptedAt)
    this.projectId = projectId
    this.ip = ip
    this.rooms = rooms
    this.request = request
    this.response = response
    this.manner = manner
    this.held = memory.open()
    this.continued = request.headers.expect === undefined
    this.total = deadlines.add(limits.totalMs, () => {
      if (this.answered) response.destroy()
      else this.becomeOver('timed_out')
    })
    const { socket } = request
    // A pipelined request has no socket of its own yet and hears nothing of the client leaving, so it listens to the connection.
    const waits = response.socket === null
    const closed = (): void => {
      if (waits) socket.off('close', closed)
      this.closed()
    }
    response.on('close', closed)
    response.on('error', ignore) // a client that goes away in the middle of a write; `close` follows and says so
    if (waits) {
      socket.setMaxListeners(0)
      socket.on('close', closed)
    }
  }

  get userAgent(): string {
    return this.request.headers['user-agent'] ?? ''
  }

  get authorization(): string | undefined {
    const { headers } = this.request
    return this.manner.dialect === undefined ? headers.authorization : this.manner.dialect.authorization(headers)
  }

  get contentType(): string | undefined {
    return this.request.headers['content-type']
  }

  get idempotencyKey(): string | undefined {
    return this.request.headers['idempotency-key']?.toString()
  }

  isOver(): boolean {
    return this.over !== undefined
  }

  signal(): AbortSignal {
    if (this.abort === undefined) {
      this.abort = new AbortController()
      if (this.over !== undefined) this.abort.abort(reasonOf(this.over))
    }
    return this.abort.signal
  }

  readBody(organizationId: OrganizationId): Promise<Outcome<Body>> {
    const { rooms, request } = this
    const accepts = this.manner.accepts ?? JSON_BODY
    const maxBytes = Math.min(rooms.limits.bodyBytes, accepts.maxBytes ?? rooms.limits.bodyBytes)
    this.held.own(organizationId)
    const wrong = wrongHeader(request, accepts, maxBytes)
    if (wrong !== undefined) return Promise.resolve(no(wrong))
    if (!this.continued) this.response.writeContinue()
    this.continued = true
    return new Promise((resolve) => {
      const body: PartialBody = { pieces: undefined, bytes: 0, small: 0, smallBytes: 0 }
      const endReading = (outcome: Outcome<Body>): void => {
        rooms.deadlines.remove(slow)
        request.off('data', take).off('end', whole).off('close', halved)
        if (!outcome.ok) {
          request.pause()
          body.pieces = undefined
        }
        resolve(outcome)
      }
      const take = (piece: Buffer): void => {
        if (body.bytes + piece.length > maxBytes) return endReading(no({ code: 'body_too_large', maxBytes }))
        if (!this.hold(piece.length)) return endReading(no(BUSY))
        addPiece(body, piece)
      }
      const whole = (): void => {
        endReading(yes(toBody(body)))
        body.pieces = undefined
      }
      const halved = (): void => endReading(no({ code: 'body_not_json', reason: 'the connection ended before the body did' }))
      const slow = rooms.deadlines.add(rooms.limits.bodyMs, () => endReading(no({ code: 'body_late', limitMs: rooms.limits.bodyMs })))
      request.on('error', ignore) // `close` follows
      if (request.destroyed) return halved()
      request.on('data', take).on('end', whole).on('close', halved)
    })
  }

  hold(bytes: number): boolean {
    return !this.answered && this.held.hold(bytes)
  }

  release(): void {
    this.held.release()
  }

  async fetch(url: string, { maxBytes, timeMs, accept }: FetchBounds): Promise<Fetched> {
    const { fetchAllow: allow } = this.rooms.limits
    const fetched = await guardedFetch(url, { maxBytes, timeMs, headers: { accept }, signal: this.signal(), allow })
    if (fetched.ok && !this.hold(fetched.body.length)) return { ok: false, reason: 'too many large requests are in flight' }
    return fetched
  }

  whenOver(listener: ((over: Over) => void) | undefined): void {
    this.listener = listener
    if (this.over !== undefined) listener?.(this.over)
  }

  setHeaders(headers: readonly string[]): void {
    this.extra = headers
  }

  addHeaders(headers: readonly string[]): void {
    this.added = [...this.added, ...headers]
  }

  answer(status: number, body: Body, contentType = 'application/json'): void {
    if (this.answered) return
    const { response } = this
    this.answeredNow()
    response.writeHead(status, this.headers(contentType, 'content-length', String(body.bytes)))
    const last = body.pieces.length - 1
    for (let place = 0; place < last; place += 1) response.write(body.pieces[place])
    response.end(body.pieces[last])
  }

  begin(failing?: (refusal: Refusal) => Buffer): void {
    if (this.answered || this.response.headersSent) return
    this.begun = true
    this.failing = failing
    this.response.writeHead(200, this.headers('text/event-stream', 'cache-control', 'no-cache'))
  }

  write(bytes: Buffer): boolean {
    return this.answered || this.response.write(bytes)
  }

  whenDrained(listener: (() => void) | undefined): void {
    const { response, drained } = this
    if (drained !== undefined) response.off('drain', drained)
    if (listener !== undefined) response.on('drain', listener)
    this.drained = listener
  }

  end(last: Buffer): void {
    if (this.answered) return
    this.answeredNow()
    this.response.end(last)
  }

  refuse(refusal: Refusal): void {
    if (this.answered) return
    const { request, response } = this
    const { dialect } = this.manner
    if (response.headersSent) return this.end(this.failing?.(refusal) ?? Buffer.concat([errorEvent(refusal), DONE_EVENT]))
    this.answeredNow()
    this.held.release() // now, since a client that goes on sending keeps the connection for a while
    const spoken = dialect === undefined ? speak(refusal) : dialect.speak(refusal, this.id)
    if ('headers' in refusal && refusal.headers !== undefined) this.extra = refusal.headers
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
    const unread = refusal.code === 'body_late' || !this.continued
    if (unread) more.push('connection', 'close')
    response.writeHead(spoken.status, this.headers('application/json', ...more))
    if (unread || request.complete) {
      response.end(body)
      return
    }
    response.write(body)
    this.endAfterRequest()
  }

  giveUp(refusal: Refusal): void {
    if (this.response.headersSent) this.end(this.failing?.(refusal) ?? errorEvent(refusal))
    else this.refuse(refusal)
  }

  fault(error: unknown): void {
    // Whoever was waiting for something when it became pointless is told so by a rejection; that is no fault.
    if (this.over !== undefined && this.answered) return
    this.rooms.log.error({ requestId: this.id, err: error }, 'A request failed')
    this.giveUp({ code: 'fault' })
  }

  /** From here on only the network is between us and the client; one that does not read must not hold the connection for ever. */
  answeredNow(): void {
    this.answered = true
    this.rooms.deadlines.again(this.total, FLUSH_MS)
  }

  becomeOver(how: Over): void {
    if (this.answered || this.over !== undefined) return
    this.over = how
    this.abort?.abort(reasonOf(how))
    if (how === 'client_left') this.answered = true
    if (this.listener !== undefined) this.listener(how)
    else if (how === 'timed_out') this.giveUp({ code: 'engine_late', limitMs: this.rooms.limits.totalMs })
  }

  /** There is no connection any more. */
  closed(): void {
    this.rooms.deadlines.remove(this.total)
    this.held.release()
    this.becomeOver('client_left')
    this.answered = true
  }

  headers(contentType: string, ...more: string[]): string[] {
    const { dialect } = this.manner
    const alias = dialect === undefined ? NONE : [dialect.idHeader, this.id]
    return ['content-type', contentType, 'x-request-id', this.id].concat(alias, this.added, this.extra, more)
  }

  /** When the request has not arrived whole, the answer goes out and the rest is dropped before the connection is used again. */
  endAfterRequest(): void {
    const { request, response } = this
    const { deadlines } = this.rooms
    const linger = deadlines.add(LINGER_MS, () => response.destroy())
    response.once('close', () => deadlines.remove(linger))
    request.once('end', () => response.end())
    request.on('error', ignore)
    request.resume()
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
