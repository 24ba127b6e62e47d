import { ChatChunk, ChatCompletion, type ChatRequest } from '@parvis/wire/openai/chat'
import { EmbeddingsAnswer, type EmbeddingsRequest } from '@parvis/wire/openai/embeddings'
import { EngineError } from '@parvis/wire/openai/error'
import { ModelList } from '@parvis/wire/openai/models'
import { eventReader } from '@parvis/wire/sse'

/*
 * A small client of the inference API. It runs wherever `fetch` does, in browsers too. What goes wrong is a value: callers of an API
 * expect refusals and lost connections, and a value cannot be forgotten the way a thrown error can. Nothing is tried again; who calls
 * knows better whether to.
 */

export type Problem = {
  /**
   * `refused`: the server said no. `unreachable`: no connection, or it was lost. `timeout`: the server was too slow.
   * `aborted`: by the caller's signal. `unreadable`: an answer that is not what the contract says.
   */
  kind: 'refused' | 'unreachable' | 'timeout' | 'aborted' | 'unreadable'
  /** The HTTP status, where there was an answer. */
  status: number | undefined
  /** The server's word for the kind of error, for instance `RateLimitError`. */
  type: string | undefined
  message: string
  requestId: string | undefined
  /** How long the server asks us to wait. */
  retryAfterMs: number | undefined
}

export type Answer<T> = { ok: true; value: T; requestId: string | undefined } | { ok: false; problem: Problem }

export type CallOptions = { signal?: AbortSignal }

export type Client = {
  chat(request: ChatRequest, options?: CallOptions): Promise<Answer<ChatCompletion>>
  /** The pieces of an answer as they come. A problem is always the last thing given; leaving the loop ends the request. */
  chatStream(request: ChatRequest, options?: CallOptions): AsyncGenerator<Answer<ChatChunk>, void, undefined>
  embeddings(request: EmbeddingsRequest, options?: CallOptions): Promise<Answer<EmbeddingsAnswer>>
  models(options?: CallOptions): Promise<Answer<ModelList>>
}

export type ClientOptions = {
  /** The server's address, with or without `/v1` at the end. */
  baseUrl: string
  /** The secret half of an API key. */
  key: string
  /** The project to act in; without it the key's default project (contract 2.1). */
  project?: string
  /** How long a whole answer may take. The server's own limit is five minutes (contract 2.5). */
  timeoutMs?: number
  /** How long a stream may be silent. A long prompt is silent until its first token. */
  silenceMs?: number
}

const DEFAULT_TIMEOUT_MS = 310_000
const DEFAULT_SILENCE_MS = 120_000
const MAX_ANSWER_BYTES = 256 << 20 // 2,048 embeddings of 4,096 numbers written out are about a third of this
const MAX_ERROR_BYTES = 64 << 10

type Deadline = { signal: AbortSignal; restart(): void; release(): void; cause(): 'timeout' | 'aborted' | undefined }

/** One signal for both reasons to give up, which can tell them apart afterwards. */
const openDeadline = (limitMs: number, callers: AbortSignal | undefined): Deadline => {
  const controller = new AbortController()
  let cause: 'timeout' | 'aborted' | undefined
  const giveUp = (reason: 'timeout' | 'aborted') => {
    cause ??= reason
    controller.abort()
  }
  const leave = () => giveUp('aborted')
  const wait = () => setTimeout(() => giveUp('timeout'), limitMs)
  let timer = wait()
  if (callers?.aborted) leave()
  callers?.addEventListener('abort', leave, { once: true })
  return {
    signal: controller.signal,
    restart() {
      clearTimeout(timer)
      timer = wait()
    },
    release() {
      clearTimeout(timer)
      callers?.removeEventListener('abort', leave)
    },
    cause: () => cause,
  }
}

const failed = (kind: Problem['kind'], message: string, response?: Response): { ok: false; problem: Problem } => ({
  ok: false,
  problem: {
    kind,
    status: response?.status,
    type: undefined,
    message,
    requestId: requestIdOf(response),
    retryAfterMs: undefined,
  },
})

const requestIdOf = (response: Response | undefined): string | undefined => response?.headers.get('x-request-id') ?? undefined

/** What an error thrown by `fetch` or by reading its body means. */
const lost = (error: unknown, deadline: Deadline, limitMs: number, response?: Response): { ok: false; problem: Problem } => {
  const cause = deadline.cause()
  if (cause === 'timeout') return failed('timeout', `the server did not answer within ${limitMs} ms`, response)
  if (cause === 'aborted') return failed('aborted', 'the request was ended by the caller', response)
  // fetch says only "fetch failed"; the reason is inside.
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause.message : ''
  const outer = error instanceof Error ? error.message : 'the connection was lost'
  return failed('unreachable', inner === '' ? outer : `${outer}: ${inner}`, response)
}

class TooLarge extends Error {}

const readBody = async (response: Response, maxBytes: number): Promise<string> => {
  if (response.body === null) return ''
  const decoder = new TextDecoder()
  const reader = response.body.getReader()
  const pieces: string[] = []
  let bytes = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return pieces.join('') + decoder.decode()
    bytes += value.byteLength
    if (bytes > maxBytes) {
      await reader.cancel()
      throw new TooLarge(`an answer of more than ${maxBytes} bytes`)
    }
    pieces.push(decoder.decode(value, { stream: true }))
  }
}

