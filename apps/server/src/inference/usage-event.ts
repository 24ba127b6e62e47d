import type { Model } from '../catalog/model.ts'
import type { Caller } from '../iam/caller.ts'
import type { Instant } from '../kit/clock.ts'
import type { PoolId } from '../kit/ids.ts'
import type { Ended, UsageEvent } from '../usage/event.ts'
import { LATE_STATUS, LEFT_STATUS } from './answer.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange, Over } from './exchange.ts'
import type { Relayed } from './relay.ts'

/**
 * What is written down of a request before an engine has it, in case that this process dies and nobody can ever say how it ended.
 * Nothing of it is charged. Field by field, like `usageEvent`: an object of so many fields that is spread into another costs V8 two microseconds and a
 * hidden class that only a full collection frees.
 */
export const lostEvent = (
  exchange: Exchange,
  caller: Caller,
  endpoint: { readonly name: string },
  modelAsked: string,
  model: Model,
): UsageEvent => ({
  id: exchange.id,
  organizationId: caller.organizationId,
  projectId: caller.projectId,
  principalId: caller.principalId,
  accessKey: caller.accessKey,
  modelAsked,
  model: model.name,
  priceId: model.price.id,
  poolId: model.id as string as PoolId,
  replica: '',
  endpoint: endpoint.name,
  mode: 'realtime',
  status: 0,
  ended: 'lost',
  counted: 'none',
  acceptedAt: exchange.acceptedAt,
  firstByteAt: null,
  endedAt: exchange.acceptedAt,
  input: 0,
  cachedInput: 0,
  output: 0,
  reasoning: 0,
  audioInput: 0,
  audioMs: 0,
  images: 0,
  pages: 0,
})

/**
 * What is written down of a request that an engine answered: who, what, how much and how it ended; nothing of what was said. `over`: why the
 * client does not get the end of it, where the time was up or the client left while the answer was being counted.
 */
export const usageEvent = (lost: UsageEvent, request: Request, relayed: Omit<Relayed, 'finish' | 'reached'>, over?: Over): UsageEvent => {
  const { counts } = relayed
  const missed = over !== undefined && isWhole(relayed.ended) ? over : undefined
  return {
    id: lost.id,
    organizationId: lost.organizationId,
    projectId: lost.projectId,
    principalId: lost.principalId,
    accessKey: lost.accessKey,
    modelAsked: lost.modelAsked,
    model: lost.model,
    priceId: lost.priceId,
    poolId: lost.poolId,
    replica: relayed.replica.name,
    endpoint: lost.endpoint,
    mode: lost.mode,
    status: missed === undefined || request.stream ? relayed.status : missed === 'timed_out' ? LATE_STATUS : LEFT_STATUS,
    ended: missed ?? relayed.ended,
    counted: relayed.counted,
    acceptedAt: lost.acceptedAt,
    firstByteAt: relayed.firstByteAt,
    endedAt: relayed.endedAt,
    input: counts.input,
    cachedInput: counts.cachedInput,
    output: counts.output,
    reasoning: counts.reasoning,
    audioInput: counts.audioInput,
    audioMs: counts.audioMs,
    images: request.measured?.images ?? counts.images,
    pages: counts.pages,
  }
}

/** A client was meant to get all of it. */
const isWhole = (ended: Ended): boolean => ended === 'complete' || ended === 'length' || ended === 'budget'

/** What is written down where a bug of ours was the end: an engine may have worked, and nobody knows how much. It is never charged. */
export const faultEvent = (lost: UsageEvent, exchange: Pick<Exchange, 'begun' | 'over'>, endedAt: Instant): UsageEvent => ({
  ...lost,
  status: exchange.begun ? 200 : exchange.over === 'client_left' ? LEFT_STATUS : FAULT_STATUS,
  ended: 'engine_failed',
  endedAt,
})

const FAULT_STATUS = 500
