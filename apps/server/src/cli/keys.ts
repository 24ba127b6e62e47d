import { type Command, InvalidArgumentError } from 'commander'
import type { Config } from '../config.ts'
import { createKey, isAccessKey, type Key, listKeys, revokeKey } from '../iam/keys.ts'
import { dateToInstant, type Instant, instantToDate, systemClock } from '../kit/clock.ts'
import { operatorHere } from './operator.ts'
import { installed, withDatabase } from './with-database.ts'

const HOUR_MS = 3_600_000
const UNIT_MS: Readonly<Record<string, number>> = { h: HOUR_MS, d: 24 * HOUR_MS, w: 7 * 24 * HOUR_MS }

/** `12h`, `7d`, `4w`. Months and years are not all the same length: those who mean one give the date. */
export const parseLifetimeMs = (text: string): number => {
  const [, count, unit] = /^([1-9]\d{0,4})([hdw])$/.exec(text) ?? []
  const unitMs = UNIT_MS[unit ?? '']
  if (count === undefined || unitMs === undefined) throw new InvalidArgumentError('Give a number and h, d or w: 12h, 7d, 4w.')
  return Number(count) * unitMs
}

const DATE = /^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2}))?$/

/** A day, which begins in UTC, or an instant with its zone. */
export const parseInstant = (text: string): Instant => {
  const date = new Date(text)
  if (!DATE.test(text) || Number.isNaN(date.getTime()))
    throw new InvalidArgumentError('Give a date like 2027-01-31 or 2027-01-31T12:00:00Z.')
  return dateToInstant(date)
}

const print = (text: string): void => void process.stdout.write(`${text}\n`)

const sayInstant = (instant: Instant | null): string => (instant === null ? 'never' : instantToDate(instant).toISOString())

const keyToJson = (key: Key) => ({
  access_key: key.accessKey,
  description: key.description,
  created_at: instantToDate(key.createdAt).toISOString(),
  expires_at: key.expiresAt === null ? null : instantToDate(key.expiresAt).toISOString(),
})

type CreateOptions = { description: string; expiresIn?: number; expiresAt?: Instant; json?: boolean }

const create = async (config: Config, options: CreateOptions): Promise<void> => {
  const expiresAt = options.expiresAt ?? (options.expiresIn === undefined ? null : ((systemClock.now() + options.expiresIn) as Instant))
  const key = await withDatabase(config, async (database) => {
    const { organizationId, ownerId } = await installed(database)
    return createKey(database.db, database.secrets, {
      organizationId,
      principalId: ownerId,
      description: options.description,
      expiresAt,
      actor: operatorHere(),
    })
  })
  if (options.json === true) {
    print(JSON.stringify({ ...keyToJson(key), secret_key: key.secretKey }, null, 2))
    return
  }
  print(`Access key:  ${key.accessKey}`)
  print(`Secret key:  ${key.secretKey}`)
  print(`Expires:     ${sayInstant(key.expiresAt)}`)
  print('The secret is shown this once; only a hash of it is kept.')
}

const list = async (config: Config, options: { json?: boolean }): Promise<void> => {
  const keys = await withDatabase(config, async (database) => listKeys(database.db, (await installed(database)).organizationId))
  if (options.json === true) {
    print(JSON.stringify(keys.map(keyToJson), null, 2))
    return
  }
  if (keys.length === 0) print('There are no keys. `parvis keys create` makes one.')
  const now = systemClock.now()
  for (const key of keys) {
    const expiry = key.expiresAt === null ? 'never expires' : `${key.expiresAt <= now ? 'expired' : 'expires'} ${sayInstant(key.expiresAt)}`
    print(`${key.accessKey}  created ${sayInstant(key.createdAt)}  ${expiry}  ${key.description}`.trimEnd())
  }
}

const revoke = async (config: Config, accessKey: string): Promise<void> => {
  // The secret is also a key to people; it is not repeated, since it would stay in the terminal's history a second time.
  if (!isAccessKey(accessKey)) throw new Error('Give the access key, which begins with SCW; `parvis keys list` shows them.')
  const revoked = await withDatabase(config, async (database) =>
    revokeKey(database.db, { organizationId: (await installed(database)).organizationId, accessKey, actor: operatorHere() }),
  )
  if (!revoked) throw new Error(`There is no key ${accessKey}. \`parvis keys list\` shows those there are.`)
  print(`${accessKey} is revoked. Running servers refuse it within a second.`)
}

export const registerKeys = (program: Command, readSettings: () => Config): void => {
  const keys = program.command('keys').description('make, list and revoke API keys')
  keys
    .command('create')
    .description("make a key for the installation's owner and show its secret, once")
    .option('--description <text>', 'what the key is for, at most 200 characters', '')
    .option('--expires-in <time>', 'lifetime: 12h, 7d, 4w', parseLifetimeMs)
    .option('--expires-at <date>', 'end of its life: 2027-01-31 or 2027-01-31T12:00:00Z', parseInstant)
    .option('--json', 'print JSON')
    .action((options: CreateOptions) => {
      if (options.expiresIn !== undefined && options.expiresAt !== undefined)
        throw new Error('Give --expires-in or --expires-at, not both.')
      return create(readSettings(), options)
    })
  keys
    .command('list')
    .description('list the keys; secrets are not kept and cannot be shown')
    .option('--json', 'print JSON')
    .action((options: { json?: boolean }) => list(readSettings(), options))
  keys
    .command('revoke')
    .description('make a key useless, for good')
    .argument('<access-key>', 'the public half, SCW and 17 letters or digits')
    .action((accessKey: string) => revoke(readSettings(), accessKey))
}
