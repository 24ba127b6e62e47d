import { type ChildProcess, fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { z } from 'zod'
import type { Clock } from '../kit/clock.ts'
import { type ModelId, newId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { type Directory, type Engine, newEngine } from './directory.ts'
import type { HealthWatch } from './probe.ts'
import { relog } from './relog.ts'

/** A model whose weights lie on this machine: one child of `apps/engine` runs it. */
export type LocalModel = {
  readonly id: ModelId
  readonly name: string
  readonly type: 'chat' | 'embedding' | 'rerank' | 'audio'
  /** A file; for audio a directory. */
  readonly path: string
  readonly contextTokens: number
  readonly maxOutputTokens: number | null
  /** Lengths that an embedding may be cut to. */
  readonly matryoshka: readonly number[]
}

/** The program that runs a model, and the options of Node before it. */
export type EngineEntry = { readonly path: string; readonly execArgv: readonly string[] }

export type LocalOptions = {
  readonly threads: number
  /** Of each child. Above it the child is ended and started again. */
  readonly memoryMb: number
  /** Answers that one child computes side by side. */
  readonly sequences: number
  readonly gpu: 'auto' | 'off'
  /** What a child may know of our environment; our own settings are taken out. */
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly entry?: EngineEntry
}

export type LocalLimits = {
  /** A child that loads says how far it is. Silent for longer than this, it hangs. */
  readonly loadSilenceMs: number
  readonly restartMinMs: number
  readonly restartMaxMs: number
  /** A child that was ready for this long has earned a quick restart again. */
  readonly healthyMs: number
  /** How often memory and health of a child are looked at. */
  readonly lookMs: number
  /** A child that lives but has not answered for this long hangs. */
  readonly hangMs: number
  /** Between SIGTERM and SIGKILL; the engine itself lets answers run on for five seconds. */
  readonly killMs: number
}

const LIMITS: LocalLimits = {
  loadSilenceMs: 120_000,
  restartMinMs: 500,
  restartMaxMs: 30_000,
  healthyMs: 60_000,
  lookMs: 2_000,
  hangMs: 60_000,
  killMs: 8_000,
}

/** Beside those that are computed, so that the next answer begins as soon as one ends. The longer queue is ours, where waiting is bounded and fair. */
const SEATS_BEHIND = 4
/** Files that a speech engine writes down side by side. */
const SPEECH_SEQUENCES = 1

const Message = z.discriminatedUnion('type', [
  z.object({ type: z.literal('loading'), progress: z.number().min(0).max(1) }),
  z.object({ type: z.literal('ready'), port: z.int().min(1).max(65535) }),
  z.object({ type: z.literal('failed'), reason: z.string().max(2_000) }),
])

/** Beside us in the workspace: built JavaScript, or source where we run from source ourselves. */
const engineEntry = (): EngineEntry => {
  const require = createRequire(import.meta.url)
  const path = require.resolve('@parvis/engine/main')
  if (!path.endsWith('.ts')) return { path, execArgv: [] }
  return { path, execArgv: ['--import', pathToFileURL(require.resolve('tsx')).href, '--conditions=@parvis/source'] }
}

/** Speech is optional: its packages may have been left out when the engine was installed. */
export const isSpeechInstalled = (): boolean => {
  try {
    const { resolve } = createRequire(createRequire(import.meta.url).resolve('@parvis/engine/main'))
    return ['@huggingface/transformers', 'onnxruntime-node'].every((name) => resolve(name) !== '')
  } catch {
    return false
  }
}

const argumentsOf = (model: LocalModel, options: LocalOptions): string[] => {
  const args: Record<string, string | number> = {
    model: model.path,
    name: model.name,
    type: model.type,
    context: model.contextTokens,
    ...(model.maxOutputTokens === null ? {} : { 'max-output': model.maxOutputTokens }),
    ...(model.matryoshka.length === 0 ? {} : { matryoshka: model.matryoshka.join(',') }),
    sequences: options.sequences,
    threads: options.threads,
    'memory-mb': options.memoryMb,
    gpu: options.gpu,
    host: '127.0.0.1',
    port: 0,
  }
  return Object.entries(args).flatMap(([name, value]) => [`--${name}`, String(value)])
}

/** Our settings hold the database's password and the master key; native code in a child has no business with them. */
const environmentOf = (options: LocalOptions, bearer: string): NodeJS.ProcessEnv => ({
  ...Object.fromEntries(Object.entries(options.env ?? {}).filter(([name]) => !name.startsWith('PARVIS_'))),
  PARVIS_ENGINE_KEY: bearer,
})

/** What the process holds in memory, in bytes; undefined where the system does not tell or the process has ended. */
const residentBytes = async (pid: number): Promise<number | undefined> => {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const kilobytes = /^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]
  return kilobytes === undefined ? undefined : Number(kilobytes) * 1024
}

const MIB = 1024 * 1024

/** How a child ended, and how long it had been ready. */
type Run = { readonly reason: string; readonly readyMs: number }

/**
 * Keeps one child per wanted model. A child is *starting* until it says that it is ready, *ready* while it answers, and *unhealthy*
 * between its end and the next start, which comes later each time it ends again soon. Only one child loads at a time: two at
 * once would take turns on the disk and the processors, and both be late.
 *
 * A child ends with us, however we end: it watches the channel between us.
 */
export const openLocal = (options: {
  directory: Directory
  health: HealthWatch
  clock: Clock
  log: Logger
  local: LocalOptions
  limits?: Partial<LocalLimits>
}): { want: (models: readonly LocalModel[]) => void; close: () => Promise<void> } => {
  const { directory, health, clock, log, local } = options
  const limits = { ...LIMITS, ...options.limits }
  const keepers = new Map<ModelId, { readonly wanted: string; stop: () => Promise<void> }>()
  const ending = new Set<Promise<void>>()
  let lastInLine: Promise<void> = Promise.resolve()
  let closed = false

  /** Resolves when it is our turn to load; call what it gives when done. */
  const takeTurn = async (): Promise<() => void> => {
    const before = lastInLine
    let done: () => void = () => undefined
    lastInLine = new Promise((resolve) => {
      done = resolve
    })
    await before
    return done
  }

  const end = async (child: ChildProcess, exited: Promise<unknown>): Promise<void> => {
    child.kill('SIGTERM')
    const inTime = new AbortController()
    clock.sleep(limits.killMs, inTime.signal).then(
      () => child.kill('SIGKILL'),
      () => undefined,
    )
    await exited
    inTime.abort()
  }

  /** One life of a child, from its start to its end. */
  const run = async (engine: Engine, model: LocalModel, stopping: AbortSignal, loaded: () => void): Promise<Run> => {
    const bearer = randomBytes(32).toString('hex')
    const { path, execArgv } = local.entry ?? engineEntry()
    const child = fork(path, argumentsOf(model, local), {
      execArgv: [...execArgv],
      env: environmentOf(local, bearer),
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      serialization: 'json',
      // A session of its own: Ctrl-C in a terminal goes to everybody in front, and running answers shall end first.
      detached: true,
    })
    let reason: string | undefined
    let readyAtMs: number | undefined
    log.info({ engine: engine.name, pid: child.pid, file: model.path }, 'engine process started')
    const lines = relog(child.stderr, log.child({ engine: engine.name }))
    const exited = new Promise<string>((resolve) => {
      child.on('error', (error) => resolve(`could not be started: ${error.message}`))
      // `close` comes after `exit`, when its last words have been read.
      child.on('close', (code, signal) => resolve(signal === null ? `ended with code ${code}` : `ended by ${signal}`))
    })
    child.on('exit', () => {
      health.end(engine)
      directory.become(engine, 'unhealthy', 'its process has ended')
    })

    const kill = (why: string): void => {
      reason ??= why
      child.kill('SIGKILL')
    }
    let heardAtMs = performance.now()
    child.on('message', (raw) => {
      const message = Message.safeParse(raw)
      heardAtMs = performance.now()
      if (!message.success || stopping.aborted) return
      switch (message.data.type) {
        case 'loading':
          return directory.become(engine, 'starting', `loading, ${Math.floor(message.data.progress * 100)} %`)
        case 'failed':
          reason ??= message.data.reason
          return
        case 'ready':
          readyAtMs = performance.now()
          directory.arrive(engine, { origin: `http://127.0.0.1:${message.data.port}`, basePath: '' }, bearer)
          directory.become(engine, 'ready')
          health.begin(engine)
          return loaded()
      }
    })

    const over = new AbortController()
    const look = async (): Promise<void> => {
      let silentMs = 0
      for (;;) {
        await clock.sleep(limits.lookMs, over.signal)
        const bytes = child.pid === undefined ? undefined : await residentBytes(child.pid)
        if (bytes !== undefined && bytes > local.memoryMb * MIB) {
          kill(`used ${Math.ceil(bytes / MIB)} MB of memory, more than its limit of ${local.memoryMb} MB`)
        }
        if (readyAtMs === undefined && performance.now() - heardAtMs > limits.loadSilenceMs) {
          kill(`said nothing for ${limits.loadSilenceMs / 1000} s while loading`)
        }
        silentMs = readyAtMs !== undefined && engine.state === 'unhealthy' ? silentMs + limits.lookMs : 0
        if (silentMs > limits.hangMs) kill(`did not answer for ${limits.hangMs / 1000} s (${engine.reason ?? 'no reason given'})`)
      }
    }
    const looking = look().catch(() => undefined) // ends with the sleep that is broken off
    const stop = (): void => void end(child, exited)
    stopping.addEventListener('abort', stop, { once: true })
    if (stopping.aborted) stop()

    const ended = await exited
    over.abort()
    stopping.removeEventListener('abort', stop)
    await looking
    const last = lines.last()
    return {
      reason: reason ?? (last === undefined ? ended : `${ended}: ${last}`),
      readyMs: readyAtMs === undefined ? 0 : performance.now() - readyAtMs,
    }
  }

  /** Starts the child again and again until it is no longer wanted. */
  const keep = async (model: LocalModel, before: Promise<void> | undefined, stopping: AbortSignal): Promise<void> => {
    const now = clock.now()
    const engine = newEngine(
      {
        id: newId(now),
        name: `embedded:${model.name}`,
        kind: 'embedded',
        seatLimit: (model.type === 'audio' ? SPEECH_SEQUENCES : local.sequences) + SEATS_BEHIND,
        serves: [{ modelId: model.id, modelName: model.name, remoteName: model.name }],
        reason: 'waiting for its turn to load',
      },
      now,
    )
    directory.add(engine)
    // Gone from the directory before its child is told to end: nobody new is sent there.
    stopping.addEventListener('abort', () => directory.remove(engine), { once: true })
    await before
    let failures = 0
    while (!stopping.aborted) {
      const loaded = await takeTurn()
      let ended: Run
      try {
        if (stopping.aborted) return
        directory.become(engine, 'starting', 'loading')
        ended = await run(engine, model, stopping, loaded)
      } catch (error) {
        ended = { reason: error instanceof Error ? error.message : String(error), readyMs: 0 }
      } finally {
        loaded()
      }
      if (stopping.aborted) return
      failures = ended.readyMs >= limits.healthyMs ? 1 : failures + 1
      const restartMs = Math.min(limits.restartMaxMs, limits.restartMinMs * 2 ** Math.min(failures - 1, 16))
      log.error({ engine: engine.name, reason: ended.reason, restartMs }, 'embedded engine ended; it is started again')
      directory.become(engine, 'unhealthy', ended.reason)
      await clock.sleep(restartMs, stopping).catch(() => undefined)
    }
  }

  const start = (model: LocalModel, wanted: string, before: Promise<void> | undefined): void => {
    const stopping = new AbortController()
    const running = keep(model, before, stopping.signal).catch((error: unknown) => {
      log.error({ err: error, model: model.name }, 'the keeper of an embedded engine failed')
    })
    keepers.set(model.id, {
      wanted,
      stop: () => {
        stopping.abort()
        return running
      },
    })
  }

  const stop = (id: ModelId): Promise<void> => {
    const stopped = keepers.get(id)?.stop() ?? Promise.resolve()
    keepers.delete(id)
    const remembered = stopped.finally(() => ending.delete(remembered))
    ending.add(remembered)
    return remembered
  }

  return {
    want: (models) => {
      if (closed) return
      const wanted = new Map(models.map((model) => [model.id, JSON.stringify(model)]))
      const changed = new Map<ModelId, Promise<void>>()
      for (const [id, keeper] of keepers) if (wanted.get(id) !== keeper.wanted) changed.set(id, stop(id))
      for (const model of models) if (!keepers.has(model.id)) start(model, JSON.stringify(model), changed.get(model.id))
    },
    close: async () => {
      closed = true
      for (const id of keepers.keys()) void stop(id)
      await Promise.all(ending)
    },
  }
}
