import type { OrganizationId } from '../kit/ids.ts'
import type { Maxima } from '../kit/maxima.ts'
import { ANY_MODEL, type Policy } from './policy.ts'

type Value = { readonly limit: number } | { readonly unlimited: true }

/** As control-plane.md 5.8 shows it: the value at the top level too, as older clients read it. */
type Quotum = Value & {
  readonly name: string
  readonly pretty_name: string
  readonly unit: string
  readonly description: string
  readonly locality_type: 'global'
  readonly limits: readonly (Value & { readonly global: true })[]
}

const quotum = (name: string, prettyName: string, unit: string, limit: number | null): Quotum => {
  const value: Value = limit === null ? { unlimited: true } : { limit }
  return { name, ...value, pretty_name: prettyName, unit, description: '', locality_type: 'global', limits: [{ global: true, ...value }] }
}

/** The same in both tiers (serverless-platform.md 4.5, control-plane.md 5.8); how many there may be is the installation's to say. */
const COUNTED: readonly (readonly [keyof Maxima, string, string])[] = [
  ['IamApiKeys', 'API keys', 'api key'],
  ['IamApplications', 'Applications', 'application'],
  ['IamGroups', 'Groups', 'group'],
  ['IamPolicies', 'Policies', 'policy'],
  ['IamUsers', 'Users', 'user'],
  ['AccountProjects', 'Projects', 'project'],
]

const FIXED: readonly (readonly [string, string, string, number])[] = [
  ['InferenceH100Nodes', 'H100 nodes', 'node', 3],
  ['InferenceL4Nodes', 'L4 nodes', 'node', 5],
  ['GenerativeApisBatchRequests', 'Requests per batch file', 'request', 50_000],
  ['GenerativeApisBatchFileMegabytes', 'Size of a batch file', 'MB', 200],
]

const PER_MODEL = [
  ['requests_per_minute', 'RequestsPerMinute', 'requests per minute', 'request'],
  ['tokens_per_minute', 'TokensPerMinute', 'tokens per minute', 'token'],
  ['audio_seconds_per_minute', 'AudioSecondsPerMinute', 'seconds of audio per minute', 'second'],
] as const

/** Everything an organization is limited in, as its quotas. Names are ours to choose: a model's end in its own. */
export const toQuota = (
  policy: Policy,
  maxima: Maxima,
  organizationId: OrganizationId,
  models: readonly { readonly name: string }[],
): Quotum[] => {
  const all = policy.limits(organizationId, ANY_MODEL)
  return [
    ...COUNTED.map(([name, prettyName, unit]) => quotum(name, prettyName, unit, maxima[name])),
    ...FIXED.map(([name, prettyName, unit, limit]) => quotum(name, prettyName, unit, limit)),
    quotum('GenerativeApisConcurrentRequests', 'Concurrent requests over all models', 'request', all.concurrent_requests),
    quotum('GenerativeApisConcurrentBatches', 'Concurrent batches', 'batch', all.concurrent_batches),
    ...models.flatMap(({ name: model }) => {
      const limits = policy.limits(organizationId, model)
      return PER_MODEL.map(([name, quotumName, pretty, unit]) =>
        quotum(`GenerativeApis${quotumName}:${model}`, `${model}: ${pretty}`, unit, limits[name]),
      )
    }),
  ]
}
