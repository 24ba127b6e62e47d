import { createInterface } from 'node:readline/promises'
import { type Command, InvalidArgumentError } from 'commander'
import { editModel } from '../catalog/change.ts'
import { importModel } from '../catalog/import.ts'
import type { ModelStatus } from '../catalog/model.ts'
import { addPrice, type ListedModel, listModels, noModel, removeModel } from '../catalog/models.ts'
import { formatPrice, parsePrice, priceUnitOf, sayPrice } from '../catalog/price.ts'
import { deletePulled, type Found } from '../catalog/weights/pull.ts'
import { formatBytes } from '../catalog/weights/size.ts'
import { BUILTIN_MODELS_DIR, pulledDir, type WeightsDirs } from '../catalog/weights-path.ts'
import type { Config } from '../config.ts'
import { enginesOf } from '../engines/registry.ts'
import { type Instant, systemClock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import { parseInstant } from './keys.ts'
import { parseRules, RULES, sayRule } from './model-rules.ts'
import { operatorHere } from './operator.ts'
import { openProgress } from './transfer-progress.ts'
import { withDatabase } from './with-database.ts'

const MAX_NAME_COLUMN = 48

const weightsDirs = (config: Config): WeightsDirs => ({ builtin: BUILTIN_MODELS_DIR, pulled: pulledDir(config.dataDir) })

const print = (text: string): void => void process.stdout.write(`${text}\n`)

/** Columns as wide as what stands in them. */
const table = (rows: readonly (readonly string[])[]): string => {
  const widths = (rows[0] ?? []).map((_, column) => Math.min(MAX_NAME_COLUMN, Math.max(...rows.map((row) => row[column]?.length ?? 0))))
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

const modelToRow = (model: ListedModel): string[] => [
  model.name,
  model.type,
  model.successor === null ? model.status : `${model.status} → ${model.successor}`,
  String(model.contextTokens),
  model.maxOutputTokens === null ? '-' : String(model.maxOutputTokens),
  sayPrice(model.type, model.price),
  model.weights === null ? 'engines only' : formatBytes(model.weights.bytes),
  model.licence ?? '-',
]

/** Prices as decimal strings: JSON has no exact fractions. */
const modelToJson = (model: ListedModel) => ({
  ...model,
  createdAt: new Date(model.createdAt).toISOString(),
  price: {
    startsAt: new Date(model.price.startsAt).toISOString(),
    unit: priceUnitOf(model.type),
    inputPerMillion: formatPrice(model.price.input),
    cachedInputPerMillion: formatPrice(model.price.cachedInput),
    outputPerMillion: formatPrice(model.price.output),
  },
})

const list = async (config: Config, options: { json?: boolean }): Promise<void> => {
  const models = await withDatabase(config, ({ db }) => listModels(db, systemClock))
  if (options.json === true) return print(JSON.stringify(models.map(modelToJson), undefined, 2))
  if (models.length === 0) return print('The catalogue is empty. Add a model: parvis models pull org/repo')
  print(table([['NAME', 'TYPE', 'STATUS', 'CONTEXT', 'OUTPUT', 'PRICE, IN / OUT', 'WEIGHTS', 'LICENCE'], ...models.map(modelToRow)]))
}

/** Asks a person, where there is one. A script has said what it wants by calling. */
const agree = async (question: string): Promise<boolean> => {
  if (!process.stdin.isTTY || !process.stdout.isTTY) return true
  const lines = createInterface({ input: process.stdin, output: process.stdout })
  // Without this, Ctrl-C and Ctrl-D would leave the question unanswered for ever.
  const left = new AbortController()
  lines.on('SIGINT', () => left.abort()).on('close', () => left.abort())
  try {
    const answer = await lines.question(`${question} [y/N] `, { signal: left.signal })
    return /^y(es)?$/i.test(answer.trim())
  } catch (error) {
    if (left.signal.aborted) return false
    throw error
  } finally {
    lines.close()
  }
}

const DECLINED = 'Nothing was changed.'

type PullFlags = {
  name?: string
  context?: number
  maxOutput?: number
  type?: 'chat' | 'embedding' | 'rerank'
  revision?: string
  priceInput?: string
  priceOutput?: string
  inPlace?: boolean
  yes?: boolean
}

const pull = async (config: Config, reference: string, flags: PullFlags): Promise<void> => {
  // Prices are read first: a typing mistake shall not show after an hour of download.
  for (const price of [flags.priceInput, flags.priceOutput]) if (price !== undefined) parsePrice(price)
  const stop = new AbortController()
  const onSignal = (): void => stop.abort()
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal)
  const progress = openProgress(process.stderr)

  const onFound = async (found: Found): Promise<void> => {
    print(`${found.source} (${found.files.length === 1 ? '' : `${found.files.length} files, `}${formatBytes(found.bytes)})`)
    if (found.because !== undefined) print(`  chosen because ${found.because}`)
    if (found.licence !== null) print(`  licence: ${found.licence}`)
    if (flags.yes !== true && !(await agree(`Add it as ${flags.name ?? found.name}?`))) throw new Error(DECLINED)
  }
  try {
    const { pulled, model } = await importModel({
      reference,
      revision: flags.revision,
      endpoint: config.hubEndpoint,
      token: config.hubToken,
      weightsDirs: weightsDirs(config),
      clock: systemClock,
      signal: stop.signal,
      inPlace: flags.inPlace === true,
      actor: operatorHere(),
      withDb: (work) => withDatabase(config, ({ db }) => work(db)),
      choices: {
        name: flags.name,
        type: flags.type,
        contextTokens: flags.context,
        maxOutputTokens: flags.maxOutput,
        priceInput: flags.priceInput,
        priceOutput: flags.priceOutput,
      },
      onFound,
      onProgress: progress.update,
    })
    progress.close()
    const { gguf } = pulled
    print(
      `${model.name} is in the catalogue: ${model.type}, ${gguf.architecture}${gguf.quantization === null ? '' : ` ${gguf.quantization}`}, ${model.contextTokens} tokens of context${model.maxOutputTokens === null ? '' : `, at most ${model.maxOutputTokens} of output`}.`,
    )
    if (gguf.contextTokens !== null && gguf.contextTokens > model.contextTokens) {
      print(`The model itself could have ${gguf.contextTokens} (--context); a larger window takes more memory.`)
    }
    if (model.type === 'chat' && gguf.chatTemplate === null)
      print('It has no chat template, so it is a base model: it continues text rather than answer.')
    if (model.price.input === 0n && model.price.output === 0n)
      print(
        `It costs nothing. To set a price: parvis models price ${model.name} ${model.type === 'chat' ? '<input> <output>' : '<price> 0'}`,
      )
    print('A server that runs starts serving it within seconds.')
  } catch (error) {
    progress.close()
    if (stop.signal.aborted) throw new Error('Stopped. What has arrived is kept; the same command goes on from there.', { cause: error })
    throw error
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal)
  }
}

