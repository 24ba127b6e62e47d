import type { IncomingHttpHeaders } from 'node:http'
import { EngineError } from '@parvis/wire/openai/error'
import type { Dispatcher } from 'undici'
import type { Model } from '../catalog/model.ts'
import type { Leaving, Replica, Seat } from '../engines/replica.ts'
import type { Caller } from '../iam/caller.ts'
import type { Clock, Instant } from '../kit/clock.ts'
import type { EngineId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Ticket } from '../quota/admit.ts'
import { type Answer, countedByUs, type Ending, type Verdict } from './answer.ts'
import type { Body } from './body.ts'
import type { Deadline, Deadlines } from './deadlines.ts'
import { translated } from './dialects/translator.ts'
import { gone, type Request } from './endpoints/endpoint.ts'
import type { Exchange, InferenceLimits, Over } from './exchange.ts'
import { streamedAnswer } from './streamed-answer.ts'
import { wholeAnswer } from './whole-answer.ts'

/** How an engine's answer ended, and what is still to be sent of it: `finish` sends it, once the usage is on disk. */
export type Relayed = Ending & {
  readonly firstByteAt: Instant | null
  readonly endedAt: Instant
  /** The one that answered. */
  readonly replica: Replica
  /** The request was on its way to it. Where it was not, there is nothing to be written down, and `finish` is all that counts. */
  readonly reached: boolean
}

/** A no to the client from an engine that had the request: nobody got an answer, and somebody has worked. */
export type Failed = Omit<Relayed, 'status' | 'finish' | 'reached'> & {
  /** A stream had been begun, with a comment. */ readonly begun: boolean
}

/** What a stream spends while it runs, and how it hears that no more may be spent. */
export type Spending = Pick<Ticket, 'watch' | 'spend'>

/**
 * Calls the engine of the seat and hands its answer on. A refusal means that the client has got nothing yet;
 * everything else, a failure in mid-stream too, is something to be recorded. The seat is left whatever happens.
 */
export type Relay = (
  exchange: Exchange,
  caller: Caller,
  request: Request,
  model: Model,
  seat: Seat,
  spending: Spending,
) => Promise<
  Outcome<Relayed> & {
    /** Another engine may do better. */
    readonly elsewhere?: boolean
    readonly failed?: Failed
    /** It refused what only we asked for, and will not be asked for it any more. */
    readonly again?: boolean
  }
>

const MAX_ERROR_BYTES = 64 * 1024
const MAX_MESSAGE_CHARACTERS = 2_000
/** An engine that has said `[DONE]` and does not end its answer loses the connection, not the client. */
const AFTER_DONE_MS = 1_000
/** Who has not read for this part of the time has been slow; less is what networks do. */
const SLOW_CLIENT_PART = 10
const RETRY_MS = 1_000
const MAX_RETRY_MS = 60_000

type RelayParts = {
  readonly clock: Clock
  readonly log: Logger
  readonly limits: InferenceLimits
  readonly deadlines: Deadlines
  /** Engines that refuse to be asked for running usage; kept as long as this process lives, and there are few. */
  readonly plainEngines: Set<EngineId>
}

export const openRelay = (options: Omit<RelayParts, 'plainEngines'>, plainEngines: Set<EngineId> = new Set()): Relay => {
  const parts: RelayParts = { ...options, plainEngines }
  return (exchange, caller, checked, model, seat, spending) =>
    new Promise((resolve, reject) => {
      try {
        const { native } = checked
        const speaks = native !== undefined && seat.replica.speaks?.includes(native.dialect) === true
        const request = speaks ? native.request : checked
        new EngineCall(parts, { exchange, request, model, seat, spending, resolve, reject }).start(caller, spending)
      } catch (error) {
        // There is not even a call that could leave it.
        seat.leave('unused')
        throw error
      }
    })
}

/** What a call is for, and who waits for what becomes of it. */
type Calling = {
  readonly exchange: Exchange
  readonly request: Request
  readonly model: Model
  readonly seat: Seat
  readonly spending: Spending
  readonly resolve: (relayed: Awaited<ReturnType<Relay>>) => void
  readonly reject: (error: Error) => void
}

