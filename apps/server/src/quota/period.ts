import { type Instant, instantToDate } from '../kit/clock.ts'

/** A day or a month of UTC (serverless-platform.md 4.4: "reset at 00:00 UTC / first of the month"). */
export type Period = { readonly name: string; readonly startsAt: Instant; readonly endsAt: Instant }

export const periodAt = (kind: 'day' | 'month', now: Instant): Period => {
  const date = instantToDate(now)
  const [year, month, day] = [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate()]
  const startsAt = (kind === 'day' ? Date.UTC(year, month, day) : Date.UTC(year, month)) as Instant
  const endsAt = (kind === 'day' ? Date.UTC(year, month, day + 1) : Date.UTC(year, month + 1)) as Instant
  return {
    name: instantToDate(startsAt)
      .toISOString()
      .slice(0, kind === 'day' ? 10 : 7),
    startsAt,
    endsAt,
  }
}
