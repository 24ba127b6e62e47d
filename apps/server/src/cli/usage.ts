import { type Command, InvalidArgumentError } from 'commander'
import { request } from 'undici'
import type { Config } from '../config.ts'
import { readAddress } from '../engines/address.ts'
import { readChildren } from '../engines/children.ts'
import { explain } from '../engines/explain.ts'
import { type EngineRow, readEngines } from '../engines/registry.ts'
import { type Instant, instantToDate, systemClock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Secrets } from '../kit/secrets.ts'
import { journalsOf, readGateway } from '../usage/gateway.ts'
import {
  compareJournal,
  compareTotals,
  type EngineCounters,
  hasEarlierLives,
  type JournalDifference,
  listUnmeasured,
  type Range,
  type ReplicaSums,
  readCounters,
  sumReplica,
  type TotalDifference,
} from '../usage/reconcile.ts'
import { shipDirectory } from '../usage/ship-directory.ts'
import { monthOf } from '../usage/view.ts'
import { parseInstant } from './keys.ts'
import { registerUsageRequests } from './usage-requests.ts'
import { withDatabase } from './with-database.ts'

/** A gateway that runs ships every second; what waits for longer does not just pass through. */
const SECOND_LOOK_MS = 3_000
const METRICS_LIMIT_MS = 5_000
const MAX_METRICS_BYTES = 8 * 1024 * 1024
const MAX_LINES = 1_000

const print = (text: string): void => void process.stdout.write(`${text}\n`)
const say = (instant: Instant): string => instantToDate(instant).toISOString()
const plural = (count: number | bigint, one: string, many = `${one}s`): string => `${count} ${count === 1 || count === 1n ? one : many}`

const ship = async (config: Config, directory: string): Promise<void> => {
  const shipped = await withDatabase(config, ({ db, log }) => shipDirectory({ directory, db, log }))
  print(`${plural(shipped.events, 'event')} that the ledger did not have, ${plural(shipped.lost, 'answer')} lost in the middle.`)
  if (shipped.refused > 0) {
    throw new Error(
      `${plural(shipped.refused, 'event')} cannot be taken and went to refused.jsonl in that directory: look at them by hand.`,
    )
  }
}

/** The journals of all gateways, twice where something waits: what a running gateway ships meanwhile is no difference. */
const lookAtJournals = async (db: Db, dataDir: string, range: Range): Promise<{ events: number; differences: JournalDifference[] }> => {
  const look = async () => {
    const all = []
    for (const directory of await journalsOf(dataDir)) all.push(await compareJournal(db, directory, range))
    return { events: all.reduce((sum, { events }) => sum + events, 0), differences: all.flatMap(({ differences }) => differences) }
  }
  const first = await look()
  if (!first.differences.some(({ what }) => what === 'waiting')) return first
  await systemClock.sleep(SECOND_LOOK_MS)
  const second = await look()
  const before = new Set(first.differences.map(({ id }) => id))
  return { ...second, differences: second.differences.filter(({ what, id }) => what !== 'waiting' || before.has(id)) }
}

const WORDS: Readonly<Record<JournalDifference['what'], string>> = {
  waiting: 'is in the journal and not in the ledger',
  refused: 'was refused by the ledger and put aside (refused.jsonl)',
  differs: 'is not the same in journal and ledger',
}

const sayJournal = (difference: JournalDifference): string =>
  `  ${difference.id}  ${say(difference.acceptedAt)}  ${WORDS[difference.what]}` +
  (difference.what === 'differs' ? `: ${difference.field} ${difference.journal}, ledger ${difference.ledger}` : '')

const sayTotal = (difference: TotalDifference): string =>
  `  ${say(difference.hour)}  ${difference.projectId}  ${difference.accessKey}  ${difference.model}  ${difference.mode}  ${difference.kind}: ` +
  `ledger ${difference.ledger}, total ${difference.total}` +
  (difference.requests.length === 0 ? '' : `\n    requests ${difference.requests.join(' ')}`)

const some = (lines: readonly string[]): string =>
  [...lines.slice(0, MAX_LINES), ...(lines.length > MAX_LINES ? [`  … ${lines.length} in all`] : [])].join('\n')

/** One that can be asked for its counters: an address that was added, or a child of the server on this data directory. */
type Asked = {
  readonly name: string
  readonly model: string
  readonly remoteModel: string
  readonly url: string
  readonly bearer: string | undefined
  readonly gateways?: readonly string[]
}

