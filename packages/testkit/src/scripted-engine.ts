import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as after } from 'node:timers/promises'
import { DONE, toEvent } from '@parvis/wire/sse'
import { scriptedResponse, scriptedResponseEvents } from './scripted-responses.ts'

export type ScriptedUsage = { prompt: number; completion?: number; cached?: number; reasoning?: number }

/**
 * How the engine behaves. Everything may be left out: then it answers `Hello world.` as a well-behaved engine would,
 * streamed or whole as the request asks, with usage where it is asked.
 */
export type Script = {
  /** The pieces of the answer; one event each when streamed. */
  tokens?: readonly string[]
  /** The tokens are said this many times: a long answer that is never in memory as a whole. */
  repeat?: number
  /** Said before the tokens, under both names that engines have for it. */
  reasoning?: readonly string[]
  toolCalls?: readonly { id: string; name: string; arguments: string }[]
  finishReason?: string
  /** What stands in `model`; otherwise what was asked for. */
  model?: string
  /**
   * `false`: none, whatever was asked. `running`: in every event too, as vLLM gives it, which is only to who asks for
   * `continuous_usage_stats`. `last`: in the event with the finish reason.
   */
  usage?: false | 'running' | 'last' | ScriptedUsage
  /** Vectors have this length. */
  dimensions?: number
  /** The encoding of vectors, whatever was asked. */
  encoding?: 'float' | 'base64'

  /** Waits before the first byte of the answer's head. */
  headDelayMs?: number
  /** The head at once, then this long nothing. */
  firstTokenDelayMs?: number
  tokenDelayMs?: number
  /** After this many tokens it waits for `release()`; 0 waits before the first, with the head sent. With `raw`, behind all of it. */
  holdAfter?: number
  /** With `holdAfter`: the head is held too. */
  holdHead?: boolean
  /** The connection is cut after this many tokens; 0 before the head. */
  cutAfter?: number
  /** After this many tokens an event with an error inside. */
  errorAfter?: number
  /** Ends without `[DONE]`. */
  done?: false
  /** Before the first token an event of this many bytes. */
  hugeEventBytes?: number
  /** Keep-alive comments between the tokens, and CRLF at line ends. */
  comments?: boolean
  crlf?: boolean

  status?: number
  headers?: Record<string, string>
  contentType?: string
  /** Stands in place of the whole body; each piece is one write. An empty list is an empty body. */
  raw?: readonly (string | Buffer)[]
  /** A JSON body in place of the usual one. */
  body?: unknown
}

export type ScriptedRequest = {
  readonly method: string
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly bytes: Buffer
  /** The body, where it is JSON. */
  readonly json: unknown
}

/** What a test may wait for. */
export type Moment = 'asked' | 'held' | 'aborted' | 'answered'

