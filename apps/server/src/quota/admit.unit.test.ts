import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { OrganizationId } from '../kit/ids.ts'
import { openAdmission, type Ticket } from './admit.ts'

const alice = { organizationId: 'a' as OrganizationId }
const bob = { organizationId: 'b' as OrganizationId }
const model = { name: 'tiny-chat' }
const estimate = { inputTokens: 1, outputTokens: 1 }

test('one request more than the threshold is refused, and says when to come back', () => {
  const { admit } = openAdmission(2)
  expect(admit(alice, model, estimate).ok).toBe(true)
  expect(admit(alice, model, estimate).ok).toBe(true)
  const third = admit(alice, model, estimate)
  expect(third.ok ? undefined : third.refusal).toMatchObject({ code: 'limit_reached', limit: 'concurrency', retryAfterMs: 1_000 })
})

test("one organization's requests take nothing from another's", () => {
  const { admit } = openAdmission(1)
  expect(admit(alice, model, estimate).ok).toBe(true)
  expect(admit(bob, model, estimate).ok).toBe(true)
})

test('whatever the order of taking and settling, twice settled or not, no place is lost and none is made', () => {
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 9 }), { maxLength: 200 }), (moves) => {
      const { admit, open } = openAdmission(4)
      const held: Ticket[] = []
      const left: Ticket[] = []
      for (const move of moves) {
        const ticket = move < 5 ? admit(alice, model, estimate) : undefined
        if (ticket?.ok) held.push(ticket.value)
        if (move >= 5 && move < 8) {
          const [gone] = held.splice(move % Math.max(1, held.length), 1)
          gone?.settle(1)
          if (gone) left.push(gone)
        }
        if (move >= 8) left.at(-1)?.settle(1)
        expect(open()).toBe(held.length)
        expect(held.length).toBeLessThanOrEqual(4)
      }
    }),
  )
})
