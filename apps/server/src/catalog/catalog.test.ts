import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type Changes, openChanges } from '../kit/changes.ts'
import { type Clock, type Instant, systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import { type Catalog, openCatalog } from './catalog.ts'
import { NO_RULES } from './model.ts'
import { addModel, addPrice, listModels, type NewModel, removeModel } from './models.ts'
import { parsePrice } from './price.ts'
import { seedTinyModels } from './seed.ts'
import { readGguf } from './weights/gguf.ts'

const MODELS = fileURLToPath(new URL('../../../../models', import.meta.url))
const NAMES = ['tiny-chat', 'tiny-embed', 'tiny-rerank', 'tiny-whisper']
const ACTOR = 'test'
const log = openLog('silent')
const weightsDirs = { builtin: MODELS, pulled: '/data/models' }

/** Stands where a test puts it; waits are real, so that what waits for the database still does. */
const handClock = (from: number): Clock & { set(ms: number): void } => {
  let now = from
  return { ...systemClock, now: () => now as Instant, set: (ms) => void (now = ms) }
}

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

const opened: { close(): Promise<void> }[] = []
afterEach(async () => {
  for (const one of opened.splice(0)) await one.close()
  await database.db.query('truncate model, model_price, audit_entry cascade')
  await database.db.query('delete from change')
})

const open = async (clock: Clock = systemClock): Promise<{ catalog: Catalog; changes: Changes }> => {
  const changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
  opened.push(changes)
  return { catalog: await openCatalog({ db: database.db, changes, clock, log, weightsDirs }), changes }
}

/** Resolves at the next change of the catalogue after which this holds. */
const until = (catalog: Catalog, holds: () => boolean): Promise<void> =>
  new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error('the catalogue did not become so within 30 s')), 30_000)
    const done = (): void => {
      if (!holds()) return
      clearTimeout(late)
      stop()
      resolve()
    }
    const stop = catalog.onChange(done)
    done()
  })

const chat = (name: string, more: Partial<NewModel> = {}): NewModel => ({
  name,
  ownedBy: 'acme',
  type: 'chat',
  contextTokens: 4096,
  maxOutputTokens: 1024,
  price: { input: parsePrice('0.15'), output: parsePrice('0.35') },
  ...more,
})
const add = (name: string, more: Partial<NewModel> = {}) => addModel(database.db, systemClock, ACTOR, chat(name, more))
const names = (catalog: Catalog): string[] => catalog.list().map((model) => model.name)

describe('the models of the repository', () => {
  test('are there after the first start, with what their files say, prices and limits', async () => {
    await seedTinyModels(database.db, MODELS, systemClock)
    const { catalog } = await open()
    expect(names(catalog).toSorted()).toEqual(NAMES)
    const [tinyChat, tinyEmbed, tinyRerank] = NAMES.map((name) => catalog.list().find((model) => model.name === name))
    expect(tinyChat).toMatchObject({
      type: 'chat',
      status: 'active',
      contextTokens: 2048,
      maxOutputTokens: 512,
      features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
      price: { input: 150_000n, cachedInput: 150_000n, output: 350_000n },
    })
    expect(tinyEmbed).toMatchObject({
      type: 'embedding',
      contextTokens: 512,
      maxOutputTokens: null,
      dimensions: 192,
      matryoshka: [32, 64, 128],
    })
    expect(tinyRerank).toMatchObject({ type: 'rerank', contextTokens: 512, maxOutputTokens: null, price: { input: 100_000n, output: 0n } })
    const tinyWhisper = catalog.list().find((model) => model.type === 'audio')
    expect(tinyWhisper).toMatchObject({ name: 'tiny-whisper', price: { input: 3_000n, output: 0n } })
    expect(tinyWhisper?.weights?.path).toBe(`${MODELS}/tiny-whisper`)
    expect(tinyWhisper?.weights?.bytes).toBeGreaterThan(4_000_000)
    for (const model of catalog.list().filter((one) => one !== tinyWhisper)) {
      const gguf = await readGguf(model.weights?.path ?? '')
      expect(model.weights).toMatchObject({ bytes: gguf.bytes, sha256: expect.stringMatching(/^[0-9a-f]{64}$/) })
      expect(gguf.contextTokens).toBe(model.contextTokens)
    }
  })

  test('are put there once, also when several processes start at once', async () => {
    await Promise.all(Array.from({ length: 4 }, () => seedTinyModels(database.db, MODELS, systemClock)))
    await seedTinyModels(database.db, MODELS, systemClock)
    expect((await listModels(database.db, systemClock)).map((model) => model.name).toSorted()).toEqual(NAMES)
    const { rows } = await database.db.query<{ count: bigint }>('select count(*) from model_price')
    expect(rows[0]?.count).toBe(BigInt(NAMES.length))
  })

  test('are where the repository is now, not where it was', async () => {
    await seedTinyModels(database.db, MODELS, systemClock)
    const changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
    opened.push(changes)
    const catalog = await openCatalog({
      db: database.db,
      changes,
      clock: systemClock,
      log,
      weightsDirs: { builtin: '/moved/models', pulled: '/data' },
    })
    expect(catalog.list().map((model) => model.weights?.path)).toContain('/moved/models/tiny-chat/tiny-chat-q8_0.gguf')
  })

  test('stay as the operator left them: changed, priced anew, removed', async () => {
    await seedTinyModels(database.db, MODELS, systemClock)
    await database.db.query(`update model set status = 'deprecated', context_tokens = 1024 where name = 'tiny-chat'`)
    await addPrice(database.db, systemClock, ACTOR, 'tiny-chat', undefined, { input: 7n, output: 9n })
    await removeModel(database.db, systemClock, ACTOR, 'tiny-rerank')
    await seedTinyModels(database.db, MODELS, systemClock)
    const listed = await listModels(database.db, systemClock)
    expect(listed.map((model) => model.name).toSorted()).toEqual(NAMES.filter((name) => name !== 'tiny-rerank'))
    expect(listed.find((model) => model.name === 'tiny-chat')).toMatchObject({
      status: 'deprecated',
      contextTokens: 1024,
      price: { input: 7n, output: 9n },
    })
  })

  test('follow their files when a release ships others, and running gateways hear of it', async () => {
    await seedTinyModels(database.db, MODELS, systemClock)
    const sha256 = '0'.repeat(64)
    await database.db.query(`update model set weights_sha256 = $1 where name = 'tiny-chat'`, [sha256])
    const { catalog } = await open()
    expect(catalog.list().find((model) => model.name === 'tiny-chat')?.weights?.sha256).toBe(sha256)
    await seedTinyModels(database.db, MODELS, systemClock)
    await until(catalog, () => catalog.list().find((model) => model.name === 'tiny-chat')?.weights?.sha256 !== sha256)
  })
})