/** A class, since there is one for each request and its functions would be made anew for each, as `exchange.ts` says. */
class EngineCall implements Dispatcher.DispatchHandler {
  readonly parts: RelayParts
  readonly exchange: Exchange
  readonly request: Request
  readonly model: Model
  readonly seat: Seat
  readonly resolve: Calling['resolve']
  readonly reject: Calling['reject']
  readonly plain: boolean
  readonly answer: Answer
  readonly quiet: Deadline
  readonly alive: Deadline | undefined
  controller: Dispatcher.DispatchController | undefined
  /** What undici sends of a stream's request, until nobody can need any of it. */
  pieces: Buffer[] | undefined
  /** The engine's own error answer, while it is being read. */
  failing: EngineFailure | undefined
  firstByteAt: Instant | null = null
  released = false
  paused = false
  pausedAtMs = 0
  /** How long the client has held the engine back before. */
  pausedMs = 0
  done = false
  again = false

  constructor(parts: RelayParts, { exchange, request, model, seat, spending, resolve, reject }: Calling) {
    const { limits, deadlines } = parts
    const { remoteModel, engineId } = seat.replica
    const { translate, stream } = request
    this.parts = parts
    this.exchange = exchange
    this.request = request
    this.model = model
    this.seat = seat
    this.resolve = resolve
    this.reject = reject
    this.plain = parts.plainEngines.has(engineId)
    const outlet = stream && translate !== undefined ? translated(exchange, translate(exchange)) : exchange
    this.answer =
      request.openAnswer?.(exchange, { remoteModel, spend: spending.spend }) ??
      (stream ? streamedAnswer : wholeAnswer)(outlet, request, model, remoteModel, spending.spend)
    // A whole answer comes when all of it is made: until it begins, the total is the only measure.
    this.quiet = deadlines.add(stream ? limits.firstByteMs : Number.POSITIVE_INFINITY, () => this.silent())
    this.alive = stream && limits.pingMs > 0 ? deadlines.add(limits.pingMs, () => this.ping()) : undefined
  }

  start(caller: Caller, spending: Spending): void {
    const { exchange, request } = this
    exchange.whenOver((over) => this.abandoned(over))
    if (this.released) return
    spending.watch(() => this.exhausted())
    if (request.stream) exchange.whenDrained(() => this.drained())
    try {
      this.dispatch(caller)
    } catch (error) {
      this.fault(error)
    }
  }

  dispatch(caller: Caller): void {
    const { exchange, request, seat } = this
    const { replica } = seat
    const body = request.bytesFor(replica.remoteModel, this.plain)
    const headers = [
      'content-type',
      request.contentType ?? 'application/json',
      'accept',
      request.stream ? 'text/event-stream' : 'application/json',
      'content-length',
      String(body.bytes),
      'x-request-id',
      exchange.id,
      'x-parvis-tenant',
      caller.projectId,
    ]
    if (replica.bearer !== undefined) headers.push('authorization', `Bearer ${replica.bearer}`)
    const path = `${replica.basePath}${request.enginePath}`
    // Our own deadlines stand around the call: an engine may think for minutes.
    const sent = bodyToDispatch(body, request.stream)
    seat.client.dispatch({ method: 'POST', path, headers, body: sent as Buffer, headersTimeout: 0, bodyTimeout: 0 }, this)
    if (request.stream && Array.isArray(sent)) this.pieces = sent
  }

