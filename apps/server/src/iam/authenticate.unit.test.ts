import { expect, test, vi } from 'vitest'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import type { AccessKey, OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import type { Origin } from '../kit/management.ts'
import type { Secrets } from '../kit/secrets.ts'
import { authenticator, type KnownKey } from './authenticate.ts'
import { openConditionTime } from './condition-time.ts'
import { openCookies } from './cookies.ts'
import { openFailures } from './failures.ts'
import { openGuard } from './guard.ts'
import type { Right } from './permission-sets.ts'
import type { Grant, Rights } from './rights.ts'

// Conditions are written by whoever changes policies in some organization, and asked in the process that serves everybody.

const organizationId = '10000000-0000-4000-8000-000000000000' as OrganizationId
const operatorId = '20000000-0000-4000-8000-000000000000' as OrganizationId
const secretKey = '30000000-0000-4000-8000-000000000000'
const principalId = 'somebody' as PrincipalId
const origin: Origin = { ip: '192.0.2.1', userAgent: 'test' }

const projects = Array.from({ length: 300 }, (_, n) => `40000000-0000-4000-8000-${String(n).padStart(12, '0')}` as ProjectId)

/** A house with one key, which has these rights. */
const withRights = (rights: Rights) => {
  let now = 1_000_000
  const clock: Clock = { ...systemClock, now: () => now as Instant }
  const key: KnownKey = {
    accessKey: 'SCW' as AccessKey,
    organizationId,
    principalId,
    kind: 'application',
    rights,
    expiresAt: Number.POSITIVE_INFINITY,
  }
  const known = {
    keys: new Map([[secretKey, key]]),
    projects: new Map<ProjectId, OrganizationId>([...projects, organizationId as string as ProjectId].map((id) => [id, organizationId])),
  }
  const secrets = { hashKeyToText: (text: string) => text } as Secrets
  const failures = openFailures(clock)
  const conditionTime = openConditionTime(clock)
  const authenticate = authenticator(() => known, secrets, clock, failures, conditionTime)
  const guard = openGuard(
    {
      keyOf: (text) => known.keys.get(text),
      knownProjects: () => known.projects,
      rightsOf: () => rights,
      operatorId,
      clock,
      failures,
      conditionTime,
    },
    {
      sessions: { read: async () => 'bad' },
      cookies: openCookies({ publicUrl: () => 'http://parvis.example', behindTls: false }),
    },
  )
  return {
    conditionTime,
    pass: (ms: number) => {
      now += ms
    },
    calls: () => authenticate(`Bearer ${secretKey}`, undefined, origin),
    manages: () => guard({ 'x-auth-token': secretKey }, origin.ip, 'GET'),
  }
}

const grant = (right: Right, condition?: Grant['condition']): Grant => ({ rights: new Set([right]), projects: undefined, condition })
const reads = { resource: 'project', action: 'read', scope: 'project' } as const

test('while its conditions have taken more than their time, a key that needs them is told to wait, and none of them is asked', async () => {
  let asked = 0
  const never = () => {
    asked += 1
    return false
  }
  const house = withRights([grant('serverless:use', never), grant('project:read', never)])
  expect(house.calls()).toEqual({ ok: false, refusal: { code: 'key_refused' } })
  const who = await house.manages()
  expect(who.ok && who.value.may(reads, projects[0])).toBe(false)
  expect(asked).toBe(2)

  house.conditionTime.spend(organizationId, 1_500)
  expect(house.calls()).toEqual({ ok: false, refusal: { code: 'conditions_slow', retryAfterMs: expect.any(Number) } })
  expect(await house.manages()).toMatchObject({ ok: false, refusal: { type: 'too_many_requests', retryAfterMs: expect.any(Number) } })
  expect(asked).toBe(2)
  house.pass(60_000)
  expect(house.calls()).toEqual({ ok: false, refusal: { code: 'key_refused' } })
  expect((await house.manages()).ok).toBe(true)
})

test('how long conditions take is noted, whether they hold or not', async () => {
  let clockMs = 0
  const measured = vi.spyOn(performance, 'now').mockImplementation(() => clockMs)
  for (const holds of [true, false]) {
    const slow = () => {
      clockMs += 30
      return holds
    }
    const house = withRights([grant('serverless:use', slow), grant('project:read', slow)])
    for (let count = 0; count < 1_000 && house.calls().ok === holds; count += 1);
    expect(house.calls()).toMatchObject({ refusal: { code: 'conditions_slow' } })
    house.pass(60_000)
    for (let count = 0; count < 1_000; count += 1) {
      const who = await house.manages()
      if (!who.ok) break
      expect(who.value.may(reads, projects[0])).toBe(holds)
    }
    expect(await house.manages()).toMatchObject({ ok: false, refusal: { type: 'too_many_requests' } })
  }
  measured.mockRestore()
})

test('a rule without a condition is asked first, and lets in whatever conditions have taken', async () => {
  const fail = (): boolean => {
    throw new Error('was asked')
  }
  const house = withRights([grant('serverless:use', fail), grant('serverless:use')])
  house.conditionTime.spend(organizationId, 100_000)
  expect(house.calls().ok).toBe(true)
  const owner = withRights('everything')
  owner.conditionTime.spend(organizationId, 100_000)
  expect([owner.calls().ok, (await owner.manages()).ok]).toEqual([true, true])
})

test('one request asks a condition once, of however many projects its route wants to know', async () => {
  for (const holds of [true, false]) {
    let asked = 0
    const house = withRights([
      grant('project:read', () => {
        asked += 1
        return holds
      }),
    ])
    const who = await house.manages()
    for (const id of projects) expect(who.ok && who.value.may(reads, id)).toBe(holds)
    expect(asked).toBe(1)
    await house.manages()
    expect(asked).toBe(1)
  }
})