describe('what a running gateway knows', () => {
  test('a model that is added, and one that is removed', async () => {
    const { catalog } = await open()
    expect(catalog.resolve('new', systemClock.now())).toEqual({ ok: false, refusal: { code: 'model_unknown', model: 'new' } })
    await add('new')
    await until(catalog, () => catalog.resolve('new', systemClock.now()).ok)
    await removeModel(database.db, systemClock, ACTOR, 'new')
    await until(catalog, () => !catalog.resolve('new', systemClock.now()).ok)
  })

  test('end of life: not listed, its name answered by the successor', async () => {
    await add('heir')
    await add('old', { status: 'eol', successor: 'heir' })
    await add('older', { status: 'eol', successor: 'old' })
    await add('alone', { status: 'eol' })
    const { catalog } = await open()
    expect(names(catalog)).toEqual(['heir'])
    for (const name of ['heir', 'old', 'older'])
      expect(catalog.resolve(name, systemClock.now())).toMatchObject({ ok: true, value: { name: 'heir' } })
    expect(catalog.resolve('alone', systemClock.now())).toEqual({ ok: false, refusal: { code: 'model_unknown', model: 'alone' } })
  })

  test('what it knew stays in use when the catalogue cannot be read', async () => {
    await add('kept')
    let told: () => void = () => undefined
    const failed = new Promise<void>((resolve) => {
      told = resolve
    })
    const alarm = openLog('error', {
      write: (line: string) => line.includes('reloading failed') && told(),
    } as unknown as NodeJS.WritableStream)
    const changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log: alarm })
    opened.push(changes)
    const catalog = await openCatalog({ db: database.db, changes, clock: systemClock, log, weightsDirs })
    await database.db.query('alter table model rename to model_away')
    try {
      await database.db.query(`select note_change('catalog')`)
      await failed
      expect(catalog.resolve('kept', systemClock.now()).ok).toBe(true)
      expect(names(catalog)).toEqual(['kept'])
    } finally {
      await database.db.query('alter table model_away rename to model')
    }
    await add('later')
    await until(catalog, () => catalog.resolve('later', systemClock.now()).ok)
  })

  test('a listener is called until it leaves, and one that throws harms nobody', async () => {
    const { catalog } = await open()
    let calls = 0
    catalog.onChange(() => {
      throw new Error('listener')
    })
    const stop = catalog.onChange(() => {
      calls += 1
    })
    await add('one')
    await until(catalog, () => calls > 0)
    stop()
    const called = calls
    await add('two')
    await until(catalog, () => catalog.resolve('two', systemClock.now()).ok)
    expect(calls).toBe(called)
  })
})

