import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { until } from '@parvis/testkit/until'
import { request } from 'undici'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { type Engine, openDirectory } from './directory.ts'
import { type LocalLimits, type LocalModel, type LocalOptions, openLocal } from './local.ts'
import { openHealthWatch } from './probe.ts'
import { openSeats } from './seat.ts'

const CHILD = fileURLToPath(new URL('../../test/children/scripted-child.mjs', import.meta.url))
const clock = systemClock
const { signal } = new AbortController()
const never = { isOver: () => false, signal: () => signal }

let dir: string
const opened: (() => Promise<void>)[] = []
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'parvis-local-'))
})
afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close()
  await rm(dir, { recursive: true, force: true })
})

/** What the children noted down, in order. */
const journal = async (): Promise<{ what: string; name: string; pid: number }[]> => {
  const text = await readFile(join(dir, 'journal'), 'utf8').catch(() => '')
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as { what: string; name: string; pid: number })
}

type Behaviour = { loadMs?: number; failed?: string; lastWords?: string; silent?: boolean; ignoreSigterm?: boolean; badLives?: number }
let models = 0
const modelOf = async (name: string, behaviour: Behaviour = {}, changes: Partial<LocalModel> = {}): Promise<LocalModel> => {
  const path = join(dir, `${(models += 1)}.json`)
  const lives = join(dir, `${models}.lives`)
  await writeFile(lives, '')
  await writeFile(path, JSON.stringify({ journal: join(dir, 'journal'), lives, ...behaviour }))
  return { id: newId(clock.now()), name, type: 'chat', path, contextTokens: 2048, maxOutputTokens: 512, matryoshka: [], ...changes }
}

const open = (options: Partial<LocalOptions> = {}, limits: Partial<LocalLimits> = {}, answerMs = 30_000) => {
  const lines: string[] = []
  const log = openLog('debug', { write: (line: string) => lines.push(line) } as unknown as NodeJS.WritableStream)
  const directory = openDirectory({ clock, log })
  const health = openHealthWatch({ directory, clock, limits: { everyMs: 50, answerMs, soonMs: 10, gapMs: 1 } })
  const seats = openSeats({ directory, clock })
  const local = openLocal({
    directory,
    health,
    clock,
    log,
    local: { threads: 1, memoryMb: 4096, sequences: 8, gpu: 'off', entry: { path: CHILD, execArgv: [] }, ...options },
    limits: { restartMinMs: 10, lookMs: 20, ...limits },
  })
  const close = async () => {
    seats.close()
    await local.close()
    await health.close()
  }
  opened.push(close)
  const engineOf = (model: LocalModel): Engine => {
    const [engine] = directory.forModel(model.id)
    if (engine === undefined) throw new Error(`no engine of ${model.name}`)
    return engine
  }
  const ready = (model: LocalModel) => until(`${model.name} is ready`, () => directory.forModel(model.id)[0]?.state === 'ready')
  const ask = async (model: LocalModel, path: string): Promise<{ status: number; body: string }> => {
    const engine = engineOf(model)
    const { statusCode, body } = await request(`${engine.address?.origin}${path}`, {
      headers: { authorization: `Bearer ${engine.bearer}` },
    })
    return { status: statusCode, body: await body.text() }
  }
  return { ...local, takeSeat: seats.takeSeat, directory, engineOf, ready, ask, lines, close }
}

test('a wanted model gets a child with its file, its limits and a key of its own', async () => {
  const room = open({ threads: 3, memoryMb: 1000, sequences: 5 })
  const model = await modelOf('m', {}, { type: 'embedding', maxOutputTokens: null, matryoshka: [64, 32] })
  room.want([model])
  await room.ready(model)
  const { args, env } = JSON.parse((await room.ask(model, '/v1/models')).body) as { args: string[]; env: Record<string, string> }
  expect(args).toEqual(
    [
      '--model',
      model.path,
      '--name',
      'm',
      '--type',
      'embedding',
      '--context',
      '2048',
      '--matryoshka',
      '64,32',
      '--sequences',
      '5',
      '--threads',
      '3',
    ].concat(['--memory-mb', '1000', '--gpu', 'off', '--host', '127.0.0.1', '--port', '0']),
  )
  expect(env['PARVIS_ENGINE_KEY']).toMatch(/^[0-9a-f]{64}$/)
  expect(room.engineOf(model)).toMatchObject({ name: 'embedded:m', kind: 'embedded', bearer: env['PARVIS_ENGINE_KEY'] })
  expect(room.lines.join('')).not.toContain(env['PARVIS_ENGINE_KEY'])
})

