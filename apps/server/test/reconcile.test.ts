import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { runParvis } from '@parvis/testkit/server-process'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, expect, test } from 'vitest'

// Journal, ledger, totals, and what the engines themselves say that they have done: the same, whatever happens to an engine.

let database: TestDatabase
let house: TestHouse
beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database, settings: { PARVIS_DEMO_MODELS: 'true' } })
  await Promise.all(['tiny-chat', 'tiny-embed'].map(house.ready))
})
afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

const messages = [{ role: 'user', content: 'What is the capital of France?' }] as const
const CHAT = '/v1/chat/completions'

const inLedger = (events: number): Promise<void> =>
  until(`${events} events are in the ledger`, async () => {
    const { rows } = await database.db.query<{ count: bigint }>('select count(*) as count from usage_event')
    return rows[0]?.count === BigInt(events)
  })

const reconcile = async (): Promise<{ out: string; lineOf(model: string): string }> => {
  const env = { PARVIS_DATABASE_URL: database.url, PARVIS_DATA_DIR: house.dataDir }
  const { code, out, err } = await runParvis(['usage', 'reconcile'], env)
  expect({ code, err }).toEqual({ code: 0, err: '' })
  return {
    out,
    lineOf: (model) => out.split('\n').find((line) => line.includes(`embedded:${model}, ${model}, since`)) ?? `no line: ${out}`,
  }
}

test("the counters of our own engines are the ledger's sums, to the token, and a restart is told as one", async () => {
  for (const stream of [false, true]) {
    const body = { model: 'tiny-chat', messages, stream, temperature: 0, max_completion_tokens: 16 }
    expect((await house.call(CHAT, { body })).status).toBe(200)
  }
  expect((await house.call('/v1/completions', { body: { model: 'tiny-chat', prompt: 'Once upon', max_tokens: 5 } })).status).toBe(200)
  expect((await house.call('/v1/embeddings', { body: { model: 'tiny-embed', input: ['one', 'two or three'] } })).status).toBe(200)
  expect((await house.call('/v1/rerank', { body: { model: 'tiny-embed', query: 'a', documents: ['b', 'c'] } })).status).toBe(200)
  await inLedger(5)

  const { rows } = await database.db.query<{ input: bigint; output: bigint }>(
    `select sum(input_tokens)::bigint as input, sum(output_tokens)::bigint as output from usage_event where model = 'tiny-chat'`,
  )
  const [used] = rows
  const first = await reconcile()
  expect(first.lineOf('tiny-chat')).toContain(
    `input ${used?.input}, ledger ${used?.input} (0); output ${used?.output}, ledger ${used?.output} (0)`,
  )
  expect(first.lineOf('tiny-embed')).toMatch(/input [1-9]\d*, ledger [1-9]\d* \(0\); output 0, ledger 0 \(0\)/)
  expect(first.out).not.toContain('started again')
  expect(first.out).not.toContain('it has done more')

  const pid = Number(/"pid":(\d+),"file":"[^"]*tiny-chat[^"]*","msg":"engine process started"/.exec(house.log())?.[1])
  process.kill(pid, 'SIGKILL')
  await until('it has been seen', () => house.log().includes('embedded engine ended'))
  await house.ready('tiny-chat')
  expect((await house.call(CHAT, { body: { model: 'tiny-chat', messages, max_completion_tokens: 4 } })).status).toBe(200)
  await inLedger(6)
  const second = await reconcile()
  expect(second.lineOf('tiny-chat')).toMatch(/input [1-9]\d*, ledger [1-9]\d* \(0\); output [1-9]\d*, ledger [1-9]\d* \(0\)/)
  expect(second.lineOf('tiny-chat')).not.toContain(`ledger ${used?.input} `)
  expect(second.out).toContain('it was started again then: what it did before is in the ledger')
  expect(second.out).not.toContain('the ledger has more')
})

test('how to ask them stands in the data directory with a sealed key, while the server runs', async () => {
  const path = join(house.dataDir, 'engines.json')
  const note = await readFile(path, 'utf8')
  expect(note).toContain('"name":"embedded:tiny-chat"')
  await house.stop({ keepData: true })
  await expect(readFile(path)).rejects.toThrow('ENOENT')
})
