import { setImmediate as turn } from 'node:timers/promises'
import { type Instant, instantToDate } from '../kit/clock.ts'
import { type Cents, formatCents, formatPico, sumCents } from '../kit/money.ts'
import type { MonthBill } from './bill.ts'
import type { Face } from './fonts.ts'
import type { Invoice } from './invoice.ts'
import { monthEnd, monthStart } from './month.ts'
import type { RatedLine } from './rate.ts'
import { FREE_TIER_DEDUCTION, kindOf, priceOf, quantityOf, unitWordsOf } from './wording.ts'

/** A cell that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay numbers. */
const csvCell = (value: string): string => {
  const safe = /^[=+\-@\t\r]/.test(value) && !/^-?\d+(\.\d+)?$/.test(value) ? `'${value}` : value
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}

const toCsv = (rows: readonly (readonly string[])[]): Buffer =>
  Buffer.from(rows.map((row) => `${row.map(csvCell).join(',')}\r\n`).join(''), 'utf8') // RFC 4180

const day = (instant: Instant | null): string => (instant === null ? '' : instantToDate(instant).toISOString().slice(0, 10))

/** The list of invoices, one row for each. */
export const invoicesToCsv = (invoices: readonly Invoice[]): Buffer =>
  toCsv([
    [
      'number',
      'type',
      'state',
      'organization_id',
      'organization_name',
      'billing_period',
      'issued',
      'due',
      'currency',
      'gross',
      'discount',
      'untaxed',
      'tax',
      'taxed',
    ],
    ...invoices.map((invoice) => [
      String(invoice.number ?? ''),
      invoice.type,
      invoice.state,
      invoice.organizationId,
      invoice.organizationName,
      invoice.month,
      day(invoice.issuedAt),
      day(invoice.dueAt),
      'EUR',
      formatCents(invoice.grossCents),
      formatCents(invoice.discountCents),
      formatCents(invoice.untaxedCents),
      formatCents(invoice.taxCents),
      formatCents(invoice.taxedCents),
    ]),
  ])

/** What the lines of the organization and the lines of its projects differ by: each project's lines are rounded by themselves. */
const roundingOverProjects = (month: MonthBill): Cents => (month.bill.cents - sumCents(month.bill.lines.map(({ cents }) => cents))) as Cents

/** One line in words: which units cost nothing, what the others cost exactly, and what that was rounded up to. */
export const explainLine = (line: RatedLine): string => {
  const unit = unitWordsOf(line.meter)
  const count = (units: bigint): string => quantityOf(line.meter, units)
  const net = line.units - line.freeUnits
  const free = line.freeUnits === 0n ? '' : ` - ${count(line.freeUnits)} free = ${count(net)}`
  const blocks = line.billedUnits === net ? '' : `, billed as ${count(line.billedUnits)}`
  const exact = formatPico(line.exact)
  const rounded = formatCents(line.cents)
  return `${count(line.units)} ${unit}${free}${blocks} x ${priceOf(line)} = ${exact}${exact === rounded ? '' : `, rounded up to ${rounded}`}`
}

