import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'

// What takes long to add up holds up nobody who asks for something else.

let database: TestDatabase
let house: TestHouse

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const IAM = '/iam/v1alpha1'

test('however many ask for reports that take long, a key is made, works, and is refused once it is revoked', async () => {
  const blocker = await database.db.connect()
  await blocker.query('begin')
  await blocker.query('lock table usage_total in access exclusive mode')
  const reports = Array.from({ length: 12 }, () => house.call('/parvis/v1/usage?step=hour'))
  try {
    const waiting = async () =>
      (
        await database.db.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%usage_total%'`,
        )
      ).rowCount ?? 0
    await expect.poll(waiting).toBeGreaterThanOrEqual(2)
    const user = (await house.call(`${IAM}/users`)).json() as { users: { id: string }[] }
    const made = (await house.call(`${IAM}/api-keys`, { method: 'POST', body: { user_id: user.users[0]?.id } })).json() as {
      access_key: string
      secret_key: string
    }
    const asked = async () => (await house.call('/v1/models', { key: made.secret_key })).status
    await expect.poll(asked).toBe(200)
    expect((await house.call(`${IAM}/api-keys/${made.access_key}`, { method: 'DELETE' })).status).toBe(204)
    await expect.poll(asked).toBe(403)
    // Who finds no place is told to come again; nobody is told that something is broken.
    const early = await Promise.race(reports)
    expect(early.status).toBe(503)
    expect(early.headers.get('retry-after')).toBe('5')
    expect(early.json()).toEqual({ message: 'Too much is asked for at once. Try again in a moment.' })
  } finally {
    await blocker.query('rollback')
    blocker.release()
  }
  const statuses = (await Promise.all(reports)).map(({ status }) => status)
  expect(new Set(statuses)).toEqual(new Set([200, 503]))
  expect((await house.call('/parvis/v1/usage?step=hour')).status).toBe(200)
})

test('a share whose reports take long is revoked all the same', async () => {
  const { projects } = (await house.call('/account/v3/projects')).json() as { projects: { id: string }[] }
  const expires = new Date(Date.now() + 3_600_000).toISOString()
  const made = await house.call('/parvis/v1/usage-shares', { body: { project_id: projects[0]?.id, expires_at: expires } })
  const { id, path } = made.json() as { id: string; path: string }
  const blocker = await database.db.connect()
  await blocker.query('begin')
  await blocker.query('lock table usage_total in access exclusive mode')
  const reports = Array.from({ length: 12 }, () => house.call(path, { key: null }))
  try {
    const waiting = async () =>
      (
        await database.db.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%usage_total%'`,
        )
      ).rowCount ?? 0
    await expect.poll(waiting).toBeGreaterThanOrEqual(2)
    expect((await house.call('/parvis/v1/usage-shares')).status).toBe(200)
    expect((await house.call(`/parvis/v1/usage-shares/${id}`, { method: 'DELETE' })).status).toBe(204)
  } finally {
    await blocker.query('rollback')
    blocker.release()
  }
  await Promise.all(reports)
  expect((await house.call(path, { key: null })).status).toBe(404)
})
