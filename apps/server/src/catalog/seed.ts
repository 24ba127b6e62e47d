import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { recordChange } from '../audit/record.ts'
import type { Clock } from '../kit/clock.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { ModelId } from '../kit/ids.ts'
import { addModelOnce, type NewModel } from './models.ts'
import { parsePrice } from './price.ts'

type TinyModel = Omit<NewModel, 'weights' | 'source'> & { readonly file: string }

const FREE = parsePrice('0')

/** The models of the repository. Prices are set like real ones, so that a bill can be seen working (product.md 3). */
const TINY_MODELS: readonly TinyModel[] = [
  {
    name: 'tiny-chat',
    file: 'tiny-chat/tiny-chat-q8_0.gguf',
    ownedBy: 'parvis',
    type: 'chat',
    contextTokens: 2048,
    maxOutputTokens: 512,
    features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
    licence: 'apache-2.0',
    price: { input: parsePrice('0.15'), output: parsePrice('0.35') },
  },
  {
    name: 'tiny-embed',
    file: 'tiny-embed/tiny-embed-f16.gguf',
    ownedBy: 'parvis',
    type: 'embedding',
    contextTokens: 512,
    dimensions: 192,
    matryoshka: [32, 64, 128],
    licence: 'apache-2.0',
    price: { input: parsePrice('0.10'), output: FREE },
  },
  {
    name: 'tiny-rerank',
    file: 'tiny-rerank/tiny-rerank-f16.gguf',
    ownedBy: 'parvis',
    type: 'rerank',
    contextTokens: 512,
    licence: 'apache-2.0',
    price: { input: parsePrice('0.10'), output: FREE },
  },
  {
    name: 'tiny-whisper',
    // A directory: a speech model is several files.
    file: 'tiny-whisper',
    ownedBy: 'parvis',
    type: 'audio',
    contextTokens: 448,
    licence: 'apache-2.0',
    // Euros per minute of sound.
    price: { input: parsePrice('0.003'), output: FREE },
  },
]

/** Of a file, or of all files of a directory, with their names and in their order. */
const digest = async (path: string): Promise<{ bytes: number; sha256: string }> => {
  const hash = createHash('sha256')
  const found = await stat(path)
  if (!found.isDirectory()) {
    await pipeline(createReadStream(path), hash)
    return { bytes: found.size, sha256: hash.digest('hex') }
  }
  const entries = await readdir(path, { recursive: true, withFileTypes: true })
  const names = entries.filter((entry) => entry.isFile()).map((entry) => relative(path, join(entry.parentPath, entry.name)))
  let bytes = 0
  for (const name of names.toSorted()) {
    const file = await digest(join(path, name))
    bytes += file.bytes
    hash.update(`${name.split(sep).join('/')} ${file.sha256}\n`)
  }
  return { bytes, sha256: hash.digest('hex') }
}

// A release may ship other weights under the same name. That is a fact about the file; everything the operator can set stays as it is.
const REFRESH = `
  update model set weights_bytes = $2, weights_sha256 = $3
   where weights_path = $1 and removed_at is null and weights_sha256 <> $3
  returning id`

/** Puts the repository's models into the catalogue, once: what an operator has changed or removed since stays so. */
export const seedTinyModels = async (db: Db, modelsDir: string, clock: Clock): Promise<void> => {
  for (const { file, ...model } of TINY_MODELS) {
    const path = `builtin:${file}`
    const weights = { path, ...(await digest(join(modelsDir, file))) }
    if (await addModelOnce(db, clock, 'installation', { ...model, weights })) continue
    await transaction(db, async (client) => {
      const { rows } = await client.query<{ id: ModelId }>(REFRESH, [path, weights.bytes, weights.sha256])
      for (const { id } of rows) {
        const entry = { organizationId: null, actor: 'installation', action: 'updated', resourceType: 'model', resourceId: id } as const
        await recordChange(client, { ...entry, before: null, after: { weights } })
      }
      if (rows.length > 0) await client.query(`select note_change('catalog')`)
    })
  }
}
