import { type ChildProcess, fork } from 'node:child_process'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { partOfSeats, type ToldEngine } from '../engines/told.ts'
import type { Clock } from '../kit/clock.ts'
import type { Logger } from '../kit/log.ts'
import { addUp, Families, renderFamilies } from '../kit/metrics.ts'
import { type Begin, type Line, openLine, type Question } from './line.ts'

/** A gateway that has not listened by then does not begin any more. */
const START_LIMIT_MS = 120_000
const RESTART_MIN_MS = 100
const RESTART_MAX_MS = 10_000
/** One that has served for so long has earned a quick restart again. */
const HEALTHY_MS = 60_000
/** What one gateway may take to answer the house. */
const ANSWER_LIMIT_MS = 1_000
const KNOWING_LIMIT_MS = 2_500
/** Connections that wait until a gateway has taken the ones before; as many as the kernel holds for one that does not accept. */
const MOST_HANDED = 511
/** How a child gets on with its loading is no move, and is looked at as often as this. */
const ENGINES_EVERY_MS = 1_000

/** Comes with each connection; news and answers are objects. */
const CONNECTION = 'connection'

type Gateway = {
  readonly number: number
  readonly child: ChildProcess
  readonly line: Line
  /** On their way to it. */
  readonly handed: Set<Socket>
  here: boolean
  listening: boolean
  toldEngines: string
}

export type Gateways = {
  readonly port: number
  /** Lets all of them end in order; those that do not by their limit are killed. */
  close(): Promise<void>
}

