import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import { plainAddress } from './addresses.ts'
import type { Clock } from './clock.ts'
import { isCrowded } from './db.ts'
import { type ArgumentFault, type Denial, forbidden, invalid, notFound, speakDenial } from './denial.ts'
import { type AccessKey, newId, type OrganizationId, type PrincipalId, type ProjectId } from './ids.ts'
import type { Logger } from './log.ts'
import { no, type Outcome, yes } from './outcome.ts'
import { type Hold, readBytes, type Unread } from './read-body.ts'
import { lookUp } from './unknown-route.ts'

/** Where a call comes from: the address, and what the client calls itself. */
export type Origin = { readonly ip: string; readonly userAgent: string }

const MAX_USER_AGENT_CHARACTERS = 255 // serverless-platform.md 5.4

export const originOf = (headers: FastifyRequest['headers'], address: string): Origin => ({
  ip: plainAddress(address),
  userAgent: (headers['user-agent'] ?? '').slice(0, MAX_USER_AGENT_CHARACTERS),
})

/** Who changes or reads something, and from where: what the audit keeps. */
export type Actor = Origin & {
  readonly organizationId: OrganizationId
  readonly principalId: PrincipalId
  /** For the audit: the principal's id. */
  readonly name: string
  readonly kind: 'user' | 'application'
  /** The owner of the organization may everything in it. */
  readonly owner: boolean
  /** The public half of the key that is used. */
  readonly accessKey?: AccessKey
  /** Or the session of somebody who has signed in. */
  readonly sessionId?: string
}

/**
 * What a route asks of the caller: the kind of object in the singular, and whether it is changed (control-plane.md 3). Scope
 * `organization` is asked before the handler; with `project` the handler asks, since it knows of which project; with `self`
 * too, since a principal may do some things with what is its own, whatever its policies say. `installation` is the operator's:
 * the right counts only in the organization that the first start made. `anywhere` is for what is the same in every project: the right
 * in one of them is enough.
 */
export type Needs = { readonly resource: string; readonly action: 'read' | 'write'; readonly scope: Scope }

type Scope = 'organization' | 'project' | 'self' | 'installation' | 'anywhere'

export type May = (needs: Needs, projectId?: ProjectId) => boolean

/** Says who is calling and what they may. It is handed in by the start page, so that no room needs iam to serve its routes. */
export type Guard = (headers: FastifyRequest['headers'], ip: string, method: string) => Promise<Outcome<{ actor: Actor; may: May }, Denial>>

/** Raw bytes for clients that ask with `dl=1`, base64 in JSON for the others (control-plane.md 2.3). */
export type FileAnswer = { readonly file: { readonly name: string; readonly contentType: string; readonly bytes: Buffer } }

/** For browsers: cookies that go with the answer; without `json` there is no body. */
export type CookieAnswer = { readonly cookies: readonly string[]; readonly json: unknown }

/** What a route that asks for no key may have to look at by itself. `https`: as far as we or a trusted proxy can tell. */
export type Carried = { readonly headers: FastifyRequest['headers']; readonly method: string; readonly https: boolean }

type Input<P, Q, B> = { readonly params: P; readonly query: Q; readonly body: B; readonly may: May }

/** What goes into the reference, beside what the route does. */
export type RouteShape = {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  /** `/billing/v2beta1/invoices/:invoice_id` */
  readonly path: string
  readonly summary: string
  readonly params?: z.ZodType
  readonly query?: z.ZodType
  readonly body?: z.ZodType
  /** Without one, and with nothing in `produces`, there is no body: 204. `z.never()`: it always refuses. */
  readonly answer?: z.ZodType
  /** The content types of an answer that is no JSON, or of a file that is JSON only for those who do not ask with `dl=1`. */
  readonly produces?: { readonly text: string } | { readonly file: readonly string[] }
  /** Denials that routes of its kind do not have. */
  readonly refuses?: readonly Denial['type'][]
  /** In our own bodies null takes something away. Elsewhere it means "not given" (control-plane.md 2.2). */
  readonly nulls?: 'kept'
}

