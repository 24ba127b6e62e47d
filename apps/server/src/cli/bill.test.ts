import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { runParvis } from '@parvis/testkit/server-process'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addOrganization, addPriced, addProject, closeMonths, handClock, use } from '../../test/billing-usage.ts'
import { termsOf } from '../billing/terms.ts'
import { readConfig } from '../config.ts'
import { bootstrap } from '../iam/bootstrap.ts'
import { systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import { openSecrets } from '../kit/secrets.ts'

let database: TestDatabase
let dataDir: string

beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-bill-'))
  const { organizationId } = await bootstrap(database.db, await openSecrets({ dataDir, masterKey: undefined }), systemClock)
  await database.db.query(`update organization set created_at = '2026-01-05T00:00:00Z'`)
  const second = await addProject(database.db, organizationId, 'second')
  const llama = await addPriced(database.db, 'llama', { input: '0.90', output: '0.90' })
  const small = await addPriced(database.db, 'small', { input: '0.15', output: '0.35' })
  const at = '2026-01-12T10:00:00Z'
  await use(database.db, { organizationId, model: 'llama', priceId: llama, at, input: 800_000, output: 2_500_000 })
  await use(database.db, { organizationId, model: 'small', priceId: small, at, input: 100_000, output: 100_000 })
  await closeMonths({
    db: database.db,
    clock: handClock('2026-02-02T00:00:00Z'),
    log: openLog('silent'),
    terms: termsOf(readConfig({}, dataDir)),
  })
  await use(database.db, { organizationId, model: 'small', priceId: small, at, output: 1_500 })
  await use(database.db, {
    organizationId,
    projectId: second,
    model: 'llama',
    priceId: llama,
    at: '2026-02-12T10:00:00Z',
    input: 1_000_001,
  })
})
afterAll(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const parvis = async (...args: string[]): Promise<{ code: number | null; out: string; complaints: string }> => {
  const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: dataDir, PARVIS_TAX_PERCENT: '20' }
  const { code, out, err } = await runParvis([...args], env)
  return { code, out, complaints: err }
}

test('a closed month is shown as it was frozen, and every line can be opened', async () => {
  const { code, out } = await parvis('bill', '--month', '2026-01', '--explain')
  expect(code).toBe(0)
  expect(out.split('\n')).toEqual([
    'Bill of 2026-01 (closed 2026-02-02T00:00:00.000Z), in euros before tax',
    '        0.72  llama, input tokens',
    '              800000 tokens x 0.90 per million tokens = 0.72',
    '        1.35  llama, output tokens',
    '              2500000 tokens - 1000000 free = 1500000 x 0.90 per million tokens = 1.35',
    '        0.02  small, input tokens',
    '              100000 tokens x 0.15 per million tokens = 0.015, rounded up to 0.02',
    '        0.04  small, output tokens',
    '              100000 tokens x 0.35 per million tokens = 0.035, rounded up to 0.04',
    '        2.13  to pay, of 3.03; Offer deducted - Generative APIs Free Tier: -0.90',
    '        2.56  with 20 % VAT (0.43)',
    'Free tier: 1000000 of 1000000 tokens, 0 of 3600 s of audio; the dearest first.',
    'Project default: 3.03 - 0.90 = 2.13',
    '',
  ])
})

test('a month that is open is provisional; what came late is marked, what is not a whole thousand is billed as one', async () => {
  const { out } = await parvis('bill', '--month', '2026-02', '--explain')
  expect(out).toContain('Bill of 2026-02 (provisional)')
  expect(out).toContain('1000001 tokens - 1000000 free = 1, billed as 1000 x 0.90 per million tokens = 0.0009, rounded up to 0.01')
  expect(out).toContain('small, output tokens, late from 2026-01')
  expect(out).toMatch(/^Project second: 0\.91 - /m)
})

test('the same as JSON, every amount a decimal string', async () => {
  const { out } = await parvis('bill', '--month', '2026-01', '--json')
  const bill = JSON.parse(out) as { untaxed: string; tax: string; lines: { exact: string; amount: string }[] }
  expect(bill).toMatchObject({ month: '2026-01', gross: '3.03', deducted: '0.90', untaxed: '2.13', tax: '0.43' })
  expect(bill.lines[2]).toEqual({
    sku: '/ai/generative_apis/consumption/small_input/fr-par',
    product: 'small',
    kind: 'input tokens',
    late_from: null,
    units: '100000',
    free_units: '0',
    billed_units: '100000',
    exact: '0.015',
    amount: '0.02',
  })
})

