import { createHash } from 'node:crypto'

/** A kind of object, in the singular, and what is done to it: `deployment:write`. `serverless:use` is to call models. */
export type Right = `${string}:${'read' | 'write' | 'use'}`

export type PermissionSet = {
  readonly name: string
  readonly scopeType: 'projects' | 'organization'
  readonly description: string
  readonly category: string
  readonly rights: readonly Right[]
}

const read = (...resources: readonly string[]): Right[] => resources.map((resource): Right => `${resource}:read`)
const full = (...resources: readonly string[]): Right[] =>
  resources.flatMap((resource): Right[] => [`${resource}:read`, `${resource}:write`])

// Who may do anything in a project may know what it is called.
const PROJECT = read('project')
const DEDICATED = ['deployment', 'model', 'endpoint', 'node_type'] as const
const SERVERLESS = ['batch', 'file', 'model', 'usage', 'usage_share'] as const
const COCKPIT = ['cockpit', 'usage'] as const
const OBJECTS = ['object'] as const
const PRODUCTS = [...SERVERLESS, ...DEDICATED, ...COCKPIT, ...OBJECTS] as const
const CALL_SERVERLESS = 'serverless:use'
const CALL_DEDICATED = 'endpoint:use'

const IAM = ['application', 'user', 'group', 'policy', 'api_key', 'log'] as const
const BILLING = ['consumption', 'invoice', 'discount', 'tax', 'budget', 'usage'] as const
const ORGANIZATION = ['organization', 'limit', 'project', ...IAM, ...BILLING] as const

type Row = readonly [name: string, description: string, rights: readonly Right[]]

/** control-plane.md 5.5 and serverless-platform.md 5.2. Old and new names stand side by side and both count (control-plane.md 4.5). */
const PROJECT_SETS: Record<string, readonly Row[]> = {
  AI: [
    ['GenerativeApisModelAccess', 'Use models', [CALL_SERVERLESS, CALL_DEDICATED, ...read(...DEDICATED), ...PROJECT]],
    [
      'GenerativeApisFullAccess',
      'Everything in Generative APIs, dedicated deployments included',
      [CALL_SERVERLESS, CALL_DEDICATED, ...full(...SERVERLESS, ...DEDICATED), ...PROJECT],
    ],
    ['InferenceReadOnly', 'Read dedicated deployments', [CALL_DEDICATED, ...read(...DEDICATED), ...PROJECT]],
    ['InferenceFullAccess', 'Create, read, change and delete dedicated deployments', [CALL_DEDICATED, ...full(...DEDICATED), ...PROJECT]],
  ],
  Observability: [
    ['ObservabilityReadOnly', 'Read Cockpit', [...read(...COCKPIT), ...PROJECT]],
    ['ObservabilityGrafanaEditor', 'Read Cockpit and edit its dashboards', [...read(...COCKPIT), ...PROJECT]],
    ['ObservabilityFullAccess', 'Everything in Cockpit', [...full(...COCKPIT), ...PROJECT]],
  ],
  'All products': [
    ['AllProductsReadOnly', 'Read every product', [CALL_DEDICATED, ...read(...PRODUCTS), ...PROJECT]],
    ['AllProductsFullAccess', 'Everything in every product', [CALL_SERVERLESS, CALL_DEDICATED, ...full(...PRODUCTS), ...PROJECT]],
  ],
  Storage: [
    ['ObjectStorageReadOnly', 'Read buckets and objects', read(...OBJECTS)],
    ['ObjectStorageFullAccess', 'Everything in Object Storage', full(...OBJECTS)],
    ['ObjectStorageObjectsRead', 'Read objects', read(...OBJECTS)],
    ['ObjectStorageObjectsWrite', 'Write objects', ['object:write']],
    ['ObjectStorageObjectsDelete', 'Delete objects', ['object:write']],
    ['ObjectStorageBucketsRead', 'Read buckets', []],
    ['ObjectStorageBucketsWrite', 'Write buckets', []],
    ['ObjectStorageBucketsDelete', 'Delete buckets', []],
  ],
  // Kept so that policies made for the vendor apply; there is nothing here that they open.
  'Other products': [
    ...['PrivateNetworks', 'IPAM', 'SecretManager', 'VPC'].flatMap((product): Row[] => [
      [`${product}ReadOnly`, 'No effect here', []],
      [`${product}FullAccess`, 'No effect here', []],
    ]),
    ['SecretManagerSecretAccess', 'No effect here', []],
    ['SecretManagerSecretCreate', 'No effect here', []],
    ['SecretManagerSecretWrite', 'No effect here', []],
    ['SecretManagerSecretDelete', 'No effect here', []],
  ],
}

const ORGANIZATION_SETS: Record<string, readonly Row[]> = {
  Organization: [
    ['ProjectManager', 'Everything about projects', full('project')],
    ['ProjectReadOnly', 'Read projects', read('project')],
    ['OrganizationManager', 'Everything about the organization: identity, bills and limits included', full(...ORGANIZATION)],
    ['OrganizationReadOnly', 'Read everything about the organization', read(...ORGANIZATION)],
  ],
  IAM: [
    ['IAMManager', 'Everything about identity and access', full(...IAM, 'organization')],
    ['IAMReadOnly', 'Read identity and access', read(...IAM, 'organization')],
    ...(['Application', 'User', 'Group', 'Policy'] as const).flatMap((part): Row[] => [
      [`IAM${part}Manager`, `Everything about what is in IAM of the kind ${part.toLowerCase()}`, full(part.toLowerCase())],
      [`IAM${part}ReadOnly`, `Read what is in IAM of the kind ${part.toLowerCase()}`, read(part.toLowerCase())],
    ]),
  ],
  // Ours: they open something in the operator's organization only.
  Installation: [
    ['InstallationManager', 'Everything about the installation: organizations, models, prices, engines, tiers', full('installation')],
    ['InstallationReadOnly', 'Read everything about the installation, its metrics and its audit included', read('installation')],
  ],
  Billing: [
    ['BillingManager', 'Everything about bills', full(...BILLING)],
    ['BillingReadOnly', 'Read bills and consumption', read(...BILLING)],
  ],
  'Other products': [
    ['AuditTrailReadOnly', 'No effect here', []],
    ['AuditTrailFullAccess', 'No effect here', []],
    ['SupportTicketReadOnly', 'No effect here', []],
    ['SupportTicketManager', 'No effect here', []],
    ['EnvironmentalImpactReadOnly', 'No effect here', []],
  ],
}

const toSets = (scopeType: PermissionSet['scopeType'], table: Record<string, readonly Row[]>): PermissionSet[] =>
  Object.entries(table).flatMap(([category, rows]) =>
    rows.map(([name, description, rights]) => ({ name, scopeType, description, category, rights })),
  )

/** All of them, by name. */
export const PERMISSION_SETS: ReadonlyMap<string, PermissionSet> = new Map(
  [...toSets('projects', PROJECT_SETS), ...toSets('organization', ORGANIZATION_SETS)].map((set) => [set.name, set]),
)

/** The same in every installation: a UUID of version 8 (RFC 9562 §5.8) from the name. */
export const permissionSetId = (name: string): string => {
  const hex = createHash('sha256').update(`parvis permission set ${name}`).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}
