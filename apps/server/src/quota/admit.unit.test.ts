import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Clock, Instant } from '../kit/clock.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openMetrics } from '../kit/metrics.ts'
import { speak } from '../kit/refusal.ts'
import { type Estimate, openAdmission, type Ticket } from './admit.ts'
import { HELD_MS, type Ledger, openMemoryLedger } from './ledger.ts'
import { type Budget, type LimitName, toPolicy } from './policy.ts'

const ALICE = { organizationId: 'a' as OrganizationId, projectId: 'pa' as ProjectId, principalId: 'ua' as PrincipalId }
const BOB = { organizationId: 'b' as OrganizationId, projectId: 'pb' as ProjectId, principalId: 'ub' as PrincipalId }
/** A euro buys 20,000 tokens of it, in or out. */
const MODEL = { name: 'tiny-chat', type: 'chat', price: { input: 50_000_000n, cachedInput: 10_000_000n, output: 50_000_000n } }
const EURO = 1_000_000_000

const START = Date.UTC(2026, 0, 15, 12) as Instant

/** Time stands still until somebody moves it; nobody is woken. */
const stoppedClock = (start: Instant = START): Clock & { at: number } => {
  const clock = {
    at: start as number,
    now: () => clock.at as Instant,
    monotonicMs: () => clock.at,
    sleep: (_ms: number, signal?: AbortSignal) =>
      new Promise<void>((_, reject) => signal?.addEventListener('abort', () => reject(new Error('no more')), { once: true })),
  }
  return clock
}

type Setting = {
  limits?: Partial<Record<LimitName, number>>
  project?: number
  budgets?: Partial<Budget>[]
  clock?: Clock
  ledger?: Ledger
}

const open = ({ limits = {}, project, budgets = [], clock = stoppedClock(), ledger }: Setting) => {
  const metrics = openMetrics()
  const policy = toPolicy({
    limits: [
      ...Object.entries(limits).map(([name, value]) => ({
        scope: 'tier' as const,
        subject: 'identity_verified',
        model: '*',
        name: name as LimitName,
        value: BigInt(value),
      })),
      ...(project === undefined
        ? []
        : [{ scope: 'project' as const, subject: 'pa', model: '*', name: 'tokens_per_minute' as const, value: BigInt(project) }]),
    ],
    tiers: [],
    budgets: budgets.map((budget, index) => ({
      id: `budget-${index}`,
      organizationId: ALICE.organizationId,
      projectId: null,
      principalId: null,
      unit: 'money',
      period: 'day',
      amount: EURO,
      hard: true,
      ...budget,
    })),
  })
  const admission = openAdmission({
    policy: () => policy,
    ledger: ledger ?? openMemoryLedger(clock),
    clock,
    log: openLog('silent'),
    metrics,
  })
  const ask = async (who = ALICE, inputTokens = 1, outputTokens = 0, more: Omit<Estimate, 'inputTokens' | 'outputTokens'> = {}) =>
    admission.admit(who, MODEL, { inputTokens, outputTokens, ...more })
  const taken = async (...asked: Parameters<typeof ask>): Promise<Ticket> => {
    const outcome = await ask(...asked)
    if (!outcome.ok) throw new Error(`refused: ${JSON.stringify(outcome.refusal)}`)
    return outcome.value
  }
  const refused = async (...asked: Parameters<typeof ask>) => {
    const outcome = await ask(...asked)
    return outcome.ok ? undefined : outcome.refusal
  }
  return { ...admission, clock, metrics, ask, taken, refused }
}

const used = (input: number, output: number) => ({ input, cachedInput: 0, output })

