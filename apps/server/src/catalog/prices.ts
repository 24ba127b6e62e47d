import type pg from 'pg'
import { dateToInstant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { PriceId } from '../kit/ids.ts'
import type { UnitPrice } from '../kit/money.ts'
import type { Price } from './model.ts'

type PriceRow = {
  readonly id: PriceId
  readonly starts_at: Date
  readonly input: bigint
  readonly cached_input: bigint
  readonly output: bigint
}

/** Prices by id, of models that are gone, too: a price never changes and never goes away, because invoices were made of it. */
export const readPrices = async (db: Db | pg.PoolClient, ids: readonly PriceId[]): Promise<ReadonlyMap<PriceId, Price>> => {
  const { rows } = await db.query<PriceRow>(
    'select id, starts_at, input, cached_input, output from model_price where id = any ($1::uuid[])',
    [ids],
  )
  return new Map(
    rows.map((row) => [
      row.id,
      {
        id: row.id,
        startsAt: dateToInstant(row.starts_at),
        input: row.input as UnitPrice,
        cachedInput: row.cached_input as UnitPrice,
        output: row.output as UnitPrice,
      },
    ]),
  )
}
