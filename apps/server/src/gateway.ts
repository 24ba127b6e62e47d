import { rm } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { auditRoutes } from './audit/routes.ts'
import { budgetRoutes } from './billing/budget-routes.ts'
import { priceListRoutes } from './billing/price-list.ts'
import { billingRoutes } from './billing/routes.ts'
import { termsOf } from './billing/terms.ts'
import { readModelIds } from './catalog/models.ts'
import { catalogRoutes } from './catalog/routes.ts'
import { placesOf } from './cockpit/places.ts'
import { cockpitRoutes } from './cockpit/routes.ts'
import type { Config } from './config.ts'
import { openCors } from './cors.ts'
import { cpuNode } from './deployments/node-types.ts'
import { deploymentRoutes } from './deployments/routes.ts'
import type { Engines } from './engines/engines.ts'
import { enginesOf } from './engines/registry.ts'
import { engineRoutes } from './engines/routes.ts'
import type { Foundation } from './foundation.ts'
import { openHandOver, socketOf } from './gateways/hand-over.ts'
import type { Neighbours } from './gateways/neighbours.ts'
import { askDatabase, openDraining, openHttp } from './http.ts'
import { openFits } from './iam/fits.ts'
import { openGuard } from './iam/guard.ts'
import { openIam } from './iam/iam.ts'
import { oidcPages } from './iam/oidc-pages.ts'
import { linkPages } from './iam/pages.ts'
import { openPeople } from './iam/people.ts'
import { iamRoutes } from './iam/routes.ts'
import { TEXTS_LIMIT_MS } from './inference/count.ts'
import { openMemory } from './inference/memory.ts'
import { inferenceReference } from './inference/reference.ts'
import { inferenceRoutes } from './inference/routes.ts'
import { httpAddress } from './kit/addresses.ts'
import { openDb } from './kit/db.ts'
import { tuneHeap } from './kit/heap.ts'
import type { OrganizationId } from './kit/ids.ts'
import { openMail } from './kit/mail.ts'
import { openManagement } from './kit/management.ts'
import type { Metrics } from './kit/metrics.ts'
import { no } from './kit/outcome.ts'
import { leftOutRoutes } from './left-out.ts'
import { metricsRoute } from './metrics-route.ts'
import { type Admit, openAdmission } from './quota/admit.ts'
import { openPostgresLedger } from './quota/postgres-ledger.ts'
import { quotaRoutes } from './quota/routes.ts'
import { referenceRoutes } from './reference/routes.ts'
import { usageRoutes } from './usage/routes.ts'
import type { Usage } from './usage/usage.ts'
import { VERSION } from './version.ts'

const BYTES_PER_MB = 1024 * 1024
/** Request bodies held at once on this machine: a thousand images in flight would otherwise be a gigabyte. */
const INFLIGHT_BYTES = 512 * BYTES_PER_MB
/** Bodies of management requests, which are small but for some, and become twenty times as large when they are read. */
const MANAGEMENT_BYTES = 16 * BYTES_PER_MB
/** Answers kept for `Idempotency-Key`, likewise; one gateway has room for one of the largest at least. */
const KEPT_BYTES = 64 * BYTES_PER_MB
const KEPT_LEAST_BYTES = 16 * BYTES_PER_MB
const LIMITS_CONNECTIONS = 3
const REPORTS_CONNECTIONS = 2
const DRAIN_LOOK_MS = 50
/** A journal that failed looks every few seconds whether it can be written again. */
const JOURNAL_RETRY_MS = 5_000
/** After their sockets are cut, answers are counted where no engine has, and need a moment to write their usage events. */
export const CUT_LIMIT_MS = TEXTS_LIMIT_MS + 5_000
/** Whoever has a request from another gateway ends it by its own limit, which is the better refusal. */
const HAND_OVER_SPARE_MS = 10_000

export type Gateway = Awaited<ReturnType<typeof openGateway>>

/**
 * A gateway: the one HTTP server of a process with all its routes, what it remembers of keys, and its part of the limits. `neighbours`: the others
 * behind the same port, where there are any.
 */
