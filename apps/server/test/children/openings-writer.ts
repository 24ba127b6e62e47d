import { pino } from 'pino'
import { openOpenings } from '../../src/usage/openings.ts'
import { usageEventOf } from './usage-events.ts'

// Begins answers that never end, and says their ids, then what is logged. Whoever started it kills it. argv: directory, answers.
const [directory = '', answers = ''] = process.argv.slice(2)
const openings = await openOpenings({ directory, log: pino(), limits: { retryMs: 20 } })
for (let each = 0; each < Number(answers); each += 1) {
  const event = usageEventOf()
  openings.note(event, 'streamed')
  process.stdout.write(`begun ${event.id}\n`)
}
setInterval(() => undefined, 60_000)
