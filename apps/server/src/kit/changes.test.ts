import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { openProxy } from '@parvis/testkit/proxy'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Changes, openChanges } from './changes.ts'
import { type Clock, systemClock } from './clock.ts'
import { openLog } from './log.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

const log = openLog('silent')
const note = (room: string) => database.db.query('select note_change($1)', [room])

const withChanges = async (work: (changes: Changes) => Promise<void>, url = database.url, clock: Clock = systemClock): Promise<void> => {
  const changes = await openChanges({ db: database.db, url, clock, log })
  try {
    await work(changes)
  } finally {
    await changes.close()
  }
}

const counter = () => {
  const seen = { count: 0 }
  return { seen, reload: async () => void (seen.count += 1) }
}

test('a room is loaded once at the start and again when it has moved, and others are left alone', () =>
  withChanges(async (changes) => {
    const [iam, catalog] = [counter(), counter()]
    await changes.watch('iam', iam.reload)
    await changes.watch('catalog', catalog.reload)
    expect(iam.seen.count).toBe(1)
    await note('iam')
    await until('it is loaded again', () => iam.seen.count === 2)
    expect(catalog.seen.count).toBe(1)
  }))

test('a notification is enough: nobody waits for the poll', () =>
  withChanges(
    async (changes) => {
      const iam = counter()
      await changes.watch('iam', iam.reload)
      await note('iam')
      await until('it is loaded again', () => iam.seen.count === 2)
    },
    database.url,
    { ...systemClock, sleep: (_ms, signal) => systemClock.sleep(1_000_000, signal) }, // in which no poll ever comes
  ))

test('a change that only the table tells of is found by the poll', () =>
  withChanges(async (changes) => {
    const iam = counter()
    await changes.watch('iam', iam.reload)
    await database.db.query(`update change set version = version - 1 where room = 'iam'`) // as after a backup was put back
    await until('it is loaded again', () => iam.seen.count === 2)
    expect(iam.seen.count).toBe(2)
  }))

test('a change that is rolled back is never told', () =>
  withChanges(async (changes) => {
    const [iam, other] = [counter(), counter()]
    await changes.watch('iam', iam.reload)
    await changes.watch('other', other.reload)
    await database.db.query(`begin; select note_change('iam'); rollback`)
    await note('other')
    await until('the later change arrives', () => other.seen.count === 2)
    expect(iam.seen.count).toBe(1)
  }))

test('a first load that fails is the caller’s to know; a later one is tried again until it works', () =>
  withChanges(async (changes) => {
    await expect(changes.watch('broken', () => Promise.reject(new Error('no rows')))).rejects.toThrow('no rows')
    let tries = 0
    await changes.watch('iam', async () => {
      tries += 1
      if (tries === 2 || tries === 3) throw new Error('for now')
    })
    await note('iam')
    await until('the third try', () => tries === 4)
  }))

test('a change during a reload is not lost', () =>
  withChanges(async (changes) => {
    let loads = 0
    let release: () => void = () => undefined
    await changes.watch('iam', async () => {
      loads += 1
      if (loads === 2) await new Promise<void>((go) => (release = go))
    })
    await note('iam')
    await until('the second load runs', () => loads === 2)
    await note('iam')
    release()
    await until('a third one follows', () => loads === 3)
    expect(loads).toBe(3)
  }))

test.each(['cut', 'silence'] as const)(
  'a database that goes away (%s) and comes back is followed again, with what changed meanwhile',
  async (fault) => {
    const address = new URL(database.url)
    const proxy = await openProxy({ host: address.hostname, port: Number(address.port) })
    address.port = String(proxy.port)
    try {
      await withChanges(async (changes) => {
        const iam = counter()
        await changes.watch('iam', iam.reload)
        await proxy[fault]()
        await note('iam')
        if (fault === 'silence') await proxy.cut()
        await proxy.mend()
        await until('what changed meanwhile is loaded', () => iam.seen.count === 2)
        await note('iam')
        await until('what changes now is loaded', () => iam.seen.count === 3)
        expect(iam.seen.count).toBe(3)
      }, address.href)
    } finally {
      await proxy.close()
    }
  },
)

test('closing gives the connection back, also while the database is silent', async () => {
  const address = new URL(database.url)
  const proxy = await openProxy({ host: address.hostname, port: Number(address.port) })
  address.port = String(proxy.port)
  const changes = await openChanges({ db: database.db, url: address.href, clock: systemClock, log })
  proxy.silence()
  await changes.close()
  await proxy.close()
  const listening = async () =>
    (await database.db.query(`select 1 from pg_stat_activity where application_name = 'parvis changes' and datname = current_database()`))
      .rowCount
  await until('no connection is left', async () => (await listening()) === 0)
})

test('a room is watched by one', () =>
  withChanges(async (changes) => {
    await changes.watch('iam', async () => undefined)
    await expect(changes.watch('iam', async () => undefined)).rejects.toThrow('already watched')
  }))
