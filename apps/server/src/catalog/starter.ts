import { request } from 'undici'

/**
 * A small instruct model that is real: 135 million parameters, about 145 MB, Apache-2.0. Q8_0, because at this size the
 * coarser formats cost more sense than they save time.
 */
export const STARTER = 'bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q8_0.gguf'
/** Its name in the catalogue. */
export const STARTER_NAME = 'smollm2-135m-instruct'
/** Half of its own window: eight requests at once then take about 800 MB of memory instead of twice that. */
export const STARTER_CONTEXT_TOKENS = 4096

const ANSWER_LIMIT_MS = 1_500

const canBeReached = async (endpoint: string): Promise<boolean> => {
  try {
    const { statusCode, body } = await request(endpoint, { method: 'HEAD', signal: AbortSignal.timeout(ANSWER_LIMIT_MS) })
    await body.dump()
    return statusCode < 500
  } catch {
    return false
  }
}

/** For the first start: a sentence that offers the starter, where the hub can be reached at all. Nothing is ever downloaded unasked. */
export const offerStarter = async (config: { readonly hubEndpoint: string }): Promise<string | undefined> => {
  if (!(await canBeReached(config.hubEndpoint))) return undefined
  return [
    'The tiny models only show that everything works. A small real one (SmolLM2 135M Instruct, about 145 MB) is pulled from the hub',
    'when you start with the flag --starter, or while this runs, in another terminal:',
    `  npx parvis models pull ${STARTER}`,
  ].join('\n')
}
