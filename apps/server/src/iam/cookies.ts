import type { IncomingHttpHeaders } from 'node:http'
import type { Tokens } from './sessions.ts'

/**
 * A browser keeps its session in two cookies that no script can read and no other site can send. `Strict`: even a link from another
 * site comes without them, which costs a console nothing, since its pages hold no data and its scripts ask from the same origin.
 */
const SESSION = 'parvis-session'
const RENEWAL = 'parvis-renewal'
/** A browser takes a cookie of this name only over TLS and for this very host, so no sibling domain can plant one. */
const HOST = '__Host-'
const MAX_COOKIES_CHARACTERS = 8_192
/** A browser that drops the cookie a little late only meets an expired token. */
const SESSION_SECONDS = 3_600

/** Only what a browser's own pages ask may set or use its cookies: a stranger's page must not sign anybody in or out. */
export const FOREIGN = {
  type: 'denied_authentication',
  method: 'jwt',
  reason: 'invalid_argument',
  help_message: 'Cookies count only for what our own pages ask.',
} as const

export type Cookies = ReturnType<typeof openCookies>

export const readCookie = (headers: IncomingHttpHeaders, name: string): string | undefined => {
  const text = headers.cookie ?? ''
  if (text.length > MAX_COOKIES_CHARACTERS) return undefined
  for (const pair of text.split(';')) {
    const at = pair.indexOf('=')
    if (at > 0 && pair.slice(0, at).trim() === name) return pair.slice(at + 1).trim()
  }
  return undefined
}

export const writeCookie = (
  name: string,
  value: string,
  options: { readonly secure: boolean; readonly seconds: number; readonly sameSite: 'Strict' | 'Lax' },
): string =>
  `${options.secure ? HOST : ''}${name}=${value}; Path=/; Max-Age=${options.seconds}; HttpOnly; SameSite=${options.sameSite}${options.secure ? '; Secure' : ''}`

/** What a browser of today says about where a request comes from, or else the origin. Without either it is no browser of today. */
const isOwnOrigin = (headers: IncomingHttpHeaders, publicOrigin: string): boolean => {
  const site = headers['sec-fetch-site']
  if (site !== undefined) return site === 'same-origin'
  const { origin } = headers
  if (origin === undefined || !URL.canParse(origin)) return false
  return origin === publicOrigin || new URL(origin).host === headers.host
}

/** `publicUrl`: where people reach us, once it is known. */
export const openCookies = ({ publicUrl, behindTls }: { publicUrl: () => string; behindTls: boolean }) => {
  const alwaysTls = (): boolean => behindTls || publicUrl().startsWith('https:')
  const isSecure = (https: boolean): boolean => https || alwaysTls()
  /** Where all is TLS only the name counts that nobody else can plant. */
  const read = (headers: IncomingHttpHeaders, name: string): string | undefined =>
    readCookie(headers, HOST + name) ?? (alwaysTls() ? undefined : readCookie(headers, name))

  return {
    read,
    isSecure,
    session: (headers: IncomingHttpHeaders): string | undefined => read(headers, SESSION),
    renewal: (headers: IncomingHttpHeaders): string | undefined => read(headers, RENEWAL),
    /**
     * Whether a request may go by its cookies: it reads, or it comes from our own pages. `SameSite` alone would let a sibling
     * domain in, and old browsers do not know it.
     */
    mayUse: (headers: IncomingHttpHeaders, method: string): boolean =>
      method === 'GET' || method === 'HEAD' || isOwnOrigin(headers, new URL(publicUrl()).origin),
    set: ({ token, renewToken, session, endsAt }: Tokens, https: boolean): readonly string[] => {
      const secure = isSecure(https)
      const seconds = Math.max(0, Math.floor((endsAt.getTime() - session.updated_at.getTime()) / 1000))
      return [
        writeCookie(SESSION, token, { secure, seconds: Math.min(SESSION_SECONDS, seconds), sameSite: 'Strict' }),
        writeCookie(RENEWAL, renewToken, { secure, seconds, sameSite: 'Strict' }),
      ]
    },
    clear: (https: boolean): readonly string[] =>
      [SESSION, RENEWAL].map((name) => writeCookie(name, '', { secure: isSecure(https), seconds: 0, sameSite: 'Strict' })),
  }
}
