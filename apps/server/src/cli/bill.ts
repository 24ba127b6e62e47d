import { type Command, InvalidArgumentError } from 'commander'
import type { By } from '../audit/record.ts'
import { type MonthBill, readBill } from '../billing/bill.ts'
import { explainLine } from '../billing/document.ts'
import {
  creditInvoice,
  findInvoice,
  type Invoice,
  type InvoiceRefusal,
  payInvoice,
  readInvoices,
  taxOf,
  voidInvoice,
} from '../billing/invoice.ts'
import { isMonth, type Month, monthOf } from '../billing/month.ts'
import { type Terms, termsOf } from '../billing/terms.ts'
import { FREE_TIER_DEDUCTION, kindOf, quantityOf, skuOf } from '../billing/wording.ts'
import type { Config } from '../config.ts'
import { instantToDate, systemClock } from '../kit/clock.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { type Cents, formatCents, formatPico, sumCents } from '../kit/money.ts'
import type { Outcome } from '../kit/outcome.ts'
import { operatorHere } from './operator.ts'
import { type CommandDatabase, installed, organizationOf, withDatabase } from './with-database.ts'

const print = (text: string): void => void process.stdout.write(`${text}\n`)

const parseMonth = (text: string): Month => {
  if (!isMonth(text)) throw new InvalidArgumentError('Give a month like 2026-05.')
  return text
}

/** "1.35" in whole cents. */
const parseEuros = (text: string): Cents => {
  const [, whole, fraction = ''] = /^(\d{1,12})(?:\.(\d{1,2}))?$/.exec(text) ?? []
  if (whole === undefined) throw new InvalidArgumentError('Give euros before tax: 12, 1.35.')
  return BigInt(whole + fraction.padEnd(2, '0')) as Cents
}

const MAX_REASON_CHARACTERS = 500
const parseReason = (text: string): string => {
  if (text.trim() === '' || text.length > MAX_REASON_CHARACTERS)
    throw new InvalidArgumentError(`Give 1 to ${MAX_REASON_CHARACTERS} characters.`)
  return text.trim()
}

const parseNumber = (text: string): number => {
  if (!/^\d{9}$/.test(text))
    throw new InvalidArgumentError('Give the number of an invoice, nine digits; `parvis bill invoices` lists them.')
  return Number(text)
}

const billToJson = ({ month, closedAt, bill, pools, projectNames }: MonthBill, terms: Terms) => ({
  month,
  closed_at: closedAt === null ? null : instantToDate(closedAt).toISOString(),
  currency: 'EUR',
  gross: formatCents(bill.grossCents),
  deducted: formatCents(bill.deductedCents),
  untaxed: formatCents(bill.cents),
  tax: formatCents(taxOf(bill.cents, terms.taxBasisPoints)),
  free: {
    tokens: { given: String(pools.tokens), used: String(bill.freeUnits.tokens) },
    audio_milliseconds: { given: String(pools.audio), used: String(bill.freeUnits.audio) },
  },
  lines: bill.lines.map((line) => ({
    sku: skuOf(line, terms.region),
    product: line.product,
    kind: kindOf(line),
    late_from: line.lateFrom,
    units: String(line.units),
    free_units: String(line.freeUnits),
    billed_units: String(line.billedUnits),
    exact: formatPico(line.exact),
    amount: formatCents(line.cents),
  })),
  projects: bill.projects.map((project) => ({
    project_id: project.projectId,
    name: projectNames[project.projectId] ?? null,
    gross: formatCents(project.grossCents),
    deducted: formatCents(project.deductedCents),
    untaxed: formatCents(project.cents),
  })),
})

const printBill = (month: MonthBill, terms: Terms, explain: boolean): void => {
  const { bill } = month
  const state = month.closedAt === null ? 'provisional' : `closed ${instantToDate(month.closedAt).toISOString()}`
  print(`Bill of ${month.month} (${state}), in euros before tax`)
  if (bill.lines.length === 0) print('Nothing was used.')
  for (const line of bill.lines) {
    const late = line.lateFrom === null ? '' : `, late from ${line.lateFrom}`
    print(`${formatCents(line.cents).padStart(12)}  ${line.product}, ${kindOf(line)}${late}`)
    if (explain) print(`${' '.repeat(14)}${explainLine(line)}`)
  }
  const rounding = bill.cents - sumCents(bill.lines.map(({ cents }) => cents))
  if (rounding !== 0n) print(`${formatCents(rounding as Cents).padStart(12)}  each project's lines are rounded up by themselves`)
  print(
    `${formatCents(bill.cents).padStart(12)}  to pay, of ${formatCents(bill.grossCents)}; ${FREE_TIER_DEDUCTION}: ${formatCents((0n - bill.deductedCents) as Cents)}`,
  )
  if (terms.taxBasisPoints > 0) {
    const tax = taxOf(bill.cents, terms.taxBasisPoints)
    print(
      `${formatCents((bill.cents + tax) as Cents).padStart(12)}  with ${terms.taxBasisPoints / 100} % ${terms.taxName} (${formatCents(tax)})`,
    )
  }
  if (explain) {
    print(
      `Free tier: ${bill.freeUnits.tokens} of ${month.pools.tokens} tokens, ${quantityOf('input_duration', bill.freeUnits.audio)} of ${quantityOf('input_duration', month.pools.audio)} s of audio; the dearest first.`,
    )
  }
  if (explain || bill.projects.length > 1) {
    for (const project of bill.projects) {
      const name = month.projectNames[project.projectId] ?? project.projectId
      print(`Project ${name}: ${formatCents(project.grossCents)} - ${formatCents(project.deductedCents)} = ${formatCents(project.cents)}`)
    }
  }
  if (month.unpriced.length > 0) {
    print(`Not billed: usage under ${month.unpriced.length} prices that are not in the catalogue. The month cannot be closed.`)
  }
}

