import { type Command, InvalidArgumentError } from 'commander'
import { Agent } from 'undici'
import type { ModelType } from '../catalog/model.ts'
import { addModelIfFree, listModels, type NewModel } from '../catalog/models.ts'
import type { Config, Environment } from '../config.ts'
import { readAddress } from '../engines/address.ts'
import { type DiscoveredModel, discoverDialects, discoverModels } from '../engines/discover.ts'
import { askHealth, type Health } from '../engines/probe.ts'
import { addEngine, type EngineRow, readEngines, removeEngine, requireEngine, type ServedModel } from '../engines/registry.ts'
import { ENGINE_DIALECTS, type EngineDialect } from '../engines/replica.ts'
import { readInstallation } from '../iam/installation.ts'
import { systemClock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { ModelId } from '../kit/ids.ts'
import type { UnitPrice } from '../kit/money.ts'
import type { Secrets } from '../kit/secrets.ts'
import { operatorHere } from './operator.ts'
import { withDatabase } from './with-database.ts'

/** A server that offers more than this is a hosted catalogue: the operator says which models are meant. */
const MAX_DISCOVERED = 32
/** Where an engine does not say its context window. It refuses longer requests itself. */
const DEFAULT_CONTEXT = 8192
const DEFAULT_MAX_OUTPUT = 4096
const LOOK_LIMIT_MS = 3_000

const TYPES = ['chat', 'embedding', 'rerank', 'audio', 'ocr'] as const satisfies readonly ModelType[]

/** One model of the engine, and what it shall be here. */
export type Planned = {
  readonly name: string
  readonly remote: string
  /** Set when the catalogue has it already. */
  readonly id: ModelId | undefined
  readonly type: ModelType
  readonly contextTokens: number
}

export type Wanted = {
  /** `local=remote`, or one name for both. Empty: whatever the engine has. */
  readonly models: readonly { readonly name: string; readonly remote: string }[]
  readonly types: ReadonlyMap<string, ModelType>
  readonly contexts: ReadonlyMap<string, number>
  /** Names are taken as they are given, also when the engine does not list them. */
  readonly force: boolean
}

const guessType = (id: string): ModelType | 'other' => {
  if (/rerank|cross-encoder/i.test(id)) return 'rerank'
  if (/\bocr\b/i.test(id)) return 'ocr'
  if (/embed|\bbge-|\bgte-|\be5-|minilm/i.test(id)) return 'embedding'
  if (/whisper|transcribe|\basr\b|parakeet|canary|moonshine|sensevoice|wav2vec/i.test(id)) return 'audio'
  if (/\btts\b|xtts|kokoro|piper|speech|dall-e|moderation|stable-diffusion|flux/i.test(id)) return 'other'
  return 'chat'
}

/** Catalogue names are lower case and have no vendor in front; what an engine calls it stays as it is. */
const catalogueName = (id: string): string =>
  (id.split('/').at(-1) ?? id)
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]+/g, '-')
    .replaceAll(/^[^a-z0-9]+|-+$/g, '')

/** Which of the engine's models become which of ours. What cannot be decided without the operator is an error that says how to. */
export const planModels = (
  discovered: readonly DiscoveredModel[],
  wanted: Wanted,
  catalogue: readonly { readonly id: ModelId; readonly name: string; readonly type: ModelType }[],
): { planned: Planned[]; leftOut: string[] } => {
  const known = new Map(catalogue.map((model) => [model.name, model]))
  const offered = new Map(discovered.map((model) => [model.id, model]))
  const leftOut: string[] = []
  if (wanted.models.length === 0 && discovered.length > MAX_DISCOVERED) {
    throw new Error(`The engine has ${discovered.length} models. Name those you want: --model local=remote, once for each.`)
  }
  const chosen =
    wanted.models.length > 0
      ? wanted.models
      : discovered.flatMap(({ id }) => {
          const name = known.has(id) ? id : catalogueName(id)
          if (guessType(id) !== 'other' || wanted.types.has(name)) return [{ name, remote: id }]
          leftOut.push(id)
          return []
        })
  if (chosen.length === 0)
    throw new Error('The engine has no model that can be served. Load one there, or name it with --model local=remote.')

  const planned = chosen.map(({ name, remote }): Planned => {
    const there = offered.get(remote)
    if (there === undefined && !wanted.force) {
      const has = discovered.map(({ id }) => id).slice(0, MAX_DISCOVERED)
      throw new Error(`The engine has no model ${remote}. It has: ${has.join(', ') || 'none'}. With --force it is taken all the same.`)
    }
    const mine = known.get(name)
    const asked = wanted.types.get(name)
    if (mine !== undefined && asked !== undefined && asked !== mine.type) {
      throw new Error(`The model ${name} is in the catalogue as ${mine.type}. Give this one another name: --model other-name=${remote}`)
    }
    const type = mine?.type ?? asked ?? guessType(remote)
    if (type === 'other') throw new Error(`What ${remote} does cannot be told from its name. Say it: --type ${name}=${TYPES.join('|')}`)
    return {
      name,
      remote,
      id: mine?.id,
      type,
      contextTokens: wanted.contexts.get(name) ?? there?.contextTokens ?? DEFAULT_CONTEXT,
    }
  })
  const twice = planned.find(({ name }, at) => planned.findIndex((other) => other.name === name) !== at)
  if (twice !== undefined) {
    throw new Error(`Two models of the engine would be called ${twice.name} here. Name them: --model local=remote, once for each.`)
  }
  for (const name of [...wanted.types.keys(), ...wanted.contexts.keys()]) {
    if (!planned.some((model) => model.name === name)) {
      throw new Error(`There is no model ${name} among those to be added: ${planned.map((model) => model.name).join(', ')}.`)
    }
  }
  return { planned, leftOut }
}

