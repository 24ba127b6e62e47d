import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId, type ProjectId } from '../kit/ids.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { listOf, type Manage } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { type CockpitRoom, change, cockpitPage, fits, GivenProject, projectOf, READS, REGIONAL, Uuid, WRITES } from './shapes.ts'
import { newSecret, TOKEN_SCOPES, type TokenScope } from './token.ts'

const MAX_TOKENS = 100

type Row = {
  readonly id: string
  readonly project_id: ProjectId
  readonly region: string
  readonly name: string
  readonly scopes: readonly TokenScope[]
  readonly created_at: Date
  readonly updated_at: Date
}

const TOKENS = `
  select cockpit_token.id, project_id, region, cockpit_token.name, scopes, cockpit_token.created_at, cockpit_token.updated_at
    from cockpit_token join project on project.id = project_id
   where organization_id = $1 and region = $2`

const read = async (db: Db | pg.ClientBase, organizationId: OrganizationId, region: string, id: string): Promise<Row | undefined> =>
  (await db.query<Row>(`${TOKENS} and cockpit_token.id = $3`, [organizationId, region, id])).rows[0]

const TokenJson = z.object({
  id: z.guid(),
  project_id: z.guid(),
  name: z.string(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  scopes: z.array(z.enum(TOKEN_SCOPES)),
  secret_key: z.string().nullable(),
  region: z.string(),
})

const toJson = (row: Row, secretKey: string | null = null): z.infer<typeof TokenJson> => ({
  id: row.id,
  project_id: row.project_id,
  name: row.name,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  scopes: [...row.scopes],
  secret_key: secretKey,
  region: row.region,
})

const toAudit = ({ project_id, name, scopes }: Row) => ({ projectId: project_id, name, scopes })

// Every `unknown_*` means no choice (control-plane.md 2.2).
const GivenScope = z.enum([...TOKEN_SCOPES, 'unknown_scope'])
const known = (given: readonly z.infer<typeof GivenScope>[]): TokenScope[] => TOKEN_SCOPES.filter((scope) => given.includes(scope))

const PATH = `${REGIONAL}/tokens`
const missing = (id: string): Outcome<never, Denial> => no(notFound('token', id))

/** control-plane.md 8.2. */
export const tokenRoutes = (manage: Manage, { db, clock, secrets, region }: CockpitRoom): void => {
  const params = z.object({ token_id: Uuid })

  manage({
    method: 'GET',
    path: PATH,
    summary: 'List the tokens of a project; their secrets are not shown again.',
    needs: READS,
    query: cockpitPage(['created_at_asc', 'created_at_desc', 'name_asc', 'name_desc']).extend({ token_scopes: listOf(GivenScope) }),
    answer: z.object({ tokens: z.array(TokenJson), total_count: z.int() }),
    handle: async ({ query, actor, may }) => {
      const projectId = projectOf(actor, query)
      if (!may(READS, projectId)) return no(forbidden(READS))
      const { rows, total } = await readPage<Row>(
        db,
        `${TOKENS} and project_id = $3 and scopes @> $4::text[]`,
        [actor.organizationId, region, projectId, known(query.token_scopes)],
        query,
        orderOf(query.order_by, { created_at: 'created_at', name: 'name' }, 'id'),
      )
      return yes({ tokens: rows.map((row) => toJson(row)), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path: PATH,
    summary: 'Make a token for the data sources of a project. Its secret is in this answer and nowhere else.',
    needs: WRITES,
    body: z.looseObject({
      ...GivenProject,
      name: z
        .string()
        .min(3)
        .max(50)
        .regex(/^[A-Za-z0-9-_]+$/),
      token_scopes: z.array(GivenScope).max(100).default([]),
    }),
    answer: TokenJson,
    handle: async ({ body, actor, may }) => {
      const projectId = projectOf(actor, body)
      if (!may(WRITES, projectId)) return no(forbidden(WRITES))
      const id = newId(clock.now())
      const secret = newSecret()
      return change(db, actor, async (client, note) => {
        const fit = await fits(client, projectId, { table: 'cockpit_token', resource: 'CockpitTokens', quota: MAX_TOKENS })
        if (!fit.ok) return fit
        await client.query(
          'insert into cockpit_token (id, project_id, region, name, scopes, secret_hash) values ($1, $2, $3, $4, $5, $6)',
          [id, projectId, region, body.name, known(body.token_scopes), secrets.hashKey(secret)],
        )
        const made = (await read(client, actor.organizationId, region, id)) as Row
        await note({ action: 'created', resourceType: 'cockpit_token', resourceId: id, after: toAudit(made) })
        return yes(toJson(made, secret))
      })
    },
  })

  manage({
    method: 'GET',
    path: `${PATH}/:token_id`,
    summary: 'Read one token, without its secret.',
    needs: READS,
    params,
    answer: TokenJson,
    handle: async ({ params: { token_id: id }, actor, may }) => {
      const row = await read(db, actor.organizationId, region, id)
      return row === undefined || !may(READS, row.project_id) ? missing(id) : yes(toJson(row))
    },
  })

  manage({
    method: 'DELETE',
    path: `${PATH}/:token_id`,
    summary: 'Delete a token; it opens nothing from then on.',
    needs: WRITES,
    params,
    handle: ({ params: { token_id: id }, actor, may }) =>
      change(db, actor, async (client, note) => {
        await client.query('select from cockpit_token where id = $1 for update', [id])
        const before = await read(client, actor.organizationId, region, id)
        if (before === undefined || !may(READS, before.project_id)) return missing(id)
        if (!may(WRITES, before.project_id)) return no(forbidden(WRITES))
        await client.query('delete from cockpit_token where id = $1', [id])
        await note({ action: 'deleted', resourceType: 'cockpit_token', resourceId: id, before: toAudit(before) })
        return yes(undefined)
      }),
  })
}
