import type { Model } from '../catalog/model.ts'
import type { TakeSeat } from '../engines/seat.ts'
import type { Caller } from '../iam/caller.ts'
import type { EngineId } from '../kit/ids.ts'
import type { Outcome } from '../kit/outcome.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import type { Relay, Relayed, Spending } from './relay.ts'

/** Engines that are given one request. After that it is more likely the request than the engines. */
const MAX_SEATS = 3

/** Takes a seat and calls its engine. */
export type Call = (exchange: Exchange, caller: Caller, request: Request, model: Model, spending: Spending) => Promise<Outcome<Relayed>>

/**
 * While the client has got nothing, an engine that is not there, is busy or breaks is replaced by another of its pool, if
 * one has a place. What it may have made until then is nobody's; only the one that answered is recorded.
 */
export const openCall =
  (takeSeat: TakeSeat, relay: Relay): Call =>
  async (exchange, caller, request, model, spending) => {
    const tried = new Set<EngineId>()
    const { inputTokens, outputTokens } = request.estimate
    const party = { projectId: caller.projectId, tokens: inputTokens + outputTokens }
    let refused: Outcome<Relayed> | undefined
    for (;;) {
      const seat = await takeSeat(model, exchange.signal, tried.size === 0 ? undefined : tried, party)
      // What the engine said is worth more than that there is no other.
      if (!seat.ok) return refused ?? seat
      const relayed = await relay(exchange, caller, request, model, seat.value, spending)
      tried.add(seat.value.replica.engineId)
      if (relayed.elsewhere !== true || tried.size === MAX_SEATS || exchange.signal.aborted) return relayed
      refused = relayed
    }
  }
