import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, rename, rm, rmdir, stat, statfs } from 'node:fs/promises'
import { homedir } from 'node:os'
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { Clock } from '../../kit/clock.ts'
import { type Hold, isHolder, nameOf, tryHold } from '../../kit/data-dir.ts'
import { resolveWeights, storeWeights, type WeightsDirs } from '../weights-path.ts'
import { type Gguf, readGguf } from './gguf.ts'
import { type Hub, type HubLimits, openHub, type RepoFile } from './hub.ts'
import { chooseFiles, modelName, parseReference, partPath, type Reference, readFileName } from './reference.ts'
import { formatBytes } from './size.ts'
import { hashFile, partialBytes, patiently, RETRIES, type RemoteFile, type Retries, transferFile } from './transfer.ts'

/** What a reference turned out to be, before anything of it is fetched. */
export type Found = {
  /** What to call it when nobody says otherwise. */
  readonly name: string
  readonly ownedBy: string
  /** As the hub states it; the file itself may state another. */
  readonly licence: string | null
  /** Where it comes from, for people: `org/repo@commit:file`, or a path. */
  readonly source: string
  readonly files: readonly string[]
  readonly bytes: number
  /** Why these files, when nobody named them. */
  readonly because: string | undefined
}

export type Pulled = {
  readonly found: Found
  /** As the catalogue stores it: of several parts the first one's path, all their bytes, and the digest of their digests. */
  readonly weights: { readonly path: string; readonly bytes: number; readonly sha256: string }
  readonly gguf: Gguf
  /** False when everything was there already. */
  readonly fetched: boolean
}

export type Progress = { readonly receivedBytes: number; readonly totalBytes: number }

export type PullOptions = {
  readonly reference: string
  readonly revision?: string | undefined
  readonly endpoint: string
  readonly token: string | undefined
  readonly weightsDirs: WeightsDirs
  readonly clock: Clock
  readonly signal: AbortSignal
  /** A local file is used where it lies instead of being copied. */
  readonly inPlace?: boolean
  /** Told what was found before anything is fetched; what it throws ends the pull. */
  readonly onFound?: (found: Found) => void | Promise<void>
  readonly onProgress?: (progress: Progress) => void
  readonly retries?: Partial<Retries>
  readonly limits?: Partial<HubLimits>
}

/** What stays free on the disk: the database and the journal may live on the same one. */
const SPARE_BYTES = 256 * 1024 * 1024
/** A hub that does not answer at all is reported soon; a transfer that breaks is worth more patience. */
const FIRST_CONTACT_ATTEMPTS = 3
const KEY_LENGTH = 12

const keyOf = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, KEY_LENGTH)

const sizeOf = (path: string): Promise<number | undefined> =>
  stat(path).then(
    (found) => (found.isFile() ? found.size : undefined),
    () => undefined,
  )

const requireSpace = async (directory: string, neededBytes: number): Promise<void> => {
  if (neededBytes === 0) return
  const disk = await statfs(directory)
  const free = disk.bavail * disk.bsize
  if (neededBytes + SPARE_BYTES > free) {
    throw new Error(
      `There is not enough space in ${directory}: ${formatBytes(neededBytes)} are needed and ${formatBytes(SPARE_BYTES)} shall stay free, ${formatBytes(free)} are free.`,
    )
  }
}

/** One digest for a model in several files. */
const combine = (digests: readonly string[]): string =>
  digests.length === 1 ? (digests[0] ?? '') : createHash('sha256').update(digests.join('\n')).digest('hex')

/** Reads every part, and makes sure that they are the parts of one model. `shown` is what a person knows a file as. */
const readParts = async (paths: readonly string[], shown: (path: string) => string): Promise<Gguf> => {
  const parts: Gguf[] = []
  for (const [index, path] of paths.entries()) parts.push(await readPart(path, index, paths.length, shown(path)))
  const first = parts[0]
  if (first === undefined) throw new Error('no file to read')
  const sum = (of: (part: Gguf) => number): number => parts.reduce((total, part) => total + of(part), 0)
  return { ...first, parameters: sum((part) => part.parameters), tensors: sum((part) => part.tensors), bytes: sum((part) => part.bytes) }
}

