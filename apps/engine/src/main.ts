import { unixSeconds } from './clock.ts'
import { readCommandLine } from './command-line.ts'
import { loadModel } from './llama/model.ts'
import { openLog } from './log.ts'
import { openServer } from './server.ts'

const CLOSE_LIMIT_MS = 5000
const PROGRESS_STEP = 0.05

/** What the parent hears when it started this process with `fork()`. */
type Told = { type: 'loading'; progress: number } | { type: 'ready'; port: number } | { type: 'failed'; reason: string }

const log = openLog()
const hasParent = process.send !== undefined
const tell = (message: Told): Promise<void> =>
  new Promise((resolve) => {
    if (process.send === undefined || !process.connected) return resolve()
    process.send(message, () => resolve())
  })

const fail = async (reason: string): Promise<never> => {
  log.error('the engine cannot start', { reason })
  if (!hasParent) process.stdout.write(`${reason}\n`)
  await tell({ type: 'failed', reason })
  process.exit(1)
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

  let told = 0
  const loaded = await loadModel(options, log, (progress) => {
    if (progress - told < PROGRESS_STEP && progress < 1) return
    told = progress
    void tell({ type: 'loading', progress })
  })
  const server = openServer({ loaded, options, log, startedAtSeconds: unixSeconds() }, process.env['PARVIS_ENGINE_KEY'])
  const port = await server.listen()
  close = () => server.close(CLOSE_LIMIT_MS)
  log.info('serving', {
    model: options.name,
    type: options.type,
    context: loaded.contextTokens,
    sequences: loaded.sequences,
    threads: options.threads,
    gpu: loaded.llama.gpu === false ? 'none' : loaded.llama.gpu,
    port,
  })
  if (!hasParent) process.stdout.write(`http://${options.host.includes(':') ? `[${options.host}]` : options.host}:${port}\n`)
  await tell({ type: 'ready', port })
}

run().catch((error: unknown) => fail(error instanceof Error ? error.message : String(error)))
