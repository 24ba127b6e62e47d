import { type Command, InvalidArgumentError } from 'commander'
import type { Config } from '../config.ts'
import { instantToDate, systemClock } from '../kit/clock.ts'
import { isUuid, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import type { Outcome } from '../kit/outcome.ts'
import { readBudgets } from '../quota/budgets.ts'
import {
  type EditRefusal,
  isTier,
  type NewLimit,
  removeBudget,
  setBudget,
  setOrganizationLimits,
  setProjectLimit,
  setTier,
  setTierLimits,
} from '../quota/edit.ts'
import { ANY_MODEL, LIMIT_NAMES, type LimitName, OVER_ALL, readPolicy, TIERS } from '../quota/policy.ts'
import { operatorHere } from './operator.ts'
import { organizationOf, withDatabase } from './with-database.ts'

const NANOS_DIGITS = 9

const print = (text: string): void => void process.stdout.write(`${text}\n`)

/** As it was typed: commander takes null for nothing at all. */
type Typed = number | 'unlimited' | 'default'

const parseLimit = (text: string): Typed => {
  if (text === 'unlimited' || text === 'default') return text
  if (!/^\d{1,15}$/.test(text)) throw new InvalidArgumentError('Give a whole number, "unlimited" or "default".')
  return Number(text)
}

const toLimit = (typed: Typed): NewLimit => (typed === 'unlimited' ? null : typed)

const parseId = (text: string): string => {
  if (!isUuid(text)) throw new InvalidArgumentError('Give an id: a UUID in lower case.')
  return text
}

/** "12.50" in billionths, exactly. */
const parseMoney = (text: string): number => {
  const [, whole, fraction = ''] = /^(\d{1,6})(?:\.(\d{1,9}))?$/.exec(text) ?? []
  if (whole === undefined) throw new InvalidArgumentError('Give an amount like 12.50, below a million.')
  return Number(`${whole}${fraction.padEnd(NANOS_DIGITS, '0')}`)
}

const parseTokens = (text: string): number => {
  if (!/^\d{1,15}$/.test(text)) throw new InvalidArgumentError('Give a whole number of tokens.')
  return Number(text)
}

const sayMoney = (nanos: number): string => {
  const digits = String(nanos).padStart(NANOS_DIGITS + 1, '0')
  return `${digits.slice(0, -NANOS_DIGITS)}.${digits.slice(-NANOS_DIGITS).replace(/0{0,7}$/, '')}`
}

const done = <T>(outcome: Outcome<T, EditRefusal>): T => {
  if (!outcome.ok) throw new Error(outcome.refusal.why)
  return outcome.value
}

const say = (value: number | null): string => (value === null ? 'unlimited' : String(value))

type Where = { organization?: string; json?: boolean }

const list = (config: Config, { organization, json }: Where): Promise<void> =>
  withDatabase(config, async (database) => {
    const organizationId = await organizationOf(database, organization)
    const policy = await readPolicy(database.db)
    const { rows } = await database.db.query<{ name: string }>('select name from model where removed_at is null order by name')
    const models = [ANY_MODEL, ...rows.map(({ name }) => name)].map((model) => ({ model, ...policy.limits(organizationId, model) }))
    const budgets = await readBudgets(database.db, systemClock, organizationId)
    const tier = policy.tierOf(organizationId)
    if (json === true) return print(JSON.stringify({ organization_id: organizationId, tier, limits: models, budgets }, null, 2))
    print(`Tier: ${tier}`)
    const [all] = models
    if (all !== undefined) for (const name of OVER_ALL) print(`${name}: ${say(all[name])}`)
    for (const { model, ...limits } of models) {
      const shown = LIMIT_NAMES.filter((name) => !OVER_ALL.includes(name)).map((name) => `${name} ${say(limits[name])}`)
      print(`${model}  ${shown.join('  ')}`)
    }
    for (const { id, projectId, principalId, unit, period, amount, used, hard, endsAt } of budgets) {
      const whose = [projectId === null ? '' : `project ${projectId}`, principalId === null ? '' : `principal ${principalId}`]
        .filter(Boolean)
        .join(' ')
      const [of, out] = unit === 'money' ? [sayMoney(amount), sayMoney(used)] : [amount, used]
      print(
        `budget ${id}  ${whose === '' ? 'organization' : whose}  ${out} of ${of} ${unit} per ${period}, ${hard ? 'hard' : 'alert only'}, until ${instantToDate(endsAt).toISOString()}`,
      )
    }
  })

type SetOptions = Where & {
  tier?: string
  project?: string
  model: string
  tokens?: Typed
  requests?: Typed
  audioSeconds?: Typed
  concurrent?: Typed
  batches?: Typed
  freeTokens?: Typed
}

const set = (config: Config, options: SetOptions): Promise<void> =>
  withDatabase(config, async (database) => {
    if (options.tier !== undefined && (options.organization !== undefined || options.project !== undefined)) {
      throw new Error(
        'With --tier a limit is set for all organizations in it: leave --organization and --project out. To move one, use `parvis limits tier`.',
      )
    }
    const organizationId = await organizationOf(database, options.organization)
    const edit = { db: database.db, actor: operatorHere() }
    const given: [LimitName, Typed | undefined][] = [
      ['tokens_per_minute', options.tokens],
      ['requests_per_minute', options.requests],
      ['audio_seconds_per_minute', options.audioSeconds],
      ['concurrent_requests', options.concurrent],
      ['concurrent_batches', options.batches],
      ['free_tokens_per_month', options.freeTokens],
    ]
    const limits = Object.fromEntries(given.flatMap(([name, value]) => (value === undefined ? [] : [[name, toLimit(value)]])))
    if (Object.keys(limits).length === 0)
      throw new Error('Say what to set: --tokens, --requests, --audio-seconds, --concurrent, --batches or --free-tokens.')
    if (options.tier !== undefined) {
      if (!isTier(options.tier)) throw new Error(`There is no tier ${options.tier}: give ${TIERS.join(', ')}.`)
      done(await setTierLimits(edit, { tier: options.tier, model: options.model, limits }))
    } else if (options.project === undefined) {
      done(await setOrganizationLimits(edit, { organizationId, model: options.model, limits }))
    } else {
      if (options.tokens === undefined || Object.keys(limits).length > 1) throw new Error('A project is limited in --tokens only.')
      const projectId = options.project as ProjectId
      done(await setProjectLimit(edit, { organizationId, projectId, model: options.model, tokensPerMinute: toLimit(options.tokens) }))
    }
    print('Set. Running servers know it within a second.')
  })

type BudgetOptions = Where & { project?: string; principal?: string; tokens?: number; money?: number; period: string; alertOnly?: boolean }

const budget = (config: Config, options: BudgetOptions): Promise<void> =>
  withDatabase(config, async (database) => {
    const { tokens, money, period } = options
    if ((tokens === undefined) === (money === undefined)) throw new Error('Give either --tokens or --money.')
    if (period !== 'day' && period !== 'month') throw new Error('A period is a day or a month.')
    const made = done(
      await setBudget(
        { db: database.db, clock: systemClock, actor: operatorHere() },
        {
          organizationId: await organizationOf(database, options.organization),
          projectId: (options.project ?? null) as ProjectId | null,
          principalId: (options.principal ?? null) as PrincipalId | null,
          unit: tokens === undefined ? 'money' : 'tokens',
          period,
          amount: tokens ?? money ?? 0,
          hard: options.alertOnly !== true,
        },
      ),
    )
    print(`Budget ${made.id} is set. Running servers know it within a second.`)
  })

export const registerLimits = (program: Command, readSettings: () => Config): void => {
  const limits = program.command('limits').description('see and set limits by the minute, tiers and budgets')
  const organization = ['--organization <id>', "an organization; without it the installation's own", parseId] as const
  limits
    .command('list')
    .description('what an organization may use, by model, and what is left of its budgets')
    .option(...organization)
    .option('--json', 'print JSON')
    .action((options: Where) => list(readSettings(), options))
  limits
    .command('set')
    .description(
      'limit an organization or a project; "unlimited" takes a limit away, "default" brings back that of the tier, and with --tier the published one',
    )
    .option(...organization)
    .option('--project <id>', 'a project of the organization; it can only have less', parseId)
    .option('--tier <tier>', `all organizations of a tier: ${TIERS.join(', ')}`)
    .option('--model <name>', 'one model; without it all that have no limit of their own', ANY_MODEL)
    .option('--tokens <number>', 'tokens per minute, input and output', parseLimit)
    .option('--requests <number>', 'requests per minute', parseLimit)
    .option('--audio-seconds <number>', 'seconds of audio per minute', parseLimit)
    .option('--concurrent <number>', 'requests at the same time, over all models', parseLimit)
    .option('--batches <number>', 'batches at the same time, over all models', parseLimit)
    .option('--free-tokens <number>', 'tokens in a month, over all models; more are refused', parseLimit)
    .action((options: SetOptions) => set(readSettings(), options))
  limits
    .command('tier')
    .description(`put an organization into a tier: ${TIERS.join(', ')}`)
    .argument('<tier>', TIERS.join(', '))
    .option(...organization)
    .action((tier: string, options: Where) =>
      withDatabase(readSettings(), async (database) => {
        if (!isTier(tier)) throw new Error(`There is no tier ${tier}: give ${TIERS.join(', ')}.`)
        const organizationId = await organizationOf(database, options.organization)
        done(await setTier({ db: database.db, actor: operatorHere() }, { organizationId, tier }))
        print(`The organization is in the tier ${tier}.`)
      }),
    )
  limits
    .command('budget')
    .description('set what may be used in a day or a month of UTC; the same again replaces it')
    .option(...organization)
    .option('--project <id>', 'only what a project uses', parseId)
    .option('--principal <id>', 'only what a user or an application uses', parseId)
    .option('--tokens <number>', 'tokens, input and output', parseTokens)
    .option('--money <amount>', 'in the currency of the installation: 12.50', parseMoney)
    .requiredOption('--period <period>', 'day or month')
    .option('--alert-only', 'tell, but refuse nothing')
    .action((options: BudgetOptions) => budget(readSettings(), options))
  limits
    .command('remove-budget')
    .description('remove a budget')
    .argument('<id>', 'as `parvis limits list` shows it', parseId)
    .option(...organization)
    .action((id: string, options: Where) =>
      withDatabase(readSettings(), async (database) => {
        done(
          await removeBudget(
            { db: database.db, actor: operatorHere() },
            { organizationId: await organizationOf(database, options.organization), id },
          ),
        )
        print('The budget is removed.')
      }),
    )
}
