import { type AddressInfo, createServer } from 'node:net'
import { startHub } from '@parvis/testkit/hub'
import { expect, test } from 'vitest'
import { offerStarter, STARTER, STARTER_NAME } from './starter.ts'
import { modelName, parseReference } from './weights/reference.ts'

test('where the hub answers, the starter is offered, and nothing is downloaded', async () => {
  const hub = await startHub({})
  try {
    expect(await offerStarter({ hubEndpoint: hub.url })).toContain(
      `--starter, or while this runs, in another terminal:\n  npx parvis models pull ${STARTER}`,
    )
    expect(hub.requests.map(({ method, path }) => `${method} ${path}`)).toEqual(['HEAD /'])
  } finally {
    await hub.close()
  }
})

test('where it does not, nothing is said, and the start is not held up for long', async () => {
  const silent = createServer()
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
  const hubEndpoint = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`
  const sockets: { destroy(): void }[] = []
  silent.on('connection', (socket) => sockets.push(socket))
  expect(await offerStarter({ hubEndpoint })).toBeUndefined()
  for (const socket of sockets) socket.destroy()
  await new Promise((resolve) => silent.close(resolve))
  expect(await offerStarter({ hubEndpoint })).toBeUndefined()
  expect(await offerStarter({ hubEndpoint: 'not an address' })).toBeUndefined()
})

test('the reference of the starter is one, and gives its name', () => {
  const reference = parseReference(STARTER)
  expect(reference).toMatchObject({ kind: 'hub', file: expect.stringMatching(/\.gguf$/) })
  expect(modelName(STARTER.split(':')[1] ?? '', STARTER.split(':')[0])).toBe(STARTER_NAME)
})
