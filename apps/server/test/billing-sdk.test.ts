import { randomUUID } from 'node:crypto'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { Billingv2beta1 } from '@scaleway/sdk-billing'
import { createClient } from '@scaleway/sdk-client'
import { ProductCatalogv2alpha1 } from '@scaleway/sdk-product-catalog'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Invoice, readInvoices } from '../src/billing/invoice.ts'
import { termsOf } from '../src/billing/terms.ts'
import { parsePrice } from '../src/catalog/price.ts'
import { readConfig } from '../src/config.ts'
import { bootstrap } from '../src/iam/bootstrap.ts'
import { systemClock } from '../src/kit/clock.ts'
import type { ProjectId } from '../src/kit/ids.ts'
import { openLog } from '../src/kit/log.ts'
import { openSecrets } from '../src/kit/secrets.ts'
import { addPriced, addProject, closeMonths, handClock, use } from './billing-usage.ts'

// The vendor's own packages, as they come from the registry, against a running server.

let database: TestDatabase
let house: TestHouse
let second: ProjectId
let client: ReturnType<typeof createClient>
let billing: Billingv2beta1.API
let invoices: Invoice[]

const SETTINGS = { PARVIS_TAX_PERCENT: '20' }

const keys = async (): Promise<{ accessKey: string }> => {
  const { rows } = await database.db.query<{ access_key: string }>('select access_key from api_key limit 1')
  return { accessKey: rows[0]?.access_key ?? '' }
}