/** A route as it was registered; `nobody`: no key is asked for. */
export type KnownRoute = RouteShape & { readonly needs: Needs | 'nobody' }

type Route<P, Q, B, A> = RouteShape & {
  readonly params?: z.ZodType<P>
  readonly query?: z.ZodType<Q>
  readonly body?: z.ZodType<B>
} & (
    | { readonly needs: Needs; handle(input: Input<P, Q, B> & { readonly actor: Actor }): Promise<Outcome<A, Denial>> }
    | {
        readonly needs: 'nobody'
        handle(input: Omit<Input<P, Q, B>, 'may'> & { readonly from: Origin; readonly carried: Carried }): Promise<Outcome<A, Denial>>
      }
  )

export type Manage = <P = undefined, Q = undefined, B = undefined, A = unknown>(route: Route<P, Q, B, A>) => void

const MAX_BODY_BYTES = 1024 * 1024
/** Where no key is asked for: the longest of them is a password, a name and a token. */
const MAX_STRANGERS_BODY_BYTES = 16 * 1024
/** What is wrong is told of so many places; whoever sends thousands of wrong fields shall not be sent millions of words. */
const MAX_DETAILS = 20
const MAX_NAME_CHARACTERS = 128
/** Who is refused before the body, and goes on sending it, has so long: closing at once would take the answer with it. */
const LINGER_MS = 5_000
const MAX_PAGE = 1_000_000
const CROWDED_RETRY_SECONDS = 5

// The JavaScript client stops parsing when the type says anything more (control-plane.md 2.3).
const JSON_TYPE = 'application/json'

/**
 * `page`, `page_size` and `order_by` of a list (control-plane.md 2.5). `clamp`: a size above the maximum is cut to it, where
 * IAM refuses it. The first order is the default, and every `unknown_*` means no choice.
 */
export const pageQuery = <const O extends readonly [string, ...string[]]>(options: {
  max: number
  fallback: number
  orders: O
  clamp: boolean
}) =>
  z.looseObject({
    page: z.coerce.number().int().min(1).max(MAX_PAGE).default(1),
    page_size: options.clamp
      ? z.coerce
          .number()
          .int()
          .min(1)
          .default(options.fallback)
          .transform((size) => Math.min(size, options.max))
      : z.coerce.number().int().min(1).max(options.max).default(options.fallback),
    order_by: z
      .string()
      .meta({ enum: [...options.orders], description: `Otherwise ${options.orders[0]}.` })
      .optional()
      .transform((order, context): O[number] => {
        if (order === undefined || order.startsWith('unknown_')) return options.orders[0]
        if (options.orders.includes(order)) return order
        context.addIssue({ code: 'custom', message: `one of ${options.orders.join(', ')}` })
        return z.NEVER
      }),
  })

/** A list parameter: given once, several times, or not at all. */
export const listOf = <T extends z.ZodType>(item: T) =>
  z.preprocess((value) => (value === undefined ? [] : Array.isArray(value) ? value : [value]), z.array(item).max(1_000))

/** `true` and `false` as a query has them. */
export const queryFlag = z.enum(['true', 'false']).transform((text) => text === 'true')

/** JSON `null` for an optional field means "not given" (control-plane.md 2.2). */
const withoutNulls = (value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).filter(([, item]) => item !== null))
    : value

/** What stands at a path of what was given. */
const at = (given: unknown, path: readonly PropertyKey[]): unknown =>
  path.reduce<unknown>((value, key) => (typeof value === 'object' && value !== null ? Reflect.get(value, key) : undefined), given)

/** Go writes a parameter that nobody set as an empty one. */
const withoutBlanks = (query: unknown): Record<string, unknown> =>
  Object.fromEntries(Object.entries(query as Record<string, unknown>).filter(([, value]) => value !== ''))

const reasonOf = (issue: z.core.$ZodIssue, given: unknown): ArgumentFault['reason'] => {
  if (issue.code === 'unrecognized_keys') return 'unknown'
  if (at(given, issue.path) === undefined && issue.code.startsWith('invalid_')) return 'required'
  return issue.code === 'invalid_type' || issue.code === 'invalid_format' ? 'format' : 'constraint'
}

