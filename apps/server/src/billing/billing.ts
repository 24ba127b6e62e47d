import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import { closeNext, openMonths } from './close.ts'
import { issueDrafts } from './invoice.ts'
import type { Terms } from './terms.ts'

const ROUND_MS = 60_000

export type Billing = {
  /** One round now: months that are due are closed, drafts become invoices. */
  readonly round: () => Promise<void>
  readonly close: () => Promise<void>
}

/** Closes months and issues their invoices, once a minute until closed. Several processes may do it side by side. */
export const openBilling = (parts: { db: Db; clock: Clock; log: Logger; terms: Terms; roundMs?: number }): Billing => {
  const { db, clock, log, terms } = parts
  const closing = new AbortController()

  const round = async (): Promise<void> => {
    await openMonths(db, clock, terms)
    while (!closing.signal.aborted && (await closeNext(parts)));
    await issueDrafts(db, terms, clock)
  }

  const loop = async (): Promise<void> => {
    let failing = false
    while (!closing.signal.aborted) {
      try {
        await round()
        failing = false
      } catch (error) {
        // Once per outage: rows wait, nothing is lost.
        if (!failing) log.error({ err: error }, 'billing cannot do its round; it is tried again')
        failing = true
      }
      await clock.sleep(parts.roundMs ?? ROUND_MS, closing.signal).catch(() => undefined)
    }
  }
  const running = loop()

  return {
    round,
    close: async () => {
      closing.abort()
      await running
    },
  }
}
