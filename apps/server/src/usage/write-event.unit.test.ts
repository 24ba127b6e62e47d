import fc from 'fast-check'
import { expect, test } from 'vitest'
import { usageEventOf } from '../../test/children/usage-events.ts'
import type { RecordedEvent } from './event.ts'
import { frame } from './segment.ts'
import { mostBytesOf, writeEvent } from './write-event.ts'

/** In the order in which a journal has always had them. */
const inOrder = ({
  gateway,
  charged,
  input,
  cachedInput,
  output,
  reasoning,
  audioInput,
  audioMs,
  images,
  pages,
  ...event
}: RecordedEvent) => {
  const { acceptedAt, firstByteAt, endedAt, ...who } = event
  const counts = { input, cachedInput, output, reasoning, audioInput, audioMs, images, pages }
  return { ...who, acceptedAt, firstByteAt, endedAt, ...counts, gateway, charged }
}

const written = (event: RecordedEvent): string => {
  const bytes = Buffer.alloc(3 + mostBytesOf(event, event))
  return bytes.toString('utf8', 3, writeEvent(bytes, 3, event, event))
}

const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string(), fc.constantFrom('\ud800', '\u0000', '"', '\\', '\u007f', 'é', '日', '😀'))
const number = fc.oneof(fc.nat(), fc.maxSafeNat(), fc.double(), fc.integer(), fc.constantFrom(-0, 999_999, 1_000_000, 1e12, 1e21))

test('an event is written as JSON.stringify writes it, whatever it holds', () => {
  fc.assert(
    fc.property(
      fc.record({ modelAsked: text, model: text, replica: text, endpoint: text, gateway: text }),
      fc.record({ charged: fc.boolean(), status: number, input: number, output: number, audioMs: number, pages: number }),
      fc.record({ acceptedAt: number, endedAt: number, firstByteAt: fc.option(number) }),
      (texts, numbers, instants) => {
        const event = { ...usageEventOf(), ...texts, ...numbers, ...instants } as RecordedEvent
        expect(written(event)).toBe(JSON.stringify(inOrder(event)))
      },
    ),
    { numRuns: 1_000 },
  )
})

test('what is written has room, also where each character is escaped', () => {
  const long = '\u0000'.repeat(1_000)
  const event = usageEventOf({ modelAsked: long, model: long, replica: long, endpoint: long })
  expect(frame(written(event)).length - 8).toBe(Buffer.byteLength(JSON.stringify(inOrder(event))))
})
