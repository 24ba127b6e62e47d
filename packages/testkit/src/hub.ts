import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'

/**
 * A hub of models that answers as Hugging Face does: the API lists a repository's files with sizes and checksums, `resolve` sends
 * the client on to a second server on another port (the CDN), which knows ranges, entity tags and no tokens. What goes wrong is scripted: a
 * fault is queued and taken by the next answer of the server it is meant for, so a test says "the first transfer breaks" and no more.
 */
export type HubRepo = {
  readonly files: Readonly<Record<string, Buffer>>
  /** Needs the hub's token, as gated and private repositories do. */
  readonly gated?: boolean
  /** Files that are not in large-file storage have no checksum in the list. */
  readonly plain?: readonly string[]
  /** What the hub says of a file instead of the truth. */
  readonly claims?: Readonly<Record<string, { readonly size?: number; readonly sha256?: string }>>
  /** Answers with a redirect to this name, as after a repository was renamed. */
  readonly movedTo?: string
}

export type HubFault =
  /** The connection breaks after so many bytes of the body. */
  | { readonly do: 'cut'; readonly afterBytes: number }
  /** The body stops after so many bytes, and the connection stays. */
  | { readonly do: 'stall'; readonly afterBytes: number }
  /** The server says nothing at all. */
  | { readonly do: 'silence' }
  /** The whole file with 200, whatever range was asked for. */
  | { readonly do: 'ignore-range' }
  /** The file from the wrong place: the range is answered, but not the one that was asked for. */
  | { readonly do: 'wrong-range' }
  /** The file has become another one, with another tag. */
  | { readonly do: 'replace'; readonly content: Buffer; readonly ignoresIfRange?: boolean }
  /** One byte is not what it was. */
  | { readonly do: 'corrupt'; readonly at: number }
  /** More bytes than the file has; `unsaid` when the length is not stated before. */
  | { readonly do: 'overflow'; readonly extraBytes: number; readonly unsaid?: boolean }
  /** The body has no length and ends early, in good order. */
  | { readonly do: 'short'; readonly afterBytes: number }
  | { readonly do: 'status'; readonly status: number; readonly headers?: Readonly<Record<string, string>>; readonly body?: string }
  | { readonly do: 'redirect'; readonly location: string }
  /** Redirects to itself, for ever. */
  | { readonly do: 'loop' }

export type HubRequest = {
  readonly server: 'api' | 'resolve' | 'cdn'
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
}

export type Hub = {
  readonly url: string
  readonly cdnUrl: string
  readonly token: string
  readonly commit: string
  readonly requests: readonly HubRequest[]
  /** Queues a fault; `times` repeats it. */
  fail(server: HubRequest['server'], fault: HubFault, times?: number): void
  /** Resolves when a request arrives for which this holds, those that came before included. */
  until(which: (request: HubRequest) => boolean): Promise<HubRequest>
  /** Called before every chunk of a body that a fault has not taken over; a test may hold the transfer here. */
  hold: (() => Promise<void>) | undefined
  close(): Promise<void>
}

const CHUNK_BYTES = 64 * 1024
const UNTIL_LIMIT_MS = 30_000

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

const listen = (server: Server): Promise<number> =>
  new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port))
  })

/** `bytes=5-` or `bytes=5-9`; anything else is answered whole, as servers do. */
const rangeOf = (header: string | undefined): { from: number; to: number } | undefined => {
  const match = /^bytes=(\d+)-(\d*)$/.exec(header ?? '')
  return match === null ? undefined : { from: Number(match[1]), to: match[2] === '' ? Number.MAX_SAFE_INTEGER : Number(match[2]) }
}

