import type { Model } from '../catalog/model.ts'
import type { Caller } from '../iam/caller.ts'
import type { PoolId } from '../kit/ids.ts'
import type { UsageEvent } from '../usage/event.ts'
import { NO_COUNTS } from './answer.ts'
import type { Reading, Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import type { Relayed } from './relay.ts'

/**
 * What is written down of a request before an engine has it, in case that this process dies and nobody can ever say how it ended.
 * Nothing of it is charged.
 */
export const lostEvent = (
  exchange: Exchange,
  caller: Caller,
  endpoint: { readonly name: string },
  reading: Reading,
  model: Model,
): UsageEvent => ({
  id: exchange.id,
  organizationId: caller.organizationId,
  projectId: caller.projectId,
  principalId: caller.principalId,
  accessKey: caller.accessKey,
  modelAsked: reading.model,
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
  ...NO_COUNTS,
})

/** What is written down of a request that an engine answered: who, what, how much and how it ended; nothing of what was said. */
export const usageEvent = (begun: UsageEvent, request: Request, relayed: Omit<Relayed, 'finish'>): UsageEvent => ({
  ...begun,
  replica: relayed.replica.name,
  status: relayed.status,
  ended: relayed.ended,
  counted: relayed.counted,
  firstByteAt: relayed.firstByteAt,
  endedAt: relayed.endedAt,
  ...relayed.counts,
  ...request.measured,
})
