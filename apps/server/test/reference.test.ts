import { randomUUID } from 'node:crypto'
import { toTemplate } from '@parvis/server/reference/document'
import { watchAnswers } from '@parvis/testkit/answers'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { Validator } from '@seriousme/openapi-schema-validator'
import fc from 'fast-check'
import Fastify from 'fastify'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { z } from 'zod'
import { fromSchema, type Schema } from './from-schema.ts'

// The OpenAPI document and the server say the same.

type Operation = {
  summary: string
  description: string
  security: unknown[]
  parameters: { name: string; in: string }[]
  requestBody?: { content: Record<string, { schema: object }> }
  responses: Record<string, { content?: Record<string, { schema: Record<string, unknown> }> }>
}
type Document = { openapi: string; paths: Record<string, Record<string, Operation>> }

let database: TestDatabase
let house: TestHouse
let document: Document

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  document = (await house.call('/parvis/v1/openapi.json', { key: null })).json() as Document
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const operations = () =>
  Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ what: `${method.toUpperCase()} ${path}`, path, method, operation })),
  )

test('the document is valid OpenAPI 3.1, and is served without a key as what it is', async () => {
  const answer = await house.call('/parvis/v1/openapi.json', { key: null })
  expect(answer.headers.get('content-type')).toBe('application/json')
  const checked = await new Validator().validate(answer.json() as Record<string, unknown>)
  expect(checked.errors ?? []).toEqual([])
  expect(checked).toMatchObject({ valid: true })
  expect(document.openapi).toBe('3.1.0')
})

test('every route that is registered is in the document, and nothing else is', () => {
  // Fastify answers HEAD wherever there is GET, and CORS answers OPTIONS.
  const registered = house.registered
    .filter(({ method }) => method !== 'HEAD' && method !== 'OPTIONS')
    .map(({ method, path }) => `${method} ${toTemplate(path)}`)
  const told = operations().map(({ what }) => what)
  // Pages of the identity provider are there only where one is set.
  const optional = new Set(['GET /oidc/start', 'GET /oidc/callback'])
  const missing = registered.filter((what) => !told.includes(what))
  expect(missing, 'registered and not told: use `manage`, or describe it in reference/elsewhere.ts').toEqual([])
  expect(told.filter((what) => !registered.includes(what) && !optional.has(what))).toEqual([])
})

test('every operation says in a sentence what it does, what it needs, and how it answers; ids are unique', () => {
  const ids = operations().map(({ operation }) => (operation as unknown as { operationId: string }).operationId)
  expect(ids.filter((id, at) => ids.indexOf(id) !== at)).toEqual([])
  for (const { what, path, operation } of operations()) {
    expect([what, operation.summary]).toEqual([what, expect.stringMatching(/^\S.*[^.\s]\.$/)])
    expect([what, operation.description]).toEqual([what, expect.stringMatching(/^Needs /)])
    expect([what, Object.keys(operation.responses).length > 0]).toEqual([what, true])
    const named = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1])
    expect([what, operation.parameters.filter((each) => each.in === 'path').map(({ name }) => name)]).toEqual([what, named])
  }
})

test('every answer of the management API has a schema that says something', () => {
  const silent = house
    .routes()
    .filter(
      ({ answer, produces, method, refuses }) =>
        answer === undefined && produces === undefined && method === 'GET' && !refuses?.includes('not_implemented'),
    )
    .map(({ method, path }) => `${method} ${path}: give the route an answer schema, or say what it produces`)
  expect(silent).toEqual([])
  const vague = operations().flatMap(({ what, operation }) =>
    Object.entries(operation.responses).flatMap(([status, { content = {} }]) =>
      Object.entries(content)
        .filter(([, { schema }]) => Object.keys(schema).length === 0)
        .map(([type]) => `${what}: ${status} ${type} says nothing`),
    ),
  )
  expect(vague).toEqual([])
})