describe('what is refused, and how it is said', () => {
  test('one request more than the threshold of concurrency is refused; a settled one makes room', async () => {
    const house = open({ limits: { concurrent_requests: 2, requests_per_minute: 1000 } })
    const first = await house.taken()
    await house.taken()
    expect(await house.refused()).toMatchObject({ code: 'limit_reached', limit: 'concurrency', retryAfterMs: 1_000 })
    first.settle()
    first.settle()
    await house.taken()
    expect(await house.refused()).toMatchObject({ limit: 'concurrency' })
    expect(house.metrics.render()).toContain('parvis_limit_refusals_total{reason="concurrency",model="tiny-chat"} 2')
  })

  test("one organization's requests take nothing from another's", async () => {
    const house = open({ limits: { concurrent_requests: 1, requests_per_minute: 1 } })
    await house.taken()
    expect(await house.refused()).toBeDefined()
    await house.taken(BOB)
  })

  test('concurrency is looked at first, then requests, then tokens; a refused call has consumed nothing', async () => {
    const house = open({ limits: { concurrent_requests: 1, requests_per_minute: 2, tokens_per_minute: 10 } })
    const running = await house.taken(ALICE, 4)
    expect(await house.refused(ALICE, 99)).toMatchObject({ limit: 'concurrency' })
    running.settle(used(4, 0))
    expect(await house.refused(ALICE, 7)).toMatchObject({ limit: 'tokens' })
    const second = await house.taken(ALICE, 6)
    second.settle(used(6, 0))
    expect(await house.refused(ALICE, 7)).toMatchObject({ limit: 'requests', retryAfterMs: 30_000 })
  })

  test('the refusal has the phrase of the contract, the headers and the time to come back', async () => {
    const house = open({ limits: { requests_per_minute: 1, tokens_per_minute: 1000 } })
    await house.taken(ALICE, 10, 90)
    const refusal = await house.refused()
    if (refusal?.code !== 'limit_reached') throw new Error('it was let through')
    expect(speak(refusal).body.error.message).toContain('exceeded your current quota of requests per minute')
    expect(refusal.retryAfterMs).toBe(60_000)
    expect(refusal.headers).toEqual([
      'x-ratelimit-limit-requests',
      '1',
      'x-ratelimit-remaining-requests',
      '0',
      'x-ratelimit-reset-requests',
      '1m0s',
      'x-ratelimit-limit-tokens',
      '1000',
      'x-ratelimit-remaining-tokens',
      '900',
      'x-ratelimit-reset-tokens',
      '6s',
    ])
  })

  test('the output is reserved up to its limit and comes back when it was not used', async () => {
    const house = open({ limits: { tokens_per_minute: 100 } })
    const ticket = await house.taken(ALICE, 10, 80)
    expect(await house.refused(ALICE, 11)).toMatchObject({ limit: 'tokens', retryAfterMs: 600 })
    ticket.settle(used(10, 5))
    await house.taken(ALICE, 85)
    expect(await house.refused(ALICE, 1)).toMatchObject({ limit: 'tokens' })
  })

  test('what was estimated too low is owed, and repaid by time', async () => {
    const clock = stoppedClock()
    const house = open({ limits: { tokens_per_minute: 60 }, clock })
    const ticket = await house.taken(ALICE, 60)
    ticket.settle(used(90, 0))
    expect(await house.refused(ALICE, 1)).toMatchObject({ retryAfterMs: 31_000 })
    clock.at += 30_999
    expect(await house.refused(ALICE, 1)).toMatchObject({ retryAfterMs: 1 })
    clock.at += 1
    await house.taken(ALICE, 1)
  })

  test('a request larger than the limit gets through a full bucket, once', async () => {
    const house = open({ limits: { tokens_per_minute: 100 } })
    await house.taken(ALICE, 250)
    expect(await house.refused(ALICE, 250)).toMatchObject({ limit: 'tokens', retryAfterMs: 150_000 })
  })

  test('what a request far beyond the limit has not used is no allowance for those behind it', async () => {
    const clock = stoppedClock()
    const { ask } = open({ limits: { tokens_per_minute: 1000 }, clock })
    const absurd = await ask(ALICE, 1, Number.MAX_SAFE_INTEGER * 512)
    expect(absurd.ok).toBe(true)
    if (absurd.ok) absurd.value.settle({ input: 5, cachedInput: 0, output: 5 })
    let used = 10
    for (let asks = 0; asks < 50; asks += 1) {
      const ticket = await ask(ALICE, 100)
      if (!ticket.ok) continue
      used += 100
      ticket.value.settle({ input: 100, cachedInput: 0, output: 0 })
    }
    expect(used).toBeLessThanOrEqual(1010)

    // Nor does it shut the others out for good.
    clock.at += 60_000
    expect((await ask(ALICE, 100)).ok).toBe(true)
  })

  test('nor does it become a number that no ledger can write down', async () => {
    const clock = stoppedClock()
    const memory = openMemoryLedger(clock)
    const held: number[] = []
    const ledger: Ledger = {
      ...memory,
      ask: (asks) => {
        held.push(...asks.map((each) => each.held))
        return memory.ask(asks)
      },
    }
    const { ask, beat } = open({ limits: { tokens_per_minute: 1000 }, budgets: [{ unit: 'tokens', hard: false }], clock, ledger })
    expect((await ask(ALICE, 1, Number.MAX_SAFE_INTEGER * 16_384)).ok).toBe(true)
    await beat()
    await beat()
    expect(Math.max(...held)).toBeGreaterThan(0)
    expect(Math.max(...held)).toBeLessThanOrEqual(Number.MAX_SAFE_INTEGER)
  })

  test('seconds of audio are limited like tokens', async () => {
    const house = open({ limits: { audio_seconds_per_minute: 60 } })
    const ticket = await house.taken(ALICE, 0, 0, { audioSeconds: 45 })
    expect(await house.refused(ALICE, 0, 0, { audioSeconds: 16 })).toMatchObject({ limit: 'audio', retryAfterMs: 1_000 })
    ticket.settle({ input: 0, cachedInput: 0, output: 0, audioMs: 29_500 })
    await house.taken(ALICE, 0, 0, { audioSeconds: 30 })
  })

  test('a project that is not limited for one model is not, whatever holds for the others', () => {
    const row = (model: string, value: bigint | null) =>
      ({ scope: 'project', subject: 'pa', model, name: 'tokens_per_minute', value }) as const
    const policy = toPolicy({ limits: [row('*', 40n), row('tiny-chat', null)], tiers: [], budgets: [] })
    expect(policy.projectTokens(ALICE.organizationId, ALICE.projectId, 'tiny-chat')).toBe(null)
    expect(policy.projectTokens(ALICE.organizationId, ALICE.projectId, 'tiny-embed')).toBe(40)
  })

  test('a project has less than its organization, and never more', async () => {
    const low = open({ limits: { tokens_per_minute: 100 }, project: 40 })
    await low.taken(ALICE, 40)
    expect(await low.refused(ALICE, 1)).toMatchObject({ limit: 'project_tokens' })
    const high = open({ limits: { tokens_per_minute: 100 }, project: 4_000 })
    await high.taken(ALICE, 100)
    expect(await high.refused(ALICE, 1)).toMatchObject({ limit: 'tokens' })
  })

  test('a batch is exempt from what is counted by the minute, and not from a budget', async () => {
    const house = open({
      limits: { concurrent_requests: 0, requests_per_minute: 0, tokens_per_minute: 0 },
      budgets: [{ unit: 'tokens', amount: 10 }],
    })
    expect(await house.refused()).toMatchObject({ limit: 'concurrency' })
    await house.taken(ALICE, 10, 0, { batch: true })
    expect(await house.refused(ALICE, 1, 0, { batch: true })).toMatchObject({ limit: 'budget_tokens_day' })
  })

  test('a limit of nothing at all refuses everything, with a time that a client can read', async () => {
    const house = open({ limits: { requests_per_minute: 0 } })
    expect(await house.refused()).toMatchObject({ limit: 'requests', retryAfterMs: 60_000 })
  })
})