const readPart = async (path: string, index: number, parts: number, shown: string): Promise<Gguf> => {
  const gguf = await readGguf(path, shown)
  if (gguf.parts !== parts || (parts > 1 && gguf.part !== index)) {
    throw new Error(`${shown} is part ${gguf.part + 1} of ${gguf.parts} by its header, and part ${index + 1} of ${parts} by its name.`)
  }
  return gguf
}

type Remote = { readonly file: RemoteFile; readonly target: string }

const findOnHub = async (hub: Hub, reference: Extract<Reference, { kind: 'hub' }>, options: PullOptions, retries: Retries) => {
  const { clock, signal } = options
  const soon = { ...retries, attempts: Math.min(retries.attempts, FIRST_CONTACT_ATTEMPTS) }
  const repo = await patiently(() => hub.describe(reference.repo, options.revision, signal), soon, clock, signal).catch(
    (error: unknown) => {
      signal.throwIfAborted()
      if (!(error instanceof Error) || !/cannot be reached/.test(error.message)) throw error
      throw new Error(
        `${error.message}. Check the connection, set HF_ENDPOINT to a mirror, or pull a file that is here already: parvis models pull ./model.gguf`,
        { cause: error },
      )
    },
  )
  const choice = chooseFiles(repo.name, repo.files, reference)

  const complete = async (file: RepoFile): Promise<RemoteFile> => {
    const known = { repo: repo.name, revision: repo.revision, path: file.path }
    if (file.bytes !== null && file.sha256 !== null) return { ...known, bytes: file.bytes, sha256: file.sha256 }
    const asked = await patiently(() => hub.stat(repo.name, repo.revision, file.path, signal), soon, clock, signal)
    const bytes = file.bytes ?? asked.bytes
    if (bytes === null) throw new Error(`The hub at ${hub.endpoint} does not say how large ${repo.name}:${file.path} is.`)
    return { ...known, bytes, sha256: file.sha256 ?? asked.sha256 }
  }
  const files: RemoteFile[] = []
  for (const file of choice.files) files.push(await complete(file))

  const first = files[0]
  if (first === undefined) throw new Error(`${repo.name} has no file to pull.`)
  // The folder is named by the content: two states of a repository never meet in one file, and the same content is fetched once.
  const folder = join(
    options.weightsDirs.pulled,
    ...repo.name.split('/'),
    first.sha256?.slice(0, KEY_LENGTH) ?? keyOf(`${first.revision}:${first.path}`),
  )
  const remotes: Remote[] = files.map((file) => ({ file, target: join(folder, basename(file.path)) }))
  const found: Found = {
    name: modelName(first.path, repo.name),
    ownedBy: (repo.name.split('/')[0] ?? repo.name).toLowerCase(),
    licence: repo.licence,
    source: `${repo.name}@${repo.revision.slice(0, KEY_LENGTH)}:${first.path}`,
    files: files.map((file) => file.path),
    bytes: files.reduce((total, file) => total + file.bytes, 0),
    because: choice.because,
  }
  return { found, remotes, folder }
}

/** One writer for each file, in whatever process. */
const holdFile = async (path: string, what: string): Promise<Hold> => {
  const result = await tryHold(`${path}.lock`, what)
  if (!isHolder(result)) return result
  throw new Error(`${what} is being fetched by another command already (${nameOf(result)}).`)
}

