import { open, rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Clock } from '../kit/clock.ts'
import type { Db } from '../kit/db.ts'
import type { Logger } from '../kit/log.ts'
import type { Journal, Segment } from './journal.ts'
import { type Openings, readOpenings } from './openings.ts'
import { type Found, findIntact, findRecords, payloadsOf, toJsonArray } from './segment.ts'

/** How often the segment that is being written is looked at. */
const SHIP_EVERY_MS = 1_000
/** A thousand rows are two thirds of COPY's speed; more would only make the statement longer. */
const BATCH_ROWS = 1_000
/** While the database is away: doubled from the interval up to this. */
const BACKOFF_MAX_MS = 30_000
/** How often a journal that could not be written is tried again. */
const MEND_EVERY_MS = 5_000

/**
 * The payloads as they were written, between commas: nothing is parsed on the way. `::text` because some clients encode JSON a second time.
 * What an older version has written has fewer fields; it is charged as it was then.
 */
const EVENTS = `
    select id, "organizationId" as organization_id, "projectId" as project_id, "principalId" as principal_id, "accessKey" as access_key,
           "modelAsked" as model_asked, model, "priceId" as price_id, coalesce(gateway, '') as gateway, "poolId" as pool_id, replica,
           endpoint, mode, status, ended, counted, coalesce(charged, ended in ('complete', 'client_left') and counted <> 'none') as charged,
           input as input_tokens, "cachedInput" as cached_input_tokens, output as output_tokens, reasoning as reasoning_tokens,
           coalesce("audioInput", 0) as audio_input_tokens, coalesce("audioMs", 0) as audio_milliseconds, coalesce(images, 0) as images,
           coalesce(pages, 0) as pages, to_timestamp("acceptedAt" / 1000.0) as accepted_at, to_timestamp("firstByteAt" / 1000.0) as first_byte_at,
           to_timestamp("endedAt" / 1000.0) as ended_at
      from json_to_recordset($1::text::json) as event (
        id uuid, "organizationId" uuid, "projectId" uuid, "principalId" uuid, "accessKey" text, "modelAsked" text, model text,
        "priceId" uuid, gateway text, "poolId" uuid, replica text, endpoint text, mode text, status integer, ended text, counted text, charged boolean,
        input bigint, "cachedInput" bigint, output bigint, reasoning bigint, "audioInput" bigint, "audioMs" bigint, images bigint, pages bigint,
        "acceptedAt" bigint, "firstByteAt" bigint, "endedAt" bigint)`

/** A row that is there already is left alone, so a segment may be shipped any number of times. */
const INSERT = {
  name: 'usage-ship',
  text: `
    insert into usage_event (
      id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, gateway, pool_id, replica, endpoint, mode, status,
      ended, counted, charged, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, audio_input_tokens, audio_milliseconds,
      images, pages, accepted_at, first_byte_at, ended_at)
    ${EVENTS}
    on conflict do nothing`,
}

/**
 * The one thing that an event replaces: a row which says that nobody knows how that answer ended. It came from a copy of the journal, or
 * from a machine that was taken for dead. The row counts as recorded now, so its hour is added up again. Not `on conflict do update`: that would write
 * to each row that is there already, and does not bear an event that comes twice in one statement.
 */
const REPLACE_LOST = {
  name: 'usage-ship-known',
  text: `
    update usage_event
       set principal_id = event.principal_id, access_key = event.access_key, model_asked = event.model_asked, model = event.model,
           price_id = event.price_id, gateway = event.gateway, pool_id = event.pool_id, replica = event.replica, endpoint = event.endpoint,
           mode = event.mode, status = event.status, ended = event.ended, counted = event.counted, charged = event.charged,
           input_tokens = event.input_tokens, cached_input_tokens = event.cached_input_tokens, output_tokens = event.output_tokens,
           reasoning_tokens = event.reasoning_tokens, audio_input_tokens = event.audio_input_tokens,
           audio_milliseconds = event.audio_milliseconds, images = event.images, pages = event.pages,
           first_byte_at = event.first_byte_at, ended_at = event.ended_at, recorded_at = now()
      from (${EVENTS}) as event
     where usage_event.accepted_at = event.accepted_at and usage_event.id = event.id and usage_event.organization_id = event.organization_id
       and usage_event.project_id = event.project_id and usage_event.ended = 'lost' and event.ended <> 'lost'`,
}

/** The months of these events get their partitions; false where a month is older than what is kept. */
const MAKE_PARTITIONS = `
  select bool_and(make_usage_partition(month)) as made
    from (select distinct date_trunc('month', to_timestamp("acceptedAt" / 1000.0), 'UTC') as month
            from json_to_recordset($1::text::json) as event ("acceptedAt" bigint)) as months`

