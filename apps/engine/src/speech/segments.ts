/** One stretch of speech as a window's tokens tell it, in seconds of the window. */
export type Stretch = { readonly start: number; readonly end: number; readonly tokens: readonly number[] }

const STEP_SECONDS = 0.02

/**
 * What a window's tokens say, and how many seconds of it are done with: the reference's rule for files longer than a window. Only
 * segments with both their times are kept while more follow; the next window begins where the last of them ends. A lone time at the
 * end means that nothing is said behind it.
 */
export const readWindow = (
  tokens: readonly number[],
  firstTimestamp: number,
  windowSeconds: number,
): { stretches: Stretch[]; doneSeconds: number } => {
  const isTime = (token: number | undefined): boolean => token !== undefined && token >= firstTimestamp
  const secondsOf = (token: number): number => Math.min((token - firstTimestamp) * STEP_SECONDS, windowSeconds)
  const borders = tokens.flatMap((token, at) => (at > 0 && isTime(token) && isTime(tokens[at - 1]) ? [at] : []))
  const endsAlone = tokens.length >= 2 && isTime(tokens.at(-1)) && !isTime(tokens.at(-2))

  if (borders.length === 0) {
    const times = tokens.filter(isTime)
    const last = times.at(-1)
    const end = last === undefined || last === firstTimestamp || times.length < 2 ? windowSeconds : secondsOf(last)
    const [first] = times
    const start = first === undefined ? 0 : Math.min(secondsOf(first), end)
    return { stretches: stretch(start, end, tokens), doneSeconds: windowSeconds }
  }

  const stretches: Stretch[] = []
  let from = 0
  for (const border of endsAlone ? [...borders, tokens.length] : borders) {
    const part = tokens.slice(from, border)
    from = border
    const [first, last] = [part[0], part.at(-1)]
    if (first !== undefined && last !== undefined) stretches.push(...stretch(secondsOf(first), secondsOf(last), part))
  }
  const last = tokens[(borders.at(-1) ?? 1) - 1] ?? firstTimestamp
  return { stretches, doneSeconds: endsAlone ? windowSeconds : secondsOf(last) }

  function stretch(start: number, end: number, part: readonly number[]): Stretch[] {
    return part.some((token) => !isTime(token)) ? [{ start, end, tokens: part }] : []
  }
}
