import type pg from 'pg'
import { z } from 'zod'
import type { Price } from '../catalog/model.ts'
import { readPrices } from '../catalog/prices.ts'
import { dateToInstant, type Instant } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import type { Cents, PicoEuro } from '../kit/money.ts'
import { lateEvents, readKeptFrom, readSums, type Sum } from '../usage/totals.ts'
import { isMonth, type Month, monthEnd, monthOf, monthStart, nextMonth } from './month.ts'
import { type Bill, type FreePools, type LineKey, METERS, type Meter, type Quantity, type QuotedPrice, rate } from './rate.ts'
import type { Terms } from './terms.ts'

/** A month of an organization: what it owes, and whether that can still change. */
export type MonthBill = {
  readonly organizationId: OrganizationId
  readonly month: Month
  /** Null while it is provisional. */
  readonly closedAt: Instant | null
  readonly bill: Bill
  /** What the free tier had to give. */
  readonly pools: FreePools
  /** As they were when the month was closed, or are now. */
  readonly projectNames: Readonly<Record<ProjectId, string>>
  /** The first month that still has its events. What came late to those before it is on this bill or an earlier one: nothing comes to them any more. */
  readonly keptFrom: Month | null
  /** What was used under a price that nobody knows, which cannot happen to a sound database. A month with some is not closed. */
  readonly unpriced: readonly Sum[]
}

type Client = Db | pg.PoolClient

/** Cached input is input where the model has no price of its own for it (serverless-platform.md 2.2): one line, rounded once. */
const meterOf = (kind: Sum['kind'], price: Price): { meter: Meter; price: bigint } => {
  switch (kind) {
    case 'input_tokens':
      return { meter: 'input_token', price: price.input }
    case 'cached_input_tokens':
      return price.cachedInput === price.input
        ? { meter: 'input_token', price: price.input }
        : { meter: 'input_cached_token', price: price.cachedInput }
    case 'output_tokens':
      return { meter: 'output_token', price: price.output }
    // The input price of an audio model is per minute of sound.
    case 'audio_milliseconds':
      return { meter: 'input_duration', price: price.input }
    // That of a model that reads documents is per 1,000 pages.
    case 'pages':
      return { meter: 'page', price: price.input }
  }
}

/** What was used from one month's first hour to its last, by what a line is made of. */
const readQuantities = async (
  client: Client,
  organizationId: OrganizationId,
  month: Month,
): Promise<{ quantities: Quantity[]; unpriced: Sum[] }> => {
  const sums = await readSums(client, { organizationId, from: monthStart(month), to: monthEnd(month) })
  const prices = await readPrices(client, [...new Set(sums.map(({ priceId }) => priceId))])
  const unpriced: Sum[] = []
  const quantities = sums.flatMap((sum): Quantity[] => {
    const known = prices.get(sum.priceId)
    if (known === undefined) {
      unpriced.push(sum)
      return []
    }
    const { meter, price } = meterOf(sum.kind, known)
    return [
      {
        projectId: sum.projectId,
        product: sum.model,
        mode: sum.mode,
        meter,
        price: price as QuotedPrice,
        lateFrom: null,
        units: sum.units,
      },
    ]
  })
  return { quantities, unpriced }
}

const quantityKey = (line: LineKey & { projectId: ProjectId }): string =>
  [line.projectId, line.product, line.mode, line.meter, line.price].join('\n')

/** As far as a clock that is set back puts back the mark of the totals (usage/totals.ts), and longer than any statement may run that began before a month was frozen. */
const SETTLING_MS = 86_400_000

const readKeptMonth = async (client: Client): Promise<Month | null> => {
  const keptFrom = await readKeptFrom(client)
  return keptFrom === Number.NEGATIVE_INFINITY ? null : monthOf(keptFrom)
}

/**
 * The closed months that events may have come to since they were frozen: as far back as the ledger takes any. It only spares us the sums of all the
 * others: what is owed is a difference of sums, so one month too many costs time and nothing else.
 */