const NO_PARTITION = '23514'

/** SQLSTATE classes 22 and 23: the row is at fault and will be tomorrow. Anything else is the database's trouble and passes. */
const isRefusedRow = (error: unknown): boolean => /^2[23]/.test(codeOf(error))

const codeOf = (error: unknown): string => (error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : '')

/** Hears of a row that the database will never take. */
type Refused = (payload: string, error: unknown) => Promise<void>

/** Inserts what it can, says how many of them the ledger did not have, and hands each row that the database will never take to `refused`: one of them must not hold up the others. */
export const insertEvents = (db: Db, payloads: readonly string[], refused: Refused): Promise<number> =>
  insertJson(db, `[${payloads.join(',')}]`, payloads.length, () => payloads, refused)

/** The same for records of a segment, whose bytes are written over. */
const insertRecords = (db: Db, bytes: Buffer, records: Found, refused: Refused): Promise<number> =>
  insertJson(db, toJsonArray(bytes, records), records.starts.length, () => payloadsOf(bytes, records), refused)

/** The second statement only where the ledger knew some of them already, which is rare. */
const insertRows = async (db: Db, values: [string | Buffer], rows: number): Promise<number> => {
  const added = (await db.query({ ...INSERT, values })).rowCount ?? 0
  return added === rows ? added : added + ((await db.query({ ...REPLACE_LOST, values })).rowCount ?? 0)
}

const insertJson = async (
  db: Db,
  json: string | Buffer,
  rows: number,
  payloadsIn: () => readonly string[],
  refused: Refused,
): Promise<number> => {
  const values: [string | Buffer] = [json]
  try {
    return await insertRows(db, values, rows)
  } catch (error) {
    if (!isRefusedRow(error)) throw error
    if (codeOf(error) === NO_PARTITION && (await makePartitions(db, values))) {
      return insertRows(db, values, rows)
    }
    const payloads = payloadsIn()
    const [only] = payloads
    if (payloads.length === 1 && only !== undefined) {
      await refused(only, error)
      return 0
    }
    const half = payloads.length >> 1
    return (await insertEvents(db, payloads.slice(0, half), refused)) + (await insertEvents(db, payloads.slice(half), refused))
  }
}

const makePartitions = async (db: Db, values: [string | Buffer]): Promise<boolean> => {
  try {
    const { rows } = await db.query<{ made: boolean | null }>(MAKE_PARTITIONS, values)
    return rows[0]?.made === true
  } catch (error) {
    // An instant that is none is the row's fault, too.
    if (isRefusedRow(error)) return false
    throw error
  }
}

/** With one byte more behind, which `toJsonArray` needs. */
const readRange = async (path: string, from: number, to: number): Promise<Buffer> => {
  const bytes = Buffer.alloc(to - from + 1)
  if (from >= to) return bytes
  const handle = await open(path, 'r')
  try {
    for (let at = 0; at < to - from; ) {
      const { bytesRead } = await handle.read(bytes, at, to - from - at, from + at)
      // Shorter than it was: what is missing reads as zeros, which is damage like any other.
      if (bytesRead === 0) break
      at += bytesRead
    }
  } finally {
    await handle.close()
  }
  return bytes
}

/** What one round has brought: events that the ledger did not know, answers that were lost, rows that it will never take. */
export type Shipped = { readonly events: number; readonly lost: number; readonly refused: number }

export type Shipper = {
  /** Brings everything that is acknowledged into the database; throws when the database does not take it. */
  ship: () => Promise<Shipped>
  /** What is on disk and has not been brought there. */
  waitingBytes: () => number
}