export const startHub = async (repos: Readonly<Record<string, HubRepo>>): Promise<Hub> => {
  const token = 'hf_test_token'
  const commit = 'c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00'
  const requests: HubRequest[] = []
  const faults: Record<HubRequest['server'], HubFault[]> = { api: [], resolve: [], cdn: [] }
  const waiting: { which: (request: HubRequest) => boolean; found: (request: HubRequest) => void }[] = []
  const sockets = new Set<Socket>()
  let hold: (() => Promise<void>) | undefined

  const note = (server: HubRequest['server'], request: IncomingMessage): HubFault | undefined => {
    const noted: HubRequest = { server, method: request.method ?? '', path: request.url ?? '', headers: request.headers }
    requests.push(noted)
    for (const wait of waiting.filter(({ which }) => which(noted))) wait.found(noted)
    return faults[server].shift()
  }

  const json = (response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void => {
    response.writeHead(status, { 'content-type': 'application/json; charset=utf-8', ...headers }).end(JSON.stringify(body))
  }
  const refuse = (response: ServerResponse, status: number, code: string, message: string): void =>
    json(response, status, { error: message }, { 'x-error-code': code, 'x-error-message': message })

  /** Faults that need no file. True when the answer is given, or is never to come. */
  const failed = (fault: HubFault | undefined, request: IncomingMessage, response: ServerResponse): boolean => {
    if (fault?.do === 'silence') return true
    if (fault?.do === 'status')
      response.writeHead(fault.status, { 'content-type': 'text/plain', ...fault.headers }).end(fault.body ?? 'fault')
    else if (fault?.do === 'redirect') response.writeHead(302, { location: fault.location }).end()
    else if (fault?.do === 'loop') {
      const from = new URL(request.url ?? '/', 'http://hub')
      const turn = Number(from.searchParams.get('turn') ?? 0) + 1
      faults.resolve.unshift(fault)
      response.writeHead(302, { location: `${from.pathname}?turn=${turn}` }).end()
    } else return false
    return true
  }

  const hub = createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://hub')
    const api = /^\/api\/models\/([^/]+\/[^/]+)(?:\/revision\/([^/]+))?$/.exec(url.pathname)
    const resolve = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    if (url.pathname === '/' || (api === null && resolve === null)) {
      note('api', request)
      response.writeHead(url.pathname === '/' ? 200 : 404, { 'content-type': 'text/html' }).end('<!doctype html>')
      return
    }
    if (failed(note(api === null ? 'resolve' : 'api', request), request, response)) return

    const name = decodeURIComponent((api ?? resolve)?.[1] ?? '')
    const revision = decodeURIComponent((api ?? resolve)?.[2] ?? 'main')
    const repo = repos[name]
    const known = request.headers.authorization === `Bearer ${token}`
    // The hub does not tell strangers which names exist: without an account an unknown repository is 401, not 404.
    if (repo === undefined)
      return refuse(response, known ? 404 : 401, 'RepoNotFound', known ? 'Repository not found' : 'Invalid username or password.')
    if (repo.movedTo !== undefined) {
      response.writeHead(307, { location: url.pathname.replace(name, repo.movedTo) + url.search }).end()
      return
    }
    if (revision !== 'main' && revision !== commit) return refuse(response, 404, 'RevisionNotFound', `Invalid rev id: ${revision}`)

    if (api !== null) {
      json(response, 200, {
        _id: '0',
        id: name,
        modelId: name,
        sha: commit,
        private: false,
        gated: repo.gated === true ? 'manual' : false,
        cardData: { license: 'apache-2.0' },
        siblings: Object.entries(repo.files).map(([rfilename, content]) => {
          const claim = repo.claims?.[rfilename]
          const size = claim?.size ?? content.length
          const stored = { blobId: sha256(content).slice(0, 40), rfilename }
          // Sizes and checksums only come when asked for.
          if (url.searchParams.get('blobs') !== 'true') return { rfilename }
          return repo.plain?.includes(rfilename) === true
            ? { ...stored, size }
            : { ...stored, size, lfs: { sha256: claim?.sha256 ?? sha256(content), size, pointerSize: 134 } }
        }),
      })
      return
    }

    // A gated repository shows its list of files to everybody, and its files to those it let in.
    if (repo.gated === true && !known)
      return refuse(response, 401, 'GatedRepo', `Access to model ${name} is restricted. You must have access to it and be authenticated.`)
    const path = decodeURIComponent(resolve?.[3] ?? '')
    const content = repo.files[path]
    if (content === undefined) return refuse(response, 404, 'EntryNotFound', 'Entry not found')
    const claim = repo.claims?.[path]
    response
      .writeHead(302, {
        location: `${cdnUrl}/${encodeURIComponent(name)}/${encodeURIComponent(path)}?signature=once`,
        'x-repo-commit': commit,
        'x-linked-size': String(claim?.size ?? content.length),
        'x-linked-etag': `"${repo.plain?.includes(path) === true ? sha256(content).slice(0, 40) : (claim?.sha256 ?? sha256(content))}"`,
        'accept-ranges': 'bytes',
      })
      .end()
  })

  const send = async (response: ServerResponse, body: Buffer, fault: HubFault | undefined): Promise<void> => {
    const limit =
      fault?.do === 'cut' || fault?.do === 'stall' || fault?.do === 'short' ? Math.min(fault.afterBytes, body.length) : body.length
    for (let at = 0; at < limit; at += CHUNK_BYTES) {
      await hold?.()
      if (response.destroyed) return
      const chunk = body.subarray(at, Math.min(at + CHUNK_BYTES, limit))
      await new Promise<void>((sent) => response.write(chunk, () => sent()))
    }
    if (fault?.do === 'cut') response.socket?.destroySoon()
    else if (fault?.do !== 'stall') response.end()
  }

  const cdn = createServer((request, response) => {
    const fault = note('cdn', request)
    if (failed(fault, request, response)) return
    const [name = '', path = ''] = new URL(request.url ?? '/', 'http://cdn').pathname.slice(1).split('/').map(decodeURIComponent)
    const kept = repos[name]?.files[path]
    // Signed addresses come with their own right; a token here means that the client gave it to a stranger.
    if (kept === undefined || request.headers.authorization !== undefined) {
      response.writeHead(request.headers.authorization === undefined ? 404 : 400).end()
      return
    }
    let content = fault?.do === 'replace' ? fault.content : kept
    const tag = `"${sha256(content).slice(0, 32)}"`
    if (fault?.do === 'corrupt') {
      content = Buffer.from(content)
      content[fault.at] = (content[fault.at] ?? 0) ^ 0xff
    }
    const asked = rangeOf(request.headers.range)
    const condition = request.headers['if-range']
    const same = condition === undefined || condition === tag || (fault?.do === 'replace' && fault.ignoresIfRange === true)
    const headers: Record<string, string> = { etag: tag, 'accept-ranges': 'bytes', 'content-type': 'application/octet-stream' }
    if (asked === undefined || !same || fault?.do === 'ignore-range') {
      const body = fault?.do === 'overflow' ? Buffer.concat([content, Buffer.alloc(fault.extraBytes)]) : content
      if (fault?.do !== 'short' && !(fault?.do === 'overflow' && fault.unsaid === true)) headers['content-length'] = String(body.length)
      response.writeHead(200, headers)
      void send(response, body, fault)
      return
    }
    const from = fault?.do === 'wrong-range' ? 0 : asked.from
    if (from >= content.length) {
      response.writeHead(416, { 'content-range': `bytes */${content.length}` }).end()
      return
    }
    const body = content.subarray(from, Math.min(asked.to + 1, content.length))
    if (fault?.do !== 'short') headers['content-length'] = String(body.length)
    response.writeHead(206, { ...headers, 'content-range': `bytes ${from}-${from + body.length - 1}/${content.length}` })
    void send(response, body, fault)
  })

  for (const server of [hub, cdn]) {
    server.on('connection', (socket: Socket) => {
      sockets.add(socket)
      socket.on('close', () => sockets.delete(socket))
    })
  }
  const url = `http://127.0.0.1:${await listen(hub)}`
  const cdnUrl = `http://127.0.0.1:${await listen(cdn)}`

  return {
    url,
    cdnUrl,
    token,
    commit,
    requests,
    get hold() {
      return hold
    },
    set hold(next) {
      hold = next
    },
    fail: (server, fault, times = 1) => {
      for (let time = 0; time < times; time += 1) faults[server].push(fault)
    },
    until: (which) => {
      const known = requests.find(which)
      if (known !== undefined) return Promise.resolve(known)
      return new Promise((found, late) => {
        const entry = {
          which,
          found: (request: HubRequest) => {
            clearTimeout(limit)
            waiting.splice(waiting.indexOf(entry), 1)
            found(request)
          },
        }
        const limit = setTimeout(() => late(new Error(`no such request within ${UNTIL_LIMIT_MS} ms`)), UNTIL_LIMIT_MS)
        waiting.push(entry)
      })
    },
    close: async () => {
      const closed = [hub, cdn].map((server) => new Promise<void>((resolve) => server.close(() => resolve())))
      for (const socket of sockets) socket.destroy()
      await Promise.all(closed)
    },
  }
}
