import { type Engine, openExchange } from './exchange.ts'
import { type Listener, openListener, readBytes, type Visit } from './listener.ts'
import { badRequest, endpointMismatch, modelUnknown, no, type Outcome, yes } from './refusal.ts'
import { chat } from './routes/chat.ts'
import { completions } from './routes/completions.ts'
import { embeddings } from './routes/embeddings.ts'
import { rerank } from './routes/rerank.ts'
import { detokenize, tokenize } from './routes/tokenize.ts'

const MAX_BODY_BYTES = 100 * 1024 * 1024 // data-plane.md 2.6

type Route = { readonly serves: readonly string[]; run: typeof chat }
const ANY = ['chat', 'embedding', 'rerank']
const ROUTES: Readonly<Record<string, Route>> = {
  '/v1/chat/completions': { serves: ['chat'], run: chat },
  '/v1/completions': { serves: ['chat'], run: completions },
  '/v1/embeddings': { serves: ['embedding'], run: embeddings },
  '/v1/rerank': { serves: ['embedding', 'rerank'], run: rerank },
  '/tokenize': { serves: ANY, run: tokenize },
  '/detokenize': { serves: ANY, run: detokenize },
}

const parseObject = (bytes: Buffer): Outcome<Record<string, unknown>> => {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    return no(badRequest(`Invalid JSON body: ${error instanceof Error ? error.message : String(error)}.`))
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return no(badRequest('Invalid JSON body: it must be an object.'))
  return yes(value as Record<string, unknown>)
}

/** The HTTP surface of one loaded model. */
export const openServer = (engine: Engine, key: string | undefined): Listener => {
  const { options, loaded, log } = engine
  const { slots } = loaded.serves

  const serve =
    (route: Route) =>
    async ({ path, request, response, requestId, refuse }: Visit): Promise<void> => {
      const bytes = await readBytes(request, MAX_BODY_BYTES)
      if (!bytes.ok) return refuse(bytes.refusal)
      const body = parseObject(Buffer.concat(bytes.value))
      if (!body.ok) return refuse(body.refusal)
      const model = body.value['model']
      if (model !== undefined && typeof model !== 'string')
        return refuse(badRequest('The field "model" is not valid: it must be a string.', 'model'))
      if (model !== undefined && model !== options.name) return refuse(modelUnknown(model, options.name))
      if (!route.serves.includes(options.type)) return refuse(endpointMismatch(options.name, options.type, path))

      await route.run(engine, openExchange(request, response, body.value, requestId))
    }

  return openListener({
    address: options,
    key,
    log,
    card: {
      id: options.name,
      object: 'model',
      created: engine.startedAtSeconds,
      owned_by: 'parvis',
      max_model_len: loaded.contextTokens,
      type: options.type,
    },
    counters: engine.counters,
    work: () => ({ busy: slots.busy(), waiting: slots.waiting() }),
    post: (path) => {
      const route = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined
      return route && serve(route)
    },
  })
}