export const openGateway = async (
  config: Config,
  parts: Foundation & {
    readonly metrics: Metrics
    readonly usage: Usage
    readonly engines: Pick<Engines, 'takeSeat' | 'replicaOf' | 'states'>
    readonly neighbours?: Neighbours & { readonly place: { readonly number: number; readonly gateways: number; readonly port: number } }
  },
) => {
  const { clock, log, open, url, db, secrets, changes, catalog, served, policy, metrics, usage, engines, neighbours } = parts
  const stopTuning = tuneHeap()
  open('heap', async () => stopTuning())
  const known = await openIam({ db, changes, secrets, clock, log, elsewhere: neighbours?.failures('keys') })
  const iam = neighbours === undefined ? known : { ...known, knowing: neighbours.knowing }

  // A pool of its own: a grant must not wait behind a report.
  const limitsDb = openDb(url, { log, max: LIMITS_CONNECTIONS })
  open('database for limits', () => limitsDb.end())
  // Nor a revocation, a session or the books: whoever asks for sums by the minute, without a key where they are shared, keeps a connection for many seconds.
  const reportsDb = openDb(url, { log, max: REPORTS_CONNECTIONS })
  open('database for reports', () => reportsDb.end())
  const admission = openAdmission({ policy, ledger: openPostgresLedger(limitsDb), clock, log, metrics })
  open('limits', () => admission.close())
  /** What cannot be written down is not begun. */
  const admit: Admit = (...asked) => {
    if (usage.fault() === undefined) return admission.admit(...asked)
    // Why not is the operator's business: the log has it, and `/ready` says that it is so.
    return no({ code: 'busy', reason: 'usage cannot be recorded now', retryAfterMs: JOURNAL_RETRY_MS })
  }
  const readiness = {
    database: () => askDatabase(db, clock),
    journal: neighbours?.journal ?? usage.fault,
    catalogue: () => (catalog.list().length > 0 ? undefined : 'the catalogue has no models'),
  }
  const bodyMs = config.bodyTimeoutSeconds * 1000
  const totalMs = config.requestTimeoutSeconds * 1000
  // For the check that the reference tells of all of it.
  const registered: { readonly method: string; readonly path: string }[] = []
  const onRoute = (method: string, path: string): void => void registered.push({ method, path })
  const app = openHttp(log, readiness, { trustedProxies: config.trustedProxies, bodyMs, onRoute, clock })
  const draining = openDraining(app.server)
  openCors(app, config.corsOrigins)
  inferenceRoutes(
    app,
    {
      authenticate: iam.authenticate,
      resolve: served.resolve,
      admit,
      takeSeat: engines.takeSeat,
      replicaOf: engines.replicaOf,
      noteOpen: usage.noteOpen,
      withdraw: usage.withdraw,
      record: usage.record,
      models: served.list,
      elsewhere: (request, reply) => refuseUnknown(request, reply),
      ...(neighbours === undefined ? {} : { handOver: (...asked) => handing?.handOver(...asked) === true }),
      clock,
      log,
    },
    {
      bodyBytes: config.maxBodyMb * BYTES_PER_MB,
      bodyMs,
      totalMs,
      pingMs: config.streamPingSeconds * 1000,
      ...memoryOf(config),
      fetchAllow: config.fetchAllow,
    },
  )
  const portOf = (): number => neighbours?.place.port ?? (app.server.address() as AddressInfo).port
  const publicUrl = (): string => config.publicUrl ?? httpAddress(config.host, portOf())
  const sendMail = openMail(config)
  const fits = openFits(config.maxima)
  const people = openPeople({
    db,
    clock,
    log,
    secrets,
    iam,
    fits,
    sendMail,
    publicUrl,
    behindTls: config.behindTls,
    oidc: oidcOf(config),
    elsewhere: neighbours?.failures('people'),
  })
  open('letters', people.close)
  const { manage, shapes, refuseUnknown } = openManagement(app, {
    guard: openGuard(iam, people),
    clock,
    log,
    bodyMs,
    region: config.region,
    memory: openMemory(MANAGEMENT_BYTES),
  })
  metricsRoute(manage, neighbours?.metrics ?? metrics.render)
  linkPages(app, { people, clock, log, bodyMs })
  if (people.oidc !== undefined) oidcPages(app, { oidc: people.oidc, people, clock, log })
  iamRoutes(manage, { db, secrets, iam, people, fits })
  auditRoutes(manage, { db })
  catalogRoutes(manage, { db, clock, servedBy: (name) => enginesOf(db, name) })
  engineRoutes(manage, { db, secrets, clock, states: engines.states, modelIds: (names) => readModelIds(db, names) })
  quotaRoutes(manage, { db, clock, policy, maxima: config.maxima, models: catalog.list })
  usageRoutes(manage, { db, reports: reportsDb, clock })
  const terms = termsOf(config)
  billingRoutes(manage, { db: reportsDb, clock, terms })
  budgetRoutes(manage, { db, clock, secrets })
  priceListRoutes(manage, { models: catalog.list, region: terms.region })
  const places = placesOf(config.domain, publicUrl)
  const { region, cockpitName: platformName } = config
  cockpitRoutes(manage, { db, clock, log, secrets, region, platformName, places, sendMail })
  deploymentRoutes(manage, { models: served.list, nodeTypes: [cpuNode(config.engine)], region })
  leftOutRoutes(manage)
  const reference = referenceRoutes(app, manage, { routes: shapes, others: inferenceReference, version: VERSION, clock })

  const handing = neighbours && openHandOver({ app, ...neighbours.place, dataDir: config.dataDir, limitMs: totalMs + HAND_OVER_SPARE_MS })
  if (handing !== undefined) open('handing over', handing.close)

  /** Stops accepting, lets running answers end within the limit, then cuts them; their usage is written all the same. */
  const drain = async (): Promise<void> => {
    draining.stopAccepting()
    // An answer that is on its way out has no ticket any more, and one that is counted for a client who has left has no connection.
    const running = (): number => Math.max(admission.open(), draining.answering())
    const settled = async (limitMs: number): Promise<boolean> => {
      for (let waited = 0; running() > 0 && waited < limitMs; waited += DRAIN_LOOK_MS) {
        draining.closeIdle()
        await clock.sleep(DRAIN_LOOK_MS)
      }
      return running() === 0
    }
    if (!(await settled(config.shutdownSeconds * 1000))) {
      log.warn({ open: running() }, 'answers still running at the limit are cut')
    }
    app.server.closeAllConnections()
    await settled(CUT_LIMIT_MS)
  }
  // As a hook: requests that still come are told that their connection ends, and what the data plane needs for its answers is closed only behind it.
  app.addHook('preClose', drain)

  if (neighbours === undefined) await app.listen({ host: config.host, port: config.port })
  else {
    const path = socketOf(config.dataDir, neighbours.place.number)
    await rm(path, { force: true })
    await app.listen({ path })
  }

  open('http', () => app.close())

  neighbours?.answerWith({ metrics: metrics.families, journal: usage.fault, knowing: known.knowing }, log)
  neighbours?.listening((socket) => handing?.take(socket))
  return { port: portOf(), routes: shapes, reference, registered }
}

/** The bounds of the machine, of which each gateway has its part: never so little that the largest body has no room beside others. */
const memoryOf = ({ gateways, maxBodyMb }: Config) => ({
  inflightBytes: gateways === 1 ? INFLIGHT_BYTES : Math.max(INFLIGHT_BYTES / gateways, 2 * maxBodyMb * BYTES_PER_MB),
  idempotency: { totalBytes: Math.max(KEPT_BYTES / gateways, KEPT_LEAST_BYTES) },
})

/** All three are there or none is: config.ts. */
const oidcOf = ({ oidcIssuer: issuer, oidcClientId: clientId, oidcClientSecret: clientSecret, oidcDomains: domains, oidcJoin }: Config) =>
  issuer === undefined || clientId === undefined || clientSecret === undefined
    ? undefined
    : { issuer, clientId, clientSecret, domains, join: oidcJoin as OrganizationId | undefined }
