import { fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Client } from 'undici'
import { cpuMicros, median, type Row } from '../measure.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const START_LIMIT_MS = 60_000
const TOKENS = 120

type Engine = { pid: number; port: number; key: string; stop(): Promise<void> }

export const startEngine = async (): Promise<Engine> => {
  const key = randomUUID()
  const child = fork(
    join(ROOT, 'apps/engine/dist/main.js'),
    [
      '--model',
      join(ROOT, 'models/tiny-chat/tiny-chat-q8_0.gguf'),
      '--name',
      'tiny-chat',
      '--type',
      'chat',
      '--context',
      '2048',
      '--max-output',
      '512',
      '--threads',
      '1',
    ],
    { env: { ...process.env, PARVIS_ENGINE_KEY: key }, stdio: ['ignore', 'ignore', 'inherit', 'ipc'] },
  )
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const port = await new Promise<number>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`the engine was not ready within ${START_LIMIT_MS / 1000} s`)), START_LIMIT_MS)
    child.on('exit', (code) => reject(new Error(`the engine ended with ${code}`)))
    child.on('message', (message: { type: string; port?: number }) => {
      if (message.type !== 'ready' || message.port === undefined) return
      clearTimeout(timer)
      resolve(message.port)
    })
  })
  return {
    pid: child.pid ?? 0,
    port,
    key,
    async stop() {
      child.kill('SIGTERM')
      await ended
    },
  }
}

const ask = (engine: Engine, client: Client, prompt: string): Promise<number> =>
  new Promise((resolve, reject) => {
    let text = ''
    client.dispatch(
      {
        method: 'POST',
        path: '/v1/chat/completions',
        headers: { 'content-type': 'application/json', authorization: `Bearer ${engine.key}` },
        body: JSON.stringify({
          model: 'tiny-chat',
          stream: true,
          stream_options: { include_usage: true },
          temperature: 0,
          max_completion_tokens: TOKENS,
          messages: [{ role: 'user', content: prompt }],
        }),
      },
      {
        onRequestStart: () => undefined,
        onResponseStart: () => undefined,
        onResponseData(_controller, chunk) {
          text += chunk.toString()
        },
        onResponseEnd() {
          const tokens = /"completion_tokens":(\d+)/g.exec(text)?.[1]
          if (tokens === undefined) reject(new Error('an answer without usage'))
          else resolve(Number(tokens))
        },
        onResponseError(_controller, error) {
          reject(error)
        },
      },
    )
  })

/** Tokens per second over all streams, and processor time per token: what batching gains. */
const parallel = async (engine: Engine, streams: number, answers: number): Promise<{ perSecond: number; cpuMs: number }> => {
  const clients = Array.from({ length: streams }, () => new Client(`http://127.0.0.1:${engine.port}`))
  const cpuBefore = cpuMicros(engine.pid)
  const startedAt = performance.now()
  let left = answers
  let tokens = 0
  await Promise.all(
    clients.map(async (client) => {
      while (left > 0) {
        left -= 1
        const said = await ask(engine, client, 'Tell me a short story about a dog.')
        tokens += said // on a line of its own: `tokens += await …` reads the sum before it waits
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1000
  const cpuMs = (cpuMicros(engine.pid) - cpuBefore) / 1000 / tokens
  await Promise.all(clients.map((client) => client.close()))
  return { perSecond: tokens / seconds, cpuMs }
}

/** The embedded engine with tiny-chat on one thread, over HTTP. */
export const benchEngine = async (quick: boolean): Promise<Row[]> => {
  const engine = await startEngine()
  try {
    const answers = quick ? 8 : 24
    const rounds = quick ? 2 : 5
    await parallel(engine, 2, 4)
    const taken = new Map<number, { perSecond: number; cpuMs: number }[]>([1, 4, 8].map((streams) => [streams, []]))
    for (let round = 0; round < rounds; round += 1) {
      for (const [streams, results] of taken) results.push(await parallel(engine, streams, answers))
    }
    const of = (streams: number, figure: 'perSecond' | 'cpuMs'): number =>
      median((taken.get(streams) ?? []).map((result) => result[figure]))
    return [
      ...[1, 4, 8].flatMap((streams): Row[] => [
        {
          what: `tokens per second, ${streams} parallel`,
          value: of(streams, 'perSecond'),
          unit: 'tok/s',
          beside: 'tiny-chat Q8_0, one thread, all streams together',
        },
        {
          what: `CPU per token, ${streams} parallel`,
          value: of(streams, 'cpuMs'),
          unit: 'ms',
          beside: `${(of(streams, 'cpuMs') / of(1, 'cpuMs')).toFixed(2)} × that of one stream`,
        },
      ]),
      {
        what: 'CPU per token, 8 streams against 1',
        value: of(8, 'cpuMs') / of(1, 'cpuMs'),
        unit: '×',
        beside: 'below 1 when streams share their steps',
        cliff: { above: 1.5, why: 'parallel streams must be computed together' },
      },
    ]
  } finally {
    await engine.stop()
  }
}