  /**
   * An open stream keeps nothing of its prompt, which may be hundreds of kilobytes: undici's list is emptied when the engine has begun to answer, since it has read
   * all of it, and what a count would need when it has counted.
   */
  letGo(pieces: Buffer[]): void {
    pieces.length = 0
    if (this.answer.isCounted?.() !== true) return
    this.pieces = undefined
    if (this.request.lean !== true) return
    this.request.bytesFor = gone
    this.exchange.release()
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.controller = controller
    if (this.released) controller.abort(STOPPED)
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number, headers: IncomingHttpHeaders): void {
    if (this.released || status < 200) return
    try {
      controller.rawHeaders = null // 1.5 KB of each open stream, and a part of what they were read into
      const wanted = this.request.stream ? 'text/event-stream' : 'application/json'
      const type = String(headers['content-type'] ?? '').toLowerCase()
      if (status === 200 && type.startsWith(wanted) && headers['content-encoding'] === undefined) return
      this.failing = { status, type, retryAfter: headers['retry-after'], retryAfterMs: headers['retry-after-ms'], pieces: [], bytes: 0 }
    } catch (error) {
      this.fault(error)
    }
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.released) return
    try {
      const { parts, answer } = this
      const { limits, deadlines } = parts
      deadlines.move(this.quiet, limits.idleMs)
      if (this.alive !== undefined) deadlines.move(this.alive, limits.pingMs)
      this.firstByteAt ??= parts.clock.now()
      if (this.failing !== undefined) return this.readFailure(this.failing, chunk)
      const verdict = answer.data(chunk)
      if (this.pieces !== undefined) this.letGo(this.pieces)
      // A budget may have run out with what came.
      if (verdict === undefined || this.released) return
      if (verdict === 'done') {
        this.done = true
        deadlines.move(this.quiet, AFTER_DONE_MS)
      } else if (verdict === 'wait') this.pause()
      else this.breakOff(verdict)
    } catch (error) {
      this.fault(error)
    }
  }

  onResponseEnd(): void {
    if (this.released) return
    try {
      const { failing, request, seat } = this
      if (failing === undefined) return this.conclude(this.answer.end(), 'ended')
      this.again = request.stream && !this.plain && refusesRunningUsage(failing)
      if (this.again) this.parts.plainEngines.add(seat.replica.engineId)
      this.conclude(failureToVerdict(failing, request, this.model, seat.replica.remoteModel), 'ended')
    } catch (error) {
      this.fault(error)
    }
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (this.released) return
    try {
      if (this.done) return this.conclude(this.answer.end(), 'failed')
      const failed = errorToRefusal(error, this.model, this.request.stream && this.firstByteAt !== null)
      const verdict = this.answer.broken('engine_failed', failed.refusal)
      this.conclude({ ...verdict, log: failed.log, elsewhere: failed.elsewhere }, 'failed')
    } catch (fault) {
      this.fault(fault)
    }
  }

  /** Nobody waits any more, or the time is up. */
  abandoned(over: Over): void {
    if (this.released) return
    try {
      const { totalMs } = this.parts.limits
      const verdict = this.answer.broken(over, { code: 'engine_late', limitMs: totalMs })
      if (over === 'timed_out' && 'ending' in verdict && this.isClientSlow())
        return this.conclude({ ...verdict, ending: { ...verdict.ending, ended: 'client_left' } }, 'stopped')
      const log = over === 'timed_out' ? { log: `no end within ${totalMs} ms` } : {}
      this.conclude({ ...verdict, ...log }, 'stopped')
    } catch (error) {
      this.fault(error)
    }
  }

  /** A budget has run out. */
  exhausted(): void {
    if (this.released) return
    try {
      const verdict = this.answer.exhausted?.()
      if (verdict !== undefined) this.conclude(verdict, 'stopped')
    } catch (error) {
      this.fault(error)
    }
  }

  /** The engine has said nothing for too long. */
  silent(): void {
    if (this.released) return
    try {
      if (this.done) return this.conclude(this.answer.end(), 'stopped')
      const { firstByteMs, idleMs } = this.parts.limits
      const limitMs = this.firstByteAt === null ? firstByteMs : idleMs
      this.conclude({ ...this.answer.broken('timed_out', { code: 'engine_late', limitMs }), log: `silent for ${limitMs} ms` }, 'failed')
    } catch (error) {
      this.fault(error)
    }
  }

  ping(): void {
    const { answer, alive, parts } = this
    if (alive === undefined || this.released) return
    try {
      if (!this.paused && !this.done && this.failing === undefined) answer.ping?.()
      parts.deadlines.again(alive, parts.limits.pingMs)
    } catch (error) {
      this.fault(error)
    }
  }

  /** It is the client that is slow now; only the total still counts. */
  pause(): void {
    this.paused = true
    this.pausedAtMs = performance.now()
    this.parts.deadlines.move(this.quiet, Number.POSITIVE_INFINITY)
    this.controller?.pause()
  }

  drained(): void {
    if (this.released || !this.paused) return
    try {
      this.paused = false
      this.pausedMs += performance.now() - this.pausedAtMs
      this.parts.deadlines.move(this.quiet, this.parts.limits.idleMs)
      this.controller?.resume()
    } catch (error) {
      this.fault(error)
    }
  }

  /** Whose time it was: an answer that was held back by its reader is not too slow, or whoever reads all but the end would pay nothing. */
  isClientSlow(): boolean {
    return this.paused || this.pausedMs * SLOW_CLIENT_PART >= this.parts.limits.totalMs
  }

  readFailure(failing: EngineFailure, chunk: Buffer): void {
    failing.bytes += chunk.length
    if (failing.bytes <= MAX_ERROR_BYTES) failing.pieces.push(chunk)
    else this.breakOff(failureToVerdict(failing, this.request, this.model, this.seat.replica.remoteModel))
  }

  /** In the middle of what the engine says. Only where that is a failure is it the engine's. */
  breakOff(verdict: Verdict): void {
    this.conclude(verdict, isFailure(verdict) ? 'failed' : 'stopped')
  }

  /** `ended`: the engine had no more to say. `stopped`: we did not want more, or had no room for it, and it is not the engine's fault. */
  conclude(verdict: Verdict, how: 'ended' | 'stopped' | 'failed'): void {
    if (this.released) return
    this.release(how === 'failed' ? 'broken' : isFailure(verdict) ? 'failed' : 'clean')
    const { exchange, firstByteAt, parts, seat } = this
    const { replica } = seat
    if (how !== 'ended') this.controller?.abort(STOPPED)
    if (verdict.log !== undefined) {
      const said = 'refusal' in verdict && verdict.ours === true ? verdict.log : `Engine: ${verdict.log}`
      parts.log.warn({ requestId: exchange.id, replica: replica.name, model: this.model.name }, said)
    }
    const reached = this.controller !== undefined
    const endedAt = parts.clock.now()
    if ('ending' in verdict) {
      const { counts, counted, ended, status, words, finish } = verdict.ending
      // Field by field: usage/event.ts says why.
      return this.resolve(
        yes({
          counts,
          counted,
          ended,
          status,
          words,
          finish,
          firstByteAt,
          endedAt,
          replica,
          reached,
        }),
      )
    }
    const ended = verdict.refusal.code === 'engine_late' ? 'timed_out' : 'engine_failed'
    const failed = { ...countedByUs(this.request, 0), ended, begun: exchange.begun, firstByteAt, endedAt, replica } as const
    this.resolve({
      ...no(verdict.refusal),
      elsewhere: verdict.elsewhere === true,
      again: this.again,
      ...(reached && verdict.idle !== true ? { failed } : {}),
    })
  }

  /**
   * A bug of ours, wherever we are called from: undici would close the connection for it, and the one sweep of all deadlines, a socket that closes or
   * whoever keeps a budget would end with it. It ends this request, and is not the engine's fault.
   */
  fault(error: unknown): void {
    this.release('clean')
    this.controller?.abort(STOPPED)
    this.reject(error instanceof Error ? error : new Error('the relay failed', { cause: error }))
    const { exchange, parts } = this
    // To the exchange a rejection is then nothing but the end of a wait.
    if (exchange.over === 'client_left') parts.log.error({ requestId: exchange.id, err: error }, 'A call failed when its client had left')
  }

  /** Gives back what the call has: its seat, its limits of time, the ear that it lent to the client. What comes after that counts no more. */
  release(how: Exclude<Leaving, 'unused'>): void {
    const { exchange, parts, request } = this
    const { deadlines } = parts
    this.released = true
    exchange.whenOver(undefined)
    if (request.stream) exchange.whenDrained(undefined)
    deadlines.remove(this.quiet)
    if (this.alive !== undefined) deadlines.remove(this.alive)
    this.seat.leave(how === 'clean' && this.controller === undefined ? 'unused' : how)
  }
}

