import { fileURLToPath } from 'node:url'
import { programOf } from '@parvis/testkit/program'
import { until } from '@parvis/testkit/until'
import { request } from 'undici'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openDirectory } from './directory.ts'
import { type LocalModel, openLocal } from './local.ts'
import { openHealthWatch } from './probe.ts'
import { openSeats } from './seat.ts'

// The other tests of supervision use a child that only acts as if. This one shows that the real engine fits.

const clock = systemClock
const { signal } = new AbortController()
const never = { isOver: () => false, signal: () => signal }
const fileOf = (name: string): string => fileURLToPath(new URL(`../../../../models/${name}`, import.meta.url))
const LOADING_LIMIT_MS = 60_000

const chat: LocalModel = {
  id: newId(clock.now()),
  name: 'tiny-chat',
  type: 'chat',
  path: fileOf('tiny-chat/tiny-chat-q8_0.gguf'),
  contextTokens: 1024,
  maxOutputTokens: 256,
  matryoshka: [],
}
const broken: LocalModel = { ...chat, id: newId(clock.now()), name: 'broken', path: fileOf('tiny-chat/config.json') }

const lines: string[] = []
const log = openLog('info', { write: (line: string) => lines.push(line) } as unknown as NodeJS.WritableStream)
const directory = openDirectory({ clock, log })
const health = openHealthWatch({ directory, clock })
const seats = openSeats({ directory, clock, limits: { waitMs: LOADING_LIMIT_MS } })
const local = openLocal({
  directory,
  health,
  clock,
  log,
  local: {
    threads: 1,
    memoryMb: 1024,
    sequences: 2,
    gpu: 'off',
    entry: programOf('engine'),
  },
})
beforeAll(() => local.want([chat]))
afterAll(async () => {
  seats.close()
  await local.close()
  await health.close()
})

const ask = async (): Promise<string> => {
  const outcome = await seats.takeSeat(chat, never)
  if (!outcome.ok) throw new Error(JSON.stringify(outcome.refusal))
  const seat = outcome.value
  const { statusCode, body } = await seat.client.request({
    method: 'POST',
    path: '/v1/chat/completions',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${seat.replica.bearer}` },
    body: JSON.stringify({
      model: seat.replica.remoteModel,
      temperature: 0,
      max_completion_tokens: 24,
      messages: [{ role: 'user', content: 'What is the capital of France?' }],
    }),
  })
  const text = await body.text()
  seat.leave('clean')
  expect(statusCode).toBe(200)
  return (JSON.parse(text) as { choices: { message: { content: string } }[] }).choices[0]?.message.content ?? ''
}

test('the embedded engine loads, takes only our key, answers, and is there again with the same answer after it was killed', async () => {
  const first = await ask()
  expect(first.length).toBeGreaterThan(0)

  const [engine] = directory.forModel(chat.id)
  const unasked = await request(`${engine?.address?.origin}/v1/models`)
  expect(unasked.statusCode).toBe(401)
  await unasked.body.dump()

  const { pid } = JSON.parse(lines.find((line) => line.includes('"pid"')) ?? '{}') as { pid?: number }
  expect(pid).toBeGreaterThan(1)
  process.kill(pid ?? 0, 'SIGKILL')
  await until('its end is noticed', () => engine?.state === 'unhealthy')
  await until('it is back', () => engine?.state === 'ready', LOADING_LIMIT_MS)
  expect(await ask()).toBe(first)
})

test('a file that is no model is told with a reason', async () => {
  local.want([chat, broken])
  // That its process has ended is noticed before its last words are read.
  await until('the reason is told', () => /gguf|model/i.test(directory.forModel(broken.id)[0]?.reason ?? ''), LOADING_LIMIT_MS)
  expect(directory.forModel(broken.id)[0]?.state).toBe('unhealthy')
})
