import { EngineError } from '@parvis/wire/openai/error'
import type { Dispatcher } from 'undici'
import type { Model } from '../catalog/model.ts'
import type { Replica, Seat } from '../engines/replica.ts'
import type { Caller } from '../iam/caller.ts'
import type { Clock, Instant } from '../kit/clock.ts'
import type { EngineId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Ticket } from '../quota/admit.ts'
import { type Answer, countedByUs, type Ending, NO_COUNTS, type Verdict } from './answer.ts'
import type { Body } from './body.ts'
import type { Deadlines } from './deadlines.ts'
import { translated } from './dialects/translator.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange, InferenceLimits } from './exchange.ts'
import { streamedAnswer } from './streamed-answer.ts'
import { wholeAnswer } from './whole-answer.ts'

/** How an engine's answer ended, and what is still to be sent of it: `finish` sends it, once the usage is on disk. */
export type Relayed = Ending & {
  readonly firstByteAt: Instant | null
  readonly endedAt: Instant
  /** The one that answered. */
  readonly replica: Replica
  /** The request was on its way to it. */
  readonly begun: boolean
}

/** A no to the client from an engine that had the request: nobody got an answer, and somebody has worked. */
export type Failed = Omit<Relayed, 'status' | 'finish'> & { /** A stream had been begun with a comment. */ readonly sent: boolean }

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

export const openRelay =
  (
    options: { clock: Clock; log: Logger; limits: InferenceLimits; deadlines: Deadlines },
    /** Engines that refuse to be asked for running usage; kept as long as this process lives, and there are few. */
    plainEngines: Set<EngineId> = new Set(),
  ): Relay =>
  (exchange, caller, checked, model, seat, spending) =>
    new Promise((resolve, reject) => {
      const { clock, log, limits, deadlines } = options
      const { replica } = seat
      const { native } = checked
      const request = native !== undefined && replica.speaks?.includes(native.dialect) === true ? native.request : checked
      const plain = plainEngines.has(replica.engineId)
      const { translate } = request
      const told = request.stream && translate !== undefined ? translated(exchange, translate(exchange)) : exchange
      const answer: Answer =
        request.openAnswer?.(exchange, { remoteModel: replica.remoteModel, spend: spending.spend }) ??
        (request.stream ? streamedAnswer : wholeAnswer)(told, request, model, replica.remoteModel, spending.spend)
      let controller: Dispatcher.DispatchController | undefined
      let failing: EngineFailure | undefined // the engine's own error answer, while it is being read
      let firstByteAt: Instant | null = null
      let settled = false
      let paused = false
      let pausedAtMs = 0
      let pausedMs = 0 // how long the client has held the engine back before
      let done = false
      let pinged = false
      let again = false

      // A whole answer comes when all of it is made: until it begins, the total is the only measure.
      const quiet = deadlines.add(request.stream ? limits.firstByteMs : Number.POSITIVE_INFINITY, () => {
        if (done) return conclude(answer.end(), 'stopped')
        const limitMs = firstByteAt === null ? limits.firstByteMs : limits.idleMs
        conclude({ ...answer.broken('timed_out', { code: 'engine_late', limitMs }), log: `silent for ${limitMs} ms` }, 'failed')
      })

      const alive = deadlines.add(request.stream && limits.pingMs > 0 ? limits.pingMs : Number.POSITIVE_INFINITY, () => {
        if (!paused && !done && failing === undefined) {
          pinged ||= answer.ping !== undefined
          guarded(() => answer.ping?.())
        }
        if (!settled) deadlines.again(alive, limits.pingMs)
      })

      /** `ended`: the engine had no more to say. `stopped`: we did not want more, and it is not the engine's fault. */
      const conclude = (verdict: Verdict, how: 'ended' | 'stopped' | 'failed'): void => {
        if (settled) return
        settled = true
        deadlines.remove(quiet)
        deadlines.remove(alive)
        exchange.whenOver(undefined)
        if (how !== 'ended') controller?.abort(STOPPED)
        seat.leave(how === 'failed' ? 'broken' : isFailure(verdict) ? 'failed' : 'clean')
        if (verdict.log !== undefined)
          log.warn({ requestId: exchange.id, replica: replica.name, model: model.name }, `Engine: ${verdict.log}`)
        const begun = controller !== undefined
        const endedAt = clock.now()
        if ('ending' in verdict) {
          const { counts, counted, ended, status, words, finish } = verdict.ending
          const count = begun ? { counts, counted } : { counts: NO_COUNTS, counted: 'none' as const }
          // Field by field: usage/event.ts says why.
          return resolve(
            yes({ counts: count.counts, counted: count.counted, ended, status, words, finish, firstByteAt, endedAt, replica, begun }),
          )
        }
        const { code } = verdict.refusal
        const worked =
          begun && verdict.idle !== true && (code === 'engine_failed' || code === 'engine_unavailable' || code === 'engine_late')
        const ended = code === 'engine_late' ? 'timed_out' : 'engine_failed'
        resolve({
          ...no(verdict.refusal),
          elsewhere: verdict.elsewhere === true,
          again,
          ...(worked ? { failed: { ...countedByUs(request, 0), ended, sent: pinged, firstByteAt, endedAt, replica, begun } } : {}),
        })
      }

      /** A bug of ours in a callback of the client's must not take the connection's other users with it. */
      const guarded = (work: () => void): void => {
        try {
          work()
        } catch (error) {
          settled = true
          deadlines.remove(quiet)
          deadlines.remove(alive)
          seat.leave('broken')
          controller?.abort(STOPPED)
          reject(error instanceof Error ? error : new Error('the relay failed', { cause: error }))
        }
      }

      /** Whose time it was: an answer that was held back by its reader is not too slow, or whoever reads all but the end would pay nothing. */
      const isClientSlow = (): boolean => paused || pausedMs * SLOW_CLIENT_PART >= limits.totalMs

      exchange.whenOver((over) => {
        const verdict = answer.broken(over, { code: 'engine_late', limitMs: limits.totalMs })
        if (over === 'timed_out' && 'ending' in verdict && isClientSlow())
          return conclude({ ...verdict, ending: { ...verdict.ending, ended: 'client_left' } }, 'stopped')
        const log = over === 'timed_out' ? { log: `no end within ${limits.totalMs} ms` } : {}
        conclude({ ...verdict, ...log }, 'stopped')
      })
      if (settled) return
      spending.watch(() => {
        const verdict = settled ? undefined : answer.exhausted?.()
        if (verdict !== undefined) conclude(verdict, 'stopped')
      })

      if (request.stream) {
        exchange.whenDrained(() => {
          if (settled || !paused) return
          paused = false
          pausedMs += performance.now() - pausedAtMs
          deadlines.move(quiet, limits.idleMs)
          controller?.resume()
        })
      }

      const body = request.bytesFor(replica.remoteModel, plain)
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

      seat.client.dispatch(
        // Our own deadlines stand around the call: an engine may think for minutes.
        {
          method: 'POST',
          path: `${replica.basePath}${request.enginePath}`,
          headers,
          body: bodyToDispatch(body),
          headersTimeout: 0,
          bodyTimeout: 0,
        },
        {
          onRequestStart(started) {
            controller = started
            if (settled) started.abort(STOPPED)
          },
          onResponseStart(_controller, status, answered) {
            if (settled || status < 200) return
            guarded(() => {
              const wanted = request.stream ? 'text/event-stream' : 'application/json'
              const type = String(answered['content-type'] ?? '').toLowerCase()
              if (status !== 200 || !type.startsWith(wanted) || answered['content-encoding'] !== undefined) {
                failing = {
                  status,
                  type,
                  retryAfter: answered['retry-after'],
                  retryAfterMs: answered['retry-after-ms'],
                  pieces: [],
                  bytes: 0,
                }
              }
            })
          },
          onResponseData(_controller, chunk) {
            if (settled) return
            guarded(() => {
              deadlines.move(quiet, limits.idleMs)
              if (alive.atMs !== Number.POSITIVE_INFINITY) deadlines.move(alive, limits.pingMs)
              firstByteAt ??= clock.now()
              if (failing !== undefined) {
                failing.bytes += chunk.length
                if (failing.bytes <= MAX_ERROR_BYTES) failing.pieces.push(chunk)
                else conclude(failureToVerdict(failing, request, model, replica.remoteModel), 'failed')
                return
              }
              const verdict = answer.data(chunk)
              // A budget may have run out with what came.
              if (verdict === undefined || settled) return
              if (verdict === 'done') {
                done = true
                deadlines.move(quiet, AFTER_DONE_MS)
              } else if (verdict === 'wait') {
                paused = true
                pausedAtMs = performance.now()
                // It is the client that is slow now; only the total still counts.
                deadlines.move(quiet, Number.POSITIVE_INFINITY)
                controller?.pause()
              } else conclude(verdict, 'failed')
            })
          },
          onResponseEnd() {
            if (settled) return
            guarded(() => {
              if (failing === undefined) return conclude(answer.end(), 'ended')
              again = request.stream && !plain && refusesRunningUsage(failing)
              if (again) plainEngines.add(replica.engineId)
              conclude(failureToVerdict(failing, request, model, replica.remoteModel), 'ended')
            })
          },
          onResponseError(_controller, error) {
            if (settled) return
            guarded(() => {
              if (done) return conclude(answer.end(), 'failed')
              const fault = errorToRefusal(error, model, request.stream && firstByteAt !== null)
              conclude({ ...answer.broken('engine_failed', fault.refusal), log: fault.log, elsewhere: fault.elsewhere }, 'failed')
            })
          },
        },
      )
    })

