import type { Model } from '../catalog/model.ts'
import type { Caller } from '../iam/caller.ts'
import type { UsageEvent } from '../usage/event.ts'
import type { Endpoint, Reading, Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import type { Relayed } from './relay.ts'

/** What is written down of a request that an engine answered: who, what, how much and how it ended; nothing of what was said. */
export const usageEvent = (
  exchange: Exchange,
  caller: Caller,
  endpoint: Endpoint,
  reading: Reading,
  request: Request,
  model: Model,
  relayed: Relayed,
): UsageEvent => ({
  id: exchange.id,
  organizationId: caller.organizationId,
  projectId: caller.projectId,
  principalId: caller.principalId,
  accessKey: caller.accessKey,
  modelAsked: reading.model,
  model: model.name,
  priceId: model.price.id,
  replica: relayed.replica.name,
  endpoint: endpoint.name,
  mode: 'realtime',
  status: relayed.status,
  ended: relayed.ended,
  counted: relayed.counted,
  acceptedAt: exchange.acceptedAt,
  firstByteAt: relayed.firstByteAt,
  endedAt: relayed.endedAt,
  ...relayed.counts,
  ...request.measured,
})
