import type { Log } from '../log.ts'

/** What a line is about, in one word of ours. */
const CODES: readonly (readonly [RegExp, string])[] = [
  [/alloc|out of memory|\boom\b/i, 'memory'],
  [/grammar|sampl/i, 'sampling'],
  [/slot|cache|\bkv\b|sequence/i, 'cache'],
  [/decode|encode|comput|graph|batch/i, 'computing'],
]

/**
 * Takes llama.cpp's own lines, of which only errors come here. While a model loads nobody has asked anything yet, and its words help the
 * operator; once requests are served they may quote a prompt, an answer or a grammar, and only what they are about goes on.
 */
export const openNativeLog = (log: Log) => {
  let serving = false
  return {
    line: (severity: string, text: string): void => {
      if (!serving) return log.warn('llama.cpp', { severity, reason: text.trim() })
      const about = CODES.find(([pattern]) => pattern.test(text))?.[1] ?? 'other'
      log.warn('llama.cpp reported an error, whose words are not kept', { severity, about })
    },
    /** From here on requests come. */
    serve: (): void => {
      serving = true
    },
  }
}
