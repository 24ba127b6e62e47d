import { z } from 'zod'
import { dateToInstant } from '../kit/clock.ts'
import { notFound } from '../kit/denial.ts'
import type { Manage } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import { insertKey } from './keys.ts'
import { type IamRoom, LinkToken, Login, Password } from './shapes.ts'

const OURS = '/parvis/v1'

/** What a link is taken up with, by programs; people have pages for it (pages.ts). All of it is ours. */
export const linkRoutes = (manage: Manage, { change, fits, secrets, people: { links } }: IamRoom): void => {
  const Chosen = z.object({ user_id: z.uuid(), organization_id: z.uuid() })

  manage({
    method: 'POST',
    path: `${OURS}/invitations/accept`,
    summary: 'Take up an invitation: the token of the link, for a password to sign in with, or without one for a first API key.',
    needs: 'nobody',
    body: z.strictObject({ token: LinkToken, password: Password.optional() }),
    answer: Chosen.extend({ access_key: z.string().optional(), secret_key: z.uuid().optional() }),
    handle: async ({ body, from }) => {
      const { token, password } = body
      if (password !== undefined) {
        const chosen = await links.choose('invitation', token, password, from)
        return chosen.ok ? yes({ user_id: chosen.value.principalId, organization_id: chosen.value.organizationId }) : chosen
      }
      const linked = await links.find('invitation', token, from)
      if (!linked.ok) return linked
      const { principalId, organizationId } = linked.value
      const invitee = { organizationId, name: principalId, ...from }
      return change(invitee, async (client, note) => {
        if (!(await links.take(client, 'invitation', token))) return no(notFound('invitation', ''))
        // The invitation stays as it was, and may be taken up with a password.
        const fit = await fits(client, organizationId, 'api_key')
        if (!fit.ok) return fit
        await client.query('update principal set activated = true, updated_at = now() where id = $1', [principalId])
        await note({ action: 'updated', resourceType: 'user', resourceId: principalId, after: { activated: true, by: 'invitation' } })
        const { rows } = await client.query<{ ends: Date | null }>(
          'select now() + make_interval(secs => nullif(max_api_key_seconds, 0)) as ends from organization where id = $1',
          [organizationId],
        )
        // As long as the organization allows, which may be for good (serverless-platform.md 5.5).
        const ends = rows[0]?.ends ?? null
        const expiresAt = ends === null ? null : dateToInstant(ends)
        const request = { organizationId, principalId, description: 'from an invitation', expiresAt, actor: invitee }
        const key = await insertKey(client, secrets, request)
        return yes({ user_id: principalId, organization_id: organizationId, access_key: key.accessKey, secret_key: key.secretKey })
      })
    },
  })

  manage({
    method: 'POST',
    path: `${OURS}/password-resets`,
    summary: 'Ask for a link to a new password by e-mail. The answer is the same whether there is such a user or not.',
    needs: 'nobody',
    body: z.strictObject({ login: Login }),
    handle: async ({ body, from }) => links.requestReset(body.login, from),
  })

  manage({
    method: 'POST',
    path: `${OURS}/password-resets/accept`,
    summary: 'Choose a new password with the token of such a link. All sessions of the user end; its API keys stay.',
    needs: 'nobody',
    body: z.strictObject({ token: LinkToken, password: Password }),
    answer: Chosen,
    handle: async ({ body, from }) => {
      const chosen = await links.choose('password_reset', body.token, body.password, from)
      return chosen.ok ? yes({ user_id: chosen.value.principalId, organization_id: chosen.value.organizationId }) : chosen
    },
  })
}
