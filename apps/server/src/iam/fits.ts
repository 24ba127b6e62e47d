import type pg from 'pg'
import type { Denial } from '../kit/denial.ts'
import type { OrganizationId } from '../kit/ids.ts'
import { MAXIMA } from '../kit/maxima.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

/** What is counted, and how the refusal calls it; the contract recorded one name only, that of projects (control-plane.md 3). */
const COUNTED: Record<keyof typeof MAXIMA, { readonly resource: string; readonly rows: string }> = {
  api_key: { resource: 'IamApiKeys', rows: 'api_key where' },
  application: { resource: 'IamApplications', rows: `principal where kind = 'application' and` },
  // The two managed ones were made by nobody.
  group: { resource: 'IamGroups', rows: 'principal_group where everybody is null and' },
  policy: { resource: 'IamPolicies', rows: 'policy where' },
  project: { resource: 'UsrProjectsWidth', rows: 'project where' },
  // Whoever is invited is one already (control-plane.md 5.2).
  user: { resource: 'IamUsers', rows: `principal where kind = 'user' and` },
}

/** Whether the organization may have one more. Inside a change (change.ts): there writers stand in a row, so two at once are not both the last. */
export const fits = async (
  client: pg.ClientBase,
  organizationId: OrganizationId,
  what: keyof typeof MAXIMA,
): Promise<Outcome<undefined, Denial>> => {
  const { resource, rows: counted } = COUNTED[what]
  const { rows } = await client.query<{ count: number }>(`select count(*)::int as count from ${counted} organization_id = $1`, [
    organizationId,
  ])
  const current = rows[0]?.count ?? 0
  const quota = MAXIMA[what]
  return current < quota ? yes(undefined) : no({ type: 'quotas_exceeded', details: [{ resource, quota, current }] })
}
