import type { Logger } from './log.ts'

export type Building = {
  /** Something was opened that must be shut. */
  open(what: string, shut: () => Promise<void>): void
  /** What was opened last is shut first. What cannot be does not keep the others open. */
  close(): Promise<void>
}

/** What a process has opened so far, so that a start that fails and a stop take it down in the same way. */
export const beginBuilding = (log: Logger): Building => {
  const opened: { what: string; shut: () => Promise<void> }[] = []
  return {
    open: (what, shut) => void opened.push({ what, shut }),
    close: async () => {
      for (let part = opened.pop(); part !== undefined; part = opened.pop()) {
        const { what, shut } = part
        await shut().catch((error: unknown) => log.error({ err: error, part: what }, 'could not be closed in order'))
      }
    },
  }
}
