import { writeSync } from 'node:fs'
import { pino } from 'pino'
import type { RecordedEvent } from '../../src/usage/event.ts'
import { openJournal } from '../../src/usage/journal.ts'
import { usageEventOf } from './usage-events.ts'

// Records events as fast as it can, a few callers at once, and says each id on standard output only when the journal has
// acknowledged it. Whoever started it kills it at any moment. argv: directory, callers, bytes per segment.
const [directory = '', callers = '8', segmentBytes = '65536'] = process.argv.slice(2)
const journal = await openJournal({ directory, log: pino({ level: 'silent' }), limits: { segmentBytes: Number(segmentBytes) } })

/** At once, since a line that waits in this process dies with it. A reader that is behind is waited for. */
const say = (line: string): void => {
  const bytes = Buffer.from(`${line}\n`)
  for (let written = 0; written < bytes.length; ) {
    try {
      written += writeSync(1, bytes, written)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
    }
  }
}

const call = async (): Promise<void> => {
  for (;;) {
    const event: RecordedEvent = usageEventOf()
    try {
      await journal.record(event)
      say(`on-disk ${event.id}`)
    } catch (error) {
      say(`refused ${error instanceof Error ? error.message : String(error)}`)
      say(`fault ${journal.fault() ?? 'none'}`)
      return
    }
  }
}

say('ready')
await Promise.all(Array.from({ length: Number(callers) }, call))
// The disk was full: look again and again until it takes writes, then record one more.
while (journal.fault() !== undefined) {
  await journal.mend()
  await new Promise((after) => setTimeout(after, 20))
}
const last = usageEventOf()
await journal.record(last)
say(`on-disk ${last.id}`)
await journal.close()
say('closed')
