import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { emptyDatabase, freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { hasMigrations, migrate, pendingMigrations } from './migrate.ts'

let database: TestDatabase
let directory: string
let folder: URL
beforeEach(async () => {
  database = await emptyDatabase()
  directory = await mkdtemp(join(tmpdir(), 'parvis-migrate-'))
  folder = pathToFileURL(`${directory}/`)
})
afterEach(async () => {
  await database.drop()
  await rm(directory, { recursive: true, force: true })
})

const put = (name: string, sql: string) => writeFile(join(directory, name), sql)
const tables = async (): Promise<string[]> =>
  (await database.db.query<{ name: string }>(`select tablename as name from pg_tables where schemaname = 'public' order by 1`)).rows.map(
    ({ name }) => name,
  )

test('every migration is taken once, in order, and a second run finds nothing to do', async () => {
  await put('0002-b.sql', 'insert into a values (2);')
  await put('0001-a.sql', 'create table a (n int); insert into a values (1);')
  expect(await pendingMigrations(database.db, folder)).toEqual(['0001-a.sql', '0002-b.sql'])
  expect(await hasMigrations(database.db)).toBe(false)
  expect(await migrate(database.db, folder)).toEqual(['0001-a.sql', '0002-b.sql'])
  expect(await migrate(database.db, folder)).toEqual([])
  expect(await hasMigrations(database.db)).toBe(true)
  expect((await database.db.query('select n from a')).rows).toEqual([{ n: 1 }, { n: 2 }])
})

test('a migration that fails leaves nothing of itself, and those before it stay', async () => {
  await put('0001-a.sql', 'create table a (n int);')
  await put('0002-b.sql', 'create table b (n int); select 1 / 0;')
  await expect(migrate(database.db, folder)).rejects.toThrow('division by zero')
  expect(await tables()).toEqual(['a', 'migration'])
  await put('0002-b.sql', 'create table b (n int);')
  expect(await migrate(database.db, folder)).toEqual(['0002-b.sql'])
})

test('a database newer than the program is refused', async () => {
  await put('0001-a.sql', 'create table a (n int);')
  await put('0002-b.sql', 'create table b (n int);')
  await migrate(database.db, folder)
  await rm(join(directory, '0002-b.sql'))
  await expect(migrate(database.db, folder)).rejects.toThrow('The database is newer than this program: it has had the migration 0002-b.sql')
})

test('a migration that was changed afterwards is refused, except for its line ends', async () => {
  await put('0001-a.sql', 'create table a (n int);\n')
  await migrate(database.db, folder)
  await put('0001-a.sql', 'create table a (n int);\r\n')
  expect(await migrate(database.db, folder)).toEqual([])
  await put('0001-a.sql', 'create table a (n int8);\n')
  await expect(migrate(database.db, folder)).rejects.toThrow('The migration 0001-a.sql was changed after this database had it')
})

test('a migration that comes too late, has a taken number or no number is refused', async () => {
  await put('0002-b.sql', 'create table b (n int);')
  await migrate(database.db, folder)
  await put('0001-a.sql', 'create table a (n int);')
  await expect(migrate(database.db, folder)).rejects.toThrow('0001-a.sql comes after 0002-b.sql')
  await put('0002-c.sql', 'create table c (n int);')
  await expect(migrate(database.db, folder)).rejects.toThrow('Two migrations have the number 0002')
  await rm(join(directory, '0002-c.sql'))
  await put('later.sql', '')
  await expect(migrate(database.db, folder)).rejects.toThrow('later.sql must be called NNNN-name.sql')
})

test("a test's fresh database has had every migration", async () => {
  const fresh = await freshDatabase()
  try {
    expect(await migrate(fresh.db)).toEqual([])
    await fresh.db.query(`select note_change('iam'), note_change('iam')`)
    expect((await fresh.db.query('select * from change')).rows).toEqual([{ room: 'iam', version: 2n }])
  } finally {
    await fresh.drop()
  }
})

const lineFrom = async (child: ChildProcessWithoutNullStreams): Promise<string> => {
  const [chunk] = (await once(child.stdout, 'data', { signal: AbortSignal.timeout(60_000) })) as [Buffer]
  return chunk.toString().trim()
}

test('processes that start on an empty database at once migrate it once and make one organization', async () => {
  const script = fileURLToPath(new URL('../../test/children/first-start.ts', import.meta.url))
  const children = Array.from({ length: 3 }, () =>
    spawn(process.execPath, [...FROM_SOURCE, script, database.url, directory], { stdio: 'pipe' }),
  )
  let complaints = ''
  for (const child of children) child.stderr.on('data', (chunk: Buffer) => (complaints += chunk.toString()))
  try {
    await Promise.all(children.map(lineFrom))
    const answers = Promise.all(children.map(lineFrom))
    for (const child of children) child.stdin.write('go\n')
    const results = (await answers).map((line) => JSON.parse(line) as { applied: string[]; organizationId: string; made: boolean })
    const applied = results.flatMap((result) => result.applied)
    expect(applied).toContain('0001-organizations.sql')
    expect(new Set(applied).size).toBe(applied.length)
    expect(results.filter(({ made }) => made)).toHaveLength(1)
    expect(new Set(results.map(({ organizationId }) => organizationId)).size).toBe(1)
    const { rows } = await database.db.query(
      'select (select count(*) from organization) as organizations, (select count(*) from api_key) as keys',
    )
    expect(rows).toEqual([{ organizations: 1n, keys: 1n }])
    expect(complaints).toBe('')
  } finally {
    for (const child of children) child.kill('SIGKILL')
  }
})
