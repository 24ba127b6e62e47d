import type { z } from 'zod'
import { type Denial, statusOf } from '../kit/denial.ts'
import type { Described } from '../kit/described.ts'
import type { KnownRoute, Needs } from '../kit/management.ts'
import { DENIAL_TYPES, denialSchema } from './denials.ts'
import { type JsonSchema, toJsonSchema } from './json-schema.ts'

export type Content = Readonly<Record<string, { readonly schema: JsonSchema }>>
export type Answer = { readonly description: string; readonly content?: Content; readonly headers?: JsonSchema }
export type Parameter = {
  readonly name: string
  readonly in: 'path' | 'query' | 'header'
  readonly required: boolean
  readonly description?: string
  readonly schema: JsonSchema
}
export type Operation = {
  readonly operationId: string
  readonly tags: readonly string[]
  readonly summary: string
  readonly description?: string
  readonly security: readonly Readonly<Record<string, readonly string[]>>[]
  /** What the caller needs a right for; ours, since OpenAPI has no word for it. */
  readonly 'x-permission'?: { readonly resource: string; readonly action: string; readonly scope: string }
  readonly parameters: readonly Parameter[]
  readonly requestBody?: { readonly required: boolean; readonly content: Content }
  readonly responses: Readonly<Record<string, Answer>>
}
export type Document = {
  readonly openapi: '3.1.0'
  readonly info: { readonly title: string; readonly version: string; readonly description: string; readonly license: object }
  readonly servers: readonly { readonly url: string }[]
  readonly tags: readonly { readonly name: string }[]
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components: { readonly securitySchemes: JsonSchema; readonly schemas: Readonly<Record<string, JsonSchema>> }
}

const JSON_TYPE = 'application/json'

/** `/a/:id` becomes `/a/{id}`, and what a wildcard stands for is called `path`. */
export const toTemplate = (path: string): string => path.replaceAll(/:(\w+)/g, '{$1}').replace(/\*$/, '{path}')
const namesIn = (path: string): string[] => [...toTemplate(path).matchAll(/\{(\w+)\}/g)].map((match) => match[1] ?? '')
const toId = (method: string, path: string): string =>
  `${method.toLowerCase()}_${path.replaceAll(/[^A-Za-z0-9]+/g, '_').replaceAll(/^_|_$/g, '')}${path.endsWith('*') ? '_any' : ''}`

const propertiesOf = (schema: z.ZodType | undefined): { name: string; required: boolean; schema: JsonSchema }[] => {
  if (schema === undefined) return []
  const { properties = {}, required = [] } = toJsonSchema(schema, 'input') as {
    properties?: Record<string, JsonSchema>
    required?: string[]
  }
  // A list may be given once, several times or not at all, which its schema alone does not tell.
  const shape = 'shape' in schema.def ? (schema.def.shape as Record<string, z.ZodType>) : {}
  const isRequired = (name: string): boolean => required.includes(name) && shape[name]?.safeParse(undefined).success !== true
  return Object.entries(properties).map(([name, each]) => ({ name, required: isRequired(name), schema: each }))
}

/** The parts of a path that a route checks, and those that it only reads. */
const pathParameters = (path: string, schema: z.ZodType | undefined, said: Readonly<Record<string, string>> = {}): Parameter[] => {
  const known = new Map(propertiesOf(schema).map((each) => [each.name, each.schema]))
  return namesIn(path).map((name) => ({
    name,
    in: 'path',
    required: true,
    ...(said[name] === undefined ? {} : { description: said[name] }),
    schema: known.get(name) ?? { type: 'string' },
  }))
}

const GROUPS: readonly (readonly [prefix: string, name: string])[] = [
  ['/iam/', 'Identity and access'],
  ['/account/', 'Projects'],
  ['/billing/', 'Billing'],
  ['/cockpit/', 'Cockpit'],
  ['/inference/', 'Dedicated deployments'],
  ['/product-catalog/', 'Price list'],
  ['/parvis/', 'Parvis'],
]
const groupOf = ({ path, needs, refuses }: KnownRoute): string => {
  if (refuses?.includes('not_implemented') === true) return 'Not here'
  if (needs !== 'nobody' && needs.scope === 'installation') return 'Operator'
  return GROUPS.find(([prefix]) => path.startsWith(prefix))?.[1] ?? 'Others'
}

const sayNeeds = (needs: Needs | 'nobody'): string => {
  if (needs === 'nobody') return 'Needs no key.'
  const right = `\`${needs.resource}:${needs.action}\``
  switch (needs.scope) {
    case 'organization':
      return `Needs ${right} on the organization.`
    case 'project':
      return `Needs ${right} on the project. What one may not see is answered as what does not exist.`
    case 'self':
      return `Needs ${right} on the organization, but for what is one’s own.`
    case 'anywhere':
      return `Needs ${right} on any project.`
    case 'installation':
      return `Needs ${right} in the operator’s organization.`
  }
}

