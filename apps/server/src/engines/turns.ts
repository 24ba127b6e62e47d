/** Who waits, for the order in which they are served: whose it is, and how much of an engine it will take, in tokens. */
export type Party = { readonly projectId: string; readonly tokens: number }

/** Somebody without a project of their own waits as one of a crowd, in the order of asking. */
export const NOBODY: Party = { projectId: '', tokens: 1 }

export type Turns = {
  /** When this party would begin, in tokens served since the queue was last empty; the least comes first. */
  startOf(party: Party): number
  /** Takes the place that `startOf` has told. */
  enter(party: Party, start: number): void
  served(start: number): void
  /** Gave up waiting: what it would have taken is its project's again. */
  left(party: Party): void
}

/**
 * Fair shares of what an engine can do, by tokens and not by requests (start-time fair queueing). What a project has asked for lies one behind the
 * other, as if it had an engine of its own; whoever begins earliest there is next. So a project with two hundred requests and one with a single one take
 * turns, and one long prompt weighs as much as many short ones.
 */
export const openTurns = (): Turns => {
  const ends = new Map<string, number>()
  let now = 0
  return {
    startOf: ({ projectId }) => Math.max(now, ends.get(projectId) ?? 0),
    enter: ({ projectId, tokens }, start) => void ends.set(projectId, start + Math.max(1, tokens)),
    served: (start) => {
      now = Math.max(now, start)
    },
    left: ({ projectId, tokens }) => void ends.set(projectId, Math.max(now, (ends.get(projectId) ?? 0) - Math.max(1, tokens))),
  }
}
