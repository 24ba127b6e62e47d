import { type Command, InvalidArgumentError, Option } from 'commander'
import { isMonth, type Month, monthEnd, monthOf, monthStart } from '../billing/month.ts'
import type { Config } from '../config.ts'
import { type Instant, instantToDate, systemClock } from '../kit/clock.ts'
import type { ProjectId } from '../kit/ids.ts'
import { KINDS, type Kind } from '../usage/kinds.ts'
import { requestToJson } from '../usage/request-routes.ts'
import { type LedgerRow, listRequests, type Place } from '../usage/requests.ts'
import { organizationOf, withDatabase } from './with-database.ts'

const AT_ONCE = 1_000
const MAX_LIMIT = 1_000_000

type Options = {
  organization?: string
  month?: Month
  model?: string
  project?: string
  kind?: Kind
  all?: boolean
  limit: number
  json?: boolean
}

const print = (text: string): void => void process.stdout.write(`${text}\n`)
const say = (instant: Instant): string => instantToDate(instant).toISOString()

const parseMonth = (text: string): Month => {
  if (!isMonth(text)) throw new InvalidArgumentError('Give a month like 2026-05.')
  return text
}
const parseLimit = (text: string): number => {
  if (!/^[1-9]\d{0,6}$/.test(text) || Number(text) > MAX_LIMIT) throw new InvalidArgumentError(`Give a number from 1 to ${MAX_LIMIT}.`)
  return Number(text)
}

const sayUnits = ({ units }: LedgerRow): string =>
  KINDS.filter((kind) => units[kind] !== 0n)
    .map((kind) => `${kind} ${units[kind]}`)
    .join(', ')

const sayRequest = (row: LedgerRow): string =>
  `${say(row.acceptedAt)}  ${row.id}  ${row.project_id}  ${row.access_key}  ${row.model}  ${row.replica}  ${row.ended}` +
  `${row.charged ? '' : ', not charged'}${row.counted === 'engine' ? '' : `, counted: ${row.counted}`}  ${sayUnits(row)}`

const requests = async (config: Config, options: Options): Promise<void> => {
  const month = options.month ?? monthOf(systemClock.now())
  await withDatabase(config, async (database) => {
    const organizationId = await organizationOf(database, options.organization)
    let behind: Place | undefined
    for (let left = options.limit; left > 0; ) {
      const rows = await listRequests(database.db, {
        organizationId,
        from: monthStart(month),
        to: monthEnd(month),
        projectIds: options.project === undefined ? [] : [options.project as ProjectId],
        only: options.model === undefined ? {} : { model: [options.model] },
        kind: options.kind,
        charged: options.all === true ? undefined : true,
        behind,
        limit: Math.min(left, AT_ONCE),
      })
      for (const row of rows) print(options.json === true ? JSON.stringify(requestToJson(row)) : sayRequest(row))
      behind = rows.at(-1)
      left = rows.length < AT_ONCE ? 0 : left - rows.length
    }
  })
}

export const registerUsageRequests = (usage: Command, readSettings: () => Config): void => {
  usage
    .command('requests')
    .description('list the requests that a line of a bill is made of, newest first: their units add up to its quantity')
    .option('--organization <id>', "an organization; without it the installation's own")
    .option('--month <month>', 'a month like 2026-05, in UTC; without it the running one', parseMonth)
    .option('--model <name>', 'only of this model')
    .option('--project <id>', 'only of this project')
    .addOption(new Option('--kind <kind>', 'only those that have some of it').choices(KINDS))
    .option('--all', 'those that are not charged, too')
    .option('--limit <number>', 'how many of the newest', parseLimit, 100)
    .option('--json', 'print JSON, one request a line')
    .action((options: Options) => requests(readSettings(), options))
}
