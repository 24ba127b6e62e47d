// `npm run check`: format, lint with types, types, dead code, lock file. Everything is run even when something fails, and each says its own.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { prepare, ROOT } from './lib.mjs'

prepare()

const bin = (name) => join(ROOT, 'node_modules', '.bin', name)
/** @type {[name: string, command: string, args: string[]][]} */
const steps = [
  ['format', bin('biome'), ['check', '--linter-enabled=false', '.']],
  ['lint', bin('oxlint'), ['--type-aware', '--deny-warnings', '.']],
  ['types', bin('tsc'), ['-p', 'tsconfig.check.json']],
  ['dead code', bin('knip'), ['--no-progress']],
  ['lock file', process.execPath, [join(ROOT, 'scripts', 'complete-lock.mjs'), '--check']],
]

const failed = steps.filter(([name, command, args]) => {
  const done = spawnSync(command, args, { cwd: ROOT, stdio: 'inherit', shell: process.platform === 'win32' })
  console.error(`${done.status === 0 ? '✓' : '✗'} ${name}`)
  return done.status !== 0
})
console.log(`${steps.length - failed.length} passed, ${failed.length} failed`)
process.exit(failed.length === 0 ? 0 : 1)
