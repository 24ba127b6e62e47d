import type pg from 'pg'
import type { Denial } from '../kit/denial.ts'
import type { OrganizationId } from '../kit/ids.ts'
import type { Maxima } from '../kit/maxima.ts'
import { no, type Outcome, yes } from '../kit/outcome.ts'

type What = 'api_key' | 'application' | 'group' | 'policy' | 'project' | 'user'

/** What is counted; the refusal calls projects otherwise than their quotum, as the contract recorded it (control-plane.md 3). */
const COUNTED: Record<What, { readonly quotum: keyof Maxima; readonly resource?: string; readonly rows: string }> = {
  api_key: { quotum: 'IamApiKeys', rows: 'api_key where' },
  application: { quotum: 'IamApplications', rows: `principal where kind = 'application' and` },
  // The two managed ones were made by nobody.
  group: { quotum: 'IamGroups', rows: 'principal_group where everybody is null and' },
  policy: { quotum: 'IamPolicies', rows: 'policy where' },
  project: { quotum: 'AccountProjects', resource: 'UsrProjectsWidth', rows: 'project where' },
  // Whoever is invited is one already (control-plane.md 5.2).
  user: { quotum: 'IamUsers', rows: `principal where kind = 'user' and` },
}

/** Whether the organization may have one more. Inside a change (change.ts): there writers stand in a row, so two at once are not both the last. */
export type Fits = (client: pg.ClientBase, organizationId: OrganizationId, what: What) => Promise<Outcome<undefined, Denial>>

export const openFits =
  (maxima: Maxima): Fits =>
  async (client, organizationId, what) => {
    const { quotum, resource = quotum, rows: counted } = COUNTED[what]
    const { rows } = await client.query<{ count: number }>(`select count(*)::int as count from ${counted} organization_id = $1`, [
      organizationId,
    ])
    const current = rows[0]?.count ?? 0
    const quota = maxima[quotum]
    return current < quota ? yes(undefined) : no({ type: 'quotas_exceeded', details: [{ resource, quota, current }] })
  }
