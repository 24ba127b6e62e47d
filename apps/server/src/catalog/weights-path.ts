import { isAbsolute, join, posix, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

/**
 * Where weights lie. A row says `builtin:tiny-chat/x.gguf` or `pulled:org/repo/x.gguf`, so that the repository and the data
 * directory may move; a file that the operator wants to stay where it is stands there with its absolute path.
 */
export type WeightsDirs = { readonly builtin: string; readonly pulled: string }

/** The models that come with the repository. */
export const BUILTIN_MODELS_DIR = fileURLToPath(new URL('../../../../models', import.meta.url))

/** Where pulled files are kept. */
export const pulledDir = (dataDir: string): string => join(dataDir, 'models')

/** Segments of a relative path that stays where it belongs. */
export const isInside = (path: string): boolean =>
  path !== '' &&
  !path.includes('\\') &&
  !path.includes('\0') &&
  path.split('/').every((segment) => segment !== '' && segment !== '.' && segment !== '..')

const STORED = /^(builtin|pulled):(.+)$/

export const isStoredWeights = (stored: string): boolean => {
  const match = STORED.exec(stored)
  return match === null ? isAbsolute(stored) && !stored.includes('\0') : isInside(match[2] ?? '')
}

/** The file behind a stored path. */
export const resolveWeights = (dirs: WeightsDirs, stored: string): string => {
  // The row may have been written by hand; a path that leaves its directory would let it name any file of the machine.
  if (!isStoredWeights(stored)) throw new Error(`The weights path ${JSON.stringify(stored)} is neither builtin:…, pulled:… nor absolute.`)
  const match = STORED.exec(stored)
  return match === null ? stored : join(match[1] === 'builtin' ? dirs.builtin : dirs.pulled, match[2] ?? '')
}

/** The other way: what to store for a file. */
export const storeWeights = (dirs: WeightsDirs, path: string): string => {
  const absolute = resolve(path)
  for (const place of ['builtin', 'pulled'] as const) {
    const inside = relative(dirs[place], absolute).split(sep).join(posix.sep)
    if (isInside(inside) && !isAbsolute(inside)) return `${place}:${inside}`
  }
  return absolute
}
