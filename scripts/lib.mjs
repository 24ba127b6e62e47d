// What every script of this repository begins with: a Node that is new enough, packages as the lock file has them, a fresh build.
// Plain JavaScript with no dependencies, since it runs before anything is installed.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)))
const WORKSPACES = ['packages/wire', 'packages/client', 'apps/engine', 'apps/server', 'packages/testkit']
const STAMP = join(ROOT, 'node_modules', '.parvis-lock')

export const fail = (message) => {
  console.error(message)
  process.exit(1)
}

/** Runs a command with our own input and output; ends the script with the command's code when it fails. */
const run = (command, args, options = {}) => {
  const done = spawnSync(command, args, { cwd: ROOT, stdio: 'inherit', ...options })
  if (done.error) fail(`${command} could not be started: ${done.error.message}`)
  if (done.status !== 0) process.exit(done.status ?? 1)
}

const checkNode = () => {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`Parvis needs Node 20.19 or newer; this is ${process.versions.node}. Install a newer one and run the command again.`)
  }
}

const lockHash = () =>
  createHash('sha256')
    .update(readFileSync(join(ROOT, 'package-lock.json')))
    .digest('hex')

const install = () => {
  const wanted = lockHash()
  if (existsSync(STAMP) && readFileSync(STAMP, 'utf8') === wanted) return
  const installed = join(ROOT, 'node_modules', '.package-lock.json')
  // Somebody may have run npm by hand; what npm wrote after the lock file last changed is good too.
  const fresh = existsSync(installed) && statSync(installed).mtimeMs >= statSync(join(ROOT, 'package-lock.json')).mtimeMs
  if (!fresh) {
    console.error('Installing packages …')
    const npm = process.env.npm_execpath
    // Not `npm ci`: it would take away and bring again all packages for one that has changed.
    const args = ['install', '--no-save', '--include=dev', '--include=optional', '--loglevel=error']
    if (npm?.endsWith('.js')) run(process.execPath, [npm, ...args])
    else run('npm', args, { shell: process.platform === 'win32' })
  }
  writeFileSync(STAMP, wanted)
}

const newest = (folder) =>
  readdirSync(folder, { withFileTypes: true }).reduce((latest, entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return Math.max(latest, newest(path))
    return entry.name.endsWith('.ts') ? Math.max(latest, statSync(path).mtimeMs) : latest
  }, 0)

const build = () => {
  const stale = WORKSPACES.some((workspace) => {
    const info = join(ROOT, workspace, 'dist', '.tsbuildinfo')
    return !existsSync(info) || statSync(info).mtimeMs < newest(join(ROOT, workspace, 'src'))
  })
  if (!stale) return
  console.error('Building …')
  run(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc'), '-b'])
  // tsc leaves the file of an unchanged project alone; touching it says that this project was looked at.
  const now = new Date()
  for (const workspace of WORKSPACES) utimesSync(join(ROOT, workspace, 'dist', '.tsbuildinfo'), now, now)
}

/** Everything a command needs before it can run. Does nothing, quickly, when nothing has changed. */
export const prepare = () => {
  checkNode()
  install()
  build()
}