export type ScriptedEngine = {
  readonly url: string
  readonly port: number
  /** Every request whose body has arrived, in order. Whoever looks at memory may empty it. */
  readonly requests: ScriptedRequest[]
  /** How often each moment has come. */
  count(moment: Moment): number
  /** Waits until the moment has come this many times since the start (once, unless told otherwise). */
  until(moment: Moment, times?: number): Promise<void>
  /** Bytes of answers handed to the sockets so far; it stops growing when nobody reads. */
  readonly sentBytes: number
  /** Bytes the engine went on producing for callers who had already gone. */
  readonly sentAfterAbortBytes: number
  /** From here on every request gets this. */
  play(script: Script): void
  /** The next request gets this, the ones after it what was played before. May be called several times. */
  playOnce(script: Script): void
  /** Lets all held answers go on. */
  release(): void
  /** Cuts every connection, as a crash would; the port stays open. */
  cut(): void
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

const WAIT_MS = 30_000 // a moment that has not come by then will not come

/** A real HTTP server on loopback that speaks the OpenAI shapes, well or badly as the test tells it. */
export const startScriptedEngine = async (
  first: Script = {},
  options: {
    models?: readonly string[]
    port?: number
    bearer?: string
    /** The paths that it says it has, as FastAPI says it. */
    paths?: readonly string[]
  } = {},
): Promise<ScriptedEngine> => {
  let script = first
  const queued: Script[] = []
  const requests: ScriptedRequest[] = []
  const counts = new Map<Moment, number>()
  const waiting = new Set<() => void>()
  const held = new Set<() => void>()
  const tally = { sent: 0, afterAbort: 0 }

  const happens = (moment: Moment): void => {
    counts.set(moment, (counts.get(moment) ?? 0) + 1)
    for (const look of waiting) look()
  }

  const hold = (answering: Answering): Promise<void> => {
    if (answering.gone) return Promise.resolve()
    const released = new Promise<void>((resolve) => {
      const letGo = (): void => {
        held.delete(letGo)
        resolve()
      }
      held.add(letGo)
      answering.response.once('close', letGo)
    })
    happens('held')
    return released
  }

  const server = createServer((request, response) => {
    void answer(request, response).catch((error: unknown) => response.destroy(error instanceof Error ? error : undefined))
  })
  server.keepAliveTimeout = 60_000

  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    request.on('error', () => {})
    response.on('error', () => {})
    const bytes = await readAll(request)
    if (bytes === undefined) return
    const path = request.url ?? ''
    if (options.bearer !== undefined && path !== '/health' && request.headers.authorization !== `Bearer ${options.bearer}`) {
      return sendJson(response, 401, { error: { message: 'Wrong key', type: 'AuthenticationError', param: null, code: 401 } })
    }
    if (path === '/health') return sendJson(response, 200, { status: 'ok' })
    if (path.endsWith('/v1/models') && request.method === 'GET') {
      const data = (options.models ?? ['tiny-chat']).map((id) => ({ id, object: 'model', created: 0, owned_by: 'scripted' }))
      return sendJson(response, 200, { object: 'list', data })
    }
    if (path.endsWith('/openapi.json') && request.method === 'GET' && options.paths !== undefined) {
      return sendJson(response, 200, { openapi: '3.1.0', paths: Object.fromEntries(options.paths.map((name) => [name, { post: {} }])) })
    }
    const json = parse(bytes)
    requests.push({ method: request.method ?? '', path, headers: request.headers, bytes, json })
    const played = queued.shift() ?? script
    const answering: Answering = { script: played, response, gone: false, asked: asRecord(json), tally, hold }
    response.once('close', () => {
      answering.gone = true
      happens(response.writableFinished ? 'answered' : 'aborted')
    })
    happens('asked')
    await perform(answering, path)
  }

  server.listen(options.port ?? 0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo

  const release = (): void => {
    for (const letGo of held) letGo()
  }
  const close = async (): Promise<void> => {
    if (!server.listening) return
    const closed = once(server, 'close')
    server.close()
    server.closeAllConnections()
    release()
    await closed
  }

  return {
    url: `http://127.0.0.1:${port}`,
    port,
    requests,
    count: (moment) => counts.get(moment) ?? 0,
    until: (moment, times = 1) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if ((counts.get(moment) ?? 0) < times) return
          waiting.delete(look)
          clearTimeout(timer)
          resolve()
        }
        const timer = setTimeout(() => {
          waiting.delete(look)
          reject(new Error(`the scripted engine waited ${WAIT_MS} ms for "${moment}" (${counts.get(moment) ?? 0} of ${times})`))
        }, WAIT_MS)
        waiting.add(look)
        look()
      }),
    get sentBytes() {
      return tally.sent
    },
    get sentAfterAbortBytes() {
      return tally.afterAbort
    },
    play: (next) => {
      script = next
    },
    playOnce: (next) => {
      queued.push(next)
    },
    release,
    cut: () => server.closeAllConnections(),
    close,
    [Symbol.asyncDispose]: close,
  }
}

type Answering = {
  readonly script: Script
  readonly response: ServerResponse
  gone: boolean
  readonly asked: Record<string, unknown>
  readonly tally: { sent: number; afterAbort: number }
  hold(answering: Answering): Promise<void>
}

