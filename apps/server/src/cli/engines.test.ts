import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { Command } from 'commander'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { listModels } from '../catalog/models.ts'
import { readConfig } from '../config.ts'
import { removeEngine } from '../engines/registry.ts'
import { systemClock } from '../kit/clock.ts'
import { registerEngines } from './engines.ts'

let database: TestDatabase
let dir: string
const engines: ScriptedEngine[] = []
beforeEach(async () => {
  database = await freshDatabase()
  dir = await mkdtemp(join(tmpdir(), 'parvis-cli-'))
})
afterEach(async () => {
  for (const engine of engines.splice(0)) await engine.close()
  await database.drop()
  await rm(dir, { recursive: true, force: true })
})

const startEngine = async (...args: Parameters<typeof startScriptedEngine>): Promise<ScriptedEngine> => {
  const engine = await startScriptedEngine(...args)
  engines.push(engine)
  return engine
}

/** Runs a command as the shell would, and gives what it printed. */
const parvis = async (...args: string[]): Promise<string> => {
  const printed: string[] = []
  const program = new Command('parvis').exitOverride().configureOutput({ writeErr: () => undefined })
  const config = readConfig({ PARVIS_DATA_DIR: dir, PARVIS_DATABASE_URL: database.url, PARVIS_LOG_LEVEL: 'silent' }, dir)
  registerEngines(program, () => config, { env: { ENGINE_KEY: 'sk-secret' }, print: (line) => printed.push(line) })
  await program.parseAsync(['node', 'parvis', 'engines', ...args])
  return printed.join('\n')
}
const add = (url: string, ...rest: string[]) => parvis('add', '--name', 'gpu', '--url', url, ...rest)
const catalogue = async () =>
  (await listModels(database.db, systemClock)).map(({ name, type, status, ownedBy, price }) => ({
    name,
    type,
    status,
    ownedBy,
    price: price.input,
  }))

test('a name or a key that no engine can have leaves no models behind', async () => {
  const engine = await startEngine({}, { models: ['new-model'] })
  await expect(parvis('add', '--name', 'a b', '--url', engine.url)).rejects.toThrow(/cannot be the name of an engine/)
  await expect(add(engine.url, '--key', 'two words')).rejects.toThrow(/printable and without spaces/)
  expect(await catalogue()).toEqual([])
  expect(engine.requests).toEqual([])
})

test('adding an engine puts its unknown models into the catalogue, active and without a price, and says what to do next', async () => {
  const engine = await startEngine({}, { models: ['meta-llama/Llama-3.1-8B-Instruct', 'BAAI/bge-m3', 'bge-reranker-v2'] })
  const said = await add(engine.url)
  expect(await catalogue()).toEqual([
    { name: 'llama-3.1-8b-instruct', type: 'chat', status: 'active', ownedBy: 'meta-llama', price: 0n },
    { name: 'bge-m3', type: 'embedding', status: 'active', ownedBy: 'BAAI', price: 0n },
    { name: 'bge-reranker-v2', type: 'rerank', status: 'active', ownedBy: 'gpu', price: 0n },
  ])
  expect(said).toContain(
    'llama-3.1-8b-instruct (there: meta-llama/Llama-3.1-8B-Instruct): new in the catalogue, chat, context 8192, at most 4096 tokens of output',
  )
  expect(said).toContain('parvis models price llama-3.1-8b-instruct <input> <output>')
})

