import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { describeGguf } from './describe.ts'
import { readGguf } from './gguf.ts'

const MODELS = fileURLToPath(new URL('../../../../../models/', import.meta.url))
const CHAT = join(MODELS, 'tiny-chat/tiny-chat-q8_0.gguf')
const EMBED = join(MODELS, 'tiny-embed/tiny-embed-f16.gguf')
const RERANK = join(MODELS, 'tiny-rerank/tiny-rerank-f16.gguf')

let dir: string
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'parvis-gguf-'))
})
afterAll(() => rm(dir, { recursive: true, force: true }))

let files = 0
const written = async (bytes: Uint8Array): Promise<string> => {
  files += 1
  const path = join(dir, `${files}.gguf`)
  await writeFile(path, bytes)
  return path
}

type Entry = readonly [key: string, type: number, value: Buffer]
type Tensor = { readonly name: string; readonly dimensions: readonly number[]; readonly type: number; readonly offset: number }

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}
const string = (value: string): Buffer => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)])
const say = (key: string, value: string): Entry => [key, 8, string(value)]
const count = (key: string, value: number): Entry => [key, 4, u32(value)]

/** A small GGUF file as the format's description says, with whatever a test wants to be odd. */
const gguf = (
  entries: readonly Entry[],
  tensors: readonly Tensor[] = [],
  options: { version?: number; data?: number; keys?: bigint; tensors?: bigint } = {},
): Buffer => {
  const header = Buffer.concat([
    Buffer.from('GGUF'),
    u32(options.version ?? 3),
    u64(options.tensors ?? tensors.length),
    u64(options.keys ?? entries.length),
    ...entries.flatMap(([key, type, value]) => [string(key), u32(type), value]),
    ...tensors.flatMap((tensor) => [
      string(tensor.name),
      u32(tensor.dimensions.length),
      ...tensor.dimensions.map((length) => u64(length)),
      u32(tensor.type),
      u64(tensor.offset),
    ]),
  ])
  return Buffer.concat([header, Buffer.alloc((32 - (header.length % 32)) % 32), Buffer.alloc(options.data ?? 0)])
}

describe('the three models of the repository', () => {
  test('the chat model says its window, its template and that it calls tools', async () => {
    const read = await readGguf(CHAT)
    expect(read).toMatchObject({
      version: 3,
      architecture: 'llama',
      name: 'tiny-chat',
      licence: 'apache-2.0',
      quantization: 'Q8_0',
      contextTokens: 2048,
    })
    expect(read).toMatchObject({ embeddingLength: 192, pooling: null, tokenizer: 'gpt2', parameters: 3_344_064, parts: 1, part: 0 })
    expect(describeGguf(read)).toEqual({
      type: 'chat',
      contextTokens: 2048,
      dimensions: null,
      features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
    })
  })

  test('the embedding model is one by its architecture and pooling', async () => {
    const read = await readGguf(EMBED)
    expect(read).toMatchObject({ architecture: 'bert', quantization: 'F16', pooling: 'mean', chatTemplate: null })
    expect(describeGguf(read)).toMatchObject({
      type: 'embedding',
      contextTokens: 512,
      dimensions: 192,
      features: { tools: false, structuredOutput: false },
    })
  })

  test('the rerank model is one by its pooling', async () => {
    const read = await readGguf(RERANK)
    expect(read).toMatchObject({ architecture: 'bert', pooling: 'rank' })
    expect(describeGguf(read)).toMatchObject({ type: 'rerank', dimensions: null })
  })
})

describe('a file that is cut off is refused', () => {
  for (const source of [CHAT, EMBED, RERANK]) {
    test(`${source.split('/').at(-1)}, at every kind of place`, async () => {
      const whole = await readFile(source)
      const path = await written(whole)
      const file = await open(path, 'r+')
      try {
        // From long to short, in uneven steps: in the data, in the tensor infos, in the vocabulary, in the first bytes.
        let length = whole.length - 32 // the padding behind the last tensor may be missing
        while (length > 0) {
          await file.truncate(length)
          await expect(readGguf(path), `at ${length} bytes`).rejects.toThrow(/is not complete|is not a GGUF file/)
          length = length > 400_000 ? Math.floor(length * 0.9) - 7 : length > 3_000 ? length - 1_571 : length - 61
        }
        await file.truncate(0)
        await expect(readGguf(path)).rejects.toThrow('is not a GGUF file: it has 0 bytes')
      } finally {
        await file.close()
      }
    })
  }

  test('the sentence has both sizes', async () => {
    const path = await written(
      gguf([say('general.architecture', 'llama')], [{ name: 'a', dimensions: [64], type: 0, offset: 0 }], { data: 100 }),
    )
    await expect(readGguf(path)).rejects.toThrow(/^.*\.gguf is not complete: its tensors need \d+ bytes and it has \d+\.$/)
  })
})