const readLateMonths = async (
  client: Client,
  organizationId: OrganizationId,
  before: Month,
  keptFrom: Month | null,
): Promise<readonly Month[]> => {
  const { rows } = await client.query<{ month: Month; frozen_at: Date }>(
    // A month that was frozen by a clock that was ahead had been due by the one before it.
    `select month, least(frozen_at, due_at) as frozen_at from bill
      where organization_id = $1 and month < $2 and closed_at is not null
        and month >= coalesce((select content ->> 'keptFrom' from bill
                                where organization_id = $1 and month < $2 and closed_at is not null
                                order by month desc limit 1), '')
      order by month`,
    [organizationId, before],
  )
  // Late events go to the first month that is still open, and to no other.
  const last = rows.at(-1)
  if (last === undefined || nextMonth(last.month) !== before) return []
  const late: Month[] = []
  for (const { month: closed, frozen_at: frozenAt } of rows) {
    // Its events are gone, and what came late with them; only its sums can still tell.
    if (keptFrom !== null && closed < keptFrom) {
      late.push(closed)
      continue
    }
    const recordedFrom = (dateToInstant(frozenAt) - SETTLING_MS) as Instant
    const events = await lateEvents(client, { organizationId, from: monthStart(closed), to: monthEnd(closed), recordedFrom })
    if (events.length > 0) late.push(closed)
  }
  return late
}

/**
 * What closed months have become since, less all that has been billed of them, then or later: the events that came late. It is a
 * difference of absolute sums, so it is the same however often it is asked for.
 */
const readLate = async (
  client: Client,
  organizationId: OrganizationId,
  before: Month,
  keptFrom: Month | null,
): Promise<{ quantities: Quantity[]; unpriced: Sum[] }> => {
  const quantities: Quantity[] = []
  const unpriced: Sum[] = []
  const months = await readLateMonths(client, organizationId, before, keptFrom)
  const [first] = months
  const closed = first === undefined ? [] : await readClosed(client, organizationId, first)
  for (const month of months) {
    const billed = new Map<string, bigint>()
    for (const { bill, month: billedIn } of closed) {
      for (const line of bill.projects.flatMap((project) => project.lines)) {
        if ((line.lateFrom ?? billedIn) !== month) continue
        const key = quantityKey(line)
        billed.set(key, (billed.get(key) ?? 0n) + line.units)
      }
    }
    const now = await readQuantities(client, organizationId, month)
    unpriced.push(...now.unpriced)
    const owed = new Map<string, Quantity>()
    for (const quantity of now.quantities) {
      const key = quantityKey(quantity)
      owed.set(key, { ...quantity, lateFrom: month, units: (owed.get(key)?.units ?? 0n) + quantity.units })
    }
    for (const [key, quantity] of owed) {
      const units = quantity.units - (billed.get(key) ?? 0n)
      // Less than was billed is no debt of ours to guess at: a credit note is a person's decision.
      if (units > 0n) quantities.push({ ...quantity, units })
    }
  }
  return { quantities, unpriced }
}

const whole = z
  .string()
  .regex(/^-?\d+$/)
  .transform(BigInt)
const cents = whole.transform((value) => value as Cents)
const pico = whole.transform((value) => value as PicoEuro)
const month = z
  .string()
  .refine(isMonth)
  .transform((text) => text as Month)
const projectId = z.string().transform((text) => text as ProjectId)
const key = {
  product: z.string(),
  mode: z.enum(['realtime', 'batch']),
  meter: z.enum(METERS),
  price: whole.transform((value) => value as QuotedPrice),
  lateFrom: month.nullable(),
}
const pools = z.object({ tokens: whole, audio: whole })

/** A frozen bill as its row has it: amounts as decimal strings. */
const Content = z.object({
  bill: z.object({
    lines: z.array(z.object({ ...key, units: whole, freeUnits: whole, billedUnits: whole, exact: pico, cents, grossCents: cents })),
    projects: z.array(
      z.object({
        projectId,
        lines: z.array(z.object({ ...key, projectId, units: whole, billedUnits: whole, exact: pico, cents })),
        grossCents: cents,
        deductedCents: cents,
        cents,
      }),
    ),
    freeUnits: pools,
    grossCents: cents,
    deductedCents: cents,
    cents,
  }),
  pools,
  projectNames: z.record(projectId, z.string()),
  // Older ones do not have it.
  keptFrom: month.nullable().default(null),
})

