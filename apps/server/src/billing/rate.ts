import type { ProjectId } from '../kit/ids.ts'
import { type Cents, ceilDiv, type PicoEuro, roundUpToCents, splitCents, sumCents } from '../kit/money.ts'
import type { Month } from './month.ts'

/** What is counted on a line (serverless-platform.md 3.1). */
export const METERS = ['input_token', 'input_cached_token', 'output_token', 'input_duration', 'page', 'node_minute'] as const
export type Meter = (typeof METERS)[number]
export type Mode = 'realtime' | 'batch'

/** The two free pools, one for what is counted in tokens and one for audio by time (3.2). Pages and dedicated minutes have none. */
export const POOLS = ['tokens', 'audio'] as const
export type Pool = (typeof POOLS)[number]

const POOL_OF: Record<Meter, Pool | undefined> = {
  input_token: 'tokens',
  input_cached_token: 'tokens',
  output_token: 'tokens',
  input_duration: 'audio',
  page: undefined,
  node_minute: undefined,
}

/** Units of audio are milliseconds, of documents pages, of dedicated nodes minutes, of all others tokens. */
const BLOCK_UNITS: Record<Meter, bigint> = {
  // The minimum billing unit is 1,000 tokens: once per line and month, after the free tier (3.3).
  input_token: 1_000n,
  input_cached_token: 1_000n,
  output_token: 1_000n,
  // Metered by the second.
  input_duration: 1_000n,
  page: 1n,
  node_minute: 1n,
}

/**
 * A price as it is quoted, in whole micro-euros: per million tokens, per minute of audio, per 1,000 pages, per minute of a node. Whole per
 * minute is not whole per second, so a line's price stays a fraction until its amount is known.
 */
export type QuotedPrice = bigint & { readonly __unit: 'micro-euro per quoted unit' }

const QUOTED_UNITS: Record<Meter, bigint> = {
  input_token: 1_000_000n,
  input_cached_token: 1_000_000n,
  output_token: 1_000_000n,
  input_duration: 60_000n,
  page: 1_000n,
  node_minute: 1n,
}

const PICO_PER_MICRO = 1_000_000n
const BATCH_DIVISOR = 2n

/** What the quoted units cost in the line's mode. A batch is half (3.1), which is whole: a micro-euro is a million pico-euros. */
const quotedPico = (line: Pick<LineKey, 'price' | 'mode'>): bigint =>
  (line.price * PICO_PER_MICRO) / (line.mode === 'batch' ? BATCH_DIVISOR : 1n)

/** What tells one line of an organization from another. */
export type LineKey = {
  /** The model, or the kind of node. */
  readonly product: string
  readonly mode: Mode
  readonly meter: Meter
  readonly price: QuotedPrice
  /** The month in which it was used, where that was closed before the event arrived. */
  readonly lateFrom: Month | null
}

export type Quantity = LineKey & { readonly projectId: ProjectId; readonly units: bigint }

/** A line and how it came about. `billedUnits` are whole blocks; `exact` is them times the price; `cents` is that, rounded up. */
export type RatedLine = LineKey & {
  readonly units: bigint
  readonly freeUnits: bigint
  readonly billedUnits: bigint
  readonly exact: PicoEuro
  readonly cents: Cents
  /** What the line would be without the free tier. */
  readonly grossCents: Cents
}

/** A project's own line, without the free tier: that comes off the project's sum. */
export type ProjectLine = Quantity & Pick<RatedLine, 'billedUnits' | 'exact' | 'cents'>

export type ProjectBill = {
  readonly projectId: ProjectId
  readonly lines: readonly ProjectLine[]
  readonly grossCents: Cents
  /** The project's share of the free tier. */
  readonly deductedCents: Cents
  readonly cents: Cents
}

export type Bill = {
  /** Of the whole organization, and what the free tier took of each. */
  readonly lines: readonly RatedLine[]
  /** What is owed: the organization owes what its projects owe together. */
  readonly projects: readonly ProjectBill[]
  readonly freeUnits: Record<Pool, bigint>
  readonly grossCents: Cents
  readonly deductedCents: Cents
  readonly cents: Cents
}

export type FreePools = Readonly<Record<Pool, bigint>>

const keyText = (line: LineKey): string => [line.product, line.mode, line.meter, line.price, line.lateFrom ?? ''].join('\n')

const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)

/** How two lines' prices compare, without dividing. */
const comparePrice = (a: LineKey, b: LineKey): number => {
  const left = quotedPico(a) * QUOTED_UNITS[b.meter]
  const right = quotedPico(b) * QUOTED_UNITS[a.meter]
  return left < right ? -1 : left > right ? 1 : 0
}

/** As people read a bill: by model, then mode, then meter, dearer prices first. */
const byReading = (a: LineKey, b: LineKey): number =>
  compareText(a.product, b.product) ||
  compareText(b.mode, a.mode) ||
  METERS.indexOf(a.meter) - METERS.indexOf(b.meter) ||
  comparePrice(b, a) ||
  compareText(a.lateFrom ?? '', b.lateFrom ?? '')