describe('the price in force', () => {
  let clock: ReturnType<typeof handClock>
  beforeEach(() => {
    clock = handClock(1_800_000_000_000)
  })

  test('changes by the clock, to the millisecond and without a reload', async () => {
    const start = clock.now()
    await addModel(database.db, clock, ACTOR, chat('m'))
    await addPrice(database.db, clock, ACTOR, 'm', (start + 1_000) as Instant, { input: 2n, output: 3n })
    await addPrice(database.db, clock, ACTOR, 'm', (start + 2_000) as Instant, { input: 4n, cachedInput: 1n, output: 5n })
    const { catalog } = await open(clock)
    const price = () => {
      const outcome = catalog.resolve('m', clock.now())
      const listed = catalog.list()[0]
      if (!outcome.ok) throw new Error('not served')
      expect(listed).toBe(outcome.value)
      return [outcome.value.price.input, outcome.value.price.cachedInput, outcome.value.price.output]
    }
    expect(price()).toEqual([150_000n, 150_000n, 350_000n])
    clock.set(start + 999)
    expect(price()).toEqual([150_000n, 150_000n, 350_000n])
    clock.set(start + 1_000)
    expect(price()).toEqual([2n, 2n, 3n])
    clock.set(start + 1_999)
    expect(price()).toEqual([2n, 2n, 3n])
    clock.set(start + 2_000)
    expect(price()).toEqual([4n, 1n, 5n])
    // Whatever the clock says, a request has the price of the moment at which it was accepted.
    const accepted = catalog.resolve('m', (start + 1_999) as Instant)
    expect(accepted).toMatchObject({ ok: true, value: { price: { input: 2n, output: 3n } } })
    expect(price()).toEqual([4n, 1n, 5n])
    // A clock that is set back by an hour shows the price of that hour again.
    clock.set(start + 500)
    expect(price()).toEqual([150_000n, 150_000n, 350_000n])
    // And one that is behind the machine that added the model does not leave it without a price.
    clock.set(start - 60_000)
    expect(price()).toEqual([150_000n, 150_000n, 350_000n])
  })

  test('is not reached into the past, and no two begin at once', async () => {
    await addModel(database.db, clock, ACTOR, chat('m'))
    const price = { input: 1n, output: 1n }
    await expect(addPrice(database.db, clock, ACTOR, 'm', (clock.now() - 1) as Instant, price)).rejects.toThrow('cannot start in the past')
    await expect(addPrice(database.db, clock, ACTOR, 'm', undefined, price)).rejects.toThrow(
      'has a price that starts at that instant already',
    )
    await expect(addPrice(database.db, clock, ACTOR, 'none', undefined, price)).rejects.toThrow('There is no model "none"')
    await expect(addPrice(database.db, clock, ACTOR, 'm', undefined, { input: -1n, output: 1n })).rejects.toThrow(
      'The price is not valid: input',
    )
  })

  test('that was charged can be neither changed nor deleted', async () => {
    await add('m')
    await expect(database.db.query('update model_price set input = 0')).rejects.toThrow('a price never changes')
    await expect(database.db.query('delete from model_price')).rejects.toThrow('a price never changes')
  })
})