const perform = async (answering: Answering, path: string): Promise<void> => {
  const { script, response, asked } = answering
  if (script.headDelayMs !== undefined) await after(script.headDelayMs)
  if (script.cutAfter === 0) return cutNow(response)
  if (script.holdHead === true) await answering.hold(answering)
  const streamed = /\/(completions|responses)$/.test(path) && asked['stream'] === true
  const contentType =
    script.contentType ?? (streamed && script.body === undefined ? 'text/event-stream; charset=utf-8' : 'application/json')
  const status = script.status ?? 200
  const headers = { 'content-type': contentType, ...script.headers }

  if (script.raw !== undefined) {
    response.writeHead(status, headers)
    response.flushHeaders()
    for (const piece of script.raw) await say(answering, piece)
    if (script.holdAfter !== undefined) await answering.hold(answering)
    return ended(response)
  }
  if (script.body !== undefined) {
    response.writeHead(status, headers)
    await say(answering, JSON.stringify(script.body))
    return ended(response)
  }
  if (status >= 400) {
    response.writeHead(status, headers)
    await say(answering, JSON.stringify({ error: { message: 'Scripted refusal', type: 'BadRequestError', param: null, code: status } }))
    return ended(response)
  }
  if (streamed) {
    response.writeHead(status, headers)
    response.flushHeaders()
    if (path.endsWith('/responses')) return responseStream(answering)
    return path.endsWith('/chat/completions') ? stream(answering) : textStream(answering)
  }
  const whole = await wholeAnswerTo(path, answering)
  if (whole === undefined) return cutNow(response)
  response.writeHead(status, headers)
  await say(answering, JSON.stringify(whole))
  ended(response)
}

const wholeAnswerTo = async (path: string, answering: Answering): Promise<unknown> => {
  if (path.endsWith('/embeddings')) return embeddings(answering)
  if (path.endsWith('/tokenize')) {
    // What it has said itself is counted by words, so that a test sees the difference.
    const { prompt, add_special_tokens: special } = answering.asked
    const said = typeof prompt === 'string' && special === false ? prompt.split(/\s+/).filter(Boolean).length : undefined
    const count = said ?? promptOf(answering.script)
    return { count, max_model_len: 4096, tokens: Array.from({ length: count }, () => 1) }
  }
  if (path.endsWith('/responses')) return responseTo(answering)
  return path.endsWith('/chat/completions') ? completion(answering) : textCompletion(answering)
}

const idOf = (answering: Answering): string =>
  `chatcmpl-${String(answering.response.req.headers['x-request-id'] ?? '00000000-0000-7000-8000-000000000000')}`
const modelOf = ({ script, asked }: Answering): unknown => script.model ?? asked['model']

function* tokensOf(script: Script): Generator<string> {
  const tokens = script.tokens ?? (script.toolCalls === undefined ? ['Hello', ' world', '.'] : [])
  for (let round = 0; round < (script.repeat ?? 1); round += 1) yield* tokens
}

const finishReasonOf = (script: Script): string => script.finishReason ?? (script.toolCalls === undefined ? 'stop' : 'tool_calls')

const PROMPT_TOKENS = 7

const promptOf = ({ usage }: Script): number => (typeof usage === 'object' ? usage.prompt : PROMPT_TOKENS)

const usageOf = (script: Script, said: number): unknown => {
  const told: ScriptedUsage = typeof script.usage === 'object' ? script.usage : { prompt: PROMPT_TOKENS }
  const completion = told.completion ?? said
  return {
    prompt_tokens: told.prompt,
    completion_tokens: completion,
    total_tokens: told.prompt + completion,
    prompt_tokens_details: told.cached === undefined ? null : { cached_tokens: told.cached },
    ...(told.reasoning === undefined ? {} : { completion_tokens_details: { reasoning_tokens: told.reasoning } }),
  }
}

const givesRunning = ({ script, asked }: Answering): boolean =>
  script.usage === 'running' && asRecord(asked['stream_options'])['continuous_usage_stats'] === true

