import type { Readable } from 'node:stream'
import type { Logger } from '../kit/log.ts'

/** A line that never ends must not fill our memory. */
const MAX_LINE_CHARACTERS = 8_192
const SHOWN_CHARACTERS = 300
/** How often it is told that lines were left out. */
const TELL_MS = 60_000

const LEVELS = ['info', 'warn', 'error'] as const
const WHEN = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$/

type Line = { readonly level: (typeof LEVELS)[number]; readonly message: string; readonly fields: Readonly<Record<string, unknown>> }

/** A line as the engine's own log writes it: a level, a time, a message, and fields that are flat. Anything else is not ours. */
const parse = (line: string): Line | undefined => {
  if (!line.startsWith('{')) return undefined
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return undefined
  }
  const { level: said, time, msg: message, ...fields } = value as Record<string, unknown>
  const level = LEVELS.find((name) => name === said)
  if (level === undefined || typeof message !== 'string' || typeof time !== 'string' || !WHEN.test(time)) return undefined
  return Object.values(fields).every((field) => typeof field !== 'object') ? { level, message, fields } : undefined
}

/*
 * What native code says shortly before it ends, and what we say instead. A pattern must fit the whole line, and what is kept of it are
 * names and places of code.
 */
const LAST_WORDS: readonly (readonly [RegExp, (...kept: string[]) => string])[] = [
  [
    /^(?:(?:[\w./\\:+-]{0,200}[/\\])?([\w.-]{1,60}\.(?:c|cc|cpp|cu|cuh|h|hpp|m|metal):\d{1,6}): )?(GGML_ASSERT\([\w\s\-+*/%&|!=<>().,:[\]]{1,120}\) failed)$/,
    (place, assertion) => (place === '' ? assertion : `${place}: ${assertion}`) ?? '',
  ],
  [
    /^terminate called after throwing an instance of '([\w:]{1,80})'$/,
    (type) => `terminate called after throwing an instance of '${type}'`,
  ],
  [/^terminate called without an active exception$/, () => 'terminate called without an active exception'],
  [/^(?:malloc|free|realloc|munmap_chunk)\(\): .{1,80}$/, () => 'the heap is corrupted'],
  [/^double free or corruption .{1,20}$/, () => 'the heap is corrupted'],
  [/^\*\*\* stack smashing detected \*\*\*: .{1,20}$/, () => 'the stack is corrupted'],
  [/^FATAL ERROR: .{0,120}JavaScript heap out of memory$/, () => 'JavaScript heap out of memory'],
  [/^(?:CUDA error|ggml_(?:cuda|vulkan|metal)[\w ]{0,40}: ).{0,200}out of memory.{0,80}$/i, () => 'the graphics memory is used up'],
  [/^.{0,200}: error while loading shared libraries: ([\w.+-]{1,80}): .{0,120}$/, (library) => `the library ${library} cannot be loaded`],
  [
    /^Error(?: \[ERR_MODULE_NOT_FOUND\])?: Cannot find (module|package) '([\w@./\\:+ -]{1,200})'.{0,300}$/,
    (kind, name) => `Cannot find ${kind} '${name}'`,
  ],
]

const lastWords = (line: string): string | undefined => {
  for (const [pattern, say] of LAST_WORDS) {
    const found = pattern.exec(line.trimEnd())
    if (found !== null) return say(...found.slice(1).map((kept) => kept ?? ''))
  }
  return undefined
}

/**
 * Passes the log of a child on into ours, line by line. What is not a line of its log comes from native code or a library, and may quote
 * what a customer sent: llama.cpp prints a grammar that it cannot read. Such lines are counted and their words go nowhere, except for
 * what a process says when it breaks, of which `LAST_WORDS` keeps names and places of code: the last of those, or the last error,
 * is kept as the reason to tell.
 */
export const relog = (stream: Readable | null, log: Logger, tellMs = TELL_MS): { last: () => string | undefined } => {
  let last: string | undefined
  let rest = ''
  let dropped = 0
  let timer: NodeJS.Timeout | undefined

  const tell = (): void => {
    clearTimeout(timer)
    timer = undefined
    if (dropped > 0) log.warn({ lines: dropped }, `the engine wrote ${dropped} lines that are not its log`)
    dropped = 0
  }

  const drop = (): void => {
    dropped += 1
    timer ??= setTimeout(tell, tellMs).unref()
  }

  const say = (line: string): void => {
    if (line.trim() === '') return
    const parsed = parse(line)
    if (parsed !== undefined) {
      const { level, message, fields } = parsed
      if (level === 'error') last = message.slice(0, SHOWN_CHARACTERS)
      log[level](fields, message)
      return
    }
    const words = lastWords(line)
    if (words === undefined) return drop()
    last = words
    log.warn({ words }, 'the engine is breaking')
  }

  stream?.setEncoding('utf8')
  stream?.on('data', (text: string) => {
    const lines = (rest + text).split('\n')
    rest = (lines.pop() ?? '').slice(0, MAX_LINE_CHARACTERS)
    for (const line of lines) say(line)
  })
  stream?.on('error', () => undefined)
  stream?.on('close', tell)
  return {
    last: () => {
      say(rest)
      rest = ''
      tell()
      return last
    },
  }
}
