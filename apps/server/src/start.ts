import type { AddressInfo } from 'node:net'
import { auditRoutes } from './audit/routes.ts'
import { openBilling } from './billing/billing.ts'
import { budgetRoutes } from './billing/budget-routes.ts'
import { priceListRoutes } from './billing/price-list.ts'
import { billingRoutes } from './billing/routes.ts'
import { termsOf } from './billing/terms.ts'
import { openCatalog } from './catalog/catalog.ts'
import type { Model } from './catalog/model.ts'
import { readModelIds } from './catalog/models.ts'
import { catalogRoutes } from './catalog/routes.ts'
import { seedTinyModels } from './catalog/seed.ts'
import { BUILTIN_MODELS_DIR, pulledDir } from './catalog/weights-path.ts'
import { withoutSpeech } from './catalog/without-speech.ts'
import { placesOf } from './cockpit/places.ts'
import { cockpitRoutes } from './cockpit/routes.ts'
import type { Config } from './config.ts'
import { openCors } from './cors.ts'
import { cpuNode } from './deployments/node-types.ts'
import { deploymentRoutes } from './deployments/routes.ts'
import { openEngines } from './engines/engines.ts'
import { isSpeechInstalled, type LocalOptions } from './engines/local.ts'
import { enginesOf } from './engines/registry.ts'
import { engineRoutes } from './engines/routes.ts'
import { askDatabase, openHttp } from './http.ts'
import { bootstrap } from './iam/bootstrap.ts'
import { openGuard } from './iam/guard.ts'
import { openIam } from './iam/iam.ts'
import { oidcPages } from './iam/oidc-pages.ts'
import { linkPages } from './iam/pages.ts'
import { openPeople } from './iam/people.ts'
import { iamRoutes } from './iam/routes.ts'
import { inferenceReference } from './inference/reference.ts'
import { inferenceRoutes } from './inference/routes.ts'
import { httpAddress } from './kit/addresses.ts'
import { openChanges } from './kit/changes.ts'
import { type Clock, systemClock } from './kit/clock.ts'
import { holdDataDir } from './kit/data-dir.ts'
import { openDb } from './kit/db.ts'
import type { OrganizationId } from './kit/ids.ts'
import { type Logger, openLog } from './kit/log.ts'
import { openMail } from './kit/mail.ts'
import { openManagement } from './kit/management.ts'
import { openMetrics } from './kit/metrics.ts'
import { migrate } from './kit/migrate.ts'
import { no } from './kit/outcome.ts'
import { openEmbeddedPostgres } from './kit/postgres.ts'
import { openSecrets } from './kit/secrets.ts'
import { leftOutRoutes } from './left-out.ts'
import { metricsRoute } from './metrics-route.ts'
import { type Admit, openAdmission } from './quota/admit.ts'
import { watchBudgets } from './quota/budgets.ts'
import { watchPolicy } from './quota/policy.ts'
import { openPostgresLedger } from './quota/postgres-ledger.ts'
import { quotaRoutes } from './quota/routes.ts'
import { referenceRoutes } from './reference/routes.ts'
import { usageRoutes } from './usage/routes.ts'
import { openUsage } from './usage/usage.ts'
import { VERSION } from './version.ts'

const BYTES_PER_MB = 1024 * 1024
/** Request bodies held at once in this process: a thousand images in flight would otherwise be a gigabyte. */
const INFLIGHT_BYTES = 512 * BYTES_PER_MB
const LIMITS_CONNECTIONS = 3
const DRAIN_LOOK_MS = 50
/** A journal that failed looks every few seconds whether it can be written again. */
const JOURNAL_RETRY_MS = 5_000
/** After their sockets are cut, answers need a moment to write their usage events. */
const CUT_LIMIT_MS = 5_000

export type House = Awaited<ReturnType<typeof start>>

