import { createHash } from 'node:crypto'
import { z } from 'zod'
import { type Clock, type Instant, instantToDate } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { forbidden, notFound } from '../kit/denial.ts'
import type { OrganizationId, ProjectId } from '../kit/ids.ts'
import { pageOf } from '../kit/listing.ts'
import { type Actor, type Manage, type Needs, pageQuery } from '../kit/management.ts'
import { type Cents, centsToEuros, centsToMoney } from '../kit/money.ts'
import { no, yes } from '../kit/outcome.ts'
import { type MonthBill, readBill, readClosedBills } from './bill.ts'
import { toConsumptions } from './consumption.ts'
import { invoicesToCsv, invoiceToCsv, invoiceToPdf } from './document.ts'
import { type Invoice, type InvoiceId, readInvoiceOfMonth, readInvoices, taxOf } from './invoice.ts'
import { MoneyJson, ONE_PAGE } from './json.ts'
import { type Month, monthEnd, monthOf, monthStart } from './month.ts'
import type { Terms } from './terms.ts'

// Billing v2beta1: consumptions, taxes, invoices, discounts (control-plane.md 7.1 to 7.4).

const reading = (resource: string): Needs => ({ resource, action: 'read', scope: 'organization' })

const date = (instant: Instant): string => instantToDate(instant).toISOString()
/** The last microsecond of a period, as the recordings have it. */
const lastOf = (end: Instant): string => date((end - 1) as Instant).replace('Z', '999Z')

const BillingPeriod = z
  .string()
  .regex(/^[1-9]\d{3}-(0[1-9]|1[0-2])$/, 'a month like 2026-05')
  .transform((text) => text as Month)
  .optional()

const BY_UPDATE = ['updated_at_desc', 'updated_at_asc', 'category_name_desc', 'category_name_asc'] as const

const ConsumptionJson = z.object({
  value: MoneyJson,
  product_name: z.string(),
  resource_name: z.string(),
  sku: z.string(),
  project_id: z.string(),
  project_name: z.string(),
  organization_name: z.string(),
  consumer_id: z.string(),
  category_name: z.string(),
  unit: z.string(),
  billed_quantity: z.string(),
})

const TaxJson = z.object({ description: z.string(), currency: z.string(), rate: z.number(), total_tax_value: z.number() })

const InvoiceJson = z.object({
  id: z.string(),
  organization_id: z.string(),
  organization_name: z.string(),
  start_date: z.string(),
  stop_date: z.string(),
  billing_period: z.string(),
  issued_date: z.string().nullable(),
  due_date: z.string().nullable(),
  total_untaxed: MoneyJson,
  total_taxed: MoneyJson,
  total_tax: MoneyJson,
  total_discount: MoneyJson,
  total_undiscount: MoneyJson,
  type: z.string(),
  state: z.string(),
  number: z.int(),
  seller_name: z.string(),
})

const invoiceToJson = (invoice: Invoice): z.infer<typeof InvoiceJson> => ({
  id: invoice.id,
  organization_id: invoice.organizationId,
  organization_name: invoice.organizationName,
  start_date: date(monthStart(invoice.month)),
  stop_date: lastOf(monthEnd(invoice.month)),
  billing_period: date(monthStart(invoice.month)),
  issued_date: invoice.issuedAt === null ? null : date(invoice.issuedAt),
  due_date: invoice.dueAt === null ? null : lastOf((invoice.dueAt + 1) as Instant),
  total_untaxed: centsToMoney(invoice.untaxedCents),
  total_taxed: centsToMoney(invoice.taxedCents),
  total_tax: centsToMoney(invoice.taxCents),
  total_discount: centsToMoney(invoice.discountCents),
  total_undiscount: centsToMoney(invoice.grossCents),
  type: invoice.type,
  // The vendor's word (serverless-platform.md 3.8).
  state: invoice.state === 'void' ? 'voided' : invoice.state,
  number: invoice.number ?? 0,
  seller_name: invoice.sellerName,
})