/** Engines that cannot be asked say why in words. */
const askCounters = async (engine: Asked): Promise<EngineCounters | string> => {
  try {
    const { origin, basePath } = readAddress(engine.url)
    const answer = await request(`${origin}${basePath}/metrics`, {
      headers: engine.bearer === undefined ? {} : { authorization: `Bearer ${engine.bearer}` },
      signal: AbortSignal.timeout(METRICS_LIMIT_MS),
    })
    if (answer.statusCode !== 200) {
      await answer.body.dump()
      return `answers /metrics with ${answer.statusCode}`
    }
    let text = ''
    for await (const piece of answer.body) {
      text += String(piece)
      if (text.length > MAX_METRICS_BYTES) return `says more than ${MAX_METRICS_BYTES} bytes at /metrics`
    }
    return readCounters(text, engine.remoteModel)
  } catch (error) {
    return `cannot be asked: ${explain(error)}`
  }
}

const engineToAsked = ({ name, url, sealedBearer, models }: EngineRow, secrets: Secrets): Asked[] => {
  const bearer = sealedBearer === null ? undefined : secrets.unseal(sealedBearer)
  return models.map(({ modelName, remoteName }) => ({ name, url, bearer, model: modelName, remoteModel: remoteName }))
}

const readAsked = async (db: Db, secrets: Secrets, dataDir: string): Promise<Asked[]> => {
  const added = (await readEngines(db)).flatMap((engine) => engineToAsked(engine, secrets))
  const children = await readChildren(dataDir, secrets)
  if (children.length === 0) return added
  const gateways = await Promise.all((await journalsOf(dataDir)).map((directory) => readGateway(directory, systemClock)))
  return [...added, ...children.map((child) => ({ ...child, remoteModel: child.model, gateways }))]
}

/** What a difference may come from. None of it is an error: the engine counts its work, the ledger answers. */
const explainDifference = (counters: EngineCounters, ledger: ReplicaSums): string => {
  const more = counters.input > ledger.input || counters.output > ledger.output || counters.audioMs > ledger.audioMs
  const less = counters.input < ledger.input || counters.output < ledger.output || counters.audioMs < ledger.audioMs
  return [
    more ? 'it has done more: for others, for answers that run now, or for some that were begun again elsewhere' : '',
    less && ledger.uncounted > 0n ? `the ledger holds estimates for the ${plural(ledger.uncounted, 'request')} without its count` : '',
    less && ledger.uncounted === 0n ? 'the ledger has more than the engine says it did' : '',
  ]
    .filter((words) => words !== '')
    .map((words) => `\n    ${words}`)
    .join('')
}

/**
 * The counters of each replica since it started, beside the ledger's sums for it since then. What it did in an earlier life it does not
 * know, and that is said and is no difference.
 */
const lookAtEngines = async (db: Db, secrets: Secrets, dataDir: string, range: Range): Promise<string[]> => {
  const lines: string[] = []
  for (const engine of await readAsked(db, secrets, dataDir)) {
    const counters = await askCounters(engine)
    if (typeof counters === 'string') {
      lines.push(`  ${engine.name}, ${engine.model}: ${counters}`)
      continue
    }
    const { name, model, gateways } = engine
    const ledger = await sumReplica(db, { name, model, gateways, since: counters.startedAt })
    const compared = (
      [
        ['input', 'input'],
        ['output', 'output'],
        ['audio ms', 'audioMs'],
      ] as const
    )
      .filter(([, field]) => field !== 'audioMs' || counters.audioMs > 0n || ledger.audioMs > 0n)
      .map(([words, field]) => `${words} ${counters[field]}, ledger ${ledger[field]} (${signed(counters[field] - ledger[field])})`)
    const earlier = await hasEarlierLives(db, name, range, counters.startedAt)
    lines.push(
      `  ${name}, ${model}, since ${say(counters.startedAt)}: ${compared.join('; ')}; ${plural(ledger.uncounted, 'request')} without the engine's count` +
        (earlier ? '\n    it was started again then: what it did before is in the ledger and no longer in its counters' : '') +
        explainDifference(counters, ledger),
    )
  }
  return lines
}

const signed = (difference: bigint): string => (difference > 0n ? `+${difference}` : String(difference))

