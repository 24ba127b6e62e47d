import type { IncomingMessage } from 'node:http'
import { PassThrough } from 'node:stream'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { readBytes } from './read-body.ts'

const opened = (headers: Record<string, string> = {}) => Object.assign(new PassThrough(), { headers }) as PassThrough & IncomingMessage
const limits = { limitMs: 60_000, maxBytes: 1_000 }

test('a body is what was sent, wherever it was cut', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uint8Array({ minLength: 1, maxLength: 90 }), { maxLength: 10 }), async (pieces) => {
      const request = opened()
      const read = readBytes(request, limits)
      for (const piece of pieces) request.write(piece)
      request.end()
      expect(await read).toEqual(Buffer.concat(pieces))
    }),
  )
})

test('who sends single bytes has us hold twice of what was sent at most, in a handful of steps', async () => {
  const request = opened()
  const steps: number[] = []
  const hold = (bytes: number): boolean => steps.push(bytes) > 0
  const read = readBytes(request, { ...limits, hold })
  for (let sent = 0; sent < 600; sent += 1) request.write('a')
  request.end()
  const bytes = await read
  expect(bytes.toString()).toBe('a'.repeat(600))
  const held = steps.reduce((sum, step) => sum + step, 0)
  expect(bytes.buffer.byteLength).toBe(held)
  expect(held).toBeLessThanOrEqual(1_000)
  expect(steps.length).toBeLessThan(15)
})

test('a body that is too large, late, left or finds no room is said to be so', async () => {
  const unread = (read: Promise<Buffer>) => read.then(String, (error: { unread: string }) => error.unread)
  expect(await unread(readBytes(opened({ 'content-length': '1001' }), limits))).toBe('too_large')
  const [large, late, left, crowded] = [opened(), opened(), opened(), opened()]
  const reads = [
    readBytes(large, limits),
    readBytes(late, { ...limits, limitMs: 1 }),
    readBytes(left, limits),
    readBytes(crowded, { ...limits, hold: () => false }),
  ].map(unread)
  large.write(Buffer.alloc(600))
  large.write(Buffer.alloc(401))
  left.write('a')
  left.destroy()
  crowded.write('a')
  expect(await Promise.all(reads)).toEqual(['too_large', 'late', 'left', 'crowded'])
})
