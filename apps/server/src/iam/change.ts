import type pg from 'pg'
import { recordChange } from '../audit/record.ts'
import { type Db, transaction } from '../kit/db.ts'
import type { Denial } from '../kit/denial.ts'
import type { Actor } from '../kit/management.ts'
import type { Outcome } from '../kit/outcome.ts'
import type { Iam } from './iam.ts'

type Noted = {
  readonly action: 'created' | 'updated' | 'deleted'
  readonly resourceType:
    | 'api_key'
    | 'user'
    | 'application'
    | 'group'
    | 'policy'
    | 'project'
    | 'organization'
    | 'invitation'
    | 'session'
    | 'password_reset'
  readonly resourceId: string
  readonly before?: unknown
  readonly after?: unknown
}

export type Note = (noted: Noted) => Promise<void>

/** Who changes something; for an invitation, the user it was made for. */
export type Changer = Pick<Actor, 'organizationId' | 'name' | 'ip' | 'userAgent'>

export type Change = <T>(
  who: Changer,
  work: (client: pg.ClientBase, note: Note) => Promise<Outcome<T, Denial>>,
) => Promise<Outcome<T, Denial>>

class Undo extends Error {
  readonly denial: Denial
  constructor(denial: Denial) {
    super('undone')
    this.denial = denial
  }
}

/**
 * The one way in which iam's rows are changed over the network: one transaction with its entries in the audit, and nothing at all
 * when it is refused. Writers stand in a row from the beginning, so what one of them has looked at stays as it is until it is
 * done. The answer waits until this process goes by the new rows; the others know within a second.
 */
export const openChange =
  (db: Db, iam: Pick<Iam, 'knowing'>): Change =>
  async (who, work) => {
    let version = 0n
    try {
      const done = await transaction(db, async (client) => {
        await client.query(`select note_change('iam')`)
        const { rows } = await client.query<{ version: bigint }>(`select version from change where room = 'iam'`)
        version = rows[0]?.version ?? 0n
        const outcome = await work(client, ({ action, resourceType, resourceId, before = null, after = null }) =>
          recordChange(client, {
            organizationId: who.organizationId,
            actor: who,
            action,
            resourceType,
            resourceId,
            before,
            after,
          }),
        )
        if (!outcome.ok) throw new Undo(outcome.refusal)
        return outcome
      })
      await iam.knowing(version)
      return done
    } catch (error) {
      if (error instanceof Undo) return { ok: false, refusal: error.denial }
      throw error
    }
  }
