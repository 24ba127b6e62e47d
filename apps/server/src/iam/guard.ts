import { isUuid } from '../kit/ids.ts'
import type { Guard } from '../kit/management.ts'
import { no, yes } from '../kit/outcome.ts'
import type { Authenticate } from './authenticate.ts'

const MAX_USER_AGENT_CHARACTERS = 255 // serverless-platform.md 5.4

const first = (header: string | string[] | undefined): string | undefined => (Array.isArray(header) ? header[0] : header)

/**
 * Who is calling the management API: `X-Auth-Token: <secret key>`, or the same as a bearer (control-plane.md 2.1).
 * Today every key belongs to the owner of its organization, who may do everything in it; what a project's route is about
 * is looked up by the room, in the caller's organization only.
 */
export const openGuard =
  (authenticate: Authenticate): Guard =>
  async (headers, ip) => {
    const token = first(headers['x-auth-token'])
    const authorization = token === undefined ? first(headers.authorization) : `Bearer ${token}`
    if (authorization === undefined || authorization === '')
      return no({ type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' })
    if (token !== undefined && !isUuid(token.toLowerCase()))
      return no({ type: 'denied_authentication', method: 'api_key', reason: 'invalid_argument' })
    const caller = authenticate(authorization, undefined)
    if (!caller.ok) return no({ type: 'denied_authentication', method: 'api_key', reason: 'not_found' })
    const { organizationId, principalId } = caller.value
    const userAgent = (first(headers['user-agent']) ?? '').slice(0, MAX_USER_AGENT_CHARACTERS)
    return yes({
      actor: { organizationId, principalId, name: principalId, ip, userAgent },
      may: (_needs, projectId) => projectId === undefined || authenticate(authorization, projectId).ok,
    })
  }
