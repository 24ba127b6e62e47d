import type { Clock, Instant } from '../kit/clock.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import type { Reached } from '../kit/refusal.ts'
import { periodAt } from './period.ts'
import { ANY_MODEL, type Budget, type Policy } from './policy.ts'
import type { Share, Shares } from './shares.ts'

/** Whose limits hold for a request. */
export type Holder = { readonly organizationId: OrganizationId; readonly projectId: ProjectId; readonly principalId: PrincipalId }

/** Micro-euros per million tokens, as in the catalogue; of type `audio` `input` is per minute of sound, of type `ocr` per 1,000 pages. */
export type PricedModel = {
  readonly name: string
  readonly type: string
  readonly price: { readonly input: bigint; readonly cachedInput: bigint; readonly output: bigint }
}

export type Unit = 'call' | 'audio' | 'tokens' | 'money'

/** One thing that a request must get past, and what it takes there. */
export type Gate = {
  readonly limit: Reached
  readonly unit: Unit
  readonly share: Share
  /** Only counts. */
  readonly soft: boolean
  readonly budget: { readonly endsAt: Instant } | undefined
  /** What the headers of an answer speak of, the same at all gates of a request. */
  readonly shown: { readonly requests: Share | undefined; readonly tokens: Share | undefined }
}

const PICO_PER_NANO = 1_000
/** Micro-euros a minute, times milliseconds, in billionths: a thousand in a micro-euro, sixty thousand milliseconds in a minute. */
const SOUND_PER_NANO = 60
const MINUTE_MS = 60_000
const MAX_KNOWN = 10_000
/** Well below the time after which a share that nobody uses is forgotten. */
const KEEP_MS = 60_000

/** What is used, in tokens, in milliseconds of sound and in pages of documents. */
export type Amounts = {
  readonly input: number
  readonly cachedInput: number
  readonly output: number
  readonly audioMs?: number
  readonly pages?: number
}

/** As it is billed: a begun second of a file is a whole one. */
const wholeSeconds = (audioMs: number): number => Math.ceil(audioMs / 1000) * 1000

/** Tokens, or their price in billionths, up to the next whole one: a micro-euro per million is a pico-euro for one. */
export const priceOf = (unit: 'tokens' | 'money', model: PricedModel, amounts: Amounts): number => {
  if (unit === 'tokens') return amounts.input + amounts.output
  const { input, cachedInput, output } = model.price
  if (model.type === 'audio') return Math.ceil((Number(input) * wholeSeconds(amounts.audioMs ?? 0)) / SOUND_PER_NANO)
  // A micro-euro for a thousand is a billionth for one.
  if (model.type === 'ocr') return Number(input) * (amounts.pages ?? 0)
  const pico =
    (amounts.input - amounts.cachedInput) * Number(input) + amounts.cachedInput * Number(cachedInput) + amounts.output * Number(output)
  return Math.ceil(pico / PICO_PER_NANO)
}

/** Where the ledger keeps a budget in a period. */
export const keyOfBudget = (id: string, period: string): string => `budget ${id} ${period}`

