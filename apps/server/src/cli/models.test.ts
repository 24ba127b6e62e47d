import { copyFile, mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHub } from '@parvis/testkit/hub'
import { Command } from 'commander'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { addModel } from '../catalog/models.ts'
import { parsePrice } from '../catalog/price.ts'
import { readConfig } from '../config.ts'
import { systemClock } from '../kit/clock.ts'
import { registerModels } from './models.ts'

const CHAT_FILE = fileURLToPath(new URL('../../../../models/tiny-chat/tiny-chat-q8_0.gguf', import.meta.url))
const REPO = 'acme/Tiny-Chat-GGUF'

let database: TestDatabase
let hub: Awaited<ReturnType<typeof startHub>>
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
  const chat = await readFile(CHAT_FILE)
  hub = await startHub({
    [REPO]: { files: { 'Tiny-Chat-Q4_0.gguf': chat, 'Tiny-Chat-F16.gguf': chat } },
    'acme/gated': { gated: true, files: { 'g.gguf': chat } },
  })
})
afterAll(async () => {
  await hub.close()
  await database.drop()
})
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-models-'))
})
afterEach(async () => {
  vi.restoreAllMocks()
  await database.db.query('truncate model, model_price, engine, audit_entry cascade')
  await rm(dataDir, { recursive: true, force: true })
})

/** Runs `parvis models …` as main does, and gives back what it printed. */
const run = async (...words: string[]): Promise<string> => {
  const printed: string[] = []
  const catching = (text: string | Uint8Array): boolean => {
    printed.push(String(text))
    return true
  }
  vi.spyOn(process.stdout, 'write').mockImplementation(catching)
  vi.spyOn(process.stderr, 'write').mockImplementation(() => true)
  const env = { PARVIS_DATA_DIR: dataDir, PARVIS_DATABASE_URL: database.url, HF_ENDPOINT: hub.url }
  const program = new Command('parvis').exitOverride()
  registerModels(program, () => readConfig(env, dataDir))
  for (const command of program.commands.flatMap((one) => [one, ...one.commands])) command.exitOverride()
  try {
    await program.parseAsync(['models', ...words], { from: 'user' })
  } finally {
    vi.restoreAllMocks()
  }
  return printed.join('')
}

const pulledFiles = async (): Promise<string[]> =>
  (await readdir(join(dataDir, 'models'), { recursive: true, withFileTypes: true }).catch(() => [])).flatMap((entry) =>
    entry.isFile() ? [entry.name] : [],
  )

describe('pull', () => {
  test('from the hub: says what and why, serves it, lists it, and removes it with its file', async () => {
    const said = await run('pull', REPO, '--price-input', '0.15', '--price-output', '0.35', '--context', '1024')
    expect(said).toContain(`${REPO}@c0ffee00c0ff:Tiny-Chat-Q4_0.gguf (3.7 MB)`)
    expect(said).toContain('chosen because among 2 files Q4_0 runs best on a CPU')
    expect(said).toContain('tiny-chat is in the catalogue: chat, llama Q8_0, 1024 tokens of context, at most 512 of output.')
    expect(said).toContain('The model itself could have 2048 (--context)')
    expect(await pulledFiles()).toEqual(['Tiny-Chat-Q4_0.gguf'])

    const [header = '', row = ''] = (await run('list')).split('\n')
    expect(header.split(/ {2,}/)).toEqual(['NAME', 'TYPE', 'STATUS', 'CONTEXT', 'OUTPUT', 'PRICE, IN / OUT', 'WEIGHTS', 'LICENCE'])
    expect(row.split(/ {2,}/)).toEqual([
      'tiny-chat',
      'chat',
      'active',
      '1024',
      '512',
      '0.15 / 0.35 € per million tokens',
      '3.7 MB',
      'apache-2.0',
    ])
    expect(JSON.parse(await run('list', '--json'))).toMatchObject([
      {
        name: 'tiny-chat',
        source: `${REPO}@c0ffee00c0ff:Tiny-Chat-Q4_0.gguf`,
        price: { unit: 'million_tokens', inputPerMillion: '0.15', cachedInputPerMillion: '0.15', outputPerMillion: '0.35' },
      },
    ])

    expect(await run('remove', 'tiny-chat')).toBe('tiny-chat is no longer in the catalogue.\nIts weights are deleted.\n')
    expect(await pulledFiles()).toEqual([])
    expect(await run('list')).toBe('The catalogue is empty. Add a model: parvis models pull org/repo\n')
  })

  test('under a name that is taken is refused before anything is fetched', async () => {
    await run('pull', CHAT_FILE)
    const before = hub.requests.filter((request) => request.server === 'cdn').length
    await expect(run('pull', REPO)).rejects.toThrow(
      'There is a model tiny-chat already. Remove it first (parvis models remove tiny-chat), or choose another name (--name).',
    )
    expect(hub.requests.filter((request) => request.server === 'cdn')).toHaveLength(before)
    await run('pull', REPO, '--name', 'second')
    expect(await run('list')).toMatch(/tiny-chat[^]*second/)
  })

  test('of a file of this machine, in place: the file is never ours to delete', async () => {
    const path = join(dataDir, 'mine.gguf')
    await copyFile(CHAT_FILE, path)
    await run('pull', path, '--in-place')
    expect(await run('remove', 'mine')).toBe('mine is no longer in the catalogue.\n')
    expect((await stat(path)).isFile()).toBe(true)
  })

  test('with a wrong price, context or type says so before anything is fetched', async () => {
    await expect(run('pull', REPO, '--price-input', '0,15')).rejects.toThrow('"0,15" is not a price')
    await expect(run('pull', REPO, '--context', 'many')).rejects.toThrow('It must be a whole number above 0.')
    await expect(run('pull', REPO, '--type', 'image')).rejects.toThrow('It must be chat, embedding or rerank.')
    expect(await pulledFiles()).toEqual([])
  })

  test('of what the hub refuses says why', async () => {
    await expect(run('pull', 'acme/gated')).rejects.toThrow('set HF_TOKEN')
    await expect(run('pull', 'acme/none')).rejects.toThrow('there is no such repository')
    expect(await run('list')).toContain('The catalogue is empty')
  })
})

