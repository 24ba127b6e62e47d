import { setTimeout as after } from 'node:timers/promises'
import { systemClock } from '../../src/kit/clock.ts'
import { openDb } from '../../src/kit/db.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../../src/kit/ids.ts'
import { openLog } from '../../src/kit/log.ts'
import { openAdmission } from '../../src/quota/admit.ts'
import { readPolicy } from '../../src/quota/policy.ts'
import { openPostgresLedger } from '../../src/quota/postgres-ledger.ts'

// The admission of one gateway in a process of its own, asked in bursts. Prints what it let through.
// Arguments: database, organization, requests per second, tokens reserved and tokens used by each, seconds.
const [url = '', organizationId = '', rate = '1', reserved = '0', used = '0', seconds = '1'] = process.argv.slice(2)

const BURST_MS = 20
const HELD_MS = 5

const log = openLog('error')
const db = openDb(url, { log, max: 3 })
const policy = await readPolicy(db)
const admission = openAdmission({ policy: () => policy, ledger: openPostgresLedger(db), clock: systemClock, log })
const holder = {
  organizationId: organizationId as OrganizationId,
  projectId: organizationId as ProjectId,
  principalId: organizationId as PrincipalId,
}
const model = { name: 'any', type: 'chat', price: { input: 0n, cachedInput: 0n, output: 0n } }

process.stdout.write('ready\n')
await new Promise<void>((resolve) => process.stdin.once('data', () => resolve()))

let through = 0
let refused = 0
let wrong = 0
let mostOpen = 0
const ask = async (): Promise<void> => {
  const ticket = await admission.admit(holder, model, { inputTokens: Number(reserved), outputTokens: 0 })
  if (!ticket.ok) {
    if (ticket.refusal.code === 'limit_reached' && ticket.refusal.retryAfterMs > 0) refused += 1
    else wrong += 1
    return
  }
  through += 1
  mostOpen = Math.max(mostOpen, admission.open())
  await after(HELD_MS)
  ticket.value.settle({ input: Number(used), cachedInput: 0, output: 0 })
}

const beganAt = systemClock.now()
const startedAt = performance.now()
const asked: Promise<void>[] = []
let sent = 0
while (performance.now() - startedAt < Number(seconds) * 1000) {
  for (const due = ((performance.now() - startedAt) / 1000) * Number(rate); sent < due; sent += 1) asked.push(ask())
  await after(BURST_MS)
}
await Promise.all(asked)
const endedAt = systemClock.now()
await admission.close()
await db.end()
process.stdout.write(`${JSON.stringify({ through, refused, wrong, mostOpen, beganAt, endedAt })}\n`)
process.stdin.destroy()