type RemoveFlags = { keepFile?: boolean; force?: boolean; yes?: boolean }

const remove = async (config: Config, name: string, flags: RemoveFlags): Promise<void> => {
  const removed = await withDatabase(config, async ({ db }) => {
    const serving = await enginesOf(db, name)
    if (serving.length > 0 && flags.force !== true) {
      throw new Error(`${name} is served by the engine ${serving.join(', ')}. Remove that first (parvis engines remove), or use --force.`)
    }
    if (flags.yes !== true && !(await agree(`Remove ${name}? Calls that name it will be refused.`))) throw new Error(DECLINED)
    return removeModel(db, systemClock, operatorHere(), name, { force: flags.force === true })
  })
  print(`${name} is no longer in the catalogue.`)
  const stored = removed.unusedWeights
  if (stored === null) return
  if (flags.keepFile === true) return print(`Its weights stay: ${stored}`)
  // An engine that still runs has the file open and ends on its own; its space is free once it has.
  if (await deletePulled(weightsDirs(config), stored)) print('Its weights are deleted.')
}

const setPrice = async (
  config: Config,
  name: string,
  input: string,
  output: string,
  flags: { cachedInput?: string; from?: Instant },
): Promise<void> => {
  const price = {
    input: parsePrice(input),
    output: parsePrice(output),
    ...(flags.cachedInput === undefined ? {} : { cachedInput: parsePrice(flags.cachedInput) }),
  }
  const { type } = await withDatabase(config, async ({ db }) => {
    await addPrice(db, systemClock, operatorHere(), name, flags.from, price)
    return find(db, name)
  })
  const from = flags.from === undefined ? 'now' : new Date(flags.from).toISOString()
  print(`${name}: ${sayPrice(type, price)} from ${from} on.`)
}