/** Carries the journal into `usage_event`, each segment until it is committed and deleted. One round at a time. */
export const openShipper = (options: { journal: Journal; openings: Openings; db: Db; log: Logger }): Shipper => {
  const { journal, openings, db, log } = options
  // How far each segment has been shipped. Only a hint, so it need not outlive the process.
  const shippedBytes = new Map<Segment, number>()
  const damaged = new Set<Segment>()
  let refused = 0

  /** One row that the database will never take must not hold up the others: it is put aside for a person to see. */
  const putAside = async (payload: string, error: unknown): Promise<void> => {
    refused += 1
    const [segment] = journal.segments()
    if (segment === undefined) return
    const path = join(dirname(segment.path), 'refused.jsonl')
    const handle = await open(path, 'a', 0o600)
    try {
      await handle.write(`${payload}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    log.error({ err: error, file: path }, 'the database refuses a usage event; it was put aside and is not billed')
  }

  /** Bytes of a segment that were acknowledged and are no record any more. What is intact behind them is found again. */
  const raiseAlarm = (segment: Segment, from: number, to: number): void => {
    damaged.add(segment)
    log.error(
      { segment: segment.path, fromByte: from, toByte: to },
      'a segment of the usage journal is damaged: events may be missing from the books',
    )
  }

  const shipSegment = async (segment: Segment): Promise<number> => {
    let added = 0
    const start = shippedBytes.get(segment) ?? 0
    // Taken once: the segment may grow, and be closed, while we ship.
    const { bytes: end, closed } = segment
    const memory = await readRange(segment.path, start, end)
    const bytes = memory.subarray(0, end - start)
    for (let at = 0; at < bytes.length; ) {
      const intact = findRecords(bytes, at)
      for (let row = 0; row < intact.starts.length; row += BATCH_ROWS) {
        const next = row + BATCH_ROWS
        const batch = { starts: intact.starts.slice(row, next), end: intact.starts[next] ?? intact.end }
        added += await insertRecords(db, memory, batch, putAside)
      }
      at = intact.end
      if (at < bytes.length) {
        const next = findIntact(bytes, at + 1)
        const to = next < 0 ? bytes.length : next
        raiseAlarm(segment, start + at, start + to)
        at = to
      }
      shippedBytes.set(segment, start + at)
    }
    if (!closed) return added
    // A damaged one is kept beside under another name, for whoever wants to look.
    if (damaged.has(segment)) await rename(segment.path, `${segment.path}.damaged`)
    await journal.forget(segment)
    shippedBytes.delete(segment)
    damaged.delete(segment)
    return added
  }

  /**
   * What an earlier process began. All its events are in the ledger by now, and the ledger ignores a second row with the same instant and
   * id: so what goes in are those that never ended.
   */
  const shipLost = async (path: string): Promise<number> => {
    const payloads = await readOpenings(path)
    let lost = 0
    for (let row = 0; row < payloads.length; row += BATCH_ROWS) {
      lost += await insertEvents(db, payloads.slice(row, row + BATCH_ROWS), putAside)
    }
    await openings.forget(path)
    if (lost > 0)
      log.warn({ answers: lost }, 'answers were cut by the end of an earlier process; they are in the ledger as lost and cost nothing')
    return lost
  }

  return {
    ship: async () => {
      refused = 0
      let [events, lost] = [0, 0]
      for (const segment of journal.segments()) events += await shipSegment(segment)
      for (const path of openings.left()) lost += await shipLost(path)
      return { events, lost, refused }
    },
    waitingBytes: () => journal.segments().reduce((sum, segment) => sum + segment.bytes - (shippedBytes.get(segment) ?? 0), 0),
  }
}

export type Shipping = {
  /** Stops the loop, after the round it is in. */
  stop: () => Promise<void>
}

/** Ships again and again until stopped, and looks after a journal that cannot be written. */
export const openShipping = (options: {
  shipper: Shipper
  journal: Journal
  clock: Clock
  log: Logger
  everyMs?: number
  /** After each round; without an argument the database did not take it. */
  whenRound?: (shipped: Shipped | undefined) => void
}): Shipping => {
  const { shipper, journal, clock, log } = options
  const everyMs = options.everyMs ?? SHIP_EVERY_MS
  let stopped = false
  const awake = new AbortController()

  const loop = async (): Promise<void> => {
    let away = 0
    let mendAtMs = 0
    while (!stopped) {
      let shipped: Shipped | undefined
      try {
        shipped = await shipper.ship()
        if (away > 0) log.info('usage events reach the database again')
        away = 0
      } catch (error) {
        // Once per outage; the events are safe on disk meanwhile.
        if (away === 0) log.warn({ err: error }, 'usage events cannot be shipped to the database; they wait on disk')
        away += 1
      }
      options.whenRound?.(shipped)
      const unwritable = journal.fault() !== undefined
      if (unwritable && performance.now() >= mendAtMs) {
        await journal.mend()
        mendAtMs = performance.now() + MEND_EVERY_MS
      }
      const longestMs = unwritable ? MEND_EVERY_MS : BACKOFF_MAX_MS
      const restMs = Math.min(longestMs, everyMs * 2 ** Math.min(away, 16))
      await clock.sleep(restMs, awake.signal).catch(() => undefined)
    }
  }
  const running = loop()

  return {
    stop: async () => {
      stopped = true
      awake.abort()
      await running
    },
  }
}
