import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { freshDatabase, type TestDatabase } from '@parvis/testkit/database'
import { FROM_SOURCE } from '@parvis/testkit/program'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Order, Said } from './children/limited-gateway.ts'

// Four gateways, each in a process of its own, on one database: what they let through together, against the limit.

const CHILD = fileURLToPath(new URL('./children/limited-gateway.ts', import.meta.url))
const GATEWAYS = 4
const SECONDS = 3

const startGateway = async (url: string) => {
  const child = spawn(process.execPath, [...FROM_SOURCE, CHILD, url], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next()
    if (done === true) throw new Error('a gateway ended')
    return value
  }
  expect(await next()).toBe('ready')
  return {
    run: async (order: Order): Promise<Said> => {
      child.stdin.write(`${JSON.stringify(order)}\n`)
      return JSON.parse(await next()) as Said
    },
    end: async () => {
      const ended = once(child, 'close')
      child.stdin.end()
      await ended
    },
  }
}

let database: TestDatabase
let gateways: Awaited<ReturnType<typeof startGateway>>[] = []
beforeAll(async () => {
  database = await freshDatabase()
  gateways = await Promise.all(Array.from({ length: GATEWAYS }, () => startGateway(database.url)))
})
afterAll(async () => {
  await Promise.all(gateways.map(({ end }) => end()))
  await database?.drop()
})

/** Lets all begin in the same moment, and adds up what they say. */
const runGateways = async (
  organizationId: string,
  given: { rate: number; reserved: number; used: number },
): Promise<Omit<Said, 'beganAt' | 'endedAt'> & { ranMs: number }> => {
  const all = await Promise.all(gateways.map(({ run }) => run({ organizationId, seconds: SECONDS, ...given })))
  return {
    through: all.reduce((sum, { through }) => sum + through, 0),
    refused: all.reduce((sum, { refused }) => sum + refused, 0),
    wrong: all.reduce((sum, { wrong }) => sum + wrong, 0),
    mostOpen: all.reduce((sum, { mostOpen }) => sum + mostOpen, 0),
    // From the first question of all of them to the last answer.
    ranMs: Math.max(...all.map(({ endedAt }) => endedAt)) - Math.min(...all.map(({ beganAt }) => beganAt)) + 1,
  }
}

const organizationWith = async (limits: Record<string, number>): Promise<string> => {
  const id = randomUUID()
  const all = { requests_per_minute: null, tokens_per_minute: null, concurrent_requests: null, ...limits }
  for (const [name, value] of Object.entries(all)) {
    await database.db.query(`insert into quota_limit (scope, subject, model, name, value) values ('organization', $1, '*', $2, $3)`, [
      id,
      name,
      value,
    ])
  }
  return id
}

test.each([
  ['600 requests a minute', 600, 300],
  ['6,000 requests a minute', 6_000, 900],
])('%s: four gateways at several times the limit let through the limit, and not one more', async (what, limit, rate) => {
  const { through, refused, wrong, ranMs } = await runGateways(await organizationWith({ requests_per_minute: limit }), {
    rate,
    reserved: 0,
    used: 0,
  })
  const exact = limit + (ranMs * limit) / 60_000
  process.stdout.write(
    `${what}: ${through} let through of ${exact.toFixed(1)} (${((through / exact) * 100).toFixed(2)} %), ${refused} refused\n`,
  )
  expect(wrong).toBe(0)
  expect(through).toBeLessThanOrEqual(Math.floor(exact))
  // How near it comes is printed; here only that nothing of it lies idle for good.
  expect(through).toBeGreaterThan(limit * 0.9)
})

test('tokens estimated too low overshoot by what was in flight, and no more', async () => {
  const limit = 60_000
  const [reserved, used] = [50, 80]
  const organization = await organizationWith({ tokens_per_minute: limit })
  const { through, refused, wrong, ranMs, mostOpen } = await runGateways(organization, { rate: 400, reserved, used })
  const tokens = through * used
  const exact = limit + (ranMs * limit) / 60_000
  // What the requests that were open at the same time were estimated too low by.
  const inFlight = mostOpen * (used - reserved)
  process.stdout.write(`tokens: ${tokens} used of ${exact.toFixed(0)}, bound ${(exact + inFlight).toFixed(0)}, ${refused} refused\n`)
  expect(wrong).toBe(0)
  expect(tokens).toBeLessThanOrEqual(exact + inFlight)
  expect(tokens).toBeGreaterThan(limit * 0.9)
})
