import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type EngineProcess, type Json, joined, startEngine, until, user } from '../test/engine-process.ts'
import { seededRandom } from './sampling/sample.ts'

const PATH = '/v1/chat/completions'
const SUBJECTS = ['cat', 'dog', 'king', 'robot', 'bear', 'bird', 'fish', 'lion']
const story = (subject: string) => ({ temperature: 0, messages: user(`Tell me a story about a ${subject}.`), max_tokens: 200 })

const busy = async (engine: EngineProcess): Promise<number> =>
  ((await (await fetch(`${engine.url}/health`)).json()) as { busy: number }).busy

/** What the engine has computed so far, in milliseconds of a processor; nothing where the system does not tell. */
const cpuMsOf = ({ pid }: EngineProcess): number => {
  const TICK_MS = 10
  if (process.platform !== 'linux') return 0
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS
}

describe('eight sequences of one model', () => {
  let engine: EngineProcess
  beforeAll(async () => {
    engine = await startEngine('tiny-chat', ['--context', '2048', '--sequences', '8'])
  })
  afterAll(() => engine.stop())

  test('eight streams at once are each complete, and what one alone would have got', async () => {
    const together = await Promise.all(SUBJECTS.map((subject) => engine.stream(PATH, story(subject), { 'x-parvis-tenant': 'together' })))
    const same = []
    for (const [index, subject] of SUBJECTS.entries()) {
      const alone: Json = await engine.ask(PATH, story(subject), { 'x-parvis-tenant': 'alone' })
      const text = joined(together[index] ?? [], 'content')
      expect(text).toContain('Once upon a time')
      expect(together[index]?.at(-1).choices[0].finish_reason).toBe('stop')
      same.push(text === alone.choices[0].message.content)
    }
    // Sums in another order round otherwise, so that now and then a near tie falls the other way: not more than once in eight.
    expect(same.filter((one) => !one).length).toBeLessThanOrEqual(1)
  })

  test.runIf(process.platform === 'linux')(
    'a token costs no more CPU with four streams than with one: they go through the model together',
    async () => {
      const cost = async (streams: number): Promise<number> => {
        const before = cpuMsOf(engine)
        const done = await Promise.all(
          SUBJECTS.slice(0, streams).map((subject) => engine.ask(PATH, { ...story(subject), max_tokens: 300, ignore_eos: true })),
        )
        return (cpuMsOf(engine) - before) / done.reduce((sum, { usage }) => sum + (usage.completion_tokens as number), 0)
      }
      await cost(4) // the code is warm now
      // Measured 0.5 to 0.8. Streams that miss each other's batches cost 1 and more. A neighbour on the machine makes everything dearer
      // for a while, and may do so to one of the two only: what holds is seen in one try of four.
      let ratio = Number.POSITIVE_INFINITY
      for (let tries = 0; tries < 4 && ratio >= 1; tries += 1) {
        const one = await cost(1)
        ratio = (await cost(4)) / one
      }
      expect(ratio).toBeLessThan(1)
    },
  )

  test('a conversation that goes on computes only what is new', async () => {
    const headers = { 'x-parvis-tenant': 'project-a' }
    const first = await engine.ask(PATH, story('cat'), headers)
    const messages = [...story('cat').messages, first.choices[0].message, ...user('What is the capital of France?')]
    const second = await engine.ask(PATH, { temperature: 0, messages }, headers)
    const { cached_tokens: cached } = second.usage.prompt_tokens_details
    expect(cached).toBeGreaterThan(first.usage.prompt_tokens)
    expect(cached).toBeLessThan(second.usage.prompt_tokens)
    const fresh = await engine.ask(PATH, { temperature: 0, messages }, { 'x-parvis-tenant': 'project-b' })
    expect(second.choices[0].message.content).toBe(fresh.choices[0].message.content)
  })

  test('what one tenant computed is never used for another, and none is a tenant too', async () => {
    const messages = user(`${'The secret plan is as follows. '.repeat(20)}What is it?`)
    const ask = (headers: Record<string, string>) => engine.ask(PATH, { temperature: 0, max_tokens: 2, messages }, headers)
    const cached = async (headers: Record<string, string>) => (await ask(headers)).usage.prompt_tokens_details.cached_tokens as number
    // More requests than sequences, so that every sequence is reused by everybody.
    for (let round = 0; round < 4; round += 1) {
      for (const tenant of ['one', 'two', 'three', undefined]) {
        const hit = await cached(tenant === undefined ? {} : { 'x-parvis-tenant': tenant })
        // Those without a name have been here before, and all prompts begin with the template's first words.
        const ownPast = tenant === undefined ? 4 : 0
        expect(round === 0 ? hit <= ownPast : hit > 100).toBe(true)
      }
    }
  })

  test('a client that leaves frees its sequence at once', async () => {
    for (let round = 0; round < 3; round += 1) {
      const leaving = new AbortController()
      const response = await engine.send(PATH, { ...story('cat'), max_tokens: 1800, ignore_eos: true, stream: true }, {}, leaving.signal)
      const reader = response.body?.getReader()
      await reader?.read()
      expect(await busy(engine)).toBe(1)
      const before = cpuMsOf(engine)
      leaving.abort()
      await until('the sequence is free', async () => (await busy(engine)) === 0)
      expect(cpuMsOf(engine) - before).toBeLessThan(1_000) // the whole answer takes several times that
    }
  })

  test('after a storm of requests and leavings all sequences are free, no line is left and the answers are still right', async () => {
    const SEED = 20_261
    const random = seededRandom(SEED)
    const one = async (): Promise<void> => {
      const leaving = new AbortController()
      const subject = SUBJECTS[Math.floor(random() * SUBJECTS.length)] ?? ''
      const body = {
        ...story(subject),
        messages: user(`${'So it is. '.repeat(Math.floor(random() * 150))}Tell me a story about a ${subject}.`),
        max_tokens: 1 + Math.floor(random() * 120),
        temperature: random() < 0.5 ? 0 : 1,
        logprobs: random() < 0.3,
        stream: random() < 0.7,
      }
      const stays = random() < 0.5
      const delayMs = random() * 150
      const timer = stays ? undefined : setTimeout(() => leaving.abort(), delayMs)
      const tenant = `tenant-${Math.floor(random() * 4)}`
      try {
        const response = await engine.send(PATH, body, { 'x-parvis-tenant': tenant }, leaving.signal)
        await response.text()
        if (response.status !== 200) throw new Error(`status ${response.status}`)
      } catch (error) {
        if (!leaving.signal.aborted) throw error
      } finally {
        clearTimeout(timer)
      }
    }
    const worker = async (): Promise<void> => {
      for (let round = 0; round < 8; round += 1) await one()
    }
    await Promise.all(Array.from({ length: 14 }, worker))
    await until('all are free', async () => (await busy(engine)) === 0)
    expect(engine.log()).not.toContain('"level":"error"')
    const { choices } = await engine.ask(PATH, { temperature: 0, messages: user('What is the capital of France?') })
    expect(choices[0].message.content).toBe('The capital of France is Paris.')
  })

  test('sequences that are cut back while others generate do not wait for them to end', async () => {
    const long = SUBJECTS.slice(0, 3).map((subject) => engine.ask(PATH, { ...story(subject), max_tokens: 1_400, ignore_eos: true }))
    await until('three are at work', async () => (await busy(engine)) === 3)
    for (let round = 0; round < 4; round += 1) {
      // Each has its own tenant and thus takes over a sequence with something else in it.
      await engine.ask(PATH, { temperature: 0, max_tokens: 2, messages: user('Hi') }, { 'x-parvis-tenant': `guest-${round}` })
    }
    expect(await busy(engine)).toBe(3)
    for (const { usage } of await Promise.all(long)) expect(usage.completion_tokens).toBe(1_400)
  })
})