/** What a command reads beside its flags, and where it speaks. */
type CommandIo = { readonly env: Environment; readonly print: (line: string) => void }

type AddFlags = {
  name: string
  url: string
  key?: string
  keyEnv?: string
  model?: { name: string; remote: string }[]
  type?: [string, ModelType][]
  context?: [string, number][]
  vision?: string[]
  speaks?: EngineDialect[]
  force?: boolean
}

const readKey = (flags: AddFlags, env: Environment): string | undefined => {
  if (flags.key !== undefined && flags.keyEnv !== undefined) throw new Error('Give --key or --key-env, not both.')
  if (flags.keyEnv === undefined) return flags.key
  const key = env[flags.keyEnv]
  if (!key) throw new Error(`The variable ${flags.keyEnv} is not set; it should hold the key of the engine.`)
  return key
}

const discover = async (flags: AddFlags, key: string | undefined): Promise<{ models: DiscoveredModel[]; silent: string | undefined }> => {
  try {
    return { models: await discoverModels(flags.url, key), silent: undefined }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    if (flags.force !== true)
      throw new Error(`${reason} To add it all the same, say --force and name its models with --model.`, { cause: error })
    if (flags.model === undefined) throw new Error(`${reason} With --force, name its models: --model local=remote`, { cause: error })
    return { models: [], silent: reason }
  }
}

const add = async (config: Config, flags: AddFlags, io: CommandIo): Promise<void> => {
  const key = readKey(flags, io.env)
  readAddress(flags.url)
  // Before its models are in the catalogue.
  requireEngine({ name: flags.name, bearer: key })
  const { models: discovered, silent } = await discover(flags, key)
  const speaks = flags.speaks ?? (silent === undefined ? await discoverDialects(flags.url, key) : [])
  const wanted: Wanted = {
    models: flags.model ?? [],
    types: new Map(flags.type ?? []),
    contexts: new Map(flags.context ?? []),
    force: flags.force === true,
  }

  const done = await withDatabase(config, async ({ db, secrets }) => {
    // A key sealed here is opened by the server: with another master key it could not be.
    if (key !== undefined) await readInstallation(db, secrets)
    const plan = async () => planModels(discovered, wanted, await listModels(db, systemClock))
    const { planned, leftOut } = await plan()
    const stranger = flags.vision?.find((name) => !planned.some((model) => model.name === name))
    if (stranger !== undefined) throw new Error(`There is no model ${stranger} among those to be added.`)
    // Looked at before models are added, so that a name that is taken leaves nothing behind.
    if ((await readEngines(db)).some(({ name }) => name === flags.name)) {
      throw new Error(`There is already an engine named ${flags.name}. Remove it first: parvis engines remove ${flags.name}`)
    }
    const entered = await enterModels(db, plan, (model) => toNewModel(model, flags.name, flags.vision?.includes(model.name) === true))
    const served = entered.map(({ id, name, remote }): ServedModel => ({ modelId: id, modelName: name, remoteName: remote }))
    await addEngine(
      { db, secrets, clock: systemClock },
      { name: flags.name, url: flags.url, bearer: key, models: served, speaks },
      operatorHere(),
    )
    return { entered, leftOut }
  })

  if (silent !== undefined) io.print(`Not asked: ${silent}`)
  io.print(`The engine ${flags.name} is added. Running servers use it within a second.`)
  if (speaks.length > 0) {
    io.print(`It speaks ${speaks.join(' and ')}: such requests go to it as they come. If it should get chats only: --speaks chat`)
  }
  for (const model of done.entered) io.print(`  ${describe(model)}`)
  if (done.leftOut.length > 0) io.print(`Left out, since what they do is served by no endpoint: ${done.leftOut.join(', ')}`)
  const first = done.entered.find(({ isNew }) => isNew)
  if (first === undefined) return
  const prices = first.type === 'chat' ? '<input> <output>' : '<price> 0'
  io.print(`The new ones cost nothing until you say what they cost: parvis models price ${first.name} ${prices}`)
  io.print('If a type or a context window was guessed wrong: remove engine and model, and add it with --type and --context.')
}

