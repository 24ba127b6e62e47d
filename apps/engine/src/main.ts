import { unixSeconds } from './clock.ts'
import { type EngineOptions, readCommandLine } from './command-line.ts'
import { openCounters } from './counters.ts'
import type { Started } from './listener.ts'
import { faultOf, openLog } from './log.ts'

const CLOSE_LIMIT_MS = 5000
const PROGRESS_STEP = 0.05

/** What the parent hears when it started this process with `fork()`. */
type Told = { type: 'loading'; progress: number } | { type: 'ready'; port: number } | { type: 'failed'; reason: string }

type Progress = (done: number) => void

const log = openLog()
const key = process.env['PARVIS_ENGINE_KEY']
const hasParent = process.send !== undefined
const tell = (message: Told): Promise<void> =>
  new Promise((resolve) => {
    if (process.send === undefined || !process.connected) return resolve()
    process.send(message, () => resolve())
  })

// Node would print the error with its message, which may quote a request.
process.on('uncaughtException', (error) => {
  log.error('the engine broke', { reason: faultOf(error) })
  process.exit(1)
})

const fail = async (reason: string): Promise<never> => {
  log.error('the engine cannot start', { reason })
  if (!hasParent) process.stdout.write(`${reason}\n`)
  await tell({ type: 'failed', reason })
  process.exit(1)
}

// Imported where they are wanted: the native code of one kind has no business in a process of the other.
const text = async (options: EngineOptions, progress: Progress): Promise<Started> => {
  const [{ loadModel }, { openServer }] = await Promise.all([import('./llama/model.ts'), import('./server.ts')])
  const loaded = await loadModel(options, log, progress)
  const server = openServer({ loaded, options, log, startedAtSeconds: unixSeconds(), counters: openCounters(options.name) }, key)
  return {
    ...server,
    facts: {
      context: loaded.contextTokens,
      sequences: loaded.sequences,
      gpu: loaded.llama.gpu === false ? 'none' : loaded.llama.gpu,
    },
  }
}
const speech = async (options: EngineOptions, progress: Progress): Promise<Started> => {
  const { startSpeech } = await import('./speech/start.ts')
  return startSpeech(options, log, key, progress, (reason) => void fail(reason))
}

const run = async (): Promise<void> => {
  // An engine without its parent would hold the model's memory for nobody.
  process.once('disconnect', () => process.exit(0))
  const commandLine = readCommandLine(process.argv.slice(2))
  if (commandLine.kind === 'help') {
    process.stdout.write(`${commandLine.text}\n`)
    return
  }
  if (commandLine.kind === 'wrong') return fail(commandLine.message)
  const { options } = commandLine

  let close = async (): Promise<void> => {}
  let closing = false
  const shutDown = (): void => {
    if (closing) return
    closing = true
    void close().finally(() => process.exit(0))
  }
  process.on('SIGTERM', shutDown)
  process.on('SIGINT', shutDown)

  let told = -1
  const progress: Progress = (done) => {
    if (done > 0 && done - told < PROGRESS_STEP && done < 1) return
    told = done
    void tell({ type: 'loading', progress: done })
  }
  const started = await (options.type === 'audio' ? speech(options, progress) : text(options, progress))
  const port = await started.listen()
  close = () => started.close(CLOSE_LIMIT_MS)
  log.info('serving', { model: options.name, type: options.type, threads: options.threads, ...started.facts, port })
  if (!hasParent) process.stdout.write(`http://${options.host.includes(':') ? `[${options.host}]` : options.host}:${port}\n`)
  await tell({ type: 'ready', port })
}

run().catch((error: unknown) => fail(error instanceof Error ? error.message : String(error)))