describe('adding a model', () => {
  const refused: readonly [what: string, input: Record<string, unknown>, sentence: string][] = [
    ['an upper-case name', { name: 'Llama' }, 'name: a model name is lower-case'],
    ['a vendor in the name', { name: 'meta/llama' }, 'name: a model name is lower-case'],
    ['an empty name', { name: '' }, 'name: a model name is lower-case'],
    ['a name of 200 letters', { name: 'x'.repeat(200) }, 'name: a model name is lower-case'],
    ['an unknown field', { colour: 'red' }, 'Unrecognized key: "colour"'],
    ['no context', { contextTokens: 0 }, 'contextTokens'],
    ['a fraction of a token', { contextTokens: 1.5 }, 'contextTokens'],
    ['a chat model without a maximum output', { maxOutputTokens: null }, 'a chat model has a maximum output'],
    ['an embedding model that generates', { type: 'embedding' }, 'a chat model has a maximum output, and no other has'],
    ['itself as successor', { successor: 'm' }, 'a model cannot follow itself'],
    ['a price as a float', { price: { input: 0.15, output: 0 } }, 'price.input'],
    ['a negative price', { price: { input: -1n, output: 0n } }, 'price.input'],
    [
      'lengths that do not rise',
      { type: 'embedding', maxOutputTokens: null, dimensions: 192, matryoshka: [64, 32] },
      'shorter lengths rise',
    ],
    [
      'a length above the dimensions',
      { type: 'embedding', maxOutputTokens: null, dimensions: 64, matryoshka: [128] },
      'stay below the dimensions',
    ],
    ['a shortest length above the dimensions', { rules: { minDimensions: 32 } }, 'the shortest length stays below the dimensions'],
    ['an effort that nobody knows', { rules: { reasoningEfforts: ['huge'] } }, 'rules.reasoningEfforts.0'],
    ['a rule that nobody knows', { rules: { politeness: true } }, 'Unrecognized key: "politeness"'],
    ['weights at a relative path', { weights: { path: 'x.gguf', bytes: 1, sha256: '0'.repeat(64) } }, 'weights lie at'],
    ['weights outside their folder', { weights: { path: 'pulled:../x.gguf', bytes: 1, sha256: '0'.repeat(64) } }, 'weights lie at'],
  ]
  for (const [what, input, sentence] of refused) {
    test(`refuses ${what}, and leaves nothing`, async () => {
      await expect(add('m', input as Partial<NewModel>)).rejects.toThrow(sentence)
      expect(await listModels(database.db, systemClock)).toEqual([])
    })
  }

  test('keeps what a model takes and insists on; efforts in their order, and without a word it has no rules', async () => {
    await add('plain')
    await add('ruled', {
      rules: {
        audioInChat: true,
        maxImages: 12,
        imageTokenPx: 28,
        imageMaxPx: 1540,
        alternatingRoles: true,
        toolSystemPrompt: 'Call tools when they help.',
        reasoningEfforts: ['high', 'none'],
      },
    })
    const { catalog } = await open()
    const rulesOf = (name: string) => catalog.list().find((model) => model.name === name)?.rules
    expect(rulesOf('plain')).toEqual(NO_RULES)
    expect(rulesOf('ruled')).toEqual({
      ...NO_RULES,
      audioInChat: true,
      maxImages: 12,
      imageTokenPx: 28,
      imageMaxPx: 1540,
      alternatingRoles: true,
      toolSystemPrompt: 'Call tools when they help.',
      reasoningEfforts: ['none', 'high'],
    })
  })

  test('twice under one name is refused, also when two do it at once', async () => {
    const outcomes = await Promise.allSettled([add('m'), add('m'), add('m')])
    expect(outcomes.filter((outcome) => outcome.status === 'fulfilled')).toHaveLength(1)
    await expect(add('m')).rejects.toThrow(
      'There is a model m already. Remove it first (parvis models remove m), or choose another name (--name).',
    )
    expect(await listModels(database.db, systemClock)).toHaveLength(1)
  })

  test('is in the audit with who and what', async () => {
    const id = await add('m')
    await addPrice(database.db, systemClock, ACTOR, 'm', undefined, { input: 1n, output: 2n })
    await removeModel(database.db, systemClock, ACTOR, 'm')
    const { rows } = await database.db.query(
      'select actor, action, resource_type, resource_id, before, after from audit_entry order by at, id',
    )
    expect(rows).toMatchObject([
      {
        actor: ACTOR,
        action: 'created',
        resource_type: 'model',
        resource_id: id,
        after: { name: 'm', price: { input: '150000', output: '350000' } },
      },
      { actor: ACTOR, action: 'created', resource_type: 'model_price', after: { model: 'm', input: '1', output: '2' } },
      { actor: ACTOR, action: 'deleted', resource_type: 'model', resource_id: id, before: { name: 'm' } },
    ])
  })
})

describe('removing a model', () => {
  test('keeps its prices for the bills, and frees its name', async () => {
    const first = await add('m')
    await removeModel(database.db, systemClock, ACTOR, 'm')
    const second = await add('m')
    expect(second).not.toBe(first)
    const { rows } = await database.db.query<{ count: bigint }>('select count(*) from model_price')
    expect(rows[0]?.count).toBe(2n)
    expect(await listModels(database.db, systemClock)).toHaveLength(1)
  })

  test('that is not there is refused', async () => {
    await expect(removeModel(database.db, systemClock, ACTOR, 'none')).rejects.toThrow('There is no model "none". See: parvis models list')
  })

  test('that others send their callers to is refused unless forced', async () => {
    await add('heir')
    await add('old', { status: 'eol', successor: 'heir' })
    await expect(removeModel(database.db, systemClock, ACTOR, 'heir')).rejects.toThrow(
      'heir is the successor of old. Remove those first, or use --force',
    )
    expect(await removeModel(database.db, systemClock, ACTOR, 'heir', { force: true })).toMatchObject({ name: 'heir' })
  })

  test('tells which weights nobody uses any more', async () => {
    const weights = { path: 'pulled:org/repo/x.gguf', bytes: 1, sha256: '0'.repeat(64) }
    await add('a', { weights })
    await add('b', { weights })
    await add('c')
    expect(await removeModel(database.db, systemClock, ACTOR, 'a')).toMatchObject({ unusedWeights: null })
    expect(await removeModel(database.db, systemClock, ACTOR, 'b')).toMatchObject({ unusedWeights: weights.path })
    expect(await removeModel(database.db, systemClock, ACTOR, 'c')).toMatchObject({ unusedWeights: null })
  })
})
