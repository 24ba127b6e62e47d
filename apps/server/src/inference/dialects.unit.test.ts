import { openTicket, startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { eventReader } from '@parvis/wire/sse'
import { describe, expect, test } from 'vitest'
import { yes } from '../kit/outcome.ts'

const DIALECTS = [
  { path: '/v1/responses', ask: { model: 'tiny-chat', input: 'Hi', stream: true }, last: 'response.completed', cut: 'response.incomplete' },
  {
    path: '/v1/messages',
    ask: { model: 'tiny-chat', max_tokens: 100, messages: [{ role: 'user', content: 'Hi' }], stream: true },
    last: 'message_stop',
    cut: 'message_stop',
  },
]

type Data = { delta?: { text?: string; stop_reason?: string } | string; response?: { incomplete_details?: unknown; usage?: unknown } }

const read = (text: string) => {
  const events = eventReader()(text)
  const data = events.map((event) => JSON.parse(event.data) as Data)
  const words = data.map(({ delta }, index) =>
    events[index]?.name === 'response.output_text.delta' && typeof delta === 'string'
      ? delta
      : typeof delta === 'object' && delta.text !== undefined
        ? delta.text
        : '',
  )
  return { names: events.map((event) => event.name), data, words: words.join('') }
}

describe.each(DIALECTS)('$path', ({ path, ask, last, cut }) => {
  test('lives through a long silence, and says then what went wrong in its own words', async () => {
    await using engine = await startScriptedEngine({ firstTokenDelayMs: 400 })
    await using plane = await startDataPlane({ engine: engine.url, limits: { pingMs: 50 } })
    const text = await (await plane.ask(path, ask)).text()
    expect(text.startsWith(': ping\n\n')).toBe(true)
    expect(read(text).names.at(-1)).toBe(last)
    expect(read(text).words).toBe('Hello world.')

    engine.play({ firstTokenDelayMs: 400, errorAfter: 0 })
    const failed = await plane.ask(path, ask)
    expect(failed.status).toBe(200)
    expect(read(await failed.text()).names.at(-1)).toBe('error')
  })

  test('ends in good order where a budget ends', async () => {
    await using engine = await startScriptedEngine({ holdAfter: 2 })
    let exhaust = (): void => {}
    const ticket = { ...openTicket([]), watch: (told: () => void) => void (exhaust = told) }
    await using plane = await startDataPlane({ engine: engine.url, rooms: { admit: () => yes(ticket) } })
    const answer = await plane.ask(path, ask)
    let text = ''
    for await (const piece of answer.body ?? []) {
      text += Buffer.from(piece as Uint8Array).toString()
      if (text.includes('world')) exhaust()
    }
    const { names, words, data } = read(text)
    expect(words).toBe('Hello world')
    expect(names.at(-1)).toBe(cut)
    expect(JSON.stringify(data.slice(-2))).toMatch(/"max_output_tokens"|"max_tokens"/)
    expect(plane.records).toMatchObject([{ ended: 'budget', output: 2 }])
  })

  test('takes what a coding agent sends beside what we know', async () => {
    await using engine = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url })
    const unknown = {
      context_management: { edits: [] },
      service_tier: 'auto',
      include: ['reasoning.encrypted_content'],
      prompt_cache_key: 'k',
    }
    const headers = { 'anthropic-version': '2023-06-01', 'anthropic-beta': 'a,b', 'x-stainless-lang': 'js' }
    const answer = await plane.ask(`${path}?beta=true`, { ...ask, ...unknown, metadata: { user_id: 'u' } }, { headers })
    expect(read(await answer.text()).names.at(-1)).toBe(last)
    expect(JSON.stringify(engine.requests[0]?.json)).not.toMatch(/context_management|prompt_cache_key|user_id/)
  })

  test('is answered by another engine where the first cannot', async () => {
    await using engine = await startScriptedEngine({ status: 503 })
    await using other = await startScriptedEngine()
    await using plane = await startDataPlane({ engine: engine.url, others: [other.url] })
    expect(read(await (await plane.ask(path, ask)).text()).words).toBe('Hello world.')
  })
})
