import type { AddressInfo } from 'node:net'
import { createClient, Errors } from '@scaleway/sdk-client'
import { Inferencev1, Inferencev1beta1 } from '@scaleway/sdk-inference'
import Fastify from 'fastify'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Model, NO_RULES } from '../catalog/model.ts'
import { type Instant, systemClock } from '../kit/clock.ts'
import type { AccessKey, ModelId, OrganizationId, PriceId, PrincipalId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openManagement } from '../kit/management.ts'
import type { UnitPrice } from '../kit/money.ts'
import { yes } from '../kit/outcome.ts'
import { leftOutRoutes } from '../left-out.ts'
import { bitsOf, precisionOf } from './model-view.ts'
import { cpuNode } from './node-types.ts'
import { deploymentRoutes } from './routes.ts'

// The vendor's SDK, as it comes from the registry, sees what could be deployed (control-plane.md 4).

const GIB = 2 ** 30
const idOf = (index: number): ModelId => `0192${String(index).padStart(4, '0')}-0000-7000-8000-000000000000` as ModelId

const model = (index: number, facts: Partial<Model> & { path?: string; bytes?: number }): Model => ({
  id: idOf(index),
  name: `model-${index}`,
  ownedBy: 'Acme AI',
  type: 'chat',
  status: 'active',
  deprecatedAt: null,
  endOfLifeAt: null,
  successor: null,
  createdAt: (1_700_000_000_000 + index) as Instant,
  contextTokens: 8_192,
  maxOutputTokens: 4_096,
  dimensions: null,
  matryoshka: [],
  features: { tools: false, structuredOutput: false, reasoning: false, vision: false },
  rules: NO_RULES,
  price: {
    id: idOf(index) as string as PriceId,
    startsAt: 0 as Instant,
    input: 0n as UnitPrice,
    cachedInput: 0n as UnitPrice,
    output: 0n as UnitPrice,
  },
  weights: { path: facts.path ?? `/models/model-${index}-q4_k_m.gguf`, bytes: facts.bytes ?? GIB, sha256: '0'.repeat(64) },
  ...facts,
})

const MODELS: readonly Model[] = [
  ...Array.from({ length: 26 }, (_, index) => model(index, {})),
  model(26, {
    name: 'seeing',
    features: { tools: true, structuredOutput: true, reasoning: false, vision: true },
    path: '/models/seeing-bf16.gguf',
  }),
  model(27, { name: 'large', path: '/models/large-Q8_0.gguf', bytes: 40 * GIB }),
  model(28, { name: 'vectors', type: 'embedding', path: '/models/vectors-f16.gguf', contextTokens: 512 }),
  model(29, { name: 'remote', weights: null }),
]

const app = Fastify()
let url: string
let inference: Inferencev1.API
const actor = {
  organizationId: idOf(1) as string as OrganizationId,
  principalId: idOf(2) as string as PrincipalId,
  name: 'somebody',
  kind: 'user' as const,
  owner: false,
  accessKey: 'SCWXXXXXXXXXXXXXXXXX' as AccessKey,
  ip: '127.0.0.1',
  userAgent: 'test',
}

beforeAll(async () => {
  const { manage } = openManagement(app, {
    // Whoever reads, reads; nobody may write endpoints.
    guard: async () => yes({ actor, may: ({ resource, action }) => resource !== 'endpoint' || action === 'read' }),
    clock: systemClock,
    log: openLog('silent'),
    bodyMs: 5_000,
    region: 'fr-par',
  })
  deploymentRoutes(manage, { models: () => MODELS, nodeTypes: [cpuNode({ threads: 3, memoryMb: 4096 })], region: 'fr-par' })
  leftOutRoutes(manage)
  await app.listen({ host: '127.0.0.1', port: 0 })
  url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
  inference = new Inferencev1.API(clientOf(url))
})
afterAll(() => app.close())

const clientOf = (apiURL: string) =>
  createClient({
    apiURL,
    accessKey: 'SCWXXXXXXXXXXXXXXXXX',
    secretKey: '11111111-2222-4333-8444-555555555555',
    defaultProjectId: '11111111-2222-4333-8444-555555555555',
    defaultRegion: 'fr-par',
  })