describe('a wrong file is refused with a sentence that says what is wrong', () => {
  const refused: readonly [what: string, bytes: () => Buffer, sentence: RegExp][] = [
    ['another format', () => Buffer.from('PK\u0003\u0004 and so on, for more than twenty-four bytes'), /does not begin with "GGUF"/],
    ['a page of HTML', () => Buffer.from('<!doctype html><title>Sign in to download this file</title>'), /does not begin with "GGUF"/],
    ['version 1', () => gguf([say('general.architecture', 'llama')], [], { version: 1 }), /GGUF version 1; versions 2 and 3/],
    ['big-endian', () => gguf([say('general.architecture', 'llama')], [], { version: 0x03000000 }), /big-endian/],
    ['too many tensors', () => gguf([], [], { tensors: 1n << 40n }), /claims 1099511627776 tensors/],
    ['too many keys', () => gguf([], [], { keys: 1n << 62n }), /is damaged/],
    [
      'a key of a gigabyte',
      () => Buffer.concat([Buffer.from('GGUF'), u32(3), u64(0), u64(1), u64(1 << 30), Buffer.alloc(64)]),
      /a key of 1073741824 bytes/,
    ],
    ['a length beyond the file', () => gguf([['x', 8, u64(1 << 20)]]), /is not complete/],
    ['a length no number can hold', () => gguf([['x', 8, u64(1n << 63n)]]), /is damaged/],
    [
      'a template larger than we keep',
      () => gguf([['tokenizer.chat_template', 8, u64(5_000_000)]]),
      /a value of tokenizer\.chat_template of 5000000 bytes/,
    ],
    ['an unknown value type', () => gguf([['x', 77, u32(0)]]), /value of type 77 at "x"/],
    ['an array in an array', () => gguf([['x', 9, Buffer.concat([u32(9), u64(1)])]]), /array of value type 9/],
    ['an endless array', () => gguf([['x', 9, Buffer.concat([u32(4), u64(2 ** 50)])]]), /is damaged: an array/],
    ['an array of strings beyond the file', () => gguf([['x', 9, Buffer.concat([u32(8), u64(2 ** 50)])]]), /is not complete/],
    [
      'a tensor of a hundred dimensions',
      () => gguf([], [{ name: 'a', dimensions: Array.from({ length: 100 }, () => 1), type: 0, offset: 0 }]),
      /100 dimensions/,
    ],
    [
      'a tensor of endless size',
      () => gguf([], [{ name: 'a', dimensions: [2 ** 40, 2 ** 40], type: 0, offset: 0 }]),
      /is damaged: a tensor/,
    ],
    ['an alignment of nothing', () => gguf([say('general.architecture', 'llama'), count('general.alignment', 0)]), /alignment of 0/],
    ['no architecture', () => gguf([say('general.name', 'x')]), /does not name its architecture/],
    ['an adapter', () => gguf([say('general.type', 'adapter'), say('general.architecture', 'llama')]), /holds "adapter", not a model/],
  ]
  for (const [what, bytes, sentence] of refused) {
    test(`${what}`, async () => {
      await expect(readGguf(await written(bytes()))).rejects.toThrow(sentence)
    })
  }

  test('a file that is not there is named', async () => {
    await expect(readGguf(join(dir, 'none.gguf'))).rejects.toThrow(/none\.gguf cannot be opened: ENOENT/)
  })
})

