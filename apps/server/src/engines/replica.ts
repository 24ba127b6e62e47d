import type { Client } from 'undici'
import type { EngineId, ModelId } from '../kit/ids.ts'

/** What an engine may speak beside chat: a request in such a dialect goes to it as it came. */
export const ENGINE_DIALECTS = ['responses'] as const
export type EngineDialect = (typeof ENGINE_DIALECTS)[number]

/**
 * One running engine that serves one model. Replicas of the same model are its pool. The data plane does not know
 * whether a replica is a child process of ours or an address that the operator gave.
 */
export type Replica = {
  /** Stands in usage events and logs: the engine's name. */
  readonly name: string
  readonly engineId: EngineId
  readonly modelId: ModelId
  readonly origin: string
  /** Path before `/v1`, without a slash at its end; empty for most. */
  readonly basePath: string
  /** The model's name as this engine knows it. */
  readonly remoteModel: string
  /** Set as `Authorization: Bearer`; never logged. */
  readonly bearer: string | undefined
  /** Where it speaks more than chat. */
  readonly speaks?: readonly EngineDialect[] | undefined
}

/**
 * `clean`: the exchange on the connection has come to its end. `failed`: it has, but the engine did not do what it is there for. `broken`: the
 * connection must not be used again; the engine is then looked at once more before others are sent to it. `unused`: nothing was sent, so that
 * nothing is known of the engine that was not known before.
 */
export type Leaving = 'clean' | 'failed' | 'broken' | 'unused'

/** A place at a replica. A seat is a connection: whoever takes one leaves it, whatever happened in between. */
export type Seat = {
  readonly replica: Replica
  readonly client: Client
  /** Safe to call twice. */
  leave(how: Leaving): void
}