type Asked = { organization?: string; month?: Month; explain?: boolean; json?: boolean }

const show = async (config: Config, options: Asked): Promise<void> => {
  const terms = termsOf(config)
  const month = options.month ?? monthOf(systemClock.now())
  const bill = await withDatabase(config, async (database) =>
    readBill(database.db, terms, await organizationOf(database, options.organization), month),
  )
  if (options.json === true) print(JSON.stringify(billToJson(bill, terms), null, 2))
  else printBill(bill, terms, options.explain === true)
}

const invoiceToJson = (invoice: Invoice) => ({
  number: invoice.number,
  id: invoice.id,
  type: invoice.type,
  state: invoice.state,
  month: invoice.month,
  untaxed: formatCents(invoice.untaxedCents),
  tax: formatCents(invoice.taxCents),
  taxed: formatCents(invoice.taxedCents),
  issued_at: invoice.issuedAt === null ? null : instantToDate(invoice.issuedAt).toISOString(),
  due_at: invoice.dueAt === null ? null : instantToDate(invoice.dueAt).toISOString(),
})

const list = async (config: Config, options: Asked): Promise<void> => {
  const invoices = await withDatabase(config, async (database) =>
    readInvoices(database.db, await organizationOf(database, options.organization)),
  )
  if (options.json === true) return print(JSON.stringify(invoices.map(invoiceToJson), null, 2))
  if (invoices.length === 0)
    print('There are no invoices. A month is invoiced when it is closed, a day after its end unless set otherwise.')
  for (const invoice of invoices) {
    const due =
      invoice.dueAt === null || invoice.type === 'credit_note' ? '' : `  due ${instantToDate(invoice.dueAt).toISOString().slice(0, 10)}`
    print(
      `${invoice.number}  ${invoice.type.padEnd(11)}  ${invoice.state.padEnd(6)}  ${invoice.month}  ${formatCents(invoice.taxedCents).padStart(12)}${due}`,
    )
  }
  return undefined
}

const say = (refusal: InvoiceRefusal, number: number): string => {
  switch (refusal.code) {
    case 'invoice_unknown':
      return `There is no invoice ${number} that this could be done to. \`parvis bill invoices\` lists those there are, with --organization those of another.`
    case 'move_refused':
      return `Invoice ${number} is ${refusal.from} and cannot become ${refusal.to}.`
    case 'credit_too_large':
      return `Give an amount between 0.01 and ${formatCents(refusal.left)}: that is what is left of invoice ${number} before tax.`
  }
}

/** Finds the invoice by its number, whichever organization's it is, and does one thing to it. */
const change = async (
  config: Config,
  number: number,
  work: (
    database: CommandDatabase,
    ask: { organizationId: OrganizationId; id: Invoice['id']; actor: By },
  ) => Promise<Outcome<unknown, InvoiceRefusal>>,
): Promise<void> => {
  const outcome = await withDatabase(config, async (database): Promise<Outcome<unknown, InvoiceRefusal>> => {
    await installed(database)
    const invoice = await findInvoice(database.db, number)
    if (invoice === undefined) return { ok: false, refusal: { code: 'invoice_unknown' } }
    return work(database, { ...invoice, actor: operatorHere() })
  })
  if (!outcome.ok) throw new Error(say(outcome.refusal, number))
}

export const registerBill = (program: Command, readSettings: () => Config): void => {
  const bill = program
    .command('bill')
    .description('show what a month costs; list, settle and correct invoices')
    .option('--organization <id>', "an organization; without it the installation's own")
    .option('--month <month>', 'a month like 2026-05, in UTC; without it the running one', parseMonth)
    .option('--explain', 'open every line: price, quantity, free part, rounding')
    .option('--json', 'print JSON')
    .action((options: Asked) => show(readSettings(), options))
  bill
    .command('invoices')
    .description('list invoices and credit notes')
    // These are options of `bill`, and are found there also when they stand behind the subcommand.
    .action(() => list(readSettings(), bill.opts<Asked>()))
  bill
    .command('paid')
    .description('note that an invoice has been paid')
    .argument('<number>', 'number of the invoice', parseNumber)
    .action(async (number: number) => {
      await change(readSettings(), number, ({ db }, ask) => payInvoice(db, systemClock, ask))
      print(`Invoice ${number} is paid.`)
    })
  bill
    .command('credit')
    .description('take back a part of an invoice with a credit note')
    .argument('<number>', 'number of the invoice', parseNumber)
    .argument('<euros>', 'how much, before tax', parseEuros)
    .requiredOption('--reason <text>', 'what stands on the credit note', parseReason)
    .action(async (number: number, cents: Cents, options: { reason: string }) => {
      const config = readSettings()
      await change(config, number, ({ db }, ask) =>
        creditInvoice(db, termsOf(config), systemClock, { ...ask, cents, reason: options.reason }),
      )
      print(`${formatCents(cents)} of invoice ${number} are taken back.`)
    })
  bill
    .command('void')
    .description('take back all that is left of an unpaid invoice')
    .argument('<number>', 'number of the invoice', parseNumber)
    .requiredOption('--reason <text>', 'what stands on the credit note', parseReason)
    .action(async (number: number, options: { reason: string }) => {
      const config = readSettings()
      await change(config, number, ({ db }, ask) => voidInvoice(db, termsOf(config), systemClock, { ...ask, reason: options.reason }))
      print(`Invoice ${number} is void.`)
    })
}
