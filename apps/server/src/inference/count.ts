import { Agent, request as ask } from 'undici'
import { z } from 'zod'
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
/** Answers without a count that are counted at once; of one more nobody knows what it was. */
const MAX_COUNTING = 64
/** For all that one answer has said. A gateway that ends waits for it. */
export const TEXTS_LIMIT_MS = 5_000
const Counted = z.object({ count: z.int().nonnegative().optional(), tokens: z.array(z.unknown()).optional() })
/** Tokens come with their count; only the count is read, which stands before or behind them. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024
const EDGE_BYTES = 256
const COUNT = /"count"\s*:\s*(\d{1,9})\s*[,}]/
/** An engine that says one of these has no such route, and is not asked again as long as this process lives. */
const NO_ROUTE: ReadonlySet<number> = new Set([404, 405, 501])

/**
 * The tokens of texts that a model has made, by its own vocabulary. They are asked for after the answer, for a bill: so whoever asks waits in
 * line instead of guessing.
 */
export type CountTexts = (model: Model, texts: readonly string[]) => Promise<number | undefined>

export const openCount = (parts: {
  log: Logger
  replicaOf(model: ModelId): Replica | undefined
  answerMs?: number
}): { count: CountInput; countTexts: CountTexts; close(): Promise<void> } => {
  const { log, answerMs = ANSWER_LIMIT_MS } = parts
  const agent = new Agent({ connections: MAX_AT_ONCE, connect: { timeout: CONNECT_LIMIT_MS } })
  const without = new Set<EngineId>()
  let asking = 0
  let counting = 0

  const post = async (replica: Replica, body: Buffer | string, signal: AbortSignal) => {
    const answer = await ask(`${replica.origin}${replica.basePath}${PATH}`, {
      dispatcher: agent,
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(replica.bearer === undefined ? {} : { authorization: `Bearer ${replica.bearer}` }),
      },
      body,
      signal,
    })
    if (NO_ROUTE.has(answer.statusCode)) without.add(replica.engineId)
    return answer
  }

  const askTexts = async (replica: Replica, texts: readonly string[]): Promise<number | undefined> => {
    const signal = AbortSignal.timeout(TEXTS_LIMIT_MS)
    let tokens = 0
    for (const text of texts) {
      // llama.cpp's server has other names for the same two things; each engine leaves alone what it does not know.
      const asked = { model: replica.remoteModel, prompt: text, add_special_tokens: false, content: text, add_special: false }
      const { statusCode, body } = await post(replica, JSON.stringify(asked), signal)
      const pieces: Buffer[] = []
      let bytes = 0
      for await (const piece of body) {
        bytes += (piece as Buffer).length
        if (statusCode !== 200 || bytes > MAX_ANSWER_BYTES) return undefined
        pieces.push(piece as Buffer)
      }
      const counted = Counted.safeParse(JSON.parse(Buffer.concat(pieces).toString()))
      const count = counted.success ? (counted.data.count ?? counted.data.tokens?.length) : undefined
      if (count === undefined) return undefined
      tokens += count
    }
    return tokens
  }

  const askEngine = async (replica: Replica, request: Request, signal: AbortSignal): Promise<number | undefined> => {
    const { pieces } = request.bytesFor(replica.remoteModel, true)
    const { statusCode, body } = await post(replica, Buffer.concat(pieces), AbortSignal.any([signal, AbortSignal.timeout(answerMs)]))
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
    countTexts: async (model, texts) => {
      const replica = counting < MAX_COUNTING ? parts.replicaOf(model.id) : undefined
      if (replica === undefined || without.has(replica.engineId)) return undefined
      counting += 1
      try {
        return await askTexts(replica, texts)
      } catch (error) {
        log.debug({ err: error, replica: replica.name }, 'an engine did not count what it said')
        return undefined
      } finally {
        counting -= 1
      }
    },
    close: () => agent.destroy(),
  }
}