describe('remove', () => {
  test('may leave the file, and a later pull finds it', async () => {
    await run('pull', `${REPO}:F16`)
    expect(await run('remove', 'tiny-chat', '--keep-file')).toMatch(
      /Its weights stay: pulled:acme\/Tiny-Chat-GGUF\/[0-9a-f]{12}\/Tiny-Chat-F16\.gguf/,
    )
    const before = hub.requests.filter((request) => request.server === 'cdn').length
    await run('pull', `${REPO}:F16`)
    expect(hub.requests.filter((request) => request.server === 'cdn')).toHaveLength(before)
  })

  test('is refused while an engine serves the model, and names the engine', async () => {
    const model = await addModel(database.db, systemClock, 'test', {
      name: 'remote',
      ownedBy: 'acme',
      type: 'chat',
      contextTokens: 100,
      maxOutputTokens: 10,
      price: { input: parsePrice('0'), output: parsePrice('0') },
    })
    await database.db.query(
      `insert into engine (id, name, url, created_at) values (gen_random_uuid(), 'vllm-1', 'http://127.0.0.1:9', now())`,
    )
    await database.db.query(
      `insert into engine_model (engine_id, model_id, model_name, remote_name) select id, $1, 'remote', 'x' from engine`,
      [model],
    )
    await expect(run('remove', 'remote')).rejects.toThrow(
      'remote is served by the engine vllm-1. Remove that first (parvis engines remove), or use --force.',
    )
    expect(await run('remove', 'remote', '--force')).toBe('remote is no longer in the catalogue.\n')
  })

  test('of a model that is not there says so', async () => {
    await expect(run('remove', 'none')).rejects.toThrow('There is no model "none"')
  })
})