test('a header with any bytes changed is read or refused, and never more', async () => {
  const small = gguf(
    [
      say('general.architecture', 'llama'),
      say('general.name', 'fuzz'),
      ['tokenizer.ggml.tokens', 9, Buffer.concat([u32(8), u64(3), string('a'), string('bc'), string('')])],
      ['tokenizer.ggml.scores', 9, Buffer.concat([u32(6), u64(2), Buffer.alloc(8)])],
      count('llama.context_length', 128),
      ['general.flag', 7, Buffer.from([1])],
      ['general.big', 10, u64(7)],
      ['general.small', 5, u32(7)],
      ['general.ratio', 12, Buffer.alloc(8)],
    ],
    [
      { name: 'a', dimensions: [32, 2], type: 8, offset: 0 },
      { name: 'b', dimensions: [4], type: 0, offset: 96 },
    ],
    { data: 128 },
  )
  expect(await readGguf(await written(small))).toMatchObject({
    architecture: 'llama',
    name: 'fuzz',
    contextTokens: 128,
    parameters: 68,
    tensors: 2,
  })
  const path = await written(small)
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(small.length - 1), fc.nat(255)), { minLength: 1, maxLength: 12 }),
      fc.nat(small.length),
      async (changes, cut) => {
        const bytes = Buffer.from(small)
        for (const [at, value] of changes) bytes[at] = value
        await writeFile(path, cut % 3 === 0 ? bytes.subarray(0, cut) : bytes)
        const outcome = await readGguf(path).then(
          () => 'read',
          (error: unknown) =>
            error instanceof Error && error.message.startsWith(`${path} `) && error.message.endsWith('.') ? 'refused' : error,
        )
        expect(['read', 'refused']).toContain(outcome)
      },
    ),
    { numRuns: 600 },
  )
})

test('a value may straddle the window in which the file is read', async () => {
  const long = 'x'.repeat(300_000)
  const path = await written(
    gguf([
      say('general.architecture', 'qwen3'),
      say('general.description', long),
      count('qwen3.context_length', 40_960),
      say('tokenizer.chat_template', long),
    ]),
  )
  expect(await readGguf(path)).toMatchObject({ contextTokens: 40_960, chatTemplate: long })
})

test('the second part of a split model needs no architecture', async () => {
  const path = await written(
    gguf([
      ['split.no', 2, Buffer.from([1, 0])],
      ['split.count', 2, Buffer.from([3, 0])],
    ]),
  )
  expect(await readGguf(path)).toMatchObject({ part: 1, parts: 3 })
})

describe('what a model is for follows from its header', () => {
  const cases: readonly [what: string, entries: readonly Entry[], expected: Record<string, unknown>][] = [
    ['a chat model that says it does not pool', [say('general.architecture', 'qwen2'), count('qwen2.pooling_type', 0)], { type: 'chat' }],
    [
      'a language model made to embed',
      [say('general.architecture', 'qwen3'), count('qwen3.pooling_type', 3), count('qwen3.embedding_length', 1024)],
      { type: 'embedding', dimensions: 1024 },
    ],
    ['a language model made to rank', [say('general.architecture', 'qwen3'), count('qwen3.pooling_type', 4)], { type: 'rerank' }],
    [
      'an encoder that does not say how it pools',
      [say('general.architecture', 'nomic-bert'), count('nomic-bert.embedding_length', 768)],
      { type: 'embedding', dimensions: 768 },
    ],
    [
      'a model that thinks and calls tools',
      [say('general.architecture', 'qwen3'), say('tokenizer.chat_template', "{%- if tools %}# Tools{% endif %}{{ '<think>' }}")],
      { type: 'chat', features: { tools: true, structuredOutput: true, reasoning: true, vision: false } },
    ],
    [
      'a template that only writes the word tools',
      [say('general.architecture', 'llama'), say('tokenizer.chat_template', 'You have no tools. {{ messages[0].content }}')],
      { features: { tools: false, structuredOutput: true, reasoning: false, vision: false } },
    ],
    [
      'a base model without a template',
      [say('general.architecture', 'llama')],
      { type: 'chat', features: { tools: false, structuredOutput: true, reasoning: false, vision: false } },
    ],
  ]
  for (const [what, entries, expected] of cases) {
    test(`${what}`, async () => {
      expect(describeGguf(await readGguf(await written(gguf(entries))))).toMatchObject(expected)
    })
  }
})