test('a server for speech is added like any other', async () => {
  const engine = await startEngine({}, { models: ['Systran/faster-whisper-small', 'my-transcriber', 'kokoro-tts'] })
  const said = await add(
    engine.url,
    '--model',
    'whisper=Systran/faster-whisper-small',
    '--model',
    'my-transcriber',
    '--type',
    'my-transcriber=audio',
  )
  expect(said).toContain('whisper (there: Systran/faster-whisper-small): new in the catalogue, audio')
  expect(said).toContain('parvis models price whisper <price> 0')
  expect(await catalogue()).toMatchObject([
    { name: 'whisper', type: 'audio' },
    { name: 'my-transcriber', type: 'audio' },
  ])
  // Neither is anything taken for a chat in silence, nor a second replica refused.
  await expect(parvis('add', '--name', 'voice', '--url', engine.url, '--model', 'kokoro-tts')).rejects.toThrow('--type kokoro-tts=')
  expect(await parvis('add', '--name', 'more', '--url', engine.url, '--model', 'whisper=Systran/faster-whisper-small')).toContain(
    'one more replica',
  )
})

test('a second engine of the same model is one more replica and adds no model', async () => {
  const [a, b] = [await startEngine({}, { models: ['m'] }), await startEngine({}, { models: ['m'] })]
  await add(a.url)
  const said = await parvis('add', '--name', 'gpu2', '--url', `${b.url}/v1`)
  expect(said).toContain('one more replica')
  expect(await catalogue()).toHaveLength(1)
})

test('two engines of one new model that are added at the same moment are its two replicas', async () => {
  const [a, b] = [await startEngine({}, { models: ['m'] }), await startEngine({}, { models: ['m'] })]
  // Whoever looks sees that there is no model m; nobody can add it before both have looked.
  const gate = await database.db.connect()
  await gate.query('begin')
  await gate.query('lock table model in share mode')
  const both = Promise.all([add(a.url), parvis('add', '--name', 'gpu2', '--url', b.url)])
  const waiting = `
    select 1
      from pg_locks
     where database = (select oid from pg_database where datname = current_database())
       and relation = 'model'::regclass
       and not granted`
  try {
    await Promise.race([both, until('both are about to add it', async () => (await database.db.query(waiting)).rowCount === 2)])
  } finally {
    await gate.query('rollback')
    gate.release()
  }
  const said = await both
  expect(said.filter((text) => text.includes('new in the catalogue'))).toHaveLength(1)
  expect(said.filter((text) => text.includes('one more replica'))).toHaveLength(1)
  expect(await catalogue()).toHaveLength(1)
  const listed = JSON.parse(await parvis('list', '--json')) as { name: string; models: { id: string; name: string }[] }[]
  expect(listed.map(({ name, models }) => [name, models.map((model) => model.name)])).toEqual([
    ['gpu', ['m']],
    ['gpu2', ['m']],
  ])
  expect(new Set(listed.flatMap(({ models }) => models.map(({ id }) => id))).size).toBe(1)
})

test('the list shows where each engine is, what it serves and whether it answers, and never a key', async () => {
  const engine = await startEngine({}, { models: ['Org/M-1'], bearer: 'sk-secret' })
  await add(engine.url, '--key-env', 'ENGINE_KEY')
  await parvis('add', '--name', 'away', '--url', 'http://127.0.0.1:9', '--model', 'm-1=x', '--force')
  const text = await parvis('list')
  expect(text.split('\n')).toEqual([
    'away  http://127.0.0.1:9  no key  nothing listens there (connection refused)',
    '  m-1 (there: x)',
    `gpu  ${engine.url}  with a key  answers`,
    '  m-1 (there: Org/M-1)',
  ])
  const json = await parvis('list', '--json')
  expect(JSON.parse(json)).toMatchObject([
    { name: 'away', hasKey: false, answers: false },
    { name: 'gpu', hasKey: true, answers: true, models: [{ name: 'm-1', remote: 'Org/M-1' }] },
  ])
  expect(text + json).not.toContain('sk-secret')
})

test('an engine that is removed is gone from the list, and its models stay', async () => {
  const engine = await startEngine({}, { models: ['m'] })
  await add(engine.url)
  expect(await parvis('remove', 'gpu')).toContain('gpu is removed')
  expect(await parvis('list')).toContain('No engines are registered')
  expect(await catalogue()).toHaveLength(1)
})