/** The engine did not do what it is there for. Being busy is no failure, and neither is refusing a body. */
const isFailure = (verdict: Verdict): boolean =>
  'refusal' in verdict ? verdict.refusal.code === 'engine_failed' : verdict.ending.ended === 'engine_failed'

const STOPPED = new Error('nobody waits for this answer any more')

/**
 * A small body goes as one buffer. A large one goes in its pieces, since joining it costs more than all the rest of the relay;
 * undici takes any iterable, which its types do not say.
 */
const bodyToDispatch = (body: Body): Buffer => {
  const [only] = body.pieces
  return body.pieces.length === 1 && only !== undefined ? only : (body.pieces as unknown as Buffer)
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
    }
  }
  // Our key, our address or our name for the model is wrong there. None of it is the caller's business.
  const ours = status === 401 || status === 403 || status === 404
  if (status < 400 || status >= 500 || ours || error === undefined) {
    return { ...failed('it did not accept the request', `status ${status}`), elsewhere: ours || status >= 500, idle: status < 500 }
  }
  return { refusal: toRefused(status, error, request, model, remoteModel) }
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
const errorToRefusal = (error: Error, model: Model, begun: boolean): { refusal: Refusal; log: string; elsewhere: boolean } => {
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
  if (begun) return failed('it broke off', `broke off, ${code}`)
  return {
    refusal: { code: 'engine_unavailable', model: model.name, reason: 'it did not answer', retryAfterMs: RETRY_MS },
    log: `no answer, ${code}`,
    elsewhere: true,
  }
}
