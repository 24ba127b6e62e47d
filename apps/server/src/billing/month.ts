import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'

/** A calendar month in UTC, as `2026-05`: what is billed together (serverless-platform.md 3.3). */
export type Month = string & { readonly __unit: 'month' }

const MONTH = /^\d{4}-(0[1-9]|1[0-2])$/

export const isMonth = (text: string): text is Month => MONTH.test(text)

export const monthOf = (instant: Instant): Month => instantToDate(instant).toISOString().slice(0, 7) as Month

export const monthStart = (month: Month): Instant => dateToInstant(new Date(`${month}-01T00:00:00Z`))

export const nextMonth = (month: Month): Month => stepMonth(month, 1)

export const stepMonth = (month: Month, by: number): Month => {
  const date = instantToDate(monthStart(month))
  return monthOf(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + by, 1) as Instant)
}

/** Exclusive: the first instant that is not part of it. */
export const monthEnd = (month: Month): Instant => monthStart(nextMonth(month))
