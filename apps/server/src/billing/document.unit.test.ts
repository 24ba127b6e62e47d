import { extractText } from 'unpdf'
import { describe, expect, test } from 'vitest'
import type { Instant } from '../kit/clock.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import type { Cents } from '../kit/money.ts'
import type { MonthBill } from './bill.ts'
import { explainLine, invoicesToCsv, invoiceToCsv, invoiceToPdf } from './document.ts'
import type { Invoice, InvoiceId } from './invoice.ts'
import type { Month } from './month.ts'
import { type Quantity, type QuotedPrice, rate } from './rate.ts'
import { priceOf } from './wording.ts'

const A = '0190a000-0000-7000-8000-00000000000a' as ProjectId
const B = '0190b000-0000-7000-8000-00000000000b' as ProjectId

const quantity = (projectId: ProjectId, product: string, price: bigint, units: bigint, more: Partial<Quantity> = {}): Quantity => ({
  projectId,
  product,
  mode: 'realtime',
  meter: 'output_token',
  price: price as QuotedPrice,
  lateFrom: null,
  units,
  ...more,
})

const monthOf = (quantities: readonly Quantity[]): MonthBill => ({
  organizationId: A as string as OrganizationId,
  month: '2026-02' as Month,
  closedAt: null,
  bill: rate(quantities, { tokens: 1_000_000n, audio: 3_600_000n }),
  pools: { tokens: 1_000_000n, audio: 3_600_000n },
  projectNames: { [A]: 'default', [B]: '=second' },
  keptFrom: null,
  unpriced: [],
})

const invoiceOf = ({ bill }: MonthBill, more: Partial<Invoice> = {}): Invoice => ({
  id: 'invoice' as InvoiceId,
  organizationId: A as string as OrganizationId,
  organizationName: 'Żubr & Söhne, 東',
  sellerName: 'Parvis',
  month: '2026-02' as Month,
  type: 'periodic',
  state: 'issued',
  number: 202_600_001,
  corrects: null,
  reason: '',
  grossCents: bill.grossCents,
  discountCents: (0n - bill.deductedCents) as Cents,
  untaxedCents: bill.cents,
  taxName: 'VAT',
  taxBasisPoints: 550,
  taxCents: 7n as Cents,
  taxedCents: (bill.cents + 7n) as Cents,
  createdAt: Date.UTC(2026, 2, 2) as Instant,
  issuedAt: Date.UTC(2026, 2, 2) as Instant,
  dueAt: (Date.UTC(2026, 2, 13) - 1) as Instant,
  ...more,
})

/** What a reader finds when it searches. It does not say where a cell ended, but a line of the page is one here. */
const textsOf = async (pdf: Buffer): Promise<string> => {
  const { text } = await extractText(new Uint8Array(pdf))
  return text.join('\n')
}

const two = monthOf([
  quantity(A, 'llama', 900_000n, 2_500_000n),
  quantity(A, 'small', 150_000n, 100_001n, { meter: 'input_token', lateFrom: '2026-01' as Month }),
  quantity(B, 'speech', 3_000n, 3_661_500n, { meter: 'input_duration' }),
  quantity(B, 'llama', 350_001n, 1_001n, { mode: 'batch' }),
])

test('a line says in one sentence how it came about', () => {
  expect(two.bill.lines.map(explainLine)).toEqual([
    '2500000 tokens - 1000000 free = 1500000 x 0.90 per million tokens = 1.35',
    '1001 tokens, billed as 2000 x 0.1750005 per million tokens = 0.000350001, rounded up to 0.01',
    '100001 tokens, billed as 101000 x 0.15 per million tokens = 0.01515, rounded up to 0.02',
    '3661.5 s - 3600 free = 61.5, billed as 62 x 0.003 per minute = 0.0031, rounded up to 0.01',
  ])
})

test('a document is told by the page', () => {
  const { lines } = monthOf([quantity(A, 'reads', 1_500_000n, 1_001n, { meter: 'page' })]).bill
  expect(lines.map(explainLine)).toEqual(['1001 pages x 1.50 per 1,000 pages = 1.5015, rounded up to 1.51'])
})

test('half of an odd price is written out, and so is half of a short one', () => {
  const batch = (price: bigint) => priceOf({ price: price as QuotedPrice, mode: 'batch', meter: 'output_token' })
  expect([batch(900_000n), batch(350_000n), batch(1n), batch(3_000_001n), batch(0n)]).toEqual([
    '0.45 per million tokens',
    '0.175 per million tokens',
    '0.0000005 per million tokens',
    '1.5000005 per million tokens',
    '0.00 per million tokens',
  ])
})

