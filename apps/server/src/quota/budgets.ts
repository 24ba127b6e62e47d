import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { keyOfBudget } from './gates.ts'
import { type Period, periodAt } from './period.ts'
import { BUDGET_COLUMNS, type Budget, type BudgetRow, type Policy, rowToBudget } from './policy.ts'

/** What has been used of a budget in the period that runs now, by all gateways. */
export type BudgetNow = Budget & { readonly used: number; readonly period_name: string; readonly endsAt: Instant }

export const readBudgets = async (
  db: Pick<Db, 'query'>,
  clock: Pick<Clock, 'now'>,
  organizationId: OrganizationId,
): Promise<BudgetNow[]> => {
  const { rows } = await db.query<BudgetRow>(
    `select ${BUDGET_COLUMNS} from quota_budget where organization_id = $1 order by created_at, id`,
    [organizationId],
  )
  const budgets = rows.map((row) => ({ budget: rowToBudget(row), period: periodAt(row.period, clock.now()) }))
  const keys = budgets.map(({ budget, period }) => keyOfBudget(budget.id, period.name))
  const { rows: parts } = await db.query<{ key: string; used: string }>(
    'select key, sum(used)::text as used from quota_part where key = any ($1) group by key',
    [keys],
  )
  const used = new Map(parts.map((part) => [part.key, Number(part.used)]))
  return budgets.map(({ budget, period }, index) => ({
    ...budget,
    used: used.get(keys[index] ?? '') ?? 0,
    period_name: period.name,
    endsAt: period.endsAt,
  }))
}

/** Events younger than this may be on their way to the ledger of limits, and must not count twice. */
const SETTLED_MS = 10_000
const EVERY_MS = 60_000
/** After a change of the policy: what was used while a new budget was known to the rows and not yet to every gateway has settled by then. */
const AFTER_CHANGE_MS = SETTLED_MS + 2_000
const LOOK_MS = 1_000
const LEAVE_LIMIT_MS = 2_000
/** Longer than any period, so that no row that still counts is lost. */
const KEEP_DAYS = 40
/** In place of a gateway's id: what the books know of and no gateway has told. */
const BOOKS = '00000000-0000-0000-0000-000000000000'

type Account = Pick<Budget, 'organizationId' | 'projectId' | 'principalId' | 'unit'> & { readonly key: string; readonly period: Period }

/**
 * Brings what the ledger of limits knows of a budget up to what the books have. A gateway that died has not told its last second; a batch
 * and whatever else is recorded counts too. What gateways told is never lowered: the larger of the two sums holds.
 */
const reconcile = async (db: Pick<Db, 'query'>, now: Instant, account: Account): Promise<number> => {
  const { rows } = await db.query<{ used: string }>({
    name: 'quota-reconcile',
    text: `
      with state as (select settled_before from usage_total_state),
      -- Hours that have moved since the totals were computed, and the one that runs, are added up from their events; the others are in the totals.
      open_hour as (
        select distinct date_trunc('hour', event.accepted_at, 'UTC') as hour from usage_event event, state
          where event.organization_id = $2 and event.accepted_at >= $6 and event.accepted_at < $7 and event.recorded_at >= state.settled_before
        union select date_trunc('hour', $8::timestamptz, 'UTC')),
      piece as (
        select case kind when 'audio_milliseconds' then 'sound' when 'pages' then kind when 'output_tokens' then 'output'
            when 'cached_input_tokens' then 'cached' else 'input' end as what,
          units, mode, price_id
          from usage_total
          where organization_id = $2 and hour >= $6 and hour < $7 and hour not in (select hour from open_hour)
            and ($3::uuid is null or project_id = $3) and ($4::uuid is null or principal_id = $4)
        union all
        select part.what, part.units, event.mode, event.price_id
          from open_hour join usage_event event on event.accepted_at >= open_hour.hour and event.accepted_at < open_hour.hour + interval '1 hour',
            lateral (values ('input', event.input_tokens - event.cached_input_tokens), ('cached', event.cached_input_tokens),
              ('output', event.output_tokens), ('sound', (event.audio_milliseconds + 999) / 1000 * 1000), ('pages', event.pages)) as part (what, units)
          where event.organization_id = $2 and event.accepted_at >= $6 and event.accepted_at < $7 and event.ended_at < $8
            and ($3::uuid is null or event.project_id = $3) and ($4::uuid is null or event.principal_id = $4) and event.charged),
      booked as (
        select case when $5 = 'tokens' then coalesce(sum(units) filter (where what not in ('sound', 'pages')), 0)
          else coalesce(ceil(sum(
            units * case what when 'input' then price.input when 'cached' then price.cached_input when 'output' then price.output else price.input end
              * case when what = 'sound' and model.type = 'audio' then 1000.0 / 60 when what = 'pages' and model.type = 'ocr' then 1000
                  when what in ('sound', 'pages') or model.type in ('audio', 'ocr') then 0 else 1 end
              * case when mode = 'batch' then 0.5 else 1 end
          ) / 1000), 0) end as used
        from piece left join model_price price on price.id = piece.price_id left join model on model.id = price.model_id),
      told as (select coalesce(sum(used), 0) as used from quota_part where key = $1 and gateway <> '${BOOKS}'),
      corrected as (
        insert into quota_part (key, gateway, used, held, until)
          select $1, '${BOOKS}', greatest(booked.used - told.used, 0)::bigint, 0, now() from booked, told
          on conflict (key, gateway) do update set used = excluded.used, until = excluded.until
          returning used)
      select (told.used + corrected.used)::text as used from told, corrected`,
    values: [
      account.key,
      account.organizationId,
      account.projectId,
      account.principalId,
      account.unit,
      instantToDate(account.period.startsAt),
      instantToDate(account.period.endsAt),
      instantToDate((now - SETTLED_MS) as Instant),
    ],
  })
  return Number(rows[0]?.used ?? 0)
}