const INVOICE_ORDERS = [
  'invoice_number_desc',
  'invoice_number_asc',
  'start_date_desc',
  'start_date_asc',
  'issued_date_desc',
  'issued_date_asc',
  'due_date_desc',
  'due_date_asc',
  'total_untaxed_desc',
  'total_untaxed_asc',
  'total_taxed_desc',
  'total_taxed_asc',
  'invoice_type_desc',
  'invoice_type_asc',
] as const

const SORT_BY: Record<string, (invoice: Invoice) => bigint | string> = {
  invoice_number: (invoice) => BigInt(invoice.number ?? 0),
  start_date: (invoice) => invoice.month,
  issued_date: (invoice) => BigInt(invoice.issuedAt ?? 0),
  due_date: (invoice) => BigInt(invoice.dueAt ?? 0),
  total_untaxed: (invoice) => invoice.untaxedCents,
  total_taxed: (invoice) => invoice.taxedCents,
  invoice_type: (invoice) => invoice.type,
}

/** Ties by number, so that pages fetched side by side never overlap (control-plane.md 2.5). */
const sortInvoices = (invoices: readonly Invoice[], order: (typeof INVOICE_ORDERS)[number]): Invoice[] => {
  const split = order.lastIndexOf('_')
  const valueOf = SORT_BY[order.slice(0, split)]
  const sign = order.slice(split) === '_asc' ? 1 : -1
  return invoices.toSorted((a, b) => {
    const [left, right] = [valueOf?.(a) ?? 0n, valueOf?.(b) ?? 0n]
    if (left !== right) return left < right ? -sign : sign
    return ((a.number ?? 0) - (b.number ?? 0)) * sign
  })
}

const InvoiceQuery = pageQuery({ max: ONE_PAGE, fallback: ONE_PAGE, orders: INVOICE_ORDERS, clamp: true }).extend({
  organization_id: z.uuid().optional(),
  billing_period_start_after: z.iso.datetime({ offset: true }).optional(),
  billing_period_start_before: z.iso.datetime({ offset: true }).optional(),
  invoice_type: z.enum(['unknown_type', 'periodic', 'purchase', 'credit_note']).optional(),
})

const matching = (invoices: readonly Invoice[], query: z.infer<typeof InvoiceQuery>): Invoice[] => {
  const { billing_period_start_after: after, billing_period_start_before: before, invoice_type: type } = query
  return sortInvoices(
    invoices.filter(
      (invoice) =>
        (after === undefined || monthStart(invoice.month) >= Date.parse(after)) &&
        (before === undefined || monthStart(invoice.month) <= Date.parse(before)) &&
        (type === undefined || type === 'unknown_type' || invoice.type === type),
    ),
    query.order_by,
  )
}