describe('places for batches', () => {
  test('are as many as the organization may run, whatever else it does; one that is left is free, once', async () => {
    const house = open({ limits: { concurrent_batches: 2, concurrent_requests: 0 } })
    const take = (who = ALICE) => house.takeBatchPlace(who.organizationId)
    const [one, other] = [await take(), await take()]
    if (!one.ok || !other.ok) throw new Error('there are two')
    const refused = await take()
    expect(refused).toMatchObject({ ok: false, refusal: { code: 'limit_reached', limit: 'batches', retryAfterMs: 1_000 } })
    if (!refused.ok) expect(speak(refused.refusal)).toMatchObject({ status: 429 })
    expect(house.metrics.render()).toContain('parvis_limit_refusals_total{reason="batches",model="*"} 1')
    expect((await take(BOB)).ok).toBe(true)
    one.value.leave()
    one.value.leave()
    expect([(await take()).ok, (await take()).ok]).toEqual([true, false])
  })

  test('without a limit there is always one', async () => {
    const house = open({})
    for (let round = 0; round < 200; round += 1) expect((await house.takeBatchPlace(ALICE.organizationId)).ok).toBe(true)
  })
})

describe('budgets', () => {
  test('on the last millisecond of a day the old budget holds, on the first of the next the new one', async () => {
    const clock = stoppedClock((Date.UTC(2026, 1, 1) - 1) as Instant)
    const house = open({ budgets: [{ unit: 'tokens', period: 'day', amount: 10 }], clock })
    const ticket = await house.taken(ALICE, 10)
    expect(await house.refused(ALICE, 1)).toMatchObject({ limit: 'budget_tokens_day', retryAfterMs: 1 })
    clock.at += 1
    await house.taken(ALICE, 10)
    // What began yesterday is settled yesterday, and gives nothing to today.
    ticket.settle(used(0, 0))
    expect(await house.refused(ALICE, 1)).toMatchObject({ retryAfterMs: 86_400_000 })
  })

  test('a month ends with its last millisecond, in a leap year too', async () => {
    const clock = stoppedClock(Date.UTC(2028, 1, 29, 23, 59, 59, 999) as Instant)
    const house = open({ budgets: [{ period: 'month' }], clock })
    await house.taken(ALICE, 20_000)
    expect(await house.refused(ALICE, 1)).toMatchObject({ limit: 'budget_money_month', retryAfterMs: 1 })
    clock.at += 1
    await house.taken(ALICE, 20_000)
  })

  test("one person's budget is not another's, and a project's is for all in it", async () => {
    const carol = { ...ALICE, principalId: 'uc' as PrincipalId }
    const mine = open({ budgets: [{ unit: 'tokens', amount: 10, principalId: ALICE.principalId, projectId: ALICE.projectId }] })
    await mine.taken(ALICE, 10)
    expect(await mine.refused(ALICE, 1)).toBeDefined()
    await mine.taken(carol, 10)
    const projects = open({ budgets: [{ unit: 'tokens', amount: 10, projectId: ALICE.projectId }] })
    await projects.taken(ALICE, 10)
    expect(await projects.refused(carol, 1)).toBeDefined()
    await projects.taken({ ...carol, projectId: 'other' as ProjectId }, 10)
  })

  test('cached input costs what it costs', async () => {
    const house = open({ budgets: [{ amount: EURO / 10 }] })
    const ticket = await house.taken(ALICE, 2_000)
    ticket.settle({ input: 2_000, cachedInput: 2_000, output: 0 })
    await house.taken(ALICE, 1_600)
    expect(await house.refused(ALICE, 1)).toMatchObject({ limit: 'budget_money_day' })
  })

  test('sound is paid by the minute', async () => {
    const house = open({ budgets: [{ amount: EURO }] })
    // Three cents a minute: a euro is 2,000 seconds.
    const sound = { name: 'whisper', type: 'audio', price: { input: 30_000n, cachedInput: 0n, output: 0n } }
    const listen = async (audioSeconds: number) => (await house.admit(ALICE, sound, { inputTokens: 0, outputTokens: 0, audioSeconds })).ok
    expect([await listen(1_500), await listen(501), await listen(500), await listen(1)]).toEqual([true, false, true, false])
  })

  test('documents are paid by the page: the most they may have is held, and what they had is kept', async () => {
    const house = open({ budgets: [{ amount: EURO / 100 }] })
    // Two euros a thousand: a cent is five pages.
    const reader = { name: 'reader', type: 'ocr', price: { input: 2_000_000n, cachedInput: 2_000_000n, output: 0n } }
    const read = async (pages: number) => house.admit(ALICE, reader, { inputTokens: 0, outputTokens: 0, pages })
    expect((await read(6)).ok).toBe(false)
    const held = await read(5)
    expect([held.ok, (await read(1)).ok]).toEqual([true, false])
    if (held.ok) held.value.settle({ input: 0, cachedInput: 0, output: 0, pages: 2 })
    expect([(await read(4)).ok, (await read(3)).ok, (await read(1)).ok]).toEqual([false, true, false])
  })

  test('a budget that only tells refuses nobody', async () => {
    const house = open({ budgets: [{ unit: 'tokens', amount: 10, hard: false }] })
    for (let round = 0; round < 3; round += 1) expect(await house.refused(ALICE, 10)).toBeUndefined()
  })

  test('a stream is told once that nothing is left, and never while something is', async () => {
    const house = open({ budgets: [{ unit: 'tokens', amount: 100 }] })
    const ticket = await house.taken(ALICE, 10, 4_000, { endable: true })
    let told = 0
    ticket.watch(() => void (told += 1))
    let made = 0
    while (told === 0 && made < 1_000) {
      made += 1
      ticket.spend(made)
      await Promise.resolve()
      await Promise.resolve()
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(made).toBe(90)
    ticket.spend(made + 1)
    expect(told).toBe(1)
  })

  test('one euro and two hundred streams at once: the overshoot is at most one token for each', async () => {
    const house = open({ budgets: [{ amount: EURO }] })
    const streams = await Promise.all(Array.from({ length: 200 }, () => house.taken(ALICE, 20, 4_000, { endable: true })))
    const open200 = streams.map((ticket) => {
      const stream = { ticket, made: 0, over: false }
      ticket.watch(() => void (stream.over = true))
      return stream
    })
    while (open200.some(({ over }) => !over)) {
      for (const stream of open200) {
        if (stream.over) continue
        stream.made += 1
        stream.ticket.spend(stream.made)
      }
      await new Promise((resolve) => setImmediate(resolve))
    }
    const tokens = open200.reduce((sum, { made }) => sum + 20 + made, 0)
    expect(tokens).toBeLessThanOrEqual(20_000 + 200)
    // And nothing much is left lying.
    expect(tokens).toBeGreaterThan(19_500)
  })
})

describe('an input that is guessed', () => {
  /** A guess of 900 tokens, between 800 and 1,200; the engine says what it is told to. */
  const guess = (said: number | undefined) => {
    const asked = { times: 0 }
    const count = () => {
      asked.times += 1
      return Promise.resolve(said)
    }
    return { asked, more: { spread: { least: 800, most: 1_200, count } } }
  }

  test.each<[string, number | undefined, boolean]>([
    ['is let through when its engine counts what is left', 1_000, true],
    ['is refused when its engine counts a token more', 1_001, false],
    ['is refused where nobody counts, since it may be too much', undefined, false],
  ])('at a budget that decides between its bounds %s', async (_, said, ok) => {
    const house = open({ budgets: [{ unit: 'tokens', amount: 1_000 }] })
    const { asked, more } = guess(said)
    expect((await house.ask(ALICE, 900, 0, more)).ok).toBe(ok)
    expect(asked.times).toBe(1)
    const outcome = said === undefined ? 'unknown' : 'counted'
    expect(house.metrics.render()).toContain(`parvis_inputs_counted_total{model="tiny-chat",outcome="${outcome}"} 1`)
  })

  test.each<[string, number | undefined, object]>([
    ['is let through when its engine counts what is left', 850, { ok: true }],
    ['is refused with the time that the true count takes', 860, { ok: false, refusal: { limit: 'tokens', retryAfterMs: 300 } }],
    ['is refused as guessed where nobody counts', undefined, { ok: false, refusal: { limit: 'tokens', retryAfterMs: 1_500 } }],
  ])('at a limit that the guess is beyond and may fit %s', async (_, said, expected) => {
    const house = open({ limits: { tokens_per_minute: 2_000 } })
    await house.taken(ALICE, 1_150)
    const { asked, more } = guess(said)
    expect(await house.ask(ALICE, 900, 0, more)).toMatchObject(expected)
    expect(asked.times).toBe(1)
  })

  test('at a limit that the guess fits into is let through without a question: it may be overdrawn once, and refills', async () => {
    const house = open({ limits: { tokens_per_minute: 2_000 } })
    await house.taken(ALICE, 1_000)
    const { asked, more } = guess(1_200)
    await house.taken(ALICE, 900, 0, more)
    expect(asked.times).toBe(0)
  })

  test('is counted by nobody where it fits or fails whatever it is', async () => {
    const house = open({ limits: { tokens_per_minute: 2_500 }, budgets: [{ unit: 'tokens', amount: 1_900 }] })
    const { asked, more } = guess(900)
    expect((await house.ask(ALICE, 900, 0, more)).ok).toBe(true)
    expect(await house.refused(ALICE, 900, 0, more)).toMatchObject({ limit: 'budget_tokens_day' })
    expect(asked.times).toBe(0)
  })

  test('is counted four times a second at one limit, and then decided by the guess: nobody keeps an engine counting', async () => {
    const clock = stoppedClock()
    const house = open({ budgets: [{ unit: 'tokens', amount: 1_000 }], clock })
    const { asked, more } = guess(1_001)
    for (let round = 0; round < 20; round += 1) expect((await house.ask(ALICE, 900, 0, more)).ok).toBe(false)
    expect(asked.times).toBe(4)
    clock.at += 1_000
    expect((await house.ask(ALICE, 900, 0, more)).ok).toBe(false)
    expect(asked.times).toBe(5)
  })

  test('takes the most it can be from a budget, and gives back what it was not', async () => {
    const house = open({ budgets: [{ unit: 'tokens', amount: 2_000 }] })
    const ticket = await house.taken(ALICE, 900, 0, guess(undefined).more)
    expect(await house.refused(ALICE, 801)).toBeDefined()
    ticket.settle(used(900, 0))
    await house.taken(ALICE, 1_100)
  })

  test('overdraws no budget, whoever counts and whatever is asked', async () => {
    const request = fc.record({
      least: fc.integer({ min: 1, max: 3_000 }),
      wider: fc.nat({ max: 3_000 }),
      truth: fc.double({ min: 0, max: 1, noNaN: true }),
      counts: fc.boolean(),
      settles: fc.boolean(),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(request, { maxLength: 40 }), async (requests) => {
        const house = open({ budgets: [{ unit: 'tokens', amount: 10_000 }] })
        let spent = 0
        for (const { least, wider, truth, counts, settles } of requests) {
          const [most, tokens] = [least + wider, least + Math.floor(wider * truth)]
          const spread = { least, most, count: () => Promise.resolve(counts ? tokens : undefined) }
          const outcome = await house.ask(ALICE, least + Math.floor(wider / 2), 0, { spread })
          if (!outcome.ok) continue
          spent += tokens
          if (settles) outcome.value.settle(used(tokens, 0))
        }
        expect(spent).toBeLessThanOrEqual(10_000)
        await house.close()
      }),
    )
  })
})

test('whatever the order of taking and settling, twice settled or not, no place is lost and none is made', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat({ max: 9 }), { maxLength: 100 }), async (moves) => {
      const house = open({ limits: { concurrent_requests: 4 } })
      const held: Ticket[] = []
      const left: Ticket[] = []
      for (const move of moves) {
        const outcome = move < 5 ? await house.ask() : undefined
        if (outcome !== undefined) expect(outcome.ok).toBe(held.length < 4)
        if (outcome?.ok) held.push(outcome.value)
        if (move >= 5 && move < 8) {
          const [gone] = held.splice(move % Math.max(1, held.length), 1)
          gone?.settle()
          if (gone) left.push(gone)
        }
        if (move >= 8) left.at(-1)?.settle()
        expect(house.open()).toBe(held.length)
      }
      await house.close()
    }),
  )
})