beforeAll(async () => {
  database = await freshDatabase()
  // What lies in the past happened before the server starts, which closes at once whatever is due.
  const dataDir = await mkdtemp(join(tmpdir(), 'parvis-billing-'))
  const secretKey = randomUUID()
  const secrets = await openSecrets({ dataDir, masterKey: undefined })
  const { organizationId } = await bootstrap(database.db, secrets, systemClock, { secretKey, log: openLog('silent') })
  await database.db.query(`update organization set created_at = '2026-01-05T00:00:00Z' where id = $1`, [organizationId])
  second = await addProject(database.db, organizationId, 'second')
  const llama = await addPriced(database.db, 'llama', { input: '0.90', output: '0.90' })
  const small = await addPriced(database.db, 'small.1', { input: '0.15', cachedInput: '0.03', output: '0.35' })
  await addPriced(database.db, 'speech', { input: '0.003' }, 'audio')
  await addPriced(database.db, 'reads', { input: '1.500001' }, 'ocr')
  await addPriced(database.db, 'vectors', { input: '0.100001' }, 'embedding')
  for (const month of ['2026-01', '2026-02', '2026-03']) {
    const at = `${month}-12T10:00:00Z`
    await use(database.db, { organizationId, model: 'llama', priceId: llama, at, input: 800_000, output: 2_500_000 })
    await use(database.db, { organizationId, model: 'small.1', priceId: small, at, input: 100_000, output: 100_000 })
  }
  await use(database.db, {
    organizationId,
    projectId: second,
    model: 'llama',
    priceId: llama,
    at: '2026-03-12T10:00:00Z',
    output: 3_300_000,
  })
  const clock = handClock('2026-04-02T00:00:00Z')
  await closeMonths({ db: database.db, clock, log: openLog('silent'), terms: termsOf(readConfig(SETTINGS, dataDir)) })
  invoices = (await readInvoices(database.db, organizationId)).filter(({ month }) => month < '2026-04').toReversed()

  house = await startHouse({ database, dataDir, settings: { ...SETTINGS, PARVIS_BOOTSTRAP_SECRET_KEY: secretKey } })
  const { accessKey } = await keys()
  client = createClient({
    apiURL: house.url,
    accessKey,
    secretKey,
    defaultOrganizationId: organizationId,
    defaultProjectId: organizationId,
    defaultRegion: 'fr-par',
    defaultZone: 'fr-par-1',
  })
  billing = new Billingv2beta1.API(client)
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const money = (value: { units: number; nanos: number } | undefined): number =>
  Math.round(((value?.units ?? 0) + (value?.nanos ?? 0) / 1e9) * 100)

test('the consumption of a month adds up to its bill: gross lines, and a negative line for the free tier', async () => {
  const answer = await billing.listConsumptions({ billingPeriod: '2026-02' })
  expect(answer.totalCount).toBe(6)
  expect(answer.totalDiscountUntaxedValue).toBe(0.9)
  expect(answer.updatedAt).toBeInstanceOf(Date)
  expect(answer.consumptions.map((line) => [line.sku, line.billedQuantity, line.unit, money(line.value)])).toEqual([
    ['/ai/generative_apis/consumption/llama_input/fr-par', '800', 'token', 72],
    ['/ai/generative_apis/consumption/llama_output/fr-par', '2500', 'token', 225],
    ['/ai/generative_apis/consumption/small.1_input/fr-par', '100', 'token', 2],
    ['/ai/generative_apis/consumption/small.1_output/fr-par', '100', 'token', 4],
    ['/ai/generative_apis/consumption/offer', '1', 'plan', 0],
    ['/offer/deducted/ai/generative_apis/consumption/offer', '-0.90', 'currency', -90],
  ])
  expect(answer.consumptions.reduce((sum, line) => sum + money(line.value), 0)).toBe(213)
  expect(answer.consumptions[0]).toMatchObject({
    categoryName: 'AI',
    productName: 'Generative APIs',
    resourceName: 'llama - input tokens - FR-PAR',
    projectId: house.owner.organizationId,
    consumerId: house.owner.organizationId,
  })
  expect(answer.consumptions[5]).toMatchObject({
    productName: 'Offer deducted - Generative APIs Free Tier',
    value: { currencyCode: 'EUR', units: 0, nanos: -900_000_000 },
  })
})

test('two projects share the free tier by what they used, and the lines of each can be asked for', async () => {
  const deducted = async (projectId: string) => {
    // The client fills in its organization unless the project is asked for alone.
    const { consumptions, totalDiscountUntaxedValue } = await billing.listConsumptions({ billingPeriod: '2026-03', projectId })
    expect(totalDiscountUntaxedValue).toBe(0)
    expect(new Set(consumptions.map((line) => line.projectId))).toEqual(new Set([projectId]))
    return consumptions.filter((line) => line.unit === 'currency').map((line) => money(line.value))
  }
  // 3.03 and 2.97 of 6.00: 0.90 is split 0.4545 to 0.4455.
  expect(await deducted(house.owner.organizationId)).toEqual([-45])
  expect(await deducted(second)).toEqual([-45])
  expect((await billing.listConsumptions({ billingPeriod: '2026-03', categoryName: 'Compute' })).totalCount).toBe(0)
})

test('pages of one listing have one length, do not overlap, and are all brought by the iterator', async () => {
  const whole = await billing.listConsumptions({ billingPeriod: '2026-02' })
  const pages = await billing.listConsumptions({ billingPeriod: '2026-02', pageSize: 4 }).all()
  expect(pages).toEqual(whole.consumptions)
  const past = await billing.listConsumptions({ billingPeriod: '2026-02', pageSize: 4, page: 3 })
  expect([past.consumptions.length, past.totalCount]).toEqual([0, 6])
  const numbers = []
  for await (const page of billing.listInvoices({ pageSize: 2, orderBy: 'invoice_number_asc' }))
    numbers.push(page.map(({ number }) => number))
  expect(numbers).toEqual([[202_600_001, 202_600_002], [202_600_003]])
})

test('without a month the running one is meant', async () => {
  expect(await billing.listConsumptions()).toMatchObject({ consumptions: [], totalCount: 0, totalDiscountUntaxedValue: 0 })
})

test('taxes are those of the month', async () => {
  expect(await billing.listTaxes({ billingPeriod: '2026-02' })).toMatchObject({
    taxes: [{ description: 'VAT', currency: 'EUR', rate: 0.2, totalTaxValue: 0.43 }],
    totalCount: 1,
  })
})

test('an invoice is read as it was issued', async () => {
  const [first] = invoices
  expect(await billing.getInvoice({ invoiceId: first?.id ?? '' })).toEqual({
    id: first?.id,
    organizationId: house.owner.organizationId,
    organizationName: expect.any(String) as string,
    sellerName: 'Parvis',
    type: 'periodic',
    state: 'issued',
    number: 202_600_001,
    billingPeriod: new Date('2026-01-01T00:00:00Z'),
    startDate: new Date('2026-01-01T00:00:00Z'),
    stopDate: new Date('2026-01-31T23:59:59.999Z'),
    issuedDate: new Date('2026-04-02T00:00:00Z'),
    dueDate: new Date('2026-04-12T23:59:59.999Z'),
    totalUndiscount: { currencyCode: 'EUR', units: 3, nanos: 30_000_000 },
    totalDiscount: { currencyCode: 'EUR', units: 0, nanos: -900_000_000 },
    totalUntaxed: { currencyCode: 'EUR', units: 2, nanos: 130_000_000 },
    totalTax: { currencyCode: 'EUR', units: 0, nanos: 430_000_000 },
    totalTaxed: { currencyCode: 'EUR', units: 2, nanos: 560_000_000 },
  })
})

test('invoices are filtered by when their month begins, and by type', async () => {
  const months = async (query: Parameters<typeof billing.listInvoices>[0]) =>
    (await billing.listInvoices({ ...query, orderBy: 'start_date_asc' })).invoices.map((invoice) =>
      invoice.billingPeriod?.toISOString().slice(0, 7),
    )
  expect(await months({})).toEqual(['2026-01', '2026-02', '2026-03'])
  expect(await months({ billingPeriodStartAfter: new Date('2026-02-01T00:00:00Z') })).toEqual(['2026-02', '2026-03'])
  expect(await months({ billingPeriodStartBefore: new Date('2026-02-15T00:00:00Z') })).toEqual(['2026-01', '2026-02'])
  expect(await months({ invoiceType: 'purchase' })).toEqual([])
  expect(await months({ invoiceType: 'unknown_type' })).toHaveLength(3)
  expect((await billing.listInvoices({ orderBy: 'total_taxed_desc' })).invoices[0]?.billingPeriod).toEqual(new Date('2026-03-01T00:00:00Z'))
})

test('an invoice is downloaded as a PDF, as bytes and as JSON', async () => {
  const invoiceId = invoices[2]?.id ?? ''
  const blob = await billing.downloadInvoice({ invoiceId, fileType: 'pdf' })
  const bytes = Buffer.from(await blob.arrayBuffer())
  expect(bytes.subarray(0, 5).toString()).toBe('%PDF-')
  expect(bytes.subarray(-6).toString()).toMatch(/%%EOF/)
  const answer = await house.call(`/billing/v2beta1/invoices/${invoiceId}/download`)
  const file = answer.json() as { name: string; content_type: string; content: string }
  expect(file).toMatchObject({ name: 'invoice-202600003.pdf', content_type: 'application/pdf' })
  expect(Buffer.from(file.content, 'base64').subarray(0, 5).toString()).toBe('%PDF-')
})

test('the CSV of an invoice says price, quantity, free part and rounding of each line, and ends at its total', async () => {
  const answer = await house.call(`/billing/v2beta1/invoices/${invoices[1]?.id}/download?file_type=csv&dl=1`)
  const lines = answer.text.split('\r\n')
  expect(answer.headers.get('content-type')).toBe('text/csv')
  expect(lines).toContain('line,,,llama,output tokens,,2500000,1000000,1500000,0.90 per million tokens,1.35,1.35')
  expect(lines).toContain('line,,,small.1,input tokens,,100000,0,100000,0.15 per million tokens,0.015,0.02')
  expect(lines.at(-2)).toBe('total,,,,,,,,,,,2.56')
})

test('the list of invoices is exported as CSV', async () => {
  const blob = await billing.exportInvoices({ fileType: 'csv', orderBy: 'invoice_number_asc' })
  const rows = (await blob.text()).trimEnd().split('\r\n')
  expect(rows).toHaveLength(4)
  expect(rows[1]).toMatch(/^202600001,periodic,issued,[0-9a-f-]{36},.+,2026-01,2026-04-02,2026-04-12,EUR,3\.03,-0\.90,2\.13,0\.43,2\.56$/)
})

test('discounts are what the free tier took off each month', async () => {
  const answer = await billing.listDiscounts({ orderBy: 'start_date_asc' })
  expect(answer.totalCount).toBe(3)
  expect(answer.discounts[0]).toMatchObject({
    value: 0.9,
    valueUsed: 0.9,
    valueRemaining: 0,
    mode: 'discount_mode_value',
    startDate: new Date('2026-01-01T00:00:00Z'),
  })
  expect(new Set(answer.discounts.map(({ id }) => id)).size).toBe(3)
})

test('the price list needs no key, and has every model with all its prices on the first page', async () => {
  const strangers = new ProductCatalogv2alpha1.PublicCatalogAPI(createClient({ apiURL: house.url, defaultRegion: 'fr-par' }))
  const { products, totalCount } = await strangers.listPublicCatalogProducts({ productTypes: ['generative_apis' as never] })
  expect(totalCount).toBe(products.length)
  const priced = products.map((row) => [row.sku, row.unitOfMeasure?.unit, row.unitOfMeasure?.size, row.price?.retailPrice?.nanos])
  expect(priced).toEqual([
    ['/ai/generative_apis/consumption/llama_input/fr-par', 'token', 1000, 900_000],
    ['/ai/generative_apis/consumption/llama_input_batch/fr-par', 'token', 1000, 450_000],
    ['/ai/generative_apis/consumption/llama_output/fr-par', 'token', 1000, 900_000],
    ['/ai/generative_apis/consumption/llama_output_batch/fr-par', 'token', 1000, 450_000],
    ['/ai/generative_apis/consumption/reads_page/fr-par', 'page', 1000, 500_001_000],
    ['/ai/generative_apis/consumption/reads_page_batch/fr-par', 'page', 1000, 750_000_500],
    ['/ai/generative_apis/consumption/small.1_input/fr-par', 'token', 1000, 150_000],
    ['/ai/generative_apis/consumption/small.1_input_batch/fr-par', 'token', 1000, 75_000],
    ['/ai/generative_apis/consumption/small.1_input_cached/fr-par', 'token', 1000, 30_000],
    ['/ai/generative_apis/consumption/small.1_input_cached_batch/fr-par', 'token', 1000, 15_000],
    ['/ai/generative_apis/consumption/small.1_output/fr-par', 'token', 1000, 350_000],
    ['/ai/generative_apis/consumption/small.1_output_batch/fr-par', 'token', 1000, 175_000],
    ['/ai/generative_apis/consumption/speech_input_duration/fr-par', 'second', 60, 3_000_000],
    ['/ai/generative_apis/consumption/speech_input_duration_batch/fr-par', 'second', 60, 1_500_000],
    ['/ai/generative_apis/consumption/vectors_input/fr-par', 'token', 1000, 100_001],
    ['/ai/generative_apis/consumption/vectors_input_batch/fr-par', 'token', 1000, 50_000],
  ])
  expect(products[0]).toMatchObject({
    product: 'llama',
    productCategory: 'Generative APIs',
    serviceCategory: 'AI',
    status: 'general_availability',
    locality: { region: 'fr-par' },
  })
  expect(await strangers.listPublicCatalogProducts({ pageSize: 5 }).all()).toEqual(products)
  expect((await strangers.listPublicCatalogProducts({ region: 'nl-ams' })).products).toEqual([])
  expect((await strangers.listPublicCatalogProducts({ productTypes: ['instance' as never] })).products).toEqual([])
})

test("the raw price list has what the vendor's command line reads and its package drops", async () => {
  const answer = await house.call(
    '/product-catalog/v2alpha1/public-catalog/products?product_types=generative_apis&status=general_availability&region=fr-par',
    { key: null },
  )
  expect(answer.headers.get('content-type')).toBe('application/json')
  const { products } = answer.json() as { products: { sku: string; properties: { generative_apis: object } }[] }
  expect(products[0]?.properties.generative_apis).toEqual({
    reasoning: false,
    supported_apis: ['/v1/chat/completions'],
    consumption_mode: 'realtime',
    provider_name: 'test',
    tasks: ['chat'],
    token_type: 'input_token',
    supported_reasoning_values: [],
    default_reasoning_value: null,
  })
})

test('a price that is announced is not listed before its day', async () => {
  const { rows } = await database.db.query<{ id: string }>(`select id from model where name = 'llama'`)
  await database.db.query(
    `insert into model_price (id, model_id, starts_at, input, cached_input, output) values (gen_random_uuid(), $1, now() + interval '1 day', $2, $2, $2)`,
    [rows[0]?.id, parsePrice('5')],
  )
  await database.db.query(`select note_change('catalog')`)
  const list = new ProductCatalogv2alpha1.PublicCatalogAPI(client)
  expect((await list.listPublicCatalogProducts()).products[0]?.price?.retailPrice?.nanos).toBe(900_000)
})

const PATHS = [
  'consumptions',
  'taxes',
  'invoices',
  `invoices/${randomUUID()}`,
  `invoices/${randomUUID()}/download`,
  'export-invoices',
  'discounts',
]

test.each(PATHS)('without a key %s answers 401 in the shape that every client knows', async (path) => {
  for (const headers of [{}, { 'x-auth-token': randomUUID() }, { 'x-auth-token': 'rubbish' }] as Record<string, string>[]) {
    const answer = await house.call(`/billing/v2beta1/${path}`, { key: null, headers })
    expect(answer.status).toBe(401)
    expect(answer.json()).toMatchObject({ type: 'denied_authentication', method: 'api_key', message: 'authentication is denied' })
  }
})

test.each(['consumptions', 'taxes', 'invoices', 'export-invoices', 'discounts'])(
  "another organization's %s are refused like those of one that is not there",
  async (path) => {
    const other = randomUUID()
    await database.db.query(`insert into organization (id, name) values ($1, 'other')`, [other])
    const bodies = []
    for (const organizationId of [other, randomUUID()]) {
      const answer = await house.call(`/billing/v2beta1/${path}?organization_id=${organizationId}`)
      expect(answer.status).toBe(403)
      bodies.push(answer.text)
    }
    expect(JSON.parse(bodies[0] ?? '')).toMatchObject({ type: 'permissions_denied', details: [{ action: 'read' }] })
    expect(bodies[0]).toBe(bodies[1])
  },
)

test('a project of somebody else is refused', async () => {
  await expect(billing.listConsumptions({ projectId: randomUUID() })).rejects.toMatchObject({ name: 'PermissionsDeniedError', status: 403 })
})

test('an invoice that is not there is a ResourceNotFoundError, and so is one of somebody else', async () => {
  const invoiceId = randomUUID()
  await expect(billing.getInvoice({ invoiceId })).rejects.toMatchObject({
    name: 'ResourceNotFoundError',
    status: 404,
    resource: 'invoice',
    resourceId: invoiceId,
  })
  await expect(billing.downloadInvoice({ invoiceId })).rejects.toMatchObject({ status: 404 })
  const other = randomUUID()
  await database.db.query(`insert into organization (id, name) values ($1, 'another')`, [other])
  await database.db.query(`insert into bill (organization_id, month, due_at) values ($1, '2026-01', now())`, [other])
  const theirs = randomUUID()
  await database.db.query(
    `insert into invoice (id, organization_id, organization_name, seller_name, month, type, state, number, gross_cents, discount_cents, untaxed_cents, tax_name,
       tax_basis_points, tax_cents, taxed_cents, created_at, issued_at) values ($1, $2, 'other', '', '2026-01', 'periodic', 'issued', 1, 0, 0, 0, '', 0, 0, 0, now(), now())`,
    [theirs, other],
  )
  await expect(billing.getInvoice({ invoiceId: theirs })).rejects.toMatchObject({ status: 404 })
})

test.each([
  ['consumptions?billing_period=2026-13', 'billing_period', 'format'],
  ['consumptions?billing_period=May', 'billing_period', 'format'],
  ['consumptions?page=0', 'page', 'constraint'],
  ['consumptions?page_size=0', 'page_size', 'constraint'],
  ['consumptions?organization_id=acme', 'organization_id', 'format'],
  ['invoices?order_by=colour', 'order_by', 'constraint'],
  ['invoices/acme', 'invoice_id', 'format'],
])('%s is an invalid argument', async (path, argument, reason) => {
  const answer = await house.call(`/billing/v2beta1/${path}`)
  expect(answer.status).toBe(400)
  expect(answer.json()).toMatchObject({ type: 'invalid_arguments', details: [{ argument_name: argument, reason }] })
})

test('what Go and Python send changes nothing: defaults of enums, a bare question mark, a body on GET', async () => {
  const plain = await house.call('/billing/v2beta1/consumptions?billing_period=2026-02')
  const go = await house.call('/billing/v2beta1/consumptions?billing_period=2026-02&order_by=unknown_order_by&something=else')
  const { updated_at: _at, ...body } = plain.json() as Record<string, unknown>
  expect(go.json()).toMatchObject(body)
  expect((await house.call('/billing/v2beta1/invoices?')).status).toBe(200)
})
