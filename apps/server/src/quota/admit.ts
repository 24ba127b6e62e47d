import type { Clock } from '../kit/clock.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { type Counter, type Metrics, openMetrics } from '../kit/metrics.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Refusal } from '../kit/refusal.ts'
import { type Amounts, type Gate, type Holder, openGates, type PricedModel, priceOf } from './gates.ts'
import { toHeaders } from './headers.ts'
import type { Ledger } from './ledger.ts'
import { ANY_MODEL, type Policy } from './policy.ts'
import { openShares, type Shares } from './shares.ts'

/** What a request may cost at most: the input as guessed before it is counted, the output up to its limit. */
export type Estimate = {
  readonly inputTokens: number
  readonly outputTokens: number
  readonly audioSeconds?: number
  readonly pages?: number
  readonly spread?: Spread
  /** It can be ended in the middle, so that a budget need not have all of its output in reserve. */
  readonly endable?: boolean
  /** Batches are exempt from everything by the minute and from concurrency; budgets hold for them (data-plane.md 4.1). */
  readonly batch?: boolean
}

/** How far off a guess may be, and who can count in its place; undefined where nobody can, or not now. */
export type Spread = { readonly least: number; readonly most: number; count(): Promise<number | undefined> }

/** What was used in truth; as the usage event has it. */
export type Used = Amounts

/** Leave to begin. Whoever takes one settles it with what was truly used, and with nothing when nothing was served. */
export type Ticket = {
  /** The six headers of data-plane.md 4.2, names and values in turn, as of now. */
  headers(): readonly string[]
  /** Called once, when a hard budget has nothing left for more output. */
  watch(exhausted: () => void): void
  /** How many tokens have been made so far; cheap enough to be told with every read. */
  spend(outputTokens: number): void
  /** Safe to call twice. */
  settle(used?: Used): void
}

export type Admit = (caller: Holder, model: PricedModel, estimate: Estimate) => Outcome<Ticket> | Promise<Outcome<Ticket>>

/** A place that something runs in for long. It is free again when it is left, and some seconds after this process has died. */
export type Place = { leave(): void }

export type Admission = {
  /** From memory, unless the share in hand does not suffice: then the ledger is asked once, and what it says is an answer. */
  admit: Admit
  /** A place for a batch that runs, of those the organization has over all models (serverless-platform.md 4.2). */
  takeBatchPlace(organizationId: OrganizationId): Promise<Outcome<Place>>
  /** Tickets that are not settled. */
  open(): number
  /** What happens every second by itself: what nobody used goes back, what is held is renewed. */
  beat(): Promise<void>
  close(): Promise<void>
}

/** Asks for a share that others took away again; after so many the answer is no. */
const MAX_ASKS = 5
/** A place comes free when any answer ends, which nobody can foretell; a second is short for a client and long for us. */
const CONCURRENCY_RETRY_MS = 1_000
const AWAY_RETRY_MS = 1_000
/** Inputs counted at one limit or budget; beyond that the guess decides. */
const COUNTS_PER_SECOND = 4
/** The deepest debt of a bucket for a request in flight, in minutes of its refill. */
const MOST_MINUTES = 60
/** Of a stream's output a budget holds this many tokens in reserve, ahead of what is made. */
const AHEAD_TOKENS = 32
/** Near the end of a budget it is asked for a few tokens at a time. */
const SIP_TOKENS = 4

