import fc from 'fast-check'
import { expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { newId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { openDirectory } from './directory.ts'
import { openTold, partOfSeats, ToldEngine, toTold } from './told.ts'

const log = openLog('silent')
const modelId = newId<'model'>(systemClock.now())
const serves = [{ modelId, modelName: 'tiny', remoteName: 'tiny' }]
const child: ToldEngine = {
  id: newId<'engine'>(systemClock.now()),
  name: 'embedded:tiny',
  seatLimit: 12,
  serves,
  state: 'ready',
  address: { origin: 'http://127.0.0.1:1', basePath: '' },
  bearer: 'first life',
}

const gateway = () => {
  const directory = openDirectory({ clock: systemClock, log })
  const asked: string[] = []
  const health = {
    begin: ({ bearer }: { bearer: string | undefined }) => void asked.push(`begin ${bearer}`),
    end: () => undefined,
    close: async () => undefined,
  }
  const { hear } = openTold({ directory, health, clock: systemClock })
  return { directory, asked, hear, only: () => directory.all()[0] }
}

test('a gateway knows a child as the house does, and a new life of it by its new key', () => {
  const { hear, only, asked, directory } = gateway()
  hear([{ ...child, state: 'starting', address: undefined, bearer: undefined, reason: 'loading, 3 %' }])
  expect(only()).toMatchObject({ name: 'embedded:tiny', state: 'starting', reason: 'loading, 3 %' })
  hear([child])
  hear([child])
  expect(only()).toMatchObject({ state: 'ready', bearer: 'first life', seatLimit: 12 })
  expect(directory.forModel(modelId)[0]?.replicas.size).toBe(1)
  hear([{ ...child, state: 'unhealthy', reason: 'its process has ended' }])
  expect(only()).toMatchObject({ state: 'unhealthy', reason: 'its process has ended' })
  hear([{ ...child, bearer: 'second life', address: { origin: 'http://127.0.0.1:2', basePath: '' } }])
  expect(only()).toMatchObject({ state: 'ready', bearer: 'second life', address: { origin: 'http://127.0.0.1:2' } })
  expect(asked).toEqual(['begin first life', 'begin second life'])
  hear([])
  expect(directory.all()).toEqual([])
})

test('what this gateway has found out itself is not told away while the house says the same as before', () => {
  const { hear, only, directory } = gateway()
  hear([child])
  const engine = only()
  if (engine === undefined) throw new Error('it knows none')
  directory.become(engine, 'unhealthy', 'a call to it broke')
  hear([child])
  expect(only()?.state).toBe('unhealthy')
})

test('what is told of an engine is what it is, on the other side of the channel', () => {
  const { hear, only } = gateway()
  hear([child])
  const engine = only()
  if (engine === undefined) throw new Error('it knows none')
  expect(ToldEngine.parse(JSON.parse(JSON.stringify(toTold(engine))))).toEqual(child)
})

test('all gateways together have the seats that a child has, and each has one', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 64 }), (seatLimit, gateways) => {
      const parts = Array.from({ length: gateways }, (_, index) => partOfSeats({ ...child, seatLimit }, index + 1, gateways).seatLimit)
      expect(Math.min(...parts)).toBeGreaterThanOrEqual(1)
      expect(Math.max(...parts) - Math.min(...parts)).toBeLessThanOrEqual(1)
      expect(parts.reduce((sum, part) => sum + part, 0)).toBe(Math.max(seatLimit, gateways))
    }),
  )
})
