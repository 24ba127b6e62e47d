import { type Instant, instantToDate } from '../kit/clock.ts'
import type { ModelStatus } from './model.ts'

/** Where a model is in its life, and what is announced of it (serverless-platform.md 8). */
export type Life = {
  /** `preview` or `active`; the other two are what the instants say, or what was said without one. */
  readonly status: ModelStatus
  readonly createdAt: Instant
  readonly deprecatedAt: Instant | null
  readonly endOfLifeAt: Instant | null
}

const hasCome = (instant: Instant | null, now: Instant): boolean => instant !== null && instant <= now

/** What holds at an instant. */
export const statusAt = ({ status, deprecatedAt, endOfLifeAt }: Omit<Life, 'createdAt'>, now: Instant): ModelStatus => {
  if (status === 'eol' || hasCome(endOfLifeAt, now)) return 'eol'
  return status === 'deprecated' || hasCome(deprecatedAt, now) ? 'deprecated' : status
}

/** When `statusAt` says something else the next time; infinite where that is never. */
export const nextTurn = ({ deprecatedAt, endOfLifeAt }: Pick<Life, 'deprecatedAt' | 'endOfLifeAt'>, now: Instant): number =>
  Math.min(...[deprecatedAt, endOfLifeAt].map((instant) => (instant !== null && instant > now ? instant : Number.POSITIVE_INFINITY)))

/** serverless-platform.md 8.1. */
const MAY_BECOME: Record<ModelStatus, readonly ModelStatus[]> = {
  preview: ['active', 'deprecated'],
  active: ['deprecated'],
  deprecated: ['eol'],
  eol: [],
}

/** In calendar months: how long a model is supported from its launch on, and from the announcement of its end (8.2). */
const GUARANTEES = { preview: { support: 1, notice: 1 }, active: { support: 8, notice: 3 } } as const

/** The same day and time so many months later, or the last day of the month where there is no such day. */
export const monthsLater = (instant: Instant, months: number): Instant => {
  const date = instantToDate(instant)
  const day = date.getUTCDate()
  date.setUTCDate(1)
  date.setUTCMonth(date.getUTCMonth() + months)
  const lastDay = new Date(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 0)).getUTCDate()
  date.setUTCDate(Math.min(day, lastDay))
  return date.getTime() as Instant
}

export type LifeChange = {
  readonly status?: ModelStatus | undefined
  readonly deprecatedAt?: Instant | null | undefined
  readonly endOfLifeAt?: Instant | null | undefined
}

/** Why a change is refused, with the field that it is refused for. */
export type Fault = { readonly field: string; readonly why: string }

const say = (instant: Instant): string => instantToDate(instant).toISOString()

/** A model whose end is announced is deprecated from then on, where nothing else is said: that is what deprecated means. */
const deprecationBefore = (deprecatedAt: Instant | null, endOfLifeAt: Instant | null, now: Instant): Instant | null =>
  deprecatedAt ?? (endOfLifeAt === null ? null : (Math.min(now, endOfLifeAt) as Instant))

/** The life that a change asks for: `deprecated` and `eol` without an instant mean now. */
export const changeLife = (before: Life, change: LifeChange, now: Instant): Life => {
  const endOfLifeAt = change.endOfLifeAt === undefined ? before.endOfLifeAt : change.endOfLifeAt
  const deprecatedAt = change.deprecatedAt === undefined ? deprecationBefore(before.deprecatedAt, endOfLifeAt, now) : change.deprecatedAt
  const base = { ...before, deprecatedAt, endOfLifeAt }
  const current = statusAt(before, now)
  if (change.status === undefined || change.status === current) return base
  if (change.status === 'deprecated') return { ...base, deprecatedAt: change.deprecatedAt ?? now }
  if (change.status === 'eol') {
    const ends = change.endOfLifeAt ?? now
    return { ...base, endOfLifeAt: ends, deprecatedAt: deprecationBefore(deprecatedAt, ends, now) }
  }
  // Back to where it is used: what was said of its end does not hold any more.
  return {
    ...base,
    status: change.status,
    deprecatedAt: change.deprecatedAt ?? (hasCome(deprecatedAt, now) ? null : deprecatedAt),
    endOfLifeAt: change.endOfLifeAt ?? (hasCome(endOfLifeAt, now) ? null : endOfLifeAt),
  }
}

/**
 * What is wrong with a change. Instants in the wrong order always are; `waived` are the moves that the contract has not, and the guarantees:
 * who runs the models may have to, and says so.
 */
export const lifeFault = (before: Life, after: Life, now: Instant, options: { readonly waived: boolean }): Fault | undefined => {
  const { deprecatedAt, endOfLifeAt } = after
  if (deprecatedAt !== null && endOfLifeAt !== null && deprecatedAt > endOfLifeAt)
    return { field: 'endOfLifeAt', why: 'the end of life does not come before the deprecation' }
  if (options.waived) return undefined
  const [from, to] = [statusAt(before, now), statusAt(after, now)]
  const ends = endOfLifeAt !== null && endOfLifeAt !== before.endOfLifeAt
  const kind = before.status === 'preview' ? 'preview' : 'active'
  if (ends && (before.endOfLifeAt === null || endOfLifeAt < before.endOfLifeAt)) {
    const { support, notice } = GUARANTEES[kind]
    const noticed = monthsLater(now, notice)
    const supported = monthsLater(before.createdAt, support)
    const earliest = Math.max(noticed, supported) as Instant
    if (endOfLifeAt < earliest) {
      const why = `a model that is ${kind} ends ${support} months after its launch and ${notice} after the announcement at the earliest: ${say(earliest)}`
      return { field: 'endOfLifeAt', why: why.replace('1 months', 'a month') }
    }
  }
  if (from !== to && !MAY_BECOME[from].includes(to)) return { field: 'status', why: `a model that is ${from} does not become ${to}` }
  if (deprecatedAt !== null && deprecatedAt !== before.deprecatedAt && deprecatedAt < now)
    return { field: 'deprecatedAt', why: 'what is announced does not lie in the past' }
  return undefined
}