export const openAdmission = (parts: { policy: () => Policy; ledger: Ledger; clock: Clock; log: Logger; metrics?: Metrics }): Admission => {
  const { clock } = parts
  const metrics = parts.metrics ?? openMetrics()
  const refusals = metrics.counter('parvis_limit_refusals_total', 'Requests refused by a limit or a budget, by reason.', [
    'reason',
    'model',
  ])
  const exhausted = metrics.counter('parvis_budget_exhausted_total', 'Streams ended because a budget was used up.', ['model'])
  const counts = metrics.counter(
    'parvis_inputs_counted_total',
    'Inputs near the end of a limit or a budget that an engine was asked to count before they were admitted.',
    ['model', 'outcome'],
  )
  const shares = openShares(parts)
  const gatesFor = openGates({ policy: parts.policy, shares, clock })
  const desk: Desk = { open: 0, shares, exhausted }

  const refuse = (gate: Gate, { model }: Asked, retryAfterMs: number): Outcome<never> => {
    refusals.add([gate.limit, model.name])
    const { requests, tokens } = gate.shown
    const refusal: Refusal = {
      code: 'limit_reached',
      limit: gate.limit,
      model: model.name,
      retryAfterMs,
      headers: toHeaders(requests, tokens),
    }
    return no(refusal)
  }

  /**
   * What is reserved. Whoever asks for a million answers must not put a bucket so deep into debt that it would take years to refill if this
   * process died; the true count is charged at the end.
   */
  const unitsOf = (gate: Gate, asked: Asked, inputTokens = inputOf(gate, asked.estimate)): number => {
    const { kind, capacity } = gate.share.limited
    const units = neededAt(gate, asked, inputTokens)
    // No budget is larger than a safe integer, and the ledger could not write down a sum of larger ones.
    return Math.min(units, kind === 'minute' ? Math.max(1, capacity) * MOST_MINUTES : Number.MAX_SAFE_INTEGER)
  }

  const neededAt = (gate: Gate, { model, estimate }: Asked, inputTokens: number): number => {
    if (gate.unit === 'call') return 1
    if (gate.unit === 'audio') return Math.ceil(estimate.audioSeconds ?? 0)
    const ahead =
      gate.budget !== undefined && estimate.endable === true ? Math.min(AHEAD_TOKENS, estimate.outputTokens) : estimate.outputTokens
    if (gate.unit === 'tokens') return inputTokens + ahead
    return priceOf(gate.unit, model, {
      input: inputTokens,
      cachedInput: 0,
      output: ahead,
      audioMs: (estimate.audioSeconds ?? 0) * 1000,
      pages: estimate.pages ?? 0,
    })
  }

  /** The gates in the order of data-plane.md 4.3; the first that is closed answers, and nothing was taken at the others. */
  const decide = (gates: readonly Gate[], asked: Asked): Outcome<Ticket> | Lacking[] => {
    const needed = gates.map(() => 0)
    let lacking: Lacking[] | undefined
    let index = 0
    for (const gate of gates) {
      const units = unitsOf(gate, asked)
      needed[index] = units
      index += 1
      if (gate.soft || gate.share.has(units)) continue
      const waitMs = gate.share.waitMs(units)
      if (waitMs === 0) (lacking ??= []).push({ gate, share: gate.share, units })
      else if (lacking === undefined) return refuse(gate, asked, retryAfter(gate, waitMs))
      else break
    }
    return lacking ?? yes(openTicket(desk, gates, needed, asked))
  }

  const retryAfter = (gate: Gate, waitMs: number): number => {
    if (gate.budget !== undefined) return Math.max(1, gate.budget.endsAt - clock.now())
    return gate.limit === 'concurrency' ? CONCURRENCY_RETRY_MS : Math.max(1, waitMs)
  }

  const admit: Admit = (caller, model, estimate) => {
    const asked = { model, estimate }
    const gates = gatesFor(caller, model.name, estimate.batch === true)
    if (isInDoubt(gates, asked)) return countAndDecide(gates, asked)
    const first = decide(gates, asked)
    return Array.isArray(first) ? askAndDecide(gates, asked, first) : first
  }

  /**
   * Whether it is worth asking an engine: a gate lets in the least that the input can be and not the most. At a limit by the minute only where
   * the guess would be refused, since it may be overdrawn once.
   */
  const isInDoubt = (gates: readonly Gate[], asked: Asked): boolean => {
    const { spread } = asked.estimate
    if (spread === undefined || asked.counted === true) return false
    for (const gate of gates) {
      if (gate.soft || gate.unit === 'call' || gate.unit === 'audio') continue
      const { kind, capacity } = gate.share.limited
      const left = gate.share.left()
      if (left < unitsOf(gate, asked, spread.least)) continue
      // Who needs more than a bucket can ever hold waits for a full one.
      if (left < (kind === 'minute' ? Math.min(unitsOf(gate, asked), capacity) : unitsOf(gate, asked, spread.most)))
        return mayCount(gate.share)
    }
    return false
  }

  const countedIn = new WeakMap<Gate['share'], { second: number; times: number }>()

  /** Somebody who asks again and again at the end of a limit must not keep engines busy with counting. */
  const mayCount = (share: Gate['share']): boolean => {
    const second = Math.floor(clock.now() / 1000)
    const counted = countedIn.get(share)
    if (counted?.second === second) return (counted.times += 1) <= COUNTS_PER_SECOND
    countedIn.set(share, { second, times: 1 })
    return true
  }

  /** The engine's count takes the place of the guess. Where there is none, budgets are asked for the most and limits for what is likely. */
  const count = async (asked: Asked): Promise<Asked> => {
    const { spread, ...rest } = asked.estimate
    const inputTokens = await spread?.count()
    counts.add([asked.model.name, inputTokens === undefined ? 'unknown' : 'counted'])
    return { ...asked, counted: true, estimate: inputTokens === undefined ? asked.estimate : { ...rest, inputTokens } }
  }

  const countAndDecide = async (gates: readonly Gate[], asked: Asked): Promise<Outcome<Ticket>> => {
    const counted = await count(asked)
    const first = decide(gates, counted)
    return Array.isArray(first) ? askAndDecide(gates, counted, first) : first
  }

  const askAndDecide = async (gates: readonly Gate[], guessed: Asked, first: Lacking[]): Promise<Outcome<Ticket>> => {
    let asked = guessed
    let lacking = first
    for (let asks = 0; asks < MAX_ASKS; asks += 1) {
      const answered = await shares.bring(lacking)
      if (isInDoubt(gates, asked)) asked = await count(asked)
      const decided = decide(gates, asked)
      if (!Array.isArray(decided)) return decided
      lacking = decided
      if (answered) continue
      const budget = lacking.find(({ gate }) => gate.budget !== undefined)
      if (budget === undefined) continue
      refusals.add(['away', asked.model.name])
      return no({ code: 'busy', reason: 'its budget cannot be checked now', retryAfterMs: AWAY_RETRY_MS })
    }
    const [next] = lacking
    if (next === undefined) throw new Error('nothing was lacking, and yet nothing was decided')
    return refuse(next.gate, asked, retryAfter(next.gate, next.share.waitMs(next.units)))
  }

  const takeBatchPlace: Admission['takeBatchPlace'] = async (organizationId) => {
    const { concurrent_batches: capacity } = parts.policy().limits(organizationId, ANY_MODEL)
    if (capacity === null) return yes({ leave: () => undefined })
    const share = shares.share({ kind: 'places', key: `batches ${organizationId} ${ANY_MODEL}`, capacity, refillPerMs: 0 })
    for (let asks = 0; asks < MAX_ASKS && !share.has(1) && share.waitMs(1) === 0; asks += 1) await shares.bring([{ share, units: 1 }])
    if (!share.has(1)) {
      refusals.add(['batches', ANY_MODEL])
      return no({ code: 'limit_reached', limit: 'batches', model: ANY_MODEL, retryAfterMs: CONCURRENCY_RETRY_MS })
    }
    share.take(1)
    let left = false
    return yes({
      leave: () => {
        if (!left) share.settle(1, 0)
        left = true
      },
    })
  }

  return { admit, takeBatchPlace, open: () => desk.open, beat: shares.beat, close: shares.close }
}