test('models are those whose weights are here, under the full name that a deployment goes by', async () => {
  const first = await inference.listModels()
  expect([first.totalCount, first.models.length]).toEqual([29, 29])
  expect(first.models.slice(-3).map(({ name }) => name)).toEqual(['acme-ai/seeing:bf16', 'acme-ai/large:q8_0', 'acme-ai/vectors:f16'])
  expect(first.models[0]).toMatchObject({
    id: idOf(0),
    name: 'acme-ai/model-0:q4_k_m',
    projectId: '00000000-0000-0000-0000-000000000000',
    status: 'ready',
    tags: ['instruct', 'chat'],
    hasEula: false,
    parameterSizeBits: 4,
    sizeBytes: GIB,
    region: 'fr-par',
  })
  expect(first.models[0]?.createdAt).toEqual(new Date(1_700_000_000_000))
  expect(await inference.getModel({ modelId: idOf(3) })).toEqual(first.models[3])
  expect(await inference.waitForModel({ modelId: idOf(3) })).toEqual(first.models[3])
})

test('pages of models come whole and in order, fetched all at once', async () => {
  const names = (await inference.listModels({ orderBy: 'name_asc' })).models.map(({ name }) => name)
  expect(names).toEqual(names.toSorted())
  expect((await inference.listModels({ orderBy: 'name_asc', pageSize: 4 }).all()).map(({ name }) => name)).toEqual(names)
  expect((await inference.listModels({ orderBy: 'name_desc', pageSize: 7 }).all()).map(({ name }) => name)).toEqual(names.toReversed())
  const seen: string[] = []
  for await (const page of inference.listModels({ orderBy: 'created_at_desc', pageSize: 10 })) seen.push(...page.map(({ id }) => id))
  expect(seen).toEqual(Array.from({ length: 29 }, (_, index) => idOf(28 - index)))
})

test('models are found by a part of the name in any case, and by all tags together', async () => {
  const found = async (query: Inferencev1.ListModelsRequest) => (await inference.listModels(query)).models.map(({ name }) => name)
  expect(await found({ name: 'ACME-ai/VEC' })).toEqual(['acme-ai/vectors:f16'])
  expect(await found({ tags: ['chat', 'vision'] })).toEqual(['acme-ai/seeing:bf16'])
  expect(await found({ tags: ['embedding'] })).toEqual(['acme-ai/vectors:f16'])
  expect(await found({ tags: ['chat', 'embedding'] })).toEqual([])
  // The catalogue's models belong to no project, so none hides them.
  expect(await found({ projectId: idOf(9), name: 'vectors' })).toHaveLength(1)
})

test('a model says for each node type and width whether it runs, and with how much context', async () => {
  const supportOf = async (index: number) => (await inference.getModel({ modelId: idOf(index) })).nodesSupport
  const widths = (allowed: number | undefined, context: number) =>
    [4, 8, 16, 32].map((bits) => ({ quantizationBits: bits, allowed: bits === allowed, maxContextSize: bits === allowed ? context : 0 }))
  const on = (quantizations: object) => [{ nodes: [{ nodeTypeName: 'CPU', quantizations }] }]
  expect(await supportOf(0)).toEqual(on(widths(4, 8_192)))
  expect(await supportOf(28)).toEqual(on(widths(16, 512)))
  // Its weights are larger than the memory.
  expect(await supportOf(27)).toEqual(on(widths(undefined, 0)))
})

test('the node type is what an engine gets here', async () => {
  expect(await inference.listNodeTypes({ includeDisabledTypes: true })).toEqual({
    totalCount: 1,
    nodeTypes: [
      {
        name: 'CPU',
        stockStatus: 'available',
        description: expect.any(String) as string,
        vcpus: 3,
        memory: 4 * GIB,
        vram: 0,
        gpus: 0,
        disabled: false,
        beta: false,
        createdAt: expect.any(Date) as Date,
        updatedAt: expect.any(Date) as Date,
        region: 'fr-par',
      },
    ],
  })
})

