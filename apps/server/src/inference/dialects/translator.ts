import type { Instant } from '../../kit/clock.ts'
import type { RequestId } from '../../kit/ids.ts'
import type { Refusal } from '../../kit/refusal.ts'
import { splitEvents } from '../events.ts'
import { changedOutlet, type Outlet } from '../exchange.ts'

/** Of an exchange, what stands in an answer. */
export type Asked = { readonly id: RequestId; readonly acceptedAt: Instant }

/** Writes one streamed answer in another dialect than the engine's. Everything it gives is whole events, as text. */
export type Translator = {
  /** The engine's next event. */
  event(chunk: unknown): string
  /** Nothing but a sign of life. */
  ping(): string
  /** The end, which goes out when the usage is on disk. */
  end(): string
  /** The end, where something went wrong in the middle (data-plane.md 3.5). */
  failed(refusal: Refusal): string
}

const DATA = Buffer.from('data:')
const LF = 0x0a

/**
 * An outlet whose stream is written in another dialect: what goes in are the events of a chat, as the engine sent them and
 * `streamedAnswer` has looked at them; what comes out are the translator's. So the rules of a stream (nothing before the first good
 * event, the end held back, an error in the middle) are kept by the same code for every dialect.
 *
 * Each event is parsed and written anew. That costs 3 to 4.5 µs where passing it on costs 1, beside the 30 to 40 of the system calls of
 * a chunk: these dialects are for the tools that speak nothing else, and chat stays the quick path.
 */
export const translated = (outlet: Outlet, translator: Translator): Outlet => {
  const events = splitEvents()
  return changedOutlet(outlet, {
    begin: () => outlet.begin((refusal) => Buffer.from(translator.failed(refusal))),
    write(bytes) {
      let out = ''
      events.push(bytes, (event) => {
        const chunk = payloadOf(event)
        out += chunk === undefined ? translator.ping() : translator.event(chunk)
      })
      return out === '' || outlet.write(Buffer.from(out))
    },
    // What was held back is the chat's own last event; each dialect has another.
    end: () => outlet.end(Buffer.from(translator.end())),
  })
}

/** The payload of an event; undefined for a comment. That it is JSON has been seen for the first one only. */
const payloadOf = (event: Buffer): unknown => {
  const line = event.subarray(0, DATA.length).equals(DATA) ? 0 : event.indexOf('\ndata:') + 1
  if (line === 0 && event[0] !== DATA[0]) return undefined
  const end = event.indexOf(LF, line)
  try {
    return JSON.parse(event.toString('utf8', line + DATA.length, end < 0 ? event.length : end)) as unknown
  } catch {
    return {}
  }
}