const find = async (db: Db, name: string): Promise<ListedModel> => {
  const model = (await listModels(db, systemClock)).find((each) => each.name === name)
  if (model === undefined) throw new Error(noModel(name))
  return model
}

const setRules = async (config: Config, name: string, words: readonly string[]): Promise<void> => {
  const change = parseRules(words)
  const model = await withDatabase(config, async ({ db }) => {
    await editModel(db, systemClock, operatorHere(), name, change)
    return find(db, name)
  })
  print(table(RULES.map((rule) => [rule.name, sayRule(rule.show(model))])))
}

type SetFlags = {
  status?: ModelStatus
  deprecatedAt?: Instant
  endOfLife?: Instant
  successor?: string
  description?: string
  context?: number
  maxOutput?: number
  licence?: string
  ownedBy?: string
  waiveGuarantees?: boolean
}

const setModel = async (config: Config, name: string, flags: SetFlags): Promise<void> => {
  const { waiveGuarantees: waived, successor, ...rest } = flags
  const change = {
    ...(rest.status && { status: rest.status }),
    ...(rest.deprecatedAt && { deprecatedAt: rest.deprecatedAt }),
    ...(rest.endOfLife && { endOfLifeAt: rest.endOfLife }),
    ...(successor === undefined ? {} : { successor: successor === 'none' ? null : successor }),
    ...(rest.description === undefined ? {} : { description: rest.description }),
    ...(rest.context && { contextTokens: rest.context }),
    ...(rest.maxOutput && { maxOutputTokens: rest.maxOutput }),
    ...(rest.licence === undefined ? {} : { licence: rest.licence }),
    ...(rest.ownedBy === undefined ? {} : { ownedBy: rest.ownedBy }),
  }
  if (Object.keys(change).length === 0) throw new Error('Say what to set: parvis models set --help shows what there is.')
  const model = await withDatabase(config, async ({ db }) => {
    await editModel(db, systemClock, operatorHere(), name, change, { waived })
    return find(db, name)
  })
  const ends = model.endOfLifeAt === null ? '' : `, ends ${new Date(model.endOfLifeAt).toISOString()}`
  const since = model.deprecatedAt === null ? '' : `, deprecated from ${new Date(model.deprecatedAt).toISOString()}`
  const then = model.successor === null ? '' : `, then ${model.successor} answers`
  print(`${name} is ${model.status}${since}${ends}${then}.`)
}

const modelStatus = (text: string): ModelStatus => {
  if (text !== 'preview' && text !== 'active' && text !== 'deprecated' && text !== 'eol')
    throw new InvalidArgumentError('It must be preview, active, deprecated or eol.')
  return text
}

const wholeNumber = (text: string): number => {
  const value = Number(text)
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value === 0)
    throw new InvalidArgumentError('It must be a whole number above 0.')
  return value
}

const modelType = (text: string): 'chat' | 'embedding' | 'rerank' => {
  if (text !== 'chat' && text !== 'embedding' && text !== 'rerank') throw new InvalidArgumentError('It must be chat, embedding or rerank.')
  return text
}

