import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** A way to a server that can be cut and mended: what a network fault or a restarted database looks like from here. */
export const openProxy = async (to: { host: string; port: number }) => {
  const sockets = new Set<Socket>()
  let silent = false
  const make = () =>
    createServer((near) => {
      const far = connect(to)
      for (const [socket, other] of [
        [near, far],
        [far, near],
      ] as const) {
        sockets.add(socket)
        socket.on('data', (chunk) => {
          if (!silent) other.write(chunk)
        })
        socket.on('error', () => undefined)
        socket.on('close', () => {
          sockets.delete(socket)
          other.destroy()
        })
      }
    })
  let server = make()
  const listen = (port: number) => new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  const stop = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve())
      for (const socket of sockets) socket.destroy()
    })
  await listen(0)
  const { port } = server.address() as AddressInfo
  return {
    port,
    /** Breaks every connection and refuses new ones. */
    cut: stop,
    mend: async () => {
      silent = false
      server = make()
      await listen(port)
    },
    /** Connections stay and nothing comes through any more, in either direction. */
    silence: () => {
      silent = true
    },
    close: stop,
  }
}