type Asked = { readonly model: PricedModel; readonly estimate: Estimate; readonly counted?: boolean }

/** A gate that may open once the ledger was asked for more. */
type Lacking = { readonly gate: Gate; readonly share: Gate['share']; readonly units: number }

/** What all tickets of an admission have in common. */
type Desk = { open: number; readonly shares: Shares; readonly exhausted: Counter }

/** What a stream has in hand of a hard budget: at which gate, whether the ledger is being asked for more, and whether it has said no. */
type Hold = { readonly gate: Gate; readonly index: number; asking: boolean; dry: boolean }

const NO_HOLDS: readonly Hold[] = []

const spendFreely = (): void => undefined

const holdsOf = (gates: readonly Gate[], { endable }: Estimate): readonly Hold[] => {
  if (endable !== true || !gates.some((gate) => gate.budget !== undefined && !gate.soft)) return NO_HOLDS
  return gates
    .map((gate, index) => ({ gate, index, asking: false, dry: false }))
    .filter(({ gate }) => gate.budget !== undefined && !gate.soft)
}

/** Takes at each gate what it needs there, and keeps it until it is settled. */
const openTicket = (desk: Desk, gates: readonly Gate[], units: number[], asked: Asked): Ticket => new OpenTicket(desk, gates, units, asked)

