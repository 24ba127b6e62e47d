import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { addModel, type NewModel } from '@parvis/server/catalog/models'
import { readConfig } from '@parvis/server/config'
import { addEngine } from '@parvis/server/engines/registry'
import { systemClock } from '@parvis/server/kit/clock'
import { openLog } from '@parvis/server/kit/log'
import { openSecrets } from '@parvis/server/kit/secrets'
import { start } from '@parvis/server/start'
import OpenAI from 'openai'
import { watchAnswers } from './answers.ts'
import type { TestDatabase } from './database.ts'
import { programOf } from './program.ts'
import { until } from './until.ts'

export type HouseOptions = {
  /** Whole answers of the data plane are held against the document, too: for tests that do not hold answers back. */
  checksInference?: boolean
  /** Where its rows are; the caller drops it. */
  database: Pick<TestDatabase, 'url'>
  /** Settings by the names of the environment, beside those that every test house has. */
  settings?: Readonly<Record<string, string>>
  /** Keep the journal and the master key of an earlier house. */
  dataDir?: string
}

/**
 * The whole server in this process, on a real database and a free port, as `start` builds it: its owner's key is known, it
 * says nothing on the terminal, and it has no models unless PARVIS_DEMO_MODELS is set. What it logged can be looked at.
 */
export const startHouse = async (options: HouseOptions) => {
  const dataDir = options.dataDir ?? (await mkdtemp(join(tmpdir(), 'parvis-house-')))
  const secretKey = options.settings?.['PARVIS_BOOTSTRAP_SECRET_KEY'] ?? randomUUID()
  const config = readConfig(
    {
      PARVIS_DATA_DIR: dataDir,
      PARVIS_PORT: '0',
      PARVIS_DATABASE_URL: options.database.url,
      PARVIS_BOOTSTRAP_SECRET_KEY: secretKey,
      PARVIS_DEMO_MODELS: 'false',
      PARVIS_ENGINE_THREADS: '1',
      PARVIS_ENGINE_SEQUENCES: '4',
      PARVIS_SHUTDOWN_SECONDS: '5',
      ...options.settings,
    },
    dataDir,
  )
  const lines: string[] = []
  const log = openLog('debug', { write: (line) => lines.push(line) })
  const { gateway, ...rest } = await start(config, { log, local: { entry: programOf('engine') } })
  if (gateway === undefined) throw new Error('a house of one process has its gateway in it')
  const house = { ...gateway, ...rest }
  watchAnswers(house.url, () => house.reference.toDocument(true), { inference: options.checksInference })
  const client = (apiKey: string = secretKey, base = `${house.url}/v1`): OpenAI =>
    new OpenAI({ baseURL: base, apiKey, maxRetries: 0, timeout: 60_000 })

  return {
    ...house,
    dataDir,
    secretKey,
    /** Every log line so far, as text. */
    log: () => lines.join(''),
    openai: client,
    /** A raw call: status, headers and the body as text. */
    async call(path: string, request: { method?: string; body?: unknown; key?: string | null; headers?: Record<string, string> } = {}) {
      const key = request.key === undefined ? secretKey : request.key
      const response = await fetch(`${house.url}${path}`, {
        method: request.method ?? (request.body === undefined ? 'GET' : 'POST'),
        headers: {
          ...(request.body === undefined ? {} : { 'content-type': 'application/json' }),
          ...(key === null ? {} : { authorization: `Bearer ${key}` }),
          ...request.headers,
        },
        ...(request.body === undefined ? {} : { body: typeof request.body === 'string' ? request.body : JSON.stringify(request.body) }),
      })
      const text = await response.text()
      return { status: response.status, headers: response.headers, text, json: (): unknown => JSON.parse(text) }
    },
    /** Resolves when an engine serves the model, and the gateway knows both; it hears of them apart. */
    ready: (model: string) =>
      until(
        `${model} has a ready engine`,
        () =>
          house.catalog.list().some(({ name }) => name === model) &&
          house.engines.states().some((replica) => replica.model === model && replica.state === 'ready'),
        60_000,
      ),
    async stop(how: { keepData?: boolean } = {}) {
      await house.close()
      if (how.keepData !== true) await rm(dataDir, { recursive: true, force: true })
    },
  }
}

export type TestHouse = Awaited<ReturnType<typeof startHouse>>

/** Puts a chat model into the catalogue that this engine serves, under its own name unless told otherwise. */
export const serveScripted = async (
  house: TestHouse,
  engine: { readonly url: string },
  model: Partial<NewModel> & { name: string },
  remoteName: string = model.name,
): Promise<void> => {
  const modelId = await addModel(house.db, systemClock, 'test', {
    ownedBy: 'test',
    type: 'chat',
    contextTokens: 4096,
    maxOutputTokens: 256,
    features: { tools: true, structuredOutput: true, reasoning: false, vision: false },
    price: { input: 150_000n, output: (model.type ?? 'chat') === 'chat' ? 350_000n : 0n },
    ...model,
  })
  const secrets = await openSecrets({ dataDir: house.dataDir, masterKey: undefined })
  const models = [{ modelId, modelName: model.name, remoteName }]
  await addEngine(
    { db: house.db, secrets, clock: systemClock },
    { name: `engine-of-${model.name}`, url: engine.url, bearer: undefined, models },
    'test',
  )
  await house.ready(model.name)
}