/** The rule in its plainest words: what refills evenly, up to the limit, and may be overdrawn by what was estimated too low. */
const plainBucket = (limit: number, start: number) => {
  let level = limit
  let at = start
  return (units: number, now: number): boolean => {
    level = Math.min(limit, level + ((now - at) * limit) / 60_000)
    at = now
    // A float that is off by a billionth is not a rule.
    if (level + 1e-6 < Math.min(units, limit)) return false
    level -= units
    return true
  }
}

describe('random arrivals', () => {
  const arrivals = fc.array(
    fc.record({ waitMs: fc.oneof(fc.constant(0), fc.nat({ max: 5 }), fc.nat({ max: 8_000 })), units: fc.integer({ min: 1, max: 30 }) }),
    {
      minLength: 1,
      maxLength: 150,
    },
  )

  test('a small limit is exactly the plain rule, request by request', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 31 }), arrivals, async (limit, steps) => {
        const clock = stoppedClock()
        const house = open({ limits: { tokens_per_minute: limit }, clock })
        const plain = plainBucket(limit, clock.at)
        for (const { waitMs, units } of steps) {
          clock.at += waitMs
          expect((await house.ask(ALICE, units)).ok).toBe(plain(units, clock.at))
        }
        await house.close()
      }),
      { verbose: 1 },
    )
  })

  test('a large one lets through no more than the rule and the stock in hand, and refuses nobody whom the rule lets through by a unit', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 100, max: 3_000 }), arrivals, async (limit, steps) => {
        const clock = stoppedClock()
        const house = open({ limits: { tokens_per_minute: limit }, clock })
        // The rule, following what was let through: whoever fits into it must not be refused.
        let level = limit
        let through = 0
        let allowed = limit
        for (const { waitMs, units } of steps) {
          clock.at += waitMs
          allowed += (waitMs * limit) / 60_000
          level = Math.min(limit, level + (waitMs * limit) / 60_000)
          const outcome = await house.ask(ALICE, units)
          // A unit of slack: what is in hand and what is in the ledger are whole, and each may be a fraction below the rule.
          if (level >= units + 1) expect(outcome.ok).toBe(true)
          if (outcome.ok) through += units
          if (outcome.ok) level -= units
          expect(through).toBeLessThanOrEqual(allowed + 1e-6)
        }
        await house.close()
      }),
      { verbose: 1 },
    )
  })
})

