import { z } from 'zod'

/** An amount (control-plane.md 2.4). */
export const MoneyJson = z.object({ currency_code: z.string(), units: z.int(), nanos: z.int() })

/** All that a list matches is counted, one page of it is shown (control-plane.md 2.5). */
export const pageOf = <T>(items: readonly T[], query: { page: number; page_size: number }): T[] =>
  items.slice((query.page - 1) * query.page_size, query.page * query.page_size)

/** Nobody says how many lines fit on a page that was not asked for; the recorded ones were all on it. */
export const ONE_PAGE = 10_000
