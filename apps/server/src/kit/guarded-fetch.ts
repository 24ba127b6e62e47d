import { lookup } from 'node:dns/promises'
import { once } from 'node:events'
import { isIP, type LookupFunction } from 'node:net'
import { promisify } from 'node:util'
import { brotliDecompress, gunzip, inflate } from 'node:zlib'
import { Client, type Dispatcher } from 'undici'
import { type MayReach, mayReach } from './addresses.ts'

export type Fetched =
  | {
      readonly ok: true
      readonly status: number
      readonly headers: Readonly<Record<string, string | string[] | undefined>>
      readonly body: Buffer
    }
  | { readonly ok: false; readonly reason: string }

export type FetchOptions = {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer | string
  /** The most the answer may have, as it comes and unpacked. */
  readonly maxBytes: number
  /** For everything together: names, connections, redirects, the last byte. */
  readonly timeMs: number
  /** 5 unless told otherwise; 0 hands a redirect back as an answer. */
  readonly maxRedirects?: number
  readonly signal: AbortSignal
  /** Ranges that the operator opens although they are not the public internet. */
  readonly allow?: readonly string[]
  /** Who turns names into addresses; a test puts its own here. */
  readonly resolve?: Resolver
}

type Address = { readonly address: string; readonly family: number }
type Resolver = (hostname: string) => Promise<readonly Address[]>

const MAX_REDIRECTS = 5
const MAX_URL_CHARACTERS = 8_192
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308])

const systemResolver: Resolver = (hostname) => lookup(hostname, { all: true, verbatim: true })

/** Why we do not fetch, in words for whoever gave us the URL. Never which address a name has: that is our network's business. */
class Refused extends Error {}

/**
 * Fetches what somebody else's URL points at: the only function of the house that does. Only http and https, without a name and
 * a password in the URL. Every address that the name resolves to must be public or allowed, and the connection is made to one of
 * just these addresses: neither a redirect, which is looked at like the first URL, nor a second answer of the name server leads
 * anywhere else. Size, time and redirects are bounded; what is packed is bounded unpacked. Nothing is thrown.
 */
export const guardedFetch = async (url: string, options: FetchOptions): Promise<Fetched> => {
  const timeUp = AbortSignal.timeout(options.timeMs)
  const signal = AbortSignal.any([options.signal, timeUp])
  try {
    return await follow(url, options, signal)
  } catch (error) {
    if (error instanceof Refused) return { ok: false, reason: error.message }
    if (timeUp.aborted) return { ok: false, reason: `it took longer than ${options.timeMs / 1000} s` }
    if (options.signal.aborted) return { ok: false, reason: 'nobody waits for it any more' }
    return { ok: false, reason: 'the server cannot be reached or does not answer in HTTP' }
  }
}

const follow = async (first: string, options: FetchOptions, signal: AbortSignal): Promise<Fetched> => {
  const may = mayReach(options.allow ?? [])
  const resolve = options.resolve ?? systemResolver
  const maxRedirects = options.maxRedirects ?? MAX_REDIRECTS
  let target = toTarget(first)
  let method = options.method ?? 'GET'
  let { headers, body } = options
  for (let redirects = 0; ; redirects += 1) {
    const addresses = await addressesOf(target, may, resolve, signal)
    const answer = await ask(target, addresses, { method, headers: headers ?? {}, body }, options.maxBytes, signal)
    const location = answer.headers['location']
    if (!REDIRECTS.has(answer.status) || typeof location !== 'string' || maxRedirects === 0) return { ok: true, ...answer }
    if (redirects === maxRedirects) throw new Refused(`it redirects more than ${maxRedirects} times`)
    const next = toTarget(location, target.href)
    // RFC 9110 §15.4: after these, the next request only reads.
    if (answer.status === 303 || (answer.status < 303 && method === 'POST')) {
      method = 'GET'
      body = undefined
      headers = without(headers, 'content-type')
    }
    // What was meant for one server is not for another: keys and signatures stand in headers.
    if (next.origin !== target.origin) headers = undefined
    target = next
  }
}

const without = (headers: FetchOptions['headers'], name: string): FetchOptions['headers'] =>
  headers && Object.fromEntries(Object.entries(headers).filter(([key]) => key.toLowerCase() !== name))