test('the printed invoice has every line with quantity, free part, price and rounding, the projects and the total', async () => {
  const pdf = await invoiceToPdf(invoiceOf(two), two)
  const texts = await textsOf(pdf)
  for (const text of [
    'Invoice 202600001',
    'Żubr & Söhne, 東',
    '2026-02-01 to 2026-02-28',
    '2026-03-12',
    '1000000',
    '1500000',
    '€ 0.90 per',
    '1.35',
    '0.01515',
    '0.02',
    '3661.5 s',
    'VAT 5.5 %',
    'default',
  ]) {
    expect(texts).toContain(text)
  }
  expect(texts).toMatch(/Total\s+€ \d+\.\d\d$/)
})

test('an invoice of many lines goes over as many pages as it needs', async () => {
  const long = monthOf(Array.from({ length: 300 }, (_, index) => quantity(A, `model-${index}`, 350_000n, 1_000n)))
  const pdf = await invoiceToPdf(invoiceOf(long), long)
  expect(pdf.toString('latin1').match(/\/Type \/Page\b/g)?.length).toBeGreaterThan(4)
  const texts = await textsOf(pdf)
  for (const index of [0, 150, 299]) expect(texts).toContain(`model-${index}`)
})

describe('a name stands on the invoice as it is written', () => {
  test.each([
    ['in Western European letters, with the fonts of every reader', 'Søren & Çelik “GmbH” €', 0],
    ['in Polish', 'Żółć Łódź sp. z o.o.', 1],
    ['in Greek', 'Ελληνική Εταιρεία', 1],
    ['in Russian', 'Общество «Ромашка»', 1],
    ['in Vietnamese', 'Công ty Việt Nam', 1],
    ['in Chinese', '上海人工智能有限公司', 1],
    ['in Japanese', '株式会社サンプル', 1],
    ['in Korean', '주식회사 한국', 1],
  ])('%s', async (_language, name, fonts) => {
    const named: MonthBill = { ...two, projectNames: { [A]: name, [B]: 'default' } }
    const pdf = await invoiceToPdf(invoiceOf(two, { organizationName: name, sellerName: name }), named)
    const texts = await textsOf(pdf)
    expect(texts.split(name)).toHaveLength(4)
    expect(pdf.toString('latin1').match(/\/FontFile2/g)?.length ?? 0).toBe(fonts)
  })

  test('a letter that no font has is seen to be missing, and what cannot be seen is left out', async () => {
    const texts = await textsOf(await invoiceToPdf(invoiceOf(two, { organizationName: 'a\u{10ffff}b Ω\u200bc' }), two))
    expect(texts).toContain('a?b Ωc')
  })
})

test('a credit note is printed as one, with its reason', async () => {
  const note = invoiceOf(two, {
    type: 'credit_note',
    reason: 'an outage',
    untaxedCents: -113n as Cents,
    taxCents: -6n as Cents,
    taxedCents: -119n as Cents,
  })
  const texts = await textsOf(await invoiceToPdf(note, two))
  expect(texts).toContain('Credit note 202600001')
  expect(texts).toContain('an outage')
  expect(texts).toContain('€ -1.19')
  expect(texts).not.toContain('llama')
  expect(invoiceToCsv(note, two).toString()).toMatch(/^credit: an outage,.*,-1\.13\r\n/m)
})

test('the lines, the rounding between projects and the totals of a CSV add up', () => {
  const rows = invoiceToCsv(invoiceOf(two), two)
    .toString()
    .trimEnd()
    .split('\r\n')
    .map((row) => row.split(','))
  const cents = (row: readonly string[] | undefined): number => Math.round(Number(row?.at(-1)) * 100)
  const sum = (section: string): number => rows.filter((row) => row[0] === section).reduce((total, row) => total + cents(row), 0)
  expect(sum('line') + sum('rounding per project')).toBe(sum('untaxed'))
  expect(sum('project line') + sum('project deduction')).toBe(sum('untaxed'))
  expect(sum('project total')).toBe(sum('untaxed'))
  expect(sum('untaxed') + sum('VAT')).toBe(sum('total'))
})

test('a name that a spreadsheet would run as a formula is only text, and commas and quotes stay in their cell', () => {
  expect(invoiceToCsv(invoiceOf(two), two).toString()).toContain(",'=second,")
  const rows = invoicesToCsv([invoiceOf(two, { organizationName: 'a "quoted", name' })]).toString()
  expect(rows).toContain('"a ""quoted"", name"')
  expect(rows).toContain(',2.47,-1.08,1.39,0.07,1.46')
})
