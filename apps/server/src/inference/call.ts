import type { Model } from '../catalog/model.ts'
import type { Seat } from '../engines/replica.ts'
import type { TakeSeat } from '../engines/seat.ts'
import type { Caller } from '../iam/caller.ts'
import type { EngineId } from '../kit/ids.ts'
import { no, type Outcome } from '../kit/outcome.ts'
import type { Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import type { Failed, Relay, Relayed, Spending } from './relay.ts'

/** Engines that are given one request. After that it is more likely the request than the engines. */
const MAX_SEATS = 3
/** Engines that refuse at first what only we asked for, and are asked once more without it; each does so once in the life of this process. */
const MAX_PLAINER = 3

/** Takes a seat and calls its engine. */
export type Call = (exchange: Exchange, caller: Caller, request: Request, model: Model, spending: Spending) => Promise<Called>

/** A no may have cost the work of an engine. */
export type Called = Outcome<Relayed> & { readonly failed?: Failed }

/**
 * While the client has got nothing, an engine that is not there, is busy or breaks is replaced by another of its pool, if
 * one has a place. What it may have made until then is nobody's; only the one that answered is recorded, or where none did, the last
 * that has worked.
 */
export const openCall =
  (takeSeat: TakeSeat, relay: Relay): Call =>
  async (exchange, caller, request, model, spending) => {
    const { inputTokens, outputTokens } = request.estimate
    const party = { projectId: caller.projectId, tokens: inputTokens + outputTokens }
    let tried: Set<EngineId> | undefined
    let refused: Called | undefined
    let plainer = 0
    for (;;) {
      let seat: Outcome<Seat>
      try {
        seat = await takeSeat(model, exchange, tried, party)
      } catch (error) {
        // No engine has the request, so it is over here, for the books too; where the client has left it is no fault at all.
        exchange.fault(error)
        seat = no({ code: 'fault' })
      }
      // What the engine said is worth more than that there is no other.
      if (!seat.ok) return refused ?? seat
      const relayed = await relay(exchange, caller, request, model, seat.value, spending)
      // What one before it has worked on is to be written down, also where this one was never sent anything.
      if (relayed.ok) return relayed.value.reached ? relayed : (refused ?? relayed)
      if (relayed.again === true && plainer < MAX_PLAINER && !exchange.isOver()) {
        plainer += 1
        continue
      }
      tried = (tried ?? new Set()).add(seat.value.replica.engineId)
      const failed = relayed.failed ?? refused?.failed
      refused = failed === undefined ? relayed : { ...relayed, failed }
      if (relayed.elsewhere !== true || tried.size === MAX_SEATS || exchange.isOver()) return refused
    }
  }
