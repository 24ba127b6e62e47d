import { Socket } from 'node:net'
import { z } from 'zod'
import type { ToldEngine } from '../engines/told.ts'
import { type Clock, systemClock } from '../kit/clock.ts'
import { type Logger, openLog } from '../kit/log.ts'
import type { Families } from '../kit/metrics.ts'
import { type Begin, openLine } from './line.ts'

/** Longer than the house gives the other gateways. */
const METRICS_LIMIT_MS = 3_000
const JOURNAL_LIMIT_MS = 1_500
const KNOWING_LIMIT_MS = 3_000

/** What this gateway says of itself when another one asks. */
export type Answers = {
  metrics(): Families
  journal(): string | undefined
  knowing(version: bigint): Promise<void>
}

export type Neighbours = ReturnType<typeof meetNeighbours>

/** The other gateways behind the same port, as one of them sees them: all through the house that has started them. */
export const meetNeighbours = (channel: NodeJS.Process, clock: Clock = systemClock) => {
  let log: Logger = openLog('error')
  let answers: Answers | undefined
  let engines: readonly ToldEngine[] = []
  let hearEngines: (engines: readonly ToldEngine[]) => void = () => undefined
  const listeners = new Map<'keys' | 'people', (ip: string, weight: number) => void>()
  let begin: (begin: Begin) => void = () => undefined
  let stop: () => void = () => undefined
  const begun = new Promise<Begin>((resolve) => (begin = resolve))
  const stopped = new Promise<void>((resolve) => (stop = resolve))

  const line = openLine(
    {
      // A house that has gone hears nothing; then this process is about to end as well.
      send: (message) => void (channel.connected && channel.send?.(message, undefined, undefined, () => undefined)),
      listen: (hear) => void channel.on('message', hear),
    },
    {
      clock,
      log: () => log,
      hear: (news) => {
        switch (news.what) {
          case 'begin':
            return begin(news)
          case 'engines':
            engines = news.engines
            return hearEngines(engines)
          case 'failure':
            return listeners.get(news.of)?.(news.ip, news.weight)
          case 'stop':
            return stop()
          case 'here':
          case 'listening':
          case 'failed':
            return
        }
      },
      answer: async (question) => {
        switch (question.what) {
          case 'metrics':
            return answers?.metrics() ?? []
          case 'journal':
            return answers?.journal() ?? null
          case 'knowing':
            await answers?.knowing(BigInt(question.version))
            return null
        }
      },
    },
  )

  line.tell({ what: 'here' })

  return {
    /** Who we are, and the settings. */
    begun,
    /** The house wants us to end in order. */
    stopped,
    /** Calls with the children of the house, now and whenever one of them has moved. */
    onEngines: (hear: (engines: readonly ToldEngine[]) => void): void => {
      hearEngines = hear
      hear(engines)
    },
    answerWith: (own: Answers, ownLog: Logger): void => {
      answers = own
      log = ownLog
    },
    /** From here on connections are handed to us. */
    listening: (take: (socket: Socket) => void): void => {
      channel.on('message', (_message, handle: unknown) => {
        if (!(handle instanceof Socket)) return
        // As Node's own server has it: a client may say that it has said all, and read on; and small writes go out at once.
        handle.allowHalfOpen = true
        handle.setNoDelay(true)
        take(handle)
      })
      line.tell({ what: 'listening' })
    },
    failed: (reason: string): void => line.tell({ what: 'failed', reason }),
    /** Failures of an address count at all gateways, wherever it knocked. */
    failures: (of: 'keys' | 'people') => ({
      tell: (ip: string, weight: number): void => line.tell({ what: 'failure', of, ip, weight }),
      listen: (hear: (ip: string, weight: number) => void): void => void listeners.set(of, hear),
    }),
    /** Of all gateways together, in the text that Prometheus reads. */
    metrics: async (): Promise<string> => {
      const text = await line.ask({ what: 'metrics' }, METRICS_LIMIT_MS)
      // Our own alone would look like counters that have gone back. A scrape that fails is seen.
      if (typeof text !== 'string') throw new Error(`the house has not said the metrics within ${METRICS_LIMIT_MS / 1000} s`)
      return text
    },
    /** The first reason of any gateway why usage cannot be written down. */
    journal: async (): Promise<string | undefined> => {
      const read = z.string().safeParse(await line.ask({ what: 'journal' }, JOURNAL_LIMIT_MS))
      return read.success ? read.data : undefined
    },
    /** Resolves when all know it: whoever has made a key may use it at once, whichever gateway it meets. */
    knowing: async (version: bigint): Promise<void> =>
      void (await line.ask({ what: 'knowing', version: String(version) }, KNOWING_LIMIT_MS)),
  }
}
