import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHub } from '@parvis/testkit/hub'
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest'
import { listModels } from '../catalog/models.ts'
import { readConfig } from '../config.ts'
import { systemClock } from '../kit/clock.ts'
import { pullStarter } from './starter.ts'

let database: TestDatabase
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-starter-'))
})
afterEach(() => {
  vi.restoreAllMocks()
})
afterAll(async () => {
  await database.drop()
  await rm(dataDir, { recursive: true, force: true })
})

const run = async (endpoint: string, signal = new AbortController().signal): Promise<string> => {
  const said: string[] = []
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => said.push(String(text)) > 0)
  const env = { PARVIS_DATA_DIR: dataDir, PARVIS_DATABASE_URL: database.url, HF_ENDPOINT: endpoint }
  await pullStarter(readConfig(env, dataDir), signal)
  vi.restoreAllMocks()
  return said.join('')
}

test('the starter is pulled once; a hub that fails is said and stops nobody', async () => {
  const chat = await readFile(fileURLToPath(new URL('../../../../models/tiny-chat/tiny-chat-q8_0.gguf', import.meta.url)))
  // A window like that of the real one, so that only a part of it is taken.
  const at = chat.indexOf('llama.context_length') + 'llama.context_length'.length + 4
  chat.writeUInt32LE(8192, at)
  const hub = await startHub({ 'bartowski/SmolLM2-135M-Instruct-GGUF': { files: { 'SmolLM2-135M-Instruct-Q8_0.gguf': chat } } })
  try {
    hub.fail('api', { do: 'status', status: 404 })
    expect(await run(hub.url)).toContain('smollm2-135m-instruct could not be pulled. The hub at')
    const stopped = new AbortController()
    stopped.abort()
    expect(await run(hub.url, stopped.signal)).toBe('')
    expect(await listModels(database.db, systemClock)).toEqual([])

    expect(await run(hub.url)).toMatch(
      /Pulling bartowski\/SmolLM2-135M-Instruct-GGUF@c0ffee00c0ff[^]*smollm2-135m-instruct is in the catalogue\.\n$/,
    )
    expect(await listModels(database.db, systemClock)).toMatchObject([
      { name: 'smollm2-135m-instruct', type: 'chat', contextTokens: 4096, maxOutputTokens: 2048 },
    ])
    const before = hub.requests.length
    expect(await run(hub.url)).toBe('smollm2-135m-instruct is in the catalogue already.\n')
    expect(hub.requests).toHaveLength(before)
  } finally {
    await hub.close()
  }
})
