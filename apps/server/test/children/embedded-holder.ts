import { systemClock } from '../../src/kit/clock.ts'
import { openLog } from '../../src/kit/log.ts'
import { openEmbeddedPostgres } from '../../src/kit/postgres.ts'

// Holds the embedded database of a data directory until its standard input ends. argv: data directory.
const [dataDir = ''] = process.argv.slice(2)
const postgres = await openEmbeddedPostgres({ dataDir, log: openLog('warn'), clock: systemClock })
process.stdout.write(`${postgres.url}\n`)
await new Promise((end) => process.stdin.once('end', end).resume())
await postgres.close()
