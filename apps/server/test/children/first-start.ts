import { bootstrap } from '../../src/iam/bootstrap.ts'
import { systemClock } from '../../src/kit/clock.ts'
import { openDb } from '../../src/kit/db.ts'
import { openLog } from '../../src/kit/log.ts'
import { migrate } from '../../src/kit/migrate.ts'
import { openSecrets } from '../../src/kit/secrets.ts'

// What a start does to a database, as soon as it is told to: several of these are let loose on one at the same moment.
// argv: database, data directory. Says "ready", waits for a line, says what it did as one line of JSON.
const [url = '', dataDir = ''] = process.argv.slice(2)
process.stdout.write('ready\n')
await new Promise((go) => process.stdin.once('data', go))
process.stdin.destroy()

const db = openDb(url, { log: openLog('silent') })
const applied = await migrate(db)
const secrets = await openSecrets({ dataDir, masterKey: undefined })
const { organizationId, created } = await bootstrap(db, secrets, systemClock)
await db.end()
process.stdout.write(`${JSON.stringify({ applied, organizationId, made: created !== null })}\n`)
