import type { Model } from '../catalog/model.ts'
import type { Refusal } from '../kit/refusal.ts'
import type { Ended } from '../usage/event.ts'
import type { Ending, Verdict } from './answer.ts'
import type { Exchange } from './exchange.ts'

type Stream = { ending(ended: Ended, finish: () => void): { readonly ending: Ending } }

/**
 * How every stream ends before its time: as a refusal like any other where nothing has been sent, so that another engine may answer, and else
 * with the refusal as its last event, to be recorded as it stands.
 */
export const breakOff = (
  exchange: Pick<Exchange, 'refuse'>,
  stream: Stream,
  sent: boolean,
  how: Exclude<Ended, 'complete'>,
  refusal: Refusal,
): Verdict => {
  if (how === 'client_left') return stream.ending(how, () => {})
  return sent ? stream.ending(how, () => exchange.refuse(refusal)) : { refusal }
}

/** The same as a stream's own two doors. */
export const brokenStream = (exchange: Pick<Exchange, 'refuse'>, model: Pick<Model, 'name'>, stream: Stream & { sent(): boolean }) => {
  const broken = (how: Exclude<Ended, 'complete'>, refusal: Refusal): Verdict => breakOff(exchange, stream, stream.sent(), how, refusal)
  return {
    broken,
    /** By the engine: `reason` for the client, `log` for the operator. */
    failed: (reason: string, log: string): Verdict => ({
      ...broken('engine_failed', { code: 'engine_failed', model: model.name, reason }),
      log,
    }),
  }
}