/** A class, since one is made for each request: as a handle of closures it was a thousand bytes, and is 150. */
class OpenTicket implements Ticket {
  readonly spend: Ticket['spend']
  private readonly holds: readonly Hold[]
  private tell: (() => void) | undefined = undefined
  private settled = false
  private told = false
  private made = 0
  private readonly desk: Desk
  private readonly gates: readonly Gate[]
  /** In hand at each gate. */
  private readonly units: number[]
  private readonly asked: Asked

  constructor(desk: Desk, gates: readonly Gate[], units: number[], asked: Asked) {
    this.desk = desk
    this.gates = gates
    this.units = units
    this.asked = asked
    let index = 0
    for (const gate of gates) gate.share.take(units[index++] ?? 0)
    this.holds = holdsOf(gates, asked.estimate)
    this.spend = this.holds.length === 0 ? spendFreely : this.watching()
    desk.open += 1
  }

  headers(): readonly string[] {
    const shown = this.gates[0]?.shown
    return shown === undefined ? [] : toHeaders(shown.requests, shown.tokens)
  }

  watch(exhausted: () => void): void {
    this.tell = exhausted
  }

  /** Handed on by itself, and made only where there is something to watch. */
  private watching(): Ticket['spend'] {
    return (outputTokens) => {
      if (this.settled || this.told) return
      this.made = outputTokens
      for (const hold of this.holds) this.look(hold)
    }
  }

  settle(used?: Used): void {
    if (this.settled) return
    this.settled = true
    this.desk.open -= 1
    let index = 0
    for (const gate of this.gates) gate.share.settle(this.units[index++] ?? 0, usedAt(gate, this.asked.model, used))
  }

  private costOf({ gate }: Hold, output: number): number {
    const { model, estimate } = this.asked
    return priceOf(gate.unit === 'money' ? 'money' : 'tokens', model, {
      input: inputOf(gate, estimate),
      cachedInput: 0,
      output: Math.min(output, Math.max(estimate.outputTokens, this.made)),
    })
  }

  private has(hold: Hold, aheadTokens: number): boolean {
    return (this.units[hold.index] ?? 0) >= this.costOf(hold, this.made + aheadTokens)
  }

  /** Fills the reserve with what is in this gateway's hand, and says how much that was. */
  private fill(hold: Hold): number {
    const inHand = this.units[hold.index] ?? 0
    const got = hold.gate.share.takeUpTo(this.costOf(hold, this.made + AHEAD_TOKENS) - inHand)
    this.units[hold.index] = inHand + got
    return got
  }

  private look(hold: Hold): void {
    if (this.has(hold, AHEAD_TOKENS / 2)) return
    this.fill(hold)
    // What is in hand is the measure, not whether the ledger has said no: a slow one must not let anybody outrun a budget.
    if (!this.has(hold, 1)) return this.end()
    if (this.has(hold, AHEAD_TOKENS / 2) || hold.asking || hold.dry) return
    this.sip(hold, SIP_TOKENS)
  }

  /** Near the end there may be one token left where there are not four. */
  private sip(hold: Hold, tokens: number): void {
    hold.asking = true
    const units = Math.max(1, this.costOf(hold, this.made + tokens) - this.costOf(hold, this.made))
    void this.desk.shares.bring([{ share: hold.gate.share, units }]).then((answered) => {
      hold.asking = false
      if (this.settled) return
      // A ledger that is away has not said no: it is asked again with the next token, for as long as there is something in hand.
      if (this.fill(hold) > 0 || !answered) return
      if (tokens > 1) return this.sip(hold, 1)
      hold.dry = true
      if (!this.has(hold, 1)) this.end()
    })
  }

  private end(): void {
    if (this.told || this.settled) return
    this.told = true
    this.desk.exhausted.add([this.asked.model.name])
    this.tell?.()
  }
}

/** What a budget must not lack is reserved for the most that the input can be; a limit by the minute may be overdrawn once, and refills. */
const inputOf = (gate: Gate, { inputTokens, spread }: Estimate): number =>
  gate.budget === undefined ? inputTokens : (spread?.most ?? inputTokens)

/** A request that was let through has been made, whatever came of it; a place is free again. */
const usedAt = (gate: Gate, model: PricedModel, used: Used | undefined): number => {
  if (gate.limit === 'concurrency') return 0
  if (gate.unit === 'call') return 1
  if (used === undefined) return 0
  if (gate.unit === 'audio') return Math.ceil((used.audioMs ?? 0) / 1000)
  return priceOf(gate.unit, model, used)
}
