/** Server-sent events as this API uses them (data-plane.md 6.9): `data:` lines, a blank line after each event, `[DONE]` at the end. */

export const DONE = 'data: [DONE]\n\n'

/** One event with this payload. */
export const toEvent = (payload: unknown): string => `data: ${JSON.stringify(payload)}\n\n`

export type Event = {
  /** The `event:` line; empty where there is none, as in chat completions. */
  readonly name: string
  /** The `data:` lines, joined. */
  readonly data: string
}

const MAX_PENDING_CHARACTERS = 8 << 20 // a server that never ends an event must not fill the reader's memory

/**
 * Reads events out of text that arrives in pieces; each call gives the events that the piece completed.
 * Comments and fields that we do not use are skipped. Lines may end in LF or CRLF, each also cut in two.
 */
export const eventReader = (): ((piece: string) => Event[]) => {
  let rest = ''
  return (piece) => {
    rest += piece
    const events: Event[] = []
    for (let end = /\r?\n\r?\n/.exec(rest); end !== null; end = /\r?\n\r?\n/.exec(rest)) {
      const block = rest.slice(0, end.index)
      rest = rest.slice(end.index + end[0].length)
      const event = blockToEvent(block)
      if (event !== undefined) events.push(event)
    }
    if (rest.length > MAX_PENDING_CHARACTERS) throw new Error(`an event of more than ${MAX_PENDING_CHARACTERS} characters`)
    return events
  }
}

const blockToEvent = (block: string): Event | undefined => {
  let name = ''
  const data: string[] = []
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
    if (field === 'event') name = value
    if (field === 'data') data.push(value)
  }
  return data.length === 0 ? undefined : { name, data: data.join('\n') }
}
