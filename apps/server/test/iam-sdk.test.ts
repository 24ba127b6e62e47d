import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { Accountv3 } from '@scaleway/sdk-account'
import { createClient, Errors } from '@scaleway/sdk-client'
import { Iamv1alpha1 } from '@scaleway/sdk-iam'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The vendor's SDK, as it comes from the registry, manages users, applications, groups, policies, keys and projects.

let database: TestDatabase
let house: TestHouse
let organizationId: string

const clientOf = (secretKey: string, accessKey = 'SCWXXXXXXXXXXXXXXXXX') =>
  createClient({ apiURL: house.url, accessKey, secretKey, defaultOrganizationId: organizationId, defaultProjectId: organizationId })
const iamOf = (secretKey: string) => new Iamv1alpha1.API(clientOf(secretKey))
const accountOf = (secretKey: string) => new Accountv3.ProjectAPI(clientOf(secretKey))

let iam: Iamv1alpha1.API
let account: Accountv3.ProjectAPI

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  organizationId = house.owner.organizationId
  iam = iamOf(house.secretKey)
  account = accountOf(house.secretKey)
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const newApplication = async (grant?: Partial<Iamv1alpha1.RuleSpecs>) => {
  const application = await iam.createApplication({ name: `app ${randomUUID().slice(0, 8)}`, description: '' })
  if (grant !== undefined) {
    await iam.createPolicy({
      name: `for ${application.id}`,
      description: '',
      applicationId: application.id,
      rules: [{ condition: '', permissionSetNames: [], ...grant } as Iamv1alpha1.RuleSpecs],
    })
  }
  const key = await iam.createAPIKey({ applicationId: application.id, description: 'test' })
  return { application, key, secretKey: key.secretKey ?? '' }
}

test('an application lives, from its making to the death of its keys', async () => {
  const made = await iam.createApplication({ name: 'billing-bot', description: 'counts', tags: ['a'] })
  expect(made).toMatchObject({ name: 'billing-bot', description: 'counts', tags: ['a'], organizationId, nbApiKeys: 0, editable: true })
  expect(made.createdAt).toBeInstanceOf(Date)
  const key = await iam.createAPIKey({ applicationId: made.id, description: 'ci' })
  expect(key.secretKey).toMatch(/^[0-9a-f-]{36}$/)
  expect(key).toMatchObject({ applicationId: made.id, defaultProjectId: organizationId, description: 'ci', creationIp: '127.0.0.1' })
  expect(await iam.getApplication({ applicationId: made.id })).toMatchObject({ nbApiKeys: 1 })
  expect((await iam.getAPIKey({ accessKey: key.accessKey })).secretKey).toBeFalsy()
  // A key may read itself whatever it may do otherwise, and nothing else.
  const own = iamOf(key.secretKey ?? '')
  expect(await own.getAPIKey({ accessKey: key.accessKey })).toMatchObject({ accessKey: key.accessKey })
  await expect(own.listApplications()).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  expect(await iam.updateApplication({ applicationId: made.id, name: 'billing bot (2)' })).toMatchObject({
    name: 'billing bot (2)',
    tags: ['a'],
  })
  expect((await iam.listApplications({ name: 'BOT (2)' })).applications.map(({ id }) => id)).toEqual([made.id])
  expect(await iam.deleteApplication({ applicationId: made.id })).toBeUndefined()
  await expect(iam.getApplication({ applicationId: made.id })).rejects.toMatchObject({ resource: 'application', resourceId: made.id })
  await expect(own.getAPIKey({ accessKey: key.accessKey })).rejects.toBeInstanceOf(Errors.DeniedAuthenticationError)
})

