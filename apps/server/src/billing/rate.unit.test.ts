import fc from 'fast-check'
import { expect, test } from 'vitest'
import { parsePrice } from '../catalog/price.ts'
import type { ProjectId } from '../kit/ids.ts'
import { type Cents, formatCents, formatPico, splitCents, sumCents } from '../kit/money.ts'
import type { Month } from './month.ts'
import { type Bill, type FreePools, METERS, type Meter, type Mode, type Quantity, type QuotedPrice, rate } from './rate.ts'

const A = '0190a000-0000-7000-8000-00000000000a' as ProjectId
const B = '0190b000-0000-7000-8000-00000000000b' as ProjectId
const C = '0190c000-0000-7000-8000-00000000000c' as ProjectId
const POOLS: FreePools = { tokens: 1_000_000n, audio: 3_600_000n }
const NO_POOLS: FreePools = { tokens: 0n, audio: 0n }

const quoted = (price: bigint): QuotedPrice => price as QuotedPrice

const tokens = (product: string, meter: Meter, euros: string, units: number, more: Partial<Quantity> = {}): Quantity => ({
  projectId: A,
  product,
  mode: 'realtime',
  meter,
  price: quoted(parsePrice(euros)),
  lateFrom: null,
  units: BigInt(units),
  ...more,
})

const audio = (product: string, microEuroPerMinute: bigint, milliseconds: number): Quantity => ({
  projectId: A,
  product,
  mode: 'realtime',
  meter: 'input_duration',
  price: quoted(microEuroPerMinute),
  lateFrom: null,
  units: BigInt(milliseconds),
})

const lines = (bill: Bill) =>
  Object.fromEntries(
    bill.lines.map((line) => [
      `${line.product} ${line.meter}`,
      {
        free: Number(line.freeUnits),
        billed: Number(line.billedUnits),
        exact: formatPico(line.exact),
        euros: formatCents(line.cents),
        gross: formatCents(line.grossCents),
      },
    ]),
  )

const llama = 'llama-3.3-70b-instruct'
const small = 'mistral-small-3.2-24b-instruct-2506'

test('the first example of the pricing page: 900,000 tokens are all free, and the deduction is what they would have cost', () => {
  const bill = rate(
    [
      tokens(llama, 'input_token', '0.90', 500_000),
      tokens(llama, 'output_token', '0.90', 200_000),
      tokens(small, 'input_token', '0.15', 100_000),
      tokens(small, 'output_token', '0.35', 100_000),
    ],
    POOLS,
  )
  expect(bill.lines.map((line) => formatCents(line.grossCents)).toSorted()).toEqual(['0.02', '0.04', '0.18', '0.45'])
  expect(formatCents(bill.grossCents)).toBe('0.69')
  expect(formatCents(bill.deductedCents)).toBe('0.69')
  expect(bill.cents).toBe(0n)
  expect(bill.freeUnits).toEqual({ tokens: 900_000n, audio: 0n })
})

test('the second example of the pricing page: 3,500,000 tokens cost 2.13', () => {
  const bill = rate(
    [
      tokens(llama, 'input_token', '0.90', 800_000),
      tokens(llama, 'output_token', '0.90', 2_500_000),
      tokens(small, 'input_token', '0.15', 100_000),
      tokens(small, 'output_token', '0.35', 100_000),
    ],
    POOLS,
  )
  expect(lines(bill)).toEqual({
    [`${llama} input_token`]: { free: 0, billed: 800_000, exact: '0.72', euros: '0.72', gross: '0.72' },
    [`${llama} output_token`]: { free: 1_000_000, billed: 1_500_000, exact: '1.35', euros: '1.35', gross: '2.25' },
    [`${small} input_token`]: { free: 0, billed: 100_000, exact: '0.015', euros: '0.02', gross: '0.02' },
    [`${small} output_token`]: { free: 0, billed: 100_000, exact: '0.035', euros: '0.04', gross: '0.04' },
  })
  expect(formatCents(bill.cents)).toBe('2.13')
  expect(formatCents(bill.grossCents)).toBe('3.03')
  expect(formatCents(bill.deductedCents)).toBe('0.90')
})

