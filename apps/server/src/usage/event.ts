import type { Instant } from '../kit/clock.ts'
import type { AccessKey, OrganizationId, PriceId, PrincipalId, ProjectId, RequestId } from '../kit/ids.ts'

/** How an answer ended. Only `complete` and `client_left` are charged by default (product.md 3). */
export type Ended = 'complete' | 'client_left' | 'engine_failed' | 'timed_out'

/**
 * Whose count it is: the engine's own; what we saw delivered, where the engine gave none;
 * or nobody's, in which case the row is marked and shown, never written as zero in silence.
 */
export type Counted = 'engine' | 'delivered' | 'none'

/** Token counts of one answer. `cachedInput` is part of `input`, `reasoning` part of `output`. */
export type Counts = {
  readonly input: number
  readonly cachedInput: number
  readonly output: number
  readonly reasoning: number
}

/** One served request. It never holds content. */
export type UsageEvent = Counts & {
  readonly id: RequestId
  readonly organizationId: OrganizationId
  readonly projectId: ProjectId
  readonly principalId: PrincipalId
  readonly accessKey: AccessKey
  /** The string the client sent, and the name of the model that answered. */
  readonly modelAsked: string
  readonly model: string
  readonly priceId: PriceId
  readonly replica: string
  readonly endpoint: string
  readonly mode: 'realtime' | 'batch'
  readonly status: number
  readonly ended: Ended
  readonly counted: Counted
  readonly acceptedAt: Instant
  readonly firstByteAt: Instant | null
  readonly endedAt: Instant
}
