import { z } from 'zod'

/** An amount (control-plane.md 2.4). */
export const MoneyJson = z.object({ currency_code: z.string(), units: z.int(), nanos: z.int() })

/** Nobody says how many lines fit on a page that was not asked for; the recorded ones were all on it. */
export const ONE_PAGE = 10_000
