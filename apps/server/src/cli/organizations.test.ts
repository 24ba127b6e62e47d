import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { Command } from 'commander'
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest'
import { readConfig } from '../config.ts'
import { bootstrap } from '../iam/bootstrap.ts'
import { systemClock } from '../kit/clock.ts'
import { openSecrets } from '../kit/secrets.ts'
import { registerLimits } from './limits.ts'
import { registerModels } from './models.ts'
import { registerOrganizations } from './organizations.ts'

let database: TestDatabase
let dataDir: string
let operatorId: string
beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-organizations-'))
  const secrets = await openSecrets({ dataDir, masterKey: undefined })
  operatorId = (await bootstrap(database.db, secrets, systemClock)).organizationId
})
afterAll(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})
afterEach(() => vi.restoreAllMocks())

/** Runs a command as main does, and gives back what it printed. */
const run = async (...words: string[]): Promise<string> => {
  const printed: string[] = []
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => printed.push(String(text)) > 0)
  vi.spyOn(process.stderr, 'write').mockImplementation(() => true)
  const program = new Command('parvis').exitOverride()
  const settings = () => readConfig({ PARVIS_DATA_DIR: dataDir, PARVIS_DATABASE_URL: database.url }, dataDir)
  for (const register of [registerOrganizations, registerLimits, registerModels]) register(program, settings)
  for (const command of program.commands.flatMap((one) => [one, ...one.commands])) command.exitOverride()
  try {
    await program.parseAsync(words, { from: 'user' })
  } finally {
    vi.restoreAllMocks()
  }
  return printed.join('')
}

test('an organization is made, listed, renamed, suspended, resumed and closed by whoever is at the machine', async () => {
  const made = JSON.parse(await run('organizations', 'create', 'Acme', '--owner', 'jane', '--email', 'jane@example.com', '--json')) as {
    id: string
    secret_key: string
  }
  expect(made).toMatchObject({ name: 'Acme', state: 'active', owner: { username: 'jane', email: 'jane@example.com' } })
  expect(made.secret_key).toMatch(/^[0-9a-f-]{36}$/)
  expect(await run('organizations', 'rename', made.id, 'Acme 2')).toBe('Acme 2 is active. Running servers know it within a second.\n')
  for (const [command, state] of [
    ['suspend', 'suspended'],
    ['resume', 'active'],
    ['close', 'closed'],
  ] as const)
    expect(await run('organizations', command, made.id)).toContain(`Acme 2 is ${state}.`)
  await expect(run('organizations', 'resume', made.id)).rejects.toThrow('an organization that is closed cannot become active.')
  await expect(run('organizations', 'suspend', operatorId)).rejects.toThrow('the operator’s own stays active.')
  await expect(run('organizations', 'close', '11111111-2222-4333-8444-555555555555')).rejects.toThrow('There is no organization 1111')
  expect(await run('organizations', 'list')).toMatch(new RegExp(`^${made.id} {2}closed +Acme 2 {2}owner jane$`, 'm'))
  const { rows } = await database.db.query(
    'select distinct actor, host(ip) as ip, user_agent from audit_entry where organization_id = $1',
    [made.id],
  )
  expect(rows).toEqual([{ actor: 'operator on this machine', ip: null, user_agent: expect.stringMatching(/^parvis, run by ./) }])
})

test('a tier is changed for all who are in it', async () => {
  await run('limits', 'set', '--tier', 'none', '--requests', '5')
  const { organization_id: id } = JSON.parse(await run('limits', 'list', '--json')) as { organization_id: string }
  await run('limits', 'tier', 'none', '--organization', id)
  expect(await run('limits', 'list')).toContain('requests_per_minute 5')
  await expect(run('limits', 'set', '--tier', 'best', '--requests', '5')).rejects.toThrow('There is no tier best')
  for (const whose of ['--organization', '--project'])
    await expect(run('limits', 'set', '--tier', 'none', whose, id, '--requests', '4')).rejects.toThrow('parvis limits tier')
  expect(await run('limits', 'list')).toContain('requests_per_minute 5')
  // What is published comes back, and not "unlimited".
  await run('limits', 'set', '--tier', 'none', '--requests', 'default')
  expect(await run('limits', 'list')).toContain('requests_per_minute 30')
  await expect(run('limits', 'list', '--organization', '11111111-2222-4333-8444-555555555555')).rejects.toThrow(
    'There is no organization 1111',
  )
})
