import { emptyDatabase, freshDatabase } from '@parvis/testkit/database'
import { expect, test } from 'vitest'
import { migrate } from './migrate.ts'

test('a second run finds nothing to do', async () => {
  const { db, drop } = await emptyDatabase()
  try {
    expect(await migrate(db)).toContain('0001-organizations.sql')
    expect(await migrate(db)).toEqual([])
  } finally {
    await drop()
  }
})

test('a fresh test database has had every migration', async () => {
  const { db, drop } = await freshDatabase()
  try {
    expect(await migrate(db)).toEqual([])
  } finally {
    await drop()
  }
})
