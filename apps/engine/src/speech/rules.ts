/** What a Whisper model's vocabulary needs told apart. Everything from `firstTimestamp` on is a time, in steps of 20 ms. */
export type Vocabulary = {
  readonly end: number
  readonly noTimestamps: number
  readonly firstTimestamp: number
  readonly suppressed: readonly number[]
  readonly suppressedAtFirst: readonly number[]
  /** The latest time that a window's first segment may begin at, in steps. */
  readonly maxInitialTimestamp: number
}

/** The natural logarithm of the sum of exponentials, over part of the scores. */
export const logSumExp = (scores: Float32Array, from = 0, to = scores.length): number => {
  let greatest = Number.NEGATIVE_INFINITY
  for (let at = from; at < to; at += 1) greatest = Math.max(greatest, scores[at] as number)
  if (greatest === Number.NEGATIVE_INFINITY) return greatest
  let sum = 0
  for (let at = from; at < to; at += 1) sum += Math.exp((scores[at] as number) - greatest)
  return greatest + Math.log(sum)
}

/**
 * Forbids, in place, what may not come next. The rules are those of Whisper's reference: times come in pairs (the end of a segment and
 * the beginning of the next) or alone before the end; they never go back, and no segment is empty; the first token is a time; and
 * where a time is more likely than any word, it is a time.
 */
export const forbid = (scores: Float32Array, sampled: readonly number[], vocabulary: Vocabulary): void => {
  const { end, noTimestamps, firstTimestamp, suppressed, suppressedAtFirst, maxInitialTimestamp } = vocabulary
  const never = (from: number, to: number): void => void scores.fill(Number.NEGATIVE_INFINITY, from, to)
  for (const token of suppressed) scores[token] = Number.NEGATIVE_INFINITY
  never(noTimestamps, noTimestamps + 1)

  if (sampled.length === 0) {
    for (const token of suppressedAtFirst) scores[token] = Number.NEGATIVE_INFINITY
    never(0, firstTimestamp)
    never(firstTimestamp + maxInitialTimestamp + 1, scores.length)
    return
  }
  const isTime = (token: number | undefined): boolean => token !== undefined && token >= firstTimestamp
  const lastIsTime = isTime(sampled.at(-1))
  const beforeIsTime = sampled.length < 2 || isTime(sampled.at(-2))
  if (lastIsTime && beforeIsTime) never(firstTimestamp, scores.length)
  if (lastIsTime && !beforeIsTime) never(0, end)
  const latest = sampled.findLast(isTime)
  if (latest !== undefined) never(firstTimestamp, lastIsTime && !beforeIsTime ? latest : latest + 1)

  const time = logSumExp(scores, firstTimestamp)
  let word = Number.NEGATIVE_INFINITY
  for (let token = 0; token < firstTimestamp; token += 1) word = Math.max(word, scores[token] as number)
  if (time > word) never(0, firstTimestamp)
}
