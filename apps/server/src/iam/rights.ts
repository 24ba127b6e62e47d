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

/** `anywhere`: in whichever project, or in the organization. Without a project the organization as a whole is meant. */
export type Where = ProjectId | 'anywhere' | undefined

const speaksOf = (grant: Grant, right: Right, where: Where): boolean => {
  const { rights, projects } = grant
  if (!rights.has(right)) return false
  if (projects === undefined) return true
  return where === 'anywhere' ? projects.size > 0 : where !== undefined && projects.has(where)
}

/** What the rules without a condition say, which costs next to nothing; `depends`: another one may grant it, on its condition. */
export const permitsPlainly = (rights: Rights, right: Right, where: Where): boolean | 'depends' => {
  if (rights === 'everything') return true
  let depends = false
  for (const grant of rights) {
    if (!speaksOf(grant, right, where)) continue
    if (grant.condition === undefined) return true
    depends = true
  }
  return depends && 'depends'
}

/** Whether one of those rules grants it now. `known`: what conditions have said of the same request. */
export const permitsOnCondition = (
  rights: Rights,
  right: Right,
  where: Where,
  origin: Origin,
  at: Instant,
  known?: Map<Condition, boolean>,
): boolean => {
  if (rights === 'everything') return false
  for (const grant of rights) {
    const { condition } = grant
    if (condition === undefined || !speaksOf(grant, right, where)) continue
    const holds = known?.get(condition) ?? condition(origin, at)
    known?.set(condition, holds)
    if (holds) return true
  }
  return false
}
