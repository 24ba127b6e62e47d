import { Agent, request } from 'undici'
import type { Clock } from '../kit/clock.ts'
import { type Address, addressToUrl } from './address.ts'
import type { Directory, Engine } from './directory.ts'
import { explain, isRefusedConnection } from './explain.ts'

export type ProbeLimits = {
  readonly everyMs: number
  /** An engine whose processors are all busy still answers, but late. */
  readonly answerMs: number
  /** After the first failure. */
  readonly soonMs: number
  /** Between two questions at least, however much it is suspected. */
  readonly gapMs: number
}

const LIMITS: ProbeLimits = { everyMs: 5_000, answerMs: 5_000, soonMs: 500, gapMs: 100 }

/** One late answer is a busy moment, two are a state. */
const FAILURES = 2
/** Many gateways that started together shall not ask together. */
const JITTER = 0.2
const CONNECT_LIMIT_MS = 5_000

export type Health = { readonly well: true } | { readonly well: false; readonly reason: string; readonly refused: boolean }

/** What an engine is asked: its health path where it has one, else its models. */
const PATHS = ['/health', '/v1/models'] as const

export type Asking = { readonly dispatcher: Agent; readonly answerMs: number; readonly signal: AbortSignal }

/** Asks once. `place` is where in PATHS to begin; what was learned comes back, so that a missing path is not asked for every time. */
export const askHealth = async (
  target: { readonly address: Address; readonly bearer: string | undefined },
  place: number,
  asking: Asking,
): Promise<{ health: Health; place: number }> => {
  for (let at = place; ; at += 1) {
    const path = PATHS[at] ?? PATHS[0]
    const last = at >= PATHS.length - 1
    const limit = new AbortController()
    const stop = (): void => limit.abort()
    let late = false
    const timer = setTimeout(() => {
      late = true
      stop()
    }, asking.answerMs)
    asking.signal.addEventListener('abort', stop, { once: true })
    try {
      const { statusCode, body } = await request(`${addressToUrl(target.address)}${path}`, {
        dispatcher: asking.dispatcher,
        signal: limit.signal,
        headers: target.bearer === undefined ? {} : { authorization: `Bearer ${target.bearer}` },
      })
      await body.dump()
      // Too many questions is an answer: somebody is there.
      if ((statusCode >= 200 && statusCode < 300) || statusCode === 429) return { health: { well: true }, place: at }
      // No such path, or not for us: not every engine has one for health.
      if (!last && statusCode >= 400 && statusCode < 500) continue
      const key = statusCode === 401 || statusCode === 403 ? ' (it wants another key)' : ''
      return { health: { well: false, reason: `answers ${statusCode} on ${path}${key}`, refused: false }, place: 0 }
    } catch (error) {
      const reason = late ? `no answer on ${path} within ${asking.answerMs / 1000} s` : explain(error)
      return { health: { well: false, reason, refused: isRefusedConnection(error) }, place }
    } finally {
      clearTimeout(timer)
      asking.signal.removeEventListener('abort', stop)
    }
  }
}

export type HealthWatch = {
  /** Asks the engine now and again every few seconds, and moves its state. */
  begin: (engine: Engine) => void
  end: (engine: Engine) => void
  close: () => Promise<void>
}

/**
 * Ready after one good answer; unhealthy after two bad ones in a row, or at once when nobody listens there. A broken seat makes
 * the next question come now.
 */
export const openHealthWatch = (options: { directory: Directory; clock: Clock; limits?: Partial<ProbeLimits> }): HealthWatch => {
  const { directory, clock } = options
  const limits = { ...LIMITS, ...options.limits }
  // Its own connections: a question about health must not wait behind answers.
  const dispatcher = new Agent({ connections: 1, pipelining: 1, connect: { timeout: CONNECT_LIMIT_MS }, headersTimeout: 0, bodyTimeout: 0 })
  const watched = new Map<Engine, { hurry: () => void; stop: () => void }>()
  const running = new Set<Promise<void>>()

  const begin = (engine: Engine): void => {
    if (watched.has(engine)) return
    const stopped = new AbortController()
    let rest = new AbortController()
    let hurried = false
    let resting = false

    const sleep = async (ms: number): Promise<void> => {
      rest = new AbortController()
      if (!stopped.signal.aborted) await clock.sleep(ms, rest.signal).catch(() => undefined)
    }
    const loop = async (): Promise<void> => {
      let failures = 0
      let place = 0
      while (!stopped.signal.aborted && engine.address !== undefined) {
        hurried = false
        const asked = await askHealth({ address: engine.address, bearer: engine.bearer }, place, {
          dispatcher,
          answerMs: limits.answerMs,
          signal: stopped.signal,
        })
        if (stopped.signal.aborted) return
        place = asked.place
        failures = asked.health.well ? 0 : failures + 1
        if (asked.health.well) {
          engine.suspect = false
          directory.become(engine, 'ready')
        } else {
          engine.suspect = true
          if (asked.health.refused || failures >= FAILURES) directory.become(engine, 'unhealthy', asked.health.reason)
        }
        // Many who suspect it in one moment are answered by one question.
        await sleep(limits.gapMs)
        resting = true
        const usual = limits.everyMs * (1 + JITTER * (2 * Math.random() - 1))
        if (!hurried) await sleep(failures === 1 ? Math.min(limits.soonMs, usual) : usual)
        resting = false
      }
    }
    watched.set(engine, {
      hurry: () => {
        hurried = true
        if (resting) rest.abort()
      },
      stop: () => {
        stopped.abort()
        rest.abort()
      },
    })
    const loops = loop().finally(() => running.delete(loops))
    running.add(loops)
  }

  const end = (engine: Engine): void => {
    watched.get(engine)?.stop()
    watched.delete(engine)
  }

  directory.watch({ suspected: (engine) => watched.get(engine)?.hurry() })

  return {
    begin,
    end,
    close: async () => {
      for (const engine of watched.keys()) end(engine)
      await Promise.all(running)
      await dispatcher.destroy()
    },
  }
}
