import { describe, expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import { changeLife, type Life, type LifeChange, lifeFault, monthsLater, nextTurn, statusAt } from './life-cycle.ts'

const at = (text: string): Instant => Date.parse(text) as Instant
const NOW = at('2026-06-15T12:00:00Z')
const LAUNCH = at('2026-01-31T12:00:00Z')
const life = (more: Partial<Life> = {}): Life => ({
  status: 'active',
  createdAt: LAUNCH,
  deprecatedAt: null,
  endOfLifeAt: null,
  ...more,
})

test('months end where they end, and a leap day is a day', () => {
  expect(new Date(monthsLater(at('2026-01-31T12:00:00Z'), 1)).toISOString()).toBe('2026-02-28T12:00:00.000Z')
  expect(new Date(monthsLater(at('2027-11-30T00:00:00Z'), 3)).toISOString()).toBe('2028-02-29T00:00:00.000Z')
  expect(new Date(monthsLater(at('2026-12-15T00:00:00Z'), 8)).toISOString()).toBe('2027-08-15T00:00:00.000Z')
})

test('what is announced holds from its instant on, to the millisecond', () => {
  const announced = life({ deprecatedAt: at('2026-07-01T00:00:00Z'), endOfLifeAt: at('2026-12-01T00:00:00Z') })
  expect(statusAt(announced, NOW)).toBe('active')
  expect(statusAt(announced, at('2026-06-30T23:59:59.999Z'))).toBe('active')
  expect(statusAt(announced, at('2026-07-01T00:00:00Z'))).toBe('deprecated')
  expect(statusAt(announced, at('2026-12-01T00:00:00Z'))).toBe('eol')
  expect(nextTurn(announced, NOW)).toBe(at('2026-07-01T00:00:00Z'))
  expect(nextTurn(announced, at('2026-07-01T00:00:00Z'))).toBe(at('2026-12-01T00:00:00Z'))
  expect(nextTurn(announced, at('2026-12-01T00:00:00Z'))).toBe(Number.POSITIVE_INFINITY)
})

describe('serverless-platform.md 8.2', () => {
  const asked = (before: Life, change: LifeChange, waived = false) => lifeFault(before, changeLife(before, change, NOW), NOW, { waived })

  test('an active model has eight months from its launch and three from the announcement', () => {
    // Launched on the last day of January: eight months are the last day of September.
    expect(asked(life(), { endOfLifeAt: at('2026-09-30T11:59:59.999Z') })).toMatchObject({ field: 'endOfLifeAt' })
    expect(asked(life(), { endOfLifeAt: at('2026-09-30T12:00:00Z') })).toBeUndefined()
    const old = life({ createdAt: at('2025-01-01T00:00:00Z') })
    expect(asked(old, { endOfLifeAt: at('2026-09-15T11:59:59.999Z') })?.why).toContain('2026-09-15T12:00:00.000Z')
    expect(asked(old, { endOfLifeAt: at('2026-09-15T12:00:00Z') })).toBeUndefined()
  })

  test('a preview has a month of each', () => {
    const preview = life({ status: 'preview', createdAt: at('2026-06-01T00:00:00Z') })
    expect(asked(preview, { endOfLifeAt: at('2026-07-15T11:59:59Z') })?.why).toContain('a month after its launch and 1 after')
    expect(asked(preview, { endOfLifeAt: at('2026-07-15T12:00:00Z') })).toBeUndefined()
  })

  test('an end that was announced may be put off, and not brought forward', () => {
    const announced = life({ deprecatedAt: at('2026-05-01T00:00:00Z'), endOfLifeAt: at('2026-10-01T00:00:00Z') })
    expect(asked(announced, { endOfLifeAt: at('2026-11-01T00:00:00Z') })).toBeUndefined()
    expect(asked(announced, { endOfLifeAt: at('2026-07-01T00:00:00Z') })).toMatchObject({ field: 'endOfLifeAt' })
    expect(asked(announced, { endOfLifeAt: null })).toBeUndefined()
  })

  test.each([
    ['preview', 'active', true],
    ['preview', 'deprecated', true],
    ['active', 'deprecated', true],
    ['active', 'preview', false],
    ['active', 'eol', false],
    ['deprecated', 'active', false],
    ['eol', 'active', false],
  ] as const)('%s becomes %s: %s', (from, to, may) => {
    const before = life({ status: from, createdAt: at('2020-01-01T00:00:00Z') })
    expect(asked(before, { status: to }) === undefined).toBe(may)
    // The operator may all of it, and says so.
    expect(asked(before, { status: to }, true)).toBeUndefined()
    if (from === 'preview' || from === 'active') expect(statusAt(changeLife(before, { status: to }, NOW), NOW)).toBe(to)
  })

  test('whose end is announced is deprecated from then on, and taken back it is used again', () => {
    const ends = changeLife(life(), { endOfLifeAt: at('2026-12-01T00:00:00Z') }, NOW)
    expect(statusAt(ends, NOW)).toBe('deprecated')
    expect(changeLife(ends, { status: 'active', endOfLifeAt: null }, NOW)).toMatchObject({ status: 'active', deprecatedAt: null })
    expect(asked(life(), { deprecatedAt: at('2027-01-01T00:00:00Z'), endOfLifeAt: at('2026-12-01T00:00:00Z') }, true)).toMatchObject({
      field: 'endOfLifeAt',
    })
    expect(asked(life(), { deprecatedAt: at('2026-01-01T00:00:00Z') })).toMatchObject({ field: 'deprecatedAt' })
  })
})