const pullFromHub = async (reference: Extract<Reference, { kind: 'hub' }>, options: PullOptions): Promise<Pulled> => {
  const { clock, signal } = options
  const retries = { ...RETRIES, ...options.retries }
  const hub = openHub({
    endpoint: options.endpoint,
    token: options.token,
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  })
  try {
    const { found, remotes, folder } = await findOnHub(hub, reference, options, retries)
    await options.onFound?.(found)

    const shown = (path: string): string => `${reference.repo}:${basename(path).replace(/\.partial$/, '')}`
    await mkdir(folder, { recursive: true })
    // The lock is taken before anything is looked at, so that what is seen to be there is not half of somebody else's work.
    const lock = await holdFile(join(folder, basename(remotes[0]?.target ?? folder)), found.source)
    try {
      const digests: (string | undefined)[] = []
      for (const { file, target } of remotes) digests.push(await digestIfComplete(file, target, signal))
      let missing = 0
      for (const [index, { file, target }] of remotes.entries()) {
        if (digests[index] === undefined) missing += file.bytes - (await partialBytes(target, file))
      }
      await requireSpace(folder, missing)

      const fetched = digests.includes(undefined)
      let before = 0
      for (const [index, { file, target }] of remotes.entries()) {
        const onProgress = (received: number): void => options.onProgress?.({ receivedBytes: before + received, totalBytes: found.bytes })
        if (digests[index] === undefined) {
          const check = async (path: string): Promise<void> => void (await readPart(path, index, remotes.length, shown(path)))
          digests[index] = (await transferFile({ hub, file, target, clock, signal, retries, onProgress, check })).sha256
        }
        before += file.bytes
        onProgress(0)
      }
      const targets = remotes.map(({ target }) => target)
      const gguf = await readParts(targets, shown)
      const weights = {
        path: storeWeights(options.weightsDirs, targets[0] ?? ''),
        bytes: found.bytes,
        sha256: combine(digests.map((digest) => digest ?? '')),
      }
      return { found, weights, gguf, fetched }
    } finally {
      await lock.release()
      await removeEmpty(folder, options.weightsDirs.pulled)
    }
  } finally {
    await hub.close()
  }
}

const digestIfComplete = async (file: RemoteFile, target: string, signal: AbortSignal): Promise<string | undefined> => {
  if ((await sizeOf(target)) !== file.bytes) return undefined
  const hash = createHash('sha256')
  await hashFile(target, hash, signal)
  const sha256 = hash.digest('hex')
  return file.sha256 === null || file.sha256 === sha256 ? sha256 : undefined
}

/** Folders that a failed or a removed pull has left, up to the one that holds them all. */
const removeEmpty = async (folder: string, root: string): Promise<void> => {
  for (let directory = folder; isBelow(directory, root); directory = dirname(directory)) {
    if (
      !(await rmdir(directory).then(
        () => true,
        () => false,
      ))
    )
      return
  }
}

const isBelow = (path: string, root: string): boolean => {
  const inside = relative(root, path)
  return inside !== '' && inside.split(sep)[0] !== '..' && !isAbsolute(inside)
}