describe('price', () => {
  test('takes effect now, or later when a date is given', async () => {
    await run('pull', CHAT_FILE)
    expect(await run('price', 'tiny-chat', '0.2', '0.4', '--cached-input', '0.02')).toBe(
      'tiny-chat: 0.20 / 0.40 € per million tokens from now on.\n',
    )
    expect(await run('price', 'tiny-chat', '1', '2', '--from', '2999-01-01')).toContain('from 2999-01-01T00:00:00.000Z on')
    expect(JSON.parse(await run('list', '--json'))[0].price).toMatchObject({
      inputPerMillion: '0.20',
      cachedInputPerMillion: '0.02',
      outputPerMillion: '0.40',
    })
    await expect(run('price', 'tiny-chat', '1', '2', '--from', '2020-01-01')).rejects.toThrow('cannot start in the past')
    await expect(run('price', 'none', '1', '2')).rejects.toThrow('There is no model "none"')
  })

  test('of a model that reads documents is for a thousand pages, and the only one', async () => {
    const free = { input: parsePrice('0'), output: parsePrice('0') }
    await addModel(database.db, systemClock, 'test', { name: 'reader', ownedBy: 'acme', type: 'ocr', contextTokens: 1024, price: free })
    await expect(run('price', 'reader', '2', '0.4')).rejects.toThrow(
      'The price is not valid: output: a model that reads documents is paid by the page: its one price is `input`, for 1,000 pages, and `output` is 0.',
    )
    await expect(run('price', 'reader', '2', '0', '--cached-input', '1')).rejects.toThrow('cachedInput: a model that reads documents')
    await expect(run('price', 'reader', '-2', '0')).rejects.toThrow('"-2" is not a price')
    await expect(run('price', 'reader', 'two', '0')).rejects.toThrow('is not a price')
    expect(await run('price', 'reader', '2', '0')).toBe('reader: 2.00 € per 1,000 pages from now on.\n')
    expect(await run('list')).toContain(' 2.00 € per 1,000 pages ')
    expect(JSON.parse(await run('list', '--json'))[0].price).toMatchObject({ unit: 'thousand_pages', inputPerMillion: '2.00' })
  })
})

describe('set', () => {
  const add = (name: string) =>
    addModel(database.db, systemClock, 'test', {
      name,
      ownedBy: 'acme',
      type: 'chat',
      contextTokens: 1024,
      maxOutputTokens: 128,
      price: { input: parsePrice('1'), output: parsePrice('2') },
    })

  test('says where a model is in its life; what breaks the guarantees is refused unless they are waived', async () => {
    await add('elder')
    await add('heir')
    await expect(run('set', 'elder', '--status', 'eol')).rejects.toThrow('endOfLifeAt: a model that is active ends 8 months after')
    await expect(run('set', 'elder', '--successor', 'nobody')).rejects.toThrow('successor: there is no model nobody.')
    await expect(run('set', 'elder')).rejects.toThrow('Say what to set')
    await expect(run('set', 'none', '--status', 'deprecated')).rejects.toThrow('There is no model "none"')
    expect(await run('set', 'elder', '--status', 'deprecated', '--successor', 'heir')).toMatch(
      /^elder is deprecated, deprecated from \S+Z, then heir answers\.$/m,
    )
    expect(await run('set', 'elder', '--status', 'eol', '--waive-guarantees')).toContain('elder is eol')
    expect(await run('list')).toContain('eol → heir')
  })
})

describe('rules', () => {
  const add = () =>
    addModel(database.db, systemClock, 'test', {
      name: 'm',
      ownedBy: 'acme',
      type: 'chat',
      contextTokens: 4096,
      maxOutputTokens: 512,
      price: { input: 0n, output: 0n },
    })

  test('are shown, and set as they are written', async () => {
    await add()
    expect(await run('rules', 'm')).toMatch(/^vision +no$/m)
    const said = await run(
      'rules',
      'm',
      'vision=yes',
      'max-images=12',
      'alternating-roles=yes',
      'reasoning-efforts=high,none',
      'tool-system-prompt=a=b c',
    )
    expect(said).toMatch(/^vision +yes$/m)
    expect(said).toMatch(/^max-images +12$/m)
    expect(said).toMatch(/^reasoning-efforts +none,high$/m)
    expect(said).toMatch(/^tool-system-prompt +a=b c$/m)
    expect(await run('rules', 'm', 'max-images=none', 'reasoning-efforts=unknown')).toMatch(/^max-images +none$/m)
    expect(await run('rules', 'm')).toMatch(/^alternating-roles +yes$/m)
    const { rows } = await database.db.query<{ count: bigint }>(`select count(*) from audit_entry where action = 'updated'`)
    expect(rows[0]?.count).toBe(2n)
  })

  test.each([
    [['nobody'], 'There is no model "nobody"'],
    [['m', 'politeness=yes'], 'There is no rule "politeness"'],
    [['m', 'vision'], 'Write it as vision=value'],
    [['m', 'vision=maybe'], 'vision: "maybe" is neither yes nor no.'],
    [['m', 'max-images=0'], 'max-images: "0" is neither'],
    [['m', 'reasoning-efforts=huge'], 'rules.reasoningEfforts.0: '],
    [['m', 'min-dimensions=8'], 'rules.minDimensions: the shortest length stays below the dimensions.'],
  ])('are refused where they are wrong: %j', async (words, sentence) => {
    await add()
    await expect(run('rules', ...words)).rejects.toThrow(sentence)
  })
})