/** The URL parser turns every spelling of an IPv4 address (decimal, octal, hexadecimal, short) into the usual one. */
const toTarget = (text: string, base?: string): URL => {
  if (text.length > MAX_URL_CHARACTERS) throw new Refused('the URL is too long')
  if (!URL.canParse(text, base)) throw new Refused('it is not a URL')
  const url = new URL(text, base)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw new Refused('only http and https are fetched')
  if (url.username !== '' || url.password !== '') throw new Refused('a URL with a name or a password in it is not fetched')
  return url
}

/** One address that is not allowed is enough to refuse the name: otherwise the order of the answers would decide. */
const addressesOf = async (url: URL, may: MayReach, resolve: Resolver, signal: AbortSignal): Promise<readonly Address[]> => {
  const hostname = url.hostname.replace(/^\[(.*)\]$/, '$1')
  const family = isIP(hostname)
  const addresses = family !== 0 ? [{ address: hostname, family }] : await resolved(hostname, resolve, signal)
  if (addresses.length === 0) throw new Refused('its name cannot be resolved')
  if (!addresses.every(({ address }) => may(address))) throw new Refused('its address is not on the public internet')
  return addresses
}

/** A name server cannot be told to stop; it is no longer waited for. */
const resolved = async (hostname: string, resolve: Resolver, signal: AbortSignal): Promise<readonly Address[]> => {
  signal.throwIfAborted()
  const ended = new AbortController()
  const stopped = once(signal, 'abort', { signal: ended.signal })
  const found = resolve(hostname).catch(() => [])
  try {
    const first = await Promise.race([found, stopped])
    signal.throwIfAborted()
    return first as readonly Address[]
  } finally {
    ended.abort()
    stopped.catch(() => {})
  }
}

type Asked = { readonly method: string; readonly headers: Readonly<Record<string, string>>; readonly body: Buffer | string | undefined }
type Answered = Omit<Extract<Fetched, { ok: true }>, 'ok'>

const ask = async (url: URL, addresses: readonly Address[], asked: Asked, maxBytes: number, signal: AbortSignal): Promise<Answered> => {
  const client = new Client(url.origin, {
    // The socket asks here for addresses, and gets those that were checked and no others.
    connect: { lookup: pinned(addresses), timeout: 0 },
    // Our own limit stands around all of it.
    headersTimeout: 0,
    bodyTimeout: 0,
  })
  try {
    const response = await client.request({
      method: asked.method as Dispatcher.HttpMethod,
      path: `${url.pathname}${url.search}`,
      headers: { 'accept-encoding': 'identity', ...asked.headers },
      body: asked.body ?? null,
      signal,
    })
    const packed = await readBody(response, maxBytes)
    return {
      status: response.statusCode,
      headers: response.headers,
      body: await unpacked(packed, response.headers['content-encoding'], maxBytes),
    }
  } finally {
    await client.destroy()
  }
}

const pinned =
  (addresses: readonly Address[]): LookupFunction =>
  (_hostname, options, done) => {
    const [first] = addresses
    if (first === undefined) return done(new Error('no address'), '')
    if (options.all === true) done(null, [...addresses])
    else done(null, first.address, first.family)
  }

const tooLarge = (maxBytes: number): Refused => new Refused(`it is larger than ${maxBytes} bytes`)

const readBody = async (response: Dispatcher.ResponseData, maxBytes: number): Promise<Buffer> => {
  if (Number(response.headers['content-length'] ?? 0) > maxBytes) {
    response.body.on('error', () => {}).destroy()
    throw tooLarge(maxBytes)
  }
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of response.body) {
    bytes += (piece as Buffer).length
    if (bytes > maxBytes) throw tooLarge(maxBytes)
    pieces.push(piece as Buffer)
  }
  return Buffer.concat(pieces, bytes)
}

const UNPACK = { gzip: promisify(gunzip), deflate: promisify(inflate), br: promisify(brotliDecompress) } as const

/** We ask for plain bytes. A server that packs them all the same is unpacked, up to the same size and once. */
const unpacked = async (packed: Buffer, encoding: string | string[] | undefined, maxBytes: number): Promise<Buffer> => {
  if (encoding === undefined || encoding === 'identity' || packed.length === 0) return packed
  const unpack = typeof encoding === 'string' && Object.hasOwn(UNPACK, encoding) ? UNPACK[encoding as keyof typeof UNPACK] : undefined
  if (unpack === undefined) throw new Refused('it is compressed in a way that is not read')
  try {
    return await unpack(packed, { maxOutputLength: maxBytes })
  } catch (error) {
    if (error instanceof RangeError) throw tooLarge(maxBytes)
    throw new Refused('it is compressed and cannot be unpacked')
  }
}
