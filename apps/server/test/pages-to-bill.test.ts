import { randomUUID } from 'node:crypto'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { dataUrl, png } from '@parvis/testkit/media'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { runParvis } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { monthOf } from '../src/billing/month.ts'
import { systemClock } from '../src/kit/clock.ts'

// As stream-to-bill.test.ts, for documents: what an engine has read is on the bill by the page.

let database: TestDatabase
let engine: ScriptedEngine
let house: TestHouse

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine({}, { models: ['reader'] })
  house = await startHouse({ database })
  // Two euros for a thousand pages.
  await serveScripted(house, engine, { name: 'reader', type: 'ocr', maxOutputTokens: null, price: { input: 2_000_000n, output: 0n } })
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

const PDF = dataUrl('application/pdf', Buffer.from('%PDF-1.7\n1 0 obj\n<<>>\nendobj\n'))
const IMAGE = dataUrl('image/png', png(5, 5))
const MONTH = monthOf(systemClock.now())

/** Has a document read in which the engine finds so many pages. */
const read = async (pages: number, more: object = {}, path = '/v1/ocr'): Promise<number> => {
  engine.play({ body: { pages: [], usage_info: { pages_processed: pages, doc_size_bytes: 30 } } })
  return (await house.call(path, { body: { model: 'reader', document: { document_url: PDF }, ...more } })).status
}

type Line = { sku: string; unit: string; resource_name: string; billed_quantity: string; value: { units: number; nanos: number } }
const lines = async (): Promise<Line[]> =>
  ((await house.call('/billing/v2beta1/consumptions')).json() as { consumptions: Line[] }).consumptions

test('pages that an engine has read are on the bill of the running month, whole, at the price of a thousand, and none of them is free', async () => {
  expect(await lines()).toEqual([])
  expect([await read(5), await read(7), await read(0)]).toEqual([200, 200, 200])
  await expect.poll(lines).toMatchObject([
    {
      sku: '/ai/generative_apis/consumption/reader_page/fr-par',
      resource_name: 'reader - pages - FR-PAR',
      unit: 'page',
      billed_quantity: '12',
      value: { units: 0, nanos: 30_000_000 },
    },
  ])

  const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: house.dataDir }
  const { out } = await runParvis(['bill', '--explain'], env)
  expect(out).toContain('0.03  reader, pages\n              12 pages x 2.00 per 1,000 pages = 0.024, rounded up to 0.03\n')
  const listed = await runParvis(['usage', 'requests', '--kind', 'pages', '--month', MONTH], env)
  expect(listed.out.trimEnd().split('\n')).toEqual([
    expect.stringMatching(/pages 7$/) as string,
    expect.stringMatching(/pages 5$/) as string,
  ])

  const used = await house.call('/parvis/v1/usage?group_by=model', { key: null, headers: { 'x-auth-token': house.secretKey } })
  expect(used.json()).toMatchObject({ usage: [{ model: 'reader', kind: 'pages', units: 12, events: 2 }] })
  await until('the journal, the ledger and the totals are settled', async () => (await runParvis(['usage', 'reconcile'], env)).code === 0)
})

test('the price list says what a thousand pages cost, and has no tokens for documents', async () => {
  const { products } = (await house.call('/product-catalog/v2alpha1/public-catalog/products', { key: null })).json() as {
    products: { sku: string; unit_of_measure: object; price: { retail_price: { units: number; nanos: number } } }[]
  }
  expect(products.map(({ sku, unit_of_measure, price }) => [sku.split('/').at(-2), unit_of_measure, price.retail_price])).toEqual([
    ['reader_page', { unit: 'page', size: 1_000 }, expect.objectContaining({ units: 2, nanos: 0 })],
    ['reader_page_batch', { unit: 'page', size: 1_000 }, expect.objectContaining({ units: 1, nanos: 0 })],
  ])
})

test('a hard budget of money holds what a document may cost at most, and keeps what it did cost', async () => {
  const made = await house.call('/account/v3/projects', {
    body: { name: randomUUID() },
    key: null,
    headers: { 'x-auth-token': house.secretKey },
  })
  const { id: project_id } = made.json() as { id: string }
  const path = `/${project_id}/v1/ocr`
  await until('the project is known', async () => (await house.call(`/${project_id}/v1/models`)).status === 200)
  // A cent is five pages.
  expect(
    (await house.call('/parvis/v1/budgets', { method: 'PUT', body: { project_id, unit: 'money', period: 'day', amount: 0.01 } })).status,
  ).toBe(200)
  // Of a PDF it may be a thousand.
  await until('the budget is known', async () => (await read(0, {}, path)) === 429)
  expect(await read(2, { pages: [0, 1, 2, 3, 4, 5] }, path)).toBe(429)
  expect(await read(2, { pages: [0, 1, 2, 3, 4] }, path)).toBe(200)
  expect(await read(3, { pages: [0, 1, 2, 3] }, path)).toBe(429)
  expect(await read(2, { pages: [0, 1, 2] }, path)).toBe(200)
  expect(await read(1, { pages: '0' }, path)).toBe(429)
  // An image is one page.
  const image = { document: { type: 'image_url', image_url: IMAGE } }
  expect([await read(1, image, path), await read(1, image, path)]).toEqual([200, 429])
})
