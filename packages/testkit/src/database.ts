import { randomBytes } from 'node:crypto'
import { type Db, openDb } from '@parvis/server/kit/db'
import { openLog } from '@parvis/server/kit/log'
import { inject } from 'vitest'
import type { TestPostgres } from './global-setup.ts'

export type TestDatabase = {
  readonly url: string
  readonly db: Db
  /** Ends the pool and removes the database, whoever else is still connected. */
  readonly drop: () => Promise<void>
}

const log = openLog('silent')

const make = async (postgres: TestPostgres, template: string): Promise<TestDatabase> => {
  const admin = openDb(postgres.adminUrl, { log, max: 1 })
  const name = `${postgres.prefix}${randomBytes(6).toString('hex')}`
  try {
    await admin.query(`create database ${name} template ${template}`)
  } catch (error) {
    await admin.end()
    throw error
  }
  const url = new URL(postgres.adminUrl)
  url.pathname = `/${name}`
  const db = openDb(url.href, { log })
  const remove = async (): Promise<void> => {
    await db.end()
    try {
      await admin.query(`drop database if exists ${name} with (force)`)
    } finally {
      await admin.end()
    }
  }
  let dropped: Promise<void> | undefined
  return {
    url: url.href,
    db,
    drop: () => {
      dropped ??= remove()
      return dropped
    },
  }
}

/** A database that has had all migrations and nothing else. One per test file is usual: `afterAll(() => database.drop())`. */
export const freshDatabase = (): Promise<TestDatabase> => {
  const postgres = inject('postgres')
  return make(postgres, postgres.template)
}

/** A database with nothing in it, for tests of what the first start does. */
export const emptyDatabase = (): Promise<TestDatabase> => make(inject('postgres'), 'template0')