/** What the books have of a budget in the period that runs; also of one that is just being made, so that it holds for what is used already. */
export const bringUp = async (
  db: Pick<Db, 'query'>,
  clock: Pick<Clock, 'now'>,
  budget: Budget,
): Promise<{ used: number; period: Period }> => {
  const now = clock.now()
  const period = periodAt(budget.period, now)
  return { used: await reconcile(db, now, { ...budget, key: keyOfBudget(budget.id, period.name), period }), period }
}

/** Once per period: that a budget is used up. */
const noteAlert = async (db: Pick<Db, 'query'>, budget: Budget, period: Period, used: number): Promise<boolean> => {
  const { rowCount } = await db.query(
    `insert into quota_alert (budget_id, period, used) select id, $2, $3 from quota_budget where id = $1 on conflict (budget_id, period) do nothing`,
    [budget.id, period.name, used],
  )
  return rowCount === 1
}

/** Looks after all budgets once a minute and after each change, the first time at once: the state of a budget survives every restart. */
export const watchBudgets = (parts: {
  db: Db
  policy: () => Policy
  clock: Clock
  log: Logger
}): { look(): Promise<void>; close(): Promise<void> } => {
  const { db, clock, log } = parts
  const closing = new AbortController()

  const look = async (): Promise<void> => {
    const { rows } = await db.query<{ id: OrganizationId }>('select id from organization')
    const policy = parts.policy()
    for (const { id: organizationId } of rows) {
      for (const budget of policy.budgets(organizationId)) {
        if (closing.signal.aborted) return
        const { used, period } = await bringUp(db, clock, budget)
        if (used < budget.amount || !(await noteAlert(db, budget, period, used))) continue
        log.warn(
          { budget: budget.id, organizationId, period: period.name, used, amount: budget.amount, hard: budget.hard },
          'a budget is used up',
        )
      }
      if (policy.limits(organizationId, '*').free_tokens_per_month === null) continue
      const period = periodAt('month', clock.now())
      const key = keyOfBudget(`free ${organizationId}`, period.name)
      await reconcile(db, clock.now(), { organizationId, projectId: null, principalId: null, unit: 'tokens', key, period })
    }
    await db.query(
      `delete from quota_part where until < now() - interval '${KEEP_DAYS} days' or ((key like 'places %' or key like 'batches %') and until < now() - interval '1 hour')`,
    )
  }

  const loop = async (): Promise<void> => {
    let known = parts.policy()
    let due = clock.monotonicMs()
    let afterChange = Number.POSITIVE_INFINITY
    while (!closing.signal.aborted) {
      const now = clock.monotonicMs()
      if (parts.policy() !== known) afterChange = now + AFTER_CHANGE_MS
      known = parts.policy()
      if (now >= Math.min(due, afterChange)) {
        due = now + EVERY_MS
        if (now >= afterChange) afterChange = Number.POSITIVE_INFINITY
        try {
          await look()
        } catch (error) {
          log.warn({ err: error }, 'budgets cannot be compared with the books now')
        }
      }
      await clock.sleep(LOOK_MS, closing.signal).catch(() => undefined)
    }
  }
  const running = loop()

  return {
    look,
    close: async () => {
      closing.abort()
      // A database that does not answer must not keep a stop waiting; what is under way only reads, or says again what it said before.
      const late = new AbortController()
      await Promise.race([running, clock.sleep(LEAVE_LIMIT_MS, late.signal).catch(() => undefined)])
      late.abort()
    },
  }
}
