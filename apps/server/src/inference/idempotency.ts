import { createHash } from 'node:crypto'
import type { Authenticate } from '../iam/authenticate.ts'
import type { Instant } from '../kit/clock.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Body } from './body.ts'
import type { Exchange, ExchangeRooms } from './exchange.ts'
import { type Kept, type Recording, record } from './recording.ts'

export type IdempotencyLimits = {
  /** How long a key means the same answer, from its first request on. */
  readonly windowMs: number
  /** The largest answer that is kept, and all of them together. */
  readonly answerBytes: number
  readonly totalBytes: number
  /** Keys that are remembered, also without their answer. */
  readonly keys: number
  /** How long an engine goes on for a client that has left and may come back. */
  readonly lingerMs: number
  /** Clients at one running answer. */
  readonly watchers: number
}

export const DEFAULT_IDEMPOTENCY: IdempotencyLimits = {
  windowMs: 24 * 60 * 60 * 1000,
  answerBytes: 16 * 1024 * 1024,
  totalBytes: 64 * 1024 * 1024,
  keys: 50_000,
  lingerMs: 10_000, // the official SDKs come back after half a second to eight seconds
  watchers: 64,
}

type Served = (exchange: Exchange) => Promise<void>

/** `kept` is the recording while it runs, and gone once the answer is no longer kept; the key still stands for it. */
type Entry = { readonly fingerprint: string; readonly expiresAt: Instant; kept: Kept | undefined; running: boolean }

const KEY = /^[\x20-\x7e]{1,255}$/
const BUSY_RETRY_MS = 1_000

/**
 * `Idempotency-Key` (ours): within its window, one key of one caller and project is one request. Whoever sends it again with the
 * same body gets the answer that is on its way, or was given, from the beginning; the engine is called once and there is one usage
 * event. A request that was refused, or failed, is forgotten with its answer: the same key may try again.
 *
 * Bodies are kept as hashes. Answers are kept in this process' memory only, within bounds, the ones used longest ago going first;
 * a key whose answer has gone is refused rather than charged twice.
 */
export const openIdempotency = (rooms: ExchangeRooms & { authenticate: Authenticate }, given: Partial<IdempotencyLimits> = {}) => {
  const { clock, deadlines, authenticate } = rooms
  const limits = { ...DEFAULT_IDEMPOTENCY, ...given }
  /** In the order in which they end. */
  const entries = new Map<string, Entry>()
  /** Finished answers, the one used longest ago first. */
  const finished = new Set<Entry>()
  const running = new Set<Recording>()
  let bytes = 0
  let stopped = false

  const free = (entry: Entry): void => {
    finished.delete(entry)
    entry.kept?.forget()
    entry.kept = undefined
  }

  const room = (kept: Kept, more: number): boolean => {
    if (more > 0 && kept.bytes + more > limits.answerBytes) return false
    for (const entry of finished) {
      if (bytes + more <= limits.totalBytes) break
      free(entry)
    }
    if (more > 0 && bytes + more > limits.totalBytes) return false
    bytes += more
    return true
  }

  const drop = (name: string, entry: Entry): void => {
    free(entry)
    if (entries.get(name) === entry) entries.delete(name)
  }

  const purge = (): void => {
    const now = clock.now()
    for (const [name, entry] of entries) {
      const crowded = entries.size > limits.keys
      if (entry.expiresAt > now && !crowded) break
      if (!entry.running) drop(name, entry)
      else if (!crowded) break
    }
    const [next] = entries.values()
    if (next !== undefined) deadlines.again(expiry, Math.max(1_000, next.expiresAt - now))
  }
  const expiry = deadlines.add(Number.POSITIVE_INFINITY, purge)
  deadlines.remove(expiry)

  const begin = async (
    name: string,
    fingerprint: string,
    exchange: Exchange,
    body: Body,
    organizationId: OrganizationId,
    served: Served,
  ): Promise<void> => {
    const entry: Entry = { fingerprint, expiresAt: (clock.now() + limits.windowMs) as Instant, kept: undefined, running: true }
    entries.delete(name)
    entries.set(name, entry)
    const bounds = { lingerMs: stopped ? 0 : limits.lingerMs, watchers: limits.watchers, room }
    const recording = record(rooms, exchange, body, organizationId, bounds, {
      ended: (complete, kept) => {
        entry.running = false
        if (!complete) return drop(name, entry)
        // One that has grown too large while it was made is a key without an answer.
        entry.kept = kept
        if (kept !== undefined) finished.add(entry)
      },
      forgotten: () => {
        entry.kept = undefined
      },
    })
    if (entry.running) entry.kept = recording
    if (entries.get(name) !== entry) recording.forget()
    running.add(recording)
    purge()
    try {
      await served(recording.exchange)
    } catch (error) {
      recording.exchange.fault(error)
    } finally {
      recording.done()
      running.delete(recording)
    }
  }

  const onlyOnce = async (key: string, path: string, exchange: Exchange, served: Served): Promise<void> => {
    const caller = authenticate(exchange.authorization, exchange.projectId, exchange)
    if (!caller.ok) return exchange.refuse(caller.refusal)
    if (!KEY.test(key)) {
      return exchange.refuse({ code: 'header_invalid', header: 'Idempotency-Key', reason: 'expected 1 to 255 printable characters' })
    }
    const body = await exchange.readBody(caller.value.organizationId)
    if (!body.ok) return exchange.refuse(body.refusal)

    const name = `${caller.value.projectId} ${caller.value.principalId} ${key}`
    const fingerprint = fingerprintOf(path, body.value)
    const known = entries.get(name)
    if (known === undefined || (known.expiresAt <= clock.now() && !known.running))
      return begin(name, fingerprint, exchange, body.value, caller.value.organizationId, served)
    if (known.fingerprint !== fingerprint) return exchange.refuse({ code: 'idempotency_mismatch' })
    if (known.kept === undefined) return exchange.refuse({ code: 'idempotency_gone' })
    if (finished.delete(known)) finished.add(known)
    if (!known.kept.attach(exchange)) {
      exchange.refuse({ code: 'busy', reason: 'too many clients wait for this answer', retryAfterMs: BUSY_RETRY_MS })
    }
  }

  return {
    /** The same as `served`, once for each key. `path` is part of what makes two requests the same. */
    once:
      (path: string, served: Served): Served =>
      (exchange) => {
        const { idempotencyKey: key } = exchange
        return key === undefined ? served(exchange) : onlyOnce(key, path, exchange, served)
      },
    /** From here on nobody is waited for to come back. */
    stop: () => {
      stopped = true
      for (const recording of running) recording.stop()
    },
    keptBytes: () => bytes,
  }
}

/** A form has another border each time it is sent, so the border is no part of it. */
const fingerprintOf = (path: string, body: Body): string => {
  const hash = createHash('sha256').update(path).update('\0')
  const [first] = body.pieces
  if (first?.subarray(0, 2).toString() !== '--') {
    for (const piece of body.pieces) hash.update(piece)
    return hash.digest('base64')
  }
  const whole = Buffer.concat(body.pieces)
  const end = whole.indexOf('\r')
  const border = whole.subarray(0, end < 0 ? whole.length : end)
  let from = 0
  for (let at = 0; at >= 0; at = whole.indexOf(border, from)) {
    hash.update(whole.subarray(from, at)).update('\0border\0')
    from = at + border.length
  }
  return hash.update(whole.subarray(from)).digest('base64')
}
