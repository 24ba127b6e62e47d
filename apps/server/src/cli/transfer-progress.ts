import type { Progress } from '../catalog/weights/pull.ts'
import { formatBytes } from '../catalog/weights/size.ts'

/** Where progress is shown: a line that is written over on a terminal, a line now and then in a log. */
export type ProgressOutput = { readonly isTTY?: boolean; write(text: string): unknown }

const TERMINAL_EVERY_MS = 200
const LOG_EVERY_MS = 10_000
/** The rate is that of the last few seconds: an average over a whole transfer hides that it has stopped. */
const RATE_OVER_MS = 5_000
const CLEAR_LINE = '\r\u001b[K'

const formatSeconds = (seconds: number): string => {
  const whole = Math.max(1, Math.round(seconds))
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
}

/** Shows how far a transfer is. `nowMs` counts durations; a test moves it by hand. */
export const openProgress = (output: ProgressOutput, nowMs: () => number = () => performance.now()) => {
  const everyMs = output.isTTY === true ? TERMINAL_EVERY_MS : LOG_EVERY_MS
  let samples: { atMs: number; bytes: number }[] = []
  let shownAtMs = Number.NEGATIVE_INFINITY
  let open = false

  const line = ({ receivedBytes, totalBytes }: Progress): string => {
    const first = samples[0]
    const last = samples.at(-1)
    const spanMs = first === undefined || last === undefined ? 0 : last.atMs - first.atMs
    const perSecond = first === undefined || last === undefined || spanMs === 0 ? 0 : ((last.bytes - first.bytes) * 1000) / spanMs
    const percent = totalBytes === 0 ? 100 : Math.floor((receivedBytes * 100) / totalBytes)
    const done = `${percent} %  ${formatBytes(receivedBytes)} of ${formatBytes(totalBytes)}`
    if (perSecond <= 0) return done
    return `${done}  ${formatBytes(perSecond)}/s  ${formatSeconds((totalBytes - receivedBytes) / perSecond)} left`
  }

  return {
    update: (progress: Progress): void => {
      const atMs = nowMs()
      // A transfer that starts over goes back: then what was measured is no rate.
      if (progress.receivedBytes < (samples.at(-1)?.bytes ?? 0)) samples = []
      if (atMs - shownAtMs < everyMs) return
      samples = [...samples.filter((sample) => atMs - sample.atMs <= RATE_OVER_MS), { atMs, bytes: progress.receivedBytes }]
      shownAtMs = atMs
      open = output.isTTY === true
      output.write(open ? `${CLEAR_LINE}${line(progress)}` : `${line(progress)}\n`)
    },
    /** Leaves the terminal at the beginning of an empty line. */
    close: (): void => {
      if (open) output.write(CLEAR_LINE)
      open = false
    },
  }
}