test('a child knows our environment, but none of our settings', async () => {
  const room = open({ env: { LD_LIBRARY_PATH: '/opt/gpu', PARVIS_MASTER_KEY: 'secret', PARVIS_DATABASE_URL: 'secret' } })
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  const { env } = JSON.parse((await room.ask(model, '/v1/models')).body) as { env: Record<string, string> }
  expect(env['LD_LIBRARY_PATH']).toBe('/opt/gpu')
  expect(JSON.stringify(env)).not.toContain('secret')
})

test('a request that comes while the model loads waits for it', async () => {
  const room = open()
  const model = await modelOf('m', { loadMs: 200 })
  room.want([model])
  const outcome = await room.takeSeat(model, never)
  expect(outcome.ok && outcome.value.replica.name).toBe('embedded:m')
})

test('while it loads its state says how far it is', async () => {
  const room = open()
  const model = await modelOf('m', { silent: true })
  room.want([model])
  await until('it tells', () => room.engineOf(model).reason === 'loading, 25 %')
  expect(room.engineOf(model).state).toBe('starting')
})

test('many models load one after the other', async () => {
  const room = open()
  const wanted = await Promise.all(['a', 'b', 'c'].map((name) => modelOf(name, { loadMs: 50 })))
  room.want(wanted)
  for (const model of wanted) await room.ready(model)
  const steps = (await journal()).map(({ what, name }) => `${what} ${name}`)
  expect(steps).toEqual(['start a', 'ready a', 'start b', 'ready b', 'start c', 'ready c'])
})

test('a child that is killed comes back, and requests reach the new one', async () => {
  const room = open()
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  const first = room.engineOf(model).address
  await room.ask(model, '/crash').catch(() => undefined)
  await until('another is ready', () => room.engineOf(model).state === 'ready' && room.engineOf(model).address !== first)
  expect((await room.ask(model, '/v1/models')).status).toBe(200)
  expect(room.lines.some((line) => line.includes('ended by SIGKILL'))).toBe(true)
})

test('between its end and its next start requests are refused at once, with when to come back', async () => {
  const room = open({}, { restartMinMs: 60_000 })
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  await room.ask(model, '/crash').catch(() => undefined)
  await until('its end is noticed', () => room.engineOf(model).state === 'unhealthy')
  expect(await room.takeSeat(model, never)).toEqual({
    ok: false,
    refusal: { code: 'engine_unavailable', model: 'm', reason: 'its engine does not answer', retryAfterMs: 5_000 },
  })
})

test('a child that cannot load says why, in the log and in its state, and is tried again later and later', async () => {
  const room = open({}, { restartMinMs: 20 })
  const model = await modelOf('m', { failed: 'the file is not a GGUF file', badLives: 3 })
  room.want([model])
  await until('its state says why', () => room.engineOf(model).reason === 'the file is not a GGUF file')
  await room.ready(model)
  const waits = room.lines.flatMap((line) => {
    const { restartMs, reason } = JSON.parse(line) as { restartMs?: number; reason?: string }
    return restartMs === undefined ? [] : [`${restartMs} ${reason}`]
  })
  expect(waits).toEqual(['20 the file is not a GGUF file', '40 the file is not a GGUF file', '80 the file is not a GGUF file'])
})

test('a child that was ready for long enough has earned a quick restart', async () => {
  const room = open({}, { restartMinMs: 10, healthyMs: 0 })
  const model = await modelOf('m')
  room.want([model])
  for (let round = 0; round < 3; round += 1) {
    await room.ready(model)
    const { address } = room.engineOf(model)
    await room.ask(model, '/crash').catch(() => undefined)
    await until('its end is noticed', () => room.engineOf(model).address !== address)
  }
  expect(room.lines.filter((line) => line.includes('"restartMs":10'))).toHaveLength(3)
})

test('what native code said last is told as the reason', async () => {
  const room = open()
  const model = await modelOf('m', { lastWords: 'GGML_ASSERT(n_tokens > 0) failed' })
  room.want([model])
  await room.ready(model)
  expect(room.lines.some((line) => line.includes('ended with code 134: GGML_ASSERT(n_tokens > 0) failed'))).toBe(true)
})

