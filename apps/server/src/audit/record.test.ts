import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { transaction } from '../kit/db.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { type AuditEntry, recordChange } from './record.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await freshDatabase()
})
afterAll(() => database.drop())

const entry: AuditEntry = {
  organizationId: null,
  actor: 'test',
  action: 'updated',
  resourceType: 'model',
  resourceId: 'tiny-chat',
  before: { price: 9_007_199_254_740_993n },
  after: null,
}
const entries = async () =>
  (await database.db.query('select organization_id, actor, action, resource_type, resource_id, before, after from audit_entry')).rows

test('an entry is written with its change or not at all, and exact counts stay exact', async () => {
  await expect(
    transaction(database.db, async (client) => {
      await recordChange(client, entry)
      throw new Error('the change failed')
    }),
  ).rejects.toThrow('the change failed')
  expect(await entries()).toEqual([])

  await transaction(database.db, (client) => recordChange(client, entry))
  expect(await entries()).toEqual([
    {
      organization_id: null,
      actor: 'test',
      action: 'updated',
      resource_type: 'model',
      resource_id: 'tiny-chat',
      before: { price: '9007199254740993' },
      after: null,
    },
  ])
})

test('what JSON could misread stays what it was', async () => {
  const organizationId = '1f000000-0000-4000-8000-000000000001' as OrganizationId
  await transaction(database.db, (client) =>
    recordChange(client, { ...entry, organizationId, before: 'text', after: [1, '2', null, { a: [] }] }),
  )
  expect((await entries()).at(-1)).toMatchObject({ organization_id: organizationId, before: 'text', after: [1, '2', null, { a: [] }] })
})
