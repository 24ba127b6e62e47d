import type { Instant } from '../kit/clock.ts'
import type { AccessKey, OrganizationId, PoolId, PriceId, PrincipalId, ProjectId, RequestId } from '../kit/ids.ts'

/**
 * How an answer ended. `length`: at the limit of output. `budget`: at the end of a budget. `lost`: nobody knows, since the gateway
 * died before the end. Which of them are charged says `isCharged`.
 */
export type Ended = 'complete' | 'length' | 'budget' | 'client_left' | 'engine_failed' | 'timed_out' | 'lost'

/**
 * Whose count it is: the engine's own; that of the model's tokenizer over what was asked and delivered, where the engine gave none; what we
 * saw delivered, with the input as estimated, where there was no tokenizer to ask; or nobody's, in which case the row is marked and shown, never written as zero in silence.
 */
export type Counted = 'engine' | 'tokenizer' | 'delivered' | 'none'

/**
 * What one answer used, in tokens where nothing else is said. `cachedInput` and `audioInput` are part of `input`, `reasoning` is
 * part of `output`. `audioMs` is the length of the sound that was sent, `pages` how many a document had.
 */
export type Counts = {
  readonly input: number
  readonly cachedInput: number
  readonly output: number
  readonly reasoning: number
  readonly audioInput: number
  readonly audioMs: number
  readonly images: number
  readonly pages: number
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
  /** The version of the price: a row of the catalogue that never changes. */
  readonly priceId: PriceId
  /** Where it was served: the pool, and which of its replicas; empty where none had it. */
  readonly poolId: PoolId
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

/** An event as it stands in the journal: which gateway saw it, and whether it is charged, decided once by the policy of its day. */
export type RecordedEvent = UsageEvent & { readonly gateway: string; readonly charged: boolean }

/** What the operator has decided about answers that did not come to their end (product.md 3). */
export type ChargePolicy = { readonly chargeFailed: boolean }

/** A client that leaves pays for its input and what was made for it; what failed is charged only where the operator says so; what nobody counted never is. */
export const isCharged = (event: Pick<UsageEvent, 'ended' | 'counted'>, policy: ChargePolicy): boolean => {
  if (event.counted === 'none') return false
  switch (event.ended) {
    case 'complete':
    case 'length':
    case 'budget':
    case 'client_left':
      return true
    case 'engine_failed':
    case 'timed_out':
      return policy.chargeFailed
    case 'lost':
      return false
  }
}

/** What the journal writes behind the fields of an event. */
export type ToMore = (event: UsageEvent) => Buffer

/**
 * What a gateway adds to an event that it saw, as JSON's bytes from the comma on. The event is not made again to carry it: one of 28 fields costs V8
 * two microseconds and half a kilobyte; nor is its text, which is a kilobyte.
 */
export const moreOf = (gateway: string, policy: ChargePolicy): ToMore => {
  const end = (charged: boolean): Buffer => Buffer.from(`,${JSON.stringify({ gateway, charged }).slice(1)}`)
  const charged = end(true)
  const free = end(false)
  return (event) => (isCharged(event, policy) ? charged : free)
}
