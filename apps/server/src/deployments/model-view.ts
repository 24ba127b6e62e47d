import { basename } from 'node:path'
import type { Model } from '../catalog/model.ts'
import type { NodeType } from './node-types.ts'

// The models of the catalogue as inference v1 shows them (control-plane.md 4.1).

/** Every node type lists all of them, allowed or not. */
const BIT_WIDTHS = [4, 8, 16, 32] as const
type Bits = (typeof BIT_WIDTHS)[number]

/** How a file says that its numbers are smaller than they were: q4_k_m, iq3_xs, tq1_0, mxfp4, f16, bf16, f32. */
const PRECISION = /(?:^|[-._])((?:iq|q|tq)\d[a-z0-9_]*|mxfp4|fp4|fp8|int4|int8|bf16|fp?16|fp?32)(?=[-._]|$)/i

/** As it stands in the file's name; the last one counts, since some carry the precision they were made from. */
export const precisionOf = (path: string): string | undefined => {
  const words = basename(path).replace(/\.gguf$/i, '')
  const found = [...words.matchAll(new RegExp(PRECISION, 'gi'))].at(-1)?.[1]
  return found?.toLowerCase()
}

/** The width that the precision needs, of those that clients know. What says nothing has sixteen, as most weights do. */
export const bitsOf = (precision: string | undefined): Bits => {
  const said = Number(/\d+/.exec(precision ?? '')?.[0] ?? 16)
  return BIT_WIDTHS.find((bits) => said <= bits) ?? 32
}

const TAGS: Record<Model['type'], readonly string[]> = {
  chat: ['instruct', 'chat'],
  embedding: ['embedding'],
  rerank: ['rerank'],
  audio: ['audio'],
  ocr: ['vision'],
}

const slug = (text: string): string => text.toLowerCase().replaceAll(/[^a-z0-9-_.]+/g, '-')

/** What can be put on a node: models whose weights are here. */
export type DeployableModel = Model & { readonly weights: NonNullable<Model['weights']> }

export const isDeployable = (model: Model): model is DeployableModel => model.weights !== null

/** `provider/model:precision` (dedicated-deployment.md 5.1). */
export const fullName = (model: DeployableModel): string => {
  const precision = precisionOf(model.weights.path)
  return `${slug(model.ownedBy)}/${model.name}${precision === undefined ? '' : `:${precision}`}`
}

export const tagsOf = (model: Model): readonly string[] => [...TAGS[model.type], ...(model.features.vision ? ['vision'] : [])]

/**
 * Where it runs, and with how much context. Weights run as they are, so of the widths only their own is allowed, and only where they
 * fit into the memory.
 */
export const supportOf = (model: DeployableModel, nodeTypes: readonly NodeType[]) => {
  const native = bitsOf(precisionOf(model.weights.path))
  return nodeTypes.map((node) => ({
    node_type_name: node.name,
    quantizations: BIT_WIDTHS.map((bits) => {
      const allowed = bits === native && model.weights.bytes <= node.memoryBytes
      return { quantization_bits: bits, allowed, max_context_size: allowed ? model.contextTokens : 0 }
    }),
  }))
}
