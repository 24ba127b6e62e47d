import type { Command } from 'commander'
import type { Config } from '../config.ts'
import { linkUrl } from '../iam/links.ts'
import { findUser, invite, listOperatedUsers, type OperatedUser, setLocked, setPassword } from '../iam/operate-users.ts'
import { httpAddress } from '../kit/addresses.ts'
import { systemClock } from '../kit/clock.ts'
import { isUuid } from '../kit/ids.ts'
import { askSecret } from './ask-secret.ts'
import { operatorHere } from './operator.ts'
import { type CommandDatabase, installed, withDatabase } from './with-database.ts'

const print = (text: string): void => void process.stdout.write(`${text}\n`)

type Which = { organization?: string }

const must = async ({ db }: CommandDatabase, login: string, { organization }: Which): Promise<OperatedUser> => {
  if (organization !== undefined && !isUuid(organization)) throw new Error('--organization takes the id of an organization.')
  const user = await findUser(db, login, organization)
  if (user === undefined) throw new Error(`There is no user ${login}. \`parvis users list\` shows those there are.`)
  return user
}

const stateOf = (user: OperatedUser): string => {
  if (user.locked) return 'locked'
  if (user.signInLocked) return 'locked by wrong passwords'
  if (!user.activated) return 'invited'
  return user.hasPassword ? 'active' : 'no password'
}

const list = async (config: Config, { json }: { json?: boolean }): Promise<void> => {
  const users = await withDatabase(config, async (database) => {
    await installed(database)
    return listOperatedUsers(database.db)
  })
  if (json === true) {
    const rows = users.map((user) => ({
      id: user.id,
      username: user.username,
      email: user.email,
      role: user.role,
      state: stateOf(user),
      last_login_at: user.lastLoginAt?.toISOString() ?? null,
      organization_id: user.organizationId,
      organization: user.organization,
    }))
    return print(JSON.stringify(rows, null, 2))
  }
  for (const user of users) {
    const login = user.lastLoginAt === null ? 'never signed in' : `last signed in ${user.lastLoginAt.toISOString()}`
    const email = user.email === '' || user.email === user.username ? '' : `  ${user.email}`
    print(`${user.username}${email}  ${user.role} of ${user.organization}  ${stateOf(user)}  ${login}`)
  }
}

const bringIn = async (config: Config, login: string, { organization }: Which): Promise<void> => {
  if (organization !== undefined && !isUuid(organization)) throw new Error('--organization takes the id of an organization.')
  const { user, link, made } = await withDatabase(config, async (database) => {
    const { organizationId } = await installed(database)
    const into = (organization ?? organizationId) as typeof organizationId
    const parts = { db: database.db, secrets: database.secrets, now: systemClock.now() }
    return invite(parts, { login, organizationId: organization, into }, operatorHere())
  })
  const base = config.publicUrl ?? httpAddress(config.host, config.port)
  if (made) print(`${login} is a new member of ${user.organization}, without any rights so far.`)
  print(`This link lets ${user.username} in and asks for a password. It works once, until ${link.expiresAt.toISOString()}:`)
  print(linkUrl(base, 'invitation', link.token))
}

const choose = async (config: Config, login: string, which: Which): Promise<void> =>
  withDatabase(config, async (database) => {
    await installed(database)
    const user = await must(database, login, which)
    const password = await askSecret(`Password for ${user.username}: `)
    if (process.stdin.isTTY && (await askSecret('The same again: ')) !== password) throw new Error('These are two different passwords.')
    await setPassword(database, user, password, operatorHere())
    print(`${user.username} of ${user.organization} signs in with it now. Whoever was signed in as ${user.username} no longer is.`)
  })

const lock = async (config: Config, login: string, which: Which, locked: boolean): Promise<void> =>
  withDatabase(config, async (database) => {
    await installed(database)
    const user = await must(database, login, which)
    await setLocked(database.db, user, locked, operatorHere())
    print(
      `${user.username} of ${user.organization} is ${locked ? 'locked. Its keys and sessions stop working within a second' : 'unlocked'}.`,
    )
  })

/** Whoever runs the machine lets people in: the owner at first, and whoever is locked out later. */
export const registerUsers = (program: Command, readSettings: () => Config): void => {
  const users = program.command('users').description('let people in, and keep them out')
  const WHICH = ['--organization <id>', 'where the user is, if several organizations have one of that name'] as const
  users
    .command('list')
    .description('list the people of all organizations')
    .option('--json', 'print JSON')
    .action((options: { json?: boolean }) => list(readSettings(), options))
  users
    .command('invite')
    .description('print a link that lets somebody in, once and within a week; somebody new becomes a member')
    .argument('<user>', 'a username, or an address of e-mail')
    .option(...WHICH)
    .action((login: string, options: Which) => bringIn(readSettings(), login, options))
  users
    .command('set-password')
    .description('ask for a password and give it to a user; from a pipe, the first line is it')
    .argument('<user>', 'a username, or an address of e-mail')
    .option(...WHICH)
    .action((login: string, options: Which) => choose(readSettings(), login, options))
  for (const [name, locked, what] of [
    ['lock', true, 'shut a user out: keys and sessions stop working'],
    ['unlock', false, 'let a user in again, also after too many wrong passwords'],
  ] as const) {
    users
      .command(name)
      .description(what)
      .argument('<user>', 'a username, or an address of e-mail')
      .option(...WHICH)
      .action((login: string, options: Which) => lock(readSettings(), login, options, locked))
  }
}