test('the example of the FAQ: of 1,300,000 tokens the 300,000 cheapest are billed, 0.05', () => {
  const bill = rate(
    [
      tokens('qwen3.5-397b-a17b', 'output_token', '3.60', 100_000),
      tokens('qwen3.5-397b-a17b', 'input_token', '0.60', 500_000),
      tokens(small, 'output_token', '0.35', 200_000),
      tokens(small, 'input_token', '0.15', 500_000),
    ],
    POOLS,
  )
  expect(lines(bill)[`${small} input_token`]).toMatchObject({ free: 200_000, billed: 300_000, exact: '0.045', euros: '0.05' })
  expect(bill.lines.map((line) => line.cents).filter((cents) => cents > 0n)).toEqual([5n])
  expect(formatCents(bill.cents)).toBe('0.05')
})

test('61 minutes of audio bill the 60 seconds beyond the free hour: 0.003, which is 0.01', () => {
  const bill = rate([audio('whisper-large-v3', 3_000n, 61 * 60_000)], POOLS)
  expect(lines(bill)).toEqual({
    'whisper-large-v3 input_duration': { free: 3_600_000, billed: 60_000, exact: '0.003', euros: '0.01', gross: '0.19' },
  })
  expect(formatCents(bill.cents)).toBe('0.01')
})

test('tokens and audio have a free pool each, and neither pays for the other', () => {
  const bill = rate([audio('whisper-large-v3', 3_000n, 3_600_000), tokens(llama, 'input_token', '0.90', 1_000_000)], POOLS)
  expect(bill.cents).toBe(0n)
  expect(bill.freeUnits).toEqual({ tokens: 1_000_000n, audio: 3_600_000n })
})

test('projects with 1 and 3 euros share a deduction of 2 euros as 0.50 and 1.50', () => {
  const bill = rate(
    [tokens('model', 'input_token', '1', 1_000_000, { projectId: A }), tokens('model', 'input_token', '1', 3_000_000, { projectId: B })],
    { tokens: 2_000_000n, audio: 0n },
  )
  expect(
    bill.projects.map((project) => [formatCents(project.grossCents), formatCents(project.deductedCents), formatCents(project.cents)]),
  ).toEqual([
    ['1.00', '0.50', '0.50'],
    ['3.00', '1.50', '1.50'],
  ])
  expect(formatCents(bill.cents)).toBe('2.00')
})

test('when everything fits into the pool no project owes a cent, whatever its lines round to', () => {
  const bill = rate(
    [A, B, C].map((projectId) => tokens('model', 'input_token', '0.15', 1, { projectId })),
    POOLS,
  )
  expect(bill.projects.map((project) => project.grossCents)).toEqual([1n, 1n, 1n])
  expect(bill.projects.map((project) => project.cents)).toEqual([0n, 0n, 0n])
})

test('the cents that a split leaves over go to the largest remainders, ties to the earlier line', () => {
  expect(splitCents(100n as Cents, [1n, 1n, 1n])).toEqual([34n, 33n, 33n])
  expect(splitCents(5n as Cents, [1n, 3n, 1n])).toEqual([1n, 3n, 1n])
  expect(splitCents(2n as Cents, [10n, 10n, 30n])).toEqual([1n, 0n, 1n])
  expect(splitCents(7n as Cents, [0n, 0n])).toEqual([0n, 0n])
})

test('a thousand tokens are the smallest unit: once per line, after the free tier', () => {
  const bill = rate([tokens('model', 'input_token', '10', 1_001)], NO_POOLS)
  expect(lines(bill)['model input_token']).toMatchObject({ billed: 2_000, exact: '0.02', euros: '0.02' })
  expect(lines(rate([tokens('model', 'input_token', '10', 1_001)], { tokens: 1n, audio: 0n }))['model input_token']).toMatchObject({
    free: 1,
    billed: 1_000,
    euros: '0.01',
  })
})

test('a batch costs half, exactly, even where the price is odd', () => {
  const bill = rate([tokens('model', 'output_token', '0.350001', 2_000_000, { mode: 'batch' })], NO_POOLS)
  expect(lines(bill)['model output_token']).toMatchObject({ exact: '0.350001', euros: '0.36' })
})

test('a price that changes within the month makes two lines; the same price twice makes one', () => {
  const twice = [
    tokens('model', 'input_token', '1', 500),
    tokens('model', 'input_token', '1', 500),
    tokens('model', 'input_token', '2', 1_000),
  ]
  expect(rate(twice, NO_POOLS).lines.map((line) => [line.units, formatPico(line.exact)])).toEqual([
    [1_000n, '0.002'],
    [1_000n, '0.001'],
  ])
})