/** Builds the house from the ground up; `close` takes it down in the opposite order. */
export const start = async (config: Config, parts: { clock?: Clock; log?: Logger; local?: Partial<LocalOptions> } = {}) => {
  const clock = parts.clock ?? systemClock
  const log = parts.log ?? openLog(config.logLevel)

  const opened: { what: string; shut: () => Promise<void> }[] = []
  const open = (what: string, shut: () => Promise<void>): void => void opened.push({ what, shut })
  const close = async (): Promise<void> => {
    for (let part = opened.pop(); part !== undefined; part = opened.pop()) {
      await part.shut().catch((error: unknown) => log.error({ err: error, part: part?.what }, 'could not be closed in order'))
    }
  }

  try {
    const hold = await holdDataDir(config.dataDir, 'parvis serve')
    open('data directory', () => hold.release())
    const secrets = await openSecrets({ dataDir: config.dataDir, masterKey: config.masterKey })

    const embedded = config.databaseUrl === undefined ? await openEmbeddedPostgres({ dataDir: config.dataDir, log, clock }) : undefined
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

    const changes = await openChanges({ db, url, clock, log })
    open('changes', () => changes.close())
    const metrics = openMetrics()
    const usage = await openUsage({
      dataDir: config.dataDir,
      db,
      clock,
      log,
      policy: { chargeFailed: config.chargeFailed },
      retentionMonths: config.usageRetentionMonths,
      metrics,
    })
    open('usage', () => usage.close())
    const iam = await openIam({ db, changes, secrets, clock, log })
    const catalog = await openCatalog({
      db,
      changes,
      clock,
      log,
      weightsDirs: { builtin: BUILTIN_MODELS_DIR, pulled: pulledDir(config.dataDir) },
    })
    const engines = await openEngines({
      db,
      changes,
      secrets,
      clock,
      log,
      dataDir: config.dataDir,
      local: { ...config.engine, ...parts.local },
    })
    open('engines', () => engines.close())
    const served = isSpeechInstalled() ? catalog : withoutSpeech(catalog)
    engines.want(localModels(served.list()))
    const unwatch = catalog.onChange(() => engines.want(localModels(served.list())))
    open('catalogue watch', async () => unwatch())

    // A pool of its own: a grant must not wait behind a report.
    const limitsDb = openDb(url, { log, max: LIMITS_CONNECTIONS })
    open('database for limits', () => limitsDb.end())
    const policy = await watchPolicy({ db, changes })
    const admission = openAdmission({ policy, ledger: openPostgresLedger(limitsDb), clock, log, metrics })
    open('limits', () => admission.close())
    const budgets = watchBudgets({ db, policy, clock, log })
    open('budgets', () => budgets.close())
    /** What cannot be written down is not begun. */
    const admit: Admit = (...asked) => {
      if (usage.fault() === undefined) return admission.admit(...asked)
      // Why not is the operator's business: the log has it, and `/ready` says that it is so.
      return no({ code: 'busy', reason: 'usage cannot be recorded now', retryAfterMs: JOURNAL_RETRY_MS })
    }
    const readiness = {
      database: () => askDatabase(db, clock),
      journal: usage.fault,
      catalogue: () => (catalog.list().length > 0 ? undefined : 'the catalogue has no models'),
    }
    const bodyMs = config.bodyTimeoutSeconds * 1000
    // For the check that the reference tells of all of it.
    const registered: { readonly method: string; readonly path: string }[] = []
    const onRoute = (method: string, path: string): void => void registered.push({ method, path })
    const app = openHttp(log, readiness, { trustedProxies: config.trustedProxies, bodyMs, onRoute })
    openCors(app, config.corsOrigins)
    inferenceRoutes(
      app,
      {
        authenticate: iam.authenticate,
        resolve: served.resolve,
        admit,
        takeSeat: engines.takeSeat,
        replicaOf: engines.replicaOf,
        begin: usage.begin,
        withdraw: usage.withdraw,
        record: usage.record,
        models: served.list,
        elsewhere: (request, reply) => refuseUnknown(request, reply),
        clock,
        log,
      },
      {
        bodyBytes: config.maxBodyMb * BYTES_PER_MB,
        bodyMs,
        totalMs: config.requestTimeoutSeconds * 1000,
        pingMs: config.streamPingSeconds * 1000,
        inflightBytes: INFLIGHT_BYTES,
        fetchAllow: config.fetchAllow,
      },
    )
    const publicUrl = (): string => config.publicUrl ?? httpAddress(config.host, (app.server.address() as AddressInfo).port)
    const sendMail = openMail(config)
    const people = openPeople({ db, clock, log, secrets, iam, sendMail, publicUrl, behindTls: config.behindTls, oidc: oidcOf(config) })
    open('letters', people.close)
    const { manage, shapes, refuseUnknown } = openManagement(app, {
      guard: openGuard(iam, people),
      clock,
      log,
      bodyMs,
      region: config.region,
    })
    metricsRoute(manage, metrics)
    linkPages(app, { people, clock, log })
    if (people.oidc !== undefined) oidcPages(app, { oidc: people.oidc, people, clock, log })
    iamRoutes(manage, { db, secrets, iam, people })
    auditRoutes(manage, { db })
    catalogRoutes(manage, { db, clock, servedBy: (name) => enginesOf(db, name) })
    engineRoutes(manage, { db, secrets, clock, states: engines.states, modelIds: (names) => readModelIds(db, names) })
    quotaRoutes(manage, { db, clock, policy, models: catalog.list })
    usageRoutes(manage, { db, clock })
    const terms = termsOf(config)
    const delivery = { secrets, smtpUrl: config.smtpUrl, mailFrom: config.mailFrom, fetchAllow: config.fetchAllow }
    const billing = openBilling({ db, clock, log, terms, delivery })
    open('billing', () => billing.close())
    billingRoutes(manage, { db, clock, terms })
    budgetRoutes(manage, { db, clock, secrets })
    priceListRoutes(manage, { models: catalog.list, region: terms.region })
    const places = placesOf(config.domain, publicUrl)
    const { region, cockpitName: platformName } = config
    cockpitRoutes(manage, { db, clock, secrets, region, platformName, places, sendMail })
    deploymentRoutes(manage, { models: served.list, nodeTypes: [cpuNode(config.engine)], region })
    leftOutRoutes(manage)
    const reference = referenceRoutes(app, manage, { routes: shapes, others: inferenceReference, version: VERSION, clock })

    await app.listen({ host: config.host, port: config.port })
    const { port } = app.server.address() as AddressInfo

    /** Stops accepting, lets running answers end within the limit, then cuts them; their usage is written all the same. */
    const drain = async (): Promise<void> => {
      const closed = app.close()
      const settled = async (limitMs: number): Promise<boolean> => {
        for (let waited = 0; admission.open() > 0 && waited < limitMs; waited += DRAIN_LOOK_MS) {
          app.server.closeIdleConnections()
          await clock.sleep(DRAIN_LOOK_MS)
        }
        return admission.open() === 0
      }
      if (!(await settled(config.shutdownSeconds * 1000))) {
        log.warn({ open: admission.open() }, 'answers still running at the limit are cut')
      }
      app.server.closeAllConnections()
      await settled(CUT_LIMIT_MS)
      await closed
    }
    open('http', drain)

    log.info({ host: config.host, port }, 'listening')
    return { config, db, url: httpAddress(config.host, port), owner, catalog, engines, routes: shapes, reference, registered, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** A database's address without the name and the password in it. */
const placeOf = (url: string): string => {
  const { host, pathname } = new URL(url)
  return `${host}${pathname}`
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** All three are there or none is: config.ts. */
const oidcOf = ({ oidcIssuer: issuer, oidcClientId: clientId, oidcClientSecret: clientSecret, oidcDomains: domains, oidcJoin }: Config) =>
  issuer === undefined || clientId === undefined || clientSecret === undefined
    ? undefined
    : { issuer, clientId, clientSecret, domains, join: oidcJoin as OrganizationId | undefined }

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
