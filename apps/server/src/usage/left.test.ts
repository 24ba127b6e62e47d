import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { until } from '@parvis/testkit/until'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import { systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import type { RecordedEvent } from './event.ts'
import { journalHome, journalsOf, makeGatewayDir } from './gateway.ts'
import { openJournal } from './journal.ts'
import { shipLeft } from './left.ts'
import { openOpenings } from './openings.ts'
import { shipDirectory } from './ship-directory.ts'

const log = openLog('silent')
let database: TestDatabase
let dataDir: string
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())
beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'parvis-left-'))
})
afterEach(() => rm(dataDir, { recursive: true, force: true }))

/** As a killed gateway leaves it: an event that was acknowledged, and an answer that has begun. */
const leave = async (number: number): Promise<{ ended: RecordedEvent; lost: RecordedEvent }> => {
  await makeGatewayDir(dataDir, number)
  const directory = join(journalHome(dataDir, number), 'usage')
  const [ended, running] = [usageEventOf(), usageEventOf()]
  const journal = await openJournal({ directory, log })
  await journal.record(ended)
  await journal.close()
  const lost: RecordedEvent = { ...running, ended: 'lost', counted: 'none', charged: false, input: 0, cachedInput: 0, output: 0 }
  const openings = await openOpenings({ directory, log })
  openings.note(lost, 'streamed')
  await openings.close()
  return { ended, lost }
}
const known = async (events: readonly RecordedEvent[]): Promise<string[]> => {
  const { rows } = await database.db.query<{ ended: string }>('select ended from usage_event where id = any ($1) order by ended', [
    events.map(({ id }) => id),
  ])
  return rows.map(({ ended }) => ended)
}

test('a start with fewer gateways ships what the others have left, and leaves alone what belongs to those that run', async () => {
  const [first, second, third] = [await leave(1), await leave(2), await leave(3)]
  expect(await journalsOf(dataDir)).toEqual(['usage', 'gateways/2/usage', 'gateways/3/usage'].map((path) => join(dataDir, path)))
  const shipping = shipLeft({ dataDir, running: 2, db: database.db, clock: systemClock, log })
  await until('the third one’s is in the books', async () => (await known([third.ended, third.lost])).length === 2)
  await shipping.close()
  expect(await known([third.ended, third.lost])).toEqual(['complete', 'lost'])
  expect(await known([first.ended, first.lost, second.ended, second.lost])).toEqual([])
  expect((await readdir(join(dataDir, 'gateways/3/usage'))).filter((name) => /journal|open/.test(name))).toEqual([])

  const again = shipLeft({ dataDir, running: 1, db: database.db, clock: systemClock, log })
  await until('the second one’s, too', async () => (await known([second.ended, second.lost])).length === 2)
  await again.close()
  expect(await known([first.ended, first.lost])).toEqual([])
})

test('by hand the journals of all gateways of a machine are shipped, and a second time nothing is left', async () => {
  const left = [await leave(1), await leave(2), await leave(4)]
  const events = left.flatMap(({ ended, lost }) => [ended, lost])
  expect(await shipDirectory({ directory: dataDir, db: database.db, log })).toEqual({ events: 3, lost: 3, refused: 0 })
  expect(await known(events)).toEqual(['complete', 'complete', 'complete', 'lost', 'lost', 'lost'])
  await expect(shipDirectory({ directory: dataDir, db: database.db, log })).rejects.toThrow('There is no usage journal')
})
