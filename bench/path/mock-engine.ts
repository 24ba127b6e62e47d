import { createServer } from 'node:http'

// An engine that costs as little as an engine in Node can: prepared bytes, no thought. The same for every system that is compared.
const CONTENT = 'x'.repeat(1_700)
const BODY = Buffer.from(
  JSON.stringify({
    id: 'chatcmpl-0',
    object: 'chat.completion',
    created: 1,
    model: 'mock',
    choices: [{ index: 0, message: { role: 'assistant', content: CONTENT }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 200, completion_tokens: 400, total_tokens: 600 },
  }),
)
const event = (delta: object, finish: string | null): string =>
  `data: ${JSON.stringify({ id: 'chatcmpl-0', object: 'chat.completion.chunk', created: 1, model: 'mock', choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`
const CHUNK = event({ content: ' token' }, null)
const END =
  event({}, 'stop') +
  'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"mock","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":200,"total_tokens":400}}\n\n' +
  'data: [DONE]\n\n'

const CHUNKS = Number(process.argv[2] ?? 200)
const CHUNK_EVERY_MS = Number(process.argv[3] ?? 5)
const NAME = process.argv[4] ?? 'mock'

const server = createServer((request, response) => {
  if (request.url === '/health') return void response.end('{}')
  if (request.url === '/v1/models') {
    response.setHeader('content-type', 'application/json')
    return void response.end(
      JSON.stringify({ object: 'list', data: [{ id: NAME, object: 'model', created: 1, owned_by: 'bench', max_model_len: 131_072 }] }),
    )
  }
  let streams = false
  request.on('data', (chunk: Buffer) => {
    streams ||= chunk.includes('"stream":true')
  })
  request.on('end', () => {
    if (!streams) {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': BODY.length })
      return void response.end(BODY)
    }
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    let sent = 0
    const timer = setInterval(() => {
      response.write(CHUNK)
      sent += 1
      if (sent < CHUNKS) return
      clearInterval(timer)
      response.end(END)
    }, CHUNK_EVERY_MS)
    response.on('close', () => clearInterval(timer))
  })
})
server.keepAliveTimeout = 60_000
server.listen(0, '127.0.0.1', () => {
  const address = server.address()
  if (address !== null && typeof address === 'object') process.stdout.write(`port ${address.port}\n`)
})
process.on('SIGTERM', () => process.exit(0))