/** Every line of an invoice: what was used, what of it was free, what the rest cost exactly and after rounding. */
export const invoiceToCsv = (invoice: Invoice, month: MonthBill): Buffer => {
  const head = [
    'section',
    'project_id',
    'project',
    'product',
    'kind',
    'late_from',
    'quantity',
    'free',
    'billed',
    'price',
    'exact',
    'amount',
  ]
  const amount = (section: string, cents: Cents, projectId = '', project = ''): string[] => [
    section,
    projectId,
    project,
    '',
    '',
    '',
    '',
    '',
    '',
    '',
    '',
    formatCents(cents),
  ]
  if (invoice.type === 'credit_note') {
    return toCsv([
      head,
      amount(`credit: ${invoice.reason}`, invoice.untaxedCents),
      amount(invoice.taxName, invoice.taxCents),
      amount('total', invoice.taxedCents),
    ])
  }
  const rounding = roundingOverProjects(month)
  return toCsv([
    head,
    ...month.bill.lines.map((line) => [
      'line',
      '',
      '',
      line.product,
      kindOf(line),
      line.lateFrom ?? '',
      quantityOf(line.meter, line.units),
      quantityOf(line.meter, line.freeUnits),
      quantityOf(line.meter, line.billedUnits),
      priceOf(line),
      formatPico(line.exact),
      formatCents(line.cents),
    ]),
    ...(rounding === 0n ? [] : [amount('rounding per project', rounding)]),
    ...month.bill.projects.flatMap((project) => {
      const name = month.projectNames[project.projectId] ?? ''
      return [
        ...project.lines.map((line) => [
          'project line',
          project.projectId,
          name,
          line.product,
          kindOf(line),
          line.lateFrom ?? '',
          quantityOf(line.meter, line.units),
          '',
          quantityOf(line.meter, line.billedUnits),
          priceOf(line),
          formatPico(line.exact),
          formatCents(line.cents),
        ]),
        amount('project deduction', (0n - project.deductedCents) as Cents, project.projectId, name),
        amount('project total', project.cents, project.projectId, name),
      ]
    }),
    amount('untaxed', invoice.untaxedCents),
    amount(invoice.taxName, invoice.taxCents),
    amount('total', invoice.taxedCents),
  ])
}

const MARGIN = 48
const WIDTH = 595.28 - 2 * MARGIN // A4 in points
const BOTTOM = 841.89 - MARGIN
const SMALL = 8
const ROW_GAP = 5
/** A printed invoice of more would be no use to anybody; the CSV has them all. */
const MAX_PRINTED_LINES = 2_000
/** Setting text takes a millisecond a row: streams that run in this process get their turn between. */
const ROWS_AT_ONCE = 20

const percent = (basisPoints: number): string => `${basisPoints / 100} %`