const stream = async (answering: Answering): Promise<void> => {
  const { script, response, asked } = answering
  const wantsUsage = script.usage !== false && asRecord(asked['stream_options'])['include_usage'] === true
  const created = 1_777_583_471
  const event = (rest: object): string => {
    const text = toEvent({ id: idOf(answering), object: 'chat.completion.chunk', created, model: modelOf(answering), ...rest })
    return script.crlf === true ? text.replaceAll('\n', '\r\n') : text
  }
  const chunk = (delta: object, finish: string | null, usage?: unknown): string =>
    event({ choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }], ...(usage === undefined ? {} : { usage }) })

  if (script.firstTokenDelayMs !== undefined) await after(script.firstTokenDelayMs)
  if (script.errorAfter === 0) {
    await say(answering, errorEvent())
    return ended(response)
  }
  if (script.hugeEventBytes !== undefined) {
    const piece = Buffer.alloc(64 * 1024, 'x')
    await say(answering, 'data: {"choices":[{"index":0,"delta":{"content":"')
    for (let sent = 0; sent < script.hugeEventBytes && !answering.gone; sent += piece.length) await say(answering, piece)
    await say(answering, '"},"finish_reason":null}]}\n\n')
  }
  if (script.holdAfter === 0 && script.holdHead !== true) await answering.hold(answering)
  let said = 0
  await say(answering, chunk({ role: 'assistant', content: '' }, null))
  for (const thought of script.reasoning ?? []) {
    said += 1
    await say(answering, chunk({ reasoning: thought, reasoning_content: thought }, null))
  }
  for (const token of tokensOf(script)) {
    if (answering.gone) break
    if (script.tokenDelayMs !== undefined) await after(script.tokenDelayMs)
    if (script.comments === true) await say(answering, ': ping\n\n')
    said += 1
    await say(answering, chunk({ content: token }, null, givesRunning(answering) ? usageOf(script, said) : undefined))
    if (script.cutAfter === said) return cutNow(response)
    if (script.errorAfter === said) {
      await say(answering, errorEvent())
      return ended(response)
    }
    if (script.holdAfter === said) await answering.hold(answering)
  }
  for (const [index, call] of (script.toolCalls ?? []).entries()) {
    said += 1
    await say(
      answering,
      chunk({ tool_calls: [{ index, id: call.id, type: 'function', function: { name: call.name, arguments: '' } }] }, null),
    )
    const middle = Math.ceil(call.arguments.length / 2)
    for (const part of [call.arguments.slice(0, middle), call.arguments.slice(middle)]) {
      await say(answering, chunk({ tool_calls: [{ index, function: { arguments: part } }] }, null))
    }
  }
  await say(answering, chunk({}, finishReasonOf(script), script.usage === 'last' ? usageOf(script, said) : undefined))
  if (wantsUsage && script.usage !== 'last') await say(answering, event({ choices: [], usage: usageOf(script, said) }))
  if (script.done !== false) await say(answering, script.crlf === true ? DONE.replaceAll('\n', '\r\n') : DONE)
  ended(response)
}

const responseTo = ({ script, asked }: Answering): unknown => scriptedResponse(script, asked, PROMPT_TOKENS)

/** Words are counted as in a chat, where it comes to cutting, holding and failing. */
const responseStream = async (answering: Answering): Promise<void> => {
  const { script, response, asked } = answering
  if (script.errorAfter === 0) {
    await say(answering, errorEvent())
    return ended(response)
  }
  let said = 0
  for (const event of scriptedResponseEvents(script, asked, PROMPT_TOKENS)) {
    if (answering.gone) break
    if (script.comments === true) await say(answering, ': ping\n\n')
    await say(answering, event.text)
    if (!event.said) continue
    said += 1
    if (script.cutAfter === said) return cutNow(response)
    if (script.errorAfter === said) {
      await say(answering, 'event: error\ndata: {"type":"error","code":"server_error","message":"Scripted failure","param":null}\n\n')
      return ended(response)
    }
    if (script.holdAfter === said) await answering.hold(answering)
  }
  ended(response)
}

const errorEvent = (): string =>
  toEvent({ error: { message: 'Scripted failure in the stream', type: 'InternalServerError', param: null, code: 500 } })

const completion = async (answering: Answering): Promise<unknown> => {
  const { script } = answering
  let content = ''
  let said = script.reasoning?.length ?? 0
  for (const token of tokensOf(script)) {
    if (answering.gone) return undefined
    if (script.tokenDelayMs !== undefined) await after(script.tokenDelayMs)
    content += token
    said += 1
    if (script.cutAfter === said) return undefined
    if (script.holdAfter === said) await answering.hold(answering)
  }
  const calls = script.toolCalls?.map((call) => ({
    id: call.id,
    type: 'function',
    function: { name: call.name, arguments: call.arguments },
  }))
  return {
    id: idOf(answering),
    object: 'chat.completion',
    created: 1_777_583_471,
    model: modelOf(answering),
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: calls === undefined || content !== '' ? content : null,
          ...(script.reasoning === undefined ? {} : { reasoning: script.reasoning.join(''), reasoning_content: script.reasoning.join('') }),
          ...(calls === undefined ? {} : { tool_calls: calls }),
        },
        logprobs: null,
        finish_reason: finishReasonOf(script),
      },
    ],
    ...(script.usage === false ? {} : { usage: usageOf(script, said + (calls?.length ?? 0)) }),
  }
}

