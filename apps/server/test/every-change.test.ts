import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { startHouse, type TestHouse } from '@parvis/testkit/house'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { APART, alwaysRefuses, type Calls, openCalls, SECRET } from './every-route.ts'

// Every route of the management API that changes something, called with success: what stands in the audit afterwards.

let database: TestDatabase
let house: TestHouse
let calls: Calls
let ownerId: string

beforeAll(async () => {
  database = await freshDatabase()
  house = await startHouse({ database })
  calls = openCalls(house)
  const { rows } = await database.db.query<{ id: string }>(`select id from principal where role = 'owner' and organization_id = $1`, [
    calls.own,
  ])
  ownerId = rows[0]?.id ?? ''
})

afterAll(async () => {
  await house?.stop()
  await database?.drop()
})

type Entry = {
  actor: string
  ip: string | null
  user_agent: string | null
  action: string
  resource_type: string
  before: unknown
  after: unknown
}
const entriesAfter = async (seen: Set<string>): Promise<Entry[]> => {
  const { rows } = await database.db.query<Entry & { id: string }>(
    'select id, actor, host(ip) as ip, user_agent, action, resource_type, before, after from audit_entry order by at, id',
  )
  const fresh = rows.filter(({ id }) => !seen.has(id))
  for (const { id } of rows) seen.add(id)
  return fresh
}

/** Changes that leave no entry, and why. */
const SILENT: Readonly<Record<string, string>> = {
  'POST /cockpit/v1/grafana/sync-data-sources': 'there is nothing that could be out of step',
  'PATCH /cockpit/v1/plans': 'there is one plan',
}

test('each change is in the audit: by whom, from where, from what to what, and no secret', async () => {
  const seen = new Set<string>()
  const wrong: string[] = []
  let looked = 0
  for (const route of house.routes()) {
    const what = `${route.method} ${route.path}`
    if (route.method === 'GET' || alwaysRefuses(route) || APART.has(what)) continue
    const call = await calls.callOf(route)
    await entriesAfter(seen)
    const answer = await calls.ask(call.method, call.path, call.body)
    if (answer.status >= 300) {
      wrong.push(`${what} answered ${answer.status} ${JSON.stringify(answer.body)}: say in test/every-route.ts how to call it with success`)
      continue
    }
    // What every project has is made by the house itself when it is first looked for.
    const entries = (await entriesAfter(seen)).filter(({ actor }) => actor !== 'installation')
    looked += 1
    if (entries.length === 0) {
      if (!(what in SILENT)) wrong.push(`${what} changed something and left no entry: use recordChange in its transaction`)
      continue
    }
    for (const entry of entries) {
      const { actor, ip, user_agent, action, before, after } = entry
      if (actor !== ownerId || ip !== '127.0.0.1' || user_agent !== 'every-route/1')
        wrong.push(`${what}: by ${actor} from ${ip} with ${user_agent}: hand recordChange the actor`)
      // There is nothing to tell of what a password was before.
      const isPassword = JSON.stringify(after)?.includes('"password":"changed"') === true
      if (!isPassword && (action === 'created') !== (before === null))
        wrong.push(`${what}: ${action} ${entry.resource_type} from ${JSON.stringify(before)}`)
      if ((action === 'deleted') !== (after === null)) wrong.push(`${what}: ${action} ${entry.resource_type} to ${JSON.stringify(after)}`)
      // What the answer shows once, and what was sent in confidence.
      const secrets = ['secret_key', 'token', 'signing_secret', 'password'].flatMap((name) =>
        typeof answer.body[name] === 'string' && answer.body[name] !== '' ? [String(answer.body[name])] : [],
      )
      const text = JSON.stringify([before, after])
      for (const secret of [...secrets, SECRET, 'hook-of-theirs', 'a long password'])
        if (text.includes(secret)) wrong.push(`${what}: a secret stands in the audit`)
    }
  }
  expect(wrong).toEqual([])
  expect(looked).toBeGreaterThan(50)
}, 120_000)

test('what was sent in confidence stands in no table as it was sent', async () => {
  const { rows } = await database.db.query<{ name: string }>(
    `select table_name as name from information_schema.tables where table_schema = 'public' and table_type = 'BASE TABLE'`,
  )
  for (const { name } of rows) {
    const found = await database.db.query(`select 1 from "${name}" as t where t::text like '%' || $1 || '%' limit 1`, [SECRET])
    expect([name, found.rows.length]).toEqual([name, 0])
  }
})
