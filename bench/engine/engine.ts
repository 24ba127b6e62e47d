import { fork, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Client } from 'undici'
import { cpuMicros, median, type Row } from '../measure.ts'

const BINDING = fileURLToPath(new URL('binding.ts', import.meta.url))

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const START_LIMIT_MS = 60_000
const MODEL = join(ROOT, 'models/tiny-chat/tiny-chat-q8_0.gguf')
const TOKENS = 120
const PROMPT_TOKENS = [100, 500, 1_500]

type Engine = { pid: number; port: number; key: string; stop(): Promise<void> }

export const startEngine = async (): Promise<Engine> => {
  const key = randomUUID()
  const child = fork(
    join(ROOT, 'apps/engine/dist/main.js'),
    ['--model', MODEL, '--name', 'tiny-chat', '--type', 'chat', '--context', '2048', '--max-output', '512', '--threads', '1'],
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

type Said = { readonly tokens: number; readonly input: number; readonly firstMs: number }

const ask = (engine: Engine, client: Client, prompt: string, limit = TOKENS): Promise<Said> =>
  new Promise((resolve, reject) => {
    let text = ''
    let firstMs = 0
    const askedAt = performance.now()
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
          max_completion_tokens: limit,
          messages: [{ role: 'user', content: prompt }],
        }),
      },
      {
        onRequestStart: () => undefined,
        onResponseStart: () => undefined,
        onResponseData(_controller, chunk) {
          if (firstMs === 0) firstMs = performance.now() - askedAt
          text += chunk.toString()
        },
        onResponseEnd() {
          const [tokens, input] = ['completion_tokens', 'prompt_tokens'].map((count) => new RegExp(`"${count}":(\\d+)`).exec(text)?.[1])
          if (tokens === undefined || input === undefined) reject(new Error(`an answer without usage: ${text.slice(0, 300)}`))
          else resolve({ tokens: Number(tokens), input: Number(input), firstMs })
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
        tokens += said.tokens // on a line of its own: `tokens += await …` reads the sum before it waits
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1000
  const cpuMs = (cpuMicros(engine.pid) - cpuBefore) / 1000 / tokens
  await Promise.all(clients.map((client) => client.close()))
  return { perSecond: tokens / seconds, cpuMs }
}

/** The binding by itself, in a process of its own: tokens per second by the number of streams. */
const binding = async (streams: readonly number[], answers: number): Promise<Map<number, number>> => {
  const child = spawn(
    process.execPath,
    ['--import', 'tsx', '--conditions=@parvis/source', BINDING, MODEL, String(TOKENS), String(answers), ...streams.map(String)],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString()
  })
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve))
  if (code !== 0) throw new Error(`the binding by itself ended with ${code}`)
  return new Map(
    said
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { parallel: number; perSecond: number })
      .map(({ parallel, perSecond }) => [parallel, perSecond]),
  )
}

const WORDS = ['dog', 'house', 'river', 'small', 'green', 'walks', 'finds', 'bread', 'friend', 'morning']

/** Until the first token for prompts of about so many tokens: one that the engine has never seen, and the same once more with another end. */
const firstTokens = async (engine: Engine, rounds: number): Promise<Row[]> => {
  const client = new Client(`http://127.0.0.1:${engine.port}`)
  const rows: Row[] = []
  for (const wanted of PROMPT_TOKENS) {
    const cold: number[] = []
    const known: number[] = []
    let input = 0
    for (let round = 0; round < rounds; round += 1) {
      // Its first words differ each time, so that nothing of it is known.
      const words = Array.from(
        { length: wanted },
        (_, index) => WORDS[(index * 7 + round * 3 + wanted + (index % (round + 2))) % WORDS.length],
      )
      const prompt = `${round} ${wanted} ${words.join(' ')}`
      const first = await ask(engine, client, prompt, 1)
      input = first.input
      cold.push(first.firstMs)
      known.push((await ask(engine, client, `${prompt} and then`, 1)).firstMs)
    }
    rows.push({
      what: `first token, prompt of ${input} tokens`,
      value: median(cold),
      unit: 'ms',
      beside: `its beginning known ${median(known).toFixed(1)} ms`,
    })
  }
  await client.close()
  return rows
}

/** The embedded engine with tiny-chat on one thread, over HTTP. */
export const benchEngine = async (quick: boolean): Promise<Row[]> => {
  const engine = await startEngine()
  try {
    const answers = quick ? 8 : 24
    const rounds = quick ? 2 : 5
    await parallel(engine, 2, 4)
    const taken = new Map<number, { perSecond: number; cpuMs: number }[]>([1, 4, 8].map((streams) => [streams, []]))
    const alone = new Map<number, number[]>()
    for (let round = 0; round < rounds; round += 1) {
      for (const [streams, results] of taken) results.push(await parallel(engine, streams, answers))
      for (const [streams, perSecond] of await binding([...taken.keys()], answers)) {
        alone.set(streams, [...(alone.get(streams) ?? []), perSecond])
      }
    }
    const first = await firstTokens(engine, quick ? 3 : 9)
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
          what: '  against the binding with no HTTP',
          value: of(streams, 'perSecond') / median(alone.get(streams) ?? []),
          unit: '×',
          beside: `held ≥ 0.95; the binding by itself ${median(alone.get(streams) ?? []).toFixed(0)} tok/s`,
        },
        {
          what: `CPU per token, ${streams} parallel`,
          value: of(streams, 'cpuMs'),
          unit: 'ms',
          beside: `${(of(streams, 'cpuMs') / of(1, 'cpuMs')).toFixed(2)} × that of one stream`,
        },
      ]),
      ...first,
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
