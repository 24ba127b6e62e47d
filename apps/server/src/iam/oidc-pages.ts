import type { FastifyInstance, FastifyReply } from 'fastify'
import type { Clock } from '../kit/clock.ts'
import { isUuid } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { originOf } from '../kit/management.ts'
import { writeCookie } from './cookies.ts'
import type { Oidc } from './oidc.ts'
import { escapeHtml, sendPage } from './pages.ts'
import type { People } from './people.ts'

const FLOW = 'parvis-openid'
const FLOW_SECONDS = 900
/** Each may cost a call to the provider. */
const FAILURE_WEIGHT = 5

/** Over to the provider and back: a browser's way in, since only a browser can be sent there (OpenID Connect Core 1.0, 3.1). */
export const oidcPages = (app: FastifyInstance, parts: { oidc: Oidc; people: People; clock: Clock; log: Logger }): void => {
  const { oidc, people, clock, log } = parts
  const { cookies, failures } = people

  /** `Lax`: the provider's page sends the browser back, and from another site a `Strict` cookie would not come along. */
  const flowCookie = (value: string, https: boolean): string =>
    writeCookie(FLOW, value, { secure: cookies.isSecure(https), seconds: value === '' ? 0 : FLOW_SECONDS, sameSite: 'Lax' })

  const wait = (reply: FastifyReply, retryAfterMs: number): FastifyReply =>
    sendPage(reply, clock, {
      status: 429,
      retryAfterMs,
      title: 'Not now',
      body: '<p>Too many sign-ins failed from this address. Wait a minute.</p>',
    })

  app.get<{ Querystring: Record<string, unknown> }>('/oidc/start', async (request, reply) => {
    const { organization_id: organization, return_to: returnTo } = request.query
    const organizationId = typeof organization === 'string' && isUuid(organization) ? organization : undefined
    try {
      const { url, kept } = await oidc.begin({ organizationId, returnTo: typeof returnTo === 'string' ? returnTo : undefined })
      return await reply
        .header('set-cookie', flowCookie(kept, request.protocol === 'https'))
        .header('cache-control', 'no-store')
        .header('referrer-policy', 'no-referrer')
        .redirect(url.href, 303)
    } catch (error) {
      log.error({ reason: error instanceof Error ? error.message : 'unknown' }, 'the OpenID provider cannot be asked')
      return sendPage(reply, clock, { status: 503, title: 'Not now', body: '<p>The provider that you sign in with cannot be reached.</p>' })
    }
  })

  app.get('/oidc/callback', async (request, reply) => {
    const from = originOf(request.headers, request.ip)
    const waitMs = failures.waitMs(from.ip)
    if (waitMs > 0) return wait(reply, waitMs)
    const https = request.protocol === 'https'
    const at = request.url.indexOf('?')
    const entered = await oidc.finish(at < 0 ? '' : request.url.slice(at), cookies.read(request.headers, FLOW), from)
    if (entered.ok) {
      const { tokens, returnTo } = entered.value
      reply.header('set-cookie', [...cookies.set(tokens, https), flowCookie('', https)])
      if (returnTo !== '/') return reply.header('cache-control', 'no-store').redirect(returnTo, 303)
      return sendPage(reply, clock, { title: 'You are signed in', body: '<p>You may close this page.</p>' })
    }
    const { words, organizations } = entered.refusal
    reply.header('set-cookie', flowCookie('', https))
    if (organizations === undefined) failures.count(from.ip, FAILURE_WEIGHT)
    const choices = (organizations ?? [])
      .map(({ id, name }) => `<li><a href="/oidc/start?organization_id=${id}">${escapeHtml(name)}</a></li>`)
      .join('')
    const body = `<p>${escapeHtml(words)}</p>${choices === '' ? '' : `<ul>${choices}</ul>`}`
    return sendPage(reply, clock, { status: organizations === undefined ? 403 : 300, title: 'Not signed in', body })
  })
}
