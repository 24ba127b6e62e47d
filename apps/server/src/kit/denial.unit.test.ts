import type { AddressInfo } from 'node:net'
import { createClient, Errors } from '@scaleway/sdk-client'
import Fastify from 'fastify'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { systemClock } from './clock.ts'
import type { Denial } from './denial.ts'
import { openLog } from './log.ts'
import { openManagement } from './management.ts'
import { no } from './outcome.ts'

// Whatever the management API can say no with becomes the class that the vendor's SDK has for it (control-plane.md 3). A standard error
// that lacks a field would silently become the general one.

const id = '4ef10000-1d16-472c-a5d9-a40a55424e4e'

/** One of each; a new kind does not compile until it stands here. */
const DENIALS: { readonly [T in Denial['type']]: Extract<Denial, { type: T }> } = {
  invalid_arguments: {
    type: 'invalid_arguments',
    details: (['required', 'format', 'constraint', 'unknown'] as const).map((reason) => ({
      argument_name: 'endpoints',
      reason,
      help_message: 'Deployments must have at least one endpoint',
    })),
  },
  denied_authentication: { type: 'denied_authentication', method: 'jwt', reason: 'expired' },
  permissions_denied: { type: 'permissions_denied', details: [{ resource: 'cockpit', action: 'read' }] },
  quotas_exceeded: { type: 'quotas_exceeded', details: [{ resource: 'UsrProjectsWidth', quota: 25, current: 25 }] },
  not_found: { type: 'not_found', resource: 'deployment', resource_id: id },
  already_exists: { type: 'already_exists', resource: 'Budget', resource_id: '', help_message: 'there is one' },
  transient_state: { type: 'transient_state', resource: 'group', resource_id: id, current_state: 'updating' },
  conflict: { type: 'conflict', message: 'two at once' },
  expired: { type: 'expired', resource: 'invitation', resource_id: id, expired_since: '2026-06-10T16:12:40.585Z' },
  precondition_failed: { type: 'precondition_failed', precondition: 'resource_still_in_use', help_message: 'not empty' },
  locked: { type: 'locked', resource: 'deployment', resource_id: id },
  too_many_requests: { type: 'too_many_requests', help_message: 'wait', retryAfterMs: 1_500 },
  out_of_stock: { type: 'out_of_stock', resource: 'L4' },
  not_implemented: { type: 'not_implemented' },
  method_not_allowed: { type: 'method_not_allowed' },
}

const app = Fastify()
let apiURL: string

beforeAll(async () => {
  const { manage } = openManagement(app, {
    guard: () => Promise.resolve(no(DENIALS.denied_authentication)),
    clock: systemClock,
    log: openLog('silent'),
    bodyMs: 5_000,
    region: 'fr-par',
  })
  manage({
    method: 'GET',
    path: '/denied/:type',
    summary: 'Says no.',
    needs: 'nobody',
    params: z.object({ type: z.enum(Object.keys(DENIALS) as [Denial['type'], ...Denial['type'][]]) }),
    handle: async ({ params }) => no(DENIALS[params.type]),
  })
  manage({
    method: 'GET',
    path: '/broken',
    summary: 'Fails.',
    needs: 'nobody',
    handle: () => Promise.reject(new Error('the password is 1234')),
  })
  await app.listen({ host: '127.0.0.1', port: 0 })
  apiURL = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
})
afterAll(() => app.close())

const errorOf = (path: string): Promise<unknown> =>
  createClient({ apiURL })
    .fetch({ method: 'GET', path })
    .then(
      () => undefined,
      (error: unknown) => error,
    )

const CLASSES: readonly [type: Denial['type'], status: number, kind: new (...given: never[]) => Error, fields: object][] = [
  [
    'invalid_arguments',
    400,
    Errors.InvalidArgumentsError,
    { details: { length: 4, 0: { argumentName: 'endpoints', reason: 'required' } } },
  ],
  ['denied_authentication', 401, Errors.DeniedAuthenticationError, { method: 'jwt', reason: 'expired' }],
  ['permissions_denied', 403, Errors.PermissionsDeniedError, { list: [{ resource: 'cockpit', action: 'read' }] }],
  ['quotas_exceeded', 403, Errors.QuotasExceededError, { list: [{ resource: 'UsrProjectsWidth', quota: 25, current: 25 }] }],
  ['not_found', 404, Errors.ResourceNotFoundError, { resource: 'deployment', resourceId: id }],
  ['already_exists', 409, Errors.AlreadyExistsError, { resource: 'Budget', resourceId: '', helpMessage: 'there is one' }],
  ['transient_state', 409, Errors.TransientStateError, { resource: 'group', resourceId: id, currentState: 'updating' }],
  ['conflict', 409, Errors.ScalewayError, { rawMessage: 'two at once' }],
  [
    'expired',
    410,
    Errors.ResourceExpiredError,
    { resource: 'invitation', resourceId: id, expiredSince: new Date('2026-06-10T16:12:40.585Z') },
  ],
  ['precondition_failed', 412, Errors.PreconditionFailedError, { precondition: 'resource_still_in_use', helpMessage: 'not empty' }],
  ['locked', 423, Errors.ResourceLockedError, { resource: 'deployment', resourceId: id }],
  ['too_many_requests', 429, Errors.TooManyRequestsError, { helpMessage: 'wait', resetSeconds: 2 }],
  ['out_of_stock', 503, Errors.OutOfStockError, { resource: 'L4' }],
  ['not_implemented', 501, Errors.ScalewayError, { rawMessage: 'this method is not implemented' }],
  ['method_not_allowed', 405, Errors.ScalewayError, { rawMessage: 'there is no such method on this resource' }],
]

test.each(CLASSES)('%s is status %s and the SDK’s own class', async (type, status, kind, fields) => {
  const error = await errorOf(`/denied/${type}`)
  expect(error).toBeInstanceOf(kind)
  // Not one of the classes below it, which the general one has many of.
  expect((error as Error).constructor).toBe(kind)
  expect(error).toMatchObject({ status, ...fields })
})

test('each kind of denial is tried', () => {
  expect(CLASSES.map(([type]) => type).toSorted()).toEqual(Object.keys(DENIALS).toSorted())
})

test('who is told to wait is told how long, in whole seconds', async () => {
  expect((await fetch(`${apiURL}/denied/too_many_requests`)).headers.get('retry-after')).toBe('2')
})

test('a fault tells nothing but that it is one', async () => {
  expect(await errorOf('/broken')).toMatchObject({ status: 500, rawMessage: 'Internal error' })
  expect(await (await fetch(`${apiURL}/broken`)).json()).toEqual({ message: 'Internal error' })
})