describe('one sequence', () => {
  let engine: EngineProcess
  beforeAll(async () => {
    engine = await startEngine('tiny-chat', [
      '--context',
      '16384',
      '--max-output',
      '8000',
      '--sequences',
      '1',
      '--max-waiting',
      '1',
      '--max-wait-ms',
      '3000',
    ])
  })
  afterAll(() => engine.stop())

  const hold = async () => {
    const leaving = new AbortController()
    const response = await engine.send(PATH, { ...story('cat'), max_tokens: 8000, ignore_eos: true, stream: true }, {}, leaving.signal)
    await response.body?.getReader().read()
    return leaving
  }

  test('who waits longer than the limit, and who finds the line full, gets 503 with Retry-After', async () => {
    const leaving = await hold()
    const waits = engine.refusal(PATH, story('dog'))
    await until('one waits', async () => ((await (await fetch(`${engine.url}/health`)).json()) as { waiting: number }).waiting === 1)
    const full = await engine.refusal(PATH, story('king'))
    expect(full.status).toBe(503)
    expect(full.headers.get('retry-after')).toBe('1')
    expect(full.error).toMatchObject({ type: 'ServiceUnavailableError', code: 503 })
    const late = await waits
    expect(late.status).toBe(503)
    expect(late.error.message).toContain('3 s')
    leaving.abort()
  })

  test('who waits gets the sequence as soon as it is free', async () => {
    const leaving = await hold()
    const waits = engine.ask(PATH, { ...story('dog'), max_tokens: 3 })
    await until('one waits', async () => ((await (await fetch(`${engine.url}/health`)).json()) as { waiting: number }).waiting === 1)
    leaving.abort()
    expect((await waits).choices[0].finish_reason).toBe('length')
  })

  test('a client that leaves while its prompt is computed frees the sequence between two pieces of it', async () => {
    const leaving = new AbortController()
    const answer = engine.send(
      PATH,
      { messages: user('word '.repeat(12_000)), max_tokens: 1 },
      { 'x-parvis-tenant': 'other' },
      leaving.signal,
    )
    answer.catch(() => {})
    await until('it is computing', async () => (await busy(engine)) === 1)
    const before = cpuMsOf(engine)
    leaving.abort()
    await until('the sequence is free', async () => (await busy(engine)) === 0)
    expect(cpuMsOf(engine) - before).toBeLessThan(1_500) // the whole prompt takes far longer
  })

  test('a client that closes its socket in the middle of its request harms nobody', async () => {
    const port = Number(new URL(engine.url).port)
    for (let round = 0; round < 5; round += 1) {
      const socket = connect(port, '127.0.0.1')
      await new Promise<void>((resolve) => socket.once('connect', resolve))
      socket.write(
        'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"messages"',
      )
      socket.destroy()
    }
    const { choices } = await engine.ask(PATH, { temperature: 0, messages: user('What is the capital of France?') })
    expect(choices[0].message.content).toContain('Paris')
  })
})
