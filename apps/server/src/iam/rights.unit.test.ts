import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import type { ProjectId } from '../kit/ids.ts'
import type { Right } from './permission-sets.ts'
import { covers, type Grant, permitsOnCondition, permitsPlainly, type Rights } from './rights.ts'

const RIGHTS = ['deployment:read', 'deployment:write', 'serverless:use'] as const
const PROJECTS = ['a', 'b', 'c'] as ProjectId[]
const origin = { ip: '192.0.2.1', userAgent: '' }
const now = 0 as Instant

const permits = (rights: Rights, right: Right, project?: ProjectId): boolean => {
  const plainly = permitsPlainly(rights, right, project)
  return plainly === 'depends' ? permitsOnCondition(rights, right, project, origin, now) : plainly
}

const grants = fc.array(
  fc.record<Grant>({
    rights: fc.subarray([...RIGHTS]).map((rights) => new Set<Right>(rights)),
    projects: fc.option(
      fc.subarray(PROJECTS).map((projects) => new Set(projects)),
      { nil: undefined },
    ),
    condition: fc.constantFrom(
      undefined,
      () => true,
      () => false,
    ),
  }),
  { maxLength: 4 },
)
const asked = fc.tuple(fc.constantFrom(...RIGHTS), fc.constantFrom(undefined, ...PROJECTS))

test('rights are the union of the grants: what one of them permits, all of them do, in any order, and nothing else', () => {
  fc.assert(
    fc.property(grants, asked, (all, [right, project]) => {
      const alone = all.some((grant) => permits([grant], right, project))
      expect(permits(all, right, project)).toBe(alone)
      expect(permits(all.toReversed(), right, project)).toBe(alone)
    }),
  )
})

test('a grant on projects says nothing of the organization, one on the organization speaks for each project', () => {
  const rights = new Set<Right>(['deployment:read'])
  const some: Grant = { rights, projects: new Set(['a' as ProjectId]), condition: undefined }
  const every: Grant = { rights, projects: undefined, condition: undefined }
  const read = (grant: Grant, project?: ProjectId) => permits([grant], 'deployment:read', project)
  expect([read(some), read(some, 'a' as ProjectId), read(some, 'b' as ProjectId)]).toEqual([false, true, false])
  expect([read(every), read(every, 'b' as ProjectId)]).toEqual([true, true])
})

test('nobody has rights from nothing but the owner, and what a condition decides is not said without asking it', () => {
  expect(permits([], 'deployment:read')).toBe(false)
  expect(permits('everything', 'deployment:read')).toBe(true)
  const on = (condition: () => boolean): Grant => ({ rights: new Set<Right>(['deployment:read']), projects: undefined, condition })
  expect(permitsPlainly([on(() => true)], 'deployment:read', undefined)).toBe('depends')
  expect(permitsPlainly([on(() => true)], 'deployment:write', undefined)).toBe(false)
  expect(permitsOnCondition([on(() => false), on(() => true)], 'deployment:read', undefined, origin, now)).toBe(true)
  expect(permitsOnCondition([on(() => false)], 'deployment:read', undefined, origin, now)).toBe(false)
})

test('anywhere is in the organization or in one project at least', () => {
  const rights = new Set<Right>(['deployment:read'])
  const [a] = PROJECTS as [ProjectId]
  const anywhere = (projects: ReadonlySet<ProjectId> | undefined) =>
    permitsPlainly([{ rights, projects, condition: undefined }], 'deployment:read', 'anywhere')
  expect([anywhere(undefined), anywhere(new Set([a])), anywhere(new Set())]).toEqual([true, true, false])
})

test('who covers another may all that the other may, wherever it may', () => {
  fc.assert(
    fc.property(grants, grants, asked, (mine, theirs, [right, projectId]) => {
      fc.pre(covers(mine, theirs))
      if (permits(theirs, right, projectId)) expect(permits(mine, right, projectId)).toBe(true)
    }),
    { numRuns: 2_000 },
  )
})

test('one covers oneself without conditions; the owner covers everybody and is covered by none; who writes policies covers members', () => {
  const grant = (right: Right, projects?: ProjectId[], condition?: () => boolean): Grant => ({
    rights: new Set([right]),
    projects: projects && new Set(projects),
    condition,
  })
  const [a, b] = PROJECTS as [ProjectId, ProjectId]
  const own = [grant('deployment:read'), grant('deployment:write', [a])]
  expect(covers(own, own)).toBe(true)
  expect(covers([], [])).toBe(true)
  expect(covers('everything', own)).toBe(true)
  expect(covers('everything', 'everything')).toBe(true)
  expect(covers([grant('policy:write')], own)).toBe(true)
  expect(covers([grant('policy:write')], 'everything')).toBe(false)
  expect(covers([grant('policy:write', undefined, () => true)], own)).toBe(false)
  expect(covers([grant('deployment:read')], own)).toBe(false)
  expect(covers([grant('deployment:read', [a])], [grant('deployment:read', [a, b])])).toBe(false)
  // Project by project is as good as in one.
  expect(covers([grant('deployment:read', [a]), grant('deployment:read', [b])], [grant('deployment:read', [a, b])])).toBe(true)
})