export const registerModels = (program: Command, readSettings: () => Config): void => {
  const models = program.command('models').description('what is served, and what it costs')

  models
    .command('list')
    .description('show the catalogue')
    .option('--json', 'as JSON')
    .action((options: { json?: boolean }) => list(readSettings(), options))

  models
    .command('pull')
    .description('bring a model from the hub, or from a file of this machine, and serve it')
    .argument('<reference>', 'org/repo, org/repo:file.gguf, org/repo:Q4_K_M, or a path such as ./model.gguf')
    .option('--name <name>', 'what clients call it; otherwise taken from the file')
    .option('--context <tokens>', 'context window, input and output together; otherwise the model’s own, at most 8192', wholeNumber)
    .option('--max-output <tokens>', 'the most a client may ask for; otherwise half the window, at most 4096', wholeNumber)
    .option('--type <type>', 'chat, embedding or rerank; otherwise read from the file', modelType)
    .option('--revision <revision>', 'branch, tag or commit of the repository')
    .option('--price-input <euros>', 'per million tokens, for example 0.15; otherwise 0')
    .option('--price-output <euros>', 'per million tokens, of a model for chats; otherwise 0')
    .option('--in-place', 'use a local file where it lies instead of copying it')
    .option('--yes', 'do not ask')
    .addHelpText(
      'after',
      '\nA transfer that breaks goes on where it was when the command is repeated. HF_ENDPOINT and HF_TOKEN choose the hub and open gated models.',
    )
    .action((reference: string, flags: PullFlags) => pull(readSettings(), reference, flags))

  models
    .command('price')
    .description(
      'set what a model costs, in euros per million tokens (minute of sound, 1,000 pages); what was charged before stays as it was',
    )
    .argument('<name>', 'the model')
    .argument('<input>', 'for example 0.15')
    .argument('<output>', 'for example 0.35; 0 for every model that is not for chats')
    .option('--cached-input <euros>', 'for input read from the cache; otherwise the input price')
    .option('--from <when>', 'a day or an instant that is still to come; otherwise now', parseInstant)
    .action((name: string, input: string, output: string, flags: { cachedInput?: string; from?: Instant }) =>
      setPrice(readSettings(), name, input, output, flags),
    )

  models
    .command('rules')
    .description('show or set what a model takes and what it insists on; it holds from the next request on')
    .argument('<name>', 'the model')
    .argument('[rules...]', 'name=value, for example vision=yes max-images=12')
    .addHelpText('after', `\n${RULES.map((rule) => `  ${rule.name.padEnd(20)} ${rule.what}`).join('\n')}`)
    .action((name: string, words: string[]) => setRules(readSettings(), name, words))

  models
    .command('set')
    .description('say where a model is in its life, and what people should know of it; the guarantees of the life cycle are checked')
    .argument('<name>', 'the model')
    .option('--status <status>', 'preview, active, deprecated or eol', modelStatus)
    .option('--deprecated-at <when>', 'a day or an instant from which it is deprecated', parseInstant)
    .option('--end-of-life <when>', 'a day or an instant at which it ends', parseInstant)
    .option('--successor <name>', 'the model that answers in its place once it has ended; none for nobody')
    .option('--description <text>', 'in words, for people who choose a model')
    .option('--context <tokens>', 'context window, input and output together', wholeNumber)
    .option('--max-output <tokens>', 'the most a client may ask for', wholeNumber)
    .option('--licence <name>', 'the licence of its weights')
    .option('--owned-by <name>', 'who made it')
    .option('--waive-guarantees', 'also when it breaks what the life cycle promises to those who call it')
    .action((name: string, flags: SetFlags) => setModel(readSettings(), name, flags))

  models
    .command('remove')
    .description('take a model out of the catalogue and delete its pulled weights')
    .argument('<name>', 'the model')
    .option('--keep-file', 'leave the weights on the disk')
    .option('--force', 'also when engines serve it, or other models send their callers to it')
    .option('--yes', 'do not ask')
    .action((name: string, flags: RemoveFlags) => remove(readSettings(), name, flags))
}
