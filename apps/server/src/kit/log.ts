import { type Logger, pino } from 'pino'
import { errorToLog } from './error-to-log.ts'

export type { Logger }
export type LogLevel = 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'silent'

/**
 * One JSON line per event on standard error, so that what the first start prints for a person stays alone on standard output.
 * The line has ids, counts and times; prompts, answers, keys and headers are never handed to it, and what is below is
 * only the second lock on that door: names that are blotted out, and errors without what they quote.
 */
export const openLog = (level: LogLevel, stream: { write(line: string): unknown } = process.stderr): Logger =>
  pino(
    {
      level,
      base: null,
      serializers: { err: (error: unknown) => errorToLog(error) },
      timestamp: pino.stdTimeFunctions.isoTime,
      redact: ['*.authorization', '*.secretKey', '*.password', '*.key', 'authorization', 'secretKey', 'password'],
    },
    stream,
  )
