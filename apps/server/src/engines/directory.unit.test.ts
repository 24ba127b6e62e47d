import { expect, test } from 'vitest'
import { type Instant, systemClock } from '../kit/clock.ts'
import { newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { type Engine, newEngine, openDirectory } from './directory.ts'

const START = 1_000_000
const model = newId<'model'>(START as Instant)

/** A directory whose clock stands still until it is moved. */
const open = (engines: number) => {
  let now = START
  const lines: string[] = []
  const log = openLog('info', { write: (line) => lines.push(line) })
  const directory = openDirectory({ clock: { ...systemClock, now: () => now as Instant }, log })
  const added = Array.from({ length: engines }, (_, index) => {
    const serves = [{ modelId: model, modelName: 'm', remoteName: 'm' }]
    const engine = newEngine(
      { id: newId(now as Instant), name: `engine-${index}`, kind: 'external', seatLimit: 2, serves, reason: '' },
      now as Instant,
    )
    directory.arrive(engine, { origin: 'http://127.0.0.1:9', basePath: '' }, undefined)
    directory.add(engine)
    directory.become(engine, 'ready')
    return engine
  })
  const [first] = added
  if (first === undefined) throw new Error('no engine')
  const fail = (engine: Engine, times: number, how: 'failed' | 'broken' = 'failed'): void => {
    for (let each = 0; each < times; each += 1) directory.failed(engine, how)
  }
  return { directory, first, added, fail, lines, pass: (ms: number) => (now += ms) }
}

test('an engine that says it is well and fails five calls in a row is taken out, and the log says why', () => {
  const { directory, first, fail, lines } = open(2)
  fail(first, 4)
  expect(first.state).toBe('ready')
  fail(first, 1)
  expect(first).toMatchObject({ state: 'unhealthy', reason: '5 calls to it failed in a row' })
  directory.become(first, 'ready')
  expect(first.state).toBe('unhealthy')
  expect(lines.join('')).toContain('5 calls to it failed in a row')
})

test('a call that is served in between begins the count anew', () => {
  const { directory, first, fail } = open(2)
  for (let round = 0; round < 5; round += 1) {
    fail(first, 4)
    directory.served(first)
  }
  expect(first.state).toBe('ready')
})

test('after its pause the first good answer brings it back on trial; a served call ends the trial', () => {
  const { directory, first, fail, pass } = open(2)
  fail(first, 5)
  pass(4_999)
  directory.become(first, 'ready')
  expect(first.state).toBe('unhealthy')
  pass(1)
  directory.become(first, 'ready')
  expect(first).toMatchObject({ state: 'ready', onTrial: true })
  directory.served(first)
  expect(first).toMatchObject({ onTrial: false, failures: 0 })
  fail(first, 4)
  expect(first.state).toBe('ready')
})

test('a trial that fails takes it out for twice as long, up to a minute', () => {
  const { directory, first, fail, pass } = open(2)
  fail(first, 5)
  for (const seconds of [5, 10, 20, 40, 60, 60]) {
    pass(seconds * 1000 - 1)
    directory.become(first, 'ready')
    expect(first.state).toBe('unhealthy')
    pass(1)
    directory.become(first, 'ready')
    expect(first.state).toBe('ready')
    fail(first, 1)
    expect(first.state).toBe('unhealthy')
  }
})

test('the last ready engine of a model stays for errors that it says in good order, and goes when its calls break', () => {
  const { directory, first, added, fail } = open(2)
  const [, second] = added
  if (second === undefined) throw new Error('no second engine')
  directory.become(second, 'unhealthy', 'away')
  fail(first, 50)
  expect(first.state).toBe('ready')
  fail(first, 1, 'broken')
  expect(first.state).toBe('unhealthy')
})

test('a new process of an engine is not judged by what the earlier one did', () => {
  const { directory, first, fail } = open(2)
  fail(first, 5)
  directory.arrive(first, { origin: 'http://127.0.0.1:10', basePath: '' }, undefined)
  directory.become(first, 'ready')
  expect(first).toMatchObject({ state: 'ready', onTrial: false })
  fail(first, 4)
  expect(first.state).toBe('ready')
})
