import type pg from 'pg'
import type { OrganizationId } from '../kit/ids.ts'

export type AuditEntry = {
  /** Null for what belongs to the installation as a whole: engines, the catalogue. */
  readonly organizationId: OrganizationId | null
  /** Who did it: a principal's id, or words like `command line` for whoever may run commands on the machine. */
  readonly actor: string
  /** From where, when it came over the network. */
  readonly ip?: string | undefined
  readonly userAgent?: string | undefined
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
  await client.query({
    name: 'audit-record',
    text: `
      insert into audit_entry (organization_id, actor, action, resource_type, resource_id, before, after, ip, user_agent)
      values ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8, $9)`,
    values: [
      entry.organizationId,
      entry.actor,
      entry.action,
      entry.resourceType,
      entry.resourceId,
      toJson(entry.before),
      toJson(entry.after),
      // Empty where a proxy said something that is no address.
      entry.ip || null,
      entry.userAgent ?? null,
    ],
  })
}