/** The engine did not do what it is there for. Being busy is no failure, and neither are refusing a body and an answer for which we have no room. */
const isFailure = (verdict: Verdict): boolean =>
  'refusal' in verdict ? verdict.refusal.code === 'engine_failed' : verdict.ending.ended === 'engine_failed'

const STOPPED = new Error('nobody waits for this answer any more')

/**
 * A small body goes as one buffer. A large one goes in its pieces, since joining it costs more than all the rest of the relay;
 * undici takes any iterable, which its types do not say.
 */
/**
 * undici holds a buffer until the answer has ended, and of a list only the list, out of which we can take the pieces again: a stream's body is sent as one. It
 * costs some microseconds, so a whole answer's is not.
 */
const bodyToDispatch = ({ pieces }: Body, stream: boolean): Buffer | Buffer[] => {
  const [only] = pieces
  return pieces.length === 1 && only !== undefined && !stream ? only : [...pieces]
}

type EngineFailure = {
  status: number
  type: string
  retryAfter: string | string[] | undefined
  retryAfterMs: string | string[] | undefined
  pieces: Buffer[]
  bytes: number
}

/** As much of a type as goes into a log: anything else might be words of an answer. */
const MIME = /^(?:application|audio|image|text)\/[a-z0-9.+-]{1,40}(?=;|$)/