/** The gates for a caller and a model, in the order in which they are passed; kept for a while, but never beyond a change of the policy or of the day. */
export const openGates = (parts: { policy: () => Policy; shares: Shares; clock: Pick<Clock, 'now'> }) => {
  const { shares, clock } = parts
  let known = openKnown()
  let knownPolicy: Policy | undefined

  const make = (policy: Policy, { organizationId, projectId, principalId }: Holder, model: string, batch: boolean) => {
    const now = clock.now()
    const limits = policy.limits(organizationId, model)
    let until = now + KEEP_MS

    const minute = (what: string, capacity: number | null): Share | undefined =>
      capacity === null
        ? undefined
        : shares.share({ kind: 'minute', key: `minute ${what} ${model}`, capacity, refillPerMs: capacity / MINUTE_MS })

    const requests = minute(`requests ${organizationId}`, limits.requests_per_minute)
    const tokens = minute(`tokens ${organizationId}`, limits.tokens_per_minute)
    const shown = { requests, tokens }
    const gates: Gate[] = []
    const add = (limit: Reached, unit: Unit, share: Share | undefined, more: Partial<Gate> = {}): void => {
      if (share !== undefined) gates.push({ limit, unit, share, soft: false, budget: undefined, shown, ...more })
    }
    const addBudget = (limit: Reached, unit: Unit, id: string, period: Budget['period'], capacity: number, soft: boolean): void => {
      const { name, endsAt } = periodAt(period, now)
      until = Math.min(until, endsAt)
      const share = shares.share({ kind: 'budget', key: keyOfBudget(id, name), capacity, refillPerMs: 0 })
      add(limit, unit, share, { soft, budget: { endsAt } })
    }

    if (!batch) {
      const places = limits.concurrent_requests
      if (places !== null) {
        const key = `places ${organizationId} ${ANY_MODEL}`
        add('concurrency', 'call', shares.share({ kind: 'places', key, capacity: places, refillPerMs: 0 }))
      }
      add('requests', 'call', requests)
      add('tokens', 'tokens', tokens)
      add('audio', 'audio', minute(`audio ${organizationId}`, limits.audio_seconds_per_minute))
      add(
        'project_tokens',
        'tokens',
        minute(`tokens ${projectId} of ${organizationId}`, policy.projectTokens(organizationId, projectId, model)),
      )
    }
    if (limits.free_tokens_per_month !== null) {
      addBudget('free_tokens', 'tokens', `free ${organizationId}`, 'month', limits.free_tokens_per_month, false)
    }
    for (const budget of policy.budgets(organizationId)) {
      if (budget.projectId !== null && budget.projectId !== projectId) continue
      if (budget.principalId !== null && budget.principalId !== principalId) continue
      addBudget(`budget_${budget.unit}_${budget.period}`, budget.unit, budget.id, budget.period, budget.amount, !budget.hard)
    }
    return { organizationId, gates, from: now, until }
  }

  return (holder: Holder, model: string, batch: boolean): readonly Gate[] => {
    const policy = parts.policy()
    if (policy !== knownPolicy || known.size() >= MAX_KNOWN) {
      known = openKnown()
      knownPolicy = policy
    }
    const there = known.find(holder, model, batch)
    if (there?.organizationId === holder.organizationId) {
      const now = clock.now()
      // Neither after its time nor before it, in the days of a clock that has been set back.
      if (now >= there.from && now < there.until) return there.gates
    }
    const made = make(policy, holder, model, batch)
    known.keep(holder, model, batch, made)
    return made.gates
  }
}

type Made = { readonly organizationId: OrganizationId; readonly gates: readonly Gate[]; readonly from: number; readonly until: number }
type ByModel = Map<string, Made>

/**
 * What was made, by whom it was for. Maps in maps, since all of these words are in memory already and their hashes are known: one text of them, made
 * only to look with, was a quarter of what a decision allocates.
 */
const openKnown = () => {
  const calls = new Map<PrincipalId, Map<ProjectId, ByModel>>()
  const batches: typeof calls = new Map()
  let size = 0
  return {
    size: () => size,
    find: ({ principalId, projectId }: Holder, model: string, batch: boolean): Made | undefined =>
      (batch ? batches : calls).get(principalId)?.get(projectId)?.get(model),
    keep: ({ principalId, projectId }: Holder, model: string, batch: boolean, made: Made): void => {
      const known = batch ? batches : calls
      const projects = known.get(principalId) ?? new Map<ProjectId, ByModel>()
      known.set(principalId, projects)
      const models: ByModel = projects.get(projectId) ?? new Map()
      projects.set(projectId, models)
      if (!models.has(model)) size += 1
      models.set(model, made)
    },
  }
}