test('what refills while the ledger answers is not lost: who fits by then is not refused', async () => {
  const clock = stoppedClock()
  const memory = openMemoryLedger(clock)
  let late = (): void => {}
  const slow: Ledger = {
    ...memory,
    ask: async (asks) => {
      const answers = await memory.ask(asks)
      late()
      return answers
    },
  }
  const house = open({ limits: { tokens_per_minute: 100 }, clock, ledger: slow })
  for (const units of [12, 26, 22, 18]) await house.taken(ALICE, units)
  late = () => {
    clock.at += 1_200
  }
  // What is left in hand is used, so the ledger is asked in the background; two more have come by the time it answers.
  await house.taken(ALICE, 1)
  late = () => {}
  expect((await house.ask(ALICE, 22)).ok).toBe(true)
})

test('a limit that is lowered holds at once, also against what is in hand of the old one; a raised one lets in at once', async () => {
  const clock = stoppedClock()
  const policyOf = (value: bigint) =>
    toPolicy({
      limits: [{ scope: 'tier', subject: 'identity_verified', model: '*', name: 'requests_per_minute', value }],
      tiers: [],
      budgets: [],
    })
  let policy = policyOf(6_400n)
  const ledger = openMemoryLedger(clock)
  const admission = openAdmission({ policy: () => policy, ledger, clock, log: openLog('silent') })
  const ask = async () => (await admission.admit(ALICE, MODEL, { inputTokens: 1, outputTokens: 0 })).ok
  expect(await ask()).toBe(true)
  policy = policyOf(0n)
  expect([await ask(), await ask()]).toEqual([false, false])
  policy = policyOf(3n)
  expect([await ask(), await ask(), await ask(), await ask()]).toEqual([true, true, true, false])
  await admission.close()
})

