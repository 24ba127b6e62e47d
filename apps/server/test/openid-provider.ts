import { createHash, randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type CryptoKey, exportJWK, generateKeyPair, SignJWT } from 'jose'

/** What the provider says of whoever comes, and where it is made to err. */
export type Says = {
  readonly claims: Record<string, unknown>
  readonly nonce?: string
  readonly audience?: string
  readonly issuer?: string
  readonly expiresIn?: number
  /** Signed with a key that is not among those it publishes. */
  readonly forged?: boolean
  /** Not signed at all. */
  readonly unsigned?: boolean
  readonly tokenStatus?: number
}

const CLIENT = { id: 'parvis', secret: 'a secret of the client' }

const bodyOf = async (request: IncomingMessage): Promise<URLSearchParams> => {
  let text = ''
  for await (const piece of request) text += String(piece)
  return new URLSearchParams(text)
}

/** A small OpenID provider on a socket: discovery, keys, authorization code with PKCE, real signatures. Everybody is let in as whoever it says. */
export const openProvider = async () => {
  const [published, other] = await Promise.all([generateKeyPair('RS256'), generateKeyPair('RS256')])
  const codes = new Map<string, { challenge: string; nonce: string; redirectUri: string }>()
  const asked: URLSearchParams[] = []
  let says: Says = { claims: {} }
  let down = false

  const idToken = async (issuer: string, nonce: string): Promise<string> => {
    const now = Math.floor(Date.now() / 1000)
    const claims = {
      iss: says.issuer ?? issuer,
      aud: says.audience ?? CLIENT.id,
      iat: now,
      exp: now + (says.expiresIn ?? 300),
      nonce: says.nonce ?? nonce,
      ...says.claims,
    }
    const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
    if (says.unsigned === true) return `${encode({ alg: 'none' })}.${encode(claims)}.`
    const key: CryptoKey = says.forged === true ? other.privateKey : published.privateKey
    return new SignJWT(claims).setProtectedHeader({ alg: 'RS256', kid: 'one' }).sign(key)
  }

  const server = createServer((request, response) => {
    const json = (status: number, body: unknown): void =>
      void response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' }).end(JSON.stringify(body))
    const serve = async (): Promise<void> => {
      if (down) return void response.destroy()
      const { pathname, searchParams } = new URL(request.url ?? '/', url)
      if (pathname === '/.well-known/openid-configuration')
        return json(200, {
          issuer: url,
          authorization_endpoint: `${url}/authorize`,
          token_endpoint: `${url}/token`,
          jwks_uri: `${url}/keys`,
          response_types_supported: ['code'],
          subject_types_supported: ['public'],
          id_token_signing_alg_values_supported: ['RS256'],
          code_challenge_methods_supported: ['S256'],
        })
      if (pathname === '/keys')
        return json(200, { keys: [{ ...(await exportJWK(published.publicKey)), kid: 'one', alg: 'RS256', use: 'sig' }] })
      if (pathname === '/authorize') {
        asked.push(searchParams)
        const code = randomUUID()
        const redirectUri = searchParams.get('redirect_uri') ?? ''
        codes.set(code, { challenge: searchParams.get('code_challenge') ?? '', nonce: searchParams.get('nonce') ?? '', redirectUri })
        const back = new URL(redirectUri)
        back.search = new URLSearchParams({ code, state: searchParams.get('state') ?? '' }).toString()
        return void response.writeHead(302, { location: back.href }).end()
      }
      if (pathname === '/token') {
        const form = await bodyOf(request)
        const code = codes.get(form.get('code') ?? '')
        codes.delete(form.get('code') ?? '')
        const challenge = createHash('sha256')
          .update(form.get('code_verifier') ?? '')
          .digest('base64url')
        const isClient = form.get('client_id') === CLIENT.id && form.get('client_secret') === CLIENT.secret
        if (!isClient) return json(401, { error: 'invalid_client' })
        if (code === undefined || code.challenge !== challenge || code.redirectUri !== form.get('redirect_uri'))
          return json(400, { error: 'invalid_grant' })
        if (says.tokenStatus !== undefined) return json(says.tokenStatus, { error: 'server_error' })
        return json(200, { access_token: randomUUID(), token_type: 'Bearer', expires_in: 60, id_token: await idToken(url, code.nonce) })
      }
      json(404, {})
    }
    serve().catch((error: unknown) => json(500, { error: String(error) }))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return {
    url,
    client: CLIENT,
    /** What each browser was sent there with. */
    asked,
    says: (next: Says): void => {
      says = next
    },
    down: (is: boolean): void => {
      down = is
    },
    close: async (): Promise<void> => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
