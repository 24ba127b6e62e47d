import type pg from 'pg'
import { type By, recordChange } from '../audit/record.ts'
import { type Clock, dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import { type Id, newId, type OrganizationId } from '../kit/ids.ts'
import { type Cents, formatCents } from '../kit/money.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { MonthBill } from './bill.ts'
import type { Month } from './month.ts'
import type { Terms } from './terms.ts'

export type InvoiceId = Id<'invoice'>

/**
 * A draft is made when its month is closed, and becomes an invoice when it takes its number. From then on its amounts never change:
 * whatever was wrong is taken back by a credit note, which is an invoice of its own with a number of its own. An issued invoice ends
 * as paid, or as void once all of it has been taken back. Credit notes stay issued: nobody pays them.
 */
export type InvoiceState = 'draft' | 'issued' | 'paid' | 'void'

const MAY_BECOME: Record<InvoiceState, readonly InvoiceState[]> = {
  draft: ['issued', 'void'],
  issued: ['paid', 'void'],
  paid: [],
  void: [],
}

export type Invoice = {
  readonly id: InvoiceId
  readonly organizationId: OrganizationId
  readonly organizationName: string
  readonly sellerName: string
  readonly month: Month
  readonly type: 'periodic' | 'credit_note'
  readonly state: InvoiceState
  /** Null while it is a draft. */
  readonly number: number | null
  readonly corrects: InvoiceId | null
  readonly reason: string
  readonly grossCents: Cents
  /** Negative: what the free tier took off. */
  readonly discountCents: Cents
  readonly untaxedCents: Cents
  readonly taxName: string
  readonly taxBasisPoints: number
  readonly taxCents: Cents
  readonly taxedCents: Cents
  readonly createdAt: Instant
  readonly issuedAt: Instant | null
  readonly dueAt: Instant | null
}

export type InvoiceRefusal =
  | { readonly code: 'invoice_unknown' }
  | { readonly code: 'move_refused'; readonly from: InvoiceState; readonly to: InvoiceState }
  | { readonly code: 'credit_too_large'; readonly left: Cents }

const DAY_MS = 86_400_000
const BASIS_POINTS = 10_000n
/** The wire has 32 bits for a number: the year, and this many digits within it. */
const NUMBERS_PER_YEAR = 100_000

/** Half a cent goes up, as tax offices have it; once per invoice. */
export const taxOf = (untaxed: Cents, basisPoints: number): Cents => {
  const positive = untaxed < 0n ? 0n - untaxed : untaxed
  const tax = (positive * BigInt(basisPoints) + BASIS_POINTS / 2n) / BASIS_POINTS
  return (untaxed < 0n ? 0n - tax : tax) as Cents
}

const COLUMNS = `id, organization_id, organization_name, seller_name, month, type, state, number, corrects, reason, gross_cents, discount_cents,
  untaxed_cents, tax_name, tax_basis_points, tax_cents, taxed_cents, created_at, issued_at, due_at`

type InvoiceRow = {
  readonly id: InvoiceId
  readonly organization_id: OrganizationId
  readonly organization_name: string
  readonly seller_name: string
  readonly month: Month
  readonly type: Invoice['type']
  readonly state: InvoiceState
  readonly number: number | null
  readonly corrects: InvoiceId | null
  readonly reason: string
  readonly gross_cents: Cents
  readonly discount_cents: Cents
  readonly untaxed_cents: Cents
  readonly tax_name: string
  readonly tax_basis_points: number
  readonly tax_cents: Cents
  readonly taxed_cents: Cents
  readonly created_at: Date
  readonly issued_at: Date | null
  readonly due_at: Date | null
}

const rowToInvoice = (row: InvoiceRow): Invoice => ({
  id: row.id,
  organizationId: row.organization_id,
  organizationName: row.organization_name,
  sellerName: row.seller_name,
  month: row.month,
  type: row.type,
  state: row.state,
  number: row.number,
  corrects: row.corrects,
  reason: row.reason,
  grossCents: row.gross_cents,
  discountCents: row.discount_cents,
  untaxedCents: row.untaxed_cents,
  taxName: row.tax_name,
  taxBasisPoints: row.tax_basis_points,
  taxCents: row.tax_cents,
  taxedCents: row.taxed_cents,
  createdAt: dateToInstant(row.created_at),
  issuedAt: row.issued_at === null ? null : dateToInstant(row.issued_at),
  dueAt: row.due_at === null ? null : dateToInstant(row.due_at),
})

const INSERT = `
  insert into invoice (id, organization_id, organization_name, seller_name, month, type, state, corrects, reason,
                       gross_cents, discount_cents, untaxed_cents, tax_name, tax_basis_points, tax_cents, taxed_cents, created_at)
  values ($1, $2, $3, $4, $5, $6, 'draft', $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`

const insert = (client: pg.PoolClient, invoice: Omit<Invoice, 'state' | 'number' | 'issuedAt' | 'dueAt'>): Promise<unknown> =>
  client.query(INSERT, [
    invoice.id,
    invoice.organizationId,
    invoice.organizationName,
    invoice.sellerName,
    invoice.month,
    invoice.type,
    invoice.corrects,
    invoice.reason,
    invoice.grossCents,
    invoice.discountCents,
    invoice.untaxedCents,
    invoice.taxName,
    invoice.taxBasisPoints,
    invoice.taxCents,
    invoice.taxedCents,
    instantToDate(invoice.createdAt),
  ])

/** Goes into the transaction that closes the month: both are there, or neither. */
export const draftInvoice = async (
  client: pg.PoolClient,
  terms: Terms,
  now: Instant,
  { organizationId, month, bill }: MonthBill,
): Promise<void> => {
  const { rows } = await client.query<{ name: string }>('select name from organization where id = $1', [organizationId])
  const taxCents = taxOf(bill.cents, terms.taxBasisPoints)
  await insert(client, {
    id: newId<'invoice'>(now),
    organizationId,
    organizationName: rows[0]?.name ?? '',
    sellerName: terms.sellerName,
    month,
    type: 'periodic',
    corrects: null,
    reason: '',
    grossCents: bill.grossCents,
    discountCents: (0n - bill.deductedCents) as Cents,
    untaxedCents: bill.cents,
    taxName: terms.taxName,
    taxBasisPoints: terms.taxBasisPoints,
    taxCents,
    taxedCents: (bill.cents + taxCents) as Cents,
    createdAt: now,
  })
}

/** The row stays locked until the commit, so the next taker waits: a number that is not used is given back, and none is skipped. */
const takeNumber = async (client: pg.PoolClient, now: Instant): Promise<number> => {
  const year = instantToDate(now).getUTCFullYear()
  const { rows } = await client.query<{ last: number }>(
    `insert into invoice_number (year, last) values ($1, 1)
       on conflict (year) do update set last = invoice_number.last + 1
     returning last`,
    [year],
  )
  const last = rows[0]?.last ?? 0
  if (last < 1 || last >= NUMBERS_PER_YEAR) throw new Error(`The numbers of ${year} are used up.`)
  return year * NUMBERS_PER_YEAR + last
}

/** To the end of the day, so that whoever reads only the date is right. */
const dueAfter = (issuedAt: Instant, days: number): Instant => (Math.floor(issuedAt / DAY_MS) * DAY_MS + (days + 1) * DAY_MS - 1) as Instant

const issue = async (client: pg.PoolClient, terms: Pick<Terms, 'dueDays'>, now: Instant, id: InvoiceId): Promise<boolean> => {
  // The number last: it is the lock that others wait for.
  const { rowCount } = await client.query(`select 1 from invoice where id = $1 and state = 'draft' for update`, [id])
  if (rowCount !== 1) return false
  await client.query(`update invoice set state = 'issued', number = $2, issued_at = $3, due_at = $4 where id = $1 and state = 'draft'`, [
    id,
    await takeNumber(client, now),
    instantToDate(now),
    instantToDate(dueAfter(now, terms.dueDays)),
  ])
  return true
}

/** Gives every draft its number, oldest first. Safe to repeat, and for two at once. */
export const issueDrafts = async (db: Db, terms: Terms, clock: Clock): Promise<number> => {
  const { rows } = await db.query<{ id: InvoiceId }>(`select id from invoice where state = 'draft' order by month, created_at, id`)
  let issued = 0
  for (const { id } of rows) issued += (await transaction(db, (client) => issue(client, terms, clock.now(), id))) ? 1 : 0
  return issued
}

const lock = async (client: pg.PoolClient, organizationId: OrganizationId, id: InvoiceId): Promise<Invoice | undefined> => {
  const { rows } = await client.query<InvoiceRow>(`select ${COLUMNS} from invoice where id = $1 and organization_id = $2 for update`, [
    id,
    organizationId,
  ])
  return rows[0] === undefined ? undefined : rowToInvoice(rows[0])
}

const move = async (client: pg.PoolClient, invoice: Invoice, to: 'paid' | 'void', now: Instant, actor: By): Promise<void> => {
  const column = to === 'paid' ? 'paid_at' : 'voided_at'
  await client.query(`update invoice set state = $3, ${column} = $4 where id = $1 and state = $2`, [
    invoice.id,
    invoice.state,
    to,
    instantToDate(now),
  ])
  await recordChange(client, {
    organizationId: invoice.organizationId,
    actor,
    action: 'updated',
    resourceType: 'invoice',
    resourceId: invoice.id,
    before: { state: invoice.state },
    after: { state: to },
  })
}

type Ask = { readonly organizationId: OrganizationId; readonly id: InvoiceId; readonly actor: By }

export const payInvoice = (db: Db, clock: Clock, ask: Ask): Promise<Outcome<undefined, InvoiceRefusal>> =>
  transaction(db, async (client) => {
    const invoice = await lock(client, ask.organizationId, ask.id)
    if (invoice === undefined) return no({ code: 'invoice_unknown' })
    // A credit note is settled by the invoice that it corrects.
    if (invoice.type === 'credit_note' || !MAY_BECOME[invoice.state].includes('paid'))
      return no({ code: 'move_refused', from: invoice.state, to: 'paid' })
    await move(client, invoice, 'paid', clock.now(), ask.actor)
    return yes(undefined)
  })

/** What credit notes have taken back so far, before tax; as a positive amount. */
const readCredited = async (client: pg.PoolClient, id: InvoiceId): Promise<Cents> => {
  const { rows } = await client.query<{ cents: bigint }>(
    `select coalesce(-sum(untaxed_cents), 0)::bigint as cents from invoice where corrects = $1`,
    [id],
  )
  return (rows[0]?.cents ?? 0n) as Cents
}

/** A credit note over an amount before tax. The tax of all notes together never differs from that of the invoice by rounding. */
const writeCredit = async (
  client: pg.PoolClient,
  terms: Terms,
  now: Instant,
  invoice: Invoice,
  credited: Cents,
  cents: Cents,
  note: { actor: By; reason: string },
): Promise<InvoiceId> => {
  const id = newId<'invoice'>(now)
  const tax = taxOf((credited + cents) as Cents, invoice.taxBasisPoints) - taxOf(credited, invoice.taxBasisPoints)
  await insert(client, {
    id,
    organizationId: invoice.organizationId,
    organizationName: invoice.organizationName,
    sellerName: invoice.sellerName,
    month: invoice.month,
    type: 'credit_note',
    corrects: invoice.id,
    reason: note.reason,
    grossCents: (0n - cents) as Cents,
    discountCents: 0n as Cents,
    untaxedCents: (0n - cents) as Cents,
    taxName: invoice.taxName,
    taxBasisPoints: invoice.taxBasisPoints,
    taxCents: (0n - tax) as Cents,
    taxedCents: (0n - cents - tax) as Cents,
    createdAt: now,
  })
  await recordChange(client, {
    organizationId: invoice.organizationId,
    actor: note.actor,
    action: 'created',
    resourceType: 'invoice',
    resourceId: id,
    before: null,
    after: { type: 'credit_note', corrects: invoice.id, untaxed: formatCents(cents), reason: note.reason },
  })
  await issue(client, terms, now, id)
  return id
}

/** Takes back a part of an invoice, or all of it. The invoice itself stays as it was sent. */
export const creditInvoice = (
  db: Db,
  terms: Terms,
  clock: Clock,
  ask: Ask & { readonly cents: Cents; readonly reason: string },
): Promise<Outcome<InvoiceId, InvoiceRefusal>> =>
  transaction(db, async (client) => {
    const invoice = await lock(client, ask.organizationId, ask.id)
    if (invoice === undefined || invoice.type === 'credit_note' || invoice.number === null) return no({ code: 'invoice_unknown' })
    const credited = await readCredited(client, invoice.id)
    const left = (invoice.untaxedCents - credited) as Cents
    if (ask.cents < 1n || ask.cents > left) return no({ code: 'credit_too_large', left })
    return yes(await writeCredit(client, terms, clock.now(), invoice, credited, ask.cents, ask))
  })

/** A draft is thrown away; what was issued is taken back by a credit note over all that is left of it. */
export const voidInvoice = (
  db: Db,
  terms: Terms,
  clock: Clock,
  ask: Ask & { readonly reason: string },
): Promise<Outcome<undefined, InvoiceRefusal>> =>
  transaction(db, async (client) => {
    const invoice = await lock(client, ask.organizationId, ask.id)
    if (invoice === undefined) return no({ code: 'invoice_unknown' })
    if (invoice.type === 'credit_note' || !MAY_BECOME[invoice.state].includes('void'))
      return no({ code: 'move_refused', from: invoice.state, to: 'void' })
    const now = clock.now()
    const credited = await readCredited(client, invoice.id)
    const left = (invoice.untaxedCents - credited) as Cents
    if (invoice.state === 'issued' && left > 0n) await writeCredit(client, terms, now, invoice, credited, left, ask)
    await move(client, invoice, 'void', now, ask.actor)
    return yes(undefined)
  })

/** The invoices of an organization that have a number, newest first, or the one of them that is asked for. Drafts are not shown. */
export const readInvoices = async (db: Db, organizationId: OrganizationId, id?: InvoiceId): Promise<Invoice[]> => {
  const { rows } = await db.query<InvoiceRow>(
    `select ${COLUMNS} from invoice
      where organization_id = $1 and number is not null and ($2::uuid is null or id = $2)
      order by number desc`,
    [organizationId, id ?? null],
  )
  return rows.map(rowToInvoice)
}

/** Whose invoice a number is: there is one row of numbers for all organizations. */
export const findInvoice = async (
  db: Db,
  number: number,
): Promise<{ readonly organizationId: OrganizationId; readonly id: InvoiceId } | undefined> => {
  const { rows } = await db.query<{ organizationId: OrganizationId; id: InvoiceId }>(
    'select organization_id as "organizationId", id from invoice where number = $1',
    [number],
  )
  return rows[0]
}

export const readInvoiceOfMonth = async (db: Db, organizationId: OrganizationId, month: Month): Promise<Invoice | undefined> => {
  const { rows } = await db.query<InvoiceRow>(
    `select ${COLUMNS} from invoice where organization_id = $1 and month = $2 and type = 'periodic'`,
    [organizationId, month],
  )
  return rows.map(rowToInvoice)[0]
}
