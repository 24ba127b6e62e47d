import { randomUUID } from 'node:crypto'
import { billRound } from '../src/billing/billing.ts'
import { openMonths } from '../src/billing/close.ts'
import { addModel } from '../src/catalog/models.ts'
import { parsePrice } from '../src/catalog/price.ts'
import { type Clock, type Instant, instantToDate, systemClock } from '../src/kit/clock.ts'
import type { Db } from '../src/kit/db.ts'
import type { OrganizationId, ProjectId } from '../src/kit/ids.ts'

/** A clock that stands where a test puts it; waiting takes as long as it does. */
export const handClock = (text: string): Clock & { set(text: string): void } => {
  let at = Date.parse(text) as Instant
  return {
    now: () => at,
    monotonicMs: () => at,
    sleep: systemClock.sleep,
    set: (next) => {
      at = Date.parse(next) as Instant
    },
  }
}

/** A round of a house that has seen the end of each month, and now the end of the time for late segments. */
export const closeMonths = async (parts: Parameters<typeof billRound>[0]): Promise<void> => {
  const { db, clock, terms } = parts
  await openMonths(db, handClock(instantToDate((clock.now() - terms.graceHours * 3_600_000) as Instant).toISOString()), terms)
  await billRound(parts)
}

/** An organization with its default project. */
export const addOrganization = async (db: Db, name: string, createdAt: string): Promise<OrganizationId> => {
  const id = randomUUID() as OrganizationId
  await db.query('insert into organization (id, name, created_at) values ($1, $2, $3)', [id, name, createdAt])
  await db.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [id])
  return id
}

export const addProject = async (db: Db, organizationId: OrganizationId, name: string): Promise<ProjectId> => {
  const id = randomUUID() as ProjectId
  await db.query('insert into project (id, organization_id, name) values ($1, $2, $3)', [id, organizationId, name])
  return id
}

/** A model with a price in euros per million tokens, per minute or per 1,000 pages; answers with the price's id. */
export const addPriced = async (
  db: Db,
  name: string,
  price: { input: string; cachedInput?: string; output?: string },
  type: 'chat' | 'embedding' | 'audio' | 'ocr' = 'chat',
): Promise<string> => {
  const modelId = await addModel(db, systemClock, 'test', {
    name,
    ownedBy: 'test',
    type,
    contextTokens: 4096,
    maxOutputTokens: type === 'chat' ? 1024 : null,
    price: {
      input: parsePrice(price.input),
      ...(price.cachedInput === undefined ? {} : { cachedInput: parsePrice(price.cachedInput) }),
      output: parsePrice(price.output ?? '0'),
    },
  })
  const { rows } = await db.query<{ id: string }>('select id from model_price where model_id = $1', [modelId])
  return rows[0]?.id ?? ''
}

/** Puts one served request into the ledger, as shipping would. */
export const use = async (
  db: Db,
  event: {
    organizationId: OrganizationId
    projectId?: ProjectId
    model: string
    priceId: string
    at: string
    input?: number
    cachedInput?: number
    output?: number
    audioMs?: number
    pages?: number
    mode?: 'realtime' | 'batch'
  },
): Promise<void> => {
  const at = instantToDate(Date.parse(event.at) as Instant)
  await db.query('select make_usage_partition($1)', [at])
  await db.query(
    `insert into usage_event (id, organization_id, project_id, principal_id, access_key, model_asked, model, price_id, gateway, replica, endpoint, mode, status,
       ended, counted, charged, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, audio_input_tokens, audio_milliseconds, images, pages,
       accepted_at, first_byte_at, ended_at)
     values ($1, $2, $3, $2, 'SCWTEST', $4, $4, $5, 'test', 'test', 'chat/completions', $6, 200, 'complete', 'engine', true, $7, $8, $9, 0, 0, $10, 0, $12, $11, $11, $11)`,
    [
      randomUUID(),
      event.organizationId,
      event.projectId ?? event.organizationId,
      event.model,
      event.priceId,
      event.mode ?? 'realtime',
      event.input ?? 0,
      event.cachedInput ?? 0,
      event.output ?? 0,
      event.audioMs ?? 0,
      at,
      event.pages ?? 0,
    ],
  )
}
