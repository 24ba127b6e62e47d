import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Clock } from '../kit/clock.ts'
import { type Denial, speakDenial } from '../kit/denial.ts'
import { newId } from '../kit/ids.ts'
import type { Logger } from '../kit/log.ts'
import { originOf } from '../kit/management.ts'
import { readBytes, type Unread } from '../kit/read-body.ts'
import type { Purpose } from './links.ts'
import type { People } from './people.ts'

// The few pages that a person needs without a console: a link has to lead somewhere. Plain forms, no script, no style from elsewhere.

const MAX_BODY_BYTES = 16 * 1024
const MAX_TOKEN_CHARACTERS = 128

const ESCAPED: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
export const escapeHtml = (text: string): string => text.replaceAll(/[&<>"']/g, (letter) => ESCAPED[letter] ?? '')

const STYLE =
  'body{font:1rem/1.5 system-ui,sans-serif;max-width:26rem;margin:12vh auto;padding:0 1rem}label,input,button{display:block;width:100%;box-sizing:border-box}input,button{font:inherit;padding:.5rem;margin:.25rem 0 1rem}.wrong{color:#a00}'

const STYLE_HASH = createHash('sha256').update(STYLE).digest('base64')

/** `formTo`: where a form of the page may be sent; nothing else of the page may load or go anywhere. */
const policy = (formTo: "'self'" | "'none'"): string =>
  `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; form-action ${formTo}; frame-ancestors 'none'; base-uri 'none'`

/** A page; everything in it that is not ours must have been through `escapeHtml`. */
export const sendPage = (
  reply: FastifyReply,
  clock: Clock,
  page: { status?: number; title: string; body: string; form?: boolean; retryAfterMs?: number | undefined },
): FastifyReply => {
  if (page.retryAfterMs !== undefined) reply.header('retry-after', String(Math.ceil(page.retryAfterMs / 1000)))
  return reply
    .code(page.status ?? 200)
    .header('x-request-id', newId(clock.now()))
    .header('content-type', 'text/html; charset=utf-8')
    .header('cache-control', 'no-store')
    .header('referrer-policy', 'no-referrer') // the token stands in the address
    .header('x-content-type-options', 'nosniff')
    .header('x-frame-options', 'DENY')
    .header('content-security-policy', policy(page.form === true ? "'self'" : "'none'"))
    .send(
      `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${page.title}</title><style>${STYLE}</style></head><body><h1>${page.title}</h1>${page.body}</body></html>`,
    )
}

const TITLE: Record<Purpose, string> = { invitation: 'Welcome', password_reset: 'A new password' }

const form = (username: string, organization: string, token: string, wrong?: string): string =>
  `<p>You are <strong>${escapeHtml(username)}</strong> in ${escapeHtml(organization)}.</p>${wrong === undefined ? '' : `<p class="wrong" role="alert">${escapeHtml(wrong)}</p>`}` +
  `<form method="post"><input type="hidden" name="token" value="${escapeHtml(token)}">` +
  `<input type="text" name="username" value="${escapeHtml(username)}" autocomplete="username" hidden>` +
  '<label for="password">Choose a password, of at least 12 characters</label><input id="password" name="password" type="password" autocomplete="new-password" required minlength="12" maxlength="128" autofocus>' +
  '<label for="again">The same again</label><input id="again" name="again" type="password" autocomplete="new-password" required minlength="12" maxlength="128">' +
  '<button>Keep this password</button></form>'

const GONE = '<p>This link has been used, is too old, or is not whole. Ask for a new one.</p>'

/** What a person can do about a denial; 404 for a link is a page of its own. */
const inWords = (denial: Denial): string => {
  if (denial.type === 'invalid_arguments') return `${denial.details[0]?.help_message ?? 'this cannot be taken'}.`
  return 'help_message' in denial && denial.help_message !== undefined ? denial.help_message : 'Please try again later.'
}

const UNREAD: Record<Unread, number> = { too_large: 413, late: 408, left: 400, crowded: 503 }

/** Taking up an invitation and choosing a new password, for people; programs have routes for it (link-routes.ts). */
export const linkPages = (
  app: FastifyInstance,
  { people, clock, log, bodyMs }: { people: People; clock: Clock; log: Logger; bodyMs: number },
): void => {
  const { links } = people
  const readForm = async (_request: FastifyRequest, payload: IncomingMessage): Promise<URLSearchParams> =>
    new URLSearchParams((await readBytes(payload, { limitMs: bodyMs, maxBytes: MAX_BODY_BYTES })).toString())
  void app.register(async (scope) => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('application/x-www-form-urlencoded', readForm)
    scope.setErrorHandler((error: { statusCode?: number; unread?: Unread }, request, reply) => {
      const status = error.unread === undefined ? (error.statusCode ?? 500) : UNREAD[error.unread]
      if (status >= 500) log.error({ err: error, route: request.routeOptions.url }, 'a page failed')
      return sendPage(reply, clock, {
        status,
        title: status >= 500 ? 'Something broke' : 'This cannot be read',
        body: '<p>Please try again.</p>',
      })
    })

    const refuse = (reply: FastifyReply, denial: Denial): FastifyReply => {
      if (denial.type === 'not_found') return sendPage(reply, clock, { status: 404, title: 'No such link', body: GONE })
      const { status, retryAfterMs } = speakDenial(denial)
      return sendPage(reply, clock, { status, retryAfterMs, title: 'Not now', body: `<p>${escapeHtml(inWords(denial))}</p>` })
    }

    for (const [purpose, path] of [
      ['invitation', '/invitation'],
      ['password_reset', '/password-reset'],
    ] as const) {
      scope.get<{ Querystring: { token?: unknown } }>(path, async (request, reply) => {
        const { token } = request.query
        if (typeof token !== 'string' || token === '' || token.length > MAX_TOKEN_CHARACTERS)
          return sendPage(reply, clock, { status: 404, title: 'No such link', body: GONE })
        const linked = await links.find(purpose, token, originOf(request.headers, request.ip))
        if (!linked.ok) return refuse(reply, linked.refusal)
        const { username, organization } = linked.value
        return sendPage(reply, clock, { title: TITLE[purpose], body: form(username, organization, token), form: true })
      })

      scope.post<{ Body: URLSearchParams | undefined }>(path, async (request, reply) => {
        const from = originOf(request.headers, request.ip)
        const [token, password, again] = ['token', 'password', 'again'].map((name) => request.body?.get(name) ?? '')
        if (token === undefined || token === '' || token.length > MAX_TOKEN_CHARACTERS)
          return sendPage(reply, clock, { status: 404, title: 'No such link', body: GONE })
        const linked = await links.find(purpose, token, from)
        if (!linked.ok) return refuse(reply, linked.refusal)
        const { username, organization } = linked.value
        const retry = (wrong: string) =>
          sendPage(reply, clock, { status: 400, title: TITLE[purpose], body: form(username, organization, token, wrong), form: true })
        if (password !== again) return retry('These are two different passwords.')
        const chosen = await links.choose(purpose, token, password ?? '', from)
        if (!chosen.ok && chosen.refusal.type === 'invalid_arguments') return retry(inWords(chosen.refusal))
        if (!chosen.ok) return refuse(reply, chosen.refusal)
        return sendPage(reply, clock, {
          title: 'Done',
          body: `<p>Your password is set. Sign in as <strong>${escapeHtml(username)}</strong>.</p>`,
        })
      })
    }
  })
}
