import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import type { Logger } from '../kit/log.ts'
import type { Secrets } from '../kit/secrets.ts'
import { addressToUrl } from './address.ts'
import type { Directory } from './directory.ts'

/** Who can be asked of our children, for a command that runs on the same machine. */
const Note = z.array(z.object({ name: z.string(), model: z.string(), url: z.url(), sealedBearer: z.base64() }))

/** A child of a server that runs, or ran, on this data directory. */
export type Child = { readonly name: string; readonly model: string; readonly url: string; readonly bearer: string }

const FILE = 'engines.json'

/**
 * Keeps a note of the children and how to ask them in the data directory, their keys sealed. It is gone when the server has stopped in
 * order; one that was killed leaves an old one, and whoever asks by it hears nobody.
 */
export const noteChildren = (options: {
  directory: Directory
  dataDir: string
  secrets: Secrets
  log: Logger
}): { close: () => Promise<void> } => {
  const { directory, secrets, log } = options
  const path = join(options.dataDir, FILE)
  let wanted = false
  let closed = false
  let writing: Promise<void> | undefined

  const children = () =>
    directory.all().flatMap(({ kind, state, name, serves, address, bearer }) =>
      kind === 'embedded' && state === 'ready' && address !== undefined && bearer !== undefined
        ? serves.map(({ modelName }) => ({
            name,
            model: modelName,
            url: addressToUrl(address),
            sealedBearer: secrets.seal(bearer).toString('base64'),
          }))
        : [],
    )

  const write = async (): Promise<void> => {
    while (wanted && !closed) {
      wanted = false
      try {
        await writeFile(`${path}.new`, JSON.stringify(children()), { mode: 0o600 })
        await rename(`${path}.new`, path)
      } catch (error) {
        log.warn({ err: error }, 'what embedded engines there are cannot be noted; `parvis usage reconcile` cannot ask them')
      }
    }
    writing = undefined
  }

  directory.watch({
    moved: ({ kind }) => {
      if (kind !== 'embedded') return
      wanted = true
      writing ??= write()
    },
  })
  return {
    close: async () => {
      closed = true
      await writing
      await Promise.all([path, `${path}.new`].map((each) => rm(each, { force: true })))
    },
  }
}

/** The children of the server on this data directory; none where it does not run. */
export const readChildren = async (dataDir: string, secrets: Secrets): Promise<readonly Child[]> => {
  const text = await readFile(join(dataDir, FILE), 'utf8').catch(() => '[]')
  return Note.parse(JSON.parse(text)).map(({ sealedBearer, ...child }) => ({
    ...child,
    bearer: secrets.unseal(Buffer.from(sealedBearer, 'base64')),
  }))
}