const changes = (method: string): boolean => method !== 'GET'

/** Which denials a route can answer with: those that its kind has, and those that it names itself. */
const denialsOf = ({ method, path, needs, params, query, body, refuses = [] }: KnownRoute): ReadonlySet<Denial['type']> =>
  new Set<Denial['type']>([
    'invalid_arguments',
    ...(needs === 'nobody' ? [] : (['denied_authentication', 'permissions_denied'] as const)),
    'too_many_requests',
    ...(params === undefined && query === undefined && body === undefined && namesIn(path).length === 0 ? [] : (['not_found'] as const)),
    ...(changes(method)
      ? (['already_exists', 'conflict', 'transient_state', 'precondition_failed', 'quotas_exceeded', 'locked'] as const)
      : []),
    ...refuses,
  ])

const STATUS_PHRASES: Readonly<Record<number, string>> = {
  400: 'Something in the request breaks a rule; it is named.',
  401: 'There is no key, or it is not valid any more.',
  403: 'A permission is missing, or a quota is used up.',
  404: 'It does not exist, or may not be seen.',
  405: 'The path has no such method.',
  409: 'It is there already, or is being changed.',
  410: 'It has expired.',
  412: 'Something else has to be done first.',
  423: 'It is locked.',
  429: 'Too many requests; `retry-after` says when to come back.',
  501: 'Not here.',
  503: 'There is none left at the moment.',
}

const refTo = (name: string): JsonSchema => ({ $ref: `#/components/schemas/${name}` })

const denialAnswers = (types: ReadonlySet<Denial['type']>): Record<string, Answer> => {
  return Object.fromEntries(
    [...groupByStatus(types)].map(([status, each]) => [
      String(status),
      {
        description: STATUS_PHRASES[status] ?? 'Refused.',
        content: { [JSON_TYPE]: { schema: each.length === 1 ? refTo(each[0] ?? 'error') : { anyOf: each.map(refTo) } } },
      },
    ]),
  )
}

const groupByStatus = (types: ReadonlySet<Denial['type']>): Map<number, Denial['type'][]> => {
  const found = new Map<number, Denial['type'][]>()
  for (const type of types) found.set(statusOf(type), [...(found.get(statusOf(type)) ?? []), type])
  return found
}

const OTHER_ERRORS: Answer = {
  description: 'Any other failure: a body that did not arrive in time (408), a fault of ours (500).',
  content: { [JSON_TYPE]: { schema: refTo('error') } },
}

const FILE: JsonSchema = {
  type: 'object',
  properties: { name: { type: 'string' }, content_type: { type: 'string' }, content: { type: 'string', contentEncoding: 'base64' } },
  required: ['name', 'content_type', 'content'],
}

const successOf = ({ answer, produces, refuses, method }: KnownRoute, exact: boolean): Record<string, Answer> => {
  if (answer?.def.type === 'never' || (refuses?.includes('not_implemented') === true && answer === undefined)) return {}
  if (produces !== undefined && 'text' in produces)
    return { '200': { description: 'Text.', content: { [produces.text]: { schema: { type: 'string' } } } } }
  if (produces !== undefined) {
    const raw = produces.file.map((type) => [type, { schema: { type: 'string', contentEncoding: 'binary' } }] as const)
    return {
      '200': {
        description: 'The file: its bytes with `dl=1`, otherwise base64 in JSON.',
        content: { [JSON_TYPE]: { schema: FILE }, ...Object.fromEntries(raw) },
      },
    }
  }
  if (answer === undefined) return { '204': { description: 'Done; there is nothing to say.' } }
  const description = method === 'GET' ? 'What was asked for.' : 'What it is now.'
  return { '200': { description, content: { [JSON_TYPE]: { schema: toJsonSchema(answer, 'output', exact) } } } }
}

const routeToOperation = (route: KnownRoute, exact: boolean): Operation => {
  const { method, path, summary, needs, params, query, body } = route
  const file = route.produces !== undefined && 'file' in route.produces
  const parameters: Parameter[] = [
    ...pathParameters(path, params),
    ...propertiesOf(query).map(({ name, required, schema }): Parameter => ({ name, in: 'query', required, schema })),
  ]
  if (file && !parameters.some(({ name }) => name === 'dl'))
    parameters.push({ name: 'dl', in: 'query', required: false, description: '1 for the bytes themselves.', schema: { type: 'string' } })
  const schema = body === undefined ? undefined : toJsonSchema(body, 'input')
  const required = Array.isArray(schema?.['required']) && schema['required'].length > 0
  return {
    operationId: toId(method, path),
    tags: [groupOf(route)],
    summary,
    description: sayNeeds(needs),
    security: needs === 'nobody' ? [] : [{ token: [] }, { bearer: [] }, { session: [] }],
    ...(needs === 'nobody' ? {} : { 'x-permission': needs }),
    parameters,
    ...(schema === undefined ? {} : { requestBody: { required, content: { [JSON_TYPE]: { schema } } } }),
    responses: { ...successOf(route, exact), ...denialAnswers(denialsOf(route)), default: OTHER_ERRORS },
  }
}