const cut = (name: string): string => (name.length > MAX_NAME_CHARACTERS ? `${name.slice(0, MAX_NAME_CHARACTERS)}…` : name)

const toDetails = (error: z.ZodError, given: unknown): ArgumentFault[] => {
  const details: ArgumentFault[] = []
  for (const issue of error.issues.slice(0, MAX_DETAILS)) {
    const reason = reasonOf(issue, given)
    const detail = (path: readonly PropertyKey[], words: string): ArgumentFault => ({
      argument_name: cut(path.map(String).join('.')) || 'body',
      reason,
      help_message: words,
    })
    if (issue.code !== 'unrecognized_keys') details.push(detail(issue.path, issue.message))
    // A typing mistake is named by its own name, not by that of the object around it; the library's words name all of them each time.
    else for (const key of issue.keys.slice(0, MAX_DETAILS)) details.push(detail([...issue.path, key], `Unrecognized key: "${cut(key)}"`))
  }
  return details.slice(0, MAX_DETAILS)
}

const parse = <T>(schema: z.ZodType<T> | undefined, value: unknown): Outcome<T, Denial> => {
  if (schema === undefined) return yes(undefined as T)
  const parsed = schema.safeParse(value)
  return parsed.success ? yes(parsed.data) : no({ type: 'invalid_arguments', details: toDetails(parsed.error, value) })
}

/** For readers that want no JSON. */
export type TextAnswer = { readonly text: { readonly contentType: string; readonly body: string | Buffer } }

const isText = (answer: unknown): answer is TextAnswer => typeof answer === 'object' && answer !== null && 'text' in answer

const isCookies = (answer: unknown): answer is CookieAnswer => typeof answer === 'object' && answer !== null && 'cookies' in answer

const carriedBy = ({ headers, method, protocol }: FastifyRequest): Carried => ({ headers, method, https: protocol === 'https' })

const isFile = (answer: unknown): answer is FileAnswer => typeof answer === 'object' && answer !== null && 'file' in answer

const toJson = (value: unknown): string => JSON.stringify(value, (_, item: unknown) => (typeof item === 'bigint' ? Number(item) : item))

const send = (reply: FastifyReply, status: number, body: unknown): FastifyReply =>
  reply
    .code(status)
    // Set as bytes, since Fastify would add the charset to a string.
    .header('content-type', JSON_TYPE)
    .send(Buffer.from(toJson(body)))

const deny = (reply: FastifyReply, denial: Denial): FastifyReply => {
  const { status, body, retryAfterMs } = speakDenial(denial)
  if (retryAfterMs !== undefined) reply.header('retry-after', String(Math.ceil(retryAfterMs / 1000)))
  return send(reply, status, body)
}

/** The body is not read: who waits to be told to send it will not, and who does not send it is not waited for. */
const denyUnread = (request: FastifyRequest, reply: FastifyReply, denial: Denial): FastifyReply => {
  const { raw } = request
  if (request.headers.expect !== undefined) reply.header('connection', 'close')
  else if (!raw.complete) setTimeout(() => raw.complete || raw.destroy(), LINGER_MS).unref()
  return deny(reply, denial)
}

/** Only now a client that waits for it is told to send its body. */
const goOn = (request: FastifyRequest, reply: FastifyReply): undefined => {
  if (request.headers.expect !== undefined) reply.raw.writeContinue()
}

const sendFile = (reply: FastifyReply, query: unknown, { file }: FileAnswer): FastifyReply => {
  const raw = typeof query === 'object' && query !== null && 'dl' in query && query.dl === '1'
  if (!raw) return send(reply, 200, { name: file.name, content_type: file.contentType, content: file.bytes.toString('base64') })
  const name = file.name.replaceAll(/[^\w.-]/g, '_')
  return reply
    .code(200)
    .header('content-type', file.contentType)
    .header('content-disposition', `attachment; filename="${name}"`)
    .send(file.bytes)
}

