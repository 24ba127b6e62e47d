import type { Instant } from '../kit/clock.ts'
import type { ProjectId } from '../kit/ids.ts'
import type { Origin } from '../kit/management.ts'
import type { Condition } from './condition.ts'
import type { Right } from './permission-sets.ts'

/** One rule, as it is asked at every request. */
export type Grant = {
  readonly rights: ReadonlySet<Right>
  /** Undefined: every project and the organization itself. */
  readonly projects: ReadonlySet<ProjectId> | undefined
  readonly condition: Condition | undefined
}

/** What a principal may do: everything, or the union of its grants. Nothing is ever taken away (serverless-platform.md 5.3). */
export type Rights = 'everything' | readonly Grant[]

/** Whether a right is granted in any project at all. */
export const permitsAnywhere = (rights: Rights, right: Right, origin: Origin, at: Instant): boolean =>
  rights === 'everything' ||
  rights.some(
    (grant) =>
      grant.rights.has(right) &&
      (grant.projects === undefined || grant.projects.size > 0) &&
      (grant.condition === undefined || grant.condition(origin, at)),
  )

/** Without a project the organization as a whole is meant. */
export const permits = (
  rights: Rights,
  right: Right,
  projectId: ProjectId | undefined,
  origin: Origin | undefined,
  at: Instant,
): boolean => {
  if (rights === 'everything') return true
  for (const grant of rights) {
    if (!grant.rights.has(right)) continue
    if (grant.projects !== undefined && (projectId === undefined || !grant.projects.has(projectId))) continue
    if (grant.condition !== undefined && (origin === undefined || !grant.condition(origin, at))) continue
    return true
  }
  return false
}
