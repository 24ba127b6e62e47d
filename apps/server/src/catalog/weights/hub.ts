import { Agent, type Dispatcher, request } from 'undici'
import { z } from 'zod'
import { isInside } from '../weights-path.ts'

/**
 * A Hugging Face style hub. Two questions are asked of it: what a repository holds (`/api/models/{repo}?blobs=true`: sizes and checksums), and one
 * file (`/{repo}/resolve/{revision}/{file}`), which it answers with a redirect to a store elsewhere whose address carries its own
 * right. The token is therefore for the hub alone: another host never sees it.
 */
export type RepoFile = {
  readonly path: string
  /** Null where the hub does not say. */
  readonly bytes: number | null
  readonly sha256: string | null
}

export type Repo = {
  readonly name: string
  /** The commit: the files of one pull are of one state of the repository, also when it is resumed. */
  readonly revision: string
  readonly licence: string | null
  readonly files: readonly RepoFile[]
}

/** A body that begins at `from`; the tag is that of the store, strong ones only. */
export type Transfer = {
  readonly from: number
  readonly etag: string | null
  readonly body: AsyncIterable<Buffer> & { destroy(): unknown }
}

export type Hub = {
  readonly endpoint: string
  describe(repo: string, revision: string | undefined, signal: AbortSignal): Promise<Repo>
  /** Size and checksum of one file, for hubs whose list has none. */
  stat(repo: string, revision: string, path: string, signal: AbortSignal): Promise<{ bytes: number | null; sha256: string | null }>
  /** The file from a place on; 'restart' when what has been received so far is not the beginning of what is there now. */
  open(
    repo: string,
    revision: string,
    file: { readonly path: string; readonly bytes: number },
    from: { readonly offset: number; readonly etag: string | null },
    signal: AbortSignal,
  ): Promise<Transfer | 'restart'>
  close(): Promise<void>
}

export type HubLimits = { readonly connectMs: number; readonly headersMs: number; readonly idleMs: number }

/** There is none for the whole: a large model on a slow line may take a day. */
const LIMITS: HubLimits = { connectMs: 10_000, headersMs: 30_000, idleMs: 60_000 }
const MAX_REDIRECTS = 8
const MAX_LISTING_BYTES = 32 * 1024 * 1024 // repositories with thousands of files stay below a few megabytes
const MAX_ERROR_BYTES = 64 * 1024
const MAX_RETRY_AFTER_MS = 5 * 60_000

/** Something that may be better in a moment: a broken connection, 429, a 5xx. Anything else that is thrown is final. */
export class Passing extends Error {
  readonly retryAfterMs: number | undefined
  constructor(message: string, options: { cause?: unknown; retryAfterMs?: number | undefined } = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause })
    this.retryAfterMs = options.retryAfterMs
  }
}

const reasonOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  // Several addresses were tried: the first one's reason is as good as any.
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  return error.message.includes(code) ? error.message : `${code} ${error.message}`
}

const Listing = z.object({
  sha: z.string().max(200).optional(),
  cardData: z.object({ license: z.unknown() }).nullish(),
  siblings: z.array(
    z.object({
      rfilename: z.string().max(4096),
      size: z.int().nonnegative().nullish(),
      lfs: z.object({ sha256: z.string().optional(), oid: z.string().optional(), size: z.int().nonnegative().optional() }).nullish(),
    }),
  ),
})

