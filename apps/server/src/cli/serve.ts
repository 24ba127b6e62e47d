import type { Command } from 'commander'
import { offerStarter } from '../catalog/starter.ts'
import type { Config } from '../config.ts'
import { systemClock } from '../kit/clock.ts'
import { type Logger, openLog } from '../kit/log.ts'
import type { House } from '../start.ts'
import { greet } from './greeting.ts'
import { pullStarter } from './starter.ts'

/** The examples shall work when pasted, so they wait for the engines; not for ever, since a big model may load for minutes. */
const ENGINES_LIMIT_MS = 20_000
const ENGINES_LOOK_MS = 50
/** A terminal and npm may both deliver the same Ctrl-C; a second one that comes later means it. */
const SECOND_SIGNAL_MS = 1_000

const settled = (house: House): boolean => house.engines.states().every((replica) => replica.state !== 'starting')

const awaitEngines = async (house: House): Promise<void> => {
  for (let waited = 0; !settled(house) && waited < ENGINES_LIMIT_MS; waited += ENGINES_LOOK_MS) await systemClock.sleep(ENGINES_LOOK_MS)
}

const stateOf = (house: House, model: string): string => {
  const replicas = house.engines.states().filter((replica) => replica.model === model)
  const ready = replicas.filter((replica) => replica.state === 'ready').length
  if (ready > 0) return 'ready'
  const [first] = replicas
  return first === undefined ? 'no engine' : first.reason === undefined ? first.state : `${first.state}: ${first.reason}`
}

/** Resolves at the first signal to stop. A later one ends the process at once. */
const untilSignal = (log: Logger): Promise<void> =>
  new Promise((stop) => {
    let firstAt: number | undefined
    const onSignal = (signal: NodeJS.Signals): void => {
      if (firstAt === undefined) {
        firstAt = performance.now()
        log.info({ signal }, 'stopping: running answers may end')
        stop()
      } else if (performance.now() - firstAt > SECOND_SIGNAL_MS) {
        log.warn({ signal }, 'stopping at once')
        process.exit(1)
      }
    }
    process.on('SIGTERM', onSignal).on('SIGINT', onSignal)
  })

/** Serves until a signal comes; resolves with the exit code. */
export const serve = async (config: Config, options: { starter: boolean }): Promise<number> => {
  const log = openLog(config.logLevel)
  const stopped = untilSignal(log)

  // Only here: the other commands start without the whole house.
  const { start } = await import('../start.ts')
  const house = await start(config, { log })
  const ending = new AbortController()
  // While it comes the server serves; the catalogue tells the engines room when it is there.
  const starter = options.starter ? pullStarter(config, ending.signal) : undefined
  try {
    await Promise.race([awaitEngines(house), stopped])
    const models = house.catalog.list().map((model) => ({ name: model.name, type: model.type, state: stateOf(house, model.name) }))
    const created = house.owner.created
    process.stdout.write(
      greet({
        url: house.url,
        firstKey: created !== null && !created.given ? created : undefined,
        models,
        chatModel: models.find((model) => model.type === 'chat' && model.state === 'ready')?.name,
        dataDir: config.dataDir,
        offer: created === null || options.starter ? undefined : await offerStarter(config),
      }),
    )
    await stopped
  } finally {
    ending.abort()
    await starter
    await house.close()
  }
  log.info('stopped')
  return 0
}

export const registerServe = (
  program: Command,
  readSettings: (values: Readonly<Record<string, unknown>>) => Config,
  settingsHelp: () => string,
): void => {
  program
    .command('serve', { isDefault: true })
    .description('start the server and its engines; Ctrl-C stops it')
    .option('--host <address>', 'address to listen on, instead of PARVIS_HOST')
    .option('--port <number>', 'port to listen on, instead of PARVIS_PORT')
    .option('--starter', 'also pull a small real instruct model (about 145 MB) from the hub, once')
    .addHelpText('after', () => `\n${settingsHelp()}`)
    .action(async ({ starter, ...values }: { host?: string; port?: string; starter?: boolean }) => {
      process.exitCode = await serve(readSettings(values), { starter: starter === true })
    })
}