/** Dearest first; ties: output before input, then the larger quantity, then the id (3.3). The rest makes the order a total one. */
const byExpense = (a: LineKey & { units: bigint }, b: LineKey & { units: bigint }): number =>
  comparePrice(b, a) ||
  Number(b.meter === 'output_token') - Number(a.meter === 'output_token') ||
  compareText(a.meter, b.meter) ||
  (a.units === b.units ? 0 : a.units > b.units ? -1 : 1) ||
  byReading(a, b)

/** Adds up what belongs on one line and puts lines in the order in which they are read, whatever order they came in. */
const gather = (quantities: readonly Quantity[]): Quantity[] => {
  const lines = new Map<string, Quantity>()
  for (const quantity of quantities) {
    const key = keyText(quantity)
    lines.set(key, { ...quantity, units: (lines.get(key)?.units ?? 0n) + quantity.units })
  }
  return [...lines.values()].filter((line) => line.units > 0n).toSorted(byReading)
}

/** Whole blocks, their exact price, and that rounded up to the cent. Two steps upward end where one would: at the cent. */
const amount = (line: LineKey, units: bigint): { billedUnits: bigint; exact: PicoEuro; cents: Cents } => {
  const block = BLOCK_UNITS[line.meter]
  const billedUnits = ceilDiv(units, block) * block
  const exact = ceilDiv(billedUnits * quotedPico(line), QUOTED_UNITS[line.meter]) as PicoEuro
  return { billedUnits, exact, cents: roundUpToCents(exact) }
}

const rateLines = (quantities: readonly Quantity[], pools: FreePools): RatedLine[] => {
  const lines = gather(quantities)
  const left: Record<Pool, bigint> = { ...pools }
  const freeOf = new Map<Quantity, bigint>()
  for (const line of lines.toSorted(byExpense)) {
    const pool = POOL_OF[line.meter]
    if (pool === undefined) continue
    const free = line.units < left[pool] ? line.units : left[pool]
    left[pool] -= free
    freeOf.set(line, free)
  }
  return lines.map((line) => {
    const freeUnits = freeOf.get(line) ?? 0n
    const { projectId: _projectId, ...key } = line
    return {
      ...key,
      freeUnits,
      ...amount(line, line.units - freeUnits),
      grossCents: amount(line, line.units).cents,
    }
  })
}

/**
 * The bill of one organization for one month (serverless-platform.md 3.3 to 3.5). It looks at nothing else, and at no order.
 *
 * Lines of the organization decide how much the free tier is worth; each project's own lines, each rounded up, decide its share
 * of that worth, in euros (3.4). What the organization owes is what its projects owe together: with one project that is the sum of
 * the organization's lines, with several it can be a few cents more, since each project's lines are rounded by themselves.
 */
export const rate = (quantities: readonly Quantity[], pools: FreePools): Bill => {
  const lines = rateLines(quantities, pools)
  const byProject = new Map<ProjectId, Quantity[]>()
  for (const quantity of quantities) {
    const own = byProject.get(quantity.projectId)
    if (own === undefined) byProject.set(quantity.projectId, [quantity])
    else own.push(quantity)
  }
  const projectIds = [...byProject.keys()].toSorted(compareText)
  const projectLines = projectIds.map((projectId) =>
    gather(byProject.get(projectId) ?? []).map((line): ProjectLine => ({ ...line, ...amount(line, line.units) })),
  )

  const freeUnits: Record<Pool, bigint> = { tokens: 0n, audio: 0n }
  const shares = POOLS.map((pool) => {
    const own = lines.filter(({ meter }) => POOL_OF[meter] === pool)
    const gross = projectLines.map((project) => sumCents(project.filter(({ meter }) => POOL_OF[meter] === pool).map(({ cents }) => cents)))
    freeUnits[pool] = own.reduce((sum, line) => sum + line.freeUnits, 0n)
    // When everything fits into the pool nobody owes anything, whatever rounding says (3.4, step 3).
    if (own.every((line) => line.freeUnits === line.units)) return gross
    return splitCents(sumCents(own.map((line) => (line.grossCents - line.cents) as Cents)), gross)
  })

  const projects = projectIds.map((projectId, index): ProjectBill => {
    const own = projectLines[index] ?? []
    const grossCents = sumCents(own.map(({ cents }) => cents))
    const deductedCents = sumCents(shares.map((share) => share[index] ?? (0n as Cents)))
    return { projectId, lines: own, grossCents, deductedCents, cents: (grossCents - deductedCents) as Cents }
  })
  return {
    lines,
    projects,
    freeUnits,
    grossCents: sumCents(projects.map((project) => project.grossCents)),
    deductedCents: sumCents(projects.map((project) => project.deductedCents)),
    cents: sumCents(projects.map((project) => project.cents)),
  }
}
