import { Bench } from 'tinybench'
import { systemClock } from '../../../apps/server/src/kit/clock.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../../../apps/server/src/kit/ids.ts'
import { openLog } from '../../../apps/server/src/kit/log.ts'
import { openAdmission } from '../../../apps/server/src/quota/admit.ts'
import { openMemoryLedger } from '../../../apps/server/src/quota/ledger.ts'
import { type Budget, toPolicy } from '../../../apps/server/src/quota/policy.ts'
import type { Row } from '../../measure.ts'

/** Decisions in one sample. */
const BATCH = 200
const MUCH = 9_000_000_000_000n
const HOLDER = { organizationId: 'o' as OrganizationId, projectId: 'p' as ProjectId, principalId: 'u' as PrincipalId }
const MODEL = { name: 'm', type: 'chat', price: { input: 150_000n, cachedInput: 150_000n, output: 350_000n } }
const ESTIMATE = { inputTokens: 100, outputTokens: 200, endable: true }
const USED = { input: 90, cachedInput: 0, output: 120 }

/** An admission that is never short of anything: what is measured is the decision. */
const plenty = (budgets: readonly Budget[]) => {
  const limits = (['requests_per_minute', 'tokens_per_minute', 'concurrent_requests'] as const).map((name) => ({
    scope: 'tier' as const,
    subject: 'identity_verified',
    model: '*',
    name,
    value: MUCH,
  }))
  const policy = toPolicy({ limits, tiers: [], budgets })
  return openAdmission({ policy: () => policy, ledger: openMemoryLedger(systemClock), clock: systemClock, log: openLog('silent') })
}

const budget = (unit: Budget['unit']): Budget => ({
  id: unit,
  organizationId: HOLDER.organizationId,
  projectId: null,
  principalId: null,
  unit,
  period: 'month',
  amount: Number(MUCH),
  hard: true,
})

/** What it costs to decide whether a request may begin, and to settle it: from memory, with everything that can be limited. */
export const benchAdmit = async (quick: boolean): Promise<Row[]> => {
  const plain = plenty([])
  const full = plenty([budget('tokens'), budget('money')])
  for (const admission of [plain, full]) {
    const first = await admission.admit(HOLDER, MODEL, ESTIMATE)
    if (first.ok) first.value.settle(USED)
  }
  let waited = 0
  const once = (admission: typeof plain, headers: boolean): void => {
    const outcome = admission.admit(HOLDER, MODEL, ESTIMATE)
    if (outcome instanceof Promise) {
      waited += 1
      void outcome.then((late) => late.ok && late.value.settle(USED))
      return
    }
    if (!outcome.ok) throw new Error('it was refused')
    if (headers) outcome.value.headers()
    outcome.value.settle(USED)
  }

  const kinds: [string, () => void][] = [
    ['admit and settle', () => once(plain, false)],
    ['the same, with the six headers', () => once(plain, true)],
    ['the same, with two budgets', () => once(full, true)],
  ]
  // A decision is shorter than the clock can see, so one sample is many of them.
  const bench = new Bench({ time: quick ? 300 : 2_000, warmupTime: quick ? 200 : 1_000 })
  for (const [name, work] of kinds) {
    bench.add(name, () => {
      for (let round = 0; round < BATCH; round += 1) work()
    })
  }
  await bench.run()

  const collect = (globalThis as { gc?: () => void }).gc
  const usedMb = (): number => {
    collect?.()
    return process.memoryUsage().heapUsed / 2 ** 20
  }
  const before = usedMb()
  const rounds = quick ? 100_000 : 1_000_000
  for (let round = 0; round < rounds; round += 1) {
    once(full, false)
    // The answers of the ledger come between requests.
    if (round % 100 === 0) await Promise.resolve()
  }
  const grownMb = usedMb() - before
  await Promise.all([plain.close(), full.close()])

  const rows: Row[] = bench.tasks.map((task, index) => ({
    what: task.name,
    value: task.result.state === 'completed' ? (task.result.latency.p50 * 1000) / BATCH : Number.NaN,
    unit: 'µs',
    beside: index === 0 ? `${waited} of all had to ask the ledger` : 'median; most of it is tsx, which names every closure again',
    cliff: { above: 20, why: 'a decision from memory must stay far below the cost of a request' },
  }))
  return [
    ...rows,
    {
      what: 'heap after as many requests, grown by',
      value: grownMb,
      unit: 'MiB',
      beside: `${rounds} requests`,
      ...(collect === undefined ? {} : { cliff: { above: 20, why: 'a request may leave nothing behind' } }),
    },
  ]
}
