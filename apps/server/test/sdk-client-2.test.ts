import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { Accountv3 } from '@scaleway/sdk-account'
import { Billingv2beta1 } from '@scaleway/sdk-billing'
import { Cockpitv1 } from '@scaleway/sdk-cockpit'
import { Iamv1alpha1 } from '@scaleway/sdk-iam'
import { Inferencev1 } from '@scaleway/sdk-inference'
import { ProductCatalogv2alpha1 } from '@scaleway/sdk-product-catalog'
import { createClient, Errors } from 'scaleway-sdk-client-2'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The same packages on the second line of the vendor's client (control-plane.md 1): it sends and parses by itself, so it is tried by itself.

let database: TestDatabase
let house: TestHouse
let client: ReturnType<typeof createClient>

const clientOf = (secretKey: string) =>
  createClient({
    apiURL: house.url,
    accessKey: 'SCWXXXXXXXXXXXXXXXXX',
    secretKey,
    defaultOrganizationId: house.owner.organizationId,
    defaultProjectId: house.owner.organizationId,
    defaultRegion: 'fr-par',
    defaultZone: 'fr-par-1',
  })

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  client = clientOf(house.secretKey)
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

test('things are made, read, listed over several pages, changed and deleted', async () => {
  const account = new Accountv3.ProjectAPI(client)
  const project = await account.createProject({ name: 'second-line', description: '' })
  const cockpit = new Cockpitv1.RegionalAPI(client)
  const tokens = Array.from({ length: 5 }, (_, index) => `token-${index}`)
  for (const name of tokens) await cockpit.createToken({ projectId: project.id, name, tokenScopes: ['read_only_metrics'] })
  const all = await cockpit.listTokens({ projectId: project.id, orderBy: 'name_asc', pageSize: 2 }).all()
  expect(all.map(({ name }) => name)).toEqual(tokens)
  expect(all[0]?.createdAt).toBeInstanceOf(Date)
  for (const { id } of all) expect(await cockpit.deleteToken({ tokenId: id })).toBeUndefined()
  const iam = new Iamv1alpha1.API(client)
  const application = await iam.createApplication({ name: 'second line', description: '' })
  expect(await iam.updateApplication({ applicationId: application.id, tags: ['a'] })).toMatchObject({ tags: ['a'] })
  await iam.deleteApplication({ applicationId: application.id })
  expect(await account.updateProject({ projectId: project.id, description: 'last' })).toMatchObject({ description: 'last' })
  await account.deleteProject({ projectId: project.id })
  expect(await new Billingv2beta1.API(client).listConsumptions()).toMatchObject({ consumptions: [], totalCount: 0 })
  expect(await new ProductCatalogv2alpha1.PublicCatalogAPI(client).listPublicCatalogProducts()).toMatchObject({ products: [] })
  expect((await new Inferencev1.API(client).listNodeTypes({ includeDisabledTypes: false })).nodeTypes).toHaveLength(1)
  const csv = await new Billingv2beta1.API(client).exportInvoices({ fileType: 'csv' })
  expect(await csv.text()).toMatch(/^number,/)
})

test('errors are of its own classes', async () => {
  const iam = new Iamv1alpha1.API(client)
  const inference = new Inferencev1.API(client)
  const id = randomUUID()
  await expect(new Iamv1alpha1.API(clientOf(id)).listUsers()).rejects.toBeInstanceOf(Errors.DeniedAuthenticationError)
  await expect(iam.getGroup({ groupId: id })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(iam.createGroup({ name: 'no/slash', description: '' })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  await expect(inference.waitForDeployment({ deploymentId: id })).rejects.toMatchObject({ resource: 'deployment', resourceId: id })
  await expect(inference.listModels({ region: 'pl-waw' as 'fr-par' })).rejects.toMatchObject({ status: 404, resource: 'region' })
  await expect(iam.listGracePeriods()).rejects.toMatchObject({ status: 501, rawMessage: 'this method is not implemented' })
})
