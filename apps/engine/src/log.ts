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
    stream.write(`${JSON.stringify({ ...fields, level, time: isoNow(), msg: message })}\n`)
  }
  return { info: write('info'), warn: write('warn'), error: write('error') }
}

const NAME = /^[A-Z][A-Za-z]{0,40}$/
const CODE = /^[A-Z][A-Z0-9_]{0,40}$/
const FRAME = /^ {4}at /

/**
 * What the log may hold of an error that came up while requests are served: its name, its code and where it was thrown. Its message may
 * quote a prompt or an answer (llama.cpp names the piece of text that a grammar did not take), so it is left out.
 */
export const faultOf = (error: unknown): string => {
  if (!(error instanceof Error)) return 'something was thrown that is no error'
  const { name, message, stack = '' } = error
  const { code } = error as { code?: unknown }
  const head = `${NAME.test(name) ? name : 'Error'}${typeof code === 'string' && CODE.test(code) ? ` [${code}]` : ''}`
  // A message can have lines that look like frames, so the frames are what comes behind it.
  const at = stack.indexOf(message)
  const frames =
    at < 0
      ? []
      : stack
          .slice(at + message.length)
          .split('\n')
          .filter((line) => FRAME.test(line))
  return [head, ...frames].join('\n')
}
