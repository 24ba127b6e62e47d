import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { programOf } from '@parvis/testkit/program'

const root = fileURLToPath(new URL('../../..', import.meta.url))
export const modelPath = (name: string, file: string): string => `${root}models/${name}/${file}`
export const ENGINE = programOf('engine')

const MODELS = {
  'tiny-chat': { file: modelPath('tiny-chat', 'tiny-chat-q8_0.gguf'), type: 'chat' },
  'tiny-embed': { file: modelPath('tiny-embed', 'tiny-embed-f16.gguf'), type: 'embedding' },
  'tiny-rerank': { file: modelPath('tiny-rerank', 'tiny-rerank-f16.gguf'), type: 'rerank' },
  'tiny-whisper': { file: modelPath('tiny-whisper', '').replace(/\/$/, ''), type: 'audio' },
} as const

export type Told = { type: 'loading'; progress: number } | { type: 'ready'; port: number } | { type: 'failed'; reason: string }

/** An engine process as the server starts it, and everything that it said. */
export const forkEngine = (args: readonly string[], env: Record<string, string> = {}) => {
  const child: ChildProcess = fork(ENGINE.path, [...args], {
    execArgv: [...ENGINE.execArgv],
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  const told: Told[] = []
  let log = ''
  child.on('message', (message) => told.push(message as Told))
  child.stderr?.on('data', (data: Buffer) => {
    log += data.toString()
  })
  child.stdout?.resume()
  const exited = once(child, 'exit').then(([code]) => code as number | null)
  return { child, told, log: () => log, exited }
}

/** Waits until something holds; fails with its name when it does not in time. */
export const until = async (what: string, holds: () => boolean | Promise<boolean>, limitMs = 30_000): Promise<void> => {
  const start = performance.now()
  while (!(await holds())) {
    if (performance.now() - start > limitMs) throw new Error(`not within ${limitMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

// oxlint-disable-next-line typescript/no-explicit-any -- a test reads answers as a client without types would
export type Json = any

export const startEngine = async (model: keyof typeof MODELS, args: readonly string[] = [], env: Record<string, string> = {}) => {
  const { file, type } = MODELS[model]
  const forked = forkEngine(['--model', file, '--name', model, '--type', type, '--threads', '1', ...args], env)
  const left = forked.exited.then((code) => {
    throw new Error(`the engine ended with ${code}: ${forked.log()}`)
  })
  left.catch(() => {})
  const ready = () => forked.told.find((message) => message.type === 'ready')
  await Promise.race([until('the engine is ready', () => ready() !== undefined, 60_000), left])
  const url = `http://127.0.0.1:${ready()?.port}`

  const send = (path: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal): Promise<Response> =>
    fetch(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    })

  return {
    ...forked,
    url,
    pid: forked.child.pid ?? 0,
    send,
    /** The parsed answer, which must be a good one. */
    ask: async (path: string, body: unknown, headers: Record<string, string> = {}): Promise<Json> => {
      const response = await send(path, body, headers)
      const value: Json = await response.json()
      if (response.status !== 200) throw new Error(`${response.status}: ${JSON.stringify(value)}`)
      return value
    },
    refusal: async (
      path: string,
      body: unknown,
      headers: Record<string, string> = {},
    ): Promise<{ status: number; error: Json; headers: Headers }> => {
      const response = await send(path, body, headers)
      const value: Json = await response.json()
      return { status: response.status, error: value.error, headers: response.headers }
    },
    /** All events of a stream, the last one (`[DONE]`) checked and left out. */
    stream: async (path: string, body: Record<string, unknown>, headers: Record<string, string> = {}): Promise<Json[]> => {
      const response = await send(path, { ...body, stream: true }, headers)
      const text = await response.text()
      if (response.status !== 200) throw new Error(`${response.status}: ${text}`)
      const events = text.split('\n\n')
      if (events.pop() !== '' || events.pop() !== 'data: [DONE]')
        throw new Error(`the stream does not end with [DONE]: ${text.slice(-200)}`)
      return events.map((event) => {
        if (!event.startsWith('data: ') || event.includes('\n')) throw new Error(`not one line of data: ${event}`)
        return JSON.parse(event.slice('data: '.length)) as Json
      })
    },
    stop: async (): Promise<number | null> => {
      forked.child.kill('SIGTERM')
      return forked.exited
    },
  }
}
export type EngineProcess = Awaited<ReturnType<typeof startEngine>>

export const user = (content: string) => [{ role: 'user', content }]

export const joined = (chunks: readonly Json[], field: string): string =>
  chunks.map((chunk) => (chunk.choices[0]?.delta?.[field] as string | undefined) ?? '').join('')