type Entered = Omit<Planned, 'id'> & { readonly id: ModelId; readonly isNew: boolean }

/**
 * Puts those into the catalogue that it does not have. Whether it has one is decided by adding it: where somebody else was quicker it is planned
 * anew, and theirs is joined like any that was there before.
 */
const enterModels = async (
  db: Db,
  plan: () => Promise<{ planned: readonly Planned[] }>,
  toNew: (model: Planned) => NewModel,
): Promise<Entered[]> => {
  const added = new Set<ModelId>()
  for (;;) {
    const { planned } = await plan()
    const missing = planned.find(({ id }) => id === undefined)
    if (missing === undefined) {
      return planned.flatMap(({ id, ...model }) => (id === undefined ? [] : [{ ...model, id, isNew: added.has(id) }]))
    }
    const id = await addModelIfFree(db, systemClock, operatorHere(), toNew(missing))
    if (id !== undefined) added.add(id)
  }
}

/** Where an engine says nothing of it: `parvis models set` says more. */
const maxOutputOf = ({ type, contextTokens }: Pick<Planned, 'type' | 'contextTokens'>): number | null =>
  type === 'chat' ? Math.max(1, Math.min(DEFAULT_MAX_OUTPUT, Math.floor(contextTokens / 2))) : null

const toNewModel = (model: Planned, engine: string, vision: boolean): NewModel => {
  const vendor = model.remote.includes('/') ? model.remote.split('/')[0] : undefined
  const isChat = model.type === 'chat'
  return {
    name: model.name,
    ownedBy: vendor || engine,
    type: model.type,
    contextTokens: model.contextTokens,
    maxOutputTokens: maxOutputOf(model),
    // What it cannot do, the engine itself refuses.
    features: { tools: isChat, structuredOutput: isChat, reasoning: false, vision: isChat && vision },
    source: `engine ${engine}: ${model.remote}`.slice(0, 1000),
    price: { input: 0n as UnitPrice, output: 0n as UnitPrice },
  }
}

const describe = (model: Entered): string => {
  const there = model.remote === model.name ? '' : ` (there: ${model.remote})`
  const maxOutput = maxOutputOf(model)
  const output = maxOutput === null ? '' : `, at most ${maxOutput} tokens of output`
  return model.isNew
    ? `${model.name}${there}: new in the catalogue, ${model.type}, context ${model.contextTokens}${output}`
    : `${model.name}${there}: was in the catalogue; this is one more replica of it`
}

/** Asks each engine now: this process is not the server, which has its own opinion. */
const look = async (engines: readonly EngineRow[], secrets: Secrets): Promise<Health[]> => {
  const dispatcher = new Agent({ connections: 1, connect: { timeout: LOOK_LIMIT_MS } })
  try {
    return await Promise.all(
      engines.map(async (engine): Promise<Health> => {
        try {
          const bearer = engine.sealedBearer === null ? undefined : secrets.unseal(engine.sealedBearer)
          const asking = { dispatcher, answerMs: LOOK_LIMIT_MS, signal: new AbortController().signal }
          return (await askHealth({ address: readAddress(engine.url), bearer }, 0, asking)).health
        } catch (error) {
          return { well: false, reason: error instanceof Error ? error.message : String(error), refused: false }
        }
      }),
    )
  } finally {
    await dispatcher.destroy()
  }
}

const list = async (config: Config, options: { json?: boolean }, io: CommandIo): Promise<void> => {
  const { engines, healths } = await withDatabase(config, async ({ db, secrets }) => {
    const rows = await readEngines(db)
    return { engines: rows, healths: await look(rows, secrets) }
  })
  if (options.json === true) {
    const shown = engines.map(({ sealedBearer, models, createdAt, ...engine }, at) => ({
      ...engine,
      hasKey: sealedBearer !== null,
      createdAt: createdAt.toISOString(),
      answers: healths[at]?.well === true,
      reason: sayHealth(healths[at]),
      models: models.map(({ modelId, modelName, remoteName }) => ({ id: modelId, name: modelName, remote: remoteName })),
    }))
    io.print(JSON.stringify(shown, null, 2))
    return
  }
  if (engines.length === 0) {
    io.print('No engines are registered. Embedded engines start by themselves; add others with: parvis engines add --name X --url http://…')
    return
  }
  for (const [at, engine] of engines.entries()) {
    io.print(
      `${engine.name}  ${engine.url}  ${engine.sealedBearer === null ? 'no key' : 'with a key'}  ${sayHealth(healths[at]) ?? 'answers'}`,
    )
    if (engine.speaks.length > 0) io.print(`  speaks ${engine.speaks.join(' and ')}`)
    for (const { modelName, remoteName } of engine.models)
      io.print(`  ${modelName}${remoteName === modelName ? '' : ` (there: ${remoteName})`}`)
  }
}

