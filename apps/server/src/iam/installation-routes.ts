import { z } from 'zod'
import { notFound } from '../kit/denial.ts'
import { orderOf, readPage } from '../kit/listing.ts'
import { type Manage, pageQuery } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import {
  changeOrganization,
  makeOrganization,
  ORGANIZATION_STATES,
  type OrganizationRow,
  readOrganization,
  SELECT_ORGANIZATIONS,
} from './organizations.ts'
import { type IamRoom, Stamps } from './shapes.ts'

const toJson = ({ owner_id, owner_username, owner_email, ...row }: OrganizationRow) => ({
  ...row,
  created_at: row.created_at.toISOString(),
  updated_at: row.updated_at.toISOString(),
  owner: { id: owner_id, username: owner_username, email: owner_email },
})

const Organization = z.object({
  id: z.uuid(),
  name: z.string(),
  state: z.enum(ORGANIZATION_STATES),
  ...Stamps,
  owner: z.object({ id: z.uuid(), username: z.string(), email: z.string() }),
})
const NewOrganization = Organization.extend({ access_key: z.string().nullable(), secret_key: z.uuid().nullable() })

const Name = z.string().trim().min(1).max(64)
const Username = z
  .string()
  .min(2)
  .max(64)
  .regex(/^[a-zA-Z0-9@._-]+$/)
const Uuid = z.uuid().toLowerCase()

/** Organizations, as the operator sees and changes them: what the hosted service keeps inside, and so ours. */
export const installationRoutes = (manage: Manage, room: IamRoom): void => {
  const { db } = room
  const reads = { resource: 'installation', action: 'read', scope: 'installation' } as const
  const writes = { resource: 'installation', action: 'write', scope: 'installation' } as const
  const path = '/parvis/v1/organizations'
  const params = z.object({ organization_id: Uuid })

  manage({
    method: 'GET',
    path,
    summary: 'List the organizations of the installation.',
    needs: reads,
    query: pageQuery({
      max: 1_000,
      fallback: 50,
      orders: ['created_at_asc', 'created_at_desc', 'name_asc', 'name_desc'],
      clamp: true,
    })
      .extend({ name: z.string().max(64).optional(), state: z.enum(ORGANIZATION_STATES).optional() })
      .strict(),
    answer: z.object({ organizations: z.array(Organization), total_count: z.int() }),
    handle: async ({ query }) => {
      const { rows, total } = await readPage<OrganizationRow>(
        db,
        `${SELECT_ORGANIZATIONS} where ($1::text is null or position(lower($1) in lower(organization.name)) > 0) and ($2::text is null or state = $2)`,
        [query.name ?? null, query.state ?? null],
        query,
        orderOf(query.order_by, { created_at: 'created_at', name: 'name' }, 'id'),
      )
      return yes({ organizations: rows.map(toJson), total_count: total })
    },
  })

  manage({
    method: 'POST',
    path,
    summary: 'Make an organization with its default project, its owner, and the owner’s first key, whose secret is shown once.',
    needs: writes,
    body: z.strictObject({
      /** Chosen by the caller, a second call makes no second one. */
      id: Uuid.optional(),
      name: Name,
      owner: z.strictObject({ username: Username.default('owner'), email: z.email().max(254).optional() }).default({ username: 'owner' }),
    }),
    answer: NewOrganization,
    handle: async ({ body, actor }) => {
      const done = await makeOrganization(room, actor, { id: body.id, name: body.name, ...body.owner, email: body.owner.email })
      if (!done.ok) return done
      const { made, key } = done.value
      return yes({ ...toJson(made), access_key: key?.accessKey ?? null, secret_key: key?.secretKey ?? null })
    },
  })

  manage({
    method: 'GET',
    path: `${path}/:organization_id`,
    summary: 'Read one organization.',
    needs: reads,
    params,
    answer: Organization,
    handle: async ({ params: { organization_id: id } }) => {
      const row = await readOrganization(db, id)
      return row === undefined ? no(notFound('organization', id)) : yes(toJson(row))
    },
  })

  manage({
    method: 'PATCH',
    path: `${path}/:organization_id`,
    summary: 'Rename an organization, suspend it, let it go on, or close it for good, which deletes its keys.',
    needs: writes,
    params,
    body: z.strictObject({ name: Name.optional(), state: z.enum(ORGANIZATION_STATES).optional() }),
    answer: Organization,
    handle: async ({ params: { organization_id: id }, body, actor }) => {
      const done = await changeOrganization(room, actor, id, body)
      return done.ok ? yes(toJson(done.value)) : done
    },
  })
}