test('minutes of dedicated nodes draw on no free pool', () => {
  const bill = rate(
    [{ projectId: A, product: 'L4', mode: 'realtime', meter: 'node_minute', price: quoted(15_500n), lateFrom: null, units: 7_745n }],
    { tokens: 10_000_000n, audio: 10_000_000n },
  )
  expect(lines(bill)['L4 node_minute']).toMatchObject({ free: 0, billed: 7_745, exact: '120.0475', euros: '120.05' })
})

test('a month without use is a bill of nothing', () => {
  expect(rate([], POOLS)).toMatchObject({ lines: [], projects: [], cents: 0n })
})

// What always holds, for any usage.

const price = fc.bigInt({ min: 0n, max: 20_000_000n })
const quantity: fc.Arbitrary<Quantity> = fc.record({
  projectId: fc.constantFrom(A, B, C),
  product: fc.constantFrom('one', 'two', 'three'),
  mode: fc.constantFrom<Mode[]>('realtime', 'batch'),
  meter: fc.constantFrom(...METERS),
  price: fc.oneof(fc.constantFrom(0n, 150_000n, 900_000n), price).map(quoted),
  lateFrom: fc.constantFrom(null, '2026-04' as Month),
  units: fc.oneof(fc.bigInt({ min: 0n, max: 5_000n }), fc.bigInt({ min: 0n, max: 5_000_000_000n })),
})
const usage = fc.array(quantity, { maxLength: 30 })
const pools = fc.record({ tokens: fc.bigInt({ min: 0n, max: 10_000_000n }), audio: fc.bigInt({ min: 0n, max: 10_000_000n }) })

test('what the projects owe together is what the organization owes, and nobody owes less than nothing', () => {
  fc.assert(
    fc.property(usage, pools, (quantities, free) => {
      const bill = rate(quantities, free)
      expect(sumCents(bill.projects.map((project) => project.cents))).toBe(bill.cents)
      expect(bill.grossCents - bill.deductedCents).toBe(bill.cents)
      for (const project of bill.projects) {
        expect(project.cents >= 0n && project.deductedCents >= 0n).toBe(true)
        expect(sumCents(project.lines.map((line) => line.cents)) - project.deductedCents).toBe(project.cents)
      }
      for (const line of bill.lines) expect(line.cents >= 0n && line.cents <= line.grossCents).toBe(true)
    }),
  )
})

test('with one project the organization owes exactly the sum of its rounded lines', () => {
  fc.assert(
    fc.property(usage, pools, (quantities, free) => {
      const bill = rate(
        quantities.map((each) => ({ ...each, projectId: A })),
        free,
      )
      expect(bill.cents).toBe(sumCents(bill.lines.map((line) => line.cents)))
    }),
  )
})

test('the free tier never gives more than its pool, nor less while something is left to give it to', () => {
  fc.assert(
    fc.property(usage, pools, (quantities, free) => {
      const bill = rate(quantities, free)
      const total = (pool: 'tokens' | 'audio') =>
        bill.lines
          .filter(({ meter }) => meter !== 'node_minute' && meter !== 'page' && (meter === 'input_duration') === (pool === 'audio'))
          .reduce((sum, line) => sum + line.units, 0n)
      for (const pool of ['tokens', 'audio'] as const) {
        expect(bill.freeUnits[pool]).toBe(total(pool) < free[pool] ? total(pool) : free[pool])
      }
    }),
  )
})

test('the order of what is counted does not matter, and a second run gives the same bill', () => {
  fc.assert(
    fc.property(
      usage.chain((quantities) => fc.tuple(fc.constant(quantities), fc.shuffledSubarray(quantities, { minLength: quantities.length }))),
      pools,
      ([quantities, shuffled], free) => {
        expect(rate(shuffled, free)).toEqual(rate(quantities, free))
      },
    ),
  )
})

test('a split gives away the whole and never more to one than its weight', () => {
  fc.assert(
    fc.property(
      fc.array(fc.bigInt({ min: 0n, max: 1_000_000n }), { minLength: 1, maxLength: 20 }),
      fc.bigInt({ min: 0n, max: 100n }),
      (weights, percent) => {
        const sum = weights.reduce((total, weight) => total + weight, 0n)
        const whole = ((sum * percent) / 100n) as Cents
        const parts = splitCents(whole, weights)
        expect(sumCents(parts)).toBe(whole)
        for (const [index, part] of parts.entries()) expect(part >= 0n && part <= (weights[index] ?? 0n)).toBe(true)
      },
    ),
  )
})
