import { openBilling } from './billing/billing.ts'
import { termsOf } from './billing/terms.ts'
import type { Model } from './catalog/model.ts'
import { seedTinyModels } from './catalog/seed.ts'
import { BUILTIN_MODELS_DIR } from './catalog/weights-path.ts'
import type { Config } from './config.ts'
import { type Engines, openEngines } from './engines/engines.ts'
import type { LocalOptions } from './engines/local.ts'
import { type Foundation, type Ground, openFoundation } from './foundation.ts'
import { CUT_LIMIT_MS, openGateway } from './gateway.ts'
import { requireShortPath } from './gateways/hand-over.ts'
import { openGateways } from './gateways/house.ts'
import { type Bootstrapped, bootstrap } from './iam/bootstrap.ts'
import { httpAddress } from './kit/addresses.ts'
import { type Building, beginBuilding } from './kit/building.ts'
import { type Clock, systemClock } from './kit/clock.ts'
import { holdDataDir } from './kit/data-dir.ts'
import { openDb } from './kit/db.ts'
import { type Logger, openLog } from './kit/log.ts'
import { openMetrics } from './kit/metrics.ts'
import { migrate } from './kit/migrate.ts'
import { openEmbeddedPostgres } from './kit/postgres.ts'
import { openSecrets } from './kit/secrets.ts'
import { watchBudgets } from './quota/budgets.ts'
import { awaitOrphans } from './usage/gateway.ts'
import { openKeeping } from './usage/keep.ts'
import { shipLeft } from './usage/left.ts'
import { openUsage } from './usage/usage.ts'

/** What a gateway takes to stop beside what its answers may take: cutting them, writing their usage, shipping it, giving back its limits. */
const END_SPARE_MS = CUT_LIMIT_MS + 15_000

export type House = Awaited<ReturnType<typeof start>>

/**
 * Builds the house from the ground up; `close` takes it down in the opposite order. With one gateway all of it is this process. With several
 * this process keeps what there is once, and each gateway is a process of its own behind the same port (gateway-main.ts).
 */
export const start = async (config: Config, parts: { clock?: Clock; log?: Logger; local?: Partial<LocalOptions> } = {}) => {
  const clock = parts.clock ?? systemClock
  const log = parts.log ?? openLog(config.logLevel)
  const { open, close } = beginBuilding(log)
  const alone = config.gateways === 1

  try {
    const { owner, ...ground } = await openGround(config, { clock, log, open })
    const foundation = await openFoundation(config, ground)
    const { db, changes, secrets, catalog, served } = foundation
    const { dataDir } = config

    const metrics = openMetrics()
    const usage = alone ? await openUsage({ dataDir, db, clock, log, policy: { chargeFailed: config.chargeFailed }, metrics }) : undefined
    if (usage !== undefined) open('usage', usage.close)
    const engines = await openEngines({ db, changes, secrets, clock, log, dataDir, local: { ...config.engine, ...parts.local } })
    open('engines', () => engines.close())
    engines.want(localModels(served.list()))
    const unwatch = catalog.onChange(() => engines.want(localModels(served.list())))
    open('catalogue watch', async () => unwatch())
    openOnce(config, foundation)

    const gateway = usage && (await openGateway(config, { ...foundation, metrics, usage, engines }))
    const port = gateway === undefined ? await openSeveral(config, foundation, engines) : gateway.port
    log.info({ host: config.host, port, gateways: config.gateways }, 'listening')
    return { config, db, url: httpAddress(config.host, port), owner, catalog, engines, gateway, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** The data directory is ours, the database is there and has today's tables, and somebody owns it. */
const openGround = async (
  config: Config,
  { clock, log, open }: { clock: Clock; log: Logger; open: Building['open'] },
): Promise<Ground & { owner: Bootstrapped }> => {
  if (config.gateways > 1) requireShortPath(config.dataDir)
  const hold = await holdDataDir(config.dataDir, 'parvis serve')
  open('data directory', () => hold.release())
  if (hold.unseenBecause !== undefined) {
    log.warn(
      { err: hold.unseenBecause, dataDir: config.dataDir },
      'no socket can be made in the data directory, so a Parvis in another container would not see that it is in use: start no second one on it',
    )
  }
  await awaitOrphans(config.dataDir, clock)
  const secrets = await openSecrets({ dataDir: config.dataDir, masterKey: config.masterKey })

  const { dataDir, gateways } = config
  const embedded = config.databaseUrl === undefined ? await openEmbeddedPostgres({ dataDir, gateways, log, clock }) : undefined
  if (embedded !== undefined) open('embedded database', embedded.close)
  const url = embedded?.url ?? config.databaseUrl ?? ''
  const db = openDb(url, { log })
  open('database', () => db.end())
  const applied = await migrate(db).catch((error: unknown) => {
    throw new Error(`The database at ${placeOf(url)} cannot be used: ${reasonOf(error)}`, { cause: error })
  })
  if (applied.length > 0) log.info({ migrations: applied }, 'database is up to date')
  const given = config.bootstrapSecretKey === undefined ? {} : { secretKey: config.bootstrapSecretKey }
  const owner = await bootstrap(db, secrets, clock, { ...given, log })
  if (config.demoModels) await seedTinyModels(db, BUILTIN_MODELS_DIR, clock)
  return { clock, log, open, url, db, secrets, owner }
}

/** Work that is done once for all gateways. Each part may run beside itself in another house on the same database. */
const openOnce = (config: Config, { db, policy, secrets, clock, log, open }: Foundation): void => {
  const left = shipLeft({ dataDir: config.dataDir, running: config.gateways, db, clock, log })
  open('what gateways have left', left.close)
  const keeping = openKeeping({ db, clock, log, retentionMonths: config.usageRetentionMonths })
  open('totals', keeping.stop)
  const budgets = watchBudgets({ db, policy, clock, log })
  open('budgets', () => budgets.close())
  const delivery = { secrets, smtpUrl: config.smtpUrl, mailFrom: config.mailFrom, fetchAllow: config.fetchAllow }
  const billing = openBilling({ db, clock, log, terms: termsOf(config), delivery })
  open('billing', () => billing.close())
}

/** The port of gateways that are processes of their own. They read the same settings, and have their part of what the house has. */
const openSeveral = async (config: Config, { url, clock, log, open }: Foundation, { children }: Engines): Promise<number> => {
  const begin = { settings: config, databaseUrl: url }
  const endMs = config.shutdownSeconds * 1000 + END_SPARE_MS
  const { host, port, gateways } = config
  const several = await openGateways({ host, port, gateways, begin, children, endMs, clock, log })
  open('gateways', several.close)
  return several.port
}

/** A database's address without the name and the password in it. */
const placeOf = (url: string): string => {
  const { host, pathname } = new URL(url)
  return `${host}${pathname}`
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

const localModels = (models: readonly Model[]) =>
  models.flatMap((model) =>
    model.weights !== null && model.type !== 'ocr'
      ? [
          {
            id: model.id,
            name: model.name,
            type: model.type,
            path: model.weights.path,
            contextTokens: model.contextTokens,
            maxOutputTokens: model.maxOutputTokens,
            matryoshka: model.matryoshka,
          },
        ]
      : [],
  )
