import { setTimeout as after } from 'node:timers/promises'

const LOOK_MS = 10
const LIMIT_MS = 30_000

/** Waits for a condition; fails with its name when it does not come true. The limit only ends what hangs. */
export const until = async (what: string, holds: () => boolean | Promise<boolean>, limitMs: number = LIMIT_MS): Promise<void> => {
  for (const startedAt = performance.now(); ; ) {
    if (await holds()) return
    if (performance.now() - startedAt > limitMs) throw new Error(`not within ${limitMs} ms: ${what}`)
    await after(LOOK_MS)
  }
}
