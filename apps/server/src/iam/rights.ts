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

/**
 * Whether whoever has `mine` may already do all that `theirs` opens: only then may one make a way in for the other. Who may write
 * policies may give itself anything (serverless-platform.md 5.2). What holds on a condition counts as nothing.
 */
export const covers = (mine: Rights, theirs: Rights): boolean => {
  if (mine === 'everything') return true
  if (theirs === 'everything') return false
  const own = mine.filter(({ condition }) => condition === undefined)
  const has = (right: Right, projectId: ProjectId | undefined): boolean =>
    own.some(
      ({ rights, projects }) => rights.has(right) && (projects === undefined || (projectId !== undefined && projects.has(projectId))),
    )
  if (has('policy:write', undefined)) return true
  return theirs.every(({ rights, projects }) =>
    [...rights].every((right) =>
      projects === undefined ? has(right, undefined) : [...projects].every((projectId) => has(right, projectId)),
    ),
  )
}

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