const sayHealth = (health: Health | undefined): string | null => (health === undefined || health.well ? null : health.reason)

const remove = async (config: Config, name: string, io: CommandIo): Promise<void> => {
  const removed = await withDatabase(config, ({ db }) => removeEngine(db, name, operatorHere()))
  if (!removed) throw new Error(`There is no engine ${name}. \`parvis engines list\` shows those there are.`)
  io.print(`${name} is removed. Answers that run on it end undisturbed; its models stay in the catalogue.`)
}

const collect =
  <T>(read: (text: string) => T) =>
  (text: string, before: T[] = []): T[] => [...before, read(text)]

const splitPair = (text: string): [string, string] => {
  const at = text.indexOf('=')
  if (at <= 0 || at === text.length - 1) throw new InvalidArgumentError('Write it as name=value.')
  return [text.slice(0, at), text.slice(at + 1)]
}

const readModel = (text: string): { name: string; remote: string } => {
  const [name, remote] = text.includes('=') ? splitPair(text) : [text, text]
  return { name, remote }
}

const readType = (text: string): [string, ModelType] => {
  const [name, type] = splitPair(text)
  const known = TYPES.find((each) => each === type)
  if (known === undefined) throw new InvalidArgumentError(`The type is one of ${TYPES.join(', ')}.`)
  return [name, known]
}

/** `chat` is what they all speak. */
const readSpeaks = (text: string): EngineDialect[] => {
  const named = ENGINE_DIALECTS.find((dialect) => dialect === text)
  if (named === undefined && text !== 'chat') throw new InvalidArgumentError(`An engine speaks ${ENGINE_DIALECTS.join(', ')} or chat.`)
  return named === undefined ? [] : [named]
}

const readContext = (text: string): [string, number] => {
  const [name, tokens] = splitPair(text)
  if (!/^[1-9]\d{0,8}$/.test(tokens)) throw new InvalidArgumentError('The context window is a whole number of tokens.')
  return [name, Number(tokens)]
}

const print = (line: string): void => void process.stdout.write(`${line}\n`)

export const registerEngines = (
  program: Command,
  readSettings: () => Config,
  { env, print: say = print }: { readonly env: Environment; readonly print?: (line: string) => void },
): void => {
  const io: CommandIo = { env, print: say }
  const engines = program
    .command('engines')
    .description('use engines that already run: vLLM, llama-server, SGLang, Ollama, any OpenAI-compatible server')
  engines
    .command('add')
    .description('make a pool out of a server: its models are discovered, those the catalogue does not know are added')
    .requiredOption('--name <name>', 'what it is called here')
    .requiredOption('--url <url>', 'its address, with or without /v1')
    .option(
      '--key <key>',
      'the key it wants; it is kept encrypted and never shown. It stays in the history of your shell: better use --key-env',
    )
    .option('--key-env <variable>', 'the environment variable that holds the key')
    .option(
      '--model <local=remote>',
      'serve this one, under this name; may be repeated. Without it: all that are discovered',
      collect(readModel),
    )
    .option('--type <name=type>', `${TYPES.join(', ')}; otherwise guessed from the name`, collect(readType))
    .option('--context <name=tokens>', `context window; otherwise what the server says, else ${DEFAULT_CONTEXT}`, collect(readContext))
    .option('--vision <name>', 'the model takes images', collect(String))
    .option(
      '--speaks <dialect>',
      'responses: it has a /v1/responses of its own, which gets those requests as they come; chat: it has none. Otherwise it is asked what it has',
      readSpeaks,
    )
    .option('--force', 'also when the server does not answer, or does not list the model')
    .addHelpText('after', '\nSeveral engines may serve one model: add each under its own name; requests go to the least busy one.')
    .action((flags: AddFlags) => add(readSettings(), flags, io))
  engines
    .command('list')
    .description('show the engines that were added, and whether they answer; keys are never shown')
    .option('--json', 'print JSON')
    .action((options: { json?: boolean }) => list(readSettings(), options, io))
  engines
    .command('remove')
    .description('stop sending requests to an engine')
    .argument('<name>', 'as `parvis engines list` shows it')
    .action((name: string) => remove(readSettings(), name, io))
}
