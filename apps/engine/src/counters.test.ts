import { expect, test } from 'vitest'
import { clipBytes, transcriptionForm } from '../test/clips.ts'
import { type EngineProcess, startEngine, until, user } from '../test/engine-process.ts'

const KEY = 'secret-of-the-test'
const AUTH = { authorization: `Bearer ${KEY}` }

type Metrics = Readonly<Record<string, number>>

const readMetrics = async (engine: EngineProcess, headers: Record<string, string> = {}): Promise<Metrics> => {
  const answer = await fetch(`${engine.url}/metrics`, { headers })
  expect(answer.headers.get('content-type')).toContain('text/plain; version=0.0.4')
  const lines = (await answer.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ')))]))
}
const labelled = (name: string, model: string): string => `${name}{model_name="${model}"}`

test('an engine counts what it has read and written, in all manners of asking, as its usage says it', { timeout: 120_000 }, async () => {
  const startedAfter = Date.now() / 1000
  const engine = await startEngine('tiny-chat', ['--context', '512', '--sequences', '2'], { PARVIS_ENGINE_KEY: KEY })
  try {
    expect((await fetch(`${engine.url}/metrics`)).status).toBe(401)
    const body = { temperature: 0, max_tokens: 12, messages: user('What is the capital of France?') }
    const used = { read: 0, wrote: 0, cached: 0 }
    const add = (usage: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details: { cached_tokens: number } }): void => {
      used.read += usage.prompt_tokens
      used.wrote += usage.completion_tokens
      used.cached += usage.prompt_tokens_details.cached_tokens
    }
    for (let round = 0; round < 2; round += 1) add((await engine.ask('/v1/chat/completions', body, AUTH)).usage)
    const events = await engine.stream('/v1/chat/completions', { ...body, stream_options: { include_usage: true } }, AUTH)
    add(events.at(-1).usage)
    add((await engine.ask('/v1/completions', { prompt: 'Once upon a time', max_tokens: 5, ignore_eos: true }, AUTH)).usage)

    const metrics = await readMetrics(engine, AUTH)
    expect(metrics[labelled('vllm:prompt_tokens_total', 'tiny-chat')]).toBe(used.read)
    expect(metrics[labelled('vllm:generation_tokens_total', 'tiny-chat')]).toBe(used.wrote)
    expect(metrics[labelled('vllm:prefix_cache_hits_total', 'tiny-chat')]).toBe(used.cached)
    expect(used.cached).toBeGreaterThan(0)
    const endings = ['stop', 'length', 'abort', 'error'].map(
      (how) => metrics[`vllm:request_success_total{model_name="tiny-chat",finished_reason="${how}"}`] ?? -1,
    )
    expect(endings.reduce((sum, count) => sum + count, 0)).toBe(4)
    expect(endings[1]).toBeGreaterThan(0)
    expect(metrics['process_start_time_seconds']).toBeGreaterThan(startedAfter - 1)
    expect(metrics['process_start_time_seconds']).toBeLessThan(Date.now() / 1000 + 1)
  } finally {
    await engine.stop()
  }
})

test('a caller that leaves is counted for what was made until then', { timeout: 120_000 }, async () => {
  const engine = await startEngine('tiny-chat', ['--context', '4096', '--sequences', '1', '--max-output', '4000'])
  try {
    const leave = new AbortController()
    const body = { messages: user('Tell me a long story.'), stream: true, ignore_eos: true, max_tokens: 4_000 }
    const stream = await engine.send('/v1/chat/completions', body, {}, leave.signal)
    await stream.body?.getReader().read()
    leave.abort()
    const aborted = 'vllm:request_success_total{model_name="tiny-chat",finished_reason="abort"}'
    await until('the engine has heard of it', async () => (await readMetrics(engine))[aborted] === 1)
    const metrics = await readMetrics(engine)
    expect(metrics[labelled('vllm:prompt_tokens_total', 'tiny-chat')]).toBeGreaterThan(0)
    expect(metrics[labelled('vllm:generation_tokens_total', 'tiny-chat')]).toBeGreaterThan(0)
    expect(metrics[labelled('vllm:generation_tokens_total', 'tiny-chat')]).toBeLessThan(4_000)
  } finally {
    await engine.stop()
  }
})

test('vectors and rankings are counted by what was read, files by their length', { timeout: 120_000 }, async () => {
  const engines = await Promise.all([startEngine('tiny-embed'), startEngine('tiny-rerank'), startEngine('tiny-whisper')])
  const [vectors, ranking, speech] = engines
  try {
    const made = await vectors.ask('/v1/embeddings', { input: ['one', 'two and three'] })
    const ranked = await vectors.ask('/v1/rerank', { query: 'a', documents: ['b', 'c'] })
    const total = made.usage.prompt_tokens + ranked.usage.total_tokens
    expect((await readMetrics(vectors))[labelled('vllm:prompt_tokens_total', 'tiny-embed')]).toBe(total)

    const { usage } = await ranking.ask('/v1/rerank', { query: 'a', documents: ['b', 'c and d'] })
    expect((await readMetrics(ranking))[labelled('vllm:prompt_tokens_total', 'tiny-rerank')]).toBe(usage.total_tokens)

    const answer = await fetch(`${speech.url}/v1/audio/transcriptions`, {
      method: 'POST',
      body: transcriptionForm(clipBytes('01-short.wav'), {}),
    })
    const { duration } = (await answer.json()) as { duration: number }
    expect((await readMetrics(speech))[labelled('parvis_engine_audio_milliseconds_total', 'tiny-whisper')]).toBeCloseTo(duration * 1000)
  } finally {
    await Promise.all(engines.map((engine) => engine.stop()))
  }
})
