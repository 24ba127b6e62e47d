import { randomUUID } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import type { NewModel } from '@parvis/server/catalog/models'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { wav } from '@parvis/testkit/media'
import { type Script, type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

// Nothing of what people say to a model, or a model to them, is kept: not in the log at its most talkative, not in the journal, not in
// the database, whatever the engine does to it.

const ASKED = 'the patient has a fever since tuesday'
const ANSWERED = 'give her two of the small ones'
const WORDS = [ASKED, ANSWERED]

let database: TestDatabase
let house: TestHouse
let engine: ScriptedEngine
let babbler: Awaited<ReturnType<typeof startBabbler>>

const MODELS: (Partial<NewModel> & { name: string })[] = [
  { name: 'chat' },
  { name: 'babbler' },
  { name: 'vectors', type: 'embedding', maxOutputTokens: null, dimensions: 4 },
  { name: 'ranks', type: 'rerank', maxOutputTokens: null },
  { name: 'reads', type: 'ocr', maxOutputTokens: null },
  { name: 'hears', type: 'audio', maxOutputTokens: null },
]

/** Says it is well, and answers everything else with words that are no HTTP. */
const startBabbler = async () => {
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket)).on('error', () => undefined)
    socket.on('data', (bytes) => {
      const well = bytes.toString('latin1').startsWith('GET ')
      socket.end(well ? 'HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok' : `${ANSWERED}\r\n\r\n`)
    })
  })
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  const address = server.address()
  return {
    url: `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`,
    close: () =>
      new Promise<void>((closed) => {
        for (const socket of sockets) socket.destroy()
        server.close(() => closed())
      }),
  }
}

beforeAll(async () => {
  database = await freshDatabase()
  ;[engine, babbler] = await Promise.all([startScriptedEngine({ tokens: [ANSWERED] }), startBabbler()])
  house = await startHouse({ database, settings: { PARVIS_LOG_LEVEL: 'trace' } })
  for (const model of MODELS) await serveScripted(house, model.name === 'babbler' ? babbler : engine, model)
})
afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await babbler?.close()
  await database?.drop()
})

const messages = [
  { role: 'system', content: ASKED },
  { role: 'user', content: ASKED },
]
const DOCUMENT = {
  type: 'document_url',
  document_url: `data:application/pdf;base64,${Buffer.from(`%PDF-1.7\n${ASKED}`).toString('base64')}`,
}
const RANKED = { results: [0, 1].map((index) => ({ index, relevance_score: 0.5 })), usage: { prompt_tokens: 3, total_tokens: 3 } }
const READ = { pages: [{ index: 0, markdown: ANSWERED }], usage_info: { pages_processed: 1, doc_size_bytes: 30 } }
const HEARD = { text: ANSWERED, duration: 1, segments: [], usage: { type: 'duration', seconds: 1 } }
const speech = (model: string): FormData => {
  const form = new FormData()
  form.set('model', model)
  form.set('prompt', ASKED)
  form.set('file', new Blob([new Uint8Array(wav(1))]), 'a.wav')
  return form
}

/** Every endpoint that takes words, with a body that has some, and how its engine answers where the usual answer is another one. */
const ENDPOINTS: readonly (readonly [string, string, object, unknown?])[] = [
  ['a chat', '/v1/chat/completions', { model: 'chat', messages }],
  ['a streamed chat', '/v1/chat/completions', { model: 'chat', messages, stream: true }],
  ['a text', '/v1/completions', { model: 'chat', prompt: ASKED }],
  ['a streamed text', '/v1/completions', { model: 'chat', prompt: ASKED, stream: true }],
  ['a response', '/v1/responses', { model: 'chat', input: ASKED, instructions: ASKED }],
  ['a streamed response', '/v1/responses', { model: 'chat', input: ASKED, stream: true }],
  ['a message', '/v1/messages', { model: 'chat', max_tokens: 9, messages: messages.slice(1), system: ASKED }],
  ['a streamed message', '/v1/messages', { model: 'chat', max_tokens: 9, messages: messages.slice(1), stream: true }],
  ['a vector', '/v1/embeddings', { model: 'vectors', input: [ASKED, ASKED] }],
  ['a ranking', '/v1/rerank', { model: 'ranks', query: ASKED, documents: [ASKED, ANSWERED] }, RANKED],
  ['a ranking by vectors', '/v1/rerank', { model: 'vectors', query: ASKED, documents: [ASKED, ANSWERED] }],
  ['a document', '/v1/ocr', { model: 'reads', document: DOCUMENT, document_annotation_prompt: ASKED }, READ],
  ['a recording', '/v1/audio/transcriptions', speech('hears'), HEARD],
]

