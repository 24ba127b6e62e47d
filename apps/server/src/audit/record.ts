import type pg from 'pg'
import type { OrganizationId } from '../kit/ids.ts'

/**
 * Who acts on the machine itself and came over no network. A closed list: a caller's id is no member of it, so that where a caller came
 * from cannot be forgotten.
 */
type Local = 'operator on this machine' | 'first start' | 'installation' | 'test'

/** Who changes something: a caller of the API and where they come from (`Actor` of kit/management.ts is one), or somebody on the machine. */
export type By = Local | { readonly name: string; readonly ip: string; readonly userAgent: string }

export type AuditEntry = {
  /** Null for what belongs to the installation as a whole: engines, the catalogue. */
  readonly organizationId: OrganizationId | null
  readonly actor: By
  readonly action: 'created' | 'updated' | 'deleted'
  readonly resourceType: string
  readonly resourceId: string
  /** What an outsider may see of it, never a secret or its hash; null where there was or is nothing. */
  readonly before: unknown
  readonly after: unknown
}

const toJson = (value: unknown): string | null =>
  value === null || value === undefined
    ? null
    : // Counts and money are bigint with us, which JSON does not know.
      JSON.stringify(value, (_, item: unknown) => (typeof item === 'bigint' ? String(item) : item))

/** Writes down a change in the transaction that makes it: both happen or neither does. */
export const recordChange = async (client: pg.ClientBase, entry: AuditEntry): Promise<void> => {
  const { name, ip, userAgent } = typeof entry.actor === 'string' ? { name: entry.actor, ip: '', userAgent: null } : entry.actor
  await client.query({
    name: 'audit-record',
    text: `
      insert into audit_entry (organization_id, actor, action, resource_type, resource_id, before, after, ip, user_agent)
      values ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8, $9)`,
    values: [
      entry.organizationId,
      name,
      entry.action,
      entry.resourceType,
      entry.resourceId,
      toJson(entry.before),
      toJson(entry.after),
      // Empty where a proxy said something that is no address, and on the machine itself.
      ip || null,
      userAgent,
    ],
  })
}
