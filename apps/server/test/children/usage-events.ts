import { systemClock } from '../../src/kit/clock.ts'
import type { AccessKey } from '../../src/kit/ids.ts'
import { newId } from '../../src/kit/ids.ts'
import type { RecordedEvent } from '../../src/usage/event.ts'

/** An event like one of a short chat answer, with an id of its own. */
export const usageEventOf = (changes: Partial<RecordedEvent> = {}): RecordedEvent => {
  const now = systemClock.now()
  return {
    id: newId(now),
    organizationId: newId(now),
    projectId: newId(now),
    principalId: newId(now),
    accessKey: 'SCWABCDEFGHIJKLMNOPQ' as AccessKey,
    modelAsked: 'tiny-chat',
    model: 'tiny-chat',
    priceId: newId(now),
    gateway: newId(now),
    charged: true,
    poolId: newId(now),
    replica: 'embedded:tiny-chat',
    endpoint: 'chat/completions',
    mode: 'realtime',
    status: 200,
    ended: 'complete',
    counted: 'engine',
    input: 31,
    cachedInput: 16,
    output: 12,
    reasoning: 0,
    audioInput: 0,
    audioMs: 0,
    images: 0,
    pages: 0,
    acceptedAt: now,
    firstByteAt: now,
    endedAt: now,
    ...changes,
  }
}
