import type pg from 'pg'
import { z } from 'zod'
import type { Db } from '../kit/db.ts'
import { type Denial, forbidden, notFound } from '../kit/denial.ts'
import { newId, type OrganizationId } from '../kit/ids.ts'
import type { Actor, Manage } from '../kit/management.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import type { Note } from './change.ts'
import type { IamRoom } from './shapes.ts'

/** What tells one kind of thing from another, where the organization has many of each: applications, groups, policies. */
export type Kind<Row, Json> = {
  readonly resource: 'application' | 'group' | 'policy'
  readonly table: 'principal' | 'principal_group' | 'policy'
  readonly path: string
  readonly answer: z.ZodType
  readonly summaries: { readonly read: string; readonly remove: string }
  read(db: Db | pg.ClientBase, organizationId: OrganizationId, id: string): Promise<Row | undefined>
  toJson(row: Row): Json
  /** What the audit keeps of it. */
  toAudit(client: pg.ClientBase, row: Row): unknown
  /** Why one stays as it is. */
  keeps?(row: Row): Denial | undefined
  /** What goes before it. */
  clear?(client: pg.ClientBase, row: Row, note: Note): Promise<void>
}

/** Lets things of a kind be read one at a time and deleted; gives back how one is made and changed. */
export const openKind = <Row, Json>(manage: Manage, { db, change, fits, iam }: IamRoom, kind: Kind<Row, Json>) => {
  const { resource, table, path, answer, summaries, read, toJson, toAudit } = kind
  const reads = { resource, action: 'read', scope: 'organization' } as const
  const writes = { resource, action: 'write', scope: 'organization' } as const
  const param = `${resource}_id`
  const one = { path: `${path}/:${param}`, params: z.object({ [param]: z.uuid() }) }

  /** One that is there and may be changed. */
  const find = async (client: pg.ClientBase, actor: Actor, id: string): Promise<Outcome<Row, Denial>> => {
    const row = await read(client, actor.organizationId, id)
    if (row === undefined) return no(notFound(resource, id))
    const denial = kind.keeps?.(row)
    return denial === undefined ? yes(row) : no(denial)
  }

  manage({
    ...one,
    method: 'GET',
    summary: summaries.read,
    needs: reads,
    answer,
    handle: async ({ params: { [param]: id = '' }, actor }) => {
      const row = await read(db, actor.organizationId, id)
      return row === undefined ? no(notFound(resource, id)) : yes(toJson(row))
    },
  })

  manage({
    ...one,
    method: 'DELETE',
    summary: summaries.remove,
    needs: writes,
    handle: ({ params: { [param]: id = '' }, actor }) =>
      change(actor, async (client, note) => {
        const found = await find(client, actor, id)
        if (!found.ok) return found
        const before = await toAudit(client, found.value)
        await kind.clear?.(client, found.value, note)
        await client.query(`delete from ${table} where id = $1`, [id])
        await note({ action: 'deleted', resourceType: resource, resourceId: id, before })
        return yes(undefined)
      }),
  })

  return {
    reads,
    writes,
    /** What `insert` makes under a new id, where there may be one more; in the caller's own organization, whatever else is asked for. */
    make: async (
      actor: Actor,
      given: { readonly organization_id?: string | undefined },
      insert: (client: pg.ClientBase, id: string) => Promise<Outcome<unknown, Denial>>,
    ): Promise<Outcome<Json, Denial>> => {
      if (given.organization_id !== undefined && given.organization_id !== actor.organizationId) return no(forbidden(writes))
      const id = newId(iam.clock.now())
      return change(actor, async (client, note) => {
        const fit = await fits(client, actor.organizationId, resource)
        if (!fit.ok) return fit
        const done = await insert(client, id)
        if (!done.ok) return done
        const made = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'created', resourceType: resource, resourceId: id, after: await toAudit(client, made) })
        return yes(toJson(made))
      })
    },
    /** What one has become once `work` has changed it. */
    edit: (actor: Actor, id: string, work: (client: pg.ClientBase, before: Row) => Promise<Outcome<unknown, Denial>>) =>
      change(actor, async (client, note) => {
        const found = await find(client, actor, id)
        if (!found.ok) return found
        const before = await toAudit(client, found.value)
        const done = await work(client, found.value)
        if (!done.ok) return done
        await client.query(`update ${table} set updated_at = now() where id = $1`, [id])
        const after = (await read(client, actor.organizationId, id)) as Row
        await note({ action: 'updated', resourceType: resource, resourceId: id, before, after: await toAudit(client, after) })
        return yes(toJson(after))
      }),
  }
}