/** The same id for the same month, without a row of its own. RFC 9562 §5.8: version 8 is for ids made in a way of one's own. */
const discountId = (organizationId: OrganizationId, month: Month): string => {
  const hex = createHash('sha256').update(`free tier ${organizationId} ${month}`).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

const DiscountJson = z.object({
  id: z.string(),
  creation_date: z.string(),
  organization_id: z.string(),
  description: z.string(),
  value: z.number(),
  value_used: z.number(),
  value_remaining: z.number(),
  mode: z.string(),
  start_date: z.string(),
  stop_date: z.string().nullable(),
  coupon: z.null(),
  filters: z.array(z.object({ type: z.string(), value: z.string(), exclude: z.boolean() })),
})

/**
 * What the free tier took off a month. Its worth in euros is known only by what it was spent on, so nothing remains of it: what is
 * left of the pool are tokens, not euros.
 */
const toDiscount = ({ organizationId, month, bill }: MonthBill): z.infer<typeof DiscountJson> => ({
  id: discountId(organizationId, month),
  creation_date: date(monthStart(month)),
  organization_id: organizationId,
  description: 'Generative APIs Free Tier',
  value: centsToEuros(bill.deductedCents),
  value_used: centsToEuros(bill.deductedCents),
  value_remaining: 0,
  mode: 'discount_mode_value',
  start_date: date(monthStart(month)),
  stop_date: lastOf(monthEnd(month)),
  coupon: null,
  filters: [{ type: 'category_name', value: 'AI', exclude: false }],
})

export type BillingRoom = { readonly db: Db; readonly clock: Clock; readonly terms: Terms }

export const billingRoutes = (manage: Manage, room: BillingRoom): void => {
  const { db, clock, terms } = room

  const monthAsked = (asked: Month | undefined): Month => asked ?? monthOf(clock.now())
  /** What another organization has is answered like what does not exist. */
  const isOwn = (actor: Actor, organizationId: string | undefined): boolean =>
    organizationId === undefined || organizationId.toLowerCase() === actor.organizationId
  const updatedAt = (bill: MonthBill): string => date(bill.closedAt ?? clock.now())

  const consumption = reading('consumption')
  manage({
    method: 'GET',
    path: '/billing/v2beta1/consumptions',
    summary: 'What a month has cost so far, or has cost, line by line.',
    needs: consumption,
    query: pageQuery({ max: ONE_PAGE, fallback: ONE_PAGE, orders: BY_UPDATE, clamp: true }).extend({
      organization_id: z.uuid().optional(),
      project_id: z.uuid().optional(),
      category_name: z.string().optional(),
      billing_period: BillingPeriod,
    }),
    answer: z.object({
      consumptions: z.array(ConsumptionJson),
      total_count: z.int(),
      total_discount_untaxed_value: z.number(),
      updated_at: z.string(),
    }),
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(consumption))
      const projectId = query.project_id?.toLowerCase() as ProjectId | undefined
      const bill = await readBill(db, terms, actor.organizationId, monthAsked(query.billing_period))
      const isKnown =
        projectId === undefined || projectId in bill.projectNames || bill.bill.projects.some((project) => project.projectId === projectId)
      if (!isKnown) return no(forbidden(consumption))
      const { rows } = await db.query<{ name: string }>('select name from organization where id = $1', [actor.organizationId])
      const filtered = projectId !== undefined || query.category_name !== undefined
      const lines = toConsumptions(bill, terms.region).filter(
        (line) =>
          (projectId === undefined || line.project_id === projectId) &&
          (query.category_name === undefined || line.category_name === query.category_name),
      )
      return yes({
        consumptions: pageOf(lines, query).map((line) => ({
          ...line,
          organization_name: rows[0]?.name ?? '',
          consumer_id: actor.organizationId,
        })),
        total_count: lines.length,
        total_discount_untaxed_value: filtered ? 0 : centsToEuros(bill.bill.deductedCents),
        updated_at: updatedAt(bill),
      })
    },
  })

  const tax = reading('tax')
  manage({
    method: 'GET',
    path: '/billing/v2beta1/taxes',
    summary: 'The tax on a month.',
    needs: tax,
    query: pageQuery({ max: ONE_PAGE, fallback: ONE_PAGE, orders: BY_UPDATE, clamp: true }).extend({
      organization_id: z.uuid().optional(),
      billing_period: BillingPeriod,
    }),
    answer: z.object({ taxes: z.array(TaxJson), total_count: z.int(), updated_at: z.string() }),
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(tax))
      const bill = await readBill(db, terms, actor.organizationId, monthAsked(query.billing_period))
      // A month that is invoiced keeps the tax of its day.
      const invoiced = bill.closedAt === null ? undefined : await readInvoiceOfMonth(db, actor.organizationId, bill.month)
      const { name, basisPoints } =
        invoiced === undefined
          ? { name: terms.taxName, basisPoints: terms.taxBasisPoints }
          : { name: invoiced.taxName, basisPoints: invoiced.taxBasisPoints }
      const total = invoiced?.taxCents ?? taxOf(bill.bill.cents, basisPoints)
      const taxes =
        basisPoints === 0 ? [] : [{ description: name, currency: 'EUR', rate: basisPoints / 10_000, total_tax_value: centsToEuros(total) }]
      return yes({ taxes: pageOf(taxes, query), total_count: taxes.length, updated_at: updatedAt(bill) })
    },
  })

  const invoice = reading('invoice')
  manage({
    method: 'GET',
    path: '/billing/v2beta1/invoices',
    summary: 'List invoices and credit notes.',
    needs: invoice,
    query: InvoiceQuery,
    answer: z.object({ invoices: z.array(InvoiceJson), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(invoice))
      const invoices = matching(await readInvoices(db, actor.organizationId), query)
      return yes({ invoices: pageOf(invoices, query).map(invoiceToJson), total_count: invoices.length })
    },
  })

  const find = async (actor: Actor, id: string): Promise<Invoice | undefined> =>
    (await readInvoices(db, actor.organizationId, id.toLowerCase() as InvoiceId))[0]

  manage({
    method: 'GET',
    path: '/billing/v2beta1/invoices/:invoice_id',
    summary: 'Read one invoice.',
    needs: invoice,
    params: z.object({ invoice_id: z.uuid() }),
    answer: InvoiceJson,
    handle: async ({ params, actor }) => {
      const found = await find(actor, params.invoice_id)
      return found === undefined ? no(notFound('invoice', params.invoice_id)) : yes(invoiceToJson(found))
    },
  })

  manage({
    method: 'GET',
    path: '/billing/v2beta1/invoices/:invoice_id/download',
    summary: 'An invoice as a document: every line with its price, quantity, free part and rounding.',
    needs: invoice,
    params: z.object({ invoice_id: z.uuid() }),
    query: z.looseObject({ file_type: z.enum(['pdf', 'csv']).default('pdf'), dl: z.string().optional() }),
    produces: { file: ['application/pdf', 'text/csv'] },
    handle: async ({ params, query, actor }) => {
      const found = await find(actor, params.invoice_id)
      if (found === undefined) return no(notFound('invoice', params.invoice_id))
      const month = await readBill(db, terms, actor.organizationId, found.month)
      const isPdf = query.file_type === 'pdf'
      return yes({
        file: {
          name: `invoice-${found.number}.${query.file_type}`,
          contentType: isPdf ? 'application/pdf' : 'text/csv',
          bytes: isPdf ? await invoiceToPdf(found, month) : invoiceToCsv(found, month),
        },
      })
    },
  })

  manage({
    method: 'GET',
    path: '/billing/v2beta1/export-invoices',
    summary: 'The list of invoices as CSV.',
    needs: invoice,
    query: InvoiceQuery.extend({ file_type: z.enum(['csv']).default('csv') }),
    produces: { file: ['text/csv'] },
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(invoice))
      const invoices = pageOf(matching(await readInvoices(db, actor.organizationId), query), query)
      return yes({ file: { name: 'invoices.csv', contentType: 'text/csv', bytes: invoicesToCsv(invoices) } })
    },
  })

  const discount = reading('discount')
  manage({
    method: 'GET',
    path: '/billing/v2beta1/discounts',
    summary: 'What the free tier took off each month.',
    needs: discount,
    query: pageQuery({
      max: ONE_PAGE,
      fallback: ONE_PAGE,
      orders: ['creation_date_desc', 'creation_date_asc', 'start_date_desc', 'start_date_asc', 'stop_date_desc', 'stop_date_asc'],
      clamp: true,
    }).extend({ organization_id: z.uuid().optional() }),
    answer: z.object({ discounts: z.array(DiscountJson), total_count: z.int() }),
    handle: async ({ query, actor }) => {
      if (!isOwn(actor, query.organization_id)) return no(forbidden(discount))
      const closed = await readClosedBills(db, actor.organizationId)
      const running = await readBill(db, terms, actor.organizationId, monthOf(clock.now()))
      const months = [...closed.filter(({ month }) => month !== running.month), running].filter(
        ({ bill }) => bill.deductedCents > (0n as Cents),
      )
      const ordered = query.order_by.endsWith('_asc') ? months : months.toReversed()
      return yes({ discounts: pageOf(ordered, query).map(toDiscount), total_count: months.length })
    },
  })
}
