import { parseSettings } from './config.ts'
import { openEngines } from './engines/engines.ts'
import { openFoundation } from './foundation.ts'
import { openGateway } from './gateway.ts'
import type { Begin } from './gateways/line.ts'
import { meetNeighbours } from './gateways/neighbours.ts'
import { beginBuilding } from './kit/building.ts'
import { systemClock as clock } from './kit/clock.ts'
import { holdDataDir } from './kit/data-dir.ts'
import { openDb } from './kit/db.ts'
import { openLog } from './kit/log.ts'
import { openMetrics } from './kit/metrics.ts'
import { openSecrets } from './kit/secrets.ts'
import { journalHome, makeGatewayDir } from './usage/gateway.ts'
import { openUsage } from './usage/usage.ts'

// One gateway of several, as a process that the house has started (gateways/house.ts). It ends when the house is gone, however that went.

/** Reports, the shipping of usage, and changes of what is known: no request waits for one of them. */
const GATEWAY_CONNECTIONS = 4

const neighbours = meetNeighbours(process)

/** Serves until the house says that it is enough. */
const serve = async ({ number, gateways, port, settings, databaseUrl: url }: Begin): Promise<void> => {
  process.title = `parvis gateway ${number}`
  const config = parseSettings(settings)
  const log = openLog(config.logLevel).child({ gateway: number })
  const { open, close } = beginBuilding(log)
  try {
    const hold = await holdDataDir(await makeGatewayDir(config.dataDir, number), `gateway ${number}`)
    open('directory', () => hold.release())
    const secrets = await openSecrets({ dataDir: config.dataDir, masterKey: config.masterKey })
    const db = openDb(url, { log, max: GATEWAY_CONNECTIONS })
    open('database', () => db.end())
    const foundation = await openFoundation(config, { clock, log, open, url, db, secrets })

    const metrics = openMetrics()
    const policy = { chargeFailed: config.chargeFailed }
    const usage = await openUsage({ dataDir: journalHome(config.dataDir, number), db, clock, log, policy, metrics })
    open('usage', usage.close)
    const engines = await openEngines({ ...foundation, dataDir: config.dataDir })
    open('engines', engines.close)
    neighbours.onEngines(engines.hear)
    const place = { number, gateways, port }
    await openGateway(config, { ...foundation, metrics, usage, engines, neighbours: { ...neighbours, place } })
    await neighbours.stopped
  } finally {
    await close()
  }
}

// Ctrl-C in a terminal, and many a service manager, tell every process; how we end is the house's to say, so that running answers may end.
process.on('SIGINT', () => undefined).on('SIGTERM', () => undefined)
// Without the house nobody hands us connections, and the next one wants our journal.
process.on('disconnect', () => process.exit())

try {
  await serve(await neighbours.begun)
} catch (error) {
  neighbours.failed(error instanceof Error ? error.message : String(error))
}
process.disconnect()