test('the page tells of every operation, loads nothing, runs nothing, and cannot be framed', async () => {
  const answer = await house.call('/parvis/v1/reference', { key: null })
  expect(answer.headers.get('content-type')).toBe('text/html; charset=utf-8')
  const policy = answer.headers.get('content-security-policy') ?? ''
  expect(policy).toMatch(/^default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]+'; /)
  expect(policy).toContain("frame-ancestors 'none'")
  expect(answer.text).not.toMatch(/<script|\son\w+=|javascript:|<link|<img|https?:\/\//i)
  for (const { path } of operations()) expect(answer.text).toContain(`<code>${path}</code>`)
})

test('what a caller sends that is no key is told nothing more than the document has', async () => {
  const key = randomUUID()
  expect((await house.call('/parvis/v1/openapi.json', { key })).text).toBe(
    (await house.call('/parvis/v1/openapi.json', { key: null })).text,
  )
})

test('an answer that is not in the document, or not as it says, fails the test that gets it', async () => {
  const impostor = Fastify()
  const answers: Record<string, [status: number, body: unknown]> = {
    '/account/v3/projects': [200, { projects: [], total_count: 0 }],
    '/billing/v2/budgets': [200, { budgets: [], total_count: 0, colour: 'red' }],
    '/iam/v1alpha1/groups': [200, { groups: [], total_count: '0' }],
    '/iam/v1alpha1/users': [404, { message: 'no', type: 'not_found' }],
    '/iam/v1alpha1/policies': [206, {}],
  }
  for (const [path, [status, body]] of Object.entries(answers)) {
    impostor.get(path, (_request, reply) =>
      reply
        .code(status)
        .header('content-type', 'application/json')
        .send(Buffer.from(JSON.stringify(body))),
    )
  }
  const url = await impostor.listen({ port: 0, host: '127.0.0.1' })
  try {
    watchAnswers(url, () => house.reference.toDocument(true))
    expect((await fetch(`${url}/account/v3/projects`)).status).toBe(200)
    await expect(fetch(`${url}/billing/v2/budgets`)).rejects.toThrow('{"additionalProperty":"colour"}')
    await expect(fetch(`${url}/iam/v1alpha1/groups`)).rejects.toThrow('/total_count must be integer')
    await expect(fetch(`${url}/iam/v1alpha1/users`)).rejects.toThrow("must have required property 'resource'")
    await expect(fetch(`${url}/iam/v1alpha1/policies`)).rejects.toThrow('GET /iam/v1alpha1/policies: 206 is not in the document')
  } finally {
    await impostor.close()
  }
})

/** What is wrong with a value beside what no JSON Schema can say: whether things fit together. */
const faultsOf = (schema: z.ZodType, value: unknown): string[] =>
  (schema.safeParse(value).error?.issues ?? [])
    .filter(({ code }) => code !== 'custom')
    .map(({ path, message }) => `${path.join('.')}: ${message}`)

test('whatever the document allows is read by the server: bodies, parameters, parts of paths', () => {
  const wrong: string[] = []
  for (const { method, path, body, query, params } of house.routes()) {
    const operation = document.paths[toTemplate(path)]?.[method.toLowerCase()]
    if (operation === undefined) continue
    const parameters = (where: string): Schema => {
      const found = operation.parameters.filter((each) => each.in === where) as unknown as {
        name: string
        required: boolean
        schema: Schema
      }[]
      return {
        type: 'object',
        properties: Object.fromEntries(found.map(({ name, schema }) => [name, schema])),
        required: found.filter(({ required }) => required).map(({ name }) => name),
      }
    }
    const parts: [z.ZodType | undefined, Schema | undefined][] = [
      [body, operation.requestBody?.content['application/json']?.schema as Schema | undefined],
      [query, parameters('query')],
      [params, parameters('path')],
    ]
    for (const [schema, told] of parts) {
      if (schema === undefined || told === undefined) continue
      for (const value of fc.sample(fromSchema(told), { numRuns: 10, seed: 6 })) {
        const faults = faultsOf(schema, value)
        if (faults.length > 0) wrong.push(`${method} ${path} ${JSON.stringify(value)}: ${faults.join(', ')}`)
      }
    }
  }
  expect(wrong).toEqual([])
})

test('an example of every operation reaches its handler', async () => {
  const wrong: string[] = []
  for (const { method, path, body, query } of house.routes()) {
    const operation = document.paths[toTemplate(path)]?.[method.toLowerCase()]
    const [sent] =
      body === undefined
        ? []
        : fc.sample(fromSchema(operation?.requestBody?.content['application/json']?.schema as Schema), { numRuns: 1, seed: 7 })
    const needed = ((operation?.parameters ?? []) as unknown as { name: string; in: string; required: boolean; schema: Schema }[])
      .filter((each) => each.in === 'query' && each.required)
      .map(({ name, schema }) => `${name}=${encodeURIComponent(String(fc.sample(fromSchema(schema), { numRuns: 1, seed: 8 })[0]))}`)
    const concrete = path
      .replaceAll(':region', 'fr-par')
      .replaceAll(':tier', 'none')
      .replaceAll(/:\w+/g, () => randomUUID())
      .replace('*', 'some')
    const answer = await house.call(`${concrete}${needed.length === 0 ? '' : `?${needed.join('&')}`}`, { method, body: sent })
    const told = answer.text === '' ? undefined : (answer.json as () => { resource?: string; details?: { argument_name: string }[] })
    const what = `${method} ${path}: ${answer.status} ${answer.text.slice(0, 200)}`
    // The guard lets the owner in everywhere, so that 403 is a handler's word.
    if ([401, 405].includes(answer.status) && !path.startsWith('/parvis/v1/sign')) wrong.push(what)
    if (answer.status >= 500 && answer.status !== 501 && answer.status !== 503) wrong.push(what)
    if (answer.status === 404 && told?.().resource === 'route') wrong.push(what)
    // What the handler says about an argument is another thing than what the schemas say, which the test above is about.
    if (answer.status === 400 && body === undefined && query === undefined) wrong.push(what)
  }
  expect(wrong).toEqual([])
}, 60_000)
