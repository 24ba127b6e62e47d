import { holdDataDir } from '../../src/kit/data-dir.ts'

// Holds a data directory until it is killed, or says why it cannot. argv: data directory.
const [dataDir = ''] = process.argv.slice(2)
try {
  await holdDataDir(dataDir, 'parvis serve')
  process.stdout.write('held\n')
  setInterval(() => undefined, 1_000)
} catch (error) {
  process.stdout.write(`${error instanceof Error ? error.message : String(error)}\n`)
}
