import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openChanges } from '../kit/changes.ts'
import { systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import { openCatalog } from './catalog.ts'
import type { ModelStatus, Rules } from './model.ts'
import { addModel } from './models.ts'
import { parsePrice } from './price.ts'

// The catalogue of the hosted service, as its pages had it in autumn 2026: what is served there can be entered here as it stands.

type Entry = readonly [
  name: string,
  ownedBy: string,
  status: ModelStatus,
  context: number,
  output: number | null,
  dimensions: number | null,
  price: readonly [input: string | null, cached: string | null, output: string | null],
  /** Tools, structured output, reasoning, vision. */
  features: string,
  rules: Partial<Rules>,
]

const ENTRIES: readonly Entry[] = [
  [
    'mistral-small-3.2-24b-instruct-2506',
    'Mistral',
    'active',
    128000,
    32768,
    null,
    ['0.15', null, '0.35'],
    'tsv',
    { imageTokenPx: 28, imageMaxPx: 1540 },
  ],
  ['llama-3.3-70b-instruct', 'Meta', 'active', 100000, 16384, null, ['0.9', null, '0.9'], 'ts', {}],
  ['qwen3-235b-a22b-instruct-2507', 'Qwen', 'active', 250000, 16384, null, ['0.75', null, '2.25'], 'ts', {}],
  [
    'gemma-4-26b-a4b-it',
    'Google',
    'active',
    256000,
    32768,
    null,
    ['0.25', null, '0.5'],
    'tsrv',
    { reasoningEfforts: ['none', 'low', 'medium', 'high'] },
  ],
  [
    'qwen3.6-35b-a3b',
    'Qwen',
    'active',
    256000,
    32768,
    null,
    ['0.25', null, '1.5'],
    'tsrv',
    { reasoningEfforts: ['none', 'low', 'medium', 'high'] },
  ],
  [
    'qwen3.8-27b',
    'Qwen',
    'active',
    256000,
    32768,
    null,
    ['0.6', '0.12', '3.3'],
    'tsrv',
    { reasoningEfforts: ['none', 'low', 'medium', 'xhigh'] },
  ],
  [
    'qwen3.5-397b-a17b',
    'Qwen',
    'active',
    250000,
    16384,
    null,
    ['0.6', null, '3.6'],
    'tsrv',
    { imageTokenPx: 32, imageMaxPx: 4096, reasoningEfforts: ['none', 'low', 'medium', 'high'] },
  ],
  [
    'deepseek-v4-flash-0731',
    'DeepSeek',
    'preview',
    256000,
    32768,
    null,
    ['0.4', '0.08', '0.8'],
    'tsr',
    { reasoningEfforts: ['none', 'low', 'high', 'max'] },
  ],
  ['glm-5.2', 'Z.ai (Zai)', 'preview', 256000, 16384, null, ['1.8', null, '5.5'], 'tsr', { reasoningEfforts: ['none', 'high', 'max'] }],
  [
    'mistral-medium-3.5-128b',
    'Mistral',
    'preview',
    180000,
    16384,
    null,
    ['1.5', null, '7.5'],
    'tsrv',
    { reasoningEfforts: ['none', 'high'] },
  ],
  ['gpt-oss-120b', 'OpenAI', 'active', 128000, 32768, null, ['0.15', null, '0.6'], 'tsr', { reasoningEfforts: ['low', 'medium', 'high'] }],
  ['qwen3-embedding-8b', 'Qwen', 'active', 32000, null, 4096, ['0.1', null, null], '', { minDimensions: 32 }],
  ['bge-multilingual-gemma2', 'BAAI', 'active', 8192, null, 3584, ['0.1', null, null], '', {}],
  [
    'pixtral-12b-2409',
    'Mistral',
    'deprecated',
    128000,
    4096,
    null,
    ['0.2', null, '0.2'],
    'tsv',
    { maxImages: 12, imageTokenPx: 16, imageMaxPx: 1024 },
  ],
  ['qwen3-coder-30b-a3b-instruct', 'Qwen', 'deprecated', 128000, 32768, null, ['0.2', null, '0.8'], 'ts', {}],
  ['gemma-3-27b-it', 'Google', 'eol', 40000, 8192, null, ['0.25', null, '0.5'], 'tsv', { imageTokenPx: 56, imageMaxPx: 896 }],
  ['devstral-2-123b-instruct-2512', 'Mistral', 'eol', 200000, 16384, null, ['0.4', null, '2.0'], 'ts', {}],
  ['voxtral-small-24b-2507', 'Mistral', 'eol', 32000, 16384, null, ['0.15', null, '0.35'], 'tsa', { audioInChat: true }],
  ['holo2-30b-a3b', 'H', 'eol', 22000, 32768, null, [null, null, null], 'sv', { imageTokenPx: 16 }],
  // Nothing is said of its context; the decoder of Whisper has 448 tokens. The price is of a minute of sound.
  ['whisper-large-v3', 'OpenAI', 'active', 448, null, null, ['0.003', null, null], '', {}],
]

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

test('holds every entry of the hosted catalogue, also the one whose output is said to be longer than its context', async () => {
  for (const [name, ownedBy, status, contextTokens, maxOutputTokens, dimensions, [input, cached, output], has, rules] of ENTRIES) {
    await addModel(database.db, systemClock, 'test', {
      name,
      ownedBy,
      type: maxOutputTokens !== null ? 'chat' : dimensions !== null ? 'embedding' : 'audio',
      status,
      contextTokens,
      maxOutputTokens,
      dimensions,
      features: { tools: has.includes('t'), structuredOutput: has.includes('s'), reasoning: has.includes('r'), vision: has.includes('v') },
      rules: { ...rules, reasoningEfforts: [...(rules.reasoningEfforts ?? [])] },
      price: {
        input: parsePrice(input ?? '0'),
        ...(cached === null ? {} : { cachedInput: parsePrice(cached) }),
        output: parsePrice(output ?? '0'),
      },
    })
  }
  const log = openLog('silent')
  const changes = await openChanges({ db: database.db, url: database.url, clock: systemClock, log })
  const weightsDirs = { builtin: '/nowhere', pulled: '/nowhere' }
  const catalog = await openCatalog({ db: database.db, changes, clock: systemClock, log, weightsDirs })
  try {
    for (const [name, , status, contextTokens, maxOutputTokens, dimensions, , , rules] of ENTRIES) {
      const model = catalog.resolve(name, systemClock.now())
      expect([name, model.ok]).toEqual([name, status !== 'eol'])
      if (model.ok) expect(model.value).toMatchObject({ name, contextTokens, maxOutputTokens, dimensions, rules })
    }
    // Ended models are in no list (data-plane.md 5.2).
    const listed = ENTRIES.filter(([, , status]) => status !== 'eol').map(([name]) => name)
    expect(
      catalog
        .list()
        .filter(({ status }) => status !== 'eol')
        .map(({ name }) => name)
        .toSorted(),
    ).toEqual(listed.toSorted())
  } finally {
    await changes.close()
  }
})
