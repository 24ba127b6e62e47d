import { z } from 'zod'
import type { Model } from '../catalog/model.ts'
import { instantToDate } from '../kit/clock.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import { pageOf } from '../kit/listing.ts'
import { listOf, type Manage, type Needs, pageQuery, queryFlag } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { bitsOf, type DeployableModel, fullName, isDeployable, precisionOf, supportOf, tagsOf } from './model-view.ts'
import type { NodeType } from './node-types.ts'

const BASE = '/inference/v1/regions/:region'
/** Whose the catalogue's models are (control-plane.md 2.4). */
const NOBODY = '00000000-0000-0000-0000-000000000000'

/** Whoever may read or change them in one project may see what there is for all. */
const rights = <const R extends string>(resource: R) => ({
  read: { resource, action: 'read', scope: 'anywhere' } as const satisfies Needs,
  write: { resource, action: 'write', scope: 'anywhere' } as const satisfies Needs,
})
const MODELS = rights('model')
const NODE_TYPES = rights('node_type')
const DEPLOYMENTS = rights('deployment')
const ENDPOINTS = rights('endpoint')

const Uuid = z.guid().transform((text) => text.toLowerCase())
const Name = z.string().min(1).max(255)

const ModelJson = z.object({
  id: z.guid(),
  name: z.string(),
  project_id: z.guid(),
  tags: z.array(z.string()),
  status: z.enum(['preparing', 'downloading', 'ready', 'error']),
  description: z.string(),
  has_eula: z.boolean(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime().nullable(),
  region: z.string(),
  parameter_size_bits: z.int(),
  size_bytes: z.int(),
  nodes_support: z.array(
    z.object({
      nodes: z.array(
        z.object({
          node_type_name: z.string(),
          quantizations: z.array(z.object({ quantization_bits: z.int(), allowed: z.boolean(), max_context_size: z.int() })),
        }),
      ),
    }),
  ),
})

const NodeTypeJson = z.object({
  name: z.string(),
  stock_status: z.enum(['low_stock', 'out_of_stock', 'available']),
  description: z.string(),
  vcpus: z.int(),
  memory: z.int(),
  vram: z.int(),
  disabled: z.boolean(),
  beta: z.boolean(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  gpus: z.int(),
  region: z.string(),
})

const page = <const O extends readonly [string, ...string[]]>(orders: O) =>
  pageQuery({ max: 1_000, fallback: 1_000, orders, clamp: true }).extend({
    project_id: Uuid.optional(),
    organization_id: Uuid.optional(),
    name: Name.optional(),
    tags: listOf(z.string()),
  })

const MODEL_ORDERS = ['display_rank_asc', 'created_at_asc', 'created_at_desc', 'name_asc', 'name_desc'] as const

/** Ties by id, so that pages fetched side by side never overlap (control-plane.md 2.5). */
const sortModels = (models: readonly DeployableModel[], order: (typeof MODEL_ORDERS)[number]): DeployableModel[] => {
  const keyOf = (model: DeployableModel): string | number => (order.startsWith('name') ? fullName(model) : model.createdAt)
  const sign = order.endsWith('_desc') ? -1 : 1
  return models.toSorted((a, b) => {
    const [left, right] = keyOf(a) === keyOf(b) ? [a.id, b.id] : [keyOf(a), keyOf(b)]
    return left < right ? -sign : sign
  })
}

/**
 * Inference v1 (control-plane.md 4): the models and node types that there are. Nothing can be deployed or imported yet, so there are no
 * deployments and no endpoints, and making one is not implemented.
 */
export const deploymentRoutes = (
  manage: Manage,
  room: { readonly models: () => readonly Model[]; readonly nodeTypes: readonly NodeType[]; readonly region: string },
): void => {
  const { nodeTypes, region } = room

  const modelToJson = (model: DeployableModel): z.infer<typeof ModelJson> => ({
    id: model.id,
    name: fullName(model),
    project_id: NOBODY,
    tags: [...tagsOf(model)],
    status: 'ready',
    description: `${model.name} by ${model.ownedBy}, ${model.contextTokens} tokens of context`,
    has_eula: false,
    created_at: instantToDate(model.createdAt).toISOString(),
    updated_at: null,
    region,
    parameter_size_bits: bitsOf(precisionOf(model.weights.path)),
    size_bytes: model.weights.bytes,
    nodes_support: [{ nodes: supportOf(model, nodeTypes) }],
  })
  const deployable = (): DeployableModel[] => room.models().filter(isDeployable)

  manage({
    method: 'GET',
    path: `${BASE}/models`,
    summary: 'List the models that can be deployed.',
    needs: MODELS.read,
    query: page(MODEL_ORDERS),
    answer: z.object({ models: z.array(ModelJson), total_count: z.int() }),
    handle: async ({ query }) => {
      const wanted = query.name?.toLowerCase() ?? ''
      const models = sortModels(
        deployable().filter(
          (model) => fullName(model).toLowerCase().includes(wanted) && query.tags.every((tag) => tagsOf(model).includes(tag)),
        ),
        query.order_by,
      )
      return yes({ models: pageOf(models, query).map(modelToJson), total_count: models.length })
    },
  })

  const modelParams = z.object({ model_id: Uuid })
  manage({
    method: 'GET',
    path: `${BASE}/models/:model_id`,
    summary: 'Read one model.',
    needs: MODELS.read,
    params: modelParams,
    answer: ModelJson,
    handle: async ({ params: { model_id: id } }) => {
      const model = deployable().find((each) => each.id === id)
      return model === undefined ? no(notFound('Model', id)) : yes(modelToJson(model))
    },
  })

  manage({
    method: 'DELETE',
    path: `${BASE}/models/:model_id`,
    summary: "Delete a model that was imported; the catalogue's stay.",
    needs: MODELS.write,
    params: modelParams,
    handle: async ({ params: { model_id: id } }) =>
      no<Denial>(deployable().some((each) => each.id === id) ? forbidden(MODELS.write) : notFound('Model', id)),
  })

  manage({
    method: 'GET',
    path: `${BASE}/node-types`,
    summary: 'List the kinds of machines that deployments run on.',
    needs: NODE_TYPES.read,
    query: pageQuery({ max: 1_000, fallback: 1_000, orders: ['created_at_asc'], clamp: true }).extend({
      include_disabled_types: queryFlag.optional(),
    }),
    answer: z.object({ node_types: z.array(NodeTypeJson), total_count: z.int() }),
    handle: async ({ query }) =>
      yes({
        node_types: pageOf(nodeTypes, query).map(
          (node): z.infer<typeof NodeTypeJson> => ({
            name: node.name,
            stock_status: 'available',
            description: node.description,
            vcpus: node.vcpus,
            memory: node.memoryBytes,
            vram: node.vramBytes,
            disabled: false,
            beta: false,
            created_at: node.createdAt.toISOString(),
            updated_at: node.createdAt.toISOString(),
            gpus: node.gpus,
            region,
          }),
        ),
        total_count: nodeTypes.length,
      }),
  })

  manage({
    method: 'GET',
    path: `${BASE}/deployments`,
    summary: 'List deployments: there are none yet.',
    needs: DEPLOYMENTS.read,
    query: page(['created_at_desc', 'created_at_asc', 'name_asc', 'name_desc']),
    answer: z.object({ deployments: z.array(z.never()), total_count: z.int() }),
    handle: async () => yes({ deployments: [], total_count: 0 }),
  })

  // Terraform takes 404 for "gone" and 501 for "do not try again", so each says which of the two it is.
  const missing = (resource: 'deployment' | 'endpoint', id: string): Promise<Outcome<never, Denial>> =>
    Promise.resolve(no(notFound(resource, id)))
  const deployment = {
    summary: 'There are no deployments yet: always not found.',
    params: z.object({ deployment_id: Uuid }),
    answer: z.never(),
    handle: ({ params: { deployment_id: id } }: { params: { deployment_id: string } }) => missing('deployment', id),
  }
  const DEPLOYMENT = `${BASE}/deployments/:deployment_id`
  manage({ ...deployment, method: 'GET', path: DEPLOYMENT, needs: DEPLOYMENTS.read })
  manage({ ...deployment, method: 'GET', path: `${DEPLOYMENT}/certificate`, needs: DEPLOYMENTS.read })
  manage({ ...deployment, method: 'PATCH', path: DEPLOYMENT, needs: DEPLOYMENTS.write })
  manage({ ...deployment, method: 'DELETE', path: DEPLOYMENT, needs: DEPLOYMENTS.write })
  for (const method of ['PATCH', 'DELETE'] as const) {
    manage({
      method,
      path: `${BASE}/endpoints/:endpoint_id`,
      summary: 'There are no endpoints yet: always not found.',
      needs: ENDPOINTS.write,
      params: z.object({ endpoint_id: Uuid }),
      answer: z.never(),
      handle: ({ params: { endpoint_id: id } }) => missing('endpoint', id),
    })
  }
  for (const { write } of [DEPLOYMENTS, ENDPOINTS, MODELS]) {
    manage({
      method: 'POST',
      path: `${BASE}/${write.resource}s`,
      summary: 'Not here yet.',
      needs: write,
      refuses: ['not_implemented'],
      handle: async () => no<Denial>({ type: 'not_implemented' }),
    })
  }
}
