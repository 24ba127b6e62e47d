// `npm start`: installs and builds when needed, then runs `parvis serve` with the arguments given.
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { prepare, ROOT } from './lib.mjs'

prepare()

const server = spawn(process.execPath, [join(ROOT, 'apps', 'server', 'bin', 'parvis.mjs'), 'serve', ...process.argv.slice(2)], {
  stdio: 'inherit',
})
// A terminal sends Ctrl-C to the whole group, the server included; it ends in its own time and we end with its code.
process.on('SIGINT', () => undefined)
process.on('SIGTERM', () => server.kill('SIGTERM'))
process.on('SIGHUP', () => server.kill('SIGTERM'))
server.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)))
