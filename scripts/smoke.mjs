// Starts what was built as a person would, pastes what it prints into a shell, looks at the answers, stops it, starts it again.
// The last line is "N passed, N failed".
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { prepare, ROOT } from './lib.mjs'

prepare()

const START_LIMIT_MS = 90_000
const STOP_LIMIT_MS = 40_000
const total = { passed: 0, failed: 0 }
const check = (promise, holds, detail = '') => {
  total[holds ? 'passed' : 'failed'] += 1
  console.log(`${holds ? '✓' : '✗'} ${promise}${holds ? '' : `\n${detail}`}`)
}

const freePort = () =>
  new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address()
      probe.close(() => resolve(port))
    })
  })

const dataDir = mkdtempSync(join(tmpdir(), 'parvis-smoke-'))
const env = { ...process.env, PARVIS_DATA_DIR: dataDir, PARVIS_PORT: String(await freePort()), PARVIS_LOG_LEVEL: 'warn' }
const parvis = join(ROOT, 'apps', 'server', 'bin', 'parvis.mjs')

/** Resolves with everything printed once the greeting has ended, or when the process ends before. */
const serve = async () => {
  const child = spawn(process.execPath, [parvis, 'serve'], { cwd: ROOT, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  let complained = ''
  child.stderr.on('data', (chunk) => (complained += chunk))
  const ended = new Promise((resolve) => child.on('close', (code) => resolve(code)))
  const greeted = new Promise((resolve) =>
    child.stdout.on('data', (chunk) => {
      said += chunk
      if (said.includes('Ctrl-C stops it.')) resolve('greeted')
    }),
  )
  const timer = setTimeout(() => child.kill('SIGKILL'), START_LIMIT_MS)
  await Promise.race([greeted, ended])
  clearTimeout(timer)
  const stop = async () => {
    child.kill('SIGTERM')
    const late = setTimeout(() => child.kill('SIGKILL'), STOP_LIMIT_MS)
    const code = await ended
    clearTimeout(late)
    return code
  }
  return { said, complained: () => complained, ended, stop }
}

const shell = (script, more = {}) => {
  const done = spawnSync('bash', ['-c', script], { cwd: ROOT, env: { ...process.env, ...more }, encoding: 'utf8', timeout: 60_000 })
  return `${done.stdout}${done.stderr}`
}
const curlOf = (said) => said.split('\n').find((line) => line.startsWith('curl ')) ?? 'false'
const programOf = (said) => /node --input-type=module <<'EOF'[\s\S]*?\nEOF\n/.exec(said)?.[0] ?? 'false'

try {
  const first = await serve()
  check('the first start greets', first.said.includes('Parvis serves at'), first.said + first.complained())
  const secret = /secret key {2}([0-9a-f-]{36})/.exec(first.said)?.[1]
  check('it shows a secret key', secret !== undefined, first.said)
  const curled = shell(curlOf(first.said))
  check('the printed curl line answers', curled.includes('Paris'), curled)
  const told = shell(programOf(first.said))
  check('the printed OpenAI SDK program streams an answer', told.includes('Paris'), told)
  check('the printed program has six lines', programOf(first.said).trim().split('\n').slice(1, -1).length === 6, programOf(first.said))

  const rival = await serve()
  const rivalCode = await rival.ended
  check(
    'a second start on the same data directory says who holds it',
    rivalCode !== 0 && /held by|in use/.test(rival.complained()),
    rival.complained(),
  )

  const listed = spawnSync(process.execPath, [parvis, 'keys', 'list'], { cwd: ROOT, env, encoding: 'utf8' })
  check(
    'keys are listed while it serves, without a secret',
    listed.status === 0 && /SCW[A-Z0-9]{17}/.test(listed.stdout) && !listed.stdout.includes(secret),
    listed.stdout + listed.stderr,
  )

  check('SIGTERM ends it with code 0', (await first.stop()) === 0, first.complained())
  check('no secret in its log', !first.complained().includes(secret), 'the secret key stands on standard error')

  const again = await serve()
  check('the next start shows no secret', again.said.includes('Parvis serves at') && !again.said.includes(secret), again.said)
  const later = shell(curlOf(again.said), { PARVIS_API_KEY: secret })
  check('its curl line answers with the key in the environment', later.includes('Paris'), later)
  check('and it ends with code 0 too', (await again.stop()) === 0, again.complained())
} finally {
  rmSync(dataDir, { recursive: true, force: true })
}
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exit(total.failed === 0 ? 0 : 1)