test('without a month the running one is shown, and it may be empty', async () => {
  expect((await parvis('bill')).out).toContain('Nothing was used.')
})

test('a customer is billed as the operator is: shown, listed, settled by the number of the invoice', async () => {
  const acme = await addOrganization(database.db, 'acme', '2026-01-05T00:00:00Z')
  const model = await addPriced(database.db, 'theirs', { input: '1.00', output: '1.00' })
  await use(database.db, { organizationId: acme, model: 'theirs', priceId: model, at: '2026-01-12T10:00:00Z', input: 3_000_000 })
  await closeMonths({
    db: database.db,
    clock: handClock('2026-02-02T00:00:00Z'),
    log: openLog('silent'),
    terms: termsOf(readConfig({}, dataDir)),
  })
  expect((await parvis('bill', '--organization', acme, '--month', '2026-01')).out).toContain('theirs')
  const listed = (await parvis('bill', 'invoices', '--organization', acme)).out
  const [number = ''] = /\d{9}/.exec(listed) ?? []
  expect((await parvis('bill', 'invoices')).out).not.toContain(number)
  expect((await parvis('bill', 'credit', number, '0.50', '--reason', 'an outage')).out).toContain(`0.50 of invoice ${number}`)
  expect((await parvis('bill', 'paid', number)).out).toContain(`Invoice ${number} is paid.`)
  expect((await parvis('bill', 'invoices', '--organization', acme)).out).toContain('paid')
  expect((await parvis('usage', 'requests', '--organization', acme, '--month', '2026-01')).out).toContain('theirs')
  for (const command of [['bill'], ['bill', 'invoices'], ['usage', 'requests']]) {
    const { code, complaints } = await parvis(...command, '--organization', '11111111-2222-4333-8444-555555555555')
    expect([code, complaints]).toEqual([1, expect.stringContaining('There is no organization 1111')])
  }
})

test('invoices are listed, corrected, settled, and never more than once', async () => {
  expect((await parvis('bill', 'invoices')).out).toMatch(/^202600001 {2}periodic {5}issued {2}2026-01 {10}2\.13 {2}due 2026-02-12$/m)
  const small = await parvis('bill', 'credit', '202600001', '5', '--reason', 'an outage')
  expect([small.code, small.complaints]).toEqual([1, expect.stringContaining('between 0.01 and 2.13')])
  expect((await parvis('bill', 'credit', '202600001', '1.13', '--reason', 'an outage')).out).toContain(
    '1.13 of invoice 202600001 are taken back.',
  )
  expect((await parvis('bill', 'paid', '202600001')).out).toContain('Invoice 202600001 is paid.')
  const again = await parvis('bill', 'void', '202600001', '--reason', 'twice')
  expect([again.code, again.complaints]).toEqual([1, expect.stringContaining('is paid and cannot become void')])
  const listed = JSON.parse((await parvis('bill', 'invoices', '--json')).out) as { type: string; state: string; untaxed: string }[]
  expect(listed.map(({ type, state, untaxed }) => [type, state, untaxed])).toEqual([
    ['credit_note', 'issued', '-1.13'],
    ['periodic', 'paid', '2.13'],
  ])
})

test.each([
  ['bills', 'There is no command bills. Did you mean bill? `parvis --help` lists them.\n'],
  ['facture', 'There is no command facture. `parvis --help` lists them.\n'],
])('%s is no command, and one line says so', async (word, sentence) => {
  expect(await parvis(word, 'list')).toEqual({ code: 1, out: '', complaints: sentence })
})

test.each([
  [['bill', '--month', 'May'], 'Give a month like 2026-05.'],
  [['bill', 'paid', '12'], 'nine digits'],
  [['bill', 'paid', '202600999'], 'There is no invoice 202600999'],
  [['bill', 'credit', '202600001', '1.234', '--reason', 'x'], 'Give euros before tax'],
  [['bill', 'credit', '202600001', '1'], '--reason'],
])('%j says what is wrong', async (args, sentence) => {
  const { code, complaints } = await parvis(...args)
  expect(code).toBe(1)
  expect(complaints).toContain(sentence)
})
