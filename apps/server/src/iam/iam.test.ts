import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { openProxy } from '@parvis/testkit/proxy'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Changes, openChanges } from '../kit/changes.ts'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import { openDb } from '../kit/db.ts'
import { newId, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openSecrets, type Secrets } from '../kit/secrets.ts'
import type { Authenticate } from './authenticate.ts'
import { type Bootstrapped, bootstrap } from './bootstrap.ts'
import { type Iam, openIam } from './iam.ts'
import { readInstallation } from './installation.ts'
import { createKey, listKeys, type NewKey, revokeKey } from './keys.ts'
import type { Grant } from './rights.ts'

const log = openLog('silent')
let database: TestDatabase
let dataDir: string
let secrets: Secrets
let made: Bootstrapped
let ownerId: PrincipalId
let changes: Changes
let iam: Iam
let authenticate: Authenticate
let aheadMs = 0
const clock: Clock = { ...systemClock, now: () => (systemClock.now() + aheadMs) as Instant }

beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-iam-'))
  secrets = await openSecrets({ dataDir, masterKey: undefined })
  made = await bootstrap(database.db, secrets, clock)
  ownerId = (await readInstallation(database.db, secrets))?.ownerId as PrincipalId
  changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
  iam = await openIam({ db: database.db, changes, secrets, clock, log })
  ;({ authenticate } = iam)
})
afterAll(async () => {
  await changes.close()
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const bearer = (secretKey: string): string => `Bearer ${secretKey}`
const admits = (secretKey: string, projectId?: ProjectId): boolean => authenticate(bearer(secretKey), projectId).ok
const newKey = (request: { description?: string; expiresAt?: Instant } = {}): Promise<NewKey> =>
  createKey(database.db, secrets, {
    organizationId: made.organizationId,
    principalId: ownerId,
    description: request.description ?? '',
    expiresAt: request.expiresAt ?? null,
    actor: 'test',
  })
const audit = async (resourceId: string) =>
  (await database.db.query('select actor, action, before, after from audit_entry where resource_id = $1 order by at', [resourceId])).rows

const addOrganization = async (): Promise<OrganizationId> => {
  const id: OrganizationId = newId(clock.now())
  await database.db.query(`insert into organization (id, name) values ($1, 'other')`, [id])
  await database.db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [id])
  await database.db.query(`select note_change('iam')`)
  return id
}

test('the first start makes an organization, its default project of the same id, its owner and a key of the contract’s form', async () => {
  expect(made.created?.accessKey).toMatch(/^SCW[A-Z0-9]{17}$/)
  expect(made.created?.secretKey).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  expect(made.created?.given).toBe(false)
  const { rows } = await database.db.query(
    `select organization.name, project.id as project, project.name as project_name, principal.kind, principal.role
       from organization join project on organization_id = organization.id join principal on principal.organization_id = organization.id`,
  )
  expect(rows).toEqual([{ name: 'default', project: made.organizationId, project_name: 'default', kind: 'user', role: 'owner' }])
  expect(authenticate(bearer(made.created?.secretKey ?? ''), undefined)).toEqual({
    ok: true,
    value: {
      organizationId: made.organizationId,
      projectId: made.organizationId,
      principalId: ownerId,
      accessKey: made.created?.accessKey,
    },
  })
})

test('the secret is stored nowhere', async () => {
  const key = await newKey({ description: 'look for me' })
  const { rows } = await database.db.query<{ text: string }>(
    `select string_agg(t::text, ' ') as text from (select api_key::text as t from api_key union all select audit_entry::text from audit_entry) all_rows`,
  )
  expect(rows[0]?.text).toContain(key.accessKey)
  expect(rows[0]?.text).not.toContain(key.secretKey)
  expect(rows[0]?.text).not.toContain(key.secretKey.replaceAll('-', ''))
})

test('no header is one refusal, and everything else that does not fit is the other', () => {
  for (const header of [undefined, '']) expect(authenticate(header, undefined)).toEqual({ ok: false, refusal: { code: 'key_missing' } })
  const secretKey = made.created?.secretKey ?? ''
  for (const header of [
    'Bearer',
    'Bearer ',
    secretKey,
    `Basic ${secretKey}`,
    `Bearer ${secretKey}x`,
    `Bearer ${secretKey} ${secretKey}`,
    `Bearer ${secretKey.slice(1)}`,
    `Bearer ${secretKey.replaceAll('-', '_')}`,
    `Bearer ${made.created?.accessKey}`,
    'Bearer 00000000-0000-4000-8000-000000000000',
    `Bearer ${'a'.repeat(100_000)}`,
  ]) {
    expect(authenticate(header, undefined)).toEqual({ ok: false, refusal: { code: 'key_refused' } })
  }
})

test('a rule is one grant for all who have it, and its condition is compiled once for all rules and over all reads', async () => {
  const organizationId = await addOrganization()
  const applications = await Promise.all(
    Array.from({ length: 3 }, async (_, n) => {
      const id = newId(clock.now()) as string as PrincipalId
      await database.db.query(
        `insert into principal (id, organization_id, kind, role, name) values ($1, $2, 'application', 'member', $3)`,
        [id, organizationId, `application ${n}`],
      )
      return id
    }),
  )
  // More than may be written, as an older version took it: 50 policies of 50 rules, 20 of which do not compile any more.
  await database.db.query(
    `with made as (
       insert into policy (id, organization_id, name, group_id)
       select gen_random_uuid(), $1, 'p' || n, principal_group.id from generate_series(1, 50) as n, principal_group
        where organization_id = $1 and everybody = 'application' returning id)
     insert into policy_rule (id, policy_id, position, permission_set_names, condition)
     select gen_random_uuid(), made.id, n, '{ProjectReadOnly}', case when n <= 30 then 'request.ip == "192.0.2.' || n || '"' else 'nonsense(' || n end
       from made, generate_series(1, 50) as n`,
    [organizationId],
  )
  const read = async () => {
    const key = await newKey()
    await until('the rows are read', () => iam.keyOf(key.secretKey) !== undefined)
    return applications.map((id) => iam.rightsOf(id) as readonly Grant[])
  }
  const first = await read()
  const compiled = new Set(first.flatMap((grants) => grants.map(({ condition }) => condition)))
  expect(first.map(({ length }) => length)).toEqual([1500, 1500, 1500])
  expect([new Set(first.flat()).size, compiled.size]).toEqual([1500, 30])
  const again = await read()
  expect(again[0]?.[0]).not.toBe(first[0]?.[0])
  expect(again.flat().every(({ condition }) => compiled.has(condition))).toBe(true)
})

test('a rule that an older version took and this one does not grants nothing, and the log says so once and in one line', async () => {
  const organizationId = await addOrganization()
  const id = newId(clock.now()) as string as PrincipalId
  await database.db.query(
    `insert into principal (id, organization_id, kind, role, name) values ($1, $2, 'application', 'member', 'zoned')`,
    [id, organizationId],
  )
  await database.db.query('delete from policy')
  // Fifty policies, so that what is told of them has a bound.
  const { rows: policies } = await database.db.query<{ id: string }>(
    `with made as (
       insert into policy (id, organization_id, name, principal_id) select gen_random_uuid(), $1, 'p' || n, $2 from generate_series(1, 50) as n returning id)
     insert into policy_rule (id, policy_id, position, permission_set_names, condition)
     select gen_random_uuid(), id, 0, '{ProjectReadOnly}', 'timestamp("2026-11-22T10:30:00Z").getHours("Europe/Paris") < ' || row_number() over ()
       from made returning policy_id as id`,
    [organizationId, id],
  )
  const lines: { msg: string; rules: { policyId: string; reason: string }[] }[] = []
  const telling = openLog('warn', { write: (line: string) => void lines.push(JSON.parse(line)) } as unknown as NodeJS.WritableStream)
  const own = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
  try {
    const reader = await openIam({ db: database.db, changes: own, secrets, clock, log: telling })
    expect(reader.rightsOf(id)).toEqual([])
    expect(lines).toMatchObject([{ msg: expect.stringContaining('grant nothing') }])
    const told = lines[0]?.rules ?? []
    expect(told).toHaveLength(10)
    expect(told[0]?.reason).toBe('getHours with a time zone is there for request.time only')
    expect(policies.map((policy) => policy.id)).toEqual(expect.arrayContaining(told.map(({ policyId }) => policyId)))
    const key = await newKey()
    await until('the rows are read again', () => reader.keyOf(key.secretKey) !== undefined)
    expect(lines).toHaveLength(1)
  } finally {
    await own.close()
    await database.db.query('delete from policy where organization_id = $1', [organizationId])
  }
})

test('a secret key is the same in any case, and so is the word Bearer', () => {
  const secretKey = made.created?.secretKey ?? ''
  expect(admits(secretKey.toUpperCase())).toBe(true)
  expect(authenticate(`bearer  ${secretKey}`, undefined).ok).toBe(true)
  expect(authenticate(`BEARER ${secretKey} `, undefined).ok).toBe(true)
})

test('a new key works, a revoked key is gone, and both are on record', async () => {
  const key = await newKey({ description: 'ci' })
  await until('the new key works', () => admits(key.secretKey))
  const revoke = () => revokeKey(database.db, { organizationId: made.organizationId, accessKey: key.accessKey, actor: 'test' })
  expect(await revoke()).toBe(true)
  await until('the revoked key is refused', () => !admits(key.secretKey))
  expect(await revoke()).toBe(false)
  expect((await listKeys(database.db, made.organizationId)).map(({ accessKey }) => accessKey)).not.toContain(key.accessKey)
  const what = { principalId: ownerId, description: 'ci', expiresAt: null }
  expect(await audit(key.accessKey)).toEqual([
    { actor: 'test', action: 'created', before: null, after: what },
    { actor: 'test', action: 'deleted', before: what, after: null },
  ])
})

test('a key ends at the instant it expires, without anything being loaded', async () => {
  const expiresAt = (clock.now() + 3_600_000) as Instant
  const key = await newKey({ expiresAt })
  await until('the new key works', () => admits(key.secretKey))
  try {
    aheadMs = expiresAt - systemClock.now() - 60_000
    expect(admits(key.secretKey)).toBe(true)
    aheadMs = expiresAt - systemClock.now()
    expect(admits(key.secretKey)).toBe(false)
  } finally {
    aheadMs = 0
  }
  expect((await listKeys(database.db, made.organizationId)).find(({ accessKey }) => accessKey === key.accessKey)?.expiresAt).toBe(expiresAt)
})

test('a project counts when it is of the key’s organization, and is refused when it is another’s or nobody’s', async () => {
  const secretKey = made.created?.secretKey ?? ''
  const mine: ProjectId = newId(clock.now())
  await database.db.query(`insert into project (id, organization_id, name) values ($1, $2, 'team-a')`, [mine, made.organizationId])
  const others = (await addOrganization()) as string as ProjectId
  await until('the new project is known', () => admits(secretKey, mine))
  expect(authenticate(bearer(secretKey), mine)).toMatchObject({ ok: true, value: { projectId: mine, organizationId: made.organizationId } })
  const refused = authenticate(bearer(secretKey), others)
  expect(refused).toEqual({ ok: false, refusal: { code: 'key_refused' } })
  expect(authenticate(bearer(secretKey), newId(clock.now()))).toEqual(refused)
})

test('a key cannot be made with what the contract forbids', async () => {
  await expect(newKey({ description: 'x'.repeat(201) })).rejects.toThrow('at most 200 characters')
  await expect(newKey({ expiresAt: 0 as Instant })).rejects.toThrow('cannot expire in the past')
  const other = await addOrganization()
  const count = async () => (await database.db.query('select 1 from api_key')).rowCount
  const before = await count()
  await expect(
    createKey(database.db, secrets, { organizationId: other, principalId: ownerId, description: '', expiresAt: null, actor: 'test' }),
  ).rejects.toThrow(/foreign key/)
  expect(await count()).toBe(before)
})

test('a key of another organization cannot be revoked', async () => {
  const key = await newKey()
  const other = await addOrganization()
  expect(await revokeKey(database.db, { organizationId: other, accessKey: key.accessKey, actor: 'test' })).toBe(false)
  expect((await listKeys(database.db, made.organizationId)).map(({ accessKey }) => accessKey)).toContain(key.accessKey)
})

test('while the database is away known keys go on, and what was revoked meanwhile is gone when it is back', async () => {
  const address = new URL(database.url)
  const proxy = await openProxy({ host: address.hostname, port: Number(address.port) })
  address.port = String(proxy.port)
  const db = openDb(address.href, { log })
  const away = await openChanges({ db, url: address.href, clock: systemClock, log })
  try {
    const iam = await openIam({ db, changes: away, secrets, clock, log })
    const [stays, goes] = [await newKey(), await newKey()]
    const works = (key: NewKey) => iam.authenticate(bearer(key.secretKey), undefined).ok
    await until('both work', () => works(stays) && works(goes))
    await proxy.cut()
    await expect(db.query('select 1')).rejects.toThrow(/ECONNREFUSED|terminated|ECONNRESET/)
    await revokeKey(database.db, { organizationId: made.organizationId, accessKey: goes.accessKey, actor: 'test' })
    expect(works(stays)).toBe(true)
    await proxy.mend()
    await until('the revoked one is gone', () => !works(goes))
    expect(works(stays)).toBe(true)
  } finally {
    await away.close()
    await db.end()
    await proxy.close()
  }
})

test('many keys are read in pieces and all of them are known', async () => {
  const many = await freshDatabase()
  try {
    const { created, organizationId } = await bootstrap(many.db, secrets, clock)
    await many.db.query(
      `insert into api_key (access_key, secret_hash, organization_id, principal_id, default_project_id)
       select 'SCW' || lpad(n::text, 17, '0'), decode(md5(n::text) || md5(n::text), 'hex'), organization_id, principal_id, default_project_id
         from api_key, generate_series(1, 2500) as n`,
    )
    const last = await createKey(many.db, secrets, {
      organizationId,
      principalId: (await readInstallation(many.db, secrets))?.ownerId as PrincipalId,
      description: '',
      expiresAt: null,
      actor: 'test',
    })
    const own = await openChanges({ db: many.db, url: many.url, clock: systemClock, log })
    const iam = await openIam({ db: many.db, changes: own, secrets, clock, log })
    for (const key of [created?.secretKey, last.secretKey]) expect(iam.authenticate(bearer(key ?? ''), undefined).ok).toBe(true)
    await own.close()
  } finally {
    await many.drop()
  }
})

test('a later start makes nothing, and a given secret that nobody has is told and not made a key', async () => {
  const lines: string[] = []
  const telling = openLog('warn', { write: (line: string) => void lines.push(line) } as unknown as NodeJS.WritableStream)
  const again = (secretKey?: string) => bootstrap(database.db, secrets, clock, { secretKey, log: telling })
  expect(await again()).toEqual({ organizationId: made.organizationId, created: null })
  expect(await again(made.created?.secretKey.toUpperCase())).toEqual({ organizationId: made.organizationId, created: null })
  expect(lines).toEqual([])
  const unknown = '1f000000-0000-4000-8000-000000000001'
  expect(await again(unknown)).toEqual({ organizationId: made.organizationId, created: null })
  expect(lines.join('')).toContain('PARVIS_BOOTSTRAP_SECRET_KEY is not a key of this database')
  expect(lines.join('')).not.toContain(unknown)
  expect(admits(unknown)).toBe(false)
})

test('a secret given at the first start is the owner’s first key', async () => {
  const given = await freshDatabase()
  try {
    const secretKey = '1F000000-0000-4000-8000-00000000000A'
    const { created } = await bootstrap(given.db, secrets, clock, { secretKey })
    expect(created).toMatchObject({ secretKey: secretKey.toLowerCase(), given: true })
  } finally {
    await given.drop()
  }
})

test('another master key on this database is refused in words, wherever it matters', async () => {
  const other = await openSecrets({ dataDir, masterKey: 'ab'.repeat(32) })
  const message = 'The master key is not the one that this database was set up with.'
  await expect(bootstrap(database.db, other, clock)).rejects.toThrow(message)
  await expect(openIam({ db: database.db, changes, secrets: other, clock, log })).rejects.toThrow(message)
  await expect(
    createKey(database.db, other, {
      organizationId: made.organizationId,
      principalId: ownerId,
      description: '',
      expiresAt: null,
      actor: 'test',
    }),
  ).rejects.toThrow(message)
})

test('a database that is not set up is said to be so', async () => {
  const empty = await freshDatabase()
  try {
    await expect(openIam({ db: empty.db, changes, secrets, clock, log })).rejects.toThrow('bootstrap comes before iam')
    await expect(
      createKey(empty.db, secrets, {
        organizationId: made.organizationId,
        principalId: ownerId,
        description: '',
        expiresAt: null,
        actor: 'test',
      }),
    ).rejects.toThrow('start Parvis once first')
  } finally {
    await empty.drop()
  }
})