test('what native code quotes of a request goes nowhere, whether the child ends with it or not', async () => {
  const room = open()
  const model = await modelOf('m', { lastWords: 'parse: error parsing grammar\nroot ::= "SECRET"' })
  room.want([model])
  await room.ready(model)
  expect(room.lines.some((line) => line.includes('"reason":"ended with code 134"'))).toBe(true)
  expect(room.lines.some((line) => line.includes('the engine wrote 2 lines that are not its log'))).toBe(true)
  expect(room.lines.join('')).not.toContain('SECRET')
})

test('a child that says nothing while loading is ended and started again', async () => {
  const room = open({}, { loadSilenceMs: 2_000 }) // longer than another process takes to begin, also on a busy machine
  const model = await modelOf('m', { silent: true })
  room.want([model])
  await room.ready(model)
  expect(room.lines.some((line) => line.includes('said nothing for 2 s while loading'))).toBe(true)
})

test('a child that lives but does not answer any more is ended and started again', async () => {
  const room = open({}, { hangMs: 50 }, 300)
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  const { address } = room.engineOf(model)
  await room.ask(model, '/hang')
  await until('another is ready', () => room.engineOf(model).state === 'ready' && room.engineOf(model).address !== address)
  expect(room.lines.some((line) => line.includes('did not answer for 0.05 s'))).toBe(true)
})

test.runIf(process.platform === 'linux')('a child that takes more memory than its limit is ended, with a line that says so', async () => {
  const room = open({ memoryMb: 180 })
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  const { address } = room.engineOf(model)
  await room.ask(model, '/grow').catch(() => undefined)
  await until('another is ready', () => room.engineOf(model).state === 'ready' && room.engineOf(model).address !== address)
  expect(room.lines.some((line) => /used \d+ MB of memory, more than its limit of 180 MB/.test(line))).toBe(true)
})

test('a model that is no longer wanted loses its child, the others keep theirs', async () => {
  const room = open()
  const [a, b] = [await modelOf('a'), await modelOf('b')]
  room.want([a, b])
  await room.ready(a)
  await room.ready(b)
  const { address } = room.engineOf(b)
  room.want([b])
  expect(room.directory.forModel(a.id)).toEqual([])
  await until('it is told to end', async () => (await journal()).some(({ what, name }) => what === 'SIGTERM' && name === 'a'))
  room.want([b])
  expect(room.engineOf(b).address).toBe(address)
})

test('a model that was changed gets a new child once the old one has ended; requests wait for it', async () => {
  const room = open()
  const model = await modelOf('m')
  room.want([model])
  await room.ready(model)
  const changed = { ...model, contextTokens: 1024 }
  room.want([changed])
  const outcome = await room.takeSeat(model, never)
  expect(outcome.ok).toBe(true)
  expect(JSON.parse((await room.ask(changed, '/v1/models')).body).args).toContain('1024')
  expect((await journal()).map(({ what }) => what)).toEqual(['start', 'ready', 'SIGTERM', 'start', 'ready'])
})

test('closing ends every child, also one that does not listen and one that is loading', async () => {
  const room = open({}, { killMs: 100 })
  const [deaf, loading] = [await modelOf('deaf', { ignoreSigterm: true }), await modelOf('loading', { loadMs: 60_000 })]
  room.want([deaf, loading])
  await room.ready(deaf)
  await until('it loads', async () => (await journal()).some(({ what, name }) => what === 'start' && name === 'loading'))
  await room.close()
  for (const { pid } of await journal()) expect(() => process.kill(pid, 0)).toThrow('ESRCH')
})

test.runIf(process.platform === 'linux')(
  'Ctrl-C in the terminal does not reach the children: they are in a session of their own',
  async () => {
    const room = open()
    const model = await modelOf('m')
    room.want([model])
    await room.ready(model)
    const [{ pid } = { pid: 0 }] = await journal()
    const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? []
    expect(Number(fields[2])).toBe(pid)
  },
)

test('an engine that is not there is told as the reason, and closing is quick', async () => {
  const room = open({ entry: { path: join(dir, 'nothing.mjs'), execArgv: [] } }, { restartMinMs: 60_000 })
  const model = await modelOf('m')
  room.want([model])
  await until('the reason is told', () => room.engineOf(model).reason?.includes('Cannot find module') === true)
  expect(room.engineOf(model).state).toBe('unhealthy')
})
