import { z } from 'zod'
import type { Db } from './db.ts'

/** One of several words in a query; every `unknown_*` means no choice, since Go always sends it (control-plane.md 2.2). */
export const choice = <const W extends readonly [string, ...string[]]>(words: W) =>
  z
    .string()
    .meta({ enum: [...words] })
    .optional()
    .transform((word, context): W[number] | undefined => {
      if (word === undefined || word.startsWith('unknown_')) return undefined
      if (words.includes(word)) return word
      context.addIssue({ code: 'custom', message: `one of ${words.join(', ')}` })
      return z.NEVER
    })

/** All that a list matches is counted, one page of it is shown (control-plane.md 2.5). */
export const pageOf = <T>(items: readonly T[], page: { page: number; page_size: number }): T[] =>
  items.slice((page.page - 1) * page.page_size, page.page * page.page_size)

/** One page of what a statement finds, and how many it finds in all. Orders must end in something unique, or pages overlap. */
export const readPage = async <Row extends object>(
  db: Db,
  statement: string,
  values: readonly unknown[],
  page: { page: number; page_size: number },
  order: string,
): Promise<{ rows: Row[]; total: number }> => {
  const counted = await db.query<{ total: number }>(`select count(*)::int as total from (${statement}) as found`, [...values])
  const { rows } = await db.query<Row>(
    `select * from (${statement}) as found order by ${order} limit $${values.length + 1} offset $${values.length + 2}`,
    [...values, page.page_size, (page.page - 1) * page.page_size],
  )
  return { rows, total: counted.rows[0]?.total ?? 0 }
}

/** `created_at_asc` and its like, over the columns that a list can be sorted by; ties are broken by the last column. */
export const orderOf = (order: string, columns: Readonly<Record<string, string>>, tie: string): string => {
  const [, field = '', direction = 'asc'] = /^(.*)_(asc|desc)$/.exec(order) ?? []
  return `${columns[field] ?? tie} ${direction} nulls last, ${tie} ${direction}`
}