/** Declared by the side that uses it: what it has of the memory of the data plane. */
type BodyMemory = { open(): { own(organizationId: string): void; hold(bytes: number): boolean; release(): void } }

/**
 * The management API: each room registers its routes with the function that comes back. A route is guarded before its body is
 * read, checked against its schemas, and answers in the vendor's shapes (control-plane.md 2 and 3). `shapes` is what the
 * reference is made from.
 */
export const openManagement = (
  app: FastifyInstance,
  /**
   * `bodyMs`: how long a body may take to arrive. `region`: the one there is; paths with another are those of nothing. `memory`: where
   * bodies are held from their first byte to the end of the answer, each for its organization, which has a bound then; without a key
   * there are only small ones.
   */
  parts: { guard: Guard; clock: Clock; log: Logger; bodyMs: number; region: string; memory?: BodyMemory },
): { manage: Manage; shapes(): readonly KnownRoute[]; refuseUnknown(request: FastifyRequest, reply: FastifyReply): boolean } => {
  const shapes: KnownRoute[] = []
  const begin = (reply: FastifyReply): FastifyReply =>
    reply
      .header('x-request-id', newId(parts.clock.now()))
      .header('x-content-type-options', 'nosniff')
      .header('x-frame-options', 'DENY')
      .header('content-security-policy', "default-src 'none'; frame-ancestors 'none'")
      .header('cache-control', 'no-store')

  /** Answers for a path that has no route, in our shape, if it is one of the management API. */
  const refuseUnknown = (request: FastifyRequest, reply: FastifyReply): boolean => {
    const found = lookUp(shapes, request.url)
    if (found === undefined) return false
    begin(reply)
    if (found.methods.length > 0) reply.header('allow', found.methods.join(', '))
    if (request.method === 'OPTIONS' && found.methods.length > 0) void reply.code(204).send()
    else denyUnread(request, reply, found.methods.length > 0 ? { type: 'method_not_allowed' } : notFound('route', found.path))
    return true
  }

  const manage: Manage = (route) => {
    shapes.push(route)
    const maxBytes = route.needs === 'nobody' ? MAX_STRANGERS_BODY_BYTES : MAX_BODY_BYTES
    void app.register(async (scope) => {
      // Any content type, with or without a body; GET and DELETE may carry `{}` that nobody reads (control-plane.md 2.2).
      scope.removeAllContentTypeParsers()
      scope.addContentTypeParser('*', (request: FastifyRequest, payload: IncomingMessage) =>
        readBytes(payload, { limitMs: parts.bodyMs, maxBytes, hold: guards.get(request)?.hold }),
      )
      scope.setErrorHandler((error: { unread?: Unread }, request, reply) => {
        if (error.unread === 'too_large') {
          return deny(reply, {
            type: 'invalid_arguments',
            details: [{ argument_name: 'body', reason: 'constraint', help_message: `at most ${maxBytes} bytes` }],
          })
        }
        if (error.unread === 'late') {
          return send(reply, 408, { type: 'request_timeout', message: `the body did not arrive within ${parts.bodyMs / 1000} s` })
        }
        const about = { requestId: reply.getHeader('x-request-id'), method: request.method, route: route.path }
        if (error.unread === 'left') {
          parts.log.debug(about, 'a management client left before its body was here')
          return send(reply, 400, { message: 'the body is not whole' })
        }
        if (error.unread === 'crowded' || isCrowded(error)) {
          const short = error.unread === 'crowded' ? 'room for its body' : 'free connection to the database'
          parts.log.warn(about, `a management request found no ${short}`)
          reply.header('retry-after', String(CROWDED_RETRY_SECONDS))
          return send(reply, 503, { message: 'Too much is asked for at once. Try again in a moment.' })
        }
        parts.log.error({ err: error, ...about }, 'a management request failed')
        return send(reply, 500, { message: 'Internal error' })
      })
      scope.route<{ Querystring: unknown }>({
        method: route.method,
        url: route.path,
        onRequest: async (request, reply) => {
          begin(reply)
          if (route.needs === 'nobody') return goOn(request, reply)
          const guarded = await parts.guard(request.headers, request.ip, request.method)
          if (!guarded.ok) return denyUnread(request, reply, guarded.refusal)
          // What may be done to a project's things depends on the project, which only the handler knows; it asks `may`.
          const asked = route.needs.scope !== 'project' && route.needs.scope !== 'self'
          if (asked && !guarded.value.may(route.needs)) {
            return denyUnread(request, reply, forbidden(route.needs))
          }
          const held = parts.memory?.open()
          held?.own(guarded.value.actor.organizationId)
          reply.raw.once('close', () => held?.release())
          guards.set(request, { ...guarded.value, hold: (bytes) => held?.hold(bytes) ?? true })
          return goOn(request, reply)
        },
        handler: async (request, reply) => {
          if (request.url.includes('%00')) return deny(reply, invalid('query', 'format', NO_ZERO))
          const { region } = request.params as { region?: string }
          if (region !== undefined && region !== parts.region) return deny(reply, notFound('region', region))
          const params = parse(route.params, request.params)
          if (!params.ok) return deny(reply, params.refusal)
          const query = parse(route.query, withoutBlanks(request.query))
          if (!query.ok) return deny(reply, query.refusal)
          const read = route.body === undefined ? yes(undefined) : readJson(request.body, route.nulls === 'kept')
          if (!read.ok) return deny(reply, read.refusal)
          const body = parse(route.body, read.value)
          if (!body.ok) return deny(reply, body.refusal)
          const input = { params: params.value, query: query.value, body: body.value }

          const answer = await (route.needs === 'nobody'
            ? route.handle({ ...input, from: originOf(request.headers, request.ip), carried: carriedBy(request) })
            : handleGuarded(route.needs, request, (who) => route.handle({ ...input, ...who })))
          if (!answer.ok) return deny(reply, answer.refusal)
          if (isCookies(answer.value)) {
            reply.header('set-cookie', answer.value.cookies)
            return answer.value.json === undefined ? reply.code(204).send() : send(reply, 200, answer.value.json)
          }
          if (answer.value === undefined) return reply.code(204).send()
          if (isText(answer.value))
            return reply.code(200).header('content-type', answer.value.text.contentType).send(answer.value.text.body)
          return isFile(answer.value) ? sendFile(reply, request.query, answer.value) : send(reply, 200, answer.value)
        },
      })
    })
  }

  const guards = new WeakMap<FastifyRequest, { actor: Actor; may: May; hold: Hold }>()

  const handleGuarded = <A>(
    needs: Needs,
    request: FastifyRequest,
    work: (who: { actor: Actor; may: May }) => Promise<Outcome<A, Denial>>,
  ): Promise<Outcome<A, Denial>> => {
    const who = guards.get(request)
    return who === undefined ? Promise.resolve(no(forbidden(needs))) : work({ actor: who.actor, may: who.may })
  }

  return { manage, shapes: () => shapes, refuseUnknown }
}

// A text in Postgres cannot hold it.
const NO_ZERO = 'a text must not contain the character U+0000'

const readJson = (body: unknown, keepNulls: boolean): Outcome<unknown, Denial> => {
  if (!(body instanceof Buffer) || body.length === 0) return yes({})
  try {
    const text = body.toString('utf8')
    let zero = false
    const look = (name: string, item: unknown): unknown => {
      zero ||= name.includes('\0') || (typeof item === 'string' && item.includes('\0'))
      return item
    }
    // JSON has only one way to write it; to look at each value takes ten times as long as to read them.
    const value: unknown = text.includes(String.raw`\u0000`) ? JSON.parse(text, look) : JSON.parse(text)
    return zero ? no(invalid('body', 'format', NO_ZERO)) : yes(keepNulls ? value : withoutNulls(value))
  } catch {
    return no({
      type: 'invalid_arguments',
      details: [{ argument_name: 'body', reason: 'format', help_message: 'the body is not valid JSON' }],
    })
  }
}
