import { randomUUID } from 'node:crypto'
import { aModel, startDataPlane } from '@parvis/testkit/data-plane'
import { startScriptedEngine } from '@parvis/testkit/scripted-engine'
import { until } from '@parvis/testkit/until'
import { expect, test } from 'vitest'
import { readAddress } from '../engines/address.ts'
import { newEngine, openDirectory } from '../engines/directory.ts'
import { openSeats } from '../engines/seat.ts'
import { systemClock } from '../kit/clock.ts'
import { type AccessKey, newId, type OrganizationId, type PrincipalId, type ProjectId } from '../kit/ids.ts'
import { openLog } from '../kit/log.ts'
import { yes } from '../kit/outcome.ts'

// One engine with one place, and the projects of an organization that want it; the key says which project it is.

const CHAT = '/v1/chat/completions'
const ORGANIZATION = randomUUID() as OrganizationId
/** Nobody is refused for having waited too long, however slow the machine is. */
const WAIT_MS = 600_000

const startPlace = async () => {
  const clock = systemClock
  const engine = await startScriptedEngine()
  const model = aModel({ contextTokens: 100_000, maxOutputTokens: 10_000 })
  const directory = openDirectory({ clock, log: openLog('silent') })
  const seats = openSeats({ directory, clock, limits: { waitMs: WAIT_MS } })
  const serves = [{ modelId: model.id, modelName: model.name, remoteName: model.name }]
  const place = newEngine({ id: newId(clock.now()), name: 'engine', kind: 'external', seatLimit: 1, serves, reason: '' }, clock.now())
  directory.arrive(place, readAddress(engine.url), undefined)
  directory.add(place)
  directory.become(place, 'ready')
  const plane = await startDataPlane({
    engine: engine.url,
    models: [model],
    rooms: {
      takeSeat: seats.takeSeat,
      authenticate: (authorization) =>
        yes({
          organizationId: ORGANIZATION,
          projectId: (authorization ?? '').replace('Bearer ', '') as ProjectId,
          principalId: ORGANIZATION as string as PrincipalId,
          accessKey: 'SCWXXXXXXXXXXXXXXXXX' as AccessKey,
        }),
    },
  })
  /** So many requests of a project, each for so many tokens; resolves when all of them wait. */
  const queue = async (project: string, requests: number, maxTokens: number): Promise<Promise<number>[]> => {
    const waiting = seats.waiting()
    const answers = Array.from({ length: requests }, () =>
      fetch(`${plane.url}${CHAT}`, {
        method: 'POST',
        headers: { authorization: `Bearer ${project}`, 'content-type': 'application/json' },
        body: JSON.stringify({ model: model.name, max_tokens: maxTokens, messages: [{ role: 'user', content: 'Hello' }] }),
      }).then(({ status }) => status),
    )
    await until(`all of ${project} wait`, () => seats.waiting() === waiting + requests)
    return answers
  }
  return {
    engine,
    queue,
    /** Takes the place and lets go of it once others have been queued. */
    async while(work: () => Promise<Promise<number>[]>): Promise<string[]> {
      engine.play({ holdAfter: 0, holdHead: true })
      const first = fetch(`${plane.url}${CHAT}`, {
        method: 'POST',
        headers: { authorization: 'Bearer first', 'content-type': 'application/json' },
        body: JSON.stringify({ model: model.name, messages: [{ role: 'user', content: 'Hello' }] }),
      })
      await engine.until('held')
      const answers = await work()
      engine.play({})
      engine.release()
      expect((await first).status).toBe(200)
      expect(new Set(await Promise.all(answers))).toEqual(new Set([200]))
      return engine.requests.slice(1).map(({ headers }) => String(headers['x-parvis-tenant']))
    },
    async [Symbol.asyncDispose]() {
      seats.close()
      await plane.close()
      await engine.close()
    },
  }
}

test('a project that floods the queue of an engine does not starve another of its organization', async () => {
  await using place = await startPlace()
  const order = await place.while(async () => [...(await place.queue('flood', 60, 500)), ...(await place.queue('small', 3, 500))])
  expect(order).toHaveLength(63)
  // They take turns, although all of the flood had asked before.
  expect(order.lastIndexOf('small')).toBeLessThanOrEqual(6)
})

test('turns are weighed by tokens: who asks for ten times as many is served a tenth as often', async () => {
  await using place = await startPlace()
  const order = await place.while(async () => [...(await place.queue('long', 6, 5_000)), ...(await place.queue('short', 40, 500))])
  const between = order.slice(0, order.lastIndexOf('short') + 1).filter((project) => project === 'long').length
  expect(between).toBeGreaterThanOrEqual(3)
  expect(between).toBeLessThanOrEqual(5)
})

test('a project with a few long requests does not starve one that comes later with short ones, nor the other way round', async () => {
  await using place = await startPlace()
  const order = await place.while(async () => [...(await place.queue('short', 50, 100)), ...(await place.queue('long', 2, 1_000))])
  // The first long one is next to begin; the second after as many tokens of the others.
  expect(order.indexOf('long')).toBeLessThanOrEqual(1)
  expect(order.lastIndexOf('long')).toBeLessThanOrEqual(15)
})
