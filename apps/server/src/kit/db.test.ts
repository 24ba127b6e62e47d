import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openDb, requirePostgres, requireVersion, transaction } from './db.ts'
import { openLog } from './log.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
  await database.db.query('create table thing (name text primary key)')
})
afterAll(() => database.drop())

const names = async (): Promise<string[]> =>
  (await database.db.query<{ name: string }>('select name from thing order by name')).rows.map(({ name }) => name)

test('counts are whole numbers, exact amounts are text, and a day has no time zone', async () => {
  const { rows } = await database.db.query(`
    select 9007199254740993::int8 as count, 0.1::numeric as amount, '2027-01-31'::date as day,
           '2027-01-31T00:00:00Z'::timestamptz as at, array[1, null, 9007199254740993]::int8[] as counts`)
  expect(rows[0]).toEqual({
    count: 9007199254740993n,
    amount: '0.1',
    day: '2027-01-31',
    at: new Date('2027-01-31T00:00:00Z'),
    counts: [1n, null, 9007199254740993n],
  })
})

test('a transaction that throws leaves nothing behind, and its connection goes on', async () => {
  await expect(
    transaction(database.db, async (client) => {
      await client.query(`insert into thing values ('lost')`)
      throw new Error('changed my mind')
    }),
  ).rejects.toThrow('changed my mind')
  await transaction(database.db, (client) => client.query(`insert into thing values ('kept')`))
  expect(await names()).toEqual(['kept'])
})

test('a connection that breaks, idle or in a transaction, is logged and does not end the process', async () => {
  const lines: string[] = []
  const db = openDb(database.url, {
    log: openLog('warn', { write: (line: string) => void lines.push(line) } as unknown as NodeJS.WritableStream),
    max: 1,
  })
  try {
    const pid = async () => (await db.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]?.pid
    await database.db.query('select pg_terminate_backend($1)', [await pid()])
    await until('it is logged', () => lines.length === 1)
    expect(lines[0]).toContain('a database connection broke')
    expect(lines[0]).not.toContain(new URL(database.url).password)

    await expect(
      transaction(db, async (client) => {
        const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid')
        await database.db.query('select pg_terminate_backend($1)', [rows[0]?.pid])
        await until('it is logged', () => lines.length >= 2)
        await client.query(`insert into thing values ('never')`)
      }),
    ).rejects.toThrow(/Connection terminated|not queryable|terminating connection/)
    expect(await pid()).toBeTypeOf('number')
    expect(await names()).not.toContain('never')
  } finally {
    await db.end()
  }
})

test('a server that is too old is refused in words, one that is new enough is not', async () => {
  expect(await requirePostgres(database.db)).toBeGreaterThanOrEqual(15)
  expect(requireVersion(150_000)).toBe(15)
  expect(() => requireVersion(140_012)).toThrow('The database is PostgreSQL 14; Parvis needs 15 or newer.')
})

test('a database that is not there is an error within the limit, not a wait', async () => {
  const db = openDb('postgres://nobody:x@127.0.0.1:1/none', { log: openLog('silent') })
  await expect(db.query('select 1')).rejects.toThrow(/ECONNREFUSED/)
  await db.end()
})
