import { randomUUID } from 'node:crypto'
import { toTemplate } from '@parvis/server/reference/document'
import { watchAnswers } from '@parvis/testkit/answers'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { Validator } from '@seriousme/openapi-schema-validator'
import Fastify from 'fastify'
import { afterAll, beforeAll, expect, test } from 'vitest'

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
