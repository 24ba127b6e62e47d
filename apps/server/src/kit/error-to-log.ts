import { fileURLToPath } from 'node:url'

/** What the log keeps of an error. */
export type LoggedError = {
  readonly type: string
  readonly code?: string
  /** Only where it is known to have no words of a user's in it. */
  readonly message?: string
  /** What the database names beside its code. */
  readonly constraint?: string
  readonly stack?: readonly string[]
  readonly cause?: LoggedError
  readonly errors?: readonly LoggedError[]
}

const NAME = /^[A-Z][A-Za-z0-9]{0,60}$/
const CODE = /^[A-Z0-9][A-Z0-9_]{0,60}$/
const CONSTRAINT = /^[a-z0-9_]{1,63}$/
/** The end of a line of a stack: where it was thrown, or called. */
const FRAME = /^ {4}at (?:[\w$.<>[\] #*]{1,120} \()?(?:file:\/\/|node:|\/|[A-Z]:\\|<anonymous>)[^()]*\)?$/
const MAX_FRAMES = 12
const MAX_DEPTH = 4
const MAX_ERRORS = 4
const MAX_MESSAGE_CHARACTERS = 1_000

/**
 * Who makes messages that quote nothing of what they were given: we ourselves, and the clients of the database and of mail, which tell of
 * connections. `JSON.parse`, by contrast, quotes its text, and so do parsers of every kind.
 */
const OURS = fileURLToPath(new URL('../..', import.meta.url))
const SPEAKING_PACKAGES = /\/node_modules\/(?:pg|pg-pool|pg-protocol|nodemailer|undici)\//

/**
 * SQLSTATE classes whose messages are about the server and not about a row: connections, resources, an operator's act, the system, and a
 * transaction that met another. Those of 22 and 23 quote values.
 */
const SPEAKING_STATES = /^(?:08|25|28|40|53|55|57|58|XX)/

/** Limits of time and connections; what undici says beyond may quote a header. */
const SPEAKING_CODES = /^UND_ERR_(?!INVALID)/

const placeOf = (frame: string): string => {
  const place = frame.replace(/^ {4}at /, '').replace(/^.*\(|\)$/g, '')
  return place.startsWith('file://') ? place.slice('file://'.length) : place
}

const speaks = (error: Error, code: string | undefined, frames: readonly string[]): boolean => {
  // Node's own, with a path or an address in it, both of which are ours.
  if ('syscall' in error && 'errno' in error) return true
  if ('severity' in error && 'routine' in error) return code !== undefined && SPEAKING_STATES.test(code)
  if (error.name === 'TimeoutError' || error.name === 'AbortError') return error instanceof DOMException
  if (code !== undefined && SPEAKING_CODES.test(code)) return true
  // One of Node's or V8's kinds says what it was given.
  if (error.name !== 'Error' || (code !== undefined && code.startsWith('ERR_'))) return false
  const [first] = frames
  if (first === undefined) return false
  const place = placeOf(first)
  return SPEAKING_PACKAGES.test(place) || (place.startsWith(OURS) && !place.includes('/node_modules/'))
}

/** The lines behind the message. A message can have lines that look like frames, so what comes before its end does not count. */
const framesOf = ({ message, stack = '' }: Error): string[] => {
  const at = stack.indexOf(message)
  if (at < 0) return []
  return stack
    .slice(at + message.length)
    .split('\n')
    .filter((line) => FRAME.test(line))
}

/**
 * The one way in which an error gets into the log. Prompts and answers are never logged (style 2.27), and errors quote what they could not
 * read: so there is its type, its code and where it was thrown, and its message only where its maker is known not to quote.
 */
export const errorToLog = (error: unknown, depth = 0): LoggedError => {
  if (!(error instanceof Error)) return { type: 'something that is no error' }
  const { name, cause } = error
  const given: unknown = 'code' in error ? error.code : undefined
  const code = typeof given === 'string' && CODE.test(given) ? given : undefined
  const constraint: unknown = 'constraint' in error ? error.constraint : undefined
  const frames = framesOf(error)
  const errors = error instanceof AggregateError && depth < MAX_DEPTH ? error.errors.slice(0, MAX_ERRORS) : []
  return {
    type: NAME.test(name) ? name : 'Error',
    ...(code === undefined ? {} : { code }),
    ...(speaks(error, code, frames) ? { message: error.message.slice(0, MAX_MESSAGE_CHARACTERS) } : {}),
    ...(typeof constraint === 'string' && CONSTRAINT.test(constraint) ? { constraint } : {}),
    ...(frames.length === 0 ? {} : { stack: frames.slice(0, MAX_FRAMES).map((frame) => frame.trim()) }),
    ...(cause === undefined || depth >= MAX_DEPTH ? {} : { cause: errorToLog(cause, depth + 1) }),
    ...(errors.length === 0 ? {} : { errors: errors.map((each) => errorToLog(each, depth + 1)) }),
  }
}
