import { createServer } from 'node:http'
import { setFlagsFromString } from 'node:v8'
import { Client } from 'undici'

// The least that a proxy in Node can do: bytes in, bytes out, no key, no look inside, nothing counted, and what makes Node cheaper for us makes it cheaper here, too
// (apps/server/src/gateway.ts). What we add is measured against it, so it is plain JavaScript: what would load TypeScript weighs more than all the rest of it.
for (const flag of ['--no-allocation-site-pretenuring', '--heap-growing-percent=100']) setFlagsFromString(flag)

const engine = `http://127.0.0.1:${process.argv[2]}`
// A connection each, and the one that was used last first: a tenth cheaper than undici's Pool, which walks through all it has.
/** @type {Client[]} */
const idle = []

const server = createServer((request, response) => {
  /** @type {Buffer[]} */
  const pieces = []
  request.on('data', (piece) => pieces.push(piece))
  request.on('end', () => {
    const client = idle.pop() ?? new Client(engine, { headersTimeout: 0, bodyTimeout: 0, keepAliveTimeout: 60_000 })
    const headers = { 'content-type': 'application/json', 'content-length': request.headers['content-length'] }
    client.dispatch(
      { method: 'POST', path: request.url ?? '/', headers, body: pieces.length === 1 ? pieces[0] : pieces },
      {
        onRequestStart: () => undefined,
        onResponseStart(_controller, status, headers) {
          response.writeHead(status, headers)
        },
        onResponseData(controller, piece) {
          if (response.write(piece)) return
          controller.pause()
          response.once('drain', () => controller.resume())
        },
        onResponseEnd() {
          response.end()
          idle.push(client)
        },
        onResponseError() {
          response.destroy()
          void client.destroy()
        },
      },
    )
  })
})
server.keepAliveTimeout = 60_000
server.listen({ port: 0, host: '127.0.0.1', backlog: 8192 }, () => {
  const address = server.address()
  if (address !== null && typeof address === 'object') process.stdout.write(`port ${address.port}\n`)
})
process.on('SIGTERM', () => process.exit(0))
