import type { Config } from '../config.ts'
import { type Installation, readInstallation } from '../iam/installation.ts'
import { systemClock } from '../kit/clock.ts'
import { type Db, openDb } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { type Logger, openLog } from '../kit/log.ts'
import { hasMigrations, migrate, pendingMigrations } from '../kit/migrate.ts'
import { borrowEmbeddedPostgres } from '../kit/postgres.ts'
import { openSecrets, type Secrets } from '../kit/secrets.ts'

export type CommandDatabase = {
  readonly db: Db
  readonly url: string
  /** Where that is, in words and without its password. */
  readonly place: string
  readonly secrets: Secrets
  readonly log: Logger
}

const MAX_CONNECTIONS = 2

/** A new database is set up; one that others may be using is not changed behind their back by a newer command. */
const bringUp = async (db: Db): Promise<void> => {
  const pending = await pendingMigrations(db)
  if (pending.length === 0) return
  if (await hasMigrations(db)) {
    throw new Error(
      `The database is of an older Parvis; it still needs ${pending.join(', ')}. Start this version of the server once, then try again.`,
    )
  }
  await migrate(db)
}

/**
 * Opens the database for one command: the one of PARVIS_DATABASE_URL, or the embedded one. A server that runs is not
 * disturbed; when none does, the embedded one is started for as long as the command takes.
 */
export const withDatabase = async <T>(config: Config, work: (database: CommandDatabase) => Promise<T>): Promise<T> => {
  // A command speaks for itself; what its parts log is for those who look for a fault.
  const log = openLog(config.logLevel === 'info' ? 'error' : config.logLevel)
  const embedded =
    config.databaseUrl === undefined ? await borrowEmbeddedPostgres({ dataDir: config.dataDir, log, clock: systemClock }) : undefined
  const url = config.databaseUrl ?? embedded?.url ?? ''
  const place = config.databaseUrl === undefined ? `in ${config.dataDir}` : 'in the database of PARVIS_DATABASE_URL'
  const db = openDb(url, { log, max: MAX_CONNECTIONS })
  try {
    await bringUp(db)
    const secrets = await openSecrets({ dataDir: config.dataDir, masterKey: config.masterKey })
    return await work({ db, url, place, secrets, log })
  } finally {
    await db.end()
    await embedded?.close()
  }
}

/** The organization that was named, which must be there; without one the installation's own. */
export const organizationOf = async (database: CommandDatabase, given: string | undefined): Promise<OrganizationId> => {
  const { organizationId } = await installed(database)
  if (given === undefined) return organizationId
  const { rows } = await database.db.query<{ id: OrganizationId }>('select id from organization where id::text = lower($1)', [given])
  const [found] = rows
  if (found === undefined) throw new Error(`There is no organization ${given}. \`parvis organizations list\` shows those there are.`)
  return found.id
}

/** What the first start made; a command before it says so. */
export const installed = async ({ db, place, secrets }: CommandDatabase): Promise<Installation> => {
  const installation = await readInstallation(db, secrets)
  if (installation === undefined)
    throw new Error(
      `Nothing is set up ${place} yet. Start Parvis once: it makes the organization and its first key. If it runs already, this is not where it keeps them: name its directory with --data-dir or PARVIS_DATA_DIR, or its database with PARVIS_DATABASE_URL.`,
    )
  return installation
}