const LIMIT_HEADERS = Object.fromEntries(
  ['limit', 'remaining', 'reset'].flatMap((what) =>
    ['requests', 'tokens'].map((of) => [
      `x-ratelimit-${what}-${of}`,
      { description: `The ${what} of ${of} by the minute.`, schema: { type: 'string' } },
    ]),
  ),
)

/** What is sent and answered in several places is written once: a schema under the name of where it was met first. */
const openShelf = (exact: boolean) => {
  const names = new Map<z.ZodType, string>()
  const schemas: Record<string, JsonSchema> = {}
  const put = (schema: z.ZodType, io: 'input' | 'output', name: string): JsonSchema => {
    const known = names.get(schema)
    if (known !== undefined) return refTo(known)
    names.set(schema, name)
    schemas[name] = toJsonSchema(schema, io, exact)
    return refTo(name)
  }
  return { put, schemas }
}

const describedToOperation = (described: Described, shelf: ReturnType<typeof openShelf>): Operation => {
  const { method, path, group, summary, key, params, headers = {}, body, answers } = described
  const id = toId(method, path)
  const responses = answers.map(({ status, what, content }): [string, Answer] => [
    String(status),
    {
      description: what,
      ...(content === undefined
        ? {}
        : {
            content: Object.fromEntries(
              Object.entries(content).map(([type, each]) => [
                type,
                { schema: shelf.put(each, 'output', `${id}_${status}_${type.replaceAll(/\W+/g, '_')}`) },
              ]),
            ),
          }),
      ...(key === 'inference' && method === 'POST' && status < 500 ? { headers: LIMIT_HEADERS } : {}),
    },
  ])
  return {
    operationId: id,
    tags: [group],
    summary,
    description: key === 'nobody' ? 'Needs no key.' : 'Needs a permission set that lets models be used, on the project.',
    security: key === 'nobody' ? [] : [{ bearer: [] }],
    parameters: [
      ...pathParameters(path, undefined, params),
      ...Object.entries(headers).map(
        ([name, description]): Parameter => ({ name, in: 'header', required: false, description, schema: { type: 'string' } }),
      ),
    ],
    ...(body === undefined
      ? {}
      : { requestBody: { required: true, content: { [body.contentType]: { schema: shelf.put(body.schema, 'input', `${id}_body`) } } } }),
    responses: Object.fromEntries(responses),
  }
}

const INTRODUCTION = [
  'Everything that this server answers. Management calls take the secret key of an API key as `X-Auth-Token` or as a bearer, inference calls as a bearer.',
  'Lists have pages: `page` from 1, `page_size`, `order_by`; `total_count` counts all that match. Under `/parvis/` an unknown field or parameter is refused by its name; elsewhere it is ignored.',
  'Each answer has an `x-request-id`, which names the request in the log.',
].join('\n\n')

/** The OpenAPI document of all that the server answers. `exact`: with the fields of answers as complete lists, for our own checks. */
export const makeDocument = (
  parts: { readonly routes: readonly KnownRoute[]; readonly others: readonly Described[]; readonly version: string },
  exact = false,
): Document => {
  const shelf = openShelf(exact)
  const paths: Record<string, Record<string, Operation>> = {}
  const put = (method: string, path: string, operation: Operation): void => {
    const template = toTemplate(path)
    paths[template] = { ...paths[template], [method.toLowerCase()]: operation }
  }
  for (const described of parts.others) put(described.method, described.path, describedToOperation(described, shelf))
  for (const route of parts.routes) put(route.method, route.path, routeToOperation(route, exact))
  const operations = Object.values(paths).flatMap((methods) => Object.values(methods))
  return {
    openapi: '3.1.0',
    info: { title: 'Parvis', version: parts.version, description: INTRODUCTION, license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } },
    servers: [{ url: '/' }],
    tags: [...new Set(operations.flatMap(({ tags }) => tags))].map((name) => ({ name })),
    paths,
    components: {
      securitySchemes: {
        token: { type: 'apiKey', in: 'header', name: 'X-Auth-Token', description: 'The secret key of an API key.' },
        bearer: { type: 'http', scheme: 'bearer', description: 'The secret key of an API key.' },
        session: { type: 'apiKey', in: 'header', name: 'X-Session-Token', description: 'The token of somebody who has signed in.' },
      },
      schemas: {
        ...Object.fromEntries(DENIAL_TYPES.map((type) => [type, denialSchema(type)])),
        ...shelf.schemas,
        error: { type: 'object', properties: { message: { type: 'string' }, type: { type: 'string' } }, required: ['message'] },
      },
    },
  }
}
