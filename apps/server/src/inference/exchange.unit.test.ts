import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { expect, test } from 'vitest'
import { systemClock } from '../kit/clock.ts'
import { openLog } from '../kit/log.ts'
import { openDeadlines } from './deadlines.ts'
import { DEFAULT_LIMITS, type Exchange, openExchange } from './exchange.ts'
import { openMemory } from './memory.ts'

test('one listens at a time for a client that keeps up again, whoever listened before', async () => {
  const deadlines = openDeadlines()
  const rooms = { clock: systemClock, log: openLog('silent'), limits: DEFAULT_LIMITS, deadlines, memory: openMemory(1_000_000) }
  let opened: ((exchange: Exchange) => void) | undefined
  const opening = new Promise<Exchange>((resolve) => {
    opened = resolve
  })
  const server = createServer((request, response) => opened?.(openExchange(rooms, request, response, undefined)))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1')
  client.pause()
  client.write('GET / HTTP/1.1\r\nhost: localhost\r\n\r\n')
  const exchange = await opening

  const told: string[] = []
  for (const engine of ['first', 'second', 'third']) exchange.whenDrained(() => void told.push(engine))
  exchange.begin()
  while (exchange.write(Buffer.alloc(64 * 1024)));
  client.resume()
  await expect.poll(() => told).toEqual(['third'])

  exchange.whenDrained(undefined)
  let drained = false
  exchange.whenDrained(() => {
    drained = true
  })
  client.pause()
  while (exchange.write(Buffer.alloc(64 * 1024)));
  client.resume()
  await expect.poll(() => drained).toBe(true)
  expect(told).toEqual(['third'])
  client.destroy()
  server.close()
  deadlines.close()
})
