import type pg from 'pg'
import type { OrganizationId, PrincipalId } from '../kit/ids.ts'
import type { Secrets } from '../kit/secrets.ts'

export type Installation = { readonly organizationId: OrganizationId; readonly ownerId: PrincipalId }

/**
 * What the first start made, or undefined before it. Another master key than the one it was made with is an error: under it
 * every key would be unknown and every stored secret unreadable, and new ones would be lost to the old one.
 */
export const readInstallation = async (client: pg.ClientBase | pg.Pool, secrets: Secrets): Promise<Installation | undefined> => {
  const { rows } = await client.query<{ organization_id: OrganizationId; owner_id: PrincipalId; master_key_fingerprint: string }>(
    'select organization_id, owner_id, master_key_fingerprint from installation',
  )
  const [row] = rows
  if (row === undefined) return undefined
  if (row.master_key_fingerprint !== secrets.fingerprint) {
    throw new Error(
      'The master key is not the one that this database was set up with. Put back the file master.key of its data directory, or set PARVIS_MASTER_KEY to what it was.',
    )
  }
  return { organizationId: row.organization_id, ownerId: row.owner_id }
}
