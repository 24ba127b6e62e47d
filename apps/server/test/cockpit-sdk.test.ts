import { randomBytes, randomUUID } from 'node:crypto'
import { authenticateToken } from '@parvis/server/cockpit/token'
import { openSecrets } from '@parvis/server/kit/secrets'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { openMailServer } from '@parvis/testkit/mail-server'
import { until } from '@parvis/testkit/until'
import { Accountv3 } from '@scaleway/sdk-account'
import { createClient, Errors } from '@scaleway/sdk-client'
import { Cockpitv1 } from '@scaleway/sdk-cockpit'
import { Iamv1alpha1 } from '@scaleway/sdk-iam'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The vendor's SDK, as it comes from the registry, manages Cockpit (control-plane.md 8).

const masterKey = randomBytes(32).toString('hex')
let database: TestDatabase
let house: TestHouse
let organizationId: string

const clientOf = (secretKey: string, projectId = organizationId) =>
  createClient({
    apiURL: house.url,
    accessKey: 'SCWXXXXXXXXXXXXXXXXX',
    secretKey,
    defaultOrganizationId: organizationId,
    defaultProjectId: projectId,
    defaultRegion: 'fr-par',
  })
const cockpitOf = (secretKey: string, projectId?: string) => ({
  regional: new Cockpitv1.RegionalAPI(clientOf(secretKey, projectId)),
  global: new Cockpitv1.GlobalAPI(clientOf(secretKey, projectId)),
})

let regional: Cockpitv1.RegionalAPI
let global: Cockpitv1.GlobalAPI
let account: Accountv3.ProjectAPI
let iam: Iamv1alpha1.API

const newProject = async () => (await account.createProject({ name: `p ${randomUUID().slice(0, 8)}`, description: '' })).id

const newKey = async (permissionSetName: string, projectIds: string[]): Promise<string> => {
  const application = await iam.createApplication({ name: 'somebody', description: '' })
  const rules = [{ permissionSetNames: [permissionSetName], condition: '', projectIds }]
  await iam.createPolicy({ name: 'theirs', description: '', applicationId: application.id, rules })
  return (await iam.createAPIKey({ applicationId: application.id, description: '' })).secretKey ?? ''
}

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_MASTER_KEY: masterKey } })
  organizationId = house.owner.organizationId
  account = new Accountv3.ProjectAPI(clientOf(house.secretKey))
  iam = new Iamv1alpha1.API(clientOf(house.secretKey))
  ;({ regional, global } = cockpitOf(house.secretKey))
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

