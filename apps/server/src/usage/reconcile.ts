import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { dateToInstant, type Instant, instantToDate } from '../kit/clock.ts'
import { codeOf } from '../kit/data-dir.ts'
import type { Db } from '../kit/db.ts'
import type { RecordedEvent } from './event.ts'
import { type Kind, UNITS } from './kinds.ts'
import { findIntact, readIntact } from './segment.ts'

export type Range = { readonly from: Instant; readonly to: Instant }

/** What the journal says of a request, beside what the ledger says. */
export type JournalDifference =
  /** Ordinary for a second or two; with the database away, for as long as that. */
  | { readonly what: 'waiting'; readonly id: string; readonly acceptedAt: Instant }
  /** The ledger will never take it: somebody has to look at refused.jsonl. */
  | { readonly what: 'refused'; readonly id: string; readonly acceptedAt: Instant }
  | {
      readonly what: 'differs'
      readonly id: string
      readonly acceptedAt: Instant
      readonly field: string
      readonly journal: string
      readonly ledger: string
    }

const COMPARED: readonly (readonly [keyof RecordedEvent, string])[] = [
  ['organizationId', 'organization_id'],
  ['projectId', 'project_id'],
  ['principalId', 'principal_id'],
  ['accessKey', 'access_key'],
  ['model', 'model'],
  ['priceId', 'price_id'],
  ['poolId', 'pool_id'],
  ['replica', 'replica'],
  ['mode', 'mode'],
  ['ended', 'ended'],
  ['counted', 'counted'],
  ['charged', 'charged'],
  ['input', 'input_tokens'],
  ['cachedInput', 'cached_input_tokens'],
  ['output', 'output_tokens'],
  ['reasoning', 'reasoning_tokens'],
  ['audioMs', 'audio_milliseconds'],
  ['pages', 'pages'],
]
const BATCH_ROWS = 1_000

const readEvents = async (path: string): Promise<RecordedEvent[]> => {
  const bytes = await readFile(path).catch((error: unknown) => {
    // Shipped and deleted while we looked: then the ledger has it.
    if (codeOf(error) === 'ENOENT') return Buffer.alloc(0)
    throw error
  })
  if (path.endsWith('.jsonl')) {
    const lines = bytes.toString('utf8').split('\n')
    return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as RecordedEvent)
  }
  const events: RecordedEvent[] = []
  for (let at = 0; at >= 0 && at < bytes.length; ) {
    const { payloads, end } = readIntact(bytes, at)
    events.push(...payloads.map((payload) => JSON.parse(payload) as RecordedEvent))
    at = end < bytes.length ? findIntact(bytes, end + 1) : end
  }
  return events
}

/** Every event that lies in the journal, beside its row in the ledger. Reads only, so a gateway may be running. */
export const compareJournal = async (
  db: Db,
  directory: string,
  range: Range,
): Promise<{ events: number; differences: JournalDifference[] }> => {
  const names = await readdir(directory).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return []
    throw error
  })
  const differences: JournalDifference[] = []
  let compared = 0
  for (const name of names.filter((each) => /\.v1\.journal(\.damaged)?$/.test(each) || each === 'refused.jsonl').toSorted()) {
    const events = (await readEvents(join(directory, name))).filter(({ acceptedAt }) => acceptedAt >= range.from && acceptedAt < range.to)
    compared += events.length
    for (let first = 0; first < events.length; first += BATCH_ROWS) {
      const batch = events.slice(first, first + BATCH_ROWS)
      const { rows } = await db.query<Record<string, unknown> & { id: string }>(
        `select usage_event.*
           from unnest($1::uuid[], $2::timestamptz[]) as known (id, accepted_at)
           join usage_event using (id, accepted_at)`,
        [batch.map(({ id }) => id), batch.map(({ acceptedAt }) => instantToDate(acceptedAt))],
      )
      const ledger = new Map(rows.map((row) => [row.id, row]))
      for (const event of batch) {
        const row = ledger.get(event.id)
        const { id, acceptedAt } = event
        if (row === undefined) {
          differences.push({ what: name === 'refused.jsonl' ? 'refused' : 'waiting', id, acceptedAt })
          continue
        }
        for (const [field, column] of COMPARED) {
          const [journal, inLedger] = [String(event[field]), String(row[column])]
          // What an older version wrote does not have every field.
          if (event[field] !== undefined && journal !== inLedger) {
            differences.push({ what: 'differs', id, acceptedAt, field: column, journal, ledger: inLedger })
          }
        }
      }
    }
  }
  return { events: compared, differences }
}

