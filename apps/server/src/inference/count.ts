import { Agent, request as ask } from 'undici'
import type { Model } from '../catalog/model.ts'
import type { Replica } from '../engines/replica.ts'
import type { EngineId, ModelId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import type { Request } from './endpoints/endpoint.ts'

/** Asks an engine how many tokens the input of a request is, by its own vocabulary. Undefined: nobody can say, or not in time. */
export type CountInput = (model: Model, request: Request, signal: AbortSignal) => Promise<number | undefined>

/** The route of vLLM, SGLang and our own engine; it takes the body of the request that is meant. */
const PATH = '/tokenize'
const COUNTABLE: ReadonlySet<string> = new Set(['/v1/chat/completions', '/v1/completions'])
/** Longer than a full context takes to be cut into tokens, and short for somebody who waits. */
const ANSWER_LIMIT_MS = 1_000
const CONNECT_LIMIT_MS = 500
/** An engine makes tokens for others meanwhile. Whoever comes when so many are asked is decided by the guess. */
const MAX_AT_ONCE = 4
/** Tokens come with their count; only the count is read, which stands before or behind them. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
const EDGE_BYTES = 256
const COUNT = /"count"\s*:\s*(\d{1,9})\s*[,}]/
/** An engine that says one of these has no such route, and is not asked again as long as this process lives. */
const NO_ROUTE: ReadonlySet<number> = new Set([404, 405, 501])

export const openCount = (parts: {
  log: Logger
  replicaOf(model: ModelId): Replica | undefined
  answerMs?: number
}): { count: CountInput; close(): Promise<void> } => {
  const { log, answerMs = ANSWER_LIMIT_MS } = parts
  const agent = new Agent({ connections: MAX_AT_ONCE, connect: { timeout: CONNECT_LIMIT_MS } })
  const without = new Set<EngineId>()
  let asking = 0

  const askEngine = async (replica: Replica, request: Request, signal: AbortSignal): Promise<number | undefined> => {
    const { pieces } = request.bytesFor(replica.remoteModel, true)
    const { statusCode, body } = await ask(`${replica.origin}${replica.basePath}${PATH}`, {
      dispatcher: agent,
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(replica.bearer === undefined ? {} : { authorization: `Bearer ${replica.bearer}` }),
      },
      body: Buffer.concat(pieces),
      signal: AbortSignal.any([signal, AbortSignal.timeout(answerMs)]),
    })
    if (NO_ROUTE.has(statusCode)) without.add(replica.engineId)
    let edges = ''
    let bytes = 0
    for await (const piece of body) {
      bytes += (piece as Buffer).length
      if (statusCode !== 200 || bytes > MAX_ANSWER_BYTES) break
      edges = `${edges.slice(0, EDGE_BYTES)}${edges.slice(EDGE_BYTES).slice(-EDGE_BYTES)}${(piece as Buffer).toString('latin1')}`
      const count = COUNT.exec(edges)?.[1]
      if (count !== undefined) return Number(count)
    }
    return undefined
  }

  return {
    count: async (model, request, signal) => {
      const replica = COUNTABLE.has(request.enginePath) && asking < MAX_AT_ONCE ? parts.replicaOf(model.id) : undefined
      if (replica === undefined || without.has(replica.engineId)) return undefined
      asking += 1
      try {
        const count = await askEngine(replica, request, signal)
        return count === 0 ? undefined : count
      } catch (error) {
        if (!signal.aborted) log.debug({ err: error, replica: replica.name }, 'an engine did not count an input')
        return undefined
      } finally {
        asking -= 1
      }
    },
    close: () => agent.destroy(),
  }
}
