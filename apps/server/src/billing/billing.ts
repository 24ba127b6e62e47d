import { atMost, type Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { alertRound } from './alerts.ts'
import { closeNext, openMonths } from './close.ts'
import { issueDrafts } from './invoice.ts'
import { type Delivery, deliverRound } from './messages.ts'
import type { Terms } from './terms.ts'

const ROUND_MS = 60_000
/** A database that is silent must not hold up a stop: a round is safe to repeat. */
const STOP_LIMIT_MS = 5_000

type Parts = { readonly db: Db; readonly clock: Clock; readonly log: Logger; readonly terms: Terms }

/** One round: months that are due are closed, drafts become invoices. Several processes may do it side by side. */
export const billRound = async (parts: Parts, signal?: AbortSignal): Promise<void> => {
  const { db, clock, terms } = parts
  await openMonths(db, clock, terms)
  while (signal?.aborted !== true && (await closeNext(parts)));
  await issueDrafts(db, terms, clock)
}

/** Closes months, issues their invoices, and looks after budgets, once a minute until closed. */
export const openBilling = (parts: Parts & { readonly delivery: Delivery }): { close(): Promise<void> } => {
  const closing = new AbortController()
  const { signal } = closing
  // Each by itself: a mail server that hangs must not keep a month open, nor a month that cannot be closed an alert from going out.
  const work: readonly { name: string; round: () => Promise<void> }[] = [
    { name: 'closing months', round: () => billRound(parts, signal) },
    { name: 'looking at budgets', round: () => alertRound(parts) },
    { name: 'delivering alerts', round: () => deliverRound(parts, signal) },
  ]

  const loop = async ({ name, round }: (typeof work)[number]): Promise<void> => {
    let failing = false
    while (!signal.aborted) {
      try {
        await round()
        failing = false
      } catch (error) {
        // Once per outage: rows wait, nothing is lost.
        if (!failing) parts.log.error({ err: error }, `${name} failed; it is tried again`)
        failing = true
      }
      await parts.clock.sleep(ROUND_MS, signal).catch(() => undefined)
    }
  }
  const running = Promise.all(work.map(loop))

  return {
    close: async () => {
      closing.abort()
      await atMost(STOP_LIMIT_MS, running, parts.clock)
    },
  }
}