/** A total that is not the sum of its events. It should not be possible; this is how we would know. */
export type TotalDifference = {
  readonly hour: Instant
  readonly projectId: string
  readonly accessKey: string
  readonly model: string
  readonly kind: Kind
  readonly mode: string
  readonly ledger: bigint
  readonly total: bigint
  /** The requests of that hour, key, model and kind in the ledger; at most five. */
  readonly requests: readonly string[]
}

const HOUR_MS = 3_600_000

/** Adds up every settled hour of the range again, in another statement than the one that makes totals. Reads the whole range: minutes, for millions. */
export const compareTotals = async (db: Db, range: Range): Promise<{ hours: number; differences: TotalDifference[] }> => {
  const { rows: hours } = await db.query<{ hour: Date }>(
    `select distinct hour from (
        select date_trunc('hour', accepted_at, 'UTC') as hour from usage_event where accepted_at >= $1 and accepted_at < $2
        union all select hour from usage_total where hour >= $1 and hour < $2) as hours
      where hour >= (select kept_from from usage_total_state) and hour >= $1 and hour + interval '1 hour' <= $2
      order by hour`,
    [instantToDate(range.from), instantToDate(range.to)],
  )
  const differences: TotalDifference[] = []
  for (const { hour } of hours) {
    const { rows } = await db.query<{
      project_id: string
      access_key: string
      model: string
      kind: Kind
      mode: string
      ledger: bigint
      total: bigint
      requests: string[] | null
    }>(
      `with ledger as (
         select organization_id, project_id, principal_id, access_key, model, unit.kind, mode, price_id,
                sum(unit.units)::bigint as units, (array_agg(id::text order by id))[1:5] as requests
           from usage_event, lateral ${UNITS}
          where accepted_at >= $1 and accepted_at < $2 and charged and unit.units <> 0
          group by 1, 2, 3, 4, 5, 6, 7, 8),
       moved as (
         select exists (select from usage_event, usage_total_state
                         where accepted_at >= $1 and accepted_at < $2 and recorded_at >= settled_before) as yes)
       select project_id, access_key, model, kind, mode, coalesce(ledger.units, 0) as ledger, coalesce(total.units, 0) as total, requests
         from (select * from usage_total where hour = $1) as total
         full join ledger using (organization_id, project_id, principal_id, access_key, model, kind, mode, price_id)
        where ledger.units is distinct from total.units and not (select yes from moved)
        order by project_id, access_key, model, kind, mode`,
      [hour, new Date(hour.getTime() + HOUR_MS)],
    )
    differences.push(
      ...rows.map((row) => ({
        hour: dateToInstant(hour),
        projectId: row.project_id,
        accessKey: row.access_key,
        model: row.model,
        kind: row.kind,
        mode: row.mode,
        ledger: row.ledger,
        total: row.total,
        requests: row.requests ?? [],
      })),
    )
  }
  return { hours: hours.length, differences }
}

/** What one engine says it has read, written and heard for a model since it started. A restart begins anew. */
export type EngineCounters = { readonly startedAt: Instant; readonly input: bigint; readonly output: bigint; readonly audioMs: bigint }

/** Names that engines give the same counters: vLLM and our own, llama.cpp's server, SGLang. */
const INPUT_NAMES = ['vllm:prompt_tokens_total', 'llamacpp:prompt_tokens_total', 'sglang:prompt_tokens_total']
const OUTPUT_NAMES = ['vllm:generation_tokens_total', 'llamacpp:tokens_predicted_total', 'sglang:generation_tokens_total']
const AUDIO_NAMES = ['parvis_engine_audio_milliseconds_total']
/** Of several processes nobody is the start; a counter made by Python's library then says since when it counts. */
const START_NAMES = ['process_start_time_seconds', 'vllm:prompt_tokens_created', 'sglang:prompt_tokens_created']

