import { open, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { basename, dirname } from 'node:path'

// A process number says nothing to another container: there it is nobody's, or a stranger's. A socket does, and Node has no flock: whoever
// may open the directory may connect, the kernel answers for us however busy we are, and refuses from the instant at which we are gone.

/** A socket's path has room for 107 bytes, a data directory may have more: so it is named by way of its directory, which is open meanwhile. */
const inDirectory = async <T>(path: string, work: (shortPath: string) => Promise<T>): Promise<T> => {
  const directory = await open(dirname(path), 'r')
  try {
    return await work(`/proc/self/fd/${directory.fd}/${basename(path)}`)
  } finally {
    await directory.close()
  }
}

export type SignOfLife = { end(): Promise<void> }

/** Listens at a path of its own until it is told to end or this process is gone, and never keeps a process running. Linux only. */
export const giveSignOfLife = async (path: string): Promise<SignOfLife> => {
  const server = createServer((visitor) => visitor.destroy())
  await inDirectory(
    path,
    (shortPath) =>
      new Promise<void>((resolve, reject) => {
        server.once('error', reject).listen({ path: shortPath, exclusive: true }, () => {
          server.off('error', reject)
          resolve()
        })
      }),
  )
  server.on('error', () => undefined) // a visitor that could not be let in has had its answer
  server.unref()
  return {
    end: async () => {
      server.close()
      await rm(path, { force: true })
    },
  }
}

/** Whether anybody listens at a path, in whatever container. What is neither yes nor no is thrown. */
export const answersAt = async (path: string): Promise<boolean> => {
  try {
    return await inDirectory(
      path,
      (shortPath) =>
        new Promise<boolean>((resolve, reject) => {
          const visitor = connect(shortPath)
          visitor.once('error', reject).once('connect', () => {
            visitor.destroy()
            resolve(true)
          })
        }),
    )
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'ECONNREFUSED' || code === 'ENOENT') return false
    if (code === 'EAGAIN') return true // so many have asked that the next must wait: it lives, and is stuck
    if (code === 'ECONNRESET') return answersAt(path) // it ended with us in its queue
    throw error
  }
}
