import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { serveScripted, startHouse, type TestHouse } from '@parvis/testkit/house'
import { type ScriptedEngine, startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addProject } from './billing-usage.ts'

// The second path (docs/paths.md), end to end: what an engine counted is on the bill.

let database: TestDatabase
let engine: ScriptedEngine
let house: TestHouse

beforeAll(async () => {
  database = await freshDatabase()
  engine = await startScriptedEngine({}, { models: ['scripted', 'other'] })
  house = await startHouse({ database })
  // One for each request: after so many tokens a model's limit for this minute is used up.
  await serveScripted(house, engine, { name: 'scripted' })
  await serveScripted(house, engine, { name: 'other' })
})

afterAll(async () => {
  await house?.stop()
  await engine?.close()
  await database?.drop()
})

type Line = { sku: string; project_id: string; billed_quantity: string; value: { units: number; nanos: number } }

const lines = async (): Promise<string[]> => {
  const { consumptions } = (await house.call('/billing/v2beta1/consumptions')).json() as { consumptions: Line[] }
  return consumptions.map((line) => {
    const project = line.project_id === house.owner.organizationId ? 'default' : 'second'
    return `${project} ${line.sku.split('/').at(-2)} ${line.billed_quantity} ${Math.round(line.value.units * 100 + line.value.nanos / 1e7)}`
  })
}

test('tokens that an engine counted, streamed or not, in two projects, are on the bill of the running month within seconds', async () => {
  expect(await lines()).toEqual([])
  const second = await addProject(database.db, house.owner.organizationId, 'second')
  await database.db.query(`select note_change('iam')`)
  await expect.poll(async () => (await house.call(`/${second}/v1/models`)).status).toBe(200)
  const messages = [{ role: 'user' as const, content: 'Hello' }]

  engine.play({ usage: { prompt: 600_000, completion: 800_000 } })
  await house.openai().chat.completions.create({ model: 'scripted', messages })
  engine.play({ usage: { prompt: 400_000, completion: 200_000 } })
  const stream = await house
    .openai(house.secretKey, `${house.url}/${second}/v1`)
    .chat.completions.create({ model: 'other', messages, stream: true })
  for await (const _chunk of stream);

  // Output first, at 0.35: the whole free million. Worth 0.35, of which the projects have 0.37 and 0.13 of 0.50.
  await expect
    .poll(lines)
    .toEqual([
      'default scripted_input 600 9',
      'default scripted_output 800 28',
      'default consumption 1 0',
      'default consumption -0.26 -26',
      'second other_input 400 6',
      'second other_output 200 7',
      'second consumption 1 0',
      'second consumption -0.09 -9',
    ])
})
