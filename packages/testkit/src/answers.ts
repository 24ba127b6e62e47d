import type { Document, Operation } from '@parvis/server/reference/document'
import { Ajv2020 } from 'ajv/dist/2020.js'
import * as formats from 'ajv-formats'

type Check = (method: string, path: string, response: Response) => Promise<void>

const addFormats = formats.default as unknown as (ajv: Ajv2020) => void
const watched = new Map<string, { readonly check: Check; readonly inference: boolean }>()
let isWatching = false

/** What the data plane answers may be held back by a test; looking at it would disturb the test, unless it says otherwise. */
const INFERENCE = /^\/(?:[^/]+\/)?v1\//

/**
 * From here on every answer that this process fetches from the house is held against the document of the house: its status, its content type
 * and its fields. What does not agree fails the call, and so the test.
 */
export const watchAnswers = (
  url: string,
  toDocument: () => Document,
  { inference = false }: { inference?: boolean | undefined } = {},
): void => {
  watched.set(new URL(url).origin, { check: openCheck(toDocument), inference })
  if (isWatching) return
  isWatching = true
  const real = globalThis.fetch
  globalThis.fetch = async (input, init) => {
    const response = await real(input, init)
    const asked = typeof input === 'string' ? new URL(input) : input instanceof URL ? input : new URL(input.url)
    const method = init?.method ?? (typeof input === 'object' && 'method' in input ? input.method : 'GET')
    const known = watched.get(asked.origin)
    const isLookedAt = !INFERENCE.test(asked.pathname) || (known?.inference === true && isWhole(response))
    if (isLookedAt) await known?.check(method.toUpperCase(), asked.pathname, response)
    return response
  }
}

const isWhole = (response: Response): boolean => response.headers.get('content-type')?.startsWith('application/json') === true

const openCheck = (toDocument: () => Document): Check => {
  let made: { document: Document; find(method: string, path: string): { what: string; operation: Operation } | undefined } | undefined
  const ajv = new Ajv2020({ strict: false, allErrors: true })
  addFormats(ajv)
  const compiled = new Map<object, ReturnType<typeof ajv.compile>>()

  const know = () => {
    const document = toDocument()
    const known = Object.entries(document.paths)
      .map(([path, methods]) => ({
        path,
        methods,
        pattern: new RegExp(
          `^${path
            .replaceAll(/[.*+?^$()|[\]\\]/g, '\\$&')
            .replaceAll(/\{path\}$/g, '.+')
            .replaceAll(/\{\w+\}/g, '[^/]+')}$`,
        ),
      }))
      // As the router does: what is written out comes before what may be anything.
      .sort((one, other) => one.path.split('{').length - other.path.split('{').length)
    return {
      document,
      find: (method: string, path: string) => {
        const found = known.find(({ pattern, methods }) => pattern.test(path) && methods[method.toLowerCase()] !== undefined)
        const operation = found?.methods[method.toLowerCase()]
        return operation === undefined ? undefined : { what: `${method} ${found?.path}`, operation }
      },
    }
  }

  return async (method, path, response) => {
    made ??= know()
    const found = made.find(method, path.replaceAll(/\/+/g, '/'))
    // Not of ours, or a path that nobody serves.
    if (found === undefined) return
    const { what, operation } = found
    const { status } = response
    const fail = (why: string): never => {
      throw new Error(`The document and the server do not agree about ${what}: ${status} ${why}`)
    }
    const said = operation.responses[String(status)] ?? (status >= 400 ? operation.responses['default'] : undefined)
    if (said === undefined) return fail('is not in the document: give the route an answer schema, or say in `refuses` what it refuses')
    const text = await response.clone().text()
    if (said.content === undefined)
      return text === '' ? undefined : fail('has a body, and the document knows of none: give the route an answer schema')
    if (text === '') return fail('has no body')
    const type = response.headers.get('content-type') ?? ''
    const content = said.content[type]
    if (content === undefined) return fail(`is ${type}, and the document knows ${Object.keys(said.content).join(', ')}`)
    if (!type.startsWith('application/json')) return
    const check = compiled.get(content.schema) ?? ajv.compile({ ...content.schema, components: made.document.components })
    compiled.set(content.schema, check)
    if (check(JSON.parse(text))) return
    const reasons = (check.errors ?? [])
      .slice(0, 3)
      .map(({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`)
    fail(`is not as the answer schema has it: ${reasons.join('; ')}`)
  }
}