/** The invoice as a document to print, with the same figures as everywhere else. */
export const invoiceToPdf = async (invoice: Invoice, month: MonthBill): Promise<Buffer> => {
  const title = `${invoice.type === 'credit_note' ? 'Credit note' : 'Invoice'} ${invoice.number ?? ''}`
  // Only here: who prints no invoice starts a quarter of a second sooner.
  const [{ default: PDFDocument }, { openFaces }] = await Promise.all([import('pdfkit'), import('./fonts.ts')])
  const document = new PDFDocument({
    size: 'A4',
    margin: MARGIN,
    info: { Title: title, Author: invoice.sellerName, CreationDate: instantToDate(invoice.issuedAt ?? invoice.createdAt) },
  })
  const chunks: Buffer[] = []
  document.on('data', (chunk: Buffer) => chunks.push(chunk))
  const ended = new Promise<void>((resolve, reject) => document.once('end', resolve).once('error', reject))

  const faceFor = openFaces()
  const registered = new Set<string>()
  const use = ({ name, bytes }: Face): void => {
    if (bytes !== undefined && !registered.has(name)) document.registerFont(name, bytes)
    registered.add(name)
    document.font(name)
  }

  /** Texts side by side in shares of the width; those after the first `left` stand at the right of theirs. */
  const row = async (cells: readonly string[], shares: readonly number[], left: number, bold = false): Promise<void> => {
    document.fontSize(SMALL)
    const texts = await Promise.all(cells.map((cell) => faceFor(cell, bold)))
    const widths = shares.map((share) => share * WIDTH)
    const heights = texts.map(({ text, face }, index) => {
      use(face)
      return document.heightOfString(text, { width: (widths[index] ?? 0) - ROW_GAP })
    })
    const height = Math.max(...heights)
    if (document.y + height > BOTTOM) document.addPage()
    const { y } = document
    let x = MARGIN
    for (const [index, { text, face }] of texts.entries()) {
      const width = widths[index] ?? 0
      use(face)
      document.text(text, x, y, { width: width - ROW_GAP, align: index < left ? 'left' : 'right' })
      x += width
    }
    document.x = MARGIN
    document.y = y + height + ROW_GAP
  }
  // Headings and the title are our own words, which the built-in fonts have.
  const heading = (text: string): void => {
    if (document.y + 60 > BOTTOM) document.addPage()
    document.moveDown().font('Helvetica-Bold').fontSize(11).text(text, MARGIN).moveDown(0.5)
  }
  const sum = (words: string, cents: Cents, bold = false): Promise<void> => row([words, `€ ${formatCents(cents)}`], [0.8, 0.2], 1, bold)

  document.font('Helvetica-Bold').fontSize(16).text(title, MARGIN, MARGIN)
  document.moveDown()
  const facts: readonly (readonly [string, string])[] = [
    ['From', invoice.sellerName],
    ['To', `${invoice.organizationName} (${invoice.organizationId})`],
    ['Period', `${day(monthStart(invoice.month))} to ${day((monthEnd(invoice.month) - 1) as Instant)} (UTC)`],
    ['Issued', day(invoice.issuedAt)],
    ...(invoice.type === 'credit_note' ? [] : [['Due', day(invoice.dueAt)] as const]),
  ]
  for (const fact of facts) await row(fact, [0.12, 0.88], 2)

  if (invoice.type === 'credit_note') {
    heading('Credit')
    await sum(invoice.reason === '' ? 'Credit' : invoice.reason, invoice.untaxedCents)
  } else {
    heading('Lines')
    const shares = [0.2, 0.14, 0.12, 0.1, 0.1, 0.16, 0.09, 0.09]
    await row(['Product', 'Kind', 'Quantity', 'Free', 'Billed', 'Price', 'Exact', 'Rounded up'], shares, 2, true)
    const { lines } = month.bill
    for (const [index, line] of lines.slice(0, MAX_PRINTED_LINES).entries()) {
      if (index % ROWS_AT_ONCE === 0) await turn()
      const unit = unitWordsOf(line.meter)
      await row(
        [
          line.product,
          line.lateFrom === null ? kindOf(line) : `${kindOf(line)}, late from ${line.lateFrom}`,
          `${quantityOf(line.meter, line.units)} ${unit}`,
          quantityOf(line.meter, line.freeUnits),
          quantityOf(line.meter, line.billedUnits),
          `€ ${priceOf(line)}`,
          formatPico(line.exact),
          formatCents(line.cents),
        ],
        shares,
        2,
      )
    }
    if (lines.length > MAX_PRINTED_LINES) {
      await sum(
        `${lines.length - MAX_PRINTED_LINES} more lines, as in the CSV`,
        sumCents(lines.slice(MAX_PRINTED_LINES).map(({ cents }) => cents)),
      )
    }
    const rounding = roundingOverProjects(month)
    if (rounding !== 0n) await sum("Each project's lines are rounded up by themselves", rounding)

    heading('Projects')
    await row(['Project', 'Consumption', FREE_TIER_DEDUCTION, 'Amount'], [0.4, 0.15, 0.3, 0.15], 1, true)
    for (const [index, project] of month.bill.projects.entries()) {
      if (index % ROWS_AT_ONCE === 0) await turn()
      await row(
        [
          month.projectNames[project.projectId] ?? project.projectId,
          formatCents(project.grossCents),
          formatCents((0n - project.deductedCents) as Cents),
          formatCents(project.cents),
        ],
        [0.4, 0.15, 0.3, 0.15],
        1,
      )
    }
  }

  heading('Total')
  if (invoice.type !== 'credit_note') {
    await sum('Consumption', invoice.grossCents)
    await sum(FREE_TIER_DEDUCTION, invoice.discountCents)
  }
  await sum('Before tax', invoice.untaxedCents)
  await sum(`${invoice.taxName} ${percent(invoice.taxBasisPoints)}`, invoice.taxCents)
  await sum('Total', invoice.taxedCents, true)
  document.end()
  await ended
  return Buffer.concat(chunks)
}