/** Reads the text that Prometheus reads; a sentence where it does not say enough to be compared. */
export const readCounters = (text: string, remoteModel: string): EngineCounters | string => {
  const values = new Map<string, number>()
  for (const line of text.split('\n')) {
    const [, name = '', labels = '', value = ''] = /^([a-z_]\w*(?::\w+)?)(\{[^}]*\})?\s+(\S+)/i.exec(line) ?? []
    const model = /model_name="([^"]*)"/.exec(labels)?.[1]
    if (name === '' || (model !== undefined && model !== remoteModel)) continue
    // One start for all processes of an engine, but a count for each.
    values.set(name, START_NAMES.includes(name) ? Number(value) : (values.get(name) ?? 0) + Number(value))
  }
  const first = (names: readonly string[]): number | undefined =>
    names.map((name) => values.get(name)).find((value) => value !== undefined && Number.isFinite(value))
  const [input, output, started] = [first(INPUT_NAMES), first(OUTPUT_NAMES), first(START_NAMES)]
  if (input === undefined || output === undefined) return 'has no token counters at /metrics that we know'
  if (started === undefined) return 'counts tokens at /metrics and does not say since when, so there is nothing to compare'
  return {
    startedAt: Math.floor(started * 1000) as Instant,
    input: BigInt(Math.round(input)),
    output: BigInt(Math.round(output)),
    audioMs: BigInt(Math.round(first(AUDIO_NAMES) ?? 0)),
  }
}

export type ReplicaSums = {
  readonly input: bigint
  readonly output: bigint
  readonly audioMs: bigint
  /** Requests whose count is not the engine's own. */
  readonly uncounted: bigint
}

/** A request waits for a place, and streams, for less than this: whoever ended behind an instant began at most so long before it. */
const LONGEST_REQUEST = '1 hour'

/**
 * What the ledger says that a replica has read and written since it started, whoever paid. By the end of a request, since one may have
 * waited for the replica to start. `gateways`: only what came through them, for children of ours, whose names are the same on every machine.
 */
export const sumReplica = async (
  db: Db,
  replica: { readonly name: string; readonly model: string; readonly since: Instant; readonly gateways?: readonly string[] | undefined },
): Promise<ReplicaSums> => {
  const { rows } = await db.query<{ input: bigint; output: bigint; audio_ms: bigint; uncounted: bigint }>(
    `select coalesce(sum(input_tokens), 0)::bigint as input, coalesce(sum(output_tokens), 0)::bigint as output,
            coalesce(sum(audio_milliseconds), 0)::bigint as audio_ms, count(*) filter (where counted <> 'engine') as uncounted
       from usage_event
      where replica = $1 and model = $2 and accepted_at >= $3::timestamptz - interval '${LONGEST_REQUEST}' and ended_at >= $3
        and ($4::text[] is null or gateway = any ($4))`,
    [replica.name, replica.model, instantToDate(replica.since), replica.gateways ?? null],
  )
  const [sums] = rows
  return {
    input: sums?.input ?? 0n,
    output: sums?.output ?? 0n,
    audioMs: sums?.audio_ms ?? 0n,
    uncounted: sums?.uncounted ?? 0n,
  }
}

/** Whether a replica has earlier lives in the ledger, of which its counters know nothing any more. */
export const hasEarlierLives = async (db: Db, name: string, range: Range, since: Instant): Promise<boolean> => {
  const { rows } = await db.query<{ earlier: boolean }>(
    'select exists (select from usage_event where replica = $1 and accepted_at >= $2 and accepted_at < $3 and ended_at < $4) as earlier',
    [name, instantToDate(range.from), instantToDate(range.to), instantToDate(since)],
  )
  return rows[0]?.earlier ?? false
}

/** A request of which nobody knows what it used. */
export type Unmeasured = {
  readonly id: string
  readonly acceptedAt: Instant
  readonly projectId: string
  readonly model: string
  /** Null in rows from before events named it. */
  readonly poolId: string | null
  readonly replica: string
  readonly gateway: string
  readonly ended: string
}

export const listUnmeasured = async (db: Db, range: Range, limit: number): Promise<{ count: bigint; newest: Unmeasured[] }> => {
  const values = [instantToDate(range.from), instantToDate(range.to)]
  const { rows: counted } = await db.query<{ count: bigint }>(
    `select count(*) as count from usage_event where counted = 'none' and accepted_at >= $1 and accepted_at < $2`,
    values,
  )
  const { rows } = await db.query<{
    id: string
    accepted_at: Date
    project_id: string
    model: string
    pool_id: string | null
    replica: string
    gateway: string
    ended: string
  }>(
    `select id, accepted_at, project_id, model, pool_id, replica, gateway, ended
       from usage_event where counted = 'none' and accepted_at >= $1 and accepted_at < $2
      order by accepted_at desc, id desc limit $3`,
    [...values, limit],
  )
  return {
    count: counted[0]?.count ?? 0n,
    newest: rows.map((row) => ({
      id: row.id,
      acceptedAt: dateToInstant(row.accepted_at),
      projectId: row.project_id,
      model: row.model,
      poolId: row.pool_id,
      replica: row.replica,
      gateway: row.gateway,
      ended: row.ended,
    })),
  }
}
