import { createServer } from 'node:http'
import { Pool } from 'undici'

// The least that a proxy in Node can do: bytes in, bytes out, no key, no look inside, nothing counted. What we add is measured against it.
const pool = new Pool(`http://127.0.0.1:${process.argv[2]}`, { connections: 8_192, headersTimeout: 0, bodyTimeout: 0 })

const server = createServer((request, response) => {
  const pieces: Buffer[] = []
  request.on('data', (chunk: Buffer) => pieces.push(chunk))
  request.on('end', () => {
    pool.dispatch(
      { method: 'POST', path: request.url ?? '/', headers: { 'content-type': 'application/json' }, body: Buffer.concat(pieces) },
      {
        onRequestStart: () => undefined,
        onResponseStart(_controller, status, headers) {
          response.writeHead(status, headers as Record<string, string | string[]>)
        },
        onResponseData(controller, chunk) {
          if (response.write(chunk)) return
          controller.pause()
          response.once('drain', () => controller.resume())
        },
        onResponseEnd() {
          response.end()
        },
        onResponseError() {
          response.destroy()
        },
      },
    )
  })
})
server.keepAliveTimeout = 60_000
server.listen(0, '127.0.0.1', () => {
  const address = server.address()
  if (address !== null && typeof address === 'object') process.stdout.write(`port ${address.port}\n`)
})
process.on('SIGTERM', () => process.exit(0))
