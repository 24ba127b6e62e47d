import type pg from 'pg'
import type { Db } from '../kit/db.ts'
import { type Denial, invalid, notFound } from '../kit/denial.ts'
import { type AccessKey, newId, type OrganizationId, type PrincipalId } from '../kit/ids.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'
import { forgetKeys } from './api-keys.ts'
import type { Changer } from './change.ts'
import { insertKey } from './keys.ts'
import type { IamRoom } from './shapes.ts'

/**
 * Whether the people and programs of an organization may do anything. `suspended` takes all rights away until it is `active` again; `closed` is
 * for good, and its keys are gone. The rows of either stay, since bills were and will be made of them.
 */
export const ORGANIZATION_STATES = ['active', 'suspended', 'closed'] as const
export type OrganizationState = (typeof ORGANIZATION_STATES)[number]

const MAY_BECOME: Record<OrganizationState, readonly OrganizationState[]> = {
  active: ['suspended', 'closed'],
  suspended: ['active', 'closed'],
  closed: [],
}

export type OrganizationRow = {
  id: OrganizationId
  name: string
  state: OrganizationState
  owner_id: PrincipalId
  owner_username: string
  owner_email: string
  created_at: Date
  updated_at: Date
}

export const SELECT_ORGANIZATIONS = `
  select organization.id, organization.name, organization.state, organization.created_at, organization.updated_at,
         owner.id as owner_id, owner.name as owner_username, coalesce(owner.email, '') as owner_email
    from organization join principal as owner on owner.organization_id = organization.id and owner.role = 'owner'`

const toAudit = ({ name, state, owner_id }: OrganizationRow) => ({ name, state, ownerId: owner_id })

export const readOrganization = async (db: Db | pg.ClientBase, id: string): Promise<OrganizationRow | undefined> =>
  (await db.query<OrganizationRow>(`${SELECT_ORGANIZATIONS} where organization.id = $1`, [id])).rows[0]

/** What every organization has from the beginning: the default project, which has its id, and an owner. */
export const furnish = async (
  client: pg.ClientBase,
  id: OrganizationId,
  { ownerId, username, email }: { ownerId: PrincipalId; username: string; email: string | undefined },
): Promise<void> => {
  await client.query(`insert into project (id, organization_id, name) values ($1, $1, 'default')`, [id])
  await client.query(`insert into principal (id, organization_id, kind, role, name, email) values ($1, $2, 'user', 'owner', $3, $4)`, [
    ownerId,
    id,
    username,
    email ?? null,
  ])
}

type Made = {
  readonly made: OrganizationRow
  /** Undefined where it was made by an earlier call. */
  readonly key: { readonly accessKey: AccessKey; readonly secretKey: string } | undefined
}

/** Somebody to pay: an organization, its default project of the same id, its owner, and the owner's first key (control-plane.md 6). */
export const makeOrganization = async (
  { change, secrets, iam }: Pick<IamRoom, 'change' | 'secrets'> & { readonly iam: Pick<IamRoom['iam'], 'clock'> },
  by: Omit<Changer, 'organizationId'>,
  asked: { id: string | undefined; name: string; username: string; email: string | undefined },
): Promise<Outcome<Made, Denial>> => {
  const now = iam.clock.now()
  const id = (asked.id ?? newId<'organization'>(now)) as OrganizationId
  return change<Made>({ ...by, organizationId: id }, async (client, note) => {
    const { rowCount } = await client.query('insert into organization (id, name) values ($1, $2) on conflict (id) do nothing', [
      id,
      asked.name,
    ])
    if (rowCount === 0) {
      // Asked again, because the answer was lost on its way: what was made is told, and a secret is told once only.
      const there = await readOrganization(client, id)
      const same = there?.name === asked.name && there.owner_username === asked.username && there.owner_email === (asked.email ?? '')
      if (there !== undefined && same) return yes({ made: there, key: undefined })
      return no({ type: 'already_exists', resource: 'organization', resource_id: id, help_message: 'there is another one of this id' })
    }
    const ownerId = newId<'principal'>(now)
    await furnish(client, id, { ownerId, username: asked.username, email: asked.email })
    const made = (await readOrganization(client, id)) as OrganizationRow
    await note({ action: 'created', resourceType: 'organization', resourceId: id, after: toAudit(made) })
    const { accessKey, secretKey } = await insertKey(client, secrets, {
      organizationId: id,
      principalId: ownerId,
      description: 'first key',
      expiresAt: null,
      actor: by,
    })
    return yes({ made, key: { accessKey, secretKey } })
  })
}

/** Renames an organization, or moves it from one state to another; what is so already stays so. */
export const changeOrganization = (
  { change, iam }: Pick<IamRoom, 'change'> & { readonly iam: Pick<IamRoom['iam'], 'operatorId'> },
  by: Omit<Changer, 'organizationId'>,
  id: string,
  asked: { name?: string | undefined; state?: OrganizationState | undefined },
): Promise<Outcome<OrganizationRow, Denial>> =>
  change({ ...by, organizationId: id as OrganizationId }, async (client, note) => {
    const before = await readOrganization(client, id)
    if (before === undefined) return no(notFound('organization', id))
    const state = asked.state ?? before.state
    if (state !== before.state) {
      if (before.id === iam.operatorId)
        return no({ type: 'precondition_failed', precondition: 'protected_resource', help_message: 'the operator’s own stays active' })
      if (!MAY_BECOME[before.state].includes(state))
        return no(invalid('state', 'constraint', `an organization that is ${before.state} cannot become ${state}`))
    }
    const name = asked.name ?? before.name
    if (name === before.name && state === before.state) return yes(before)
    await client.query('update organization set name = $2, state = $3, updated_at = now() where id = $1', [id, name, state])
    if (state === 'closed' && before.state !== 'closed') {
      const { rows } = await client.query<{ id: PrincipalId }>('select id from principal where organization_id = $1', [id])
      for (const principal of rows) await forgetKeys(client, note, principal.id)
      const ids = rows.map((principal) => principal.id)
      await client.query('delete from session where principal_id = any ($1)', [ids])
      await client.query('delete from invitation where principal_id = any ($1)', [ids])
    }
    const after = (await readOrganization(client, id)) as OrganizationRow
    await note({ action: 'updated', resourceType: 'organization', resourceId: id, before: toAudit(before), after: toAudit(after) })
    return yes(after)
  })

/** All of them, the oldest first. */
export const readOrganizations = async (db: Db): Promise<OrganizationRow[]> =>
  (await db.query<OrganizationRow>(`${SELECT_ORGANIZATIONS} order by organization.created_at, organization.id`)).rows
