export type StopWatch = {
  /** Takes the next piece of text; gives what is safe to send and, once one was met, the stop that ended the answer. */
  push(text: string): { text: string; matched: string | undefined }
  /** The answer ended without a stop: what was held back is ordinary text after all. */
  end(): string
}

/**
 * Ends an answer at the caller's stop strings (contract 6.9: the stop text is not included). Text that may still become a stop is held
 * back, so a stop is found wherever the pieces are cut. The stop that is complete first wins; of those that end together, the longest:
 * this is the rule that can be decided while tokens arrive, without waiting for what a longer stop might have become.
 */
export const openStop = (stops: readonly string[]): StopWatch => {
  const wanted = stops.filter((stop) => stop !== '')
  const longest = wanted.reduce((length, stop) => Math.max(length, stop.length), 0)
  let held = '' // always shorter than the longest stop
  let matched: string | undefined

  const firstMatch = (text: string) => {
    let best: { start: number; stop: string } | undefined
    for (const stop of wanted) {
      const start = text.indexOf(stop)
      if (start < 0) continue
      const before = best === undefined ? 1 : best.start + best.stop.length - start - stop.length
      if (best === undefined || before > 0 || (before === 0 && start < best.start)) best = { start, stop }
    }
    return best
  }

  return {
    push(text) {
      if (matched !== undefined) return { text: '', matched }
      if (wanted.length === 0) return { text, matched }
      const whole = held + text
      const match = firstMatch(whole)
      if (match !== undefined) {
        held = ''
        matched = match.stop
        return { text: whole.slice(0, match.start), matched }
      }
      let from = Math.max(0, whole.length - longest + 1)
      while (from < whole.length && !wanted.some((stop) => stop.startsWith(whole.slice(from)))) from += 1
      held = whole.slice(from)
      return { text: whole.slice(0, from), matched }
    },
    end() {
      const rest = held
      held = ''
      return rest
    },
  }
}