test('every project has a source for metrics and one for logs, however many look at once', async () => {
  const projectId = await newProject()
  const seen = await Promise.all(Array.from({ length: 12 }, () => regional.listDataSources({ projectId })))
  for (const { totalCount, dataSources } of seen) {
    expect(totalCount).toBe(2)
    expect(dataSources.map(({ id }) => id).toSorted()).toEqual(seen[0]?.dataSources.map(({ id }) => id).toSorted())
  }
  const { dataSources } = await regional.listDataSources({ projectId, orderBy: 'name_desc', origin: 'scaleway' })
  expect(dataSources).toMatchObject([
    {
      name: 'Scaleway Metrics',
      type: 'metrics',
      origin: 'scaleway',
      retentionDays: 31,
      synchronizedWithGrafana: true,
      projectId,
      region: 'fr-par',
    },
    { name: 'Scaleway Logs', type: 'logs', origin: 'scaleway', retentionDays: 7, synchronizedWithGrafana: true },
  ])
  const [metrics] = dataSources
  expect(metrics?.url).toBe(`${house.url}/cockpit/data-sources/${metrics?.id}`)
  const { rows } = await database.db.query(
    `select actor, count(*)::int from audit_entry where resource_type = 'data_source' and resource_id = any ($1) group by actor`,
    [dataSources.map(({ id }) => id)],
  )
  expect(rows).toEqual([{ actor: 'installation', count: 2 }])

  // They keep their names and stay, but how long they keep things is their project's business.
  const dataSourceId = metrics?.id ?? ''
  expect(await regional.updateDataSource({ dataSourceId, retentionDays: 90 })).toMatchObject({
    retentionDays: 90,
    name: 'Scaleway Metrics',
  })
  await expect(regional.updateDataSource({ dataSourceId, name: 'mine' })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  await expect(regional.deleteDataSource({ dataSourceId })).rejects.toMatchObject({ status: 412, precondition: 'protected_resource' })
  expect(await regional.listDataSources({ projectId })).toMatchObject({ totalCount: 2 })
  // They do not hold their project.
  await account.deleteProject({ projectId })
  await expect(regional.getDataSource({ dataSourceId })).rejects.toMatchObject({ resource: 'data source', resourceId: dataSourceId })
})

test('a data source lives, from its making to the 404 after its end', async () => {
  const projectId = await newProject()
  const made = await regional.createDataSource({ projectId, name: 'my-logs', type: 'logs', retentionDays: 10 })
  expect(made).toMatchObject({
    name: 'my-logs',
    type: 'logs',
    origin: 'custom',
    retentionDays: 10,
    synchronizedWithGrafana: false,
    projectId,
  })
  expect(made.createdAt).toBeInstanceOf(Date)
  expect(await regional.createDataSource({ projectId, name: 'spans', type: 'traces' })).toMatchObject({ retentionDays: 7 })
  expect(await regional.createDataSource({ projectId, name: 'numbers', type: 'metrics', retentionDays: 0 })).toMatchObject({
    retentionDays: 31,
  })
  const dataSourceId = made.id
  expect(await regional.getDataSource({ dataSourceId })).toEqual(made)
  expect((await house.call(`/cockpit/v1/regions/fr-par/data-sources/${dataSourceId}`)).json()).toMatchObject({ current_month_usage: 0 })
  expect(await regional.updateDataSource({ dataSourceId, name: 'our logs' })).toMatchObject({ name: 'our logs', retentionDays: 10 })
  const origins = async (query: object) =>
    (await regional.listDataSources({ projectId, orderBy: 'type_asc', ...query })).dataSources.map(({ name }) => name)
  expect(await origins({ origin: 'custom' })).toEqual(['our logs', 'numbers', 'spans'])
  expect(await origins({ origin: 'external' })).toEqual([])
  expect((await origins({ origin: 'unknown_origin', types: ['traces', 'logs'] })).toSorted()).toEqual([
    'Scaleway Logs',
    'our logs',
    'spans',
  ])
  await global.syncGrafanaDataSources({ projectId })
  expect(await regional.getDataSource({ dataSourceId })).toMatchObject({ synchronizedWithGrafana: true })
  // Whoever has something in it keeps a project.
  await expect(account.deleteProject({ projectId })).rejects.toMatchObject({ precondition: 'resource_still_in_use' })
  expect(await regional.deleteDataSource({ dataSourceId })).toBeUndefined()
  await expect(regional.getDataSource({ dataSourceId })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(regional.deleteDataSource({ dataSourceId })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
})

test('a project that is empty is one that is not given: the default project is meant', async () => {
  const answer = await house.call('/cockpit/v1/regions/fr-par/tokens', { body: { project_id: '', name: 'by-default', token_scopes: null } })
  expect(answer.json()).toMatchObject({ project_id: organizationId, scopes: [] })
  expect((await house.call('/cockpit/v1/regions/fr-par/tokens?project_id=')).json()).toMatchObject({ total_count: 1 })
})

test('each broken rule has a detail of its own', async () => {
  const answer = await house.call('/cockpit/v1/regions/fr-par/data-sources', {
    body: { project_id: organizationId, name: '?', retention_days: 1826 },
  })
  expect(answer.status).toBe(400)
  const { details } = answer.json() as { details: { argument_name: string; reason: string }[] }
  expect(details.map(({ argument_name: name, reason }) => [name, reason])).toEqual([
    ['name', 'constraint'],
    ['name', 'format'],
    ['type', 'required'],
    ['retention_days', 'constraint'],
  ])
})

test('lists of more than a page come whole and in order, fetched all at once', async () => {
  const projectId = await newProject()
  const names = Array.from({ length: 60 }, (_, index) => `token-${String(index).padStart(2, '0')}`)
  for (const name of names) await regional.createToken({ projectId, name, tokenScopes: ['write_only_logs'] })
  const first = await regional.listTokens({ projectId, orderBy: 'name_asc' })
  expect([first.totalCount, first.tokens.length]).toEqual([60, 50])
  expect((await regional.listTokens({ projectId, orderBy: 'name_asc' }).all()).map(({ name }) => name)).toEqual(names)
  expect((await regional.listTokens({ projectId, pageSize: 7 }).all()).map(({ name }) => name)).toEqual(names)
  expect((await regional.listTokens({ projectId, orderBy: 'created_at_desc', pageSize: 13 }).all()).map(({ name }) => name)).toEqual(
    names.toReversed(),
  )
  expect(await regional.listTokens({ projectId, page: 9 })).toMatchObject({ totalCount: 60, tokens: [] })
})

test('a token shows its secret once and is nowhere in clear', async () => {
  const projectId = await newProject()
  const made = await regional.createToken({
    projectId,
    name: 'grafana',
    tokenScopes: ['read_only_metrics', 'write_only_logs', 'read_only_metrics'],
  })
  expect(made).toMatchObject({ name: 'grafana', scopes: ['read_only_metrics', 'write_only_logs'], projectId, region: 'fr-par' })
  expect(made.secretKey).toMatch(/^[A-Za-z0-9_-]{64}$/)
  expect((await regional.getToken({ tokenId: made.id })).secretKey).toBeNull()
  expect((await regional.createToken({ projectId, name: 'empty' })).scopes).toEqual([])
  const names = async (tokenScopes: Cockpitv1.TokenScope[]) =>
    (await regional.listTokens({ projectId, tokenScopes })).tokens.map(({ name }) => name)
  expect(await names(['write_only_logs'])).toEqual(['grafana'])
  expect(await names(['unknown_scope'])).toEqual(['grafana', 'empty'])
  expect(await names(['read_only_traces'])).toEqual([])
  for (const table of ['cockpit_token', 'audit_entry']) {
    const { rows } = await database.db.query<{ text: string }>(`select string_agg(t::text, ' ') as text from ${table} as t`)
    expect(rows[0]?.text).toContain(made.id)
    expect(rows[0]?.text).not.toContain(made.secretKey)
  }
  expect(house.log()).not.toContain(made.secretKey)
  await regional.deleteToken({ tokenId: made.id })
  await expect(regional.getToken({ tokenId: made.id })).rejects.toMatchObject({ resource: 'token', resourceId: made.id })
  await expect(regional.deleteToken({ tokenId: made.id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
})

test('a token opens the sources of its project that its scopes name, until it is deleted', async () => {
  const [projectId, otherId] = [await newProject(), await newProject()]
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey })
  const sourceOf = async (type: 'metrics' | 'logs', project = projectId) =>
    (await regional.listDataSources({ projectId: project, types: [type] })).dataSources[0]?.id ?? ''
  const [metrics, logs, theirs] = [await sourceOf('metrics'), await sourceOf('logs'), await sourceOf('metrics', otherId)]
  const token = await regional.createToken({ projectId, name: 'reader', tokenScopes: ['read_only_metrics'] })
  type Asked = Parameters<typeof authenticateToken>[1]
  const enter = async (asked: Partial<Asked> = {}) =>
    authenticateToken(
      { db: database.db, secrets },
      { authorization: `Bearer ${token.secretKey}`, dataSourceId: metrics, type: 'metrics', action: 'read', ...asked },
    )
  const refused = async (asked: Partial<Asked>) => {
    const outcome = await enter(asked)
    return outcome.ok ? outcome.value : outcome.refusal
  }
  expect(await enter()).toEqual({ ok: true, value: { tokenId: token.id, dataSourceId: metrics, organizationId, projectId } })
  expect((await enter({ authorization: `bEARER  ${token.secretKey} ` })).ok).toBe(true)
  expect(await refused({ action: 'write' })).toEqual({ type: 'permissions_denied', details: [{ resource: 'cockpit', action: 'write' }] })
  expect(await refused({ dataSourceId: logs, type: 'logs' })).toMatchObject({ type: 'permissions_denied' })
  for (const dataSourceId of [theirs, logs, randomUUID()]) {
    expect(await refused({ dataSourceId })).toEqual({ type: 'not_found', resource: 'data source', resource_id: dataSourceId })
  }
  const become = (state: string) => database.db.query('update organization set state = $2 where id = $1', [organizationId, state])
  await become('suspended')
  expect(await refused({})).toEqual({ type: 'not_found', resource: 'data source', resource_id: metrics })
  await become('active')
  const denied = { type: 'denied_authentication', method: 'unknown_method' }
  for (const authorization of [undefined, '', 'Bearer', 'Bearer x', `Basic ${token.secretKey}`, `Bearer ${token.secretKey}x`])
    expect(await refused({ authorization })).toEqual({ ...denied, reason: 'invalid_argument' })
  expect(await refused({ authorization: `Bearer ${'x'.repeat(64)}` })).toEqual({ ...denied, reason: 'not_found' })
  await regional.deleteToken({ tokenId: token.id })
  expect(await refused({})).toEqual({ ...denied, reason: 'not_found' })
})

test('what stands behind the addresses of Cockpit is not here yet, and whoever follows one is told so, whatever they carry', async () => {
  const projectId = await newProject()
  const { secretKey } = await regional.createToken({ projectId, name: 'reader', tokenScopes: ['read_only_metrics'] })
  const { dataSources } = await regional.listDataSources({ projectId, types: ['metrics'] })
  const { alertManagerUrl } = await regional.enableAlertManager({ projectId })
  const { grafanaUrl } = await global.getGrafana({ projectId })
  const query = '/prometheus/api/v1/query'
  for (const [address, path, methods] of [
    [dataSources[0]?.url, query, ['GET', 'POST']],
    [dataSources[0]?.url, '', ['GET']],
    [dataSources[0]?.url, '/api/v1/push', ['POST']],
    [alertManagerUrl, '/api/v2/alerts', ['GET', 'POST']],
    [grafanaUrl, '/api/dashboards/home', ['GET']],
  ] as const) {
    for (const method of methods) {
      for (const authorization of [`Bearer ${secretKey}`, 'Bearer something else', undefined]) {
        const answer = await fetch(`${address}${path}`, {
          method,
          headers: { 'content-type': 'application/x-www-form-urlencoded', ...(authorization === undefined ? {} : { authorization }) },
          ...(method === 'POST' ? { body: 'query=up' } : {}),
        })
        expect([address, method, answer.status]).toEqual([address, method, 501])
        expect(await answer.json()).toEqual({ message: 'this method is not implemented', type: 'not_implemented' })
      }
    }
  }
})

test('who may read reads, who may write writes, and of other projects there is nothing to be seen', async () => {
  const [projectId, otherId] = [await newProject(), await newProject()]
  const source = await regional.createDataSource({ projectId, name: 'shared', type: 'metrics' })
  const token = await regional.createToken({ projectId, name: 'shared' })
  const reader = cockpitOf(await newKey('ObservabilityReadOnly', [projectId]), projectId)
  expect(await reader.regional.getDataSource({ dataSourceId: source.id })).toMatchObject({ name: 'shared' })
  expect((await reader.regional.listTokens()).totalCount).toBe(1)
  expect((await reader.regional.getConfig()).customLogsRetention).toEqual({ minDays: 1, maxDays: 1825, defaultDays: 7 })
  const write = { status: 403, list: [{ resource: 'cockpit', action: 'write' }] }
  for (const attempt of [
    () => reader.regional.createDataSource({ name: 'not mine', type: 'logs' }),
    () => reader.regional.updateDataSource({ dataSourceId: source.id, name: 'not mine' }),
    () => reader.regional.deleteDataSource({ dataSourceId: source.id }),
    () => reader.regional.createToken({ name: 'not-mine' }),
    () => reader.regional.deleteToken({ tokenId: token.id }),
    () => reader.regional.enableAlertManager(),
    () => reader.regional.createContactPoint({ email: { to: 'a@example.com' } }),
    () => reader.global.createGrafanaUser({ login: 'jane', role: 'editor' }),
    () => reader.global.syncGrafanaDataSources(),
    () => reader.global.selectPlan({ planName: 'free' }),
  ])
    await expect(attempt()).rejects.toMatchObject(write)

  const stranger = cockpitOf(await newKey('ObservabilityFullAccess', [otherId]), otherId)
  const read = { status: 403, list: [{ resource: 'cockpit', action: 'read' }] }
  // A project of somebody else and one that there is not are answered alike.
  for (const hidden of [projectId, randomUUID()]) {
    for (const attempt of [
      () => stranger.regional.listDataSources({ projectId: hidden }),
      () => stranger.regional.listTokens({ projectId: hidden }),
      () => stranger.regional.getUsageOverview({ projectId: hidden }),
      () => stranger.regional.getAlertManager({ projectId: hidden }),
      () => stranger.regional.listContactPoints({ projectId: hidden }),
      () => stranger.regional.listAlerts({ projectId: hidden }),
      () => stranger.regional.getRulesCount({ projectId: hidden }),
      () => stranger.global.getGrafana({ projectId: hidden }),
      () => stranger.global.listGrafanaUsers({ projectId: hidden }),
      () => stranger.global.getCurrentPlan({ projectId: hidden }),
    ])
      await expect(attempt()).rejects.toMatchObject(read)
    await expect(stranger.regional.createToken({ projectId: hidden, name: 'mine' })).rejects.toMatchObject(write)
  }
  await expect(stranger.regional.getDataSource({ dataSourceId: source.id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(stranger.regional.updateDataSource({ dataSourceId: source.id, name: 'mine' })).rejects.toBeInstanceOf(
    Errors.ResourceNotFoundError,
  )
  await expect(stranger.regional.deleteDataSource({ dataSourceId: source.id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(stranger.regional.deleteToken({ tokenId: token.id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  const nobody = cockpitOf(await newKey('IAMReadOnly', []).catch(() => newKey('GenerativeApisModelAccess', [otherId])), otherId)
  await expect(nobody.regional.getConfig()).rejects.toMatchObject(read)
  await expect(nobody.global.listPlans()).rejects.toMatchObject(read)
  expect(await regional.getDataSource({ dataSourceId: source.id })).toMatchObject({ name: 'shared' })
})

test('a project has a bounded number of tokens, whoever asks at once', async () => {
  const projectId = await newProject()
  await database.db.query(
    `insert into cockpit_token (id, project_id, region, name, scopes, secret_hash)
     select gen_random_uuid(), $1::uuid, 'fr-par', 'filler', '{}', sha256(convert_to($1::uuid::text || n, 'UTF8')) from generate_series(1, 95) as n`,
    [projectId],
  )
  const made = await Promise.allSettled(Array.from({ length: 12 }, () => regional.createToken({ projectId, name: 'last' })))
  const refused = made.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []))
  expect(refused).toHaveLength(7)
  for (const reason of refused) {
    expect(reason).toBeInstanceOf(Errors.QuotasExceededError)
    expect(reason).toMatchObject({ list: [{ resource: 'CockpitTokens', quota: 100, current: 100 }] })
  }
  expect((await regional.listTokens({ projectId })).totalCount).toBe(100)
})

test('edits of one source at once end in one of them, and every one of them is on record', async () => {
  const projectId = await newProject()
  const { id: dataSourceId } = await regional.createDataSource({ projectId, name: 'busy', type: 'metrics' })
  const days = [2, 3, 5, 7, 11, 13]
  await Promise.all(days.map((retentionDays) => regional.updateDataSource({ dataSourceId, retentionDays })))
  const { retentionDays: last } = await regional.getDataSource({ dataSourceId })
  const logs = await iam.listLogs({ resourceType: 'data_source' as never, search: dataSourceId }).all()
  expect(logs).toHaveLength(1 + days.length)
  expect(logs[0]).toMatchObject({ ip: '127.0.0.1', organizationId })
  // Each one began where the one before it ended, so every value but the last was the beginning of one.
  const { rows } = await database.db.query<{ before: { retentionDays: number } }>(
    `select before from audit_entry where resource_id = $1 and action = 'updated'`,
    [dataSourceId],
  )
  expect(new Set(rows.map(({ before }) => before.retentionDays))).toEqual(new Set([31, ...days].filter((each) => each !== last)))
  const gone = await Promise.allSettled(Array.from({ length: 4 }, () => regional.deleteDataSource({ dataSourceId })))
  expect(gone.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
})

test('a project that is deleted at the same moment is there or gone, and nothing fails', async () => {
  const seen = new Set<number>()
  for (let round = 0; round < 15; round += 1) {
    const projectId = await newProject()
    const body = { project_id: projectId }
    const answers = await Promise.all([
      house.call(`/cockpit/v1/regions/fr-par/data-sources?project_id=${projectId}`),
      house.call(`/account/v3/projects/${projectId}`, { method: 'DELETE' }),
      house.call('/cockpit/v1/regions/fr-par/alert-manager/enable', { body }),
      house.call('/cockpit/v1/grafana/users', { body: { ...body, login: 'jane' } }),
      house.call('/cockpit/v1/regions/fr-par/alert-manager/contact-points', { body: { ...body, email: { to: 'a@example.com' } } }),
    ])
    for (const { status } of answers) seen.add(status)
    const gone = (await house.call(`/account/v3/projects/${projectId}`)).status === 404
    expect(gone).toBe(answers[1]?.status === 204)
    if (!gone) await account.deleteProject({ projectId })
  }
  for (const status of seen) expect([200, 204, 403, 412]).toContain(status)
})

test('Grafana users are made, found, given a new password and removed', async () => {
  const projectId = await newProject()
  const jane = await global.createGrafanaUser({ projectId, login: 'jane', role: 'editor' })
  expect(jane).toMatchObject({ login: 'jane', role: 'editor' })
  expect(Number.isSafeInteger(jane.id)).toBe(true)
  expect(jane.password).toMatch(/^\S{64}$/)
  expect(await global.createGrafanaUser({ projectId, login: 'adam', role: 'unknown_role' })).toMatchObject({ role: 'viewer' })
  await expect(global.createGrafanaUser({ projectId, login: 'JANE', role: 'viewer' })).rejects.toBeInstanceOf(Errors.AlreadyExistsError)
  await expect(global.createGrafanaUser({ projectId, login: 'admin', role: 'viewer' })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  const users = await global.listGrafanaUsers({ projectId, orderBy: 'login_desc', pageSize: 1 }).all()
  expect(users.map(({ login, password }) => [login, password])).toEqual([
    ['jane', ''],
    ['adam', ''],
  ])
  const again = await global.resetGrafanaUserPassword({ projectId, grafanaUserId: jane.id })
  expect(again).toMatchObject({ id: jane.id, login: 'jane' })
  expect(again.password).not.toBe(jane.password)
  // The same number in another project is nobody.
  await expect(global.deleteGrafanaUser({ grafanaUserId: jane.id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await global.deleteGrafanaUser({ projectId, grafanaUserId: jane.id })
  await expect(global.deleteGrafanaUser({ projectId, grafanaUserId: jane.id })).rejects.toMatchObject({
    resource: 'grafana user',
    resourceId: String(jane.id),
  })
  expect(await global.getGrafana({ projectId })).toEqual({ grafanaUrl: `${house.url}/cockpit/dashboards/${projectId}` })
  // Users do not hold their project.
  await account.deleteProject({ projectId })
})

test('an alert manager is enabled and disabled as often as one likes, and tells its contact points', async () => {
  const projectId = await newProject()
  const off = { alertManagerUrl: null, alertManagerEnabled: false, managedAlertsEnabled: false, region: 'fr-par' }
  const on = { ...off, alertManagerEnabled: true, alertManagerUrl: `${house.url}/cockpit/alert-managers/${projectId}` }
  expect(await regional.getAlertManager({ projectId })).toEqual(off)
  await expect(regional.triggerTestAlert({ projectId })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
  for (const expected of [on, on]) expect(await regional.enableAlertManager({ projectId })).toEqual(expected)
  expect(await regional.getAlertManager({ projectId })).toEqual(on)
  const email = { to: 'a@example.com' }
  expect(await regional.createContactPoint({ projectId, email, sendResolvedNotifications: true })).toEqual({
    email,
    region: 'fr-par',
    sendResolvedNotifications: true,
  })
  await regional.createContactPoint({ projectId, email: { to: 'b@example.com' } })
  await expect(regional.createContactPoint({ projectId, email: { to: 'A@example.com' } })).rejects.toBeInstanceOf(Errors.AlreadyExistsError)
  await expect(regional.createContactPoint({ projectId, email: { to: 'nowhere' } })).rejects.toMatchObject({
    details: [{ argumentName: 'email.to' }],
  })
  await expect(regional.createContactPoint({ projectId })).rejects.toMatchObject({
    details: [{ argumentName: 'email', reason: 'required' }],
  })
  expect(await regional.updateContactPoint({ projectId, email, sendResolvedNotifications: false })).toMatchObject({
    sendResolvedNotifications: false,
  })
  const points = await regional.listContactPoints({ projectId, pageSize: 1 }).all()
  expect(points.map(({ email: to }) => to)).toEqual([{ to: 'a@example.com' }, { to: 'b@example.com' }])
  // This house has no mail server, and says so instead of pretending.
  await expect(regional.triggerTestAlert({ projectId })).rejects.toMatchObject({ status: 412, precondition: 'resource_not_usable' })
  await expect(regional.triggerTestAlert({ projectId })).rejects.toBeInstanceOf(Errors.TooManyRequestsError)
  expect(await regional.deleteContactPoint({ projectId, email })).toBeUndefined()
  await expect(regional.deleteContactPoint({ projectId, email })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  for (const expected of [off, off]) expect(await regional.disableAlertManager({ projectId })).toEqual(expected)
  expect(await regional.listAlerts({ projectId, isPreconfigured: true, state: 'firing' })).toEqual({ alerts: [], totalCount: 0 })
  expect(await regional.getRulesCount({ projectId })).toEqual({
    rulesCountByDatasource: [],
    preconfiguredRulesCount: 0,
    customRulesCount: 0,
  })
  await account.deleteProject({ projectId })
})

test('plans, usage and retention are told, and what Terraform asks of a Cockpit in a row', async () => {
  const projectId = await newProject()
  expect((await global.listPlans()).plans).toMatchObject([{ name: 'free', retentionMetricsInterval: '2678400s' }])
  expect(await global.getCurrentPlan({ projectId })).toMatchObject({ name: 'free', monthlyPrice: 0 })
  expect(await global.selectPlan({ projectId, planName: 'premium' })).toMatchObject({ name: 'free' })
  const usage = await regional.getUsageOverview({ projectId, interval: '3600.5s' })
  expect(usage.scalewayMetricsUsage).toMatchObject({
    projectId,
    unit: 'samples',
    interval: '3600s',
    quantityOverInterval: 0,
    dataSourceOrigin: 'scaleway',
  })
  expect(usage.externalTracesUsage).toMatchObject({ unit: 'bytes', dataSourceOrigin: 'custom', dataSourceType: 'traces' })
  expect(await regional.listDataSources({ projectId, origin: 'custom' }).all()).toEqual([])
  expect(await global.getGrafana({ projectId })).toHaveProperty('grafanaUrl')
  expect(await regional.getAlertManager({ projectId })).toHaveProperty('alertManagerEnabled', false)
})

test('another region is not there, whoever asks', async () => {
  await expect(regional.listDataSources({ region: 'nl-ams' })).rejects.toMatchObject({
    status: 404,
    resource: 'region',
    resourceId: 'nl-ams',
  })
  await expect(regional.createToken({ region: 'pl-waw', name: 'token' })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
})

test('with a domain and a mail server sources have host names as the clients know them, and a test alert reaches everybody', async () => {
  const mail = await openMailServer()
  const other = await startHouse({
    database,
    settings: {
      PARVIS_MASTER_KEY: masterKey,
      PARVIS_BOOTSTRAP_SECRET_KEY: house.secretKey,
      PARVIS_DOMAIN: 'ai.example.com',
      PARVIS_COCKPIT_NAME: 'Parvis',
      PARVIS_SMTP_URL: mail.url,
      PARVIS_MAIL_FROM: 'alerts@ai.example.com',
    },
  })
  try {
    const projectId = await newProject()
    const there = (path: string) => other.call(`/cockpit/v1/${path}`)
    // It hears of the project within a second.
    await until('the project is known there', async () => (await there(`grafana?project_id=${projectId}`)).status === 200)
    const { data_sources: sources } = (await there(`regions/fr-par/data-sources?project_id=${projectId}&types=logs`)).json() as {
      data_sources: { id: string; url: string; name: string }[]
    }
    expect(sources).toMatchObject([{ name: 'Parvis Logs', url: `https://${sources[0]?.id}.logs.cockpit.fr-par.ai.example.com` }])
    expect((await there(`grafana?project_id=${projectId}`)).json()).toEqual({
      grafana_url: `https://${projectId}.dashboard.cockpit.ai.example.com`,
    })

    for (const to of ['a@example.com', 'b@example.com']) await regional.createContactPoint({ projectId, email: { to } })
    const trigger = () =>
      other.call('/cockpit/v1/regions/fr-par/alert-manager/trigger-test-alert', { method: 'POST', body: { project_id: projectId } })
    expect((await trigger()).json()).toMatchObject({ type: 'precondition_failed', help_message: 'the alert manager is not enabled' })
    expect(await regional.enableAlertManager({ projectId })).toMatchObject({ alertManagerEnabled: true })
    const triggered = await Promise.all([trigger(), trigger()])
    expect(triggered.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([204, 429])
    // Both letters and no more, though it was asked for twice.
    expect(mail.mails).toHaveLength(2)
    const letters = mail.mails.map((letter) => JSON.stringify(letter)).toSorted()
    for (const letter of letters) expect(letter).toContain(projectId)
    expect(letters.join(' ')).toMatch(/a@example\.com.*b@example\.com/s)

    // Nor does the pause end with the alert manager.
    expect(await regional.disableAlertManager({ projectId })).toMatchObject({ alertManagerEnabled: false })
    expect(await regional.getAlertManager({ projectId })).toMatchObject({ alertManagerEnabled: false, alertManagerUrl: null })
    expect((await trigger()).json()).toMatchObject({ help_message: 'the alert manager is not enabled' })
    expect(await regional.enableAlertManager({ projectId })).toMatchObject({ alertManagerEnabled: true })
    expect((await trigger()).status).toBe(429)
    expect(mail.mails).toHaveLength(2)

    // What the mail server says is for the operator.
    await database.db.query('update alert_manager set tested_at = null where project_id = $1', [projectId])
    mail.refusals.push('550 relay-7.internal knows nobody', '550 relay-7.internal knows nobody')
    const refused = await trigger()
    expect(refused).toMatchObject({ status: 412 })
    expect(refused.json()).toMatchObject({ help_message: "not every contact point could be told; the operator's log says why" })
    expect(other.log()).toContain('the mail server said 550 to RCPT TO')
  } finally {
    await other.stop()
    await mail.close()
  }
})