const rangeOf = (options: { from?: Instant; to?: Instant }): Range => {
  const now = systemClock.now()
  const range = { from: options.from ?? monthOf(now), to: options.to ?? now }
  if (range.from >= range.to) throw new Error('--from must lie before --to.')
  return range
}

const reconcile = async (config: Config, options: { from?: Instant; to?: Instant }): Promise<void> => {
  const range = rangeOf(options)
  const different = await withDatabase(config, async ({ db, secrets }) => {
    print(`From ${say(range.from)} to ${say(range.to)}.`)
    const journal = await lookAtJournals(db, config.dataDir, range)
    print(`Journal and ledger: ${plural(journal.events, 'event')} in the journal, ${plural(journal.differences.length, 'difference')}.`)
    if (journal.differences.length > 0) print(some(journal.differences.map(sayJournal)))
    const totals = await compareTotals(db, range)
    print(`Ledger and totals: ${plural(totals.hours, 'hour')}, ${plural(totals.differences.length, 'difference')}.`)
    if (totals.differences.length > 0) print(some(totals.differences.map(sayTotal)))
    const engines = await lookAtEngines(db, secrets, config.dataDir, range)
    print(engines.length === 0 ? 'Engines: none that can be asked.' : `Engines, by their own counters:\n${engines.join('\n')}`)
    const { count } = await listUnmeasured(db, range, 0)
    if (count > 0n) print(`${plural(count, 'request')} that nobody has counted: \`parvis usage unmeasured\` lists them.`)
    return journal.differences.length + totals.differences.length
  })
  if (different > 0) throw new Error(`${plural(different, 'difference')}.`)
}

const unmeasured = async (config: Config, options: { from?: Instant; to?: Instant; limit: number; json?: boolean }): Promise<void> => {
  const range = rangeOf(options)
  const { count, newest } = await withDatabase(config, ({ db }) => listUnmeasured(db, range, options.limit))
  if (options.json === true) {
    const requests = newest.map(({ id, acceptedAt, projectId, model, poolId, replica, gateway, ended }) => ({
      id,
      accepted_at: say(acceptedAt),
      project_id: projectId,
      model,
      pool_id: poolId,
      replica,
      gateway,
      ended,
    }))
    print(JSON.stringify({ count: Number(count), requests }, null, 2))
    return
  }
  print(`${plural(count, 'request')} without counts from ${say(range.from)} to ${say(range.to)}; none of them is charged.`)
  for (const event of newest)
    print(`${say(event.acceptedAt)}  ${event.id}  ${event.projectId}  ${event.model}  ${event.replica}  ${event.ended}`)
}

const MAX_LIMIT = 10_000
const parseLimit = (text: string): number => {
  if (!/^[1-9]\d{0,4}$/.test(text) || Number(text) > MAX_LIMIT) throw new InvalidArgumentError(`Give a number from 1 to ${MAX_LIMIT}.`)
  return Number(text)
}

export const registerUsage = (program: Command, readSettings: () => Config): void => {
  const usage = program.command('usage').description('look after what was used: ship, compare, and see what nobody has counted')
  usage
    .command('ship')
    .description('bring the journal of a gateway that does not run into the database; shipping it twice changes nothing')
    .argument('<directory>', 'its data directory, or the directory of its journal')
    .action((directory: string) => ship(readSettings(), directory))
  usage
    .command('reconcile')
    .description("compare journal, ledger, totals and the engines' own counters; ends with code 1 where journal, ledger or totals differ")
    .option('--from <date>', 'first instant; without it the beginning of this month', parseInstant)
    .option('--to <date>', 'the instant at which to stop; without it now', parseInstant)
    .action((options: { from?: Instant; to?: Instant }) => reconcile(readSettings(), options))
  registerUsageRequests(usage, readSettings)
  usage
    .command('unmeasured')
    .description('list requests without counts: their engine gave none, or their gateway died')
    .option('--from <date>', 'first instant; without it the beginning of this month', parseInstant)
    .option('--to <date>', 'the instant at which to stop; without it now', parseInstant)
    .option('--limit <number>', 'how many of the newest are listed', parseLimit, 100)
    .option('--json', 'print JSON')
    .action((options: { from?: Instant; to?: Instant; limit: number; json?: boolean }) => unmeasured(readSettings(), options))
}