test('an address that does not answer is refused; with --force it is added by name', async () => {
  const away = 'http://127.0.0.1:9'
  await expect(add(away)).rejects.toThrow(/nothing listens there.*--force/)
  await expect(add(away, '--force')).rejects.toThrow(/name its models/)
  expect(await catalogue()).toEqual([])
  expect(await add(away, '--force', '--model', 'm=their-m')).toContain('m (there: their-m): new in the catalogue')
})

test('a name that is taken is refused before anything is added', async () => {
  const engine = await startEngine({}, { models: ['m'] })
  await add(engine.url)
  const other = await startEngine({}, { models: ['other'] })
  await expect(add(other.url)).rejects.toThrow(/already an engine named gpu/)
  expect(await catalogue()).toHaveLength(1)
  expect(await removeEngine(database.db, 'gpu', 'test')).toBe(true)
})

test.each([
  ['a key and a variable for it', ['--key', 'a', '--key-env', 'ENGINE_KEY'], /not both/],
  ['a variable that is not set', ['--key-env', 'NOT_SET'], /NOT_SET is not set/],
  ['a model the engine does not have', ['--model', 'm=other'], /has no model other\. It has: m/],
  ['a type for a model that is not added', ['--type', 'x=chat'], /no model x among/],
  ['images for a model that is not added', ['--vision', 'x'], /no model x among/],
  ['a type that is none', ['--type', 'm=poem'], /chat, embedding, rerank, audio, ocr/],
  ['a context that is no number', ['--context', 'm=many'], /whole number/],
])('%s is refused and nothing is added', async (_, flags, says) => {
  const engine = await startEngine({}, { models: ['m'] })
  await expect(add(engine.url, ...flags)).rejects.toThrow(says)
  expect(await catalogue()).toEqual([])
  expect(await parvis('list')).toContain('No engines are registered')
})

test('what an engine speaks is read from its own description, or said; the list shows it', async () => {
  const speaking = await startEngine({}, { models: ['m'], paths: ['/v1/chat/completions', '/v1/responses', '/tokenize'] })
  expect(await add(speaking.url)).toContain('It speaks responses')
  expect(await parvis('list')).toContain('  speaks responses\n')
  expect(JSON.parse(await parvis('list', '--json'))).toMatchObject([{ name: 'gpu', speaks: ['responses'] }])
  expect(await parvis('add', '--name', 'chats-only', '--url', speaking.url, '--speaks', 'chat')).not.toContain('It speaks')
  const silent = await startEngine({}, { models: ['m'] })
  expect(await parvis('add', '--name', 'silent', '--url', silent.url)).not.toContain('It speaks')
  expect(await parvis('add', '--name', 'said', '--url', silent.url, '--speaks', 'responses')).toContain('It speaks responses')
  const listed = JSON.parse(await parvis('list', '--json')) as { name: string; speaks: string[] }[]
  expect(listed.map(({ name, speaks }) => [name, speaks])).toEqual([
    ['chats-only', []],
    ['gpu', ['responses']],
    ['said', ['responses']],
    ['silent', []],
  ])
  await expect(parvis('add', '--name', 'odd', '--url', silent.url, '--speaks', 'klingon')).rejects.toThrow(/speaks responses or chat/)
  // Nothing was tried out: only its description and its models were read.
  expect(speaking.requests).toHaveLength(0)
})

test('removing an engine that is not there says so', async () => {
  await expect(parvis('remove', 'nobody')).rejects.toThrow(/no engine nobody/)
})

test('type, context and images are as they are given', async () => {
  const engine = await startEngine({}, { models: ['m'] })
  await add(engine.url, '--type', 'm=chat', '--context', 'm=1000', '--vision', 'm')
  const [model] = await listModels(database.db, systemClock)
  expect(model).toMatchObject({ type: 'chat', contextTokens: 1000, maxOutputTokens: 500, features: { vision: true, tools: true } })
})
