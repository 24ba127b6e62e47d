import { createServer, type ServerResponse } from 'node:http'

// An engine that streams prepared bytes at a steady pace: so many chunks, one every so many milliseconds. The same for every system.
const event = (delta: object, finish: string | null, more: object = {}): string =>
  `data: ${JSON.stringify({ id: 'chatcmpl-0', object: 'chat.completion.chunk', created: 1, model: 'mock', choices: [{ index: 0, delta, finish_reason: finish }], ...more })}\n\n`
const CHUNK = Buffer.from(event({ content: ' token' }, null))
/** As vLLM writes it where it is asked to count as it goes. */
const COUNTED = Buffer.from(
  event({ content: ' token' }, null, { usage: { prompt_tokens: 200, total_tokens: 400, completion_tokens: 200 } }),
)
const END = Buffer.from(
  event({}, 'stop') +
    'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"mock","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":200,"total_tokens":400}}\n\n' +
    'data: [DONE]\n\n',
)

const CHUNKS = Number(process.argv[2] ?? 200)
const CHUNK_EVERY_MS = Number(process.argv[3] ?? 5)
const NAME = process.argv[4] ?? 'mock'
/** Whether it counts as it goes for whoever asks. */
const COUNTS = process.argv[5] === 'counts'
const TICK_MS = Math.min(CHUNK_EVERY_MS, 10)

// One timer for all: the streams are dealt to as many turns as there are ticks between two chunks.
type Running = { readonly response: ServerResponse; readonly chunk: Buffer; sent: number }
const turns: Set<Running>[] = Array.from({ length: Math.max(1, Math.round(CHUNK_EVERY_MS / TICK_MS)) }, () => new Set())
let turn = 0
let dealt = 0
const say = (running: Running, among: Set<Running>): void => {
  if (running.sent < CHUNKS) {
    running.response.write(running.chunk)
    running.sent += 1
    return
  }
  among.delete(running)
  running.response.end(END)
}
setInterval(() => {
  turn = (turn + 1) % turns.length
  const among = turns[turn]
  if (among !== undefined) for (const running of among) say(running, among)
}, TICK_MS)

const server = createServer((request, response) => {
  if (request.url === '/health') return void response.end('{}')
  if (request.url === '/v1/models') {
    response.setHeader('content-type', 'application/json')
    return void response.end(
      JSON.stringify({ object: 'list', data: [{ id: NAME, object: 'model', created: 1, owned_by: 'bench', max_model_len: 131_072 }] }),
    )
  }
  // Whoever asks what else there is must not be told at a stream's pace.
  if (request.method !== 'POST') return void response.writeHead(404).end()
  let counts = false
  request.on('data', (piece: Buffer) => (counts ||= COUNTS && piece.includes('"continuous_usage_stats":true')))
  request.on('end', () => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    dealt += 1
    const among = turns[dealt % turns.length] as Set<Running>
    const running = { response, chunk: counts ? COUNTED : CHUNK, sent: 1 }
    response.write(running.chunk)
    among.add(running)
    response.on('close', () => among.delete(running))
  })
})
server.keepAliveTimeout = 600_000
server.listen({ port: 0, host: '127.0.0.1', backlog: 8192 }, () => {
  const address = server.address()
  if (address !== null && typeof address === 'object') process.stdout.write(`port ${address.port}\n`)
})
process.on('SIGTERM', () => process.exit(0))