const said = JSON.stringify({ id: 'x', choices: [{ index: 0, delta: { content: ANSWERED }, text: ANSWERED, finish_reason: null }] })
const error = { error: { message: `cannot read: ${ASKED} ${ANSWERED}`, type: ANSWERED, param: ANSWERED, code: 400 } }

/** All that an engine can do wrong, with words in it. */
const FAILURES: readonly (readonly [string, Script])[] = [
  ['answers as it should', { tokens: [ANSWERED] }],
  ['gives no usage', { tokens: [ANSWERED], usage: false }],
  ['refuses with words', { status: 400, body: error }],
  ['breaks with words', { status: 500, body: error }],
  ['breaks with words that are no JSON', { status: 500, contentType: 'text/plain', raw: [ANSWERED] }],
  ['is busy with words', { status: 503, headers: { 'retry-after': '0' }, body: error }],
  ['answers with an error in a good answer', { body: error }],
  ['answers with half an object', { contentType: 'application/json', raw: [`{"choices":[{"message":{"content":"${ANSWERED}`] }],
  [
    'answers with something else',
    { body: { [ANSWERED]: ANSWERED, choices: ANSWERED, data: ANSWERED, results: ANSWERED, usage: ANSWERED } },
  ],
  ['answers with a page', { contentType: 'text/html', raw: [`<html>${ANSWERED}</html>`] }],
  ['answers with a kind made of words', { contentType: ANSWERED, raw: [ANSWERED] }],
  ['sends words in its headers', { headers: { 'x-words': ANSWERED, 'content-encoding': 'gzip' }, raw: [ANSWERED] }],
  ['is cut before it begins', { cutAfter: 0 }],
  ['is cut in the middle', { tokens: [ANSWERED, ANSWERED, ANSWERED], cutAfter: 1 }],
  ['fails in the middle', { tokens: [ANSWERED, ANSWERED], errorAfter: 1 }],
  ['streams what is no event', { contentType: 'text/event-stream', raw: [`data: ${said}\n\n`, `data: {${ANSWERED}\n\n`] }],
  ['streams an error with words', { contentType: 'text/event-stream', raw: [`data: ${said}\n\n`, `data: ${JSON.stringify(error)}\n\n`] }],
  ['forgets the end', { tokens: [ANSWERED], done: false, finishReason: '' }],
]

