import type { OrganizationId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

/** What a request may cost at most, in tokens: the input as guessed before it is counted, the output up to its limit. */
export type Estimate = { readonly inputTokens: number; readonly outputTokens: number }

/** Leave to begin. Whoever takes one settles it, with what was truly used; zero when nothing was served. */
export type Ticket = {
  /** Safe to call twice. */
  settle(usedTokens: number): void
}

export type Admit = (caller: { readonly organizationId: OrganizationId }, model: { readonly name: string }, estimate: Estimate) => Outcome<Ticket>

/**
 * Requests of one organization that are not yet fully answered, streams included, over all models:
 * the published figure of data-plane.md 4.1.
 */
const MAX_CONCURRENT = 100

// A place comes free when any answer ends, which nobody can foretell; a second is short for a client and long for us.
const CONCURRENCY_RETRY_MS = 1_000

/**
 * The limits that hold today: concurrent requests per organization, counted in this process.
 * Minutes, tiers and budgets have their place in the ticket: the estimate goes in, the true count comes back.
 */
export const openAdmission = (maxConcurrent: number = MAX_CONCURRENT): { admit: Admit; open(): number } => {
  const running = new Map<OrganizationId, number>()
  let total = 0

  const admit: Admit = (caller, model) => {
    const now = running.get(caller.organizationId) ?? 0
    if (now >= maxConcurrent) return no({ code: 'limit_reached', limit: 'concurrency', model: model.name, retryAfterMs: CONCURRENCY_RETRY_MS })
    running.set(caller.organizationId, now + 1)
    total += 1
    let settled = false
    return yes({
      settle() {
        if (settled) return
        settled = true
        total -= 1
        const left = (running.get(caller.organizationId) ?? 1) - 1
        if (left === 0) running.delete(caller.organizationId)
        else running.set(caller.organizationId, left)
      },
    })
  }

  return { admit, open: () => total }
}
