// `node scripts/complete-lock.mjs`: gives the lock file an entry for every package that it names. npm leaves out those that its registry does not
// have, as a mirror may that keeps what its own system needs; `npm ci` refuses such a file, and nobody elsewhere gets what was left out. All of
// them are builds for another system, told by their names; without a checksum, which nobody here could compute. `--check` only looks. Another file
// may be named.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fail, ROOT } from './lib.mjs'

const SYSTEMS = { mac: 'darwin', win: 'win32', windows: 'win32' }
for (const name of ['aix', 'android', 'darwin', 'freebsd', 'linux', 'netbsd', 'openbsd', 'openharmony', 'sunos', 'win32'])
  SYSTEMS[name] = name
const PROCESSORS = { armv7l: 'arm' }
for (const name of ['arm', 'arm64', 'ia32', 'loong64', 'mips64el', 'ppc64', 'riscv64', 's390x', 'x64']) PROCESSORS[name] = name

const file = process.argv.slice(2).find((argument) => argument !== '--check') ?? join(ROOT, 'package-lock.json')
const lock = JSON.parse(readFileSync(file, 'utf8'))

/** Where a package finds another one: beside itself, or beside whoever it lies in. */
const isThere = (path, name) => {
  for (let place = path; ; place = place.slice(0, Math.max(0, place.lastIndexOf('/node_modules/')))) {
    if (lock.packages[`${place === '' ? '' : `${place}/`}node_modules/${name}`] !== undefined) return true
    if (place === '') return false
  }
}

const entryOf = (name, version, dev) => {
  const words = name.split('/').at(-1).split('-')
  const os = words.map((word) => SYSTEMS[word]).find(Boolean)
  const cpu = words.map((word) => PROCESSORS[word]).find(Boolean)
  if (os === undefined || cpu === undefined || !/^\d+\.\d+\.\d+/.test(version))
    fail(`${name}@${version} is not in the lock file, and its name and version do not tell what it is.`)
  const libc = words.includes('musl') ? ['musl'] : words.includes('gnu') ? ['glibc'] : undefined
  return { version, cpu: [cpu], ...(dev && { dev }), ...(libc && { libc }), optional: true, os: [os] }
}

const missing = Object.entries(lock.packages).flatMap(([path, { dev, dependencies = {}, optionalDependencies = {} }]) => [
  ...Object.keys(dependencies).flatMap((name) => (isThere(path, name) ? [] : fail(`${name} is not in the lock file.`))),
  ...Object.entries(optionalDependencies).flatMap(([name, version]) =>
    isThere(path, name) ? [] : [[`node_modules/${name}`, entryOf(name, version, dev)]],
  ),
])
if (process.argv.includes('--check')) {
  if (missing.length > 0) fail(`The lock file lacks ${missing.length} packages: run node scripts/complete-lock.mjs.`)
} else {
  const packages = Object.entries({ ...lock.packages, ...Object.fromEntries(missing) })
  lock.packages = Object.fromEntries(packages.sort(([one], [other]) => one.localeCompare(other, 'en')))
  writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`)
  console.log(`${missing.length} packages added`)
}