test('lists of more than a page come whole and in order, fetched all at once', async () => {
  const names = Array.from({ length: 25 }, (_, index) => `paged ${String(index).padStart(2, '0')}`)
  for (const name of names) await iam.createApplication({ name, description: '' })
  const first = await iam.listApplications({ name: 'paged', orderBy: 'name_asc' })
  expect(first.totalCount).toBe(25)
  expect(first.applications).toHaveLength(20)
  expect((await iam.listApplications({ name: 'paged', orderBy: 'name_asc' }).all()).map(({ name }) => name)).toEqual(names)
  expect((await iam.listApplications({ name: 'paged', orderBy: 'name_desc', pageSize: 7 }).all()).map(({ name }) => name)).toEqual(
    names.toReversed(),
  )
  expect(await iam.listApplications({ name: 'paged', page: 9 })).toMatchObject({ totalCount: 25, applications: [] })
  await expect(iam.listApplications({ pageSize: 101 })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
})

test('a group takes members in and lets them go; its policies are theirs meanwhile', async () => {
  const group = await iam.createGroup({ name: 'research', description: '' })
  expect(group).toMatchObject({ userIds: [], applicationIds: [], editable: true, managed: false })
  const { application, secretKey } = await newApplication()
  const policy = await iam.createPolicy({
    name: 'researchers',
    description: '',
    groupId: group.id,
    rules: [{ permissionSetNames: ['IAMReadOnly'], condition: '', organizationId }],
  })
  expect(policy).toMatchObject({ groupId: group.id, nbRules: 1, nbScopes: 1, nbPermissionSets: 1 })
  expect(policy.applicationId).toBeUndefined()
  const member = iamOf(secretKey)
  await expect(member.listGroups()).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  expect(await iam.addGroupMember({ groupId: group.id, applicationId: application.id })).toMatchObject({ applicationIds: [application.id] })
  expect((await member.listGroups({ applicationIds: [application.id] })).groups.map(({ name }) => name)).toEqual([
    'All applications',
    'research',
  ])
  expect(await iam.removeGroupMember({ groupId: group.id, applicationId: application.id })).toMatchObject({ applicationIds: [] })
  await expect(member.listGroups()).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  await expect(iam.removeGroupMember({ groupId: group.id, applicationId: application.id })).rejects.toMatchObject({
    status: 404,
    resource: '',
  })
  expect(await iam.setGroupMembers({ groupId: group.id, userIds: [], applicationIds: [application.id] })).toMatchObject({
    applicationIds: [application.id],
  })
  await expect(iam.addGroupMembers({ groupId: group.id, userIds: [randomUUID()], applicationIds: [] })).rejects.toMatchObject({
    resource: 'user',
  })
  await iam.updateGroup({ groupId: group.id, name: 'research 2' })
  await iam.deleteGroup({ groupId: group.id })
  expect(await iam.getPolicy({ policyId: policy.id })).toMatchObject({ noPrincipal: true })
  await expect(iam.getGroup({ groupId: group.id })).rejects.toMatchObject({ resource: 'group' })
})

test('the two managed groups hold everybody of their kind and stay as they are', async () => {
  const { application } = await newApplication()
  const groups = await iam.listGroups().all()
  const managed = groups.filter((group) => group.managed)
  expect(managed.map(({ name }) => name).toSorted()).toEqual(['All applications', 'All users'])
  expect(managed.find(({ name }) => name === 'All applications')?.applicationIds).toContain(application.id)
  for (const { id } of managed) await expect(iam.deleteGroup({ groupId: id })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
})

test('a policy, its rules and its copy', async () => {
  const project = await account.createProject({ name: 'team-rules', description: '' })
  const { application, secretKey } = await newApplication()
  const policy = await iam.createPolicy({ name: 'model-users', description: '', applicationId: application.id })
  expect(policy).toMatchObject({ nbRules: 0, applicationId: application.id })
  const rules = await iam.setRules({
    policyId: policy.id,
    rules: [
      { permissionSetNames: ['GenerativeApisModelAccess', 'InferenceReadOnly'], condition: '', projectIds: [project.id] },
      { permissionSetNames: ['ProjectReadOnly'], condition: `request.user_agent.contains("scaleway-sdk-js")`, organizationId },
    ],
  })
  expect(rules.rules).toMatchObject([
    { permissionSetsScopeType: 'projects', projectIds: [project.id], condition: '' },
    { permissionSetsScopeType: 'organization', organizationId },
  ])
  expect((await iam.listRules({ policyId: policy.id }).all()).map(({ id }) => id)).toEqual(rules.rules.map(({ id }) => id))
  expect(await iam.getPolicy({ policyId: policy.id })).toMatchObject({ nbRules: 2, nbScopes: 2, nbPermissionSets: 3 })
  // By the condition it may, since it is the SDK that asks; by another name it may not.
  expect((await accountOf(secretKey).listProjects().all()).map(({ name }) => name)).toContain('default')
  const plain = await house.call('/account/v3/projects', { key: secretKey, headers: { 'user-agent': 'curl' } })
  expect(plain.json()).toMatchObject({ total_count: 1, projects: [{ id: project.id }] })
  const copy = await iam.clonePolicy({ policyId: policy.id })
  expect(copy).toMatchObject({ name: 'model-users (copy)', nbRules: 2, applicationId: application.id })
  expect(await iam.updatePolicy({ policyId: copy.id, noPrincipal: true })).toMatchObject({ noPrincipal: true, applicationId: undefined })
  await iam.deletePolicy({ policyId: copy.id })
  await iam.deletePolicy({ policyId: policy.id })
  expect((await accountOf(secretKey).listProjects()).totalCount).toBe(0)
  await account.deleteProject({ projectId: project.id })
})

test.each([
  ['an unknown set', { permissionSetNames: ['Everything'] }, 'permission_set_names'],
  ['sets of two types', { permissionSetNames: ['ProjectReadOnly', 'GenerativeApisFullAccess'] }, 'permission_set_names'],
  ['a condition that does not compile', { permissionSetNames: ['ProjectReadOnly'], condition: '1 +' }, 'condition'],
  ['a condition that loops', { permissionSetNames: ['ProjectReadOnly'], condition: '[1, 2].all(x, x > 0)' }, 'condition'],
  [
    'a condition with a regular expression',
    { permissionSetNames: ['ProjectReadOnly'], condition: 'request.ip.matches("(a+)+$")' },
    'condition',
  ],
])('a rule with %s is refused and leaves nothing behind', async (_what, rule, argument) => {
  const before = (await iam.listPolicies()).totalCount
  const refused = iam.createPolicy({ name: 'wrong', description: '', rules: [{ condition: '', organizationId, ...rule }] })
  await expect(refused).rejects.toMatchObject({ status: 400, details: [{ argumentName: argument }] })
  expect((await iam.listPolicies()).totalCount).toBe(before)
})

test('permission sets are listed over several pages, old names beside new ones', async () => {
  const sets = await iam.listPermissionSets({ pageSize: 20 }).all()
  const names = sets.map(({ name }) => name)
  expect(names).toEqual(
    expect.arrayContaining(['GenerativeApisModelAccess', 'InferenceReadOnly', 'InferenceFullAccess', 'BillingManager', 'IAMManager']),
  )
  expect(new Set(sets.map(({ id }) => id)).size).toBe(sets.length)
  expect(names).toEqual(names.toSorted())
})

test('a member is added, invited, let in, locked, unlocked and removed', async () => {
  const user = await iam.createUser({
    member: {
      email: 'jane@example.com',
      username: 'jane',
      password: 'four words of no meaning',
      sendPasswordEmail: false,
      sendWelcomeEmail: false,
      firstName: 'Jane',
      lastName: '',
      phoneNumber: '',
      locale: '',
    },
  })
  expect(user).toMatchObject({ username: 'jane', type: 'member', status: 'activated', deletable: true, locale: 'en_US', locked: false })
  await expect(iam.createUser({ email: 'x@example.com' }).then(() => iam.createUser({ email: 'x@example.com' }))).rejects.toBeInstanceOf(
    Errors.AlreadyExistsError,
  )
  const [owner] = await iam.listUsers({ type: 'owner' }).all()
  expect(owner).toMatchObject({ type: 'owner', deletable: false })
  const members = (await iam.listUsers({ type: 'member' })).users
  expect(Object.fromEntries(members.map(({ username, status }) => [username, status]))).toEqual({
    jane: 'activated',
    'x@example.com': 'invitation_pending',
  })

  const invitation = (await house.call(`/parvis/v1/users/${user.id}/invitation`, { method: 'POST', body: {} })).json() as { token: string }
  const accept = (token: string) => house.call('/parvis/v1/invitations/accept', { key: null, body: { token } })
  const taken = (await accept(invitation.token)).json() as { secret_key: string; user_id: string }
  expect(taken.user_id).toBe(user.id)
  expect((await accept(invitation.token)).status).toBe(404)
  expect((await accept('guess')).status).toBe(404)

  // A member has nothing but itself, and may make keys for itself and nobody else.
  const jane = iamOf(taken.secret_key)
  expect(await jane.getUser({ userId: user.id })).toMatchObject({ username: 'jane' })
  await expect(jane.getUser({ userId: owner?.id ?? '' })).rejects.toMatchObject({
    status: 403,
    list: [
      { resource: 'user', action: 'read' },
      { resource: 'self_user', action: 'read' },
    ],
  })
  const second = await jane.createAPIKey({ userId: user.id, description: 'second' })
  expect((await jane.listAPIKeys()).apiKeys.map(({ accessKey }) => accessKey)).toContain(second.accessKey)
  expect((await jane.listAPIKeys()).totalCount).toBe(2)
  await expect(jane.createAPIKey({ userId: owner?.id ?? '', description: '' })).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  await expect(iam.createAPIKey({ userId: user.id, description: '' })).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  await jane.deleteAPIKey({ accessKey: second.accessKey })

  expect(await iam.lockUser({ userId: user.id })).toMatchObject({ locked: true })
  await expect(jane.getUser({ userId: user.id })).rejects.toBeInstanceOf(Errors.DeniedAuthenticationError)
  expect(await iam.unlockUser({ userId: user.id })).toMatchObject({ locked: false })
  expect(await iam.updateUser({ userId: user.id, firstName: 'Janet' })).toMatchObject({ firstName: 'Janet' })
  expect(await iam.updateUserUsername({ userId: user.id, username: 'janet' })).toMatchObject({ username: 'janet' })
  await iam.deleteUser({ userId: user.id })
  await expect(jane.getUser({ userId: user.id })).rejects.toBeInstanceOf(Errors.DeniedAuthenticationError)
  await expect(iam.deleteUser({ userId: owner?.id ?? '' })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
  await expect(iam.lockUser({ userId: owner?.id ?? '' })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
})

test('whoever manages users or keys cannot take the owner over', async () => {
  const { secretKey } = await newApplication({ permissionSetNames: ['IAMManager'], organizationId })
  const manager = iamOf(secretKey)
  const [owner] = await manager.listUsers({ type: 'owner' }).all()
  const ownersKey = (await manager.listAPIKeys({ bearerType: 'user', bearerId: owner?.id ?? '' })).apiKeys[0]?.accessKey ?? ''
  await expect(manager.updateUserUsername({ userId: owner?.id ?? '', username: 'mine' })).rejects.toBeInstanceOf(
    Errors.PreconditionFailedError,
  )
  await expect(manager.updateUser({ userId: owner?.id ?? '', email: 'a@b.example' })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
  await expect(manager.deleteAPIKey({ accessKey: ownersKey })).rejects.toBeInstanceOf(Errors.PermissionsDeniedError)
  expect((await house.call(`/parvis/v1/users/${owner?.id}/invitation`, { method: 'POST', body: {}, key: secretKey })).status).toBe(412)
})

test('the end of a key can be set once and not be moved, and an organization may bound it', async () => {
  const { application, key } = await newApplication()
  const expiresAt = new Date(Date.now() + 3_600_000)
  expect((await iam.updateAPIKey({ accessKey: key.accessKey, description: 'ends', expiresAt })).expiresAt).toEqual(expiresAt)
  expect(await iam.updateAPIKey({ accessKey: key.accessKey, description: 'again' })).toMatchObject({ description: 'again', expiresAt })
  const moved = iam.updateAPIKey({ accessKey: key.accessKey, expiresAt: new Date(expiresAt.getTime() + 1_000) })
  await expect(moved).rejects.toMatchObject({ details: [{ argumentName: 'expires_at', reason: 'constraint' }] })
  const past = iam.createAPIKey({ applicationId: application.id, description: '', expiresAt: new Date(Date.now() - 1_000) })
  await expect(past).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)

  const settings = await iam.updateOrganizationSecuritySettings({ organizationId, maxApiKeyExpirationDuration: '86400s' })
  expect(settings.maxApiKeyExpirationDuration).toBe('86400s')
  await expect(iam.createAPIKey({ applicationId: application.id, description: '' })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  const late = new Date(Date.now() + 2 * 86_400_000)
  await expect(iam.createAPIKey({ applicationId: application.id, description: '', expiresAt: late })).rejects.toBeInstanceOf(
    Errors.InvalidArgumentsError,
  )
  await iam.createAPIKey({ applicationId: application.id, description: '', expiresAt })
  await iam.updateOrganizationSecuritySettings({ organizationId, maxApiKeyExpirationDuration: '0s' })
  expect(await iam.getOrganization({ organizationId })).toMatchObject({ id: organizationId, name: 'default' })
})

test('projects are made, found, renamed and deleted; a full one is not, and neither is the default one', async () => {
  const project = await account.createProject({ name: 'team-a', description: 'first' })
  expect(project).toMatchObject({ name: 'team-a', organizationId, description: 'first' })
  await expect(account.createProject({ name: 'team-a', description: '' })).rejects.toBeInstanceOf(Errors.AlreadyExistsError)
  expect(await account.updateProject({ projectId: project.id, name: 'team-b' })).toMatchObject({ name: 'team-b', description: 'first' })
  expect((await account.listProjects({ name: 'TEAM-B' })).projects.map(({ id }) => id)).toEqual([project.id])
  // Whatever keeps something in a project points at it.
  await database.db.query('create table held (project_id uuid references project (id))')
  await database.db.query('insert into held values ($1)', [project.id])
  await expect(account.deleteProject({ projectId: project.id })).rejects.toMatchObject({
    status: 412,
    precondition: 'resource_still_in_use',
  })
  await database.db.query('drop table held')
  expect(await account.getProject({ projectId: project.id })).toMatchObject({ name: 'team-b' })
  await account.deleteProject({ projectId: project.id })
  await expect(account.getProject({ projectId: project.id })).rejects.toMatchObject({ resource: 'project_id' })
  await expect(account.deleteProject({ projectId: organizationId })).rejects.toBeInstanceOf(Errors.PreconditionFailedError)
})

test('an organization has 25 projects and no more, whoever asks at once', async () => {
  const made = await Promise.allSettled(
    Array.from({ length: 30 }, (_, index) => account.createProject({ name: `many ${index}`, description: '' })),
  )
  const refused = made.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []))
  const all = await account.listProjects({ pageSize: 10 }).all()
  expect(all).toHaveLength(25)
  expect(refused.length).toBe(30 - made.filter(({ status }) => status === 'fulfilled').length)
  for (const reason of refused) expect(reason).toBeInstanceOf(Errors.QuotasExceededError)
  for (const { id, name } of all) if (name.startsWith('many ')) await account.deleteProject({ projectId: id })
})

test('edits of one thing at once end in one of them, whole, and every one of them is on record', async () => {
  const group = await iam.createGroup({ name: 'busy', description: '' })
  const applications = await Promise.all(Array.from({ length: 8 }, () => iam.createApplication({ name: 'busy app', description: '' })))
  await Promise.all(applications.map(({ id }) => iam.addGroupMember({ groupId: group.id, applicationId: id })))
  expect((await iam.getGroup({ groupId: group.id })).applicationIds.toSorted()).toEqual(applications.map(({ id }) => id).toSorted())
  const policy = await iam.createPolicy({ name: 'busy', description: '', groupId: group.id })
  const sets = ['ProjectReadOnly', 'BillingReadOnly', 'IAMReadOnly', 'OrganizationReadOnly']
  await Promise.all(
    sets.map((name) => iam.setRules({ policyId: policy.id, rules: [{ permissionSetNames: [name], condition: '', organizationId }] })),
  )
  expect((await iam.listRules({ policyId: policy.id })).totalCount).toBe(1)
  expect((await iam.listLogs({ resourceType: 'policy', search: policy.id })).totalCount).toBe(1 + sets.length)
})

test('every change is in the logs with its author and where it came from, and no secret is anywhere in it', async () => {
  const { application, key, secretKey } = await newApplication()
  await iam.deleteAPIKey({ accessKey: key.accessKey })
  const logs = await iam.listLogs({ search: key.accessKey, orderBy: 'created_at_asc' }).all()
  const [owner] = await iam.listUsers({ type: 'owner' }).all()
  expect(logs).toMatchObject([
    { action: 'created', resourceType: 'api_key', resourceId: key.accessKey, bearerId: owner?.id, ip: '127.0.0.1', organizationId },
    { action: 'deleted', resourceType: 'api_key', resourceId: key.accessKey },
  ])
  expect(logs[0]?.userAgent).toMatch(/^scaleway-sdk-js\//)
  expect(await iam.getLog({ logId: logs[0]?.id ?? '' })).toEqual(logs[0])
  const { rows } = await database.db.query<{ text: string }>(`select string_agg(audit_entry::text, ' ') as text from audit_entry`)
  expect(rows[0]?.text).toContain(application.id)
  expect(rows[0]?.text).not.toContain(secretKey)
  expect(house.log()).not.toContain(secretKey)
})

test('each class of error is the SDK’s own', async () => {
  await expect(iamOf(randomUUID()).listUsers()).rejects.toMatchObject({
    name: 'DeniedAuthenticationError',
    method: 'api_key',
    reason: 'not_found',
  })
  await expect(iam.getApplication({ applicationId: randomUUID() })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(iam.getOrganizationSaml({ organizationId })).rejects.toMatchObject({ resource: 'organization_saml' })
  await expect(iam.createApplication({ name: 'no/slash', description: '' })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  await expect(iam.listSSHKeys()).rejects.toMatchObject({ status: 501 })
  const { application } = await newApplication()
  await database.db.query(`update api_key set expires_at = now() - interval '1 hour' where principal_id = $1`, [application.id])
  const expired = await iam.createAPIKey({ applicationId: application.id, description: '' })
  await database.db.query(`update api_key set expires_at = now() - interval '1 hour' where access_key = $1`, [expired.accessKey])
  await iam.createApplication({ name: 'anything', description: '' }) // what is known is read again
  await expect(iamOf(expired.secretKey ?? '').listUsers()).rejects.toMatchObject({ name: 'DeniedAuthenticationError', reason: 'expired' })
})

test('an address that sends wrong keys is told to wait, and a good key from there still works', async () => {
  const wrong = iamOf(randomUUID())
  let last: unknown
  for (let failures = 0; failures < 110 && !(last instanceof Errors.TooManyRequestsError); failures += 1)
    last = await wrong.listUsers().catch((error: unknown) => error)
  expect(last).toBeInstanceOf(Errors.TooManyRequestsError)
  expect((await house.call('/v1/models', { key: randomUUID() })).status).toBe(429)
  expect((await house.call('/v1/models')).status).toBe(200)
  expect((await iam.listUsers()).totalCount).toBeGreaterThan(0)
})
