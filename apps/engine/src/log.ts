import { isoNow } from './clock.ts'

type Fields = Readonly<Record<string, string | number | boolean | undefined>>
export type Log = {
  info(message: string, fields?: Fields): void
  warn(message: string, fields?: Fields): void
  error(message: string, fields?: Fields): void
}

/** One JSON object per line on standard error. Its fields are ids, counts, times and reasons; prompts and answers are never handed to it. */
export const openLog = (stream: NodeJS.WritableStream = process.stderr): Log => {
  const write = (level: string) => (message: string, fields?: Fields) => {
    stream.write(`${JSON.stringify({ level, time: isoNow(), msg: message, ...fields })}\n`)
  }
  return { info: write('info'), warn: write('warn'), error: write('error') }
}
