import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { runParvis } from '@parvis/testkit/server-process'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bootstrap } from '../iam/bootstrap.ts'
import { openIam } from '../iam/iam.ts'
import { openChanges } from '../kit/changes.ts'
import { systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import { openSecrets } from '../kit/secrets.ts'
import { parseInstant, parseLifetimeMs } from './keys.ts'

let database: TestDatabase
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-keys-'))
})
afterAll(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const parvis = async (...args: string[]): Promise<{ code: number | null; out: string; complaints: string }> => {
  const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: dataDir }
  const { code, out, err } = await runParvis([...args], env)
  return { code, out, complaints: err }
}

test('before the first start a command says that there is nothing yet', async () => {
  const { code, out, complaints } = await parvis('keys', 'list')
  expect({ code, out }).toEqual({ code: 1, out: '' })
  expect(complaints).toContain('Nothing is set up in the database of PARVIS_DATABASE_URL yet. Start Parvis once')
  expect(complaints).not.toContain(database.url)
})

test('a key made by hand opens the door of a running server, is listed without its secret, and is shut by hand', async () => {
  const secrets = await openSecrets({ dataDir, masterKey: undefined })
  await bootstrap(database.db, secrets, systemClock)
  const log = openLog('silent')
  const changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
  try {
    const { authenticate } = await openIam({ db: database.db, changes, secrets, clock: systemClock, log })

    const made = await parvis('keys', 'create', '--description', 'ci', '--expires-in', '7d')
    expect(made.code).toBe(0)
    const [, accessKey = ''] = /^Access key: {2}(SCW[A-Z0-9]{17})$/m.exec(made.out) ?? []
    const [, secretKey = ''] = /^Secret key: {2}([0-9a-f-]{36})$/m.exec(made.out) ?? []
    await expect.poll(() => authenticate(`Bearer ${secretKey}`, undefined).ok).toBe(true)

    const listed = await parvis('keys', 'list', '--json')
    const keys = JSON.parse(listed.out) as { access_key: string; description: string; created_at: string; expires_at: string }[]
    expect(keys.map((key) => key.description)).toEqual(['ci', 'first key'])
    expect(keys[0]?.access_key).toBe(accessKey)
    const lifetimeMs = Date.parse(keys[0]?.expires_at ?? '') - Date.parse(keys[0]?.created_at ?? '')
    expect(Math.abs(lifetimeMs - 7 * 86_400_000)).toBeLessThan(60_000)
    expect(listed.out).not.toContain(secretKey)
    expect((await parvis('keys', 'list')).out).toMatch(new RegExp(`^${accessKey}  created .*Z  expires .*Z  ci$`, 'm'))

    expect((await parvis('keys', 'revoke', accessKey)).code).toBe(0)
    await expect.poll(() => authenticate(`Bearer ${secretKey}`, undefined).ok).toBe(false)
    const again = await parvis('keys', 'revoke', accessKey)
    expect(again.code).toBe(1)
    expect(again.complaints).toContain(`There is no key ${accessKey}.`)
  } finally {
    await changes.close()
  }
})

test('a secret given in place of an access key is not repeated on the screen', async () => {
  const secretKey = '1f000000-0000-4000-8000-000000000001'
  const { code, out, complaints } = await parvis('keys', 'revoke', secretKey)
  expect(code).toBe(1)
  expect(complaints).toContain('Give the access key, which begins with SCW')
  expect(out + complaints).not.toContain(secretKey)
})

test('two ends for one key are refused', async () => {
  const { code, complaints } = await parvis('keys', 'create', '--expires-in', '7d', '--expires-at', '2099-01-01')
  expect(code).toBe(1)
  expect(complaints).toContain('--expires-in or --expires-at, not both')
})

test('lifetimes are hours, days or weeks, and ends are days or instants with a zone', () => {
  expect(parseLifetimeMs('12h')).toBe(43_200_000)
  expect(parseLifetimeMs('7d')).toBe(604_800_000)
  expect(parseLifetimeMs('4w')).toBe(2_419_200_000)
  for (const wrong of ['', '7', 'd', '0d', '-1d', '1.5d', '7 d', '1y', '999999d'])
    expect(() => parseLifetimeMs(wrong)).toThrow('12h, 7d, 4w')
  expect(parseInstant('2027-01-31')).toBe(Date.UTC(2027, 0, 31))
  expect(parseInstant('2027-01-31T12:00:00+02:00')).toBe(Date.UTC(2027, 0, 31, 10))
  for (const wrong of ['', 'soon', '2027', '2027-13-01', '31.01.2027', '2027-01-31T12:00:00']) {
    expect(() => parseInstant(wrong)).toThrow('Give a date like')
  }
})