/** Beside us, built or from source; both run with the same options of Node as we do. */
const entryOf = (name: string): string =>
  fileURLToPath(new URL(`../${name}${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))

/**
 * The gateways as processes behind one port. This process accepts the connections and hands each to a gateway, in turn; from then on it
 * has nothing to do with it. A gateway that ends is started again under its number, so that it finds its journal.
 */
export const openGateways = async (options: {
  host: string
  port: number
  gateways: number
  begin: Omit<Begin, 'what' | 'number' | 'gateways' | 'port'>
  children: { list: () => readonly ToldEngine[]; watch: (moved: () => void) => void }
  /** What a gateway takes at most to end in order. */
  endMs: number
  clock: Clock
  log: Logger
}): Promise<Gateways> => {
  const { children, clock, log } = options
  const living = new Map<number, Gateway>()
  const closing = new AbortController()
  /** What gateways have counted that live no more, and what those that live said last: a counter must not go back. */
  let gone: Families = []
  const counted = new Map<number, Families>()

  let turn = 0
  /** Nothing of it has been read: whoever gets it reads from the first byte on. */
  const hand = (socket: Socket): void => {
    const up = [...living.values()].filter(({ listening, child, handed }) => listening && child.connected && handed.size < MOST_HANDED)
    const gateway = up[(turn += 1) % up.length]
    // A client that meets nobody is cut, as it is when nobody listens.
    if (gateway === undefined) return void socket.destroy()
    const { child, handed } = gateway
    handed.add(socket)
    child.send(CONNECTION, socket, (error) => {
      handed.delete(socket)
      if (error !== null) socket.destroy()
    })
  }
  const server = createServer({ pauseOnConnect: true }, hand)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host: options.host, port: options.port }, resolve)
  })
  server.on('error', (error) => log.warn({ err: error }, 'a connection could not be accepted'))
  const { port } = server.address() as AddressInfo

  const askAll = async (question: Question, limitMs: number): Promise<Map<number, unknown>> => {
    const up = [...living.values()].filter(({ listening }) => listening)
    const answers = await Promise.all(up.map(async ({ number, line }) => [number, await line.ask(question, limitMs)] as const))
    return new Map(answers.filter(([, answer]) => answer !== undefined))
  }

  const metrics = async (): Promise<string> => {
    const answers = await askAll({ what: 'metrics' }, ANSWER_LIMIT_MS)
    const now: Families[] = []
    for (const { number } of living.values()) {
      const said = Families.safeParse(answers.get(number))
      if (said.success) counted.set(number, said.data)
      // One that has not answered keeps its counters; how it is now nobody knows.
      now.push(said.success ? said.data : countersOf(counted.get(number) ?? []))
    }
    const states = [
      { labels: ['wanted'], value: options.gateways },
      { labels: ['up'], value: answers.size },
    ]
    const help = 'Gateways behind the port: how many there shall be, and how many have answered just now.'
    const own: Families = [{ name: 'parvis_gateways', help, type: 'gauge', together: 'sum', labels: ['state'], series: states }]
    return renderFamilies(addUp([own, gone, ...now]))
  }

  const answer = async (question: Question): Promise<unknown> => {
    switch (question.what) {
      case 'metrics':
        return metrics()
      case 'journal': {
        const reasons = [...(await askAll(question, ANSWER_LIMIT_MS)).values()]
        return reasons.find((reason) => typeof reason === 'string') ?? null
      }
      case 'knowing':
        await askAll(question, KNOWING_LIMIT_MS)
        return null
    }
  }

  const tellEngines = (gateway: Gateway): void => {
    const engines = children.list().map((child) => partOfSeats(child, gateway.number, options.gateways))
    const text = JSON.stringify(engines)
    if (!gateway.here || text === gateway.toldEngines) return
    gateway.toldEngines = text
    gateway.line.tell({ what: 'engines', engines })
  }
  const tellAll = (): void => {
    for (const gateway of living.values()) tellEngines(gateway)
  }

  /** One life of a gateway, from its start to its end. */
  const live = async (number: number, began: () => void): Promise<{ reason: string; listenedMs: number }> => {
    const child = fork(entryOf('gateway-main'), { serialization: 'json' })
    let reason: string | undefined
    let listeningAtMs: number | undefined
    const line = openLine(
      {
        send: (message) => void (child.connected && child.send(message, () => undefined)),
        listen: (hear) => void child.on('message', hear),
      },
      {
        clock,
        log: () => log,
        answer,
        hear: (news) => {
          if (news.what === 'here') {
            gateway.here = true
            line.tell({ what: 'begin', number, gateways: options.gateways, port, ...options.begin })
            tellEngines(gateway)
            if (closing.signal.aborted) line.tell({ what: 'stop' })
          }
          if (news.what === 'listening') {
            listeningAtMs = performance.now()
            gateway.listening = true
            log.info({ gateway: number, pid: child.pid }, 'gateway serves')
            began()
          }
          if (news.what === 'failed') reason = news.reason
          if (news.what === 'failure') for (const other of living.values()) if (other !== gateway) other.line.tell(news)
        },
      },
    )
    const gateway: Gateway = { number, child, line, handed: new Set(), here: false, listening: false, toldEngines: '' }
    living.set(number, gateway)
    const ended = new Promise<string>((resolve) => {
      child.on('error', (error) => resolve(`could not be started: ${error.message}`))
      child.on('exit', (code, signal) => resolve(signal === null ? `ended with code ${code}` : `ended by ${signal}`))
    })
    const inTime = new AbortController()
    clock.sleep(START_LIMIT_MS, inTime.signal).then(
      () => {
        if (gateway.listening) return
        reason = `did not begin within ${START_LIMIT_MS / 1000} s`
        child.kill('SIGKILL')
      },
      () => undefined,
    )

    const how = await ended
    inTime.abort()
    living.delete(number)
    for (const socket of gateway.handed) socket.destroy()
    gone = addUp([gone, countersOf(counted.get(number) ?? [])])
    counted.delete(number)
    return { reason: reason ?? how, listenedMs: listeningAtMs === undefined ? 0 : performance.now() - listeningAtMs }
  }

  /** Starts it again and again until it is no longer wanted; what ends it before it has ever listened ends the start of all. */
  const keep = async (number: number, began: () => void): Promise<void> => {
    let served = false
    for (let failures = 0; !closing.signal.aborted; ) {
      const { reason, listenedMs } = await live(number, () => {
        served = true
        began()
      })
      if (closing.signal.aborted) return
      if (!served) throw new Error(reason)
      failures = listenedMs >= HEALTHY_MS ? 1 : failures + 1
      const restartMs = Math.min(RESTART_MAX_MS, RESTART_MIN_MS * 2 ** Math.min(failures - 1, 16))
      log.error({ gateway: number, reason, restartMs }, 'gateway ended; it is started again')
      await clock.sleep(restartMs, closing.signal).catch(() => undefined)
    }
  }

  const engines = async (): Promise<void> => {
    while (!closing.signal.aborted) {
      tellAll()
      await clock.sleep(ENGINES_EVERY_MS, closing.signal).catch(() => undefined)
    }
  }

  const numbers = Array.from({ length: options.gateways }, (_, index) => index + 1)
  const kept: Promise<void>[] = []
  const close = async (): Promise<void> => {
    closing.abort()
    // Nobody new before they hear that it is the end: what has been handed out is theirs.
    server.close()
    for (const { line } of living.values()) line.tell({ what: 'stop' })
    const inTime = new AbortController()
    clock.sleep(options.endMs, inTime.signal).then(
      () => {
        for (const { number, child } of living.values()) {
          log.warn({ gateway: number }, 'gateway did not end in time and is killed; what ran there is lost')
          child.kill('SIGKILL')
        }
      },
      () => undefined,
    )
    await Promise.allSettled(kept)
    inTime.abort()
    await telling
  }

  children.watch(tellAll)
  const telling = engines()
  try {
    await Promise.all(
      numbers.map(
        (number) =>
          new Promise<void>((resolve, reject) => {
            const keeping = keep(number, resolve)
            kept.push(keeping)
            keeping.catch(reject)
          }),
      ),
    )
    return { port, close }
  } catch (error) {
    await close()
    throw error
  }
}

const countersOf = (families: Families): Families => families.filter(({ type }) => type === 'counter')
