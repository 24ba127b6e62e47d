import { fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Client } from 'undici'
import { cpuMicros, endsWithUs, median, type Row } from '../measure.ts'
import type { Done, Task } from './binding.ts'

const BINDING = fileURLToPath(new URL('binding.ts', import.meta.url))

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const START_LIMIT_MS = 60_000
const MODEL = join(ROOT, 'models/tiny-chat/tiny-chat-q8_0.gguf')
const CONTEXT_TOKENS = 2_048
const TOKENS = 120
const MOST_STREAMS = 8
const STREAMS = [1, 4, MOST_STREAMS]
/** The engine holds 95 % of what the binding makes. */
const BINDING_HELD = 1.05
const BINDING_CLIFF = { above: 1.67, why: 'the engine makes less than 60 % of what the binding makes by itself' }
const PROMPT_TOKENS = [100, 500, 1_500]

type Engine = { pid: number; port: number; key: string; stop(): Promise<void> }

export const startEngine = async (): Promise<Engine> => {
  const key = randomUUID()
  const child = fork(
    join(ROOT, 'apps/engine/dist/main.js'),
    [
      '--model',
      MODEL,
      '--name',
      'tiny-chat',
      '--type',
      'chat',
      '--context',
      String(CONTEXT_TOKENS),
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
          ignore_eos: true, // so that an answer has the length that is wanted
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

/** A prompt for each answer, of which nobody knows more than the beginning that all have: that of the template. */
const promptsOf = (run: number, answers: number): string[] =>
  Array.from({ length: answers }, (_, index) => `${run * 1_000 + index} friends and a dog: tell me a short story.`)

type Pace = { readonly perSecond: number; readonly cpuMs: number }

/** Tokens per second over all streams, and processor time per token: what batching gains. */
const parallel = async (engine: Engine, streams: number, prompts: readonly string[]): Promise<Pace> => {
  const clients = Array.from({ length: streams }, () => new Client(`http://127.0.0.1:${engine.port}`))
  const cpuBefore = cpuMicros(engine.pid)
  const startedAtMs = performance.now()
  let next = 0
  let tokens = 0
  await Promise.all(
    clients.map(async (client) => {
      for (let prompt = prompts[next++]; prompt !== undefined; prompt = prompts[next++]) {
        const said = await ask(engine, client, prompt)
        tokens += said.tokens // on a line of its own: `tokens += await …` reads the sum before it waits
      }
    }),
  )
  const seconds = (performance.now() - startedAtMs) / 1000
  const cpuMs = (cpuMicros(engine.pid) - cpuBefore) / 1000 / tokens
  await Promise.all(clients.map((client) => client.close()))
  if (tokens !== prompts.length * TOKENS) throw new Error(`${tokens} tokens for ${prompts.length} answers of ${TOKENS}`)
  return { perSecond: tokens / seconds, cpuMs }
}

/** What the engine gives the model for a prompt: the binding gets the same. */
const tokensOf = async ({ port, key }: Engine, prompt: string): Promise<number[]> => {
  const answer = await fetch(`http://127.0.0.1:${port}/tokenize`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${key}` },
    body: JSON.stringify({ model: 'tiny-chat', messages: [{ role: 'user', content: prompt }] }),
  })
  if (!answer.ok) throw new Error(`the engine answered ${answer.status} to /tokenize`)
  return ((await answer.json()) as { tokens: number[] }).tokens
}

/** The binding by itself, in a process of its own that stays, as the engine's does. */
const startBinding = async () => {
  const child = endsWithUs(
    fork(BINDING, [MODEL, String(CONTEXT_TOKENS), String(MOST_STREAMS)], {
      execArgv: ['--import', 'tsx', '--conditions=@parvis/source'],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    }),
  )
  const ended = new Promise<void>((resolve) => child.on('exit', () => resolve()))
  const heard = (): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const left = (code: number | null): void => reject(new Error(`the binding by itself ended with ${code}`))
      child.once('exit', left)
      child.once('message', (message) => {
        child.off('exit', left)
        resolve(message)
      })
    })
  await heard()
  return {
    run: async (task: Task): Promise<Done> => {
      child.send(task)
      return (await heard()) as Done
    },
    async stop() {
      child.kill('SIGTERM')
      await ended
    },
  }
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

type Measured = { readonly streams: number; readonly over: Pace[]; readonly binding: number[] }

/** The embedded engine with tiny-chat on one thread, over HTTP, and the binding by itself, in turns. */
export const benchEngine = async (quick: boolean): Promise<Row[]> => {
  const engine = await startEngine()
  let binding: Awaited<ReturnType<typeof startBinding>> | undefined
  try {
    binding = await startBinding()
    const bare = binding
    const answers = quick ? 16 : 24
    const rounds = quick ? 3 : 9
    const measured = STREAMS.map((streams): Measured => ({ streams, over: [], binding: [] }))
    let runs = 0
    /** The same prompts for both; who goes first changes. */
    const measure = async ({ streams, over, binding: alone }: Measured): Promise<void> => {
      const prompts = promptsOf(runs, answers)
      const tokenized: number[][] = []
      for (const prompt of prompts) tokenized.push(await tokensOf(engine, prompt))
      const turns = [
        async () => over.push(await parallel(engine, streams, prompts)),
        async () => alone.push((await bare.run({ parallel: streams, prompts: tokenized, tokens: TOKENS })).perSecond),
      ]
      for (const turn of runs % 2 === 0 ? turns : turns.toReversed()) await turn()
      runs += 1
    }
    // V8 settles in both.
    for (const streams of STREAMS) await measure({ streams, over: [], binding: [] })
    for (let round = 0; round < rounds; round += 1) for (const each of measured) await measure(each)

    const first = await firstTokens(engine, quick ? 3 : 9)
    const one = measured[0]?.over ?? []
    const cpuAgainstOne = ({ over }: Measured): number => median(over.map(({ cpuMs }, round) => cpuMs / (one[round]?.cpuMs ?? Number.NaN)))
    return [
      ...measured.flatMap((each): Row[] => {
        const perSecond = median(each.over.map((pace) => pace.perSecond))
        const against = each.binding.map((alone, round) => alone / (each.over[round]?.perSecond ?? Number.NaN))
        return [
          {
            what: `tokens per second, ${each.streams} parallel`,
            value: perSecond,
            unit: 'tok/s',
            beside: 'tiny-chat Q8_0, one thread, all streams together',
          },
          {
            what: '  the binding with no HTTP makes',
            value: median(against),
            unit: '×',
            beside: `as many (held ≤ ${BINDING_HELD}), ${median(each.binding).toFixed(0)} tok/s; ${Math.min(...against).toFixed(2)} to ${Math.max(...against).toFixed(2)} × in ${rounds} rounds in turns`,
            cliff: BINDING_CLIFF,
          },
          {
            what: `CPU per token, ${each.streams} parallel`,
            value: median(each.over.map(({ cpuMs }) => cpuMs)),
            unit: 'ms',
            beside: `${cpuAgainstOne(each).toFixed(2)} × that of one stream`,
          },
        ]
      }),
      ...first,
      ...measured.slice(-1).map(
        (most): Row => ({
          what: `CPU per token, ${most.streams} streams against 1`,
          value: cpuAgainstOne(most),
          unit: '×',
          beside: 'below 1 when streams share their steps',
          cliff: { above: 1.5, why: 'parallel streams must be computed together' },
        }),
      ),
    ]
  } finally {
    await binding?.stop()
    await engine.stop()
  }
}