/** What an engine's error answer means to the client. Nothing has been sent yet. */
const failureToVerdict = (failure: EngineFailure, request: Request, model: Model, remoteModel: string): Verdict => {
  const { status } = failure
  const error = status === 200 ? undefined : readError(failure.pieces)
  const failed = (reason: string, log: string): Verdict & { refusal: Refusal } => ({
    refusal: { code: 'engine_failed', model: model.name, reason },
    log,
  })
  if (status === 200) return failed('its answer is of another kind', `content type ${MIME.exec(failure.type)?.[0] ?? 'unreadable'}`)
  if (status === 429 || status === 503) {
    return {
      refusal: { code: 'busy', reason: `the engine of ${model.name} is busy`, retryAfterMs: retryMs(failure) },
      log: `busy, status ${status}`,
      elsewhere: true,
      idle: true,
    }
  }
  // Our key, our address or our name for the model is wrong there. None of it is the caller's business.
  const ours = status === 401 || status === 403 || status === 404
  if (status < 400 || status >= 500 || ours || error === undefined) {
    return { ...failed('it did not accept the request', `status ${status}`), elsewhere: ours || status >= 500, idle: status < 500 }
  }
  return { refusal: toRefused(status, error, request, model, remoteModel), idle: true }
}

const RUNNING_USAGE = 'continuous_usage_stats'

/** Some servers take only the options that they know; they name the one that they do not. */
const refusesRunningUsage = ({ status, pieces }: EngineFailure): boolean =>
  (status === 400 || status === 422) && Buffer.concat(pieces).includes(RUNNING_USAGE)

const toRefused = (status: number, error: EngineError, request: Request, model: Model, remoteModel: string): Refusal => {
  // The name that only we and the engine use would puzzle whoever reads it.
  const message = error.message.slice(0, MAX_MESSAGE_CHARACTERS).replaceAll(remoteModel, model.name)
  const asked = contextAsked(message, error)
  if (asked !== undefined) return { code: 'context_exceeded', ...asked }
  // The contract has 400 for what is wrong in a body and 422 only for the model (data-plane.md 3.2).
  const param = error.param ?? null
  const field = param === null ? null : (request.fieldOf?.(param) ?? param)
  return { code: 'engine_refused', status: status === 416 ? 416 : 400, message, param: field }
}

/**
 * The context window in the words of vLLM and llama.cpp. The contract wants both numbers in ours (data-plane.md 3.3);
 * a sentence that already says it as the contract does is left alone.
 */
const contextAsked = (message: string, error: EngineError): { asked: number; maximum: number } | undefined => {
  if (message.includes('maximum context window')) return undefined
  const said = /maximum context length is (\d+) tokens\D+(\d+) /.exec(message)
  if (said !== null) return { maximum: Number(said[1]), asked: Number(said[2]) }
  const { n_prompt_tokens: asked, n_ctx: maximum } = error as { n_prompt_tokens?: unknown; n_ctx?: unknown }
  return typeof asked === 'number' && typeof maximum === 'number' ? { asked, maximum } : undefined
}

const readError = (pieces: readonly Buffer[]): EngineError | undefined => {
  try {
    const read = EngineError.safeParse(JSON.parse(Buffer.concat(pieces).toString()))
    return read.success ? read.data : undefined
  } catch {
    return undefined
  }
}

const retryMs = (failure: EngineFailure): number => {
  const inMs = Number(failure.retryAfterMs)
  const inSeconds = Number(failure.retryAfter)
  const ms = inMs > 0 ? inMs : inSeconds > 0 ? inSeconds * 1000 : RETRY_MS
  return Math.min(ms, MAX_RETRY_MS)
}

/** Nobody there is 503, and worth another try; somebody there who speaks nonsense is 500. */
const errorToRefusal = (error: Error, model: Model, answering: boolean): { refusal: Refusal; log: string; elsewhere: boolean } => {
  const code = 'code' in error && typeof error.code === 'string' ? error.code : error.name
  const failed = (reason: string, log: string) =>
    ({ refusal: { code: 'engine_failed', model: model.name, reason }, log, elsewhere: false }) as const
  if (
    error.name === 'HTTPParserError' ||
    code.startsWith('HPE_') ||
    code.startsWith('UND_ERR_HEADERS_OVERFLOW') ||
    code.includes('CONTENT_LENGTH_MISMATCH')
  ) {
    return failed('its answer cannot be read', `protocol error ${code}`)
  }
  if (answering) return failed('it broke off', `broke off, ${code}`)
  return {
    refusal: { code: 'engine_unavailable', model: model.name, reason: 'it did not answer', retryAfterMs: RETRY_MS },
    log: `no answer, ${code}`,
    elsewhere: true,
  }
}