test('a limit refills however the time of day is set', async () => {
  const clock = stoppedClock()
  let setBackMs = 0
  const house = open({ limits: { requests_per_minute: 60 }, clock: { ...clock, now: () => (clock.at - setBackMs) as Instant } })
  for (let round = 0; round < 60; round += 1) (await house.taken()).settle()
  expect(await house.refused()).toMatchObject({ limit: 'requests', retryAfterMs: 1_000 })
  setBackMs = 2 * 3_600_000
  clock.at += 1_000
  ;(await house.taken()).settle()
  expect(await house.refused()).toMatchObject({ limit: 'requests', retryAfterMs: 1_000 })
})

describe('with the ledger away', () => {
  test('a gateway goes on with its part, then refuses by the rule; a hard budget is not lent', async () => {
    const clock = stoppedClock()
    const away: Ledger = { ask: () => Promise.reject(new Error('away')), beat: () => Promise.reject(new Error('away')) }
    const house = open({ limits: { requests_per_minute: 60, concurrent_requests: 100 }, clock, ledger: away })
    for (let round = 0; round < 60; round += 1) (await house.taken()).settle()
    expect(await house.refused()).toMatchObject({ limit: 'requests', retryAfterMs: 1_000 })
    clock.at += 1_000
    await house.taken()
    const budgeted = open({ budgets: [{ amount: EURO }], clock, ledger: away })
    expect(await budgeted.refused()).toMatchObject({ code: 'busy' })
  })

  test('one gateway of four has a quarter', async () => {
    const clock = stoppedClock()
    let there = true
    const ledger: Ledger = {
      ask: () => Promise.reject(new Error('away')),
      beat: () => (there ? Promise.resolve(4) : Promise.reject(new Error('away'))),
    }
    const house = open({ limits: { requests_per_minute: 60, concurrent_requests: 20 }, clock, ledger })
    await house.beat()
    there = false
    const held: Ticket[] = []
    for (let round = 0; round < 5; round += 1) held.push(await house.taken())
    expect(await house.refused()).toMatchObject({ limit: 'concurrency' })
    for (const ticket of held) ticket.settle()
    for (let round = 0; round < 10; round += 1) (await house.taken()).settle()
    expect(await house.refused()).toMatchObject({ limit: 'requests' })
    clock.at += 4_000
    await house.taken()
    expect(await house.refused()).toMatchObject({ limit: 'requests' })
  })

  test('what is in hand of a budget is lent by a gateway that is alone, and beside others for as long as the ledger keeps it', async () => {
    for (const gateways of [1, 4]) {
      const clock = stoppedClock()
      const memory = openMemoryLedger(clock)
      let there = true
      const ledger: Ledger = {
        ask: (asks) => (there ? memory.ask(asks) : Promise.reject(new Error('away'))),
        beat: () => (there ? Promise.resolve(gateways) : Promise.reject(new Error('away'))),
      }
      const house = open({ budgets: [{ unit: 'tokens', amount: 3_200 }], clock, ledger })
      await house.beat()
      const running = await house.taken(ALICE, 50)
      there = false
      clock.at += HELD_MS - 1
      ;(await house.taken(ALICE, 1)).settle(used(1, 0))
      clock.at += 1
      if (gateways === 1) (await house.taken(ALICE, 1)).settle(used(1, 0))
      else expect(await house.refused(ALICE, 1)).toMatchObject({ code: 'busy' })
      there = true
      clock.at += 1_000
      await house.beat()
      // What runs is still reserved, and what has come back is lent anew.
      const rest = 3_200 - 50 - (gateways === 1 ? 2 : 1)
      expect(await house.refused(ALICE, rest + 1)).toMatchObject({ limit: 'budget_tokens_day' })
      clock.at += 1_000
      ;(await house.taken(ALICE, rest)).settle(used(rest, 0))
      running.settle(used(50, 0))
      clock.at += 1_000
      expect(await house.refused(ALICE, 1)).toMatchObject({ limit: 'budget_tokens_day' })
    }
  })

  test('what was let through meanwhile is charged when it is back', async () => {
    const clock = stoppedClock()
    const memory = openMemoryLedger(clock)
    let there = false
    const ledger: Ledger = {
      ask: (asks) => (there ? memory.ask(asks) : Promise.reject(new Error('away'))),
      beat: () => (there ? memory.beat() : Promise.reject(new Error('away'))),
    }
    const house = open({ limits: { tokens_per_minute: 600 }, clock, ledger })
    await house.taken(ALICE, 500)
    there = true
    clock.at += 1_000
    await house.beat()
    expect(await house.refused(ALICE, 120)).toMatchObject({ limit: 'tokens' })
    await house.taken(ALICE, 100)
  })
})
