import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import type pg from 'pg'
import { type Db, requirePostgres, transaction } from './db.ts'

// From src/kit and from dist/kit alike.
const MIGRATIONS = new URL('../../migrations/', import.meta.url)
const NAME = /^\d{4}-[a-z0-9-]+\.sql$/
// Any number, as long as every Parvis takes the same one: the first eight bytes of sha256('parvis migrations').
const LOCK = '3650185254591781105'
// One process migrates, the others wait for it; a migration that needs longer says so in its first line and is run alone.
const LOCK_WAIT_LIMIT = '120s'
const STATEMENT_LIMIT = '600s'
// The client's own limit for an answer would end the wait first.
const PATIENT = { query_timeout: 610_000 }

type Migration = { readonly name: string; readonly sql: string; readonly checksum: string }

const readMigrations = async (directory: URL): Promise<Migration[]> => {
  const names = (await readdir(directory)).filter((name) => name.endsWith('.sql')).toSorted()
  const numbers = new Set<string>()
  return Promise.all(
    names.map(async (name) => {
      if (!NAME.test(name)) throw new Error(`The migration ${name} must be called NNNN-name.sql.`)
      const number = name.slice(0, 4)
      if (numbers.has(number)) throw new Error(`Two migrations have the number ${number}.`)
      numbers.add(number)
      // A checkout that turned the line ends is still the same migration.
      const sql = (await readFile(new URL(name, directory), 'utf8')).replaceAll('\r\n', '\n')
      return { name, sql, checksum: createHash('sha256').update(sql).digest('hex') }
    }),
  )
}

/** What the database has had, in order; empty for a new one. */
const readApplied = async (client: pg.ClientBase): Promise<{ name: string; checksum: string }[]> => {
  const { rows: there } = await client.query<{ there: boolean }>(`select to_regclass('migration') is not null as there`)
  if (!there[0]?.there) return []
  const { rows } = await client.query<{ name: string; checksum: string }>('select name, checksum from migration order by name')
  return rows
}

/** The migrations still to come. Whatever does not fit the files we have is an error: going on would guess. */
const pendingAfter = (files: readonly Migration[], applied: readonly { name: string; checksum: string }[]): Migration[] => {
  for (const { name, checksum } of applied) {
    const file = files.find((migration) => migration.name === name)
    if (file === undefined) {
      throw new Error(
        `The database is newer than this program: it has had the migration ${name}, which is not here. Start the newer Parvis.`,
      )
    }
    if (file.checksum !== checksum) {
      throw new Error(
        `The migration ${name} was changed after this database had it. Restore the file; what is to change goes into a new migration.`,
      )
    }
  }
  const last = applied.at(-1)?.name ?? ''
  const pending = files.filter((migration) => !applied.some(({ name }) => name === migration.name))
  const late = pending.find((migration) => migration.name < last)
  if (late !== undefined)
    throw new Error(`The migration ${late.name} comes after ${last}, which the database has already had: give it a higher number.`)
  return pending
}

/**
 * Brings the database up to this program and says what was done. Two processes may do it at once: each step is one
 * transaction under one lock, and looks again at what has been done once it has the lock.
 */
export const migrate = async (db: Db, directory: URL = MIGRATIONS): Promise<string[]> => {
  await requirePostgres(db)
  const files = await readMigrations(directory)
  const done: string[] = []
  const step = () =>
    transaction(db, async (client) => {
      await client.query(`set local lock_timeout = '${LOCK_WAIT_LIMIT}'`)
      await client.query(`set local statement_timeout = '${STATEMENT_LIMIT}'`)
      await client.query({ text: `select pg_advisory_xact_lock(${LOCK})`, ...PATIENT })
      const [next] = pendingAfter(files, await readApplied(client))
      if (next === undefined) return false
      await client.query(
        `create table if not exists migration (name text primary key, checksum text not null, applied_at timestamptz not null default now())`,
      )
      await client.query({ text: next.sql, ...PATIENT })
      await client.query('insert into migration (name, checksum) values ($1, $2)', [next.name, next.checksum])
      done.push(next.name)
      return true
    })
  while (await step());
  return done
}

/** The names of the migrations that `migrate` would take, without taking them. */
export const pendingMigrations = async (db: Db, directory: URL = MIGRATIONS): Promise<string[]> => {
  const files = await readMigrations(directory)
  const client = await db.connect()
  try {
    return pendingAfter(files, await readApplied(client)).map(({ name }) => name)
  } finally {
    client.release()
  }
}

/** False for a database that no Parvis has set up yet. */
export const hasMigrations = async (db: Db): Promise<boolean> => {
  const { rows } = await db.query<{ there: boolean }>(`select to_regclass('migration') is not null as there`)
  return rows[0]?.there === true
}