test('there are no deployments: lists are empty, one is not found, and making one is not implemented', async () => {
  const deploymentId = idOf(7)
  expect(await inference.listDeployments({ projectId: idOf(1), tags: ['a', 'b'], orderBy: 'name_desc' })).toEqual({
    deployments: [],
    totalCount: 0,
  })
  expect(await inference.listDeployments().all()).toEqual([])
  const missing = { status: 404, resource: 'deployment', resourceId: deploymentId }
  for (const attempt of [
    () => inference.getDeployment({ deploymentId }),
    () => inference.waitForDeployment({ deploymentId }),
    () => inference.updateDeployment({ deploymentId, name: 'x' }),
    () => inference.deleteDeployment({ deploymentId }),
    () => inference.getDeploymentCertificate({ deploymentId }),
  ])
    await expect(attempt()).rejects.toMatchObject(missing)
  const node = { nodeTypeName: 'CPU', modelId: idOf(0) }
  for (const attempt of [
    () => inference.createDeployment({ ...node, endpoints: [{ disableAuth: false, publicNetwork: {} }] }),
    () => inference.createModel({ source: { url: 'https://hub.example/acme/model' } }),
  ])
    await expect(attempt()).rejects.toMatchObject({ status: 501, name: 'ScalewayError', rawMessage: 'this method is not implemented' })
})

test('models: unknown ones are not found, those of the catalogue are nobody’s to delete', async () => {
  await expect(inference.getModel({ modelId: idOf(99) })).rejects.toMatchObject({ resource: 'Model', resourceId: idOf(99) })
  await expect(inference.getModel({ modelId: idOf(29) })).rejects.toBeInstanceOf(Errors.ResourceNotFoundError)
  await expect(inference.deleteModel({ modelId: idOf(99) })).rejects.toMatchObject({ resource: 'Model' })
  await expect(inference.deleteModel({ modelId: idOf(0) })).rejects.toMatchObject({
    status: 403,
    list: [{ resource: 'model', action: 'write' }],
  })
  await expect(inference.getModel({ modelId: 'nonsense' })).rejects.toMatchObject({
    details: [{ argumentName: 'model_id', reason: 'format' }],
  })
  await expect(inference.listModels({ pageSize: 0 })).rejects.toBeInstanceOf(Errors.InvalidArgumentsError)
  expect((await inference.listModels({ pageSize: 5_000 })).models).toHaveLength(29)
})

test('rights are asked before anything else', async () => {
  await expect(inference.deleteEndpoint({ endpointId: idOf(1) })).rejects.toMatchObject({
    status: 403,
    list: [{ resource: 'endpoint', action: 'write' }],
  })
})

test('another region is not there, and neither is the older version', async () => {
  await expect(inference.listModels({ region: 'nl-ams' as 'fr-par' })).rejects.toMatchObject({
    status: 404,
    resource: 'region',
    resourceId: 'nl-ams',
  })
  const older = new Inferencev1beta1.API(clientOf(url))
  for (const attempt of [
    () => older.listModels(),
    () => older.getModelEula({ modelId: idOf(0) }),
    () => older.listDeploymentACLRules({ deploymentId: idOf(0) }),
  ])
    await expect(attempt()).rejects.toMatchObject({ status: 501 })
})

test.each([
  ['/a/tiny-chat-q8_0.gguf', 'q8_0', 8],
  ['/a/SmolLM2-135M-Instruct-Q4_K_M.gguf', 'q4_k_m', 4],
  ['/a/model-iq3_xs.gguf', 'iq3_xs', 4],
  ['/a/model.Q6_K.gguf', 'q6_k', 8],
  ['/a/gpt-oss-20b-mxfp4.gguf', 'mxfp4', 4],
  ['/a/model-bf16-q5_1.gguf', 'q5_1', 8],
  ['/a/model-f32.gguf', 'f32', 32],
  ['/a/model-fp16-00001-of-00003.gguf', 'fp16', 16],
  ['/q4_0/tiny-whisper', undefined, 16],
])('%s is stored as %s, which takes %s bits', (path, precision, bits) => {
  expect([precisionOf(path), bitsOf(precisionOf(path))]).toEqual([precision, bits])
})
