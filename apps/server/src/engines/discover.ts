import { Agent, request } from 'undici'
import { z } from 'zod'
import { addressToUrl, readAddress } from './address.ts'
import { explain } from './explain.ts'
import { ENGINE_DIALECTS, type EngineDialect } from './replica.ts'

/** A model that an engine offers. Its context length only where it says one. */
export type DiscoveredModel = { readonly id: string; readonly contextTokens: number | undefined }

const ANSWER_LIMIT_MS = 10_000
const CONNECT_LIMIT_MS = 5_000
/** What an engine says of its paths is worth a short wait: it is at hand where there is one, and the command goes on without it. */
const DESCRIPTION_LIMIT_MS = 3_000
/** The largest hosted catalogues are a few hundred kilobytes. */
const MAX_ANSWER_BYTES = 8 * 1024 * 1024

const tokens = z.int().positive().optional().catch(undefined)
/** vLLM and SGLang say `max_model_len`, llama-server has it in `meta`, some hosted services say `context_length`; Ollama says nothing. */
const Models = z.looseObject({
  data: z.array(
    z.looseObject({
      id: z.string().min(1),
      max_model_len: tokens,
      context_length: tokens,
      meta: z.looseObject({ n_ctx: tokens, n_ctx_train: tokens }).nullish().catch(undefined),
    }),
  ),
})

type Answer = { readonly statusCode: number; readonly text: string }

/** An answer that `reads` does not want, by its status and type, is left where it is: its text is empty. */
const ask = async (
  place: string,
  bearer: string | undefined,
  limitMs: number,
  reads: (statusCode: number, contentType: string) => boolean = () => true,
): Promise<Answer> => {
  const dispatcher = new Agent({ connections: 1, connect: { timeout: CONNECT_LIMIT_MS }, maxResponseSize: MAX_ANSWER_BYTES })
  try {
    const { statusCode, headers, body } = await request(place, {
      dispatcher,
      signal: AbortSignal.timeout(limitMs),
      headers: { accept: 'application/json', ...(bearer === undefined ? {} : { authorization: `Bearer ${bearer}` }) },
    })
    if (reads(statusCode, String(headers['content-type'] ?? ''))) return { statusCode, text: await body.text() }
    // Taken down with the connection below; what it says then is nobody's concern.
    body.on('error', () => undefined)
    return { statusCode, text: '' }
  } catch (error) {
    throw new Error(`${place} cannot be asked: ${explain(error)}.`, { cause: error })
  } finally {
    await dispatcher.destroy()
  }
}

/** Asks an engine which models it has. Every way it can fail is a sentence for the operator who typed the address. */
export const discoverModels = async (url: string, bearer: string | undefined): Promise<DiscoveredModel[]> => {
  const place = `${addressToUrl(readAddress(url))}/v1/models`
  const { statusCode, text } = await ask(place, bearer, ANSWER_LIMIT_MS)
  if (statusCode === 401 || statusCode === 403) {
    const hint = bearer === undefined ? 'It wants a key: give one with --key-env.' : 'It does not take this key.'
    throw new Error(`${place} answers ${statusCode}. ${hint}`)
  }
  if (statusCode >= 300 && statusCode < 400) throw new Error(`${place} sends us elsewhere (${statusCode}). Give the address it leads to.`)
  if (statusCode !== 200) throw new Error(`${place} answers ${statusCode}. Is it an OpenAI-compatible server?`)
  return readModels(place, text)
}

const readModels = (place: string, text: string): DiscoveredModel[] => {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new Error(`${place} does not answer with JSON. Is it an OpenAI-compatible server?`, { cause })
  }
  const models = Models.safeParse(value)
  if (!models.success) throw new Error(`${place} does not answer with a list of models. Is it an OpenAI-compatible server?`)
  return models.data.data.map(({ id, max_model_len, context_length, meta }) => ({
    id,
    contextTokens: max_model_len ?? context_length ?? meta?.n_ctx ?? meta?.n_ctx_train,
  }))
}

/** Some engines answer every path, with a page or with a stream that does not end. */
const isDescription = (statusCode: number, contentType: string): boolean =>
  statusCode === 200 && /^application\/([\w.-]+\+)?json\b/i.test(contentType)

const Description = z.looseObject({ paths: z.record(z.string(), z.looseObject({ post: z.unknown().optional() })) })

/**
 * What an engine speaks beside chat, where it describes its paths (vLLM and SGLang do, as FastAPI has it). Only read: nothing is tried out, since
 * what looks like a harmless request costs money at a hosted service. Whoever does not say is taken to speak nothing more.
 */
export const discoverDialects = async (url: string, bearer: string | undefined): Promise<EngineDialect[]> => {
  try {
    const { text } = await ask(`${addressToUrl(readAddress(url))}/openapi.json`, bearer, DESCRIPTION_LIMIT_MS, isDescription)
    const described = Description.safeParse(text === '' ? undefined : JSON.parse(text))
    if (!described.success) return []
    const paths = Object.entries(described.data.paths).flatMap(([path, { post }]) => (post === undefined ? [] : [path]))
    return ENGINE_DIALECTS.filter((dialect) => paths.some((path) => path.endsWith(`/v1/${dialect}`)))
  } catch {
    return []
  }
}
