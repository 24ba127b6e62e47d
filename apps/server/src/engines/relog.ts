import type { Readable } from 'node:stream'
import type { Logger } from '../kit/log.ts'

/** A line that never ends must not fill our memory. */
const MAX_LINE_CHARACTERS = 8_192
const SHOWN_CHARACTERS = 300

const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const

const parse = (line: string): Record<string, unknown> | undefined => {
  if (!line.startsWith('{')) return undefined
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

/**
 * Passes the log of a child on into ours, line by line. What is not a line of its log comes from native code, mostly shortly before
 * it ends: the last such line, or the last error, is kept as the reason to tell.
 */
export const relog = (stream: Readable | null, log: Logger): { last: () => string | undefined } => {
  let last: string | undefined
  let rest = ''

  const say = (line: string): void => {
    if (line.trim() === '') return
    const parsed = parse(line)
    if (parsed === undefined) {
      last = line.slice(0, SHOWN_CHARACTERS)
      log.warn({ line: last }, 'engine wrote')
      return
    }
    const { level, msg, time: _time, ...fields } = parsed
    const known = LEVELS.find((name) => name === level) ?? 'info'
    const message = typeof msg === 'string' ? msg : 'engine wrote'
    if (known === 'error' || known === 'fatal') last = message.slice(0, SHOWN_CHARACTERS)
    log[known](fields, message)
  }

  stream?.setEncoding('utf8')
  stream?.on('data', (text: string) => {
    const lines = (rest + text).split('\n')
    rest = (lines.pop() ?? '').slice(0, MAX_LINE_CHARACTERS)
    for (const line of lines) say(line)
  })
  stream?.on('error', () => undefined)
  return {
    last: () => {
      say(rest)
      rest = ''
      return last
    },
  }
}
