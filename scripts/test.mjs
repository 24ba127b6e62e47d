// `npm test`: installs and builds when needed, then runs every test that needs no browser and no cluster:
// once against the embedded PostgreSQL that npm brings, and the tests of the house once more against the system's PostgreSQL (15 or newer).
//
//   npm test                          everything
//   npm test -- --only embedded       one of: embedded, system
//   npm test -- apps/server/src/iam   only files whose path contains this (both databases)
//
// The second PostgreSQL is the machine's (as root on Debian it is installed), or the one that PARVIS_TEST_DATABASE_URL names.
//
// Up to three tests that fail are run once more, their files alone; what passes then is named as "unsteady". The last line is "N passed, N failed".
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { fail, prepare, ROOT } from './lib.mjs'

const given = process.argv.slice(2)
if (given.includes('--help') || given.includes('-h')) {
  console.log(
    readFileSync(new URL(import.meta.url), 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('//'))
      .map((line) => line.slice(3))
      .join('\n'),
  )
  process.exit(0)
}
const onlyAt = given.indexOf('--only')
const only = onlyAt < 0 ? undefined : given.splice(onlyAt, 2)[1]
if (only !== undefined && only !== 'embedded' && only !== 'system')
  fail(`--only takes "embedded" or "system", not ${JSON.stringify(only ?? '')}.`)

const DEBIAN_POSTGRES = '/usr/lib/postgresql'
const MIN_POSTGRES = 15

const systemPostgres = () =>
  existsSync(DEBIAN_POSTGRES) &&
  readdirSync(DEBIAN_POSTGRES).some(
    (version) => Number(version) >= MIN_POSTGRES && existsSync(join(DEBIAN_POSTGRES, version, 'bin', 'initdb')),
  )

const isRoot = process.getuid?.() === 0

/** A second database server to test against: the one thing that npm does not bring. Asked for first, not when half of the tests have run. */
const ensureSystemPostgres = () => {
  if (systemPostgres() || process.env.PARVIS_TEST_DATABASE_URL) return
  const apt = isRoot && existsSync('/usr/bin/apt-get')
  if (apt) {
    console.error('Installing postgresql for the tests …')
    const quiet = { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } }
    spawnSync('apt-get', ['update', '-qq'], quiet)
    spawnSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', 'postgresql'], quiet)
  }
  if (!systemPostgres()) {
    fail(
      `The tests also run against a PostgreSQL ${MIN_POSTGRES} or newer that npm does not bring. Install one ("apt-get install postgresql" on Debian and Ubuntu), ` +
        'or name one with PARVIS_TEST_DATABASE_URL=postgres://…, or leave that half out with: npm test -- --only embedded',
    )
  }
}

prepare()

const results = mkdtempSync(join(tmpdir(), 'parvis-test-'))
const total = { passed: 0, failed: 0 }
const said = []

/** More than so many failures at once are no noise of the machine: they get no second try. */
const MAX_SECOND_TRIES = 3

const run = (name, args, env) => {
  console.error(`\n── ${name}`)
  const outputFile = join(results, `${name.replaceAll(/\W+/g, '-')}.json`)
  const done = spawnSync(
    process.execPath,
    [
      join(ROOT, 'node_modules', 'vitest', 'vitest.mjs'),
      'run',
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${outputFile}`,
      ...args,
    ],
    { cwd: ROOT, stdio: 'inherit', env: { ...process.env, ...env } },
  )
  const report = existsSync(outputFile) ? JSON.parse(readFileSync(outputFile, 'utf8')) : { numPassedTests: 0, testResults: [] }
  const failed = report.testResults.flatMap((file) => {
    const path = relative(ROOT, file.name)
    const tests = file.assertionResults
      .filter((test) => test.status === 'failed')
      .map((test) => ({ path, name: test.fullName, why: test.failureMessages[0]?.split('\n')[0] ?? '' }))
    return tests.length === 0 && file.status === 'failed' ? [{ path, name: 'the file', why: 'does not load' }] : tests
  })
  // A run that ends badly without a failed test (an unhandled rejection) is a failure too.
  if (done.status !== 0 && failed.length === 0) failed.push({ path: name, name: 'the run', why: 'ended badly' })
  return { passed: report.numPassedTests, failed }
}

/**
 * A test that failed is run once more, its file alone: shared machines stall for seconds. What passes then is counted, and named as
 * unsteady, so that nobody overlooks it; what fails twice has failed.
 */
const vitest = (name, args, env) => {
  const first = run(name, [...args, ...given], env)
  const files = [...new Set(first.failed.map((test) => test.path))].filter((path) => existsSync(join(ROOT, path)))
  const again = first.failed.length > 0 && first.failed.length <= MAX_SECOND_TRIES && files.length > 0
  const second = again ? run(`${name}, second try`, [...args, ...files], env) : { failed: first.failed }
  const isSame = (test) => (other) => other.path === test.path && other.name === test.name
  const unsteady = first.failed.filter((test) => files.includes(test.path) && !second.failed.some(isSame(test)))
  const failed = [
    ...first.failed.filter((test) => !unsteady.includes(test)),
    ...second.failed.filter((test) => !first.failed.some(isSame(test))),
  ]
  total.passed += first.passed + unsteady.length
  total.failed += failed.length
  for (const test of unsteady) said.push(`unsteady: ${name}: ${test.path}: ${test.name} (${test.why})`)
  for (const test of failed) said.push(`failed: ${name}: ${test.path}: ${test.name} (${test.why})`)
}

if (only !== 'embedded') ensureSystemPostgres()
if (only !== 'system') vitest('embedded PostgreSQL', [], { PARVIS_TEST_DATABASE: 'embedded' })
if (only !== 'embedded') {
  vitest('system PostgreSQL', ['--project', 'house', ...(given.length > 0 ? ['--passWithNoTests'] : [])], {
    PARVIS_TEST_DATABASE: 'system',
  })
}

rmSync(results, { recursive: true, force: true })
for (const line of said) console.log(line)
console.log(`\n${total.passed} passed, ${total.failed} failed`)
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1)
