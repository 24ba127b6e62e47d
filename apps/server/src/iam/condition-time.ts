import type { Clock } from '../kit/clock.ts'
import type { OrganizationId } from '../kit/ids.ts'

/** The part of a process's time that the conditions of one organization may take for good. */
const SHARE = 0.1
/** And so much at once: whoever has hundreds of rules may send a burst of requests. */
const AT_ONCE_MS = 1_000

export type ConditionTime = {
  /** How long until conditions of the organization are asked again; 0 when they are. */
  waitMs(organizationId: OrganizationId): number
  /** Notes how long they took for one request. */
  spend(organizationId: OrganizationId, tookMs: number): void
}

/**
 * What an organization writes into its conditions runs in the process that serves everybody, at every request of a key that needs them,
 * whether the request is refused in the end or not, and no limit of requests or tokens comes before it. So it is time that is counted,
 * of all keys of an organization together and wherever they come from: neither more keys nor more addresses get more of it. Each process
 * counts for itself, since it is its own time.
 */
export const openConditionTime = (clock: Clock): ConditionTime => {
  // As many as there are organizations with conditions.
  const spent = new Map<OrganizationId, { ms: number; at: number }>()
  const left = ({ ms, at }: { ms: number; at: number }): number => Math.max(0, ms - Math.max(0, clock.now() - at) * SHARE)
  return {
    waitMs: (organizationId) => {
      const entry = spent.get(organizationId)
      return entry === undefined ? 0 : Math.ceil(Math.max(0, left(entry) - AT_ONCE_MS) / SHARE)
    },
    spend: (organizationId, tookMs) => {
      const entry = spent.get(organizationId)
      const at = clock.now()
      if (entry === undefined) spent.set(organizationId, { ms: tookMs, at })
      else {
        entry.ms = left(entry) + tookMs
        entry.at = at
      }
    },
  }
}
