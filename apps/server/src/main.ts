import { Command, CommanderError } from 'commander'
import { registerBill } from './cli/bill.ts'
import { registerDoctor } from './cli/doctor.ts'
import { registerEngines } from './cli/engines.ts'
import { registerKeys } from './cli/keys.ts'
import { registerLimits } from './cli/limits.ts'
import { registerModels } from './cli/models.ts'
import { registerOrganizations } from './cli/organizations.ts'
import { registerServe } from './cli/serve.ts'
import { registerUsage } from './cli/usage.ts'
import { registerUsers } from './cli/users.ts'
import { type Config, readConfig, SETTINGS } from './config.ts'
import { VERSION } from './version.ts'

const settingsHelp = (): string =>
  [
    'Settings, by environment or in parvis.yaml:',
    ...SETTINGS.map(({ env, yaml, default: value, what }) => `  ${env} (${yaml})\n      ${what} Default: ${value}.`),
  ].join('\n')

const program = new Command('parvis')
  .description('Your own generative-AI cloud: OpenAI-compatible endpoints, keys and exact usage on your own machines.')
  .version(VERSION)
  .option('--config <file>', 'settings file; without it ./parvis.yaml, then parvis.yaml in the data directory')
  .option('--data-dir <directory>', 'data directory, instead of PARVIS_DATA_DIR')
  .addHelpText('after', '\n`parvis serve --help` lists the settings.')
  .showHelpAfterError()
  .exitOverride()

const readSettings = (values: Readonly<Record<string, unknown>> = {}): Config => {
  const given = program.opts<{ config?: string; dataDir?: string }>()
  return readConfig(process.env, process.cwd(), { configPath: given.config, values: { dataDir: given.dataDir, ...values } })
}

// Whoever reads our output may have seen enough (`| head`); the command comes to its end all the same, and closes what it opened.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
})

registerServe(program, readSettings, settingsHelp)
registerDoctor(program, readSettings)
registerKeys(program, readSettings)
registerLimits(program, readSettings)
registerModels(program, readSettings)
registerBill(program, readSettings)
registerEngines(program, readSettings, { env: process.env })
registerUsage(program, readSettings)
registerUsers(program, readSettings)
registerOrganizations(program, readSettings)

/** The first word, where it is no command: `serve` is the default, and would complain that it takes none. */
const strangeWord = (): string | undefined => {
  const [word] = program.parseOptions(process.argv.slice(2)).operands
  return word === 'help' || program.commands.some((command) => command.name() === word) ? undefined : word
}

try {
  const strange = strangeWord()
  if (strange !== undefined) {
    const meant = program.commands.map((command) => command.name()).find((name) => name.startsWith(strange) || strange.startsWith(name))
    const asked = meant === undefined ? '' : ` Did you mean ${meant}?`
    throw new Error(`There is no command ${strange}.${asked} \`parvis --help\` lists them.`)
  }
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has already said what is wrong; help and version are not failures.
    process.exitCode = error.exitCode
  } else {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)

    process.exitCode = 1
  }
}