export const billToContent = ({ bill, pools: given, projectNames, keptFrom }: MonthBill): string =>
  JSON.stringify({ bill, pools: given, projectNames, keptFrom }, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))

type BillRow = { readonly month: Month; readonly closed_at: Date; readonly content: unknown }

const rowToBill = (organizationId: OrganizationId, row: BillRow): MonthBill => ({
  organizationId,
  month: row.month,
  closedAt: dateToInstant(row.closed_at),
  ...Content.parse(row.content),
  unpriced: [],
})

const readClosed = async (client: Client, organizationId: OrganizationId, from: Month, to?: Month): Promise<MonthBill[]> => {
  const { rows } = await client.query<BillRow>(
    `select month, closed_at, content from bill
      where organization_id = $1 and month >= $2 and ($3::text is null or month <= $3) and closed_at is not null
      order by month`,
    [organizationId, from, to ?? null],
  )
  return rows.map((row) => rowToBill(organizationId, row))
}

/** Every frozen bill of an organization, oldest first. */
export const readClosedBills = (client: Client, organizationId: OrganizationId): Promise<MonthBill[]> =>
  readClosed(client, organizationId, '0000-01' as Month)

const readProjectNames = async (client: Client, organizationId: OrganizationId): Promise<Record<ProjectId, string>> => {
  const { rows } = await client.query<{ id: ProjectId; name: string }>('select id, name from project where organization_id = $1', [
    organizationId,
  ])
  return Object.fromEntries(rows.map(({ id, name }) => [id, name]))
}

const less = (pool: bigint, used: bigint): bigint => (used < pool ? pool - used : 0n)

/** What is left of a pool that is given once: less what every earlier month took, closed or still open. */
const readLifetimePools = async (
  client: Client,
  terms: Terms,
  organizationId: OrganizationId,
  before: Month,
  keptFrom: Month | null,
): Promise<FreePools> => {
  const { rows } = await client.query<{ tokens: string; audio: string; first_open: Month | null }>(
    `select coalesce(sum((content #>> '{bill,freeUnits,tokens}')::numeric), 0)::text as tokens,
            coalesce(sum((content #>> '{bill,freeUnits,audio}')::numeric), 0)::text as audio,
            min(month) filter (where closed_at is null) as first_open
       from bill
      where organization_id = $1 and month < $2`,
    [organizationId, before],
  )
  let { tokens, audio } = terms.freePools
  tokens = less(tokens, BigInt(rows[0]?.tokens ?? 0))
  audio = less(audio, BigInt(rows[0]?.audio ?? 0))
  const firstOpen = rows[0]?.first_open ?? null
  for (let open = firstOpen; open !== null && open < before; open = nextMonth(open)) {
    const own = await readQuantities(client, organizationId, open)
    const late = await readLate(client, organizationId, open, keptFrom)
    const { freeUnits } = rate([...own.quantities, ...late.quantities], { tokens, audio })
    tokens = less(tokens, freeUnits.tokens)
    audio = less(audio, freeUnits.audio)
  }
  return { tokens, audio }
}

/** The bill of a month as it stands: the frozen one, or what closing it now would make of it. */
export const readBill = async (client: Client, terms: Terms, organizationId: OrganizationId, asked: Month): Promise<MonthBill> => {
  const [frozen] = await readClosed(client, organizationId, asked, asked)
  if (frozen !== undefined) return frozen

  // Before any sum: what is dropped from here on is looked at once more by the next bill.
  const keptFrom = await readKeptMonth(client)
  const own = await readQuantities(client, organizationId, asked)
  const late = await readLate(client, organizationId, asked, keptFrom)
  const given = terms.freePeriod === 'monthly' ? terms.freePools : await readLifetimePools(client, terms, organizationId, asked, keptFrom)
  return {
    organizationId,
    month: asked,
    closedAt: null,
    bill: rate([...own.quantities, ...late.quantities], given),
    pools: given,
    projectNames: await readProjectNames(client, organizationId),
    keptFrom,
    unpriced: [...own.unpriced, ...late.unpriced],
  }
}