const textHead = (answering: Answering) => ({
  id: idOf(answering).replace('chatcmpl', 'cmpl'),
  object: 'text_completion',
  created: 1_777_583_471,
  model: modelOf(answering),
})

const textCompletion = (answering: Answering): unknown => {
  const { script } = answering
  const tokens = [...tokensOf(script)]
  const choice = { index: 0, text: tokens.join(''), logprobs: null, finish_reason: finishReasonOf(script) }
  return { ...textHead(answering), choices: [choice], ...(script.usage === false ? {} : { usage: usageOf(script, tokens.length) }) }
}

const textStream = async (answering: Answering): Promise<void> => {
  const { script, response, asked } = answering
  const chunk = (text: string, finish: string | null): string => {
    const usage = givesRunning(answering) ? { usage: usageOf(script, said) } : {}
    return toEvent({ ...textHead(answering), choices: [{ index: 0, text, logprobs: null, finish_reason: finish }], ...usage })
  }
  let said = 0
  for (const token of tokensOf(script)) {
    said += 1
    await say(answering, chunk(token, null))
    if (script.cutAfter === said) return cutNow(response)
    if (script.holdAfter === said) await answering.hold(answering)
  }
  await say(answering, chunk('', finishReasonOf(script)))
  const wantsUsage = script.usage !== false && asRecord(asked['stream_options'])['include_usage'] === true
  if (wantsUsage) await say(answering, toEvent({ ...textHead(answering), choices: [], usage: usageOf(script, said) }))
  await say(answering, DONE)
  ended(response)
}

const DIMENSIONS = 8

/** The vector of the input at this place: made of quarters, so that float32 keeps it exactly and a test can compare. */
export const scriptedVector = (index: number, dimensions: number = DIMENSIONS): number[] =>
  Array.from({ length: dimensions }, (_, place) => ((index * 7 + place * 3) % 9) / 4 - 1)

const embeddings = ({ script, asked }: Answering): unknown => {
  const input = asked['input']
  const inputs = Array.isArray(input) && typeof input[0] !== 'number' ? input.length : 1
  const asBase64 = (script.encoding ?? asked['encoding_format']) === 'base64'
  const dimensions = typeof asked['dimensions'] === 'number' ? asked['dimensions'] : (script.dimensions ?? DIMENSIONS)
  const data = Array.from({ length: inputs }, (_, index) => {
    const vector = scriptedVector(index, dimensions)
    return { object: 'embedding', index, embedding: asBase64 ? Buffer.from(Float32Array.from(vector).buffer).toString('base64') : vector }
  })
  const prompt = typeof script.usage === 'object' ? script.usage.prompt : inputs * 3
  const usage = { prompt_tokens: prompt, total_tokens: prompt }
  return {
    id: 'embd-scripted',
    object: 'list',
    created: 1_777_583_471,
    model: script.model ?? asked['model'],
    data,
    ...(script.usage === false ? {} : { usage }),
  }
}

/** Writes, and waits while the reader is slow. */
const say = async (answering: Answering, piece: string | Buffer): Promise<void> => {
  const bytes = Buffer.byteLength(piece)
  if (answering.gone) {
    answering.tally.afterAbort += bytes
    return
  }
  answering.tally.sent += bytes
  if (answering.response.write(piece)) return
  await new Promise<void>((resolve) => {
    const goOn = (): void => {
      answering.response.off('drain', goOn).off('close', goOn)
      resolve()
    }
    answering.response.on('drain', goOn).on('close', goOn)
  })
}

const ended = (response: ServerResponse): void => {
  response.end()
}

/** As a crash looks from outside: what was written arrives, and then the connection is reset. */
const cutNow = (response: ServerResponse): void => {
  const { socket } = response
  if (socket === null) response.destroy()
  else setImmediate(() => socket.resetAndDestroy())
}

const sendJson = (response: ServerResponse, status: number, body: unknown): void => {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

const readAll = async (request: IncomingMessage): Promise<Buffer | undefined> => {
  const pieces: Buffer[] = []
  try {
    for await (const piece of request) pieces.push(piece as Buffer)
  } catch {
    return undefined // the caller went away in the middle of its request
  }
  return Buffer.concat(pieces)
}

const parse = (bytes: Buffer): unknown => {
  try {
    return JSON.parse(bytes.toString())
  } catch {
    return undefined
  }
}

const asRecord = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