const pullFromDisk = async (reference: Extract<Reference, { kind: 'file' }>, options: PullOptions): Promise<Pulled> => {
  const { signal, weightsDirs } = options
  const given = resolve(reference.path.replace(/^~(?=\/)/, homedir()))
  const { parts } = readFileName(given)
  const paths = parts === 1 ? [given] : Array.from({ length: parts }, (_, index) => partPath(given, index + 1))
  const sizes: number[] = []
  for (const path of paths) {
    const bytes = await sizeOf(path)
    if (bytes === undefined) {
      throw new Error(
        `There is no file ${path}.${reference.path.includes('/') ? '' : ' For a model of the hub write org/repo, or org/repo:file.gguf.'}`,
      )
    }
    sizes.push(bytes)
  }
  const gguf = await readParts(paths, (path) => path)
  const found: Found = {
    name: modelName(given, undefined, gguf.name),
    ownedBy: 'local',
    licence: null,
    source: given,
    files: paths,
    bytes: sizes.reduce((total, size) => total + size, 0),
    because: undefined,
  }
  await options.onFound?.(found)

  // What lies in one of our own folders is used there; to copy it would only double it.
  const inPlace = options.inPlace === true || !storeWeights(weightsDirs, given).startsWith(sep)
  let before = 0
  const watch = (bytes: number): void => options.onProgress?.({ receivedBytes: before + bytes, totalBytes: found.bytes })
  if (inPlace) {
    const digests: string[] = []
    for (const [index, path] of paths.entries()) {
      digests.push(await digestOf(path, undefined, watch, signal))
      before += sizes[index] ?? 0
    }
    return {
      found,
      weights: { path: storeWeights(weightsDirs, paths[0] ?? given), bytes: found.bytes, sha256: combine(digests) },
      gguf,
      fetched: false,
    }
  }

  const root = join(weightsDirs.pulled, 'local')
  await mkdir(root, { recursive: true })
  const incoming = join(root, `${keyOf(given)}.incoming`)
  const lock = await holdFile(incoming, given)
  try {
    await rm(incoming, { recursive: true, force: true }) // of a copy that was killed
    await requireSpace(root, found.bytes)
    await mkdir(incoming)
    const digests: string[] = []
    for (const [index, path] of paths.entries()) {
      digests.push(await digestOf(path, join(incoming, `${basename(path)}.partial`), watch, signal))
      before += sizes[index] ?? 0
    }
    const sha256 = combine(digests)
    // Read again: the file may have changed while it was copied, and the copy is what will run.
    const copies = paths.map((path) => join(incoming, `${basename(path)}.partial`))
    const copied = await readParts(copies, (path) => basename(path).replace(/\.partial$/, ''))
    const folder = join(root, sha256.slice(0, KEY_LENGTH))
    await mkdir(folder, { recursive: true })
    for (const [index, copy] of copies.entries()) await rename(copy, join(folder, basename(paths[index] ?? copy)))
    return {
      found,
      weights: { path: storeWeights(weightsDirs, join(folder, basename(paths[0] ?? given))), bytes: copied.bytes, sha256 },
      gguf: copied,
      fetched: true,
    }
  } finally {
    await rm(incoming, { recursive: true, force: true })
    await lock.release()
    await removeEmpty(root, weightsDirs.pulled)
  }
}

/** The digest of a file, copied on the way when there is somewhere to. */
const digestOf = async (path: string, copy: string | undefined, onBytes: (bytes: number) => void, signal: AbortSignal): Promise<string> => {
  const hash = createHash('sha256')
  let bytes = 0
  const watch = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      bytes += chunk.length
      onBytes(bytes)
      done(null, copy === undefined ? undefined : chunk)
    },
  })
  const read = createReadStream(path, { highWaterMark: 1024 * 1024 })
  if (copy === undefined) await pipeline(read, watch.resume(), { signal })
  else await pipeline(read, watch, createWriteStream(copy, { flush: true }), { signal })
  return hash.digest('hex')
}

/**
 * Brings the weights that a reference names onto this machine, and reads what they are. It adds nothing to the catalogue.
 * Run again after a break it goes on where it was; run again after success it finds everything there.
 */
export const pullModel = (options: PullOptions): Promise<Pulled> => {
  const reference = parseReference(options.reference)
  return reference.kind === 'hub' ? pullFromHub(reference, options) : pullFromDisk(reference, options)
}

/** Deletes pulled weights and the folders that held nothing else. What lies elsewhere is not ours to delete: false. */
export const deletePulled = async (weightsDirs: WeightsDirs, stored: string): Promise<boolean> => {
  if (!stored.startsWith('pulled:')) return false
  const path = resolveWeights(weightsDirs, stored)
  const { parts } = readFileName(path)
  for (let part = 1; part <= parts; part += 1) await rm(parts === 1 ? path : partPath(path, part), { force: true })
  await removeEmpty(dirname(path), weightsDirs.pulled)
  return true
}
