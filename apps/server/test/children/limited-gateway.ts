import { createInterface } from 'node:readline'
import { setTimeout as after } from 'node:timers/promises'
import { systemClock } from '../../src/kit/clock.ts'
import { openDb } from '../../src/kit/db.ts'
import type { OrganizationId, PrincipalId, ProjectId } from '../../src/kit/ids.ts'
import { openLog } from '../../src/kit/log.ts'
import { openAdmission } from '../../src/quota/admit.ts'
import { readPolicy } from '../../src/quota/policy.ts'
import { openPostgresLedger } from '../../src/quota/postgres-ledger.ts'

// The admission of one gateway in a process of its own. Each line that it reads is an order to ask in bursts; it answers with a line
// that says what it let through. It ends with its input. Argument: database.
const [url = ''] = process.argv.slice(2)

const BURST_MS = 20
const HELD_MS = 5

export type Order = {
  readonly organizationId: string
  /** Requests per second, and for how long. */
  readonly rate: number
  readonly seconds: number
  /** Tokens of each request: reserved at its beginning, used in the end. */
  readonly reserved: number
  readonly used: number
}

const log = openLog('error')
const db = openDb(url, { log, max: 3 })
const model = { name: 'any', type: 'chat', price: { input: 0n, cachedInput: 0n, output: 0n } }

const carryOut = async ({ organizationId, rate, seconds, reserved, used }: Order) => {
  const policy = await readPolicy(db)
  const admission = openAdmission({ policy: () => policy, ledger: openPostgresLedger(db), clock: systemClock, log })
  const holder = {
    organizationId: organizationId as OrganizationId,
    projectId: organizationId as ProjectId,
    principalId: organizationId as PrincipalId,
  }
  const counts = { through: 0, refused: 0, wrong: 0, mostOpen: 0 }
  const ask = async (): Promise<void> => {
    const ticket = await admission.admit(holder, model, { inputTokens: reserved, outputTokens: 0 })
    if (!ticket.ok) {
      const isRight = ticket.refusal.code === 'limit_reached' && ticket.refusal.retryAfterMs > 0
      counts[isRight ? 'refused' : 'wrong'] += 1
      return
    }
    counts.through += 1
    counts.mostOpen = Math.max(counts.mostOpen, admission.open())
    await after(HELD_MS)
    ticket.value.settle({ input: used, cachedInput: 0, output: 0 })
  }

  const beganAt = systemClock.now()
  const startedAtMs = performance.now()
  const asked: Promise<void>[] = []
  // All of them are asked, however late: a process that was stalled catches up.
  while (asked.length < rate * seconds) {
    const due = Math.min(seconds, (performance.now() - startedAtMs) / 1000) * rate
    while (asked.length < due) asked.push(ask())
    await after(BURST_MS)
  }
  await Promise.all(asked)
  const endedAt = systemClock.now()
  await admission.close()
  return { ...counts, beganAt, endedAt }
}

export type Said = Awaited<ReturnType<typeof carryOut>>

process.stdout.write('ready\n')
for await (const line of createInterface(process.stdin))
  process.stdout.write(`${JSON.stringify(await carryOut(JSON.parse(line) as Order))}\n`)
await db.end()