const SHA256 = /^[0-9a-f]{64}$/
const asSha256 = (text: string | undefined): string | null => {
  const bare = text
    ?.replace(/^W\//, '')
    .replace(/"/g, '')
    .replace(/^sha256:/, '')
    .toLowerCase()
  return bare !== undefined && SHA256.test(bare) ? bare : null
}

type Answer = Dispatcher.ResponseData
const header = (answer: Answer, name: string): string | undefined => {
  const value = answer.headers[name]
  return Array.isArray(value) ? value[0] : value
}
const count = (text: string | undefined): number | null => (text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : null)

/** RFC 9110 §10.2.3: seconds or a date; only seconds are used by the hubs we know. */
const retryAfterMs = (answer: Answer): number | undefined => {
  const seconds = count(header(answer, 'retry-after'))
  return seconds === null ? undefined : Math.min(seconds * 1000, MAX_RETRY_AFTER_MS)
}

const readText = async (answer: Answer, maxBytes: number): Promise<string> => {
  const parts: Buffer[] = []
  let bytes = 0
  for await (const part of answer.body as AsyncIterable<Buffer>) {
    bytes += part.length
    if (bytes > maxBytes) {
      answer.body.destroy()
      throw new Error(`The hub's answer is larger than ${maxBytes} bytes.`)
    }
    parts.push(part)
  }
  return Buffer.concat(parts).toString('utf8')
}

const encodePath = (path: string): string => path.split('/').map(encodeURIComponent).join('/')

export const openHub = (options: { endpoint: string; token: string | undefined; limits?: Partial<HubLimits> }): Hub => {
  const limits = { ...LIMITS, ...options.limits }
  const endpoint = options.endpoint.replace(/\/+$/, '')
  const home = new URL(endpoint)
  const agent = new Agent({
    connect: { timeout: limits.connectMs },
    headersTimeout: limits.headersMs,
    bodyTimeout: limits.idleMs,
    connections: 4,
  })

  const ask = async (url: URL, method: 'GET' | 'HEAD', headers: Record<string, string>, signal: AbortSignal): Promise<Answer> => {
    const own = url.origin === home.origin && options.token !== undefined ? { authorization: `Bearer ${options.token}` } : {}
    try {
      return await request(url, {
        method,
        // Ranges and checksums are of the file as it is, so nothing may compress it on the way.
        headers: { 'user-agent': 'parvis', 'accept-encoding': 'identity', ...headers, ...own },
        dispatcher: agent,
        signal,
      })
    } catch (cause) {
      signal.throwIfAborted()
      throw url.origin === home.origin
        ? new Passing(`The hub at ${endpoint} cannot be reached: ${reasonOf(cause)}`, { cause })
        : new Passing(`${url.host}, where the hub keeps the file, cannot be reached: ${reasonOf(cause)}`, { cause })
    }
  }

  /** Follows redirects itself, since each hop decides anew who may see the token, and the hub's own answer says what the store's does not. */
  const follow = async (first: URL, method: 'GET' | 'HEAD', headers: Record<string, string>, signal: AbortSignal) => {
    let url = first
    let linkedBytes: number | null = null
    let linkedSha256: string | null = null
    for (let hop = 0; hop <= MAX_REDIRECTS; hop += 1) {
      const answer = await ask(url, method, headers, signal)
      if (url.origin === home.origin) {
        linkedBytes = count(header(answer, 'x-linked-size')) ?? linkedBytes
        linkedSha256 = asSha256(header(answer, 'x-linked-etag')) ?? linkedSha256
      }
      if (![301, 302, 303, 307, 308].includes(answer.statusCode)) return { answer, url, linkedBytes, linkedSha256 }
      const location = header(answer, 'location')
      await answer.body.dump()
      if (location === undefined || !URL.canParse(location, url.href)) throw new Error(`${url.host} sent us on without saying where to.`)
      const next = new URL(location, url)
      if (next.protocol !== 'https:' && (next.protocol !== 'http:' || url.protocol === 'https:')) {
        throw new Error(`${url.host} sent us on to an address of kind ${next.protocol}//, which is not followed.`)
      }
      url = next
    }
    throw new Error(`The hub at ${endpoint} sent us on more than ${MAX_REDIRECTS} times.`)
  }

  /** What a status other than the expected says to a person. Addresses of the store are never shown: they carry a signature. */
  const refuse = async (answer: Answer, url: URL, repo: string, what: string): Promise<Error> => {
    const status = answer.statusCode
    const code = header(answer, 'x-error-code')
    const said = header(answer, 'x-error-message')
    await readText(answer, MAX_ERROR_BYTES).catch(() => undefined)
    if (status === 429 || status >= 500) {
      return new Passing(`${url.host} answers ${status}${status === 429 ? ' (too many requests)' : ''}`, {
        retryAfterMs: retryAfterMs(answer),
      })
    }
    if (url.origin !== home.origin) {
      // The signature of a store's address runs out; asking the hub again gives a new one.
      return new Passing(`${url.host}, where the hub keeps the file, answers ${status}`)
    }
    const page = `${endpoint}/${repo}`
    if (code === 'GatedRepo' || status === 403) {
      return new Error(
        options.token === undefined
          ? `${repo} is gated: accept its terms at ${page}, make a token there, and set HF_TOKEN to it.`
          : `${repo} is gated and HF_TOKEN does not open it: accept its terms at ${page} with the account of the token. The hub says: ${said ?? `status ${status}`}`,
      )
    }
    if (status === 401) {
      // The hub does not tell strangers whether a name exists.
      return new Error(
        options.token === undefined
          ? `The hub at ${endpoint} does not show ${repo}: there is no such repository, or it is private or gated. Check the name; for a private or gated one set HF_TOKEN.`
          : `The hub at ${endpoint} does not accept HF_TOKEN for ${repo}: check the token, and the name.`,
      )
    }
    if (status === 404) {
      if (code === 'RevisionNotFound') return new Error(`${repo} has no revision ${what}.`)
      if (code === 'EntryNotFound') return new Error(`${repo} has no file ${what}.`)
      return new Error(`The hub at ${endpoint} has no repository ${repo}. Check the name at ${endpoint}.`)
    }
    return new Error(`The hub at ${endpoint} answers ${status} for ${repo}${said === undefined ? '' : `: ${said.slice(0, 500)}`}.`)
  }

  const fileUrl = (repo: string, revision: string, path: string): URL =>
    new URL(`${endpoint}/${encodePath(repo)}/resolve/${encodeURIComponent(revision)}/${encodePath(path)}`)

  return {
    endpoint,
    describe: async (repo, revision, signal) => {
      const at = revision === undefined ? '' : `/revision/${encodeURIComponent(revision)}`
      const { answer, url } = await follow(new URL(`${endpoint}/api/models/${encodePath(repo)}${at}?blobs=true`), 'GET', {}, signal)
      if (answer.statusCode !== 200) throw await refuse(answer, url, repo, revision ?? 'main')
      const body = await readText(answer, MAX_LISTING_BYTES).catch((cause: unknown) => {
        signal.throwIfAborted()
        throw new Passing(`The hub's list of ${repo} broke off: ${reasonOf(cause)}`, { cause })
      })
      let parsed: z.output<typeof Listing>
      try {
        parsed = Listing.parse(JSON.parse(body))
      } catch (cause) {
        throw new Error(`${endpoint} does not answer like a hub (no list of files for ${repo}). Check HF_ENDPOINT.`, { cause })
      }
      const licence = parsed.cardData?.license
      return {
        name: repo,
        revision: parsed.sha ?? revision ?? 'main',
        licence: typeof licence === 'string' ? licence : null,
        files: parsed.siblings
          // A name that leaves its folder is nothing that we would ever write.
          .filter((file) => isInside(file.rfilename))
          .map((file) => ({
            path: file.rfilename,
            bytes: file.lfs?.size ?? file.size ?? null,
            sha256: asSha256(file.lfs?.sha256 ?? file.lfs?.oid),
          })),
      }
    },
    stat: async (repo, revision, path, signal) => {
      const { answer, url, linkedBytes, linkedSha256 } = await follow(fileUrl(repo, revision, path), 'HEAD', {}, signal)
      if (answer.statusCode !== 200) throw await refuse(answer, url, repo, path)
      await answer.body.dump()
      return { bytes: linkedBytes ?? count(header(answer, 'content-length')), sha256: linkedSha256 }
    },
    open: async (repo, revision, file, from, signal) => {
      const range: Record<string, string> = from.offset === 0 ? {} : { range: `bytes=${from.offset}-` }
      if (from.offset > 0 && from.etag !== null) range['if-range'] = from.etag
      const { answer, url } = await follow(fileUrl(repo, revision, file.path), 'GET', range, signal)
      const tag = header(answer, 'etag')
      const etag = tag !== undefined && /^"[^"]*"$/.test(tag) ? tag : null
      // Whoever leaves the loop over the body early destroys it; an error listener keeps that from ending the process.
      answer.body.on('error', () => undefined)

      if (answer.statusCode === 200) {
        const length = count(header(answer, 'content-length'))
        if (length !== null && length !== file.bytes) {
          answer.body.destroy()
          throw new Passing(`${url.host} sends ${length} bytes for ${file.path}, which should have ${file.bytes}`)
        }
        return { from: 0, etag, body: answer.body }
      }
      if (answer.statusCode === 206 && from.offset > 0) {
        const match = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(header(answer, 'content-range') ?? '')
        const fits = match !== null && Number(match[1]) === from.offset && (match[2] === '*' || Number(match[2]) === file.bytes)
        // Some stores answer the range and overlook the condition.
        if (fits && (from.etag === null || etag === null || etag === from.etag))
          return { from: from.offset, etag: etag ?? from.etag, body: answer.body }
        answer.body.destroy()
        return 'restart'
      }
      if (answer.statusCode === 416) {
        await answer.body.dump()
        return 'restart'
      }
      throw await refuse(answer, url, repo, file.path)
    },
    close: () => agent.destroy(),
  }
}