const parseJson = (text: string): unknown => {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return undefined
  }
}

/** RFC 9110 §10.2.3: seconds, or a date; SDKs also know a header in milliseconds. */
const retryAfterOf = (response: Response): number | undefined => {
  const inMs = Number(response.headers.get('retry-after-ms') ?? Number.NaN)
  if (inMs >= 0) return inMs
  const inSeconds = Number(response.headers.get('retry-after') ?? Number.NaN)
  return inSeconds >= 0 ? inSeconds * 1000 : undefined
}

const refused = (text: string, response: Response): { ok: false; problem: Problem } => {
  const read = EngineError.safeParse(parseJson(text))
  const said = read.success ? read.data : undefined
  return {
    ok: false,
    problem: {
      kind: 'refused',
      status: response.status,
      type: said?.type ?? undefined,
      message: said?.message ?? `the server answered with status ${response.status}`,
      requestId: requestIdOf(response),
      retryAfterMs: retryAfterOf(response),
    },
  }
}

/** As much of a schema of wire as reading needs. */
type Reader<T> = {
  safeParse(value: unknown): { success: true; data: T } | { success: false; error: { issues: { path: PropertyKey[]; message: string }[] } }
}

/** A value read by its schema, or where it is not what the contract says. */
const readAs = <T>(schema: Reader<T>, text: string, response: Response): Answer<T> => {
  const read = schema.safeParse(parseJson(text))
  if (read.success) return { ok: true, value: read.data, requestId: requestIdOf(response) }
  const issue = read.error.issues[0]
  return failed('unreadable', `the answer is not as expected at ${issue?.path.join('.') || 'its top'}: ${issue?.message ?? ''}`, response)
}

export const openClient = (options: ClientOptions): Client => {
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS
  const silenceMs = options.silenceMs ?? DEFAULT_SILENCE_MS
  const origin = options.baseUrl.replace(/\/+$/, '').replace(/\/v1$/, '')
  const base = `${origin}${options.project === undefined ? '' : `/${options.project}`}/v1`

  const send = (path: string, body: unknown, signal: AbortSignal): Promise<Response> =>
    fetch(`${base}${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { authorization: `Bearer ${options.key}`, ...(body !== undefined && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal,
    })

  const call = async <T>(path: string, body: unknown, schema: Reader<T>, signal: AbortSignal | undefined): Promise<Answer<T>> => {
    const deadline = openDeadline(timeoutMs, signal)
    let response: Response | undefined
    try {
      response = await send(path, body, deadline.signal)
      if (!response.ok) return refused(await readBody(response, MAX_ERROR_BYTES), response)
      return readAs(schema, await readBody(response, MAX_ANSWER_BYTES), response)
    } catch (error) {
      if (error instanceof TooLarge) return failed('unreadable', error.message, response)
      return lost(error, deadline, timeoutMs, response)
    } finally {
      deadline.release()
    }
  }

  async function* stream(body: unknown, signal: AbortSignal | undefined): AsyncGenerator<Answer<ChatChunk>, void, undefined> {
    const deadline = openDeadline(silenceMs, signal)
    let response: Response | undefined
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined
    try {
      response = await send('/chat/completions', body, deadline.signal)
      if (!response.ok) {
        yield refused(await readBody(response, MAX_ERROR_BYTES), response)
        return
      }
      const decoder = new TextDecoder()
      const events = eventReader()
      reader = response.body?.getReader()
      for (;;) {
        deadline.restart()
        const piece = await reader?.read()
        if (piece === undefined || piece.done) {
          yield failed('unreachable', 'the stream ended before the answer did', response)
          return
        }
        for (const { data } of events(decoder.decode(piece.value, { stream: true }))) {
          if (data === '[DONE]') return
          // An error after the stream has begun is an event of its own (contract 3.5).
          const error = EngineError.safeParse(parseJson(data))
          const answer = error.success ? afterBegin(error.data, response) : readAs(ChatChunk, data, response)
          yield answer
          if (!answer.ok) return
        }
      }
    } catch (error) {
      yield lost(error, deadline, silenceMs, response)
    } finally {
      deadline.release()
      // Whoever leaves the loop early does not want the rest: closing the connection tells the server.
      await reader?.cancel().catch(() => undefined)
    }
  }

  return {
    chat: (request, { signal } = {}) => call('/chat/completions', { ...request, stream: false }, ChatCompletion, signal),
    chatStream: (request, { signal } = {}) => stream({ ...request, stream: true }, signal),
    embeddings: (request, { signal } = {}) => call('/embeddings', request, EmbeddingsAnswer, signal),
    models: ({ signal } = {}) => call('/models', undefined, ModelList, signal),
  }
}

const afterBegin = (said: EngineError, response: Response): { ok: false; problem: Problem } => ({
  ok: false,
  problem: {
    kind: 'refused',
    status: typeof said.code === 'number' ? said.code : undefined,
    type: said.type ?? undefined,
    message: said.message,
    requestId: requestIdOf(response),
    retryAfterMs: undefined,
  },
})
