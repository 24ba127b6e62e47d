import { randomUUID } from 'node:crypto'
import type { Db } from '../kit/db.ts'
import { type Answer, HELD_MS, type Ledger, leaseOf } from './ledger.ts'

type Answers = { answers: [number, number][] }

/**
 * The ledger in the database (performance.md 6): one row per bucket, debited when a share is granted, by the database's clock. Budgets and
 * places have a row per gateway, so that what a dead one held is free again when its lease ends.
 */
export const openPostgresLedger = (db: Db, gateway: string = randomUUID()): Ledger => ({
  ask: async (asks) => {
    // The function answers in the order of the keys.
    const sorted = asks.toSorted((one, other) => (one.key < other.key ? -1 : 1))
    const { rows } = await db.query<Answers>({
      name: 'quota-ask',
      text: 'select quota_ask($1::uuid, $2, $3::text::jsonb) as answers',
      values: [
        gateway,
        HELD_MS,
        JSON.stringify(
          sorted.map(({ kind: _kind, refillPerMs, ...ask }) => ({ ...ask, perMs: refillPerMs, lease: leaseOf({ refillPerMs }) })),
        ),
      ],
    })
    const answers = new Map<string, Answer>(
      sorted.map((ask, index) => {
        const [granted = 0, left = 0] = rows[0]?.answers[index] ?? []
        return [ask.key, { granted, left }]
      }),
    )
    return asks.map(({ key }) => answers.get(key) ?? { granted: 0, left: 0 })
  },

  beat: async () => {
    const { rows } = await db.query<{ gateways: number }>({
      name: 'quota-beat',
      text: `
        with lives as (
          insert into quota_gateway (id, until) values ($1, now() + $2 * interval '1 millisecond')
            on conflict (id) do update set until = excluded.until
            returning id),
        died as (delete from quota_gateway where until < now() - interval '1 hour')
        -- One that would live for much longer than we do was last heard of before the clock was set back.
        select 1 + count(*)::int as gateways from quota_gateway, lives
          where quota_gateway.id <> lives.id and until > now() and until < now() + 2 * $2 * interval '1 millisecond'`,
      values: [gateway, HELD_MS],
    })
    return rows[0]?.gateways ?? 1
  },
})
