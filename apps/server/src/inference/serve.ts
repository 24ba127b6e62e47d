import type { Model } from '../catalog/model.ts'
import type { Resolve } from '../catalog/resolve.ts'
import type { Engines } from '../engines/engines.ts'
import type { TakeSeat } from '../engines/seat.ts'
import type { Authenticate } from '../iam/authenticate.ts'
import type { Caller } from '../iam/caller.ts'
import type { Clock } from '../kit/clock.ts'
import type { Logger } from '../kit/log.ts'
import { yes } from '../kit/outcome.ts'
import { speak } from '../kit/refusal.ts'
import type { Admit, Estimate, Ticket, Used } from '../quota/admit.ts'
import type { UsageEvent } from '../usage/event.ts'
import type { Usage } from '../usage/usage.ts'
import type { Call } from './call.ts'
import type { CountInput } from './count.ts'
import type { Endpoint, FormEndpoint, Reading, Request } from './endpoints/endpoint.ts'
import type { Exchange } from './exchange.ts'
import type { Guesses } from './guess.ts'
import { lifeHeaders } from './life.ts'
import type { Measure } from './measure.ts'
import type { Relayed } from './relay.ts'
import { faultEvent, lostEvent, usageEvent } from './usage-event.ts'

export type Rooms = {
  authenticate: Authenticate
  resolve: Resolve
  admit: Admit
  takeSeat: TakeSeat
  replicaOf: Engines['replicaOf']
  noteOpen: Usage['noteOpen']
  withdraw: Usage['withdraw']
  record: Usage['record']
  clock: Clock
  log: Logger
}

/** How much input a request has: as guessed, as an engine counts it, and what is learned of the difference; and what was used that nobody has counted. */
export type Input = Guesses & { readonly count: CountInput; readonly measure: Measure }

/**
 * A request, from socket to engine and back: every branch is here and none of the details.
 * The order of checks is data-plane.md 3.2.
 */
export const serve = <R extends Reading>(rooms: Rooms, call: Call, input: Input, endpoint: Endpoint<R> | FormEndpoint<R>) => {
  const served = async (exchange: Exchange): Promise<void> => {
    const caller = rooms.authenticate(exchange.authorization, exchange.projectId, exchange)
    if (!caller.ok) return exchange.refuse(caller.refusal)

    const body = await exchange.readBody(caller.value.organizationId)
    if (!body.ok) return exchange.refuse(body.refusal)

    const reading = await endpoint.read(body.value, exchange.contentType)
    if (!reading.ok) return exchange.refuse(reading.refusal)

    // A price that begins while the body is still coming is not this request's.
    const model = rooms.resolve(reading.value.model, exchange.acceptedAt)
    if (!model.ok) return exchange.refuse(model.refusal)

    // Who asks for a model that has ended learns that another one answers (serverless-platform.md 8.3).
    if (model.value.name !== reading.value.model) exchange.addHeaders(['x-parvis-requested-model', reading.value.model])
    if (model.value.status === 'deprecated') exchange.addHeaders(lifeHeaders(model.value))

    const asked = endpoint.check(reading.value, model.value, input.guess)
    if (!asked.ok) return exchange.refuse(asked.refusal)

    const ticket = await rooms.admit(
      caller.value,
      model.value,
      estimateOf(asked.value, () => input.count(model.value, asked.value, exchange.signal())),
    )
    if (!ticket.ok) return exchange.refuse(ticket.refusal)
    exchange.setHeaders(ticket.value.headers())
    return answered(exchange, caller.value, reading.value.model, model.value, asked.value, ticket.value)
  }

  /**
   * From the ticket on. A function that waits keeps all that it ever had, and an answer may take minutes: what was read of the body, which is more than
   * all else of an open stream, stays behind in the one above.
   */
  const answered = async (
    exchange: Exchange,
    caller: Caller,
    modelAsked: string,
    model: Model,
    asked: Request,
    ticket: Ticket,
  ): Promise<void> => {
    let used: Used | undefined
    /** What an engine may have, and the journal has not been told of. */
    let open: UsageEvent | undefined
    try {
      const request = asked.complete === undefined ? yes(asked) : await asked.complete(exchange)
      if (!request.ok) return exchange.refuse(request.refusal)

      const lost = lostEvent(exchange, caller, endpoint, modelAsked, model)
      open = lost
      rooms.noteOpen(lost, request.value.stream ? 'streamed' : 'whole')
      const relayed = await call(exchange, caller, request.value, model, ticket)
      if (!relayed.ok) {
        const { failed, refusal } = relayed
        if (failed === undefined) rooms.withdraw(exchange.id)
        exchange.refuse(refusal)
        if (failed === undefined) return
        // A no need not wait for the disk: it is no answer that could be lost.
        used = toUsed(request.value, failed)
        const status = failed.begun ? 200 : (endpoint.dialect?.speak(refusal, exchange.id) ?? speak(refusal)).status
        const event = usageEvent(lost, request.value, { ...failed, status })
        open = undefined
        return await rooms.record(event)
      }

      if (!relayed.value.reached) {
        // No engine has any of it: its client left, or its time was up, before a byte of it was sent. So there is nothing to write down.
        rooms.withdraw(exchange.id)
        return relayed.value.finish()
      }

      const isCounted = relayed.value.counted === 'engine'
      const ended = isCounted ? relayed.value : await input.measure(model, request.value, relayed.value)
      used = toUsed(request.value, ended)
      const { guessed } = request.value.estimate
      if (guessed !== undefined && isCounted) input.learn(model.name, guessed.mix, used.input)
      const event = usageEvent(lost, request.value, ended, exchange.over)
      open = undefined
      // No client sees the end of an answer whose usage we could lose: the last frame waits for the disk.
      await rooms.record(event)
      ended.finish()
    } catch (error) {
      if (open === undefined) throw error
      exchange.fault(error)
      // What was begun must end, or it stays noted for as long as we live. Where the journal refuses, that is how it is found: as lost, at the next start.
      await rooms.record(faultEvent(open, exchange, rooms.clock.now()))
    } finally {
      ticket.settle(used)
    }
  }

  return served
}

/** Bounds that lie closer together decide nothing that is worth a question to an engine. */
const WORTH_COUNTING_TOKENS = 256

const estimateOf = ({ estimate, stream }: Request, count: () => Promise<number | undefined>): Estimate => {
  const { inputTokens, outputTokens, audioSeconds = 0, pages = 0, guessed } = estimate
  // A stream can be ended in the middle when a budget has run out.
  const asked = { inputTokens, outputTokens, audioSeconds, pages, endable: stream }
  if (guessed === undefined || guessed.most - guessed.least < WORTH_COUNTING_TOKENS) return asked
  return { ...asked, spread: { least: guessed.least, most: guessed.most, count } }
}

/** Limits count what is not counted, too: an engine that was reached has had all of the input, and leaving early makes room for no more. */
const toUsed = ({ estimate }: Request, { counts, counted }: Pick<Relayed, 'counts' | 'counted'>): Used => {
  if (counted === 'engine' || counted === 'tokenizer') return counts
  return {
    ...counts,
    input: Math.max(counts.input, estimate.inputTokens),
    audioMs: Math.max(counts.audioMs, (estimate.audioSeconds ?? 0) * 1000),
    // A document has one page at least; the most it may have, which was held, is no guess.
    pages: Math.max(counts.pages, Math.min(estimate.pages ?? 0, 1)),
  }
}
