// A child with the command line, the messages and the HTTP of the embedded engine, and no model: the file given as --model is a
// script in JSON that says how it behaves. Supervision is tested with it; that the real engine fits is tested elsewhere.
import { appendFileSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { setTimeout as after } from 'node:timers/promises'

const option = (name) => process.argv[process.argv.indexOf(`--${name}`) + 1]
const script = JSON.parse(readFileSync(option('model'), 'utf8'))

const note = (what) =>
  script.journal && appendFileSync(script.journal, `${JSON.stringify({ what, name: option('name'), pid: process.pid })}\n`)
const once = (marker) => {
  // Behaves badly only in its first life.
  if (!script.lives) return true
  const lives = readFileSync(script.lives, 'utf8').length
  if (marker) appendFileSync(script.lives, '.')
  return lives < (script.badLives ?? 1)
}

process.on('disconnect', () => {
  note('parent gone')
  process.exit(0)
})
process.on('SIGTERM', () => {
  note('SIGTERM')
  if (!script.ignoreSigterm) process.exit(0)
})

note('start')
process.send({ type: 'loading', progress: 0.25 })
const bad = once(true)
if (script.silent && bad) await after(60_000)
await after(script.loadMs ?? 0)
if (script.failed && bad) {
  await new Promise((sent) => process.send({ type: 'failed', reason: script.failed }, sent))
  process.exit(1)
}
if (script.lastWords && bad) {
  process.stderr.write(`${script.lastWords}\n`)
  process.exit(134)
}

let hanging = false
const server = createServer((request, response) => {
  if (hanging) return
  if (request.url !== '/health' && request.headers.authorization !== `Bearer ${process.env.PARVIS_ENGINE_KEY}`) {
    return response.writeHead(401).end('{}')
  }
  if (request.url === '/crash') process.kill(process.pid, 'SIGKILL')
  if (request.url === '/hang') hanging = true
  if (request.url === '/grow') globalThis.held = Buffer.alloc(200 * 1024 * 1024, 1)
  return response
    .writeHead(200, { 'content-type': 'application/json' })
    .end(JSON.stringify({ args: process.argv.slice(2), env: process.env }))
})
server.listen(0, '127.0.0.1', () => {
  note('ready')
  process.send({ type: 'ready', port: server.address().port })
})
