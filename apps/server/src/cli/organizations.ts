import { type Command, InvalidArgumentError } from 'commander'
import type { Config } from '../config.ts'
import { openChange } from '../iam/change.ts'
import {
  changeOrganization,
  makeOrganization,
  type OrganizationRow,
  type OrganizationState,
  readOrganizations,
} from '../iam/organizations.ts'
import { systemClock } from '../kit/clock.ts'
import type { Denial } from '../kit/denial.ts'
import { isUuid } from '../kit/ids.ts'
import type { Outcome } from '../kit/outcome.ts'
import { operatorHere } from './operator.ts'
import { type CommandDatabase, installed, withDatabase } from './with-database.ts'

const print = (text: string): void => void process.stdout.write(`${text}\n`)

const parseId = (text: string): string => {
  if (!isUuid(text)) throw new InvalidArgumentError('Give an id: a UUID in lower case. `parvis organizations list` shows them.')
  return text
}

const roomOf = async (database: CommandDatabase) => {
  const { organizationId: operatorId } = await installed(database)
  const { db, secrets } = database
  // No process of ours has to know of the change before this command ends.
  const change = openChange(db, { knowing: () => Promise.resolve() })
  return { db, secrets, change, iam: { clock: systemClock, operatorId } }
}

const sentence = (denial: Denial): string => {
  if (denial.type === 'invalid_arguments') return denial.details.map(({ help_message }) => `${help_message}.`).join(' ')
  if (denial.type === 'not_found')
    return `There is no organization ${denial.resource_id}. \`parvis organizations list\` shows those there are.`
  return 'help_message' in denial ? `${denial.help_message}.` : denial.type
}

const done = <T>(outcome: Outcome<T, Denial>): T => {
  if (!outcome.ok) throw new Error(sentence(outcome.refusal))
  return outcome.value
}

const toJson = (row: OrganizationRow) => ({
  id: row.id,
  name: row.name,
  state: row.state,
  owner: { id: row.owner_id, username: row.owner_username, email: row.owner_email },
  created_at: row.created_at.toISOString(),
})

const list = async (config: Config, { json }: { json?: boolean }): Promise<void> => {
  const rows = await withDatabase(config, async (database) => {
    await installed(database)
    return readOrganizations(database.db)
  })
  if (json === true) return print(JSON.stringify(rows.map(toJson), null, 2))
  for (const row of rows) print(`${row.id}  ${row.state.padEnd(9)}  ${row.name}  owner ${row.owner_username}`)
}

type CreateOptions = { owner: string; email?: string; json?: boolean }

const create = async (config: Config, name: string, options: CreateOptions): Promise<void> => {
  if (name.trim().length === 0 || name.length > 64) throw new Error('A name has 1 to 64 characters.')
  if (!/^[a-zA-Z0-9@._-]{2,64}$/.test(options.owner)) throw new Error('A username has 2 to 64 letters, digits, or any of @ . _ -')
  const { made, key } = await withDatabase(config, async (database) => {
    const asked = { id: undefined, name: name.trim(), username: options.owner, email: options.email }
    return done(await makeOrganization(await roomOf(database), operatorHere(), asked))
  })
  if (options.json === true)
    return print(JSON.stringify({ ...toJson(made), access_key: key?.accessKey ?? null, secret_key: key?.secretKey ?? null }, null, 2))
  print(`Organization: ${made.id}  ${made.name}`)
  print(`Owner:        ${made.owner_username}`)
  print(`Access key:   ${key?.accessKey ?? ''}`)
  print(`Secret key:   ${key?.secretKey ?? ''}`)
  print('The secret is shown this once; only a hash of it is kept. Its default project has the id of the organization.')
}

const change = async (config: Config, id: string, asked: { name?: string; state?: OrganizationState }): Promise<void> => {
  const row = await withDatabase(config, async (database) =>
    done(await changeOrganization(await roomOf(database), operatorHere(), id, asked)),
  )
  print(`${row.name} is ${row.state}. Running servers know it within a second.`)
}

export const registerOrganizations = (program: Command, readSettings: () => Config): void => {
  const organizations = program.command('organizations').description('those who are billed: make, rename, suspend and close them')
  organizations
    .command('list')
    .description('list the organizations of the installation')
    .option('--json', 'print JSON')
    .action((options: { json?: boolean }) => list(readSettings(), options))
  organizations
    .command('create')
    .description('make an organization with a default project, an owner, and the owner’s first key')
    .argument('<name>', 'what it is called')
    .option('--owner <username>', 'username of its owner', 'owner')
    .option('--email <address>', 'address of its owner')
    .option('--json', 'print JSON')
    .action((name: string, options: CreateOptions) => create(readSettings(), name, options))
  organizations
    .command('rename')
    .description('give an organization another name')
    .argument('<id>', 'id of the organization', parseId)
    .argument('<name>', 'the new name')
    .action((id: string, name: string) => change(readSettings(), id, { name }))
  for (const [command, state, what] of [
    ['suspend', 'suspended', 'take all rights away from its people and keys, until it is resumed'],
    ['resume', 'active', 'let a suspended organization go on'],
    ['close', 'closed', 'end an organization for good: its keys are deleted, its bills stay'],
  ] as const) {
    organizations
      .command(command)
      .description(what)
      .argument('<id>', 'id of the organization', parseId)
      .action((id: string) => change(readSettings(), id, { state }))
  }
}