const send = (path: string, body: object | string, key?: string): Promise<Response> =>
  fetch(`${house.url}${path}`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${house.secretKey}`,
      'x-request-id': ASKED,
      'user-agent': 'test',
      ...(key === undefined ? {} : { 'idempotency-key': key }),
      ...(body instanceof FormData ? {} : { 'content-type': 'application/json' }),
    },
    body: body instanceof FormData ? body : typeof body === 'string' ? body : JSON.stringify(body),
  })

/** What the client saw; an answer that breaks off counts as far as it came. */
const heard = async (path: string, body: object | string, key?: string): Promise<string> => {
  const answer = await send(path, body, key)
  let text = String(answer.status)
  try {
    for await (const piece of answer.body ?? []) text += Buffer.from(piece as Uint8Array).toString()
  } catch {
    text += ' (broken off)'
  }
  return text
}

const filesUnder = async (directory: string): Promise<string> => {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true })
  const texts = entries
    .filter((entry) => entry.isFile())
    .map((entry) => readFile(join(entry.parentPath, entry.name), 'latin1').catch(() => ''))
  return (await Promise.all(texts)).join('\n')
}

const dump = async (): Promise<string> => {
  const { rows } = await house.db.query<{ name: string }>(
    `select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname not in ('pg_catalog', 'information_schema')`,
  )
  const tables = await Promise.all(rows.map(({ name }) => house.db.query<{ row: string }>(`select t::text as row from ${name} as t`)))
  return tables.flatMap((table) => table.rows.map(({ row }) => row)).join('\n')
}

const wordsIn = (text: string): readonly string[] => WORDS.filter((words) => text.includes(words))

describe('what is said stays between those who say it, with an engine that', () => {
  test.each(FAILURES)('%s', { timeout: 120_000 }, async (_what, script) => {
    for (const [name, path, body, well] of ENDPOINTS) {
      engine.play({ tokens: [ANSWERED], ...(well === undefined ? {} : { body: well }) })
      engine.playOnce(script)
      const asked = engine.requests.length
      // Under a key it is recorded, and told again from the record.
      const key = randomUUID()
      const first = await heard(path, body, key)
      if (first.startsWith('200')) await heard(path, body, key)
      expect(engine.requests.length, `${name} did not reach the engine`).toBeGreaterThan(asked)
      // A good one in between: an engine that fails again and again is not asked any more.
      expect(await heard(path, body), `${name}, once more`).toMatch(/^200/)
      expect(wordsIn(await filesUnder(house.dataDir))).toEqual([])
    }
    // Whom it does not count, we guess: so whether it is asked does not matter here.
    engine.play(script)
    await heard('/v1/messages/count_tokens', { model: 'chat', messages: messages.slice(1), system: ASKED })
    engine.play({ tokens: [ANSWERED] })
    expect(wordsIn(house.log())).toEqual([])
    expect(wordsIn(await dump())).toEqual([])
  })

  test('speaks no HTTP', { timeout: 60_000 }, async () => {
    for (const stream of [false, true]) expect(await heard('/v1/chat/completions', { model: 'babbler', messages, stream })).toMatch(/^50/)
    expect(wordsIn(house.log())).toEqual([])
    expect(house.log()).toContain('protocol error')
  })
})

test('and so does what is wrong in a request', async () => {
  for (const [, path] of ENDPOINTS) {
    await heard(path, `{"model": "chat", "messages": [${ASKED}`)
    await heard(path, {
      model: ASKED,
      messages: ASKED,
      input: { [ASKED]: ASKED },
      prompt: [{ [ASKED]: ASKED }],
      documents: ASKED,
      query: 1,
    })
    await heard(path, { model: 'chat', messages: [{ role: ASKED, content: ASKED }], [ASKED]: ASKED, temperature: ASKED })
  }
  for (const path of ['/iam/v1alpha1/api-keys', '/billing/v2/budgets', '/parvis/v1/usage-shares', `/${encodeURIComponent(ASKED)}`]) {
    await heard(path, `{"name": ${ASKED}`)
    await heard(path, { [ASKED]: ASKED })
  }
  expect(wordsIn(house.log())).toEqual([])
  expect(wordsIn(await filesUnder(house.dataDir))).toEqual([])
  expect(wordsIn(await dump())).toEqual([])
})

test('the words were there to be found, and so are ids where they belong', { timeout: 60_000 }, async () => {
  engine.play({ tokens: [ANSWERED] })
  const answer = await send('/v1/chat/completions', { model: 'chat', messages })
  expect(await answer.text()).toContain(ANSWERED)
  expect(engine.requests.at(-1)?.bytes.toString()).toContain(ASKED)
  const id = answer.headers.get('x-request-id') ?? 'none'
  await until('the event is in the database', async () => (await dump()).includes(id))
  // Written down, under the name of what was said to whom: how it ended.
  expect(await dump()).toMatch(/engine_failed/)
  expect(house.log()).toContain('"requestId"')
})
