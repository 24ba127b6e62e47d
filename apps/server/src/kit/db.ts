import pg from 'pg'
import type { Logger } from './log.ts'

export type Db = pg.Pool

const MAX_CONNECTIONS = 10
const CONNECT_LIMIT_MS = 5_000
const STATEMENT_LIMIT_MS = 30_000
// The server ends a statement at its limit; a server that is silent, we leave a little later ourselves.
const ANSWER_LIMIT_MS = STATEMENT_LIMIT_MS + 5_000
const IDLE_TRANSACTION_LIMIT_MS = 60_000
const OLDEST_POSTGRES = 15

const { builtins } = pg.types
const INT8_ARRAY = 1016
const TEXT_ARRAY = 1009
// Every type has a number; the types of the client name those of some.
const parserOf = pg.types.getTypeParser as (oid: number, format?: 'text') => (text: string) => unknown
const textArray = parserOf(TEXT_ARRAY) as (text: string) => (string | null)[]

/** How values come out of Postgres, decided once: counts and money are never floats, and a day has no time zone. */
const getTypeParser = ((oid: number, format?: 'text' | 'binary') => {
  if (format !== 'binary') {
    if (oid === builtins.INT8) return (text: string) => BigInt(text)
    if (oid === INT8_ARRAY) return (text: string) => textArray(text).map((item) => (item === null ? null : BigInt(item)))
    if (oid === builtins.DATE) return (text: string) => text
  }
  return pg.types.getTypeParser(oid, format as 'text')
}) as typeof pg.types.getTypeParser

const sayConnection = (error: Error): { reason: string; code: string | undefined } => ({
  reason: error.message,
  code: 'code' in error && typeof error.code === 'string' ? error.code : undefined,
})

/**
 * A pool of connections. Nothing connects until the first query, and every wait has an end. A connection that breaks
 * while nobody uses it is logged, not thrown: the next query makes a new one.
 */
export const openDb = (url: string, options: { log: Logger; max?: number }): Db => {
  const db = new pg.Pool({
    connectionString: url,
    max: options.max ?? MAX_CONNECTIONS,
    connectionTimeoutMillis: CONNECT_LIMIT_MS,
    statement_timeout: STATEMENT_LIMIT_MS,
    query_timeout: ANSWER_LIMIT_MS,
    idle_in_transaction_session_timeout: IDLE_TRANSACTION_LIMIT_MS,
    keepAlive: true,
    application_name: 'parvis',
    types: { getTypeParser },
  })
  const broken = (error: Error) => options.log.warn(sayConnection(error), 'a database connection broke')
  // The pool listens only while a connection is idle; one that breaks between two queries of a transaction would end the process.
  db.on('connect', (client) => client.on('error', broken))
  db.on('error', () => undefined) // the same fault once more, after the listener above has told of it
  return db
}

/** Nobody gave a connection back in time: all are busy, and nothing is wrong with the database. */
export const isCrowded = (error: unknown): boolean => error instanceof Error && error.message === 'timeout exceeded when trying to connect'

/** Runs `work` between begin and commit; whatever it throws undoes all of it. */
export const transaction = async <T>(db: Db, work: (client: pg.PoolClient) => Promise<T>): Promise<T> => {
  const client = await db.connect()
  let broken: Error | undefined
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (error) {
    // A connection that cannot even roll back is not given to the next one.
    await client.query('rollback').catch((rollback: unknown) => {
      broken = rollback instanceof Error ? rollback : new Error(String(rollback))
    })
    throw error
  } finally {
    client.release(broken)
  }
}

/** The major version in Postgres' own number, 180004 for 18.4; older than our SQL needs is an error that says so. */
export const requireVersion = (versionNumber: number): number => {
  const major = Math.floor(versionNumber / 10_000)
  if (major >= OLDEST_POSTGRES) return major
  throw new Error(
    `The database is PostgreSQL ${major}; Parvis needs ${OLDEST_POSTGRES} or newer. Point PARVIS_DATABASE_URL at a newer server, or leave it away to use the embedded one.`,
  )
}

export const requirePostgres = async (db: Db): Promise<number> => {
  const { rows } = await db.query<{ number: string }>(`select current_setting('server_version_num') as number`)
  return requireVersion(Number(rows[0]?.number))
}
